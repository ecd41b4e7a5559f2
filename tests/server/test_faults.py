"""A server under bad luck: disks that take nothing, a second server on its folders, an end in mid-run, a client that leaves."""

import asyncio
import contextlib
import os
import re
import resource
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from safetensors import safe_open

from support.client import PROMPT_TIMEOUT
from support.prompts import node, only, svd
from tools.server import failure

pytestmark = pytest.mark.slow

SD15 = "untrained_sd15.safetensors"
MIB = 2**20


def saving_unet(prefix: str, unet_name: str = SD15, kind: str = "fp16", dtype: str = "default") -> dict:
    form = "safetensors" if kind == "fp16" else "GGUF"
    return {
        "unet": node("TemporalUNetLoader", unet_name=unet_name, weight_dtype=dtype),
        "save": node("TemporalUNetSave", model=["unet", 0], filename_prefix=prefix, format=form, type=kind),
    }


def saving_residuals(prefix: str) -> dict:
    """Those of an SD 1 ControlNet for 64 images of 64x64: 18 MiB."""
    conditioning = {"positive": ["positive", 0], "control_net": ["net", 0], "image": ["photo", 0], "latent_image": ["latent", 0]}
    return {
        "unet": node("TemporalUNetLoader", unet_name=SD15, weight_dtype="default"),
        "positive": node("ProbeConditioning", width=768), "photo": node("LoadImage", image="photo.png"),
        "net": node("ControlNetLoader", control_net_name="untrained_sd15_controlnet.safetensors"),
        "latent": node("EmptyLatentImage", width=64, height=64, batch_size=64),
        "residuals": node("TemporalUNetComputeControlNetResiduals", model=["unet", 0], **conditioning),
        "save": node("TemporalUNetSaveControlNetResiduals", residuals=["residuals", 0], filename_prefix=prefix),
    }


@contextlib.contextmanager
def disk(folder, options, instead, restore):
    """A disk in memory in this place; where this user may mount none, between `instead()` and `restore()`."""
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0:
        restore = partial(subprocess.run, ["umount", folder], check=True)
    else:
        instead()
    try:
        yield
    finally:
        restore()


def full(server):
    """A disk of 4 MiB, or a limit to the size of files."""
    limit = partial(resource.prlimit, server.process.pid, resource.RLIMIT_FSIZE)
    before = limit()
    return disk(
        server.base / "output", "size=4m", lambda: limit((4 * MIB, resource.RLIM_INFINITY)), lambda: limit(before))


def read_only(server):
    """A disk that nobody may write to, an administrator neither; or a folder that this user may not."""
    output = server.base / "output"
    return disk(output, "ro", lambda: output.chmod(0o555), lambda: output.chmod(0o755))


SAVE, SAVE_RESIDUALS = "Save UNet: 'bad/a'", "Save ControlNet Residuals: 'bad/a'"


@pytest.mark.parametrize("hindered, prompt, said", [
    (full, saving_unet, f"{SAVE} (is not saved: the file takes .* GB are free on its disk|cannot be saved .*too large)"),
    (full, saving_residuals, f"{SAVE_RESIDUALS} cannot be saved in the output folder .*(No space left|too large)"),
    (read_only, saving_unet, f"{SAVE} cannot be saved in the output folder .*(Read-only|Permission denied)"),
    (read_only, saving_residuals, f"{SAVE_RESIDUALS} cannot be saved in the output folder .*(Read-only|Permission denied)"),
])
def test_a_disk_that_takes_nothing_is_one_error_and_the_server_goes_on(server, hindered, prompt, said):
    video = svd()
    video[only(video, "SaveImage")] = node("PreviewImage", images=[only(video, "VAEDecode"), 0])
    with hindered(server):
        message = server.fault(prompt("bad/a"))["exception_message"]
        left = [path for path in (server.base / "output").rglob("bad/*") if path.is_file()]
        server.run(video)  # previews and decoding write nothing there
    assert re.search(said, message) and len(message) < 400 and str(server.base) not in message, message
    assert not left
    assert server.run(prompt("good/a"))["outputs"]["save"]


def leave(server, prompt: dict) -> str:
    """Queues a prompt by a client that is torn away when its first preview comes; the prompt's id."""
    async def run():
        async with aiohttp.ClientSession() as session:
            socket = await session.ws_connect(f"{server.url}/ws?clientId=leaves", max_msg_size=0)
            prompt_id = await asyncio.to_thread(server.queue, prompt, "leaves")
            async for message in socket:
                if message.type == aiohttp.WSMsgType.TEXT and "temporal_unet.preview" in message.data:
                    socket._response.connection.transport.abort()
                    return prompt_id

    return asyncio.run(asyncio.wait_for(run(), PROMPT_TIMEOUT))


def test_a_run_whose_client_goes_away_ends_well_and_the_next_is_right(server):
    prompt = svd(seed=1, steps=12)
    expected = server.pictures(server.run(prompt))
    server.run(svd())  # else the host takes the result from its cache
    entry = server.wait(leave(server, prompt), PROMPT_TIMEOUT)
    assert failure(entry) is None and np.array_equal(server.pictures(entry), expected)
    assert "Traceback" not in server.log(30)
    server.run(svd())
    assert np.array_equal(server.pictures(server.run(prompt)), expected)


@pytest.fixture
def second(server, tmp_path):
    """Another server on the models and outputs of the first."""
    for folder in ("models", "output", "input", "custom_nodes"):
        (tmp_path / folder).symlink_to(server.base / folder)
    with type(server)(server.host, server.python, tmp_path, pack=None) as running:
        yield running


def values(path: Path) -> list[bytes]:
    with safe_open(path, "np") as file:
        return [file.get_tensor(name).tobytes() for name in sorted(file.keys())]


@pytest.mark.one_host
def test_two_servers_on_one_folder_and_one_that_is_ended_while_it_saves(server, second):
    """Both save under one name and load the same file; then each loads what the other saved; SIGTERM leaves no half file."""
    output = server.base / "output" / "diffusion_models"
    prompts = [saving_unet("diffusion_models/both", dtype=dtype) for dtype in ("default", "fp32", "fp16")]  # of the same values
    queued = [(one, one.queue(prompt)) for prompt in prompts for one in (server, second)]
    ends = [one.wait(prompt_id, PROMPT_TIMEOUT) for one, prompt_id in queued]
    saved = {end["outputs"]["save"]["models"][0]["filename"] for end in ends}
    assert len(saved) == len(queued) == len(list(output.glob("both*"))) and not list(output.glob("*.part"))
    first, *others = [values(output / name) for name in sorted(saved)]
    assert all(other == first for other in others)

    second.queue(saving_unet("diffusion_models/ended", kind="Q4_0"))
    deadline = time.monotonic() + PROMPT_TIMEOUT
    while not list(output.glob("*.part")) and time.monotonic() < deadline:
        time.sleep(0.01)
    second.process.send_signal(signal.SIGTERM)
    second.process.wait(10)
    assert not list(output.glob("ended*"))
    second.stop()
    second.start()
    entry = second.run(saving_unet("diffusion_models/ended", sorted(saved)[-1], "Q4_0"))
    assert entry["outputs"]["save"]["models"][0]["filename"] == "ended_00001_.gguf"
    server.run(saving_unet("diffusion_models/again", "ended_00001_.gguf"))
