"""Two clients of the soak's server that listen all the time, as two open pages of the editor do."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import defaultdict

from tools.progress import messages

PREVIEW = "temporal_unet.preview"


class Clients:
    """Websockets under two names; what each was sent as a preview, by prompt."""

    names = ("one", "other")

    def __init__(self, port: int):
        self.port = port
        self.seen: dict[str, set[str]] = defaultdict(set)  # client -> ids of prompts whose previews it got
        self.failed: list[str] = []

    def __enter__(self) -> Clients:
        ready = [threading.Event() for _ in self.names]
        for name, event in zip(self.names, ready, strict=True):
            threading.Thread(target=self._listen, args=(name, event), daemon=True).start()
        for event in ready:
            event.wait(30)
        return self

    def __exit__(self, *exception) -> None:
        """The threads end with the server."""

    def _listen(self, name: str, ready: threading.Event) -> None:
        with contextlib.suppress(ConnectionError, socket.timeout):
            for message in messages(self.port, name):
                ready.set()
                if message["type"] == PREVIEW:
                    self.seen[name].add(message["data"]["prompt_id"])

    def faults(self, queued_by: dict[str, str]) -> list[str]:
        """Previews that came to another than the one who queued the prompt; `queued_by`: prompt id -> client."""
        wrong = [f"a preview of prompt {prompt} of {queued_by.get(prompt)} came to {name}"
                 for name, prompts in self.seen.items() for prompt in prompts if queued_by.get(prompt) != name]
        return wrong + [f"no preview came to {name}" for name in self.names if name in queued_by.values() and not self.seen[name]]
