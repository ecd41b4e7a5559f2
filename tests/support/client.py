"""The server as a user's script meets it: prompts posted over HTTP, messages on the websocket, files, memory."""

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from PIL import Image

import dev
from tools.server import failure

PROMPT_TIMEOUT = 300  # seconds; a prompt takes a few, but the machine may be busy
LARGE = ("--text-encoders", "--svd-checkpoint")  # options of tools/untrained.py: what the host takes at full size only
END = {"execution_success", "execution_error", "execution_interrupted"}


class Comfy(dev.Server):
    """The server with the few questions that tests ask."""

    def run(self, prompt: dict, client_id: str | None = None) -> dict:
        """The history entry of a prompt that must succeed."""
        entry = self.wait(self.queue(prompt, client_id), PROMPT_TIMEOUT)
        assert failure(entry) is None, failure(entry)
        return entry

    def fault(self, prompt: dict) -> dict:
        """The details of the one error with which a prompt must end."""
        entry = self.wait(self.queue(prompt), PROMPT_TIMEOUT)
        errors = [details for kind, details in entry["status"]["messages"] if kind == "execution_error"]
        assert len(errors) == 1, f"expected one error, found {entry['status']}"
        return errors[0]

    def saved(self, entry: dict) -> list[Path]:
        """The files that a prompt saved, in order."""
        return [self.base / item["type"] / item["subfolder"] / item["filename"]
                for output in entry["outputs"].values() for item in output["images"]]

    def pictures(self, entry: dict) -> np.ndarray:
        """The images that a prompt saved: [n, h, w, 3], uint8."""
        return np.stack([np.asarray(Image.open(path).convert("RGB")) for path in self.saved(entry)])


def cached(entry: dict) -> set[str]:
    """The ids of the nodes whose result the host had kept from an earlier prompt."""
    return {node_id for kind, details in entry["status"]["messages"] if kind == "execution_cached" for node_id in details["nodes"]}


def memory(server) -> dict[str, int]:
    """Bytes that the server holds: in RAM, and where there is a card, in torch's pool on it.

    On a CPU /system_stats reports what the whole machine holds, other programs too, so there only the first counts.
    """
    held = {"resident": psutil.Process(server.process.pid).memory_info().rss}
    for device in server.get("/system_stats")["devices"]:
        if device["type"] != "cpu":
            held[device["name"]] = device["torch_vram_total"] - device["torch_vram_free"]
    return held


@dataclass
class Watched:
    """The messages of one prompt with the time at which each came."""

    prompt_id: str
    times: list[float] = field(default_factory=list)
    events: list[tuple[str, dict]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)

    def progress(self, node_id: str) -> list[tuple[float, int, int]]:
        """(time, value, max) of each progress message of a node."""
        timed = zip(self.times, self.events, strict=False)  # a message may just be coming
        return [(at, data["value"], data["max"]) for at, (kind, data) in timed if kind == "progress" and data["node"] == node_id]


def watch(server, prompt: dict, on_event=lambda watched: None) -> Watched:
    """Queue a prompt and listen until it ends; `on_event` is called after each message."""
    async def listen() -> Watched:
        client = uuid.uuid4().hex
        url = f"{server.url}/ws?clientId={client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket:
            watched = Watched(await asyncio.to_thread(server.queue, prompt, client))
            async for message in socket:
                if message.type == aiohttp.WSMsgType.BINARY:
                    watched.previews.append(message.data)
                    continue
                event = json.loads(message.data)
                watched.times.append(time.monotonic())
                watched.events.append((event["type"], event["data"]))
                await asyncio.to_thread(on_event, watched)
                if event["type"] in END and event["data"]["prompt_id"] == watched.prompt_id:
                    return watched
        raise AssertionError("the server closed the websocket")

    try:
        return asyncio.run(asyncio.wait_for(listen(), PROMPT_TIMEOUT))
    except asyncio.TimeoutError:
        server.interrupt()  # so that the tests after this one do not wait for it as well
        raise
