"""What the server answers about a model file before a run: the text of a run, nothing about files that are not listed, at once."""

import json
import os
import signal
import socket
import struct
import sys
import time
import urllib.error
import urllib.request
from urllib.parse import urlencode

import psutil
import pytest

import dev
from support.families import FULL, PREFIX
from support.prompts import changed, node, svd
from unet import UNetModel

CHECKPOINT, UNET, CONTROLNET = (f"/temporal_unet/{kind}_info" for kind in ("checkpoint", "unet", "controlnet"))
BAD = ("truncated", "web_page", "lora", "vae", "missing_key", "misshaped_key")
CONTROL = "untrained_sd15_controlnet.safetensors"


def ask(server, route, **query):
    return server.get(f"{route}?{urlencode(query)}")


def status(server, route, **query):
    with pytest.raises(urllib.error.HTTPError) as refusal:
        ask(server, route, **query)
    return refusal.value.code


def texts(answer):
    return [line["text"] for line in answer["lines"]]


@pytest.mark.parametrize("route, name, dtype, family", [
    (UNET, "untrained_svd.safetensors", "default", "svd"), (UNET, "untrained_svd.safetensors", "fp8_e4m3fn", "svd"),
    (UNET, "untrained_sdxl.safetensors", "fp16", "sdxl"),
    (UNET, "checkpoints/untrained_svd_checkpoint.safetensors", "default", "svd"),
    (CHECKPOINT, "untrained_sd15.safetensors", "default", "sd1"), (CHECKPOINT, "miniature_svd.safetensors", "default", "svd"),
])
def test_a_model_is_described_as_by_its_info_output(server, route, name, dtype, family):
    if route == UNET:
        loader, info = node("TemporalUNetLoader", unet_name=name, weight_dtype=dtype), 1
    else:
        loader, info = node("TemporalUNetCheckpointLoader", ckpt_name=name, weight_dtype=dtype), 4
    entry = server.run({"1": loader, "2": node("PreviewAny", source=["1", info])})
    answer = ask(server, route, name=name, weight_dtype=dtype)
    lines, expected = texts(answer), entry["outputs"]["2"]["text"][0].split("\n")
    assert ("clip" in answer) == ("svd" in name) and answer["family"] == family and answer["family_title"] == lines[0]
    megabytes = [float(found[3].removesuffix(" MiB in memory").replace(",", "")) for found in (lines, expected)]
    assert megabytes[0] == pytest.approx(megabytes[1], abs=0.11)  # a MODEL holds its noise schedule too
    del lines[3], expected[3]
    assert lines == expected


@pytest.mark.parametrize("name, expected", [
    ("untrained_svd_checkpoint.safetensors", ["with VAE", "with image encoder"]),
    ("miniature_svd.safetensors", ["with VAE", "no image encoder in the file"]),
    ("untrained_sd15.safetensors", ["no text encoder in the file: connect Load CLIP", "no VAE in the file: connect Load VAE"]),
])
def test_the_parts_of_a_checkpoint_are_listed(server, name, expected):
    assert texts(ask(server, CHECKPOINT, name=name))[4:] == expected


def test_a_line_comes_as_a_template_with_its_values(server):
    """The browser writes it in the editor's language; `text` is English."""
    answer = ask(server, UNET, name="untrained_svd.safetensors", weight_dtype="fp16")
    family, parameters, file, memory = answer["lines"]
    size = (server.base / "models" / "diffusion_models" / "untrained_svd.safetensors").stat().st_size
    assert family == {"key": "family", "values": {"family": "Stable Video Diffusion"}, "text": "Stable Video Diffusion"}
    assert parameters["key"] == "parametersComputed" and set(parameters["values"]) == {"count", "dtype", "compute"}
    assert file["values"] == {"file": "untrained_svd.safetensors", "size": {"bytes": size}}
    assert memory["text"] == f"{memory['values']['memory']['bytes'] / 2**20:,.1f} MiB in memory"
    if server.get("/system_stats")["devices"][0]["type"] == "cpu":
        assert answer["device_bytes"] == psutil.virtual_memory().total


def test_a_controlnet_is_described_as_by_its_info_output(server):
    loader = node("TemporalUNetControlNetLoader", control_net_name=CONTROL)
    entry = server.run({"1": loader, "2": node("PreviewAny", source=["1", 1])})
    answer, expected = ask(server, CONTROLNET, name=CONTROL), entry["outputs"]["2"]["text"][0].split("\n")
    assert texts(answer) == expected
    assert {"sd1", "sd1_inpaint"} <= set(answer["families"]) and not {"sd2", "sdxl", "svd"} & set(answer["families"])


def test_the_controlnet_of_the_miniature_is_for_video_models(server):
    assert ask(server, CONTROLNET, name="miniature_svd_controlnet_path.safetensors")["families"] == ["svd", "sv3d_u", "sv3d_p"]


def refused(server, prompt, name) -> str:
    """What is said of the input `name` when the prompt is queued."""
    with pytest.raises(dev.ServerError) as refusal:
        server.queue(prompt)
    return str(refusal.value).partition(f"Custom validation failed for node: {name} - ")[2]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_unet_is_reported_with_the_text_of_the_error(server, name):
    name = f"{name}.safetensors"
    message = refused(server, changed(svd(), "TemporalUNetLoader", unet_name=name), "unet_name")
    assert message and ask(server, UNET, name=name) == {"error": message}


@pytest.mark.parametrize("name", ["web_page.pth", "cut_off.pth"])
def test_a_bad_controlnet_is_reported_with_the_text_of_the_error(server, name):
    loader = node("TemporalUNetControlNetLoader", control_net_name=name)
    message = refused(server, {"1": loader, "2": node("PreviewAny", source=["1", 1])}, "control_net_name")
    assert message and ask(server, CONTROLNET, name=name) == {"error": message}


@pytest.mark.parametrize("route", [CHECKPOINT, UNET, CONTROLNET])
@pytest.mark.parametrize("name", [
    "", "no_such.safetensors", "../vae/untrained_vae.safetensors", "checkpoints/../vae/untrained_vae.safetensors", "/etc/passwd",
    "..\\vae\\untrained_vae.safetensors", "untrained_svd.safetensors\0", "untrained_vae.safetensors",
])
def test_a_file_that_the_node_does_not_list_is_not_described(server, route, name):
    assert status(server, route, name=name) == 404


@pytest.mark.parametrize("name", [
    "file:///etc/passwd", "C:\\Windows\\win.ini", "C:x.safetensors", "\\\\host\\share\\x.safetensors",
    "\\\\?\\C:\\x", "..%2f..%2fetc%2fpasswd", "./untrained_svd.safetensors", "x/../untrained_svd.safetensors",
    "UNTRAINED_SVD.safetensors", "untrained_svd.safetensors/", "untrained_svd.safetensors/.",
    "checkpoints//untrained_svd.safetensors", ".", "checkpoints/",
    "diffusers/../../vae/", "x" * 5000,
])
def test_a_name_in_another_form_than_the_node_lists_is_not_followed(server, name):
    assert {status(server, route, name=name) for route in (CHECKPOINT, UNET, CONTROLNET)} == {404}


def test_a_longer_question_is_refused_before_it_is_read(server):
    assert status(server, UNET, name="x" * 10_000) == 400


OWN, OTHER = "http://127.0.0.1:{port}", "http://other.example"


@pytest.mark.parametrize("headers, expected", [
    ({}, 200), ({"Origin": OWN}, 200), ({"Sec-Fetch-Site": "same-origin"}, 200), ({"Sec-Fetch-Site": "none"}, 200),
    ({"Origin": "https://comfy.example", "Host": "Comfy.Example"}, 200),  # behind a proxy
    ({"Origin": OTHER}, 403), ({"Origin": "null"}, 403), ({"Origin": ""}, 403),
    ({"Origin": "http://127.0.0.1:1"}, 403), ({"Origin": "http://127.0.0.1"}, 403), ({"Origin": "http://localhost:{port}"}, 403),
    ({"Origin": OTHER, "Host": "192.168.7.7:{port}"}, 403),
    ({"Sec-Fetch-Site": "cross-site"}, 403), ({"Sec-Fetch-Site": "same-site"}, 403),
    ({"Sec-Fetch-Site": "same-site", "Origin": OWN}, 403),
])
def test_only_pages_of_this_server_get_an_answer(server, headers, expected):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    files = {CHECKPOINT: "miniature_svd.safetensors", f"/api{UNET}": "untrained_svd.safetensors", CONTROLNET: CONTROL}
    for route, name in files.items():
        request = urllib.request.Request(f"{server.url}{route}?name={name}", headers=headers)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as refusal:
            answer = refusal
        with answer:
            assert answer.status == expected and "Access-Control-Allow-Origin" not in answer.headers
            assert (b"lines" in answer.read()) == (expected == 200)


@pytest.mark.parametrize("query", [
    {"weight_dtype": "int3"}, {"width": "-8"}, {"height": "wide"}, {"frames": "0"}, {"frames": "4097"}, {"width": "1" * 5000},
    {"frames": "²"},
])
def test_a_parameter_that_is_none_is_refused(server, query):
    assert status(server, UNET, name="untrained_svd.safetensors", **query) == 400


def write_hollow(path):
    """A file of SVD in its real size whose data is a hole: it takes no room on the disk, and reading them would take long."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in UNetModel(FULL["svd"], device="meta").state_dict().items():
        header[PREFIX + name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [end, end + 2 * tensor.numel()]}
        end += 2 * tensor.numel()
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


@pytest.mark.slow
@pytest.mark.one_host
def test_of_a_file_of_the_real_size_only_the_header_is_read(server):
    path = server.base / "models" / "diffusion_models" / "hollow_svd.safetensors"
    write_hollow(path)
    try:
        begun = time.monotonic()
        lines = texts(ask(server, UNET, name=path.name, weight_dtype="fp16"))
        assert time.monotonic() - begun < 10  # 0.2 s; the machine may be busy
        assert lines[:2] == ["Stable Video Diffusion", "1,524.6 M parameters, float16, computed in float32"]
        assert lines[3] == "2.8 GiB in memory"
        short, long, wide, windowed, smaller = (
            ask(server, UNET, name=path.name, weight_dtype="fp16", **clip)["clip"]
            for clip in (
                {}, {"frames": 25}, {"width": 2048, "height": 1152}, {"frames": 1000}, {"frames": 1000, "window_frames": 14},
            )
        )
        assert 2908 * 2**20 < short["bytes"] < long["bytes"] < wide["bytes"]
        assert windowed == {**long, "frames": 1000} and long["window"] == 25
        assert smaller == {**short, "frames": 1000}
        assert short == {"bytes": short["bytes"], "frames": 14, "width": 1024, "height": 576, "window": 14}
    finally:
        path.unlink()


@pytest.mark.parametrize("route, folder", [(UNET, "diffusion_models"), (CONTROLNET, "controlnet")])
@pytest.mark.parametrize("make", [
    lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to("/dev/zero"), os.mkfifo,
], ids=["link that leads nowhere", "link to a device", "pipe"])
def test_what_is_listed_and_not_a_file_is_reported_with_a_message(server, route, folder, make):
    path = server.base / "models" / folder / "listed.safetensors"
    make(path)
    try:
        reported = ask(server, route, name=path.name)["error"]
    finally:
        path.unlink()
    assert reported.startswith("'listed.safetensors' cannot be read: it is not a regular file, or a link that leads nowhere.")


@pytest.fixture
def stuck_file(server):
    """A file that waits to be opened, as on a disk that does not answer: a lease on it, which is given back at the end."""
    import fcntl

    path = server.base / "models" / "controlnet" / "stuck.pth"
    path.write_bytes(b"PK\x03\x04" + bytes(60))
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # with which the kernel asks for the lease
    with path.open("r+b") as file:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        yield path
    signal.signal(signal.SIGIO, before)
    path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has leases")
@pytest.mark.slow
@pytest.mark.one_host
def test_a_disk_that_does_not_answer_stops_nothing_else(server, stuck_file):
    """asyncio's own threads, of which there are a few more than cores, serve the page's files too."""
    get = f"GET {CONTROLNET}?name={stuck_file.name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    askers = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    try:
        for asker in askers:
            asker.sendall(get)
        time.sleep(0.5)
        begun = time.monotonic()
        assert b"<html" in server.get("/") and server.get("/extensions/temporal-unet/js/moving_preview.js")
        assert server.get("/view?filename=photo.png&type=input")
        assert ask(server, UNET, name="untrained_svd.safetensors")["lines"]
        server.run(svd(frames=2, steps=1))
        assert time.monotonic() - begun < 20  # 2 s; the lease holds for 45 s
        assert not any(answered(asker) for asker in askers[:3])
    finally:
        for asker in askers:
            asker.close()


def answered(asker: socket.socket) -> bool:
    asker.setblocking(False)
    try:
        return bool(asker.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
