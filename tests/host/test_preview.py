"""The preview of all frames: what is on the sheet, its size, how often it comes, and who gets it; the host's own is the oracle."""

import asyncio
import base64
import io
import os
import sys
from itertools import pairwise

import comfy.latent_formats
import comfy.model_management
import comfy.nested_tensor
import comfy.sd
import comfy.taesd.taesd
import comfy.utils
import folder_paths
import latent_preview
import numpy as np
import pytest
import torch
from comfy.cli_args import args
from comfy_execution.graph import DynamicPrompt
from comfy_execution.progress import reset_progress_state
from comfy_execution.utils import CurrentNodeContext
from PIL import Image
from safetensors.torch import save_file

from support.devices import clone_of, multigpu, with_clones
from support.oracle import TWO_LEVELS, Pair, fill, prompts, run_node
from tools.bench import quality
from tools.miniature import world

SD15, SDXL = comfy.latent_formats.SD15(), comfy.latent_formats.SDXL()
CPU = torch.device("cpu")
STEPS = 3


@pytest.fixture(scope="module")
def preview(pack):
    return pack("nodes.bridge.sampling.preview")


@pytest.fixture(scope="module")
def sheet(pack):
    return pack("nodes.bridge.sampling.preview_sheet")


@pytest.fixture(scope="module")
def svd(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("preview"), "svd", config=TWO_LEVELS)


@pytest.fixture(autouse=True)
def latent2rgb():
    """The host's preview method, as `--preview-method latent2rgb` sets it."""
    before, args.preview_method = args.preview_method, latent_preview.LatentPreviewMethod.Latent2RGB
    yield
    args.preview_method = before


@pytest.fixture
def no_jpeg(monkeypatch):
    """Takes JPEG from Pillow when it is called."""
    Image.preinit()  # which adds it, once a process
    return lambda: monkeypatch.delitem(Image.SAVE, "JPEG")


def clip(frames, height=8, width=8, seed=11):
    """Smooth latents [frames, 4, height, width], each frame with a color of its own."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.randn(frames, 4, 1, 1, generator=generator)
    coarse = 0.5 * torch.randn(frames, 4, 4, 4, generator=generator)
    return colors + torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


def cut_up(data) -> list[np.ndarray]:
    """The cells of a sheet, as a client would cut them: [height, width, 3] each, one for every shown frame."""
    kind, content = data["image"].split(",")
    assert kind == "data:image/jpeg;base64"
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content)))).astype(float)
    width, height, columns = data["width"], data["height"], data["columns"]
    assert pixels.shape == (data["rows"] * height, columns * width, 3)
    places = [(row * height, column * width) for row, column in (divmod(i, columns) for i in range(len(data["shown"])))]
    return [pixels[y:y + height, x:x + width] for y, x in places]


def hosts_image(previewer, latents, frame, data) -> np.ndarray:
    """What the host's own preview shows of one frame, at the size of the sheet's frames."""
    image = previewer.decode_latent_to_preview(latents[frame:frame + 1])
    return np.asarray(image.resize((data["width"], data["height"]), Image.Resampling.BOX)).astype(float)


def check_images(data, previewer, latents, limit):
    """Each frame stands where it should: its mean color within 4 of 255, its pixels within `limit` on average."""
    for frame, cell in zip(data["shown"], cut_up(data), strict=True):
        expected = hosts_image(previewer, latents, frame, data)
        assert np.abs(cell.mean((0, 1)) - expected.mean((0, 1))).max() <= 4, frame
        assert np.abs(cell - expected).mean() <= limit, frame


@pytest.mark.parametrize("latent_format", [SD15, SDXL], ids=["sd15", "sdxl"])
@pytest.mark.parametrize("frames, height, width", [(1, 8, 8), (3, 8, 8), (5, 7, 13), (25, 72, 128), (14, 128, 72), (4, 150, 260)])
def test_every_frame_is_in_its_place_in_the_hosts_colors(sheet, latent_format, frames, height, width):
    latents, before = clip(frames, height, width), clip(frames, height, width)
    previewer = latent_preview.get_previewer(CPU, latent_format)
    data = sheet.draw(latents, sheet.colors_for(previewer, latent_format)[0])
    assert data["frames"] == frames and data["shown"] == list(range(frames))
    assert max(data["width"], data["height"]) == min(128, max(height, width))
    assert data["width"] / data["height"] == pytest.approx(width / height, rel=0.01)
    assert torch.equal(latents, before)
    check_images(data, previewer, latents, limit=8)  # what JPEG makes of frames of 8 pixels


@pytest.mark.parametrize("latent_format", [SD15, SDXL], ids=["sd15", "sdxl"])
def test_frames_differ_more_than_the_tolerance(latent_format):
    """Else the test above could not distinguish one frame from the next."""
    latents = clip(25, 72, 128)
    previewer = latent_preview.get_previewer(CPU, latent_format)
    means = [np.asarray(previewer.decode_latent_to_preview(latents[i:i + 1])).mean((0, 1)) for i in range(25)]
    assert min(np.abs(a - b).max() for i, a in enumerate(means) for b in means[:i]) > 2 * 4


@pytest.mark.parametrize("frames, height, width, every", [
    (200, 72, 128, 1), (1000, 8, 8, 1), (1000, 72, 128, 2), (1000, 72, 72, 3), (4096, 72, 128, 6), (4096, 2, 128, 1),
])
def test_a_long_clip_gets_fewer_pixels_then_fewer_frames(sheet, frames, height, width, every):
    made = sheet.lay_out(frames, width, height)
    assert list(made.shown) == list(range(0, frames, every))
    assert made.rows * made.columns * made.width * made.height <= 1.2 * 2**20
    assert max(made.rows * made.height, made.columns * made.width) <= 4096
    assert (made.rows - 1) * made.columns < len(made.shown) <= made.rows * made.columns
    assert max(made.width, made.height) >= min(48, height, width)
    if every > 1:  # at SHORTEST, so many would not fit even there
        assert frames / (every - 1) * (made.width * made.height) > 2**20


def test_a_thousand_frames_are_drawn_with_their_indices(sheet):
    latents = clip(1000, 72, 72)
    previewer = latent_preview.get_previewer(CPU, SD15)
    data = sheet.draw(latents, sheet.colors_for(previewer, SD15)[0])
    assert data["frames"] == 1000 and data["shown"][:3] == [0, 3, 6]
    check_images(data, previewer, latents, limit=6)


@pytest.mark.parametrize("width, height", [(64, 32), (32, 16), (48, 24), (128, 64)])
def test_a_smaller_frame_shows_means(sheet, width, height):
    """Else fine detail would flicker: here alternating pixels, which are gray from afar."""
    detail = torch.ones(2, 3, 64, 128)
    detail[..., ::2] = -1
    small = sheet.shrink(detail, width, height)
    assert small.shape == (2, 3, height, width)
    assert torch.equal(small, detail) if width == 128 else small.abs().max() <= 0.01


# Colors fitted to the clip's own image


def off_by(colors, latent, image) -> float:
    """How far the colors are from image [h, w, 3] in 0..1, of 255 on average."""
    drawn = (colors(latent[None], latent.shape[-1], latent.shape[-2])[0].clamp(-1, 1) + 1) / 2
    return (drawn.movedim(0, -1) - image).abs().mean().item() * 255


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("seed", range(3))
def test_the_miniatures_colors_are_right_once_they_are_fitted_to_its_first_image(sheet, seed):
    """Its VAE has a latent space of its own, in which the host's factors show other colors. Measured also on the last frame."""
    with torch.inference_mode():
        studio = quality.Studio()
        of = quality.held_out(3)[seed]
        condition = studio.conditioning(of)[0][0][1]
        latent_in = studio.model.model.process_latent_in
        default = sheet.LatentColors(SD15.latent_rgb_factors, SD15.latent_rgb_factors_bias)
        first = latent_in(condition["concat_latent_image"])[0], condition["temporal_unet.first_image"][0]
        fitted = sheet.fitted(default, *first)
        last = torch.from_numpy(world.render(of).frames[-1:])
        small = torch.nn.functional.adaptive_avg_pool2d(last.movedim(-1, 1), first[0].shape[1:])[0].movedim(0, -1)
        for latent, image in (first, (latent_in(studio.vae.encode(last))[0], small)):
            assert off_by(default, latent, image) > 20  # 29 to 35
            assert off_by(fitted, latent, image) < 3  # 1.6 to 2.0


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_an_image_without_colors_leaves_the_factors_as_they_are(sheet, noise):
    default = sheet.LatentColors(SD15.latent_rgb_factors, SD15.latent_rgb_factors_bias)
    generator = torch.Generator().manual_seed(3)
    latent = torch.tensor([1.0, -0.5, 0.25, 0.0])[:, None, None] + noise * torch.randn(4, 8, 8, generator=generator)
    gray = torch.full((8, 8, 3), 0.5)
    fitted = sheet.fitted(default, latent, gray)
    assert (fitted.factors - default.factors).abs().max() < 0.02
    assert off_by(fitted, latent, gray) < 2


@pytest.mark.parametrize("condition, fits", [
    ({}, True), ({"temporal_unet.first_image": None}, False), ({"concat_latent_image": torch.zeros(1, 4, 4, 4)}, False),
], ids=["SVD Image to Video", "the host's node", "changed by another node"])
def test_a_run_shows_the_clip_in_fitted_colors_where_its_image_is_known(sampled, server, svd, sheet, condition, fits):
    image, latent = torch.rand(1, 8, 8, 3), clip(1)
    condition = {"temporal_unet.first_image": image, "concat_latent_image": latent, **condition}
    server.client_id = "queued"
    samples, _ = sampled(conditioning={name: value for name, value in condition.items() if value is not None})
    default = sheet.LatentColors(SD15.latent_rgb_factors, SD15.latent_rgb_factors_bias)
    latent_in = svd.ours.model.process_latent_in
    fitted = sheet.fitted(default, latent_in(latent)[0], image[0])
    expected, other = (fitted, default) if fits else (default, fitted)
    last = server.heard()[-1][1]["image"]
    assert last == sheet.draw(latent_in(samples), expected)["image"] != sheet.draw(latent_in(samples), other)["image"]


# TAESD


@pytest.fixture
def taesd():
    """The host's TAESD previewer on a file with random weights, where the host looks for it."""
    path = os.path.join(folder_paths.get_folder_paths("vae_approx")[0], "taesd_decoder.safetensors")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file(fill(comfy.taesd.taesd.TAESD().taesd_decoder, seed=8).state_dict(), path)
    args.preview_method = latent_preview.LatentPreviewMethod.TAESD
    yield latent_preview.get_previewer(CPU, SD15)
    os.unlink(path)


def test_taesd_is_used_where_the_host_uses_it(sheet, taesd):
    assert isinstance(taesd, latent_preview.TAESDPreviewerImpl)
    assert sheet.colors_for(latent_preview.Latent2RGBPreviewer(SD15.latent_rgb_factors), SD15)[1] is None
    latents = clip(7)
    data = sheet.draw(latents, sheet.colors_for(taesd, SD15)[1])
    assert (data["width"], data["height"]) == (64, 64)
    check_images(data, taesd, latents, limit=12)


def test_taesd_decodes_large_frames_small_and_in_small_batches(sheet, taesd, monkeypatch):
    seen = []
    decode = taesd.taesd.decode
    monkeypatch.setattr(sheet.DecodedColors, "longest", 24)
    monkeypatch.setattr(taesd.taesd, "decode", lambda latents: (seen.append(tuple(latents.shape)), decode(latents))[1])
    latents = clip(6, 16, 24)
    data = sheet.draw(latents, sheet.colors_for(taesd, SD15)[1])
    assert seen == [(4, 4, 8, 12), (2, 4, 8, 12)]
    assert (data["width"], data["height"]) == (24, 16)
    check_images(data, taesd, torch.nn.functional.avg_pool2d(latents, 2), limit=12)


# how often


class Run:
    """Steps of a sampler on a clock of its own: `step` seconds a step, `cost` seconds a sheet. It is also the sheet's colors."""

    pixels, longest = 1, 128

    def __init__(self, preview, step, cost, frames=2):
        self.now, self.step, self.cost, self.sent = 0.0, step, cost, []
        self.reported = []  # (step, time) of the events without a sheet
        self.latents = torch.zeros(frames, 4, 8, 8)
        self.preview = preview.FramePreview(self, self.note, lambda: self.now)

    def note(self, data):
        (self.sent if "image" in data else self.reported).append((data["step"], self.now))

    def __call__(self, latents, width, height):
        self.now += self.cost
        return torch.zeros(latents.shape[0], 3, height, width)

    def go(self, steps) -> list[tuple[int, float]]:
        """(step, time) of each sheet; afterwards `now` is the length of the run."""
        for step in range(steps):
            self.now += self.step
            self.preview(step, self.latents, steps)
        self.preview.finish(self.latents)
        return self.sent


def test_each_slow_step_is_shown(preview):
    assert [step for step, _ in Run(preview, step=1.0, cost=0.001).go(8)] == list(range(1, 9))


def test_fast_steps_are_shown_four_times_a_second_at_most(preview):
    sent = Run(preview, step=0.03, cost=0.0001).go(200)
    times = [time for _, time in sent]
    assert sent[0][0] == 1 and sent[-1][0] == 200
    assert 4 * 0.8 <= (len(sent) - 1) / (times[-1] - times[0]) <= 4.2
    assert min(b - a for a, b in pairwise(times[:-1])) >= 0.25


@pytest.mark.parametrize("step, cost", [(0.02, 0.01), (0.5, 0.05), (1.0, 0.3), (0.3, 0.006)])
def test_sheets_take_two_percent_of_the_run_at_most(preview, step, cost):
    run = Run(preview, step, cost)
    sent = run.go(400)
    assert sent[0][0] == 1 and sent[-1][0] == 400
    assert len(sent) * cost <= 0.02 * run.now
    assert len(sent) * cost >= 0.01 * run.now  # and they use it, where steps allow


class Better:
    """Better colors for a run, at `cost` seconds of its clock per frame of 64x64 pixels; `drawn` counts those."""

    pixels, longest = 8, 128

    def __init__(self, run, cost):
        self.run, self.cost, self.drawn = run, cost, 0
        run.preview.better = self

    def __call__(self, latents, width, height):
        self.run.now += self.cost * len(latents) * width * height / 64**2
        self.drawn += len(latents) * (width == 64)
        return torch.zeros(latents.shape[0], 3, height, width)


@pytest.mark.parametrize("steps, cost, taken", [
    (20, 0.01, True), (20, 0.13, True), (20, 0.15, False), (20, 1.0, False), (20, 10.0, False), (100, 0.13, True),
    (100, 0.65, True), (100, 0.72, False), (5, 0.03, True), (5, 0.04, False), (3, 1e-3, True), (3, 0.1, False),
])
def test_better_colors_stay_where_two_such_sheets_fit_into_two_percent_of_the_run(preview, steps, cost, taken):
    """Else one of their sheets alone is shown, and all others together take two percent at most."""
    run = Run(preview, step=10.0, cost=1e-4, frames=14)
    better = Better(run, cost)
    sent = run.go(steps)
    assert sent[0][0] == 1 and sent[-1][0] == steps
    assert (better.drawn >= 2 * 14) == taken and (better.drawn == 14) == (not taken)
    one = 0 if taken else 14 * cost
    assert run.now - steps * run.step - one <= 0.02 * run.now
    assert taken or len(sent) >= 0.7 * steps


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_without_a_sheet_between_the_first_and_the_last_stays_in_quick_colors(preview, steps):
    run = Run(preview, step=10.0, cost=1e-4)
    better = Better(run, 1e-4)
    assert len(run.go(steps)) == steps and better.drawn == 0


def test_the_last_sheet_shows_what_the_run_made(preview):
    """And comes once, however often a sampler reports its steps: dpm_fast less often than it has steps, dpm_adaptive more often."""
    for reported in (1, 3, 10, 17):
        run, images = Run(preview, step=1.0, cost=0.001), []
        run.preview.send = images.append
        for step in range(reported):
            run.now += run.step
            run.preview(step, run.latents, 10)
        run.preview.finish(torch.zeros(5, 4, 8, 8))
        assert [data["frames"] for data in images].count(5) == 1 and images[-1]["frames"] == 5
        steps = [data["step"] for data in images]
        assert steps == sorted(steps) and steps[-1] == 10 and {data["steps"] for data in images} == {10}


def test_a_run_of_no_steps_shows_nothing(preview):
    run = Run(preview, 1.0, 0.001)
    run.preview.finish(run.latents)
    assert run.sent == run.reported == []


def test_a_short_run_shows_its_first_step_and_its_last_and_reports_the_others(preview):
    run = Run(preview, step=1.0, cost=0.3)
    assert [step for step, _ in run.go(10)] == [1, 10]
    assert [step for step, _ in run.reported] == list(range(2, 10))


def test_steps_too_fast_to_show_are_reported_four_times_a_second_at_most(preview):
    run = Run(preview, step=0.1, cost=0.2)
    run.go(100)
    times = sorted(time for _, time in [*run.sent, *run.reported])
    assert 0.25 <= min(b - a for a, b in pairwise(times[:-1]))
    assert max(b - a for a, b in pairwise(times)) <= 0.6  # with a sheet in between


def test_other_latents_are_ignored(preview):
    run = Run(preview, 1.0, 0.0)
    with_time_axis = torch.zeros(1, 4, 2, 8, 8)
    nested = comfy.nested_tensor.NestedTensor([torch.zeros(2, 4, 8, 8), torch.zeros(1, 8, 9)])
    for latents in (with_time_axis, nested):
        run.preview(0, latents, 2)
    assert run.sent == []


# who gets it


@pytest.fixture
def server(monkeypatch):
    """The host's server, not listening; `heard()` gives the messages that it would send: (event, data, client)."""
    monkeypatch.delitem(sys.modules, "utils", raising=False)  # the host's package is meant, not comfy/utils.py
    monkeypatch.syspath_prepend(os.environ["TEMPORAL_UNET_HOST"])
    import server as host_server

    loop = asyncio.new_event_loop()
    made = host_server.PromptServer(loop)
    settle = lambda: loop.run_until_complete(asyncio.sleep(0))  # noqa: E731
    made.heard = lambda: (settle(), [made.messages.get_nowait() for _ in range(made.messages.qsize())])[1]
    yield made
    del host_server.PromptServer.instance
    loop.close()


@pytest.fixture
def sampled(svd, node):
    """Our sampler as node "9:1" of prompt "p", which stands for node "9"; gives the frames and the host's progress calls."""

    def run(frames=4, model=svd.ours, conditioning=None, max_cfg=2.5, sampler="euler", steps=STEPS, more=()):
        positive, negative = ([[c, {**options, **(conditioning or {})}] for c, options in conds] for conds in prompts(svd.config))
        graph, progress = DynamicPrompt({}), []
        graph.add_ephemeral_node("9:1", {}, "9", "9")
        reset_progress_state("p", graph)
        comfy.utils.set_progress_bar_global_hook(lambda value, total, image, **_: progress.append((value, total, image)))
        with CurrentNodeContext("p", "9:1"):
            samples = run_node(
                node("TemporalUNetSVDSampler"), model, positive, negative, {"samples": torch.zeros(frames, 4, 8, 8)},
                5, steps, 1.0, max_cfg, "linear", sampler, "karras", 1.0, *more,
            )[0]["samples"]
        return samples, progress

    yield run
    comfy.utils.set_progress_bar_global_hook(None)


def test_the_client_that_queued_gets_the_sheet_next_to_the_hosts_progress(sampled, server, preview):
    server.client_id = "queued"
    _, progress = sampled()
    heard = server.heard()
    assert heard and {(event, client) for event, _, client in heard} == {("temporal_unet.preview", "queued")}
    first = heard[0][1]
    assert {key: first[key] for key in ("node_id", "prompt_id", "step", "steps", "frames", "shown")} == {
        "node_id": "9", "prompt_id": "p", "step": 1, "steps": STEPS, "frames": 4, "shown": [0, 1, 2, 3]}
    assert [(value, total) for value, total, _ in progress] == [(step + 1, STEPS) for step in range(STEPS)]
    # The host's own preview of that step is of the first frame.
    distances = [np.abs(np.asarray(progress[0][2][1]) - cell).mean() for cell in cut_up(first)]
    assert distances[0] < 0.5 * min(distances[1:])


def test_from_the_second_step_on_sheets_are_in_taesds_colors_where_the_host_has_it(sampled, server, preview, taesd, monkeypatch):
    monkeypatch.setattr(preview, "SHARE", 1000)  # of a run of milliseconds
    monkeypatch.setattr(preview, "INTERVAL", 0)
    server.client_id = "queued"
    _, progress = sampled()
    heard = [data for _, data, _ in server.heard()]
    assert [data["width"] for data in heard] == [8, 64, 64]  # pixels of a latent, then of an image
    for data, (_, _, image) in zip(heard[1:], progress[1:], strict=True):
        distances = [np.abs(np.asarray(image[1]) - cell).mean() for cell in cut_up(data)]
        assert distances[0] < 8 and distances[0] < 0.5 * min(distances[1:])


def test_taesd_is_not_tried_where_there_is_no_time_for_a_second_sheet(sampled, server, preview, taesd, monkeypatch):
    monkeypatch.setattr(preview, "SHARE", 0)
    decoded = []
    decode = comfy.taesd.taesd.TAESD.decode
    monkeypatch.setattr(
        comfy.taesd.taesd.TAESD, "decode", lambda self, latents: (decoded.append(tuple(latents.shape)), decode(self, latents))[1]
    )
    server.client_id = "queued"
    _, progress = sampled(frames=14)
    heard = [data for _, data, _ in server.heard()]
    assert {data["width"] for data in heard if "image" in data} == {8} and "image" in heard[-1]
    assert len(progress) == STEPS
    assert decoded == [(1, 4, 8, 8)] * STEPS  # the host's own images


class OwnPreviewer(latent_preview.TAESDPreviewerImpl):
    """As ComfyUI-bleh's: it extends the host's previewer for TAESD, and keeps what it has of one elsewhere."""

    def __init__(self, latent_format):
        self.plain = latent_preview.Latent2RGBPreviewer(latent_format.latent_rgb_factors)

    def decode_latent_to_preview(self, x0):
        return self.plain.decode_latent_to_preview(x0)


class UnrelatedPreviewer(latent_preview.LatentPreviewer):
    """As VideoHelperSuite's: it is no previewer for TAESD, and has the network of one."""

    def __init__(self, latent_format):
        self.taesd = comfy.taesd.taesd.TAESD(latent_channels=latent_format.latent_channels)

    def decode_latent_to_preview(self, x0):
        return latent_preview.preview_to_image(self.taesd.decode(x0[:1])[0].movedim(0, 2))


@pytest.mark.parametrize("previewer, widths", [(OwnPreviewer, [8, 8, 8]), (UnrelatedPreviewer, [8, 64, 64])])
def test_previewers_of_other_packs_are_asked_for_taesd_alone(sampled, server, preview, monkeypatch, previewer, widths, caplog):
    monkeypatch.setattr(latent_preview, "get_previewer", lambda device, latent_format: previewer(latent_format))
    monkeypatch.setattr(preview, "SHARE", 1000)
    monkeypatch.setattr(preview, "INTERVAL", 0)
    server.client_id = "queued"
    sampled()
    assert [data["width"] for _, data, _ in server.heard()] == widths
    assert "preview" not in caplog.text


class FailingTAESD(comfy.taesd.taesd.TAESD):
    """Of a pack that keeps it on another device than the latents."""

    def decode(self, x):
        raise RuntimeError("Expected all tensors to be on the same device")


def test_better_colors_that_fail_leave_the_quick_ones(sampled, server, preview, monkeypatch, caplog):
    class Previewer(OwnPreviewer):
        taesd = FailingTAESD()

    plain, _ = sampled()
    monkeypatch.setattr(latent_preview, "get_previewer", lambda device, latent_format: Previewer(latent_format))
    monkeypatch.setattr(preview, "SHARE", 1000)
    monkeypatch.setattr(preview, "INTERVAL", 0)
    server.client_id = "queued"
    samples, _ = sampled()
    assert torch.equal(samples, plain)
    heard = [data for _, data, _ in server.heard()]
    assert [data["step"] for data in heard] == [1, 2, 3] and "image" in heard[-1]
    assert caplog.text.count("the preview of the frames failed; the run goes on with quick colors") == 1
    assert caplog.text.count("the preview of the frames failed") == 1


@pytest.mark.parametrize("fault, more", [("no JPEG", ()), ("no server", ("0:1", 0.0, 1.0, 3, 1))])
def test_no_error_of_the_preview_ends_the_run(sampled, server, no_jpeg, caplog, fault, more):
    """Pillow without JPEG, and a server that has stopped, which the first window meets; each is reported once."""
    options = {"frames": 5, "max_cfg": 1.0, "steps": 2, "more": more}
    plain, before = sampled(**options)
    server.client_id = "queued"
    args.preview_method = latent_preview.LatentPreviewMethod.NoPreviews  # the host's own image would fail as well
    if fault == "no JPEG":
        no_jpeg()
    else:
        server.loop.close()
    samples, progress = sampled(**options)
    assert torch.equal(samples, plain) and len(progress) == len(before)
    assert caplog.text.count("the preview of the frames failed; the run goes on without it") == 1
    assert caplog.text.count("the preview of the frames failed") == 1


def test_an_interrupt_while_the_preview_is_drawn_ends_the_run(sampled, server, preview, sheet, taesd, monkeypatch):
    """The host's layers ask for it, so those of TAESD do."""
    monkeypatch.setattr(preview, "SHARE", 1000)
    monkeypatch.setattr(preview, "INTERVAL", 0)
    decode = comfy.taesd.taesd.TAESD.decode
    monkeypatch.setattr(sheet.DecodedColors, "__call__", lambda colors, latents, width, height: (
        comfy.model_management.interrupt_current_processing(), decode(colors.taesd, latents))[1])
    server.client_id = "queued"
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sampled()


@pytest.mark.slow
@pytest.mark.parametrize("sampler, steps", [
    ("euler", 1), ("dpm_fast", 1), ("dpm_fast", 5), ("dpm_adaptive", 2), ("heun", 3), ("uni_pc", 3), ("lcm", 3),
])
def test_the_last_sheet_is_the_result_with_each_sampler(sampled, server, svd, sheet, sampler, steps):
    server.client_id = "queued"
    samples, _ = sampled(sampler=sampler, steps=steps)
    heard = [data for _, data, _ in server.heard()]
    assert all(1 <= data["step"] <= data["steps"] == steps for data in heard)
    last, reported = heard[-1], [data["step"] for data in heard]
    assert reported == sorted(reported) and last["step"] == steps
    assert reported.count(steps) == 1 or sampler == "dpm_adaptive"  # that goes on after as many steps as it was asked for
    quick = sheet.LatentColors(SD15.latent_rgb_factors, SD15.latent_rgb_factors_bias)
    assert last["image"] == sheet.draw(svd.ours.model.process_latent_in(samples), quick)["image"]


@pytest.mark.parametrize("conditioning, fps", [({}, 6), ({"fps": 24}, 24)])
def test_the_clip_is_shown_at_the_pace_that_the_conditioning_names(sampled, server, conditioning, fps):
    server.client_id = "queued"
    sampled(conditioning=conditioning)
    assert {data["fps"] for _, data, _ in server.heard()} == {fps}


@pytest.mark.parametrize("closed_loop", [False, True])
def test_each_window_is_reported_before_its_image(sampled, server, svd, preview, monkeypatch, closed_loop):
    monkeypatch.setattr(preview, "INTERVAL", 0)
    server.client_id = "queued"
    worked_on = []

    def spy(apply, args):
        worked_on.append(args["c"]["transformer_options"]["context_window"].index_list)
        return apply(args["input"], args["timestep"], **args["c"])

    model = svd.ours.clone()
    model.set_model_unet_function_wrapper(spy)
    sampled(frames=9, model=model, max_cfg=1.0, more=("0:1", 0.0, 1.0, 4, 2, closed_loop))  # unguided: one call a window
    reported = [data for _, data, _ in server.heard() if "window" in data]
    assert [data["window"] for data in reported] == [[indices[0], indices[-1]] for indices in worked_on]
    assert any(first > last for first, last in (data["window"] for data in reported)) == closed_loop
    assert [data["step"] for data in reported] == sorted(data["step"] for data in reported)
    assert {data["step"] for data in reported} == set(range(1, STEPS + 1)) and {data["frames"] for data in reported} == {9}


@multigpu
@pytest.mark.slow
def test_where_several_devices_share_the_windows_it_says_how_many_are_at_work(sampled, server, svd, preview, monkeypatch):
    monkeypatch.setattr(preview, "INTERVAL", 0)
    server.client_id = "queued"
    sampled(frames=9, model=with_clones(svd.ours, [clone_of(svd.ours)]), steps=2, more=("0:1", 0.0, 1.0, 4, 2, False))
    reported = [data["at_work"] for _, data, _ in server.heard() if "window" in data]
    assert [2, 2] in reported and all(busy in (1, 2) and devices == 2 for busy, devices in reported)


def test_few_windows_are_reported_where_they_are_quick(preview):
    now, sent = 0.0, []
    frames = preview.FramePreview(None, sent.append, lambda: now)
    report = preview.WindowPreview(frames, steps=4)
    for index in range(100):
        report.begin([index, index + 3], 103)
        report.report(1, 1)
        now += 0.01
    assert [data["window"][0] for data in sent] == [0, 25, 50, 75]


def test_without_a_client_nothing_is_sent_and_all_else_is_the_same(sampled, server):
    server.client_id = "queued"
    samples, progress = sampled()
    assert server.heard()
    server.client_id = None
    same_samples, same_progress = sampled()
    assert server.heard() == []
    assert torch.equal(samples, same_samples)
    for (*_, ours), (*_, theirs) in zip(progress, same_progress, strict=True):
        assert np.array_equal(ours[1], theirs[1])


def test_it_is_shown_where_the_host_was_started_without_previews(sampled, server):
    """As by default: then it draws none of its own."""
    server.client_id = "queued"
    args.preview_method = latent_preview.LatentPreviewMethod.NoPreviews
    _, progress = sampled()
    assert "image" in server.heard()[0][1]
    assert progress and all(image is None for *_, image in progress)  # the host leaves out quick steps without an image


@pytest.mark.parametrize("asked, shown", [("none", False), ("default", True), ("auto", True)])
def test_nothing_is_sent_where_the_prompt_asks_for_no_previews(sampled, server, asked, shown):
    server.client_id = "queued"
    server.prompt_queue.put((0, "p", {}, {"preview_method": asked}, []))
    server.prompt_queue.get(timeout=1)
    sampled()
    events = [event for event, *_ in server.heard()]
    assert ("temporal_unet.preview" in events) == shown


# Decoded frames


@pytest.fixture
def decoded_as(node, server):
    """Decode Video as node `decoder` of a prompt on frames of their own colors [frames, height, width]; what was sent."""
    vae = comfy.sd.VAE(sd=fill(comfy.taesd.taesd.TAESD(latent_channels=4), 6).state_dict())

    def run(graph, decoder, latent, client="queued", **options):
        reset_progress_state("p", graph)
        server.client_id = client
        with CurrentNodeContext("p", decoder):
            images = run_node(node("TemporalUNetDecodeVideo"), latent, vae, **options)[0]
        return images, [data for _, data, _ in server.heard()]

    return run


def graph_of(**nodes):
    """A prompt of nodes id=(class, {input: value or link})."""
    return DynamicPrompt({name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()})


SAMPLER, DECODER, REPEAT = "TemporalUNetSVDSampler", "TemporalUNetDecodeVideo", "RepeatLatentBatch"
CHAINS = {  # name -> (prompt, id of the sampler that shows the frames)
    "at once": (graph_of(a=(SAMPLER, {}), d=(DECODER, {"samples": ["a", 0]})), "a"),
    "through other nodes, the nearest": (graph_of(
        a=(SAMPLER, {}), b=(SAMPLER, {"latent_image": ["a", 0]}),
        c=(REPEAT, {"points": [[0, 1], [1, 0]], "samples": ["b", 0], "amount": 1}), d=(DECODER, {"samples": ["c", 0]}),
    ), "b"),
    "in subgraphs": (graph_of(**{
        "7:3:a": (SAMPLER, {}), "7:c": (REPEAT, {"samples": ["7:3:a", 0]}), "d": (DECODER, {"samples": ["7:c", 0]})}), "7:3:a"),
    "none, where another sampler made it after a clip of ours": (graph_of(
        a=(SAMPLER, {}), e=(DECODER, {"samples": ["a", 0]}), c=("TemporalUNetContinueVideo", {"video": ["e", 0]}),
        k=("KSampler", {"positive": ["c", 0], "latent_image": ["c", 2]}), d=(DECODER, {"samples": ["k", 0]}),
    ), None),
}


@pytest.mark.parametrize("name", CHAINS)
def test_decoded_frames_are_sent_as_a_sheet_of_the_sampler_that_made_them(decoded_as, sheet, name):
    graph, sampler = CHAINS[name]
    images, heard = decoded_as(graph, "d", {"samples": clip(5), "temporal_unet.fps": 9})
    if sampler is None:
        assert heard == []
        return
    [data] = heard
    about = {key: data[key] for key in ("node_id", "prompt_id", "fps", "decoded", "frames", "shown", "width", "height")}
    assert about == {
        "node_id": sampler, "prompt_id": "p", "fps": 9, "decoded": True, "frames": 5, "shown": [0, 1, 2, 3, 4], "width": 64,
        "height": 64,
    }
    for cell, image in zip(cut_up(data), images, strict=True):
        assert np.abs(cell / 255 - image.numpy()).mean() < 0.05


def test_decoded_takes_are_shown_side_by_side_and_one_alone_with_its_place(decoded_as):
    graph, _ = CHAINS["at once"]
    latent = {"samples": clip(6), "temporal_unet.take_frames": 3}
    _, [data] = decoded_as(graph, "d", latent)
    assert (data["takes"], data["frames"], data["width"]) == (2, 3, 128) and "take" not in data
    _, [data] = decoded_as(graph, "d", latent, take=2)
    assert (data["takes"], data["take"], data["frames"], data["width"]) == (2, 2, 3, 64)


def test_large_decoded_frames_are_shown_with_more_pixels_than_latents(sheet):
    data = sheet.draw(torch.rand(25, 3, 1, 1).expand(25, 3, 576, 1024), sheet.DecodedFrames())
    assert (data["width"], data["height"], len(data["shown"])) == (256, 144, 25)


def test_decoded_frames_are_sent_to_nobody_but_the_client_and_never_end_the_run(decoded_as, no_jpeg, caplog):
    graph, _ = CHAINS["at once"]
    latent = {"samples": clip(2)}
    images, heard = decoded_as(graph, "d", latent, client=None)
    assert heard == []
    no_jpeg()
    same, heard = decoded_as(graph, "d", latent)
    assert torch.equal(images, same) and heard == []
    assert caplog.text.count("the preview of the decoded frames failed; the run goes on without it") == 1


# Several takes


def test_takes_lie_side_by_side_on_a_sheet(sheet):
    """Three takes of two frames: a frame of the sheet holds that frame of each take, row by row, and black where there is none."""
    takes = torch.stack([torch.full((2, 3, 8, 8), value) for value in (0.2, 0.5, 0.9)])
    takes[:, 1] += 0.1
    data = sheet.draw(takes.flatten(0, 1), sheet.DecodedFrames(), 3)
    assert (data["frames"], data["shown"], data["width"], data["height"]) == (2, [0, 1], 16, 16)
    for frame, cell in enumerate(cut_up(data)):
        quarters = [cell[y:y + 8, x:x + 8].mean() / 255 for y in (0, 8) for x in (0, 8)]
        assert quarters == pytest.approx([*(value + 0.1 * frame for value in (0.2, 0.5, 0.9)), 0], abs=0.02)


@pytest.mark.parametrize("takes, frames, size", [
    (2, 25, (64, 128)), pytest.param(16, 25, (576, 1024), marks=pytest.mark.slow), (256, 14, (72, 128)), (3, 1, (9, 16)),
])
def test_a_sheet_of_takes_is_no_larger_than_another(sheet, takes, frames, size):
    data = sheet.draw(torch.zeros(1, 3, *size).expand(takes * frames, -1, -1, -1), sheet.DecodedFrames(), takes)
    assert max(data["width"], data["height"]) <= 1024 and data["frames"] == frames
    assert data["rows"] * data["columns"] * data["width"] * data["height"] <= 1.2 * 2**20


def test_a_run_of_takes_shows_each_while_it_is_made_and_all_at_the_end(sampled, server, preview, monkeypatch):
    monkeypatch.setattr(preview, "INTERVAL", 0)
    monkeypatch.setattr(preview, "SHARE", 100)
    server.client_id = "queued"
    samples, _ = sampled(more=("0:1, 1:1", 0.0, 1.0, 0, 0, False, True, None, None, 2))
    assert samples.shape[0] == 8
    heard = [data for _, data, _ in server.heard()]
    steps = [(data.get("take"), data["takes"], data.get("seed"), data["step"], data["steps"]) for data in heard]
    assert steps[0] == (1, 2, "5", 1, 2 * STEPS) and (2, 2, "6", STEPS + 2, 2 * STEPS) in steps
    assert steps[-1] == (None, 2, None, 2 * STEPS, 2 * STEPS)
    assert {data["frames"] for data in heard} == {4} and heard[-1]["width"] == 2 * heard[0]["width"]


@multigpu
@pytest.mark.slow
def test_takes_on_several_devices_count_together_and_show_the_first_that_is_not_done(sampled, server, svd, preview, monkeypatch):
    monkeypatch.setattr(preview, "INTERVAL", 0)
    monkeypatch.setattr(preview, "SHARE", 100)
    server.client_id = "queued"
    more = ("0:1, 1:1", 0.0, 1.0, 0, 0, False, True, None, None, 3)
    _, progress = sampled(model=with_clones(svd.ours, [clone_of(svd.ours)]), more=more)
    assert [(value, total) for value, total, _ in progress] == [(step + 1, 3 * STEPS) for step in range(3 * STEPS)]
    shown = [data["take"] for _, data, _ in server.heard()[:-1]]
    assert shown[0] == 1 and shown == sorted(shown)
