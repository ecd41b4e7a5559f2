"""Shows what a ComfyUI is doing with a prompt, as the editor does: which node, which step. Only the standard library is used."""
from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
import uuid
from collections.abc import Iterator

from tools.server import Server

ENDS = {"execution_success", "execution_error", "execution_interrupted"}
PAUSE = 5  # seconds between two lines about one node, where lines cannot be written over
GREETING = (
    "GET /ws?clientId={client} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
TEXT = 0x81  # a whole text message, in the first byte of its frame (RFC 6455, 5.2)


def messages(port: int, client: str) -> Iterator[dict]:
    """What the server says to a client, until it closes the connection. Previews, which are binary, are left out."""
    with socket.create_connection(("127.0.0.1", port)) as connection, connection.makefile("rb") as stream:
        connection.sendall(GREETING.format(client=client, port=port).encode())
        while stream.readline().strip():
            pass
        while header := stream.read(2):
            kind, length = header
            if length > 125:  # the length itself follows, in 2 or in 8 bytes
                length = int.from_bytes(stream.read(2 if length == 126 else 8), "big")
            content = stream.read(length)
            if kind == TEXT:
                yield json.loads(content)


class Line:
    """One line of the terminal that is written over; where the output is a file, a new line every few seconds."""

    def __init__(self, prompt: dict):
        self.titles = {key: node.get("_meta", {}).get("title", node["class_type"]) for key, node in prompt.items()}
        self.rewritten = sys.stdout.isatty()
        self.node, self.since, self.said = None, 0.0, 0.0

    def hear(self, kind: str, data: dict) -> None:
        """Show a message of the server, where it is about progress."""
        if kind == "executing" and data["node"] in self.titles:
            self.begin(data["node"])
        elif kind == "progress" and data["node"] in self.titles:
            if data["node"] != self.node:
                self.begin(data["node"])
            self.step(data["value"], data["max"])

    def begin(self, node: str) -> None:
        self.node, self.since = node, time.monotonic()
        self.show(self.titles[node])

    def step(self, value: int, steps: int) -> None:
        spent = time.monotonic() - self.since
        if value and (self.rewritten or value == steps or time.monotonic() - self.said > PAUSE):
            left = f", about {spent / value * (steps - value):.0f} s left" if value < steps else f" in {spent:.0f} s"
            self.show(f"{self.titles[self.node]}: step {value} of {steps}{left}")

    def show(self, text: str) -> None:
        self.said = time.monotonic()
        print(f"\r\x1b[K  {text}" if self.rewritten else f"  {text}", end="" if self.rewritten else "\n", flush=True)

    def end(self) -> None:
        if self.rewritten:
            print("\r\x1b[K", end="", flush=True)


def watched(server: Server, prompt: dict) -> dict:
    """The history entry of a prompt that is queued and shown until it ends, well or not. Raises ServerError as `Server.queue`."""
    client, line = uuid.uuid4().hex, Line(prompt)
    with contextlib.closing(messages(server.port, client)) as heard:
        next(heard)  # the server knows the client now: nothing is missed
        prompt_id = server.queue(prompt, client)
        with contextlib.suppress(ConnectionError):  # a server that died: `wait` says so, with its log
            for message in heard:
                kind, data = message["type"], message["data"]
                if kind in ENDS and data["prompt_id"] == prompt_id:
                    break
                line.hear(kind, data)
    line.end()
    return server.wait(prompt_id, timeout=60)
