"""Prompts of the soak run on the server, and what must be true of each: right, cancelled, refused in one error."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

from safetensors import safe_open

from support.prompts import node
from tools.server import Server, ServerError, failure

TIMEOUT = 300  # seconds; a prompt takes one, but the machine may be busy
LONGEST = 1000  # characters of an error
FREED = 10**6  # bytes of tensors: with fewer no model is loaded


class Runs:
    """Runs what `change` makes of prompts on a server, and notes in `faults` what was wrong with one."""

    def __init__(self, server: Server, faults: list[str], change: Callable[[dict], dict]):
        self.server, self.faults, self.change = server, faults, change
        self.count = 0  # of prompts queued
        self.queued_by: dict[str, str] = {}  # prompt id -> client
        self.results: dict[str, str] = {}  # prompt -> its latent
        self._nonces = itertools.count(1)

    def same(self, prompt: dict) -> None:
        """The prompt succeeds, with the latent that it gave before, if it ran before."""
        self._compare(prompt, self._ended(self._queue(prompt)))

    def same_together(self, prompts: dict[str, dict]) -> None:
        """`same` for one prompt of each client, queued at once."""
        queued = [(prompt, self._queue(prompt, client)) for client, prompt in prompts.items()]
        for prompt, prompt_id in queued:
            self._compare(prompt, self._ended(prompt_id))

    def outputs(self, prompt: dict) -> dict:
        """What the nodes of a prompt that must succeed say."""
        entry = self._ended(self._queue(prompt))
        if said := failure(entry):
            raise ServerError(said)
        return entry["outputs"]

    def cancelled(self, prompt: dict, after: float) -> None:
        """A prompt that is stopped so many seconds after it began ends as interrupted."""
        prompt_id = self._queue(prompt)
        while not any(item[1] == prompt_id for item in self.server.get("/queue")["queue_running"]):
            if self.server.get(f"/history/{prompt_id}"):
                break  # it ended by an error: said below
            time.sleep(0.02)
        time.sleep(0.05 + after)  # the host forgets an interrupt that comes before the run begins
        self.server.interrupt()
        said = failure(self._ended(prompt_id))
        if not (said or "").startswith("interrupted"):
            self._wrong(prompt, f"cancelled, it ended as: {said}")

    def refused(self, what: str, prompt: dict, named: list[str]) -> None:
        """A prompt ends in one error, before the run or in it, whose text holds all of `named`."""
        try:
            entry = self._ended(self._queue(prompt))
        except ServerError as refusal:
            said = [str(refusal)]
        else:
            errors = (details for kind, details in entry["status"]["messages"] if kind == "execution_error")
            said = [details["exception_message"].strip() for details in errors]
        if len(said) != 1 or len(said[0]) > LONGEST or not all(text in said[0] for text in named):
            self.faults.append(f"{what}: expected one error that names {named}, found {said}")

    def free(self, cache_too: bool) -> None:
        self.server.post("/free", {"unload_models": True, "free_memory": cache_too})

    def held(self) -> dict:
        """What the server holds once models and results are freed, and how many half-written files there are."""
        for _ in range(5):
            self.free(cache_too=True)
            time.sleep(1)  # the host's worker frees between two prompts, when it comes to it
            self.count -= 1  # a question of ours, no prompt of the soak
            [held] = self.outputs({"held": node("SoakHeld", nonce=next(self._nonces))})["held"]["held"]
            if held["tensors"] < FREED:
                break
        return {**held, "parts": len(list(self.server.base.rglob("*.part")))}

    def _queue(self, prompt: dict, client: str | None = None) -> str:
        self.count += 1
        prompt = self.change(copy.deepcopy(prompt))
        if "again" in prompt:
            prompt["again"]["inputs"]["nonce"] = next(self._nonces)
        prompt_id = self.server.queue(prompt, client)
        self.queued_by[prompt_id] = client
        return prompt_id

    def _ended(self, prompt_id: str) -> dict:
        return self.server.wait(prompt_id, TIMEOUT)

    def _compare(self, prompt: dict, entry: dict) -> None:
        if said := failure(entry):
            self._wrong(prompt, said)
            return
        [file] = entry["outputs"]["latent"]["latents"]
        path = self.server.base / file["type"] / file["subfolder"] / file["filename"]
        found, key = latent_of(path), json.dumps(prompt)
        path.unlink()
        if self.results.setdefault(key, found) != found:
            self._wrong(prompt, "its latent is another than before")

    def _wrong(self, prompt: dict, said: str) -> None:
        self.faults.append(f"{said}\n    {json.dumps(prompt)}")


def latent_of(path: Path) -> str:
    """A latent file's values, as a hash."""
    with safe_open(path, "np") as file:
        return hashlib.sha256(file.get_tensor("latent_tensor").tobytes()).hexdigest()
