"""Every patch kind of the host's ModelPatcher, one forward call: ours against the host's own network, with controls.

Both see the same patches, and each patch records what it was given: the place marks and options must be the host's.
"""

import copy
import functools

import comfy.ldm.modules.diffusionmodules.openaimodel as host_layers
import comfy.lora
import comfy.model_patcher
import comfy.patcher_extension
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention
from safetensors.torch import save_file

from support.families import PREFIX, TINY, inputs, relative_error
from support.oracle import ROWS, Pair, host_model
from unet import UNetModel

NAMES = ["sd1", "svd"]
MIDDLE_AFTER = hasattr(comfy.model_patcher.ModelPatcher, "set_model_middle_block_after_patch")
WATCHED = (
    "block", "block_index", "transformer_index", "n_heads", "dim_head", "attn_precision", "activations_shape",
    "original_shape", "cond_or_uncond",
)


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patches")
    return {name: Pair(pack, folder, name) for name in NAMES}


class Recorder:
    """What a patch was given, call by call."""

    def __init__(self):
        self.calls = []

    def note(self, kind, options, *values):
        seen = {key: copy.copy(options[key]) for key in WATCHED if key in options}
        keys = sorted(key for key in options if key not in ("patches", "patches_replace"))
        self.calls.append((kind, keys, seen, [None if v is None else tuple(v.shape) for v in values]))


def attention(q, k, v, extra):
    return optimized_attention(q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"])


def patch_attn_in(name):
    def apply(patcher, log):
        def patch(n, context, value, extra):
            log.note(name, extra, n, context, value)
            return n * 1.1, context * 0.9, value * 1.2

        getattr(patcher, f"set_model_{name}_patch")(patch)

    return apply


def patch_more_keys(patcher, log):
    """As IP-Adapters do that give their image to attention as further keys."""
    def patch(n, context, value, extra):
        log.note("more keys", extra, n, context, value)
        further = torch.cat([context, context.flip(-1), -context], dim=1)
        return n, further, further * 0.7

    patcher.set_model_attn2_patch(patch)


def patch_attention_override(patcher, log):
    def override(function, q, k, v, heads, **kwargs):
        log.note("override", kwargs["transformer_options"], q, k, v)
        return function(q, k, v, heads, **kwargs) * 1.2

    patcher.model_options["transformer_options"]["optimized_attention_override"] = override


def patch_attn_out(name):
    def apply(patcher, log):
        def patch(n, extra):
            log.note(f"{name} output", extra, n)
            return n * 1.3

        getattr(patcher, f"set_model_{name}_output_patch")(patch)

    return apply


def patch_replace(name, block, number, depth):
    def apply(patcher, log):
        def patch(q, k, v, extra):
            log.note(f"{name} replace", extra, q, k, v)
            return attention(q, k, v.flip(1) * 1.5, extra)

        getattr(patcher, f"set_model_{name}_replace")(patch, block, number, depth)

    return apply


def patch_both_keys(patcher, log):
    """The exact place goes before the whole block."""
    for depth, factor in ((None, 0.3), (0, 2.0)):
        def patch(q, k, v, extra, depth=depth, factor=factor):
            log.note(f"replace {depth}", extra, q, k, v)
            return attention(q, k, v, extra) * factor

        patcher.set_model_attn1_replace(patch, "middle", 0, depth)


def patch_middle(patcher, log):
    def patch(x, extra):
        log.note("middle_patch", extra, x)
        return x + 0.1 * x.flip(-1)

    patcher.set_model_patch(patch, "middle_patch")


def patch_blocks(name):
    def apply(patcher, log):
        def patch(h, options):
            log.note(name, options, h)
            return h * 1.1

        patcher.set_model_patch(patch, name)

    return apply


def patch_output(patcher, log):
    def patch(h, skip, options):
        log.note("output_block_patch", options, h, skip)
        return h * 0.9, skip * 1.2

    patcher.set_model_output_block_patch(patch)


def patch_emb(patcher, log):
    def patch(emb, model_channels, options):
        log.note(f"emb_patch {model_channels}", options, emb)
        return emb * 1.2

    patcher.set_model_emb_patch(patch)


def patch_layer(patcher, log):
    """Only a Downsample is asked about on both hosts: 0.16.3 asks for what no other branch took."""

    def patch(layer, x, emb, context, options, output_shape, time_context, num_frames, image_only):
        log.note(f"layer {output_shape} {num_frames if options['x_rows'] != 1 else None}", options, x, emb, context)
        return layer(x) * 1.1

    patcher.set_model_forward_timestep_embed_patch((host_layers.Downsample, patch))


def patch_middle_after(patcher, log):
    def patch(args):
        log.note(f"middle_block_after {sorted(args)}", args["transformer_options"], args["h"], args["x"], args["emb"])
        return {**args, "h": args["h"] * 1.3 + args["emb"].mean()}

    patcher.set_model_middle_block_after_patch(patch)


KINDS = {
    "attn1_patch": patch_attn_in("attn1"),
    "attn2_patch": patch_attn_in("attn2"),
    "attn2_patch with more keys": patch_more_keys,
    "optimized_attention_override": patch_attention_override,
    "attn1_output_patch": patch_attn_out("attn1"),
    "attn2_output_patch": patch_attn_out("attn2"),
    "attn1_replace of a place": patch_replace("attn1", "input", 4, 0),
    "attn1_replace of a block": patch_replace("attn1", "output", 5, None),
    "attn2_replace of a place": patch_replace("attn2", "middle", 0, 0),
    "attn2_replace of a block": patch_replace("attn2", "input", 1, None),
    "attn1_replace of both": patch_both_keys,
    "middle_patch": patch_middle,
    "input_block_patch": patch_blocks("input_block_patch"),
    "input_block_patch_after_skip": patch_blocks("input_block_patch_after_skip"),
    "output_block_patch": patch_output,
    "emb_patch": patch_emb,
    "forward_timestep_embed_patch": patch_layer,
    "middle_block_after_patch": patch_middle_after,
}
if not MIDDLE_AFTER:
    del KINDS["middle_block_after_patch"]


def forward(patcher, config, options=None, controls=True, frames=3):
    """One call of the patcher's network as the host makes it: two conditions in a batch, with controls."""
    call = inputs(config, frames=frames if config.temporal else 1, batch=2, size=(8, 10))
    rows = call["x"].shape[0]
    options = options if options is not None else copy.deepcopy(patcher.model_options["transformer_options"])
    options |= {"cond_or_uncond": [1, 0], "sigmas": torch.ones(1), "x_rows": 1 if rows == 2 else rows}
    control = None
    if controls:
        generator = torch.Generator().manual_seed(9)
        sizes = [(8, 10), (8, 10), (8, 10), (4, 5), (4, 5), (4, 5), (2, 3), (2, 3), (2, 3), (1, 2), (1, 2), (1, 2)]
        widths = [1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4]
        shapes = [(rows, width * config.model_channels, *size) for width, size in zip(widths, sizes, strict=True)]
        skips = [torch.randn(shape, generator=generator) for shape in shapes]
        middle = torch.randn(rows, 4 * config.model_channels, 1, 2, generator=generator)
        control = {"output": [0.3 * s for s in skips], "middle": [middle], "input": [0.2 * s for s in reversed(skips)]}
    y = call.pop("y", None)
    kwargs = {"num_video_frames": frames} if config.temporal else {}
    return patcher.model.diffusion_model(
        call["x"], call["timesteps"], call["context"], y, control, options, **kwargs
    )


def both(pair, *kinds):
    """(ours, the host's) output with these patches, and what each side's patches were given."""
    results, logs = [], []
    for patcher in pair:
        log = Recorder()
        patched = patcher.clone()
        patched.model_options.setdefault("transformer_options", {})
        for kind in kinds:
            KINDS[kind](patched, log)
        results.append(forward(patched, pair.config))
        logs.append(log.calls)
    return *results, *logs


@pytest.fixture(scope="module")
def plain(pairs):
    """Our result without patches."""
    return functools.cache(lambda name: forward(pairs[name].ours, pairs[name].config))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_each_patch_kind_equals_the_host_and_is_given_the_same(pairs, plain, name, kind):
    ours, host, our_log, host_log = both(pairs[name], kind)
    assert relative_error(ours, host) <= 1e-5
    assert relative_error(ours, plain(name)) > 1e-4, "the patch changed nothing"
    assert our_log, "the patch was never called"
    assert our_log == host_log


@pytest.mark.parametrize("name", NAMES)
def test_all_patch_kinds_at_once_equal_the_host(pairs, name):
    ours, host, our_log, host_log = both(pairs[name], *KINDS)
    assert relative_error(ours, host) <= 1e-5
    assert our_log == host_log


@pytest.mark.parametrize("name", NAMES)
def test_an_output_patch_may_drop_the_skip(pairs, name):
    """0.30.0 takes a skip of None (a patch that joins by itself); 0.16.3 does not, ours does on both."""
    def join(h, skip, options):
        return torch.cat([h, skip * 0.5], dim=1), None

    def halve(h, skip, options):
        return h, skip * 0.5

    results = []
    for patch in (join, halve):
        patched = pairs[name].ours.clone()
        patched.set_model_output_block_patch(patch)
        results.append(forward(patched, pairs[name].config))
    assert torch.equal(*results)


@pytest.mark.parametrize("name", NAMES)
def test_patches_of_one_block_share_their_options(pairs, name):
    """In the host all patches of a transformer block get one dict: what one writes the later ones read."""
    def run(patcher):
        read = []

        def write(n, context, value, extra):
            extra["note of attn1_patch"] = extra["block"]
            return n, context, value

        def read_again(n, extra):
            read.append(extra.get("note of attn1_patch"))
            return n

        patched = patcher.clone()
        patched.set_model_attn1_patch(write)
        patched.set_model_attn1_output_patch(read_again)
        patched.set_model_patch(read_again, "middle_patch")
        patched.set_model_attn2_output_patch(read_again)
        forward(patched, pairs[name].config)
        return read

    assert run(pairs[name].ours) == run(pairs[name].host)


@pytest.mark.parametrize("name", NAMES)
def test_options_after_a_call_are_the_hosts(pairs, name):
    """Packs read the marks after the call, and `block` between calls."""
    ours, host = {}, {}
    forward(pairs[name].ours, pairs[name].config, ours)
    forward(pairs[name].host, pairs[name].config, host)
    assert {k: v for k, v in ours.items() if k != "sigmas"} == {k: v for k, v in host.items() if k != "sigmas"}


@pytest.mark.parametrize("name", NAMES)
def test_layer_patches_see_the_hosts_arguments(pairs, name):
    """0.30.0 asks about every layer; the shape that an upsampling must reach is the skip's."""
    def run(patcher):
        seen = []

        def patch(layer, x, emb, context, options, output_shape, time_context, num_frames, image_only):
            seen.append((options["block"], tuple(x.shape), emb.shape, None if output_shape is None else tuple(output_shape)))
            return torch.nn.functional.interpolate(x, size=tuple(output_shape[2:]), mode="nearest")

        patched = patcher.clone()
        patched.set_model_forward_timestep_embed_patch((host_layers.Upsample, patch))
        return forward(patched, pairs[name].config), seen

    ours, seen = run(pairs[name].ours)
    assert [(block, x, emb) for block, x, emb, _ in seen] and all(shape is not None for *_, shape in seen)
    if MIDDLE_AFTER:
        host, host_seen = run(pairs[name].host)
        assert relative_error(ours, host) <= 1e-5
        assert seen == host_seen


@pytest.mark.parametrize("name", NAMES)
def test_controls_are_only_read(pairs, name):
    """The host pops from the lists it is given and adds in place; the same control must serve a second call of ours."""
    config = pairs[name].config
    x = torch.randn(2, 4 * config.model_channels, 1, 1)
    control = {"middle": [x.clone()], "output": [], "input": []}
    call = inputs(config, frames=1, batch=2)
    args = (call["x"], call["timesteps"], call["context"], call.get("y"), control)
    options = {"cond_or_uncond": [0, 1]}
    first = pairs[name].ours.model.diffusion_model(*args, dict(options), num_video_frames=1)
    second = pairs[name].ours.model.diffusion_model(*args, dict(options), num_video_frames=1)
    assert torch.equal(first, second) and torch.equal(control["middle"][0], x)


@pytest.mark.parametrize("name", NAMES)
def test_wrappers_around_the_network_get_the_hosts_arguments(pairs, name):
    """EasyCache and others read `transformer_options` as the last positional argument of DIFFUSION_MODEL wrappers."""
    def run(patcher):
        seen = []

        def wrapper(executor, *args, **kwargs):
            seen.append((len(args), [type(a).__name__ for a in args], sorted(kwargs), type(executor.class_obj).__name__))
            return executor(*args, **kwargs) * 2

        patched = patcher.clone()
        patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "test", wrapper)
        options = {"wrappers": patched.wrappers}
        return forward(patched, pairs[name].config, options), seen

    (ours, our_seen), (host, host_seen) = run(pairs[name].ours), run(pairs[name].host)
    assert relative_error(ours, host) <= 1e-5
    assert our_seen == host_seen and our_seen[0][3] == "UNetModel"
    assert relative_error(ours, 2 * forward(pairs[name].ours, pairs[name].config)) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TINY))
def test_the_lora_key_map_is_the_hosts(pack, tmp_path, name):
    """Every name under which a LoRA may address a layer leads to the same tensor, for each member of the family."""
    extra = {"cc_projection.weight": torch.zeros(768, 772), "cc_projection.bias": torch.zeros(768)}
    extra = extra if name == "zero123" else {}
    meta = UNetModel(TINY[name], device="meta").state_dict()
    weights = {key: torch.zeros(tensor.shape, dtype=torch.float16) for key, tensor in meta.items()}
    save_file({**{PREFIX + key: value for key, value in weights.items()}, **extra}, tmp_path / "u.safetensors")
    ours = pack("nodes.bridge.model.unet_loader").load_model(str(tmp_path / "u.safetensors"), {"dtype": torch.float16})
    host = host_model(weights, ROWS[name], extra, dtype=torch.float16)
    assert comfy.lora.model_lora_keys_unet(ours.model, {}) == comfy.lora.model_lora_keys_unet(host.model, {})
    assert type(ours.model).__mro__[-3:] == type(host.model).__mro__[-3:]
    assert ours.model.model_type == host.model.model_type
    assert type(ours.model.latent_format) is type(host.model.latent_format)
