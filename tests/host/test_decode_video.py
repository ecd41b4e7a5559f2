"""Decode Video against the host's own VAE Decode, which on a CPU with room takes all frames as one batch."""

import threading
import time
from itertools import pairwise

import comfy.model_management as management
import comfy.sd
import comfy.taesd.taehv
import comfy.utils
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine

from support.devices import multigpu
from support.oracle import run_node
from tools.untrained import VAE_SEED, vae_weights

OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory.")
NARROW = 32  # channels of the narrowest level, a quarter of the real VAEs'
LAYOUT = {
    "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": NARROW, "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
}


def randomise(network, seed, time=1.0):
    """Weights with which activations stay near 1 and every layer shows in the result; `time` is a factor on those over time."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        noise = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            value.copy_(noise * value[0].numel() ** -0.5 * (time if "time_stack" in name else 1.0))
        else:
            value.copy_(0.1 * noise + float(name.endswith("weight")))
    return network


def make_svd_vae(time=1.0, dtype=None):
    """SVD's VAE as the host builds it for a file of that layout, but narrow and untrained."""

    def narrow(**configs):
        for half in ("encoder_config", "decoder_config"):
            configs[half]["params"]["ch"] = NARROW
        return randomise(AutoencodingEngine(**configs), seed=1, time=time)

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(comfy.sd, "AutoencodingEngine", narrow)
        return comfy.sd.VAE(sd={"decoder.mid.block_1.mix_factor": torch.zeros(1)}, dtype=dtype)


@pytest.fixture(scope="module")
def svd_vae():
    return make_svd_vae()


@pytest.fixture(scope="module")
def image_vaes():
    """VAEs that know nothing of time: a tiny one and the usual one."""
    with torch.inference_mode():
        usual = comfy.sd.VAE(sd={}, config={"params": {"ddconfig": LAYOUT, "embed_dim": 4}})
        randomise(usual.first_stage_model, seed=2)
        return {"taesd": comfy.sd.VAE(sd=vae_weights(VAE_SEED)), "kl": usual}


@pytest.fixture(scope="module")
def compressing_vae():
    """A video VAE that makes four frames of one latent frame."""
    with torch.inference_mode():
        return comfy.sd.VAE(sd=randomise(comfy.taesd.taehv.TAEHV(latent_channels=16), seed=3).state_dict())


@pytest.fixture
def ours(pack):
    node_class = pack("nodes.decode_video").DecodeVideo
    return lambda vae, latent, **options: run_node(node_class, {"samples": latent}, vae, **options)[0]


@pytest.fixture
def host(node):
    return lambda vae, latent: run_node(node("VAEDecode"), vae, {"samples": latent})[0]


def clip(frames, height=3, width=4):
    """A latent that turns from one image into another, brighter and with more contrast: no two chunks are alike."""
    generator = torch.Generator().manual_seed(1)
    first, last = torch.randn(2, 1, 4, height, width, generator=generator)
    time = torch.linspace(0, 1, frames).reshape(-1, 1, 1, 1)
    noise = torch.randn(frames, 4, height, width, generator=generator)
    return (1 - time) * (0.7 * first - 0.3) + time * (1.3 * last + 0.3) + 0.1 * noise


def largest(a, b):
    assert a.shape == b.shape
    return (a - b).abs().max().item()


# SVD's VAE, which mixes frames


@pytest.mark.parametrize("frames, height, width", [(1, 3, 4), (2, 5, 3), (7, 4, 6)])
def test_a_clip_is_what_the_host_makes_of_it_in_one_batch(svd_vae, ours, host, frames, height, width):
    latent = clip(frames, height, width)
    before = latent.clone()
    images = ours(svd_vae, latent)
    assert images.shape == (frames, 8 * height, 8 * width, 3) and images.dtype == torch.float32
    assert largest(images, host(svd_vae, latent)) <= 1e-5
    assert torch.equal(latent, before)


@pytest.mark.slow
@pytest.mark.one_host
def test_the_frames_are_mixed_at_all(svd_vae, ours, host):
    """Else the test above would pass with a decoder that takes each frame by itself."""
    latent = clip(7)
    single = torch.cat([host(svd_vae, frame) for frame in latent.split(1)])
    assert largest(ours(svd_vae, latent), single) > 0.1


def test_in_bf16_it_is_as_near_to_fp32_as_the_host_is(svd_vae, ours, host):
    latent, vae = clip(3), make_svd_vae(dtype=torch.bfloat16)
    exact = host(svd_vae, latent)
    errors = [(decode(vae, latent) - exact).abs().mean().item() for decode in (ours, host)]
    assert 1e-4 < errors[0] <= 1.1 * errors[1]


def test_a_chunk_is_the_hosts_batch_of_these_frames(svd_vae, ours, host):
    latent = clip(8)
    cut = ours(svd_vae, latent, frames_per_chunk=4, overlap=0)
    assert largest(cut, torch.cat([host(svd_vae, latent[:4]), host(svd_vae, latent[4:])])) <= 1e-5


def test_chunks_fade_where_they_overlap(svd_vae, ours, host):
    """Frames 0 to 5 and 3 to 8: the three shared ones lie between both chunks' and go over from one to the other."""
    latent = clip(9)
    images = ours(svd_vae, latent, frames_per_chunk=6, overlap=3)
    first, second = host(svd_vae, latent[:6]), host(svd_vae, latent[3:])
    assert largest(images[:3], first[:3]) <= 1e-5
    assert largest(images[6:], second[3:]) <= 1e-5
    for frame, share in ((3, 0.0355), (4, 0.5), (5, 0.9645)):
        assert largest(images[frame], torch.lerp(first[frame], second[frame - 3], share)) <= 1e-4


@pytest.mark.slow
@pytest.mark.one_host
def test_each_take_is_decoded_by_itself_and_one_can_be_taken_out(svd_vae, image_vaes, pack):
    """Two takes of 5 frames in chunks of 4: no frame of the second is mixed into the first."""
    latent = {"samples": torch.cat([clip(5), -clip(5)]), "temporal_unet.take_frames": 5}
    run = lambda vae=svd_vae, latent=latent, **options: run_node(  # noqa: E731
        pack("nodes.decode_video").DecodeVideo, latent, vae, frames_per_chunk=4, overlap=1, **options)[0]
    alone = [run(latent={"samples": take}) for take in latent["samples"].split(5)]
    assert torch.equal(run(), torch.cat(alone))
    assert torch.equal(run(take=1), alone[0]) and torch.equal(run(take=2), alone[1])
    assert torch.equal(run(image_vaes["taesd"], take=2), run(image_vaes["taesd"])[5:])
    with pytest.raises(ValueError, match="Decode Video: take is 3, but samples holds 2. Set take from 1 to 2, or to 0 for all"):
        run(take=3)


@pytest.mark.parametrize("frames, length, overlap", [(9, 6, 3), (33, 32, 8), (100, 32, 8), (5, 1, 0), (7, 3, 2), (40, 14, 1)])
def test_chunks_cover_the_clip_and_share_what_was_asked(pack, frames, length, overlap):
    starts = pack("nodes.bridge.vae.decode").chunk_starts(frames, length, overlap)
    assert starts[0] == 0 and starts[-1] == frames - length
    assert all(0 < later - start <= length - overlap for start, later in pairwise(starts))
    assert frames > (len(starts) - 1) * (length - overlap) + overlap, "one chunk less would do"


@pytest.mark.slow
@pytest.mark.one_host
def test_a_clip_in_chunks_stays_near_the_whole(ours, host):
    """With layers over time at a third of their strength. What remains is the group norms, which see a chunk of the clip."""
    vae, latent = make_svd_vae(time=0.3), clip(12)
    whole = host(vae, latent)
    errors, cut = ((ours(vae, latent, **options) - whole).abs() for options in (
        {"frames_per_chunk": 9, "overlap": 6}, {"frames_per_chunk": 6, "overlap": 0}
    ))
    assert errors.mean() <= 0.01 < cut.mean()
    assert errors.max() <= 0.1 < cut.max()


def test_the_result_does_not_depend_on_free_memory(svd_vae, ours, host, monkeypatch):
    latent, results = clip(4), []
    for free in (1, 2**60):
        monkeypatch.setattr(management, "get_free_memory", lambda *_, free=free, **__: free)
        results.append((ours(svd_vae, latent), host(svd_vae, latent)))
    (ours_little, host_little), (ours_much, host_much) = results
    assert torch.equal(ours_little, ours_much)
    assert largest(host_little, host_much) > 0.1, "the reading had no effect"


@pytest.fixture
def largest_input(svd_vae):
    """The most values that any layer of the decoder is given during a call."""

    def measure(call):
        sizes = []
        hooks = [module.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].numel()))
                 for module in svd_vae.first_stage_model.decoder.modules() if not list(module.children())]
        call()
        for hook in hooks:
            hook.remove()
        return max(sizes)

    return measure


@pytest.mark.slow
def test_working_memory_is_flat_in_the_number_of_frames(svd_vae, ours, host, largest_input):
    one = largest_input(lambda: host(svd_vae, clip(1)))
    assert largest_input(lambda: ours(svd_vae, clip(3))) == one
    assert largest_input(lambda: ours(svd_vae, clip(12))) == one
    assert largest_input(lambda: host(svd_vae, clip(3))) == 3 * one


# other VAEs


@pytest.mark.parametrize("name", ["taesd", "kl"])
def test_images_equal_the_hosts(image_vaes, ours, host, name):
    latent = clip(5)
    expected = host(image_vaes[name], latent)
    assert largest(ours(image_vaes[name], latent), expected) <= 1e-5
    assert largest(ours(image_vaes[name], latent, frames_per_chunk=1), expected) <= 1e-5


def test_images_are_decoded_one_at_a_time(image_vaes, ours):
    rows = []
    hook = image_vaes["kl"].first_stage_model.decoder.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    ours(image_vaes["kl"], clip(5))
    hook.remove()
    assert rows == [1] * 5


def test_a_latent_with_a_time_axis(image_vaes, ours, host):
    """The host would take the first frame alone."""
    latent = clip(3)
    images = ours(image_vaes["taesd"], latent.movedim(0, 1)[None])
    assert largest(images, host(image_vaes["taesd"], latent)) <= 1e-5


def test_a_vae_that_compresses_time_is_left_to_the_host(compressing_vae, ours, host):
    latent = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(4))
    images = ours(compressing_vae, latent)
    assert images.shape == (5, 32, 32, 3)
    assert torch.equal(images, host(compressing_vae, latent))


# progress, cancel and errors


@pytest.mark.parametrize("frames, options, steps", [(3, {}, 15), (4, {"frames_per_chunk": 2, "overlap": 0}, 30)])
def test_progress_runs_to_its_end(svd_vae, ours, frames, options, steps):
    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    try:
        ours(svd_vae, clip(frames), **options)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert seen == sorted(seen) and seen[-1] == (steps, steps), "the host shows not every step, but the last"


def test_a_cancel_acts_within_a_frame(svd_vae, ours):
    calls = []
    hook = svd_vae.first_stage_model.decoder.conv_in.register_forward_pre_hook(
        lambda *_: calls.append(management.interrupt_current_processing())
    )
    with pytest.raises(management.InterruptProcessingException):
        ours(svd_vae, clip(3))
    hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["svd", "kl"])
def test_out_of_memory_is_an_error_and_not_another_result(svd_vae, image_vaes, ours, name):
    vae = {"svd": svd_vae, **image_vaes}[name]

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = vae.first_stage_model.decoder.norm_out.register_forward_pre_hook(fail)
    with pytest.raises(management.OOM_EXCEPTION, match="Decode Video: out of memory .* smaller, or lower frames_per_chunk"):
        ours(vae, clip(2))
    hook.remove()


@pytest.fixture
def away(svd_vae, monkeypatch):
    """The host's intermediate device is another than the VAE's, or goes by another name."""
    monkeypatch.setattr(svd_vae, "output_device", torch.device("cpu", 0))


@pytest.fixture
def run_out(svd_vae):
    """run_out(times, error): so many times memory runs out late in the decoder; gives the calls made."""
    hooks = []

    def start(times, error=OUT_OF_MEMORY):
        calls = []

        def hook(*_):
            calls.append(1)
            if len(calls) <= times:
                raise error

        hooks.append(svd_vae.first_stage_model.decoder.up[0].block[0].norm1.register_forward_pre_hook(hook))
        return calls

    yield start
    for hook in hooks:
        hook.remove()


def test_out_of_memory_goes_on_with_the_clip_off_the_device(svd_vae, ours, away, run_out, caplog):
    """The second chunk does not try again what the first could not."""
    options = {"frames_per_chunk": 3, "overlap": 1}
    expected = ours(svd_vae, clip(5), **options)
    frames_seen, seen = run_out(1), []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    try:
        images = ours(svd_vae, clip(5), **options)
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert torch.equal(images, expected)
    assert len(frames_seen) == 1 + 6  # and each frame of both chunks
    warnings = [record.message for record in caplog.records if "out of memory" in record.message]
    assert warnings == ["Decode Video: out of memory; going on with the clip on cpu:0 between layers."]
    assert seen[-1] == (30, 30) and all(value < 30 for value, _ in seen[:-1]), "progress goes back with the work"


def test_out_of_memory_off_the_device_too_is_an_error(svd_vae, ours, away, run_out):
    calls = run_out(99)
    with pytest.raises(management.OOM_EXCEPTION, match="Decode Video: out of memory .* lower frames_per_chunk"):
        ours(svd_vae, clip(2))
    assert len(calls) == 2


def test_out_of_memory_is_not_tried_again_where_the_clip_was_off_the_device(svd_vae, ours, away, run_out, monkeypatch):
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: 1)
    calls = run_out(99)
    with pytest.raises(management.OOM_EXCEPTION, match="Decode Video: out of memory"):
        ours(svd_vae, clip(2))
    assert len(calls) == 1


def test_an_accelerators_error_is_what_the_host_takes_it_for(svd_vae, ours, run_out):
    """PyTorch reports some of CUDA's failed allocations so; 0.16.3 does not know."""
    run_out(99, torch.AcceleratorError("CUDA error: out of memory"))
    expected = (management.OOM_EXCEPTION, "Decode Video") if hasattr(management, "is_oom") else (torch.AcceleratorError, "CUDA")
    with pytest.raises(expected[0], match=expected[1]):
        ours(svd_vae, clip(2))


# several devices


@pytest.fixture
def on_devices(pack):
    """(decode, calls): Decode Video on a latent that was sampled on "cpu" and "cpu:0", which the host takes for two devices.

    Each VAE is of that `make`; `calls` counts the chunks of SVD's VAE that each device begins, by its name.
    """
    devices, node_class = [torch.device("cpu"), torch.device("cpu:0")], pack("nodes.decode_video").DecodeVideo
    lanes = pack("nodes.bridge.sampling.lanes")

    def prepare(make=make_svd_vae, at_call=lambda device, calls: None):
        vae, calls = make(), {}
        vae.patcher.cached_patcher_init = (lambda: make().patcher, ())

        def run(call, lane, inference, run=lanes._run):
            device = str(lane["temporal_unet.decoder"].vae.device)
            calls[device] = calls.get(device, 0) + 1
            at_call(device, calls)
            return run(call, lane, inference)

        def decode(samples, devices=devices, **options):
            with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
                patch.setattr(lanes, "_run", run)
                return run_node(node_class, {"temporal_unet.devices": devices, **samples}, vae, **options)[0]

        return decode, calls, vae

    return prepare


@pytest.mark.slow
@multigpu
@pytest.mark.parametrize("kind", ["svd", "kl"])
def test_chunks_of_takes_are_shared_out_and_the_result_is_the_same(on_devices, image_vaes, kind, caplog):
    caplog.set_level("INFO")
    decode, calls, vae = on_devices(**({} if kind == "svd" else {"make": lambda: image_vaes["kl"].__class__(
        sd=image_vaes["kl"].first_stage_model.state_dict(), config={"params": {"ddconfig": LAYOUT, "embed_dim": 4}})}))
    latent = {"samples": torch.cat([clip(9), -clip(9)]), "temporal_unet.take_frames": 9}
    options = {"frames_per_chunk": 4, "overlap": 2}
    expected = decode(latent, devices=[], **options)
    assert not calls
    assert torch.equal(decode(latent, **options), expected)
    assert min(calls.values()) >= 2 and sum(calls.values()) == (8 if kind == "svd" else 18) and set(calls) == {"cpu", "cpu:0"}
    assert f"{sum(calls.values())} chunks on cpu, cpu:0; each holds the VAE" in caplog.text
    clones = vae.patcher.get_additional_models_with_key("multigpu")
    assert torch.equal(decode(latent, **options), expected)
    assert len(clones) == 1 and vae.patcher.get_additional_models_with_key("multigpu")[0] is clones[0], "made once"


@pytest.mark.slow
@multigpu
def test_chunks_that_come_in_any_order_are_faded_in_theirs(on_devices):
    decode, _, _ = on_devices(at_call=lambda device, calls: time.sleep(0.3 * (device == "cpu" and calls[device] == 1)))
    latent, options = {"samples": clip(12)}, {"frames_per_chunk": 3, "overlap": 1}
    assert torch.equal(decode(latent, **options), decode(latent, devices=[], **options))


@pytest.mark.slow
@multigpu
@pytest.mark.parametrize("fault, raised, message", [
    (ZeroDivisionError("here"), ZeroDivisionError, "here"),
    (OUT_OF_MEMORY, management.OOM_EXCEPTION, "out of memory on cpu:0 .* smaller"),
    (management.InterruptProcessingException(), management.InterruptProcessingException, None),
], ids=["error", "out of memory", "cancel"])
def test_what_ends_a_chunk_on_one_device_ends_those_of_the_others(on_devices, fault, raised, message):
    decode, calls, vae = on_devices()
    latent, options, failed, ended = {"samples": clip(12)}, {"frames_per_chunk": 3, "overlap": 1}, threading.Event(), []
    expected = decode(latent, **options)

    def fail(*_):
        failed.set()
        raise fault

    def wait(*_):
        failed.wait(20)
        time.sleep(0.5)  # in which the main thread hears of it

    [clone] = vae.patcher.get_additional_models_with_key("multigpu")
    first, second = vae.first_stage_model.decoder, clone.model.decoder
    hooks = [
        second.conv_in.register_forward_pre_hook(fail), first.mid.attn_1.register_forward_pre_hook(wait),
        first.norm_out.register_forward_pre_hook(lambda *_: ended.append(1)),
    ]
    with pytest.raises(raised, match=message):
        decode(latent, **options)
    for hook in hooks:
        hook.remove()
    assert not ended and torch.equal(decode(latent, **options), expected)


@multigpu
def test_a_cancel_ends_all_devices(on_devices):
    decode, calls, _ = on_devices(at_call=lambda device, calls: management.interrupt_current_processing(sum(calls.values()) == 3))
    with pytest.raises(management.InterruptProcessingException):
        decode({"samples": clip(12)}, frames_per_chunk=3, overlap=1)
    management.interrupt_current_processing(False)
    assert sum(calls.values()) <= 4


@multigpu
def test_a_vae_that_cannot_be_made_again_works_alone_and_the_log_says_so(on_devices, caplog):
    decode, calls, vae = on_devices()
    vae.patcher.cached_patcher_init = None
    decode({"samples": clip(4)}, frames_per_chunk=2, overlap=0)
    assert not calls and "Decode Video: works on cpu alone: what loaded this VAE cannot make it again" in caplog.text


BAD_LATENTS = {
    "no frames": (clip(1)[:0], "0 frames"),
    "NaN": (clip(2) * float("nan"), "NaN"),
    "infinite": (clip(2) / 0.0, "NaN or infinite"),
    "channels": (torch.zeros(2, 16, 4, 6), r"shape \[2, 16, 4, 6\].*\[frames, 4, height, width\]"),
    "axes": (torch.zeros(4, 4, 6), r"shape \[4, 4, 6\].*\[frames, 4, height, width\]"),
}


@pytest.mark.parametrize("name", BAD_LATENTS)
def test_bad_latents_are_refused(svd_vae, ours, name):
    latent, message = BAD_LATENTS[name]
    with pytest.raises(ValueError, match="Decode Video: samples .*" + message):
        ours(svd_vae, latent)


def test_an_image_latent_is_refused_by_a_video_vae(compressing_vae, ours):
    with pytest.raises(ValueError, match=r"shape \[2, 16, 4, 6\].*\[1, 16, frames, height, width\]"):
        ours(compressing_vae, torch.zeros(2, 16, 4, 6))


def test_an_empty_vae_is_refused(ours):
    for vae in (None, comfy.sd.VAE(sd={})):
        with pytest.raises(ValueError, match="Decode Video: vae is empty.*Load VAE"):
            ours(vae, clip(1))


def test_an_overlap_that_leaves_nothing_is_refused(svd_vae, ours):
    with pytest.raises(ValueError, match="Decode Video: overlap 4 .*chunks of 4 frames; expected less than 4"):
        ours(svd_vae, clip(5), frames_per_chunk=4, overlap=4)
    assert len(ours(svd_vae, clip(2), frames_per_chunk=4, overlap=4)) == 2, "a clip of one chunk has no overlap"
