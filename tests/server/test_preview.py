"""Who gets the preview of all frames over the websocket: the client that queued the prompt, and nobody else."""

import asyncio
import base64
import io
import json

import aiohttp
import pytest
from PIL import Image

from support.client import PROMPT_TIMEOUT
from support.prompts import FRAMES, SIZE, only, svd
from tools.server import failure

pytestmark = pytest.mark.slow

EVENT = "temporal_unet.preview"
SETTLE = 1.0  # seconds after the end of a prompt in which the last messages arrive


class Client:
    """What came to one client: JSON messages, and the host's standard previews as bytes."""

    def __init__(self):
        self.events: list[tuple[str, dict]] = []
        self.pictures: list[bytes] = []

    async def listen(self, socket):
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                self.pictures.append(message.data)
            else:
                event = json.loads(message.data)
                self.events.append((event["type"], event.get("data")))

    def data(self, kind: str) -> list[dict]:
        return [data for found, data in self.events if found == kind]


def overhear(server, prompt: dict, queued_by: str | None, **extra_data) -> tuple[str, dict[str, Client]]:
    """Run a prompt while the clients "first" and "second" listen; its id, and what they heard."""
    clients = {name: Client() for name in ("first", "second")}
    request = {"prompt": prompt, "extra_data": extra_data, **({"client_id": queued_by} if queued_by else {})}

    async def run():
        async with aiohttp.ClientSession() as session:
            sockets = [await session.ws_connect(f"{server.url}/ws?clientId={name}", max_msg_size=0) for name in clients]
            pairs = zip(clients.values(), sockets, strict=True)
            listening = [asyncio.create_task(client.listen(socket)) for client, socket in pairs]
            prompt_id = (await asyncio.to_thread(server.post, "/prompt", request))["prompt_id"]
            entry = await asyncio.to_thread(server.wait, prompt_id, PROMPT_TIMEOUT)
            await asyncio.sleep(SETTLE)
            for socket in sockets:
                await socket.close()
            await asyncio.gather(*listening)
        assert failure(entry) is None, failure(entry)
        return prompt_id

    return asyncio.run(run()), clients


@pytest.mark.parametrize("sampler, reported", [("euler", 4), ("dpm_fast", 2)])  # steps that the sampler reports to the host
def test_the_client_that_queued_gets_all_frames_and_another_gets_none(server, sampler, reported):
    prompt = svd(steps=4, sampler_name=sampler)
    fps = prompt[only(prompt, "TemporalUNetSVDConditioning")]["inputs"]["fps"]
    prompt_id, clients = overhear(server, prompt, queued_by="first")
    previews = clients["first"].data(EVENT)
    steps = [preview.pop("step") for preview in previews]
    assert steps[0] == 1 and steps == sorted(set(steps)) and steps[-1] == 4  # how many between, depends on the machine
    assert "image" in previews[0] and "image" in previews[-1]
    for preview in (preview for preview in previews if "image" in preview):
        content = preview.pop("image").removeprefix("data:image/jpeg;base64,")
        assert preview == {
            "node_id": only(prompt, "TemporalUNetSVDSampler"), "prompt_id": prompt_id, "fps": fps, "steps": 4, "frames": FRAMES,
            "shown": list(range(FRAMES)), "columns": 2, "rows": 2, "width": SIZE // 8, "height": SIZE // 8,
        }
        assert Image.open(io.BytesIO(base64.b64decode(content, validate=True))).size == (2 * SIZE // 8, 2 * SIZE // 8)
    assert len(clients["first"].pictures) >= reported - 1  # the host's own
    assert clients["second"].data("status")  # it did listen
    assert clients["second"].data(EVENT) == []


def test_the_windows_of_a_long_clip_are_reported_as_they_are_begun(server):
    _, clients = overhear(server, svd(steps=3, frames=8, window_frames=4, window_overlap=1), queued_by="first")
    events = clients["first"].data(EVENT)
    windows = [event for event in events if "window" in event]
    assert windows[0]["window"] == [0, 3]
    for event in windows:
        assert (event["frames"], event["steps"]) == (8, 3) and "image" not in event
        first, last = event["window"]
        assert 0 <= first and last == first + 3 < 8
    steps = [event["step"] for event in events]
    assert steps[0] == 1 and steps == sorted(steps) and steps[-1] <= 3
    assert clients["second"].data(EVENT) == []


def test_without_a_client_id_the_host_sends_to_everyone_and_we_to_nobody(server):
    _, clients = overhear(server, svd(steps=4), queued_by=None)
    for client in clients.values():
        assert client.data("progress") and client.pictures
        assert client.data(EVENT) == []


def test_a_prompt_that_asks_for_no_previews_gets_none(server):
    _, clients = overhear(server, svd(steps=4), queued_by="first", preview_method="none")
    assert clients["first"].data("progress")
    assert clients["first"].pictures == []
    assert clients["first"].data(EVENT) == []
