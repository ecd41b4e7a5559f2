"""The nodes as /object_info shows them: ids, names, defaults and ranges are a contract with every saved workflow."""

import pytest

SEED = {"default": 0, "min": 0, "max": 2**64 - 1}
SHARE_START, SHARE_END = {"default": 0.0, "min": 0.0, "max": 1.0}, {"default": 1.0, "min": 0.0, "max": 1.0}
CATEGORIES = {f"Temporal UNet/{room}" for room in ("Loaders", "Model", "Video", "ControlNet")}
CONTRACT = {  # id -> (display name, {input: (type, what must stand there)}, outputs)
    "TemporalUNetCheckpointLoader": (
        "Load Checkpoint (Temporal UNet)",
        {
            "ckpt_name": ("COMBO", {}),
            "weight_dtype": ("COMBO", {"default": "default", "options": [
                "default", "fp32", "fp16", "bf16", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]}),
        },
        [("MODEL", "model"), ("CLIP", "clip"), ("VAE", "vae"), ("CLIP_VISION", "clip_vision"), ("STRING", "info")],
    ),
    "TemporalUNetLoader": (
        "Load UNet",
        {
            "unet_name": ("COMBO", {}),
            "weight_dtype": ("COMBO", {"default": "default", "options": [
                "default", "fp32", "fp16", "bf16", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"]}),
        },
        [("MODEL", "model"), ("STRING", "info")],
    ),
    "TemporalUNetSave": (
        "Save UNet",
        {
            "model": ("MODEL", {}),
            "filename_prefix": ("STRING", {"default": "diffusion_models/temporal_unet"}),
            "format": ("COMBO", {"default": "safetensors", "options": ["safetensors", "GGUF"]}),
            "type": ("COMBO", {
                "default": "fp16", "options": ["fp16", "bf16", "fp32", "fp8", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"],
            }),
            "dialect": ("COMBO", {"default": "comfy", "options": ["comfy", "sdcpp"]}),
        },
        [],
    ),
    "TemporalUNetLoraLoader": (
        "Load LoRA (SVD and all)",
        {
            "model": ("MODEL", {}),
            "lora_name": ("COMBO", {}),
            "strength_model": ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}),
        },
        [("MODEL", "model"), ("STRING", "info")],
    ),
    "TemporalUNetFeatureCache": (
        "UNet Feature Cache",
        {
            "model": ("MODEL", {}),
            "threshold": ("FLOAT", {"default": 0.3, "min": 0.0, "max": 1.0}),
            "depth": ("INT", {"default": 2, "min": 1, "max": 11}),
            "start_percent": ("FLOAT", SHARE_START),
            "end_percent": ("FLOAT", SHARE_END),
        },
        [("MODEL", "model")],
    ),
    "TemporalUNetRayPool": (
        "UNet on Several Machines (Ray)",
        {
            "model": ("MODEL", {}),
            "address": ("STRING", {"default": ""}),
            "workers": ("INT", {"default": 0, "min": 0}),
            "use_this_gpu": ("BOOLEAN", {"default": True}),
            "timeout": ("FLOAT", {"default": 60.0, "min": 1.0}),
        },
        [("MODEL", "model"), ("STRING", "info")],
    ),
    "TemporalUNetSVDConditioning": (
        "SVD Image to Video",
        {
            "init_image": ("IMAGE,VIDEO", {}),
            "vae": ("VAE", {}),
            "width": ("INT", {"default": 1024, "step": 8}),
            "height": ("INT", {"default": 576, "step": 8}),
            "video_frames": ("INT", {"default": 14, "min": 1, "max": 4096}),
            "motion_bucket_id": ("INT", {"default": 127, "min": 1, "max": 1023}),
            "fps": ("INT", {"default": 6, "min": 1, "max": 1024}),
            "augmentation_level": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 10.0}),
            "seed": ("INT", SEED),
            "resize": ("COMBO", {"default": "crop", "options": ["crop", "pad", "stretch"]}),
            "clip_vision": ("CLIP_VISION", {}),
        },
        [("CONDITIONING", "positive"), ("CONDITIONING", "negative"), ("LATENT", "latent"), ("FLOAT", "fps")],
    ),
    "TemporalUNetSVDSampler": (
        "SVD Temporal UNet Sampler",
        {
            "model": ("MODEL", {}),
            "positive": ("CONDITIONING", {}),
            "negative": ("CONDITIONING", {}),
            "latent_image": ("LATENT", {}),
            "seed": ("INT", SEED),
            "steps": ("INT", {"default": 20, "min": 1}),
            "min_cfg": ("FLOAT", {"default": 1.0}),
            "max_cfg": ("FLOAT", {"default": 2.5}),
            "guidance": ("COMBO", {"default": "linear", "options": ["linear", "triangle", "constant", "curve"]}),
            "sampler_name": ("COMBO", {"default": "euler"}),
            "scheduler": ("COMBO", {"default": "align_your_steps"}),
            "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0}),
            "guidance_curve": ("STRING", {}),
            "guidance_start": ("FLOAT", SHARE_START),
            "guidance_end": ("FLOAT", SHARE_END),
            "window_frames": ("INT", {"default": 0, "min": 0}),
            "window_overlap": ("INT", {"default": 6, "min": 0}),
            "closed_loop": ("BOOLEAN", {"default": False}),
            "keep_colors": ("BOOLEAN", {"default": True}),
            "options": ("VIDEO_OPTIONS", {}),
            "sigmas": ("SIGMAS", {}),
            "takes": ("INT", {"default": 1, "min": 1, "max": 256, "advanced": True}),
        },
        [("LATENT", "samples")],
    ),
    "TemporalUNetVideoOptions": (
        "Video Options",
        {
            "window_frames": ("INT", {"default": 0, "min": 0}),
            "window_overlap": ("INT", {"default": 6, "min": 0}),
            "closed_loop": ("BOOLEAN", {"default": False}),
            "keep_colors": ("BOOLEAN", {"default": True}),
            "guidance_start": ("FLOAT", SHARE_START),
            "guidance_end": ("FLOAT", SHARE_END),
            "hand_over": ("COMBO", {"default": "this step", "options": ["this step", "previous step"], "advanced": True}),
        },
        [("VIDEO_OPTIONS", "options")],
    ),
    "TemporalUNetDecodeVideo": (
        "Decode Video",
        {
            "samples": ("LATENT", {}),
            "vae": ("VAE", {}),
            "frames_per_chunk": ("INT", {"default": 32, "min": 1, "max": 4096, "advanced": True}),
            "overlap": ("INT", {"default": 8, "min": 0, "max": 4096, "advanced": True}),
            "take": ("INT", {"default": 0, "min": 0, "max": 4096, "advanced": True}),
        },
        [("IMAGE", "images")],
    ),
    "TemporalUNetContinueVideo": (
        "Continue Video",
        {
            "video": ("IMAGE,VIDEO", {}),
            "vae": ("VAE", {}),
            "video_frames": ("INT", {"default": 14, "min": 2, "max": 4096}),
            "motion_bucket_id": ("INT", {"default": 127, "min": 1, "max": 1023}),
            "fps": ("INT", {"default": 6, "min": 1, "max": 1024}),
            "augmentation_level": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 10.0, "advanced": True}),
            "seed": ("INT", {**SEED, "advanced": True}),
            "clip_vision": ("CLIP_VISION", {}),
            "keep_colors": ("BOOLEAN", {"default": True, "advanced": True}),
        },
        [("CONDITIONING", "positive"), ("CONDITIONING", "negative"), ("LATENT", "latent"), ("FLOAT", "fps")],
    ),
    "TemporalUNetJoinVideo": (
        "Join Video",
        {
            "video": ("IMAGE,VIDEO", {}),
            "continuation": ("IMAGE,VIDEO", {}),
            "match_colors": ("BOOLEAN", {"default": False, "advanced": True}),
        },
        [("IMAGE", "video")],
    ),
    "TemporalUNetControlNetLoader": (
        "Load ControlNet (SVD and all)",
        {"control_net_name": ("COMBO", {})},
        [("CONTROL_NET", "control_net"), ("STRING", "info")],
    ),
    "TemporalUNetApplyControlNetResiduals": (
        "Apply ControlNet Residuals",
        {
            "positive": ("CONDITIONING", {}),
            "negative": ("CONDITIONING", {}),
            "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0}),
            "start_percent": ("FLOAT", SHARE_START),
            "end_percent": ("FLOAT", SHARE_END),
            "control_net": ("CONTROL_NET", {}),
            "image": ("IMAGE,VIDEO", {}),
            "frame_strengths": ("STRING", {"advanced": True}),
            "mask": ("MASK", {}),
            "vae": ("VAE", {}),
            "residuals": ("CONTROL_RESIDUALS", {}),
        },
        [("CONDITIONING", "positive"), ("CONDITIONING", "negative")],
    ),
    "TemporalUNetComputeControlNetResiduals": (
        "Compute ControlNet Residuals",
        {
            "model": ("MODEL", {}),
            "positive": ("CONDITIONING", {}),
            "control_net": ("CONTROL_NET", {}),
            "image": ("IMAGE,VIDEO", {}),
            "latent_image": ("LATENT", {}),
            "percent": ("FLOAT", {"default": 0.2, "min": 0.0, "max": 1.0, "advanced": True}),
            "seed": ("INT", {**SEED, "advanced": True}),
            "vae": ("VAE", {}),
        },
        [("CONTROL_RESIDUALS", "residuals")],
    ),
    "TemporalUNetSaveControlNetResiduals": (
        "Save ControlNet Residuals",
        {"residuals": ("CONTROL_RESIDUALS", {}), "filename_prefix": ("STRING", {"default": "residuals/ComfyUI"})},
        [],
    ),
    "TemporalUNetLoadControlNetResiduals": (
        "Load ControlNet Residuals",
        {"residuals_name": ("COMBO", {})},
        [("CONTROL_RESIDUALS", "residuals")],
    ),
}
APPLY = "TemporalUNetApplyControlNetResiduals"
OPTIONAL = {
    "clip_vision", "mask", *(f"{name} of {APPLY}" for name in ("control_net", "image", "vae", "residuals")),
    "vae of TemporalUNetComputeControlNetResiduals",
    *(f"{name} of TemporalUNetSVDSampler" for name in (  # the inputs that Video Options has taken over, and what it gives
        "options", "guidance_curve", "guidance_start", "guidance_end", "window_frames", "window_overlap", "closed_loop",
        "keep_colors", "sigmas",
    )),
}


def inputs_of(info: dict) -> dict[str, tuple[str, dict, str]]:
    """Input name -> (type, options, "required" or "optional"), in the order of the node."""
    found = {}
    for kind, entries in info["input"].items():
        if kind == "hidden":  # what the host gives by itself
            continue
        for name, (type_, *rest) in entries.items():
            options = dict(rest[0]) if rest else {}
            if isinstance(type_, list):  # how the host writes a combo of the older API
                type_, options["options"] = "COMBO", type_
            found[name] = (type_, options, kind)
    return found


@pytest.mark.parametrize("node_id", CONTRACT)
def test_the_node_is_as_the_contract_says(node_info, node_id):
    display_name, expected, outputs = CONTRACT[node_id]
    info = node_info[node_id]
    found = inputs_of(info)
    assert info["display_name"] == display_name
    assert info["category"] in CATEGORIES
    assert list(found) == list(expected)
    for name, (type_, options) in expected.items():
        assert found[name][0] == type_, name
        assert {key: found[name][1].get(key) for key in options} == options, name
    assert list(zip(info["output"], info["output_name"], strict=True)) == outputs


@pytest.mark.parametrize("node_id", CONTRACT)
def test_sockets_that_may_stay_empty_and_advanced_inputs_are_optional(node_info, node_id):
    """So API-mode JSON may leave out what it does not set, also when a later version adds an input."""
    inputs = inputs_of(node_info[node_id])
    found = {name for name, (*_, kind) in inputs.items() if kind == "optional"}
    sockets = {name for name in inputs if name in OPTIONAL or f"{name} of {node_id}" in OPTIONAL}
    assert found == sockets | {name for name, (_, options, _) in inputs.items() if options.get("advanced")}


@pytest.mark.parametrize("node_id", CONTRACT)
def test_every_input_has_a_tooltip(node_info, node_id):
    bare = [name for name, (_, options, _) in inputs_of(node_info[node_id]).items() if len(options.get("tooltip", "")) < 20]
    assert not bare


def test_load_unet_lists_both_folders(node_info):
    names = inputs_of(node_info["TemporalUNetLoader"])["unet_name"][1]["options"]
    assert {"untrained_svd.safetensors", "checkpoints/untrained_svd_checkpoint.safetensors"} <= set(names)


def test_no_other_node_is_added(node_info):
    ours = {node_id for node_id, info in node_info.items() if info["python_module"] == "custom_nodes.temporal-unet"}
    assert ours == set(CONTRACT)
