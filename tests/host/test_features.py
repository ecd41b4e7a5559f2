"""The host's features on our MODEL: the same sampled latent as the host's own MODEL on the same weights gives."""

from pathlib import Path

import comfy.gligen
import comfy.model_base
import comfy.patcher_extension
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel as HostUNet
from safetensors.torch import load_file, save_file

from support.families import relative_error
from support.oracle import CPU, SMALL, TWO_LEVELS, Pair, fill, prompt, prompts, run_node, sample

WINDOWS = ("standard_static", 1, False, "pyramid", 0, False)


@pytest.fixture(scope="module")
def pairs(pack, tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("features"), {}

    def pair(name, seed=0, dtype=None):
        key = (name, seed, dtype)
        if key not in made:
            made[key] = Pair(pack, folder, name, seed, dtype)
        return made[key]

    return pair


@pytest.fixture(scope="module")
def plain(pairs):
    """Our unpatched result, made once for each set of options."""
    made = {}

    def run(name, **options):
        key = (name, *sorted((k, str(v)) for k, v in options.items()))
        if key not in made:
            made[key] = sample(pairs(name).ours, *prompts(SMALL[name]), **options)
        return made[key]

    return run


@pytest.fixture
def same(pairs, plain):
    """Asserts that a feature acts, and does the same to our MODEL as to the host's. `feature` patches a MODEL."""

    def check(name, feature, limit=1e-3, conds=None, effect=1e-3, **options):
        results = []
        for model in pairs(name):
            torch.manual_seed(0)  # HyperTile draws its tiles
            results.append(sample(feature(model), *(conds or prompts(SMALL[name])), **options))
        assert torch.isfinite(results[0]).all()
        assert relative_error(*results) <= limit
        assert relative_error(results[0], plain(name, **options)) > effect, "the feature changed nothing"

    return check


@pytest.mark.slow
def test_without_a_feature(pairs, plain):
    for name in ("sd1", "sd2", "sdxl", "svd"):
        expected = sample(pairs(name).host, *prompts(SMALL[name]))
        assert relative_error(plain(name), expected) <= 1e-4


# samplers and schedulers


@pytest.fixture(scope="module")
def simple(pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("simple"), "svd", config=TWO_LEVELS)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", comfy.samplers.KSampler.SAMPLERS)
def test_every_sampler_runs(simple, sampler):
    out = sample(simple.ours, *prompts(simple.config), frames=2, size=(4, 4), sampler=sampler, steps=2, scheduler="karras")
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("scheduler", comfy.samplers.KSampler.SCHEDULERS)
def test_every_scheduler_runs(simple, scheduler):
    assert torch.isfinite(sample(simple.ours, *prompts(simple.config), frames=2, size=(4, 4), scheduler=scheduler)).all()


@pytest.mark.parametrize("sampler", [
    "euler", *(pytest.param(name, marks=pytest.mark.slow) for name in (
        "heunpp2", "dpmpp_2m", "dpmpp_sde", "uni_pc_bh2", "euler_ancestral_cfg_pp",
    )),
])
def test_samplers_equal_the_host(pairs, sampler):
    options = {"frames": 2, "size": (4, 4), "sampler": sampler, "scheduler": "karras", "cfg": 2.0}
    results = [sample(model, *prompts(SMALL["svd"]), **options) for model in pairs("svd")]
    assert relative_error(*results) <= 1e-3


# weights on top of weights


def lora(names_and_shapes, seed=31):
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, (rows, columns) in names_and_shapes.items():
        out[f"{name}.lora_up.weight"] = 0.5 * torch.randn(rows, 4, generator=generator)
        out[f"{name}.lora_down.weight"] = 0.5 * torch.randn(4, columns, generator=generator)
        out[f"{name}.alpha"] = torch.tensor(2.0)
    return out


SD1_SHAPES = {"input_blocks.1.1.transformer_blocks.0.attn1.to_q": (32, 32),
              "middle_block.1.transformer_blocks.0.attn2.to_k": (128, 768),
              "output_blocks.5.1.transformer_blocks.0.ff.net.0.proj": (1024, 128)}
SVD_SHAPES = {"input_blocks.1.1.time_stack.0.attn1.to_q": (32, 32), "middle_block.1.time_stack.0.attn2.to_k": (128, 1024),
              "output_blocks.5.1.time_stack.0.ff_in.net.0.proj": (1024, 128), "middle_block.0.emb_layers.1": (128, 128)}
LORAS = {
    "sd1 ldm": ("sd1", {f"diffusion_model.{name}": shape for name, shape in SD1_SHAPES.items()}),
    "sd1 kohya of ldm": ("sd1", {"lora_unet_" + name.replace(".", "_"): shape for name, shape in SD1_SHAPES.items()}),
    "sd1 kohya": ("sd1", {
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (32, 32),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k": (128, 768),
        "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_ff_net_0_proj": (1024, 128),
    }),
    "svd ldm, over time": ("svd", {f"diffusion_model.{name}": shape for name, shape in SVD_SHAPES.items()}),
}


def lora_file(key):
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    name = key.replace(" ", "-").replace(",", "") + ".safetensors"
    save_file(lora(LORAS[key][1]), folder / name)
    folder_paths.filename_list_cache.clear()
    return name


@pytest.mark.parametrize("key", [key if "time" in key else pytest.param(key, marks=pytest.mark.slow) for key in LORAS])
def test_lora(same, node, pairs, key):
    file = lora_file(key)
    name = LORAS[key][0]
    patched = run_node(node("LoraLoaderModelOnly"), pairs(name).ours, file, 0.8)[0]
    assert len(patched.patches) == len(LORAS[key][1]), "not every layer of the LoRA was found"
    same(name, lambda model: run_node(node("LoraLoaderModelOnly"), model, file, 0.8)[0], limit=1e-4)


def test_a_lora_leaves_no_trace_behind(pairs, node, plain):
    file = lora_file("sd1 ldm")
    patched = run_node(node("LoraLoaderModelOnly"), pairs("sd1").ours, file, 0.8)[0]
    before = plain("sd1")
    sample(patched, *prompts(SMALL["sd1"]))
    assert torch.equal(sample(pairs("sd1").ours, *prompts(SMALL["sd1"])), before)


def keyframed(node, file):
    hooks = run_node(node("CreateHookLoraModelOnly"), file, 1.0)[0]
    keyframes = run_node(node("CreateHookKeyframe"), 0.3, 0.0)[0]
    keyframes = run_node(node("CreateHookKeyframe"), 1.2, 0.5, keyframes)[0]
    return run_node(node("SetHookKeyframes"), hooks, keyframes)[0]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["sd1 ldm", "svd ldm, over time"])
def test_hooks_with_keyframes_on_a_condition(same, node, key):
    name = LORAS[key][0]
    positive, negative = prompts(SMALL[name])
    hooks = keyframed(node, lora_file(key))
    positive = run_node(node("ConditioningSetProperties"), positive, 1.0, "default", hooks=hooks)[0]
    same(name, lambda model: model, conds=(positive, negative), steps=3, limit=1e-3)


def merged_alike(pairs, plain, name, merge):
    """Ours with the host's, both ways, against the host's with the host's."""
    first, second = pairs(name), pairs(name, seed=1)
    results = [
        sample(merge(a, b), *prompts(SMALL[name]))
        for a, b in ((first.ours, second.host), (first.host, second.ours), (first.host, second.host))
    ]
    assert all(relative_error(result, results[-1]) <= 1e-3 for result in results[:-1])
    assert relative_error(results[0], plain(name)) > 1e-3


@pytest.mark.slow
def test_merging_of_ours_and_the_hosts_both_ways(pairs, plain, node):
    merged_alike(pairs, plain, "sd1_tiny", lambda a, b: run_node(node("ModelMergeSimple"), a, b, 0.3)[0])


@pytest.mark.slow
def test_merging_by_blocks(pairs, plain, node):
    ratios = {"input": 0.2, "middle": 0.5, "out": 0.9}
    merged_alike(pairs, plain, "sd1_tiny", lambda a, b: run_node(node("ModelMergeBlocks"), a, b, **ratios)[0])


@pytest.mark.slow
def test_merging_of_video_models(pairs, plain):
    """What ModelMergeSimple does, with all keys in one call: its own loop over SVD's keys takes a minute."""

    def merge(a, b):
        merged = a.clone()
        merged.add_patches(b.get_key_patches("diffusion_model."), 0.7, 0.3)
        return merged

    merged_alike(pairs, plain, "svd", merge)


@pytest.mark.parametrize("name", ["sd1", pytest.param("svd", marks=pytest.mark.slow)])
@pytest.mark.parametrize("with_lora", [False, True])
def test_what_is_saved_is_what_the_host_saves_and_loads(pairs, node, tmp_path, name, with_lora):
    files = []
    for side, model in zip(("ours", "host"), pairs(name), strict=True):
        if with_lora:
            lora = lora_file("sd1 ldm" if name == "sd1" else "svd ldm, over time")
            model = run_node(node("LoraLoaderModelOnly"), model, lora, 0.8)[0]
        files.append(tmp_path / f"{side}.safetensors")
        comfy.sd.save_checkpoint(str(files[-1]), model)
    ours, host = (load_file(path) for path in files)
    assert ours.keys() == host.keys() and all(key.startswith("model.diffusion_model.") for key in ours)
    assert all(ours[key].shape == host[key].shape for key in host)
    assert all(relative_error(ours[key], host[key]) <= 1e-6 for key in host)
    unet = pairs(name).host.model.diffusion_model
    loaded = {key.removeprefix("model.diffusion_model."): value for key, value in ours.items()}
    assert isinstance(unet, HostUNet) and {k for k in unet.state_dict()} == set(loaded)
    if not with_lora:
        weights = pairs(name).weights
        assert all(torch.equal(loaded[key].float(), weights[key]) for key in weights)


def test_the_model_save_node_and_our_loader_again(pairs, plain, node, pack):
    node("ModelSave")().save(pairs("sd1").ours, "temporal_unet_test/sd1")
    path = sorted(Path(folder_paths.get_output_directory(), "temporal_unet_test").glob("sd1*.safetensors"))[-1]
    again = pack("nodes.bridge.model.unet_loader").load_model(str(path))
    assert torch.equal(sample(again, *prompts(SMALL["sd1"])), plain("sd1"))
    path.unlink()


# patches that nodes set


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "svd"])
@pytest.mark.parametrize("freeu", ["FreeU", "FreeU_V2"])
def test_freeu(same, node, name, freeu):
    same(name, lambda model: run_node(node(freeu), model, 1.3, 1.4, 0.9, 0.2)[0], size=(16, 16))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "svd"])
def test_hypertile(same, node, name):
    same(name, lambda model: run_node(node("HyperTile"), model, 32, 2, 1, False)[0], size=(16, 16), effect=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "svd"])
@pytest.mark.parametrize("after_skip", [True, False])
def test_deep_shrink(same, node, name, after_skip):
    same(
        name,
        lambda model: run_node(
            node("PatchModelAddDownscale"), model, 3, 2.0, 0.0, 0.8, after_skip, "bicubic", "bilinear"
        )[0],
        size=(16, 16),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "svd"])
def test_perturbed_attention_guidance(same, node, name):
    same(name, lambda model: run_node(node("PerturbedAttentionGuidance"), model, 3.0)[0], size=(16, 16), effect=1e-4)


@pytest.mark.slow
def test_self_attention_guidance(same, node):
    same("sd1", lambda model: run_node(node("SelfAttentionGuidance"), model, 0.8, 2.0)[0], size=(16, 16))


@pytest.mark.parametrize("name", ["sd1", pytest.param("sd2", marks=pytest.mark.slow)])
def test_token_merging(same, node, name):
    same(name, lambda model: run_node(node("TomePatchModel"), model, 0.5)[0], size=(16, 16), effect=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("name", ["sd1", "svd"])
def test_step_caches(same, pairs, node, name, cache):
    same(name, lambda model: run_node(node(cache), model, 1.5, 0.1, 0.95, False)[0], steps=6, size=(4, 4), frames=2, effect=1e-6)
    calls = []

    def wrapper(executor, *args, **kwargs):
        calls.append(1)
        return executor(*args, **kwargs)

    model = run_node(node(cache), pairs(name).ours, 1.5, 0.1, 0.95, False)[0]
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "after the cache", wrapper)
    sample(model, *prompts(SMALL[name]), steps=6, size=(4, 4), frames=2)
    assert 0 < len(calls) < 6, f"{len(calls)} network calls in 6 steps: nothing was skipped"


@pytest.mark.parametrize("kind", ["DIFFUSION_MODEL", "APPLY_MODEL"])
def test_wrappers_fire_at_every_step(pairs, plain, kind):
    model, calls = pairs("svd").ours.clone(), []

    def wrapper(executor, *args, **kwargs):
        calls.append(type(executor.class_obj).__name__)
        return executor(*args, **kwargs)

    model.add_wrapper_with_key(getattr(comfy.patcher_extension.WrappersMP, kind), "test", wrapper)
    assert torch.equal(sample(model, *prompts(SMALL["svd"])), plain("svd"))
    assert calls == [{"DIFFUSION_MODEL": "UNetModel", "APPLY_MODEL": "SVD_img2vid"}[kind]] * 2


@pytest.mark.slow
def test_a_unet_function_wrapper(same):
    def patch(model):
        model = model.clone()
        model.set_model_unet_function_wrapper(
            lambda apply, args: apply(args["input"], args["timestep"], **args["c"]) * 1.05
        )
        return model

    same("svd", patch)


# compiling


@pytest.mark.slow
@pytest.mark.one_host
@pytest.mark.parametrize("backend", ["aot_eager"])
def test_compiling_through_the_hosts_helper(pairs, plain, backend):
    """The path of TorchCompileModel without its backend "inductor", which takes minutes on a CPU."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = pairs("sd1_tiny").ours.clone(disable_dynamic=True)
    set_torch_compile_wrapper(model=model, backend=backend, options=None)
    options = {"frames": 1, "steps": 1, "cfg": 1.0}
    result = sample(model, *prompts(SMALL["sd1_tiny"]), **options)
    assert relative_error(result, plain("sd1_tiny", **options)) <= 1e-4
    assert type(pairs("sd1_tiny").ours.model.diffusion_model).__name__ == "UNetModel"


# conditions


def regions(node, config, mask=False):
    positive, other, negative = prompt(config, 1), prompt(config, 3), prompt(config, 2)
    if mask:
        area = torch.zeros(1, 64, 64)
        area[:, :, 20:] = 1
        other = run_node(node("ConditioningSetMask"), other, area, mask, 0.8)[0]
    else:
        other = run_node(node("ConditioningSetArea"), other, 32, 64, 16, 0, 0.8)[0]
    return run_node(node("ConditioningCombine"), positive, other)[0], negative


@pytest.mark.parametrize("mask", ["default", *(pytest.param(mask, marks=pytest.mark.slow) for mask in (False, "mask bounds"))])
@pytest.mark.parametrize("name", ["sd1", pytest.param("svd", marks=pytest.mark.slow)])
def test_regional_prompts(same, node, name, mask):
    same(name, lambda model: model, conds=regions(node, SMALL[name], mask))


def gligen(seed=41):
    """A GLIGEN for the SD1 miniature: one gated attention for each transformer."""
    config = SMALL["sd1"]
    widths = [32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 64, 64, 64, 32, 32, 32]
    modules = [comfy.gligen.GatedSelfAttentionDense(w, config.context_dim, 8, w // 8) for w in widths]
    model = comfy.gligen.Gligen(modules, comfy.gligen.PositionNet(768, 768), 768)
    fill(model, seed)
    for module in modules:
        module.alpha_attn.data, module.alpha_dense.data = torch.tensor(1.0), torch.tensor(0.7)
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


@pytest.mark.slow
def test_gligen(same):
    box = (torch.randn(1, 768, generator=torch.Generator().manual_seed(42)), 4, 4, 2, 2)
    positive, negative = prompts(SMALL["sd1"])
    positive = [[positive[0][0], {**positive[0][1], "gligen": ("position", gligen(), [box])}]]
    same("sd1", lambda model: model, conds=(positive, negative))


@pytest.mark.slow
def test_context_windows_on_a_batch_of_images(same, node):
    same("sd1", lambda model: run_node(node("ContextWindowsManual"), model, 3, 1, *WINDOWS)[0], frames=5, effect=-1)


def windowed(model, node, length=4, overlap=1, **options):
    return run_node(node("ContextWindowsManual"), model, length, overlap, *WINDOWS, **options)[0]


@pytest.mark.slow
def test_context_windows_on_video_with_default_options(pairs, plain, node):
    """Ours works on every host; the host's own network fails where an anchor frame is prepended (0.30.0)."""
    result = sample(windowed(pairs("svd").ours, node), *prompts(SMALL["svd"]), frames=7)
    assert torch.isfinite(result).all() and relative_error(result, plain("svd", frames=7)) > 1e-4
    try:
        host = sample(windowed(pairs("svd").host, node), *prompts(SMALL["svd"]), frames=7)
    except Exception as error:
        assert "Shape mismatch" in str(error) or "divide" in str(error)
    else:
        assert relative_error(result, host) <= 1e-3


@pytest.mark.slow
def test_context_windows_without_the_anchor_equal_the_host(pairs, node):
    import inspect

    parameters = inspect.signature(node("ContextWindowsManual").execute).parameters
    options = {"causal_window_fix": False} if "causal_window_fix" in parameters else {}
    results = [sample(windowed(model, node, **options), *prompts(SMALL["svd"]), frames=7) for model in pairs("svd")]
    assert relative_error(*results) <= 1e-3


# where weights live


DTYPES = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["sd1", "svd"])
def test_weight_dtypes(pairs, plain, name, dtype):
    """Stored in `dtype`, computed in what the host takes on this machine: as its own MODEL loaded in that dtype."""
    pair = pairs(name, dtype=dtype)
    assert pair.ours.model.get_dtype() == pair.host.model.get_dtype() == dtype
    assert pair.ours.model.get_dtype_inference() == pair.host.model.get_dtype_inference()
    stored = {str(p.dtype) for k, p in pair.ours.model.diffusion_model.named_parameters() if "mix_factor" not in k}
    assert stored == {str(dtype)}
    results = [sample(model, *prompts(SMALL[name])) for model in pair]
    assert torch.isfinite(results[0]).all()
    assert relative_error(*results) <= 1e-3
    assert relative_error(results[0], plain(name)) > 1e-5, "the weights were not rounded"


@pytest.mark.slow
def test_the_fast_fp8_option(pairs, pack):
    pair = pairs("sd1", dtype=torch.float8_e4m3fn)
    options = {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True}
    fast = pack("nodes.bridge.model.unet_loader").load_model(str(pair.path), options)
    assert relative_error(sample(fast, *prompts(SMALL["sd1"])), sample(pair.host, *prompts(SMALL["sd1"]))) <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd1", "svd"])
@pytest.mark.parametrize("with_lora", [False, True])
def test_partial_loading(pairs, node, name, with_lora):
    """Low-VRAM mode as far as a CPU shows it: most layers cast at call time, patches applied as they are cast."""
    config, results, left = SMALL[name], [], []
    for model in pairs(name):
        patched = model.clone()
        if with_lora:
            lora = lora_file("sd1 ldm" if name == "sd1" else "svd ldm, over time")
            patched = run_node(node("LoraLoaderModelOnly"), model, lora, 0.8)[0]
        expected = sample(patched, *prompts(config), steps=1)
        patched.detach()
        patched.load(CPU, lowvram_model_memory=patched.model_size() // 4)
        layers = [m for m in patched.model.modules() if hasattr(m, "comfy_cast_weights")]
        left.append(sum(m.comfy_cast_weights for m in layers) / len(layers))
        x = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(4))
        call = {"c_crossattn": torch.cat([prompts(config)[0][0][0]] * 4), "transformer_options": {"cond_or_uncond": [0]}}
        if name == "svd":
            call |= {"y": torch.ones(4, 768), "c_concat": x, "num_video_frames": 4}
        low = patched.model.apply_model(x, torch.full((4,), 0.7), **call)
        patched.detach()
        patched.load(CPU, full_load=True)
        full = patched.model.apply_model(x, torch.full((4,), 0.7), **call)
        assert relative_error(low, full) <= 1e-5
        results.append(low)
        patched.detach()
        assert relative_error(sample(patched, *prompts(config), steps=1), expected) <= 1e-6
    assert relative_error(*results) <= 1e-3
    assert left[0] > 0.3 and abs(left[0] - left[1]) < 0.2


def test_partial_unloading_and_loading_again(pairs, plain):
    patcher = pairs("sd1").ours
    before = plain("sd1")
    patcher.partially_unload(CPU, patcher.model_size() // 2)
    patcher.partially_load(CPU, extra_memory=patcher.model_size() // 3)
    assert torch.equal(sample(patcher, *prompts(SMALL["sd1"])), before)


@pytest.mark.slow
def test_the_model_can_be_made_again(pairs, plain):
    """`cached_patcher_init`: what compiling, condition hooks and multi-GPU clones load again."""
    factory, arguments = pairs("svd").ours.cached_patcher_init[:2]
    for options in ({}, {"disable_dynamic": True}):
        again = factory(*arguments, **options)
        assert again.model is not pairs("svd").ours.model and not again.is_dynamic()
        assert torch.equal(sample(again, *prompts(SMALL["svd"])), plain("svd"))


def test_clones_without_dynamic_loading(pairs, plain):
    for options in ({"disable_dynamic": True}, {"force_deepcopy": True}):
        try:
            clone = pairs("sd1").ours.clone(**options)
        except TypeError:  # 0.16.3 knows fewer options
            continue
        assert torch.equal(sample(clone, *prompts(SMALL["sd1"])), plain("sd1"))


@pytest.mark.slow
def test_multigpu_clone(pairs, plain, node):
    patcher = pairs("svd").ours
    if not hasattr(patcher, "deepclone_multigpu"):
        pytest.skip("the host has no multi-GPU clones")
    clone = patcher.deepclone_multigpu(new_load_device=CPU)
    assert clone.model is not patcher.model and clone.load_device == CPU
    assert torch.equal(sample(clone, *prompts(SMALL["svd"])), plain("svd"))


@pytest.mark.slow
def test_multigpu_clone_keeps_dtype_and_patches(pairs, node):
    pair = pairs("sd1", dtype=torch.bfloat16)
    if not hasattr(pair.ours, "deepclone_multigpu"):
        pytest.skip("the host has no multi-GPU clones")
    patched = run_node(node("LoraLoaderModelOnly"), pair.ours, lora_file("sd1 ldm"), 0.8)[0]
    clone = patched.deepclone_multigpu(new_load_device=CPU)
    assert clone.model.get_dtype() == torch.bfloat16
    assert torch.equal(sample(clone, *prompts(SMALL["sd1"])), sample(patched, *prompts(SMALL["sd1"])))


@pytest.mark.parametrize("name", ["sd1", "sdxl", "svd"])
def test_memory_is_estimated_as_the_host_does(pairs, name):
    ours, host = pairs(name)
    assert ours.model_size() == host.model_size()
    if not ours.model.diffusion_model.config.temporal:  # video needs less, see test_memory.py
        assert ours.memory_required([8, 4, 64, 64]) == host.memory_required([8, 4, 64, 64])
