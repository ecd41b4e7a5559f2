"""A UNet file to a MODEL of the host: its class for the family around our network, under its device management."""

import logging

import comfy.hooks
import comfy.model_base
import comfy.model_management as management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.utils
import torch

from ....unet import Checkpoint, UNetConfig, open_checkpoint
from ....unet.weights.diffusers_folder import Schedule
from ....unet.weights.errors import printable
from ....unet.weights.markers import MARKERS
from .float_patches import KEPT, saves_floats
from .host_operations import with_quick_layers
from .host_unet import UNetModel
from .mixed_precision import keep_weights, kept_in, kept_scale_bytes, read_weights, report_dequantized, with_mixed_layers
from .packed_weights import load_weights, with_packed_layers
from .trained_length import FRAMES_KEY, trained_length
from .video_models import VIDEO_MODELS, follow_runs
from .watched_files import watch_files

SOURCE = "temporal_unet.source"  # attachment of a MODEL: the path of its file, and the stamps of the files that its weights are in
PREDICTIONS = {"epsilon": comfy.model_base.ModelType.EPS, "v_prediction": comfy.model_base.ModelType.V_PREDICTION}
# A tensor of the UNet, from whose spread the host detects whether a Stable Diffusion 2 predicts v or noise.
SPREAD = "output_blocks.11.1.transformer_blocks.0.norm1.bias"


def load_model(path: str, model_options: dict | None = None, disable_dynamic: bool = False):
    """The UNet in the file `path` as a ModelPatcher.

    `model_options`: "dtype" (a torch dtype for the weights; default the host's choice) and "fp8_optimizations", as the
    host's own loaders take them. Raises UNetFileError where the file holds no complete UNet of the family; nothing stays
    in memory then.
    """
    return load_checkpoint(open_checkpoint(path), model_options, disable_dynamic)


def load_checkpoint(checkpoint: Checkpoint, model_options: dict | None = None, disable_dynamic: bool = False):
    """`load_model` for a file that is open already. The patcher can be made again from the path (multi-GPU, compiling)."""
    model_options = model_options or {}
    device = management.get_torch_device()
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    model_config = choose_config(checkpoint, model_options)
    mapped, packed = host_maps(patcher_class, device), stays_packed(checkpoint, model_options, model_config)
    model = _base_model(checkpoint, model_config, mapped, packed)
    kept = kept_in(model_config)
    size = management.module_size(model) + kept_scale_bytes(checkpoint, kept)
    patcher = patcher_class(model, load_device=device, offload_device=management.unet_offload_device(), size=size)
    if kept or packed:
        saves_floats(model)
        patcher.set_hook_mode(comfy.hooks.EnumHookMode.MinVram)  # else it copies floats into quantized weights
    if checkpoint.quantization and not packed:
        why = "" if KEPT else ", since comfy-kitchen is missing"
        logging.info("%s: dequantized to %s as it was loaded%s", checkpoint.path.name, model.get_dtype(), why)
    if mapped or (kept or packed) and maps_quantized():
        watch_files(patcher, checkpoint.stamps)
    patcher.cached_patcher_init = (load_model, (str(checkpoint.path), model_options))
    patcher.set_attachments(SOURCE, (checkpoint.path, checkpoint.stamps))
    if checkpoint.config.temporal:
        follow_runs(patcher)
    trained = trained_length(checkpoint.metadata)
    if trained is not None:
        patcher.set_attachments(FRAMES_KEY, trained)
    return patcher


def host_maps(patcher_class: type, device: torch.device) -> bool:
    """Whether the host itself leaves weights mapped from their file: with dynamic offloading, which it does not do on a CPU.

    Otherwise it copies them, but for quantized ones, and so do we: a file that is cut or overwritten later then does no harm.
    """
    dynamic = issubclass(patcher_class, comfy.model_patcher.ModelPatcherDynamic) and not management.is_device_cpu(device)
    return dynamic and not comfy.utils.DISABLE_MMAP


def maps_quantized() -> bool:
    """Whether the host leaves weights that stay quantized mapped from their file: with and without dynamic offloading."""
    return not comfy.utils.DISABLE_MMAP


def host_config(config: UNetConfig) -> dict:
    """Our config as arguments of the host's UNet, complete: FreeU, LoRA maps and ControlLoRA read it."""
    middle = {None: -2, 0: -1}.get(config.depth_middle, config.depth_middle)
    out = {
        "image_size": 32, "use_checkpoint": False, "use_spatial_transformer": True, "legacy": False,
        "in_channels": config.in_channels, "out_channels": config.out_channels,
        "model_channels": config.model_channels, "channel_mult": list(config.channel_mult),
        "num_res_blocks": list(config.num_res_blocks),
        "transformer_depth": list(config.depth_in), "transformer_depth_output": list(reversed(config.depth_out)),
        "transformer_depth_middle": middle,
        "context_dim": config.context_dim, "use_linear_in_transformer": config.linear_projection,
        "adm_in_channels": config.adm_channels,
        "use_temporal_attention": config.temporal, "use_temporal_resblock": config.temporal,
    }
    if config.adm_channels is not None:
        out["num_classes"] = "sequential"
    if config.temporal:
        out |= {
            "extra_ff_mix_layer": True, "use_spatial_context": True, "merge_strategy": "learned_with_images",
            "merge_factor": 0.0, "video_kernel_size": [3, 1, 1], "disable_temporal_crossattention": False,
        }
    return out


def own_config(config: UNetConfig) -> dict:
    """What the host fixes per family and a file may override: heads, and levels without self-attention."""
    out: dict[str, int | list[bool]] = {"num_heads": config.num_heads or -1, "num_head_channels": config.head_channels or -1}
    if config.num_classes is not None:
        out["num_classes"] = config.num_classes
    if not all(config.self_attention):
        out["disable_self_attentions"] = [not attends for attends in config.self_attention]
    return out


def stays_packed(checkpoint: Checkpoint, model_options: dict, model_config) -> bool:
    """Are the file's GGUF weights kept as they are? `model_config` is what `choose_config` gives.

    Not where a dtype was chosen, here or by an argument of the host's, or where the host is without comfy-kitchen: then they are
    dequantized as they are loaded.
    """
    chosen = "dtype" in model_options or model_config.unet_config["dtype"].itemsize == 1
    return KEPT and bool(checkpoint.quantization) and not chosen


def choose_config(checkpoint: Checkpoint, model_options: dict):
    """The host's config object for this family, with weight and compute dtypes chosen as its own loader chooses them.

    GGUF weights are taken for fp16: their scales are, and what they were made from.
    """
    model_config = getattr(comfy.supported_models, checkpoint.family.host)(host_config(checkpoint.config))
    supported = list(model_config.supported_inference_dtypes)
    kept = keep_weights(model_config, checkpoint, model_options.get("dtype"))
    stored = torch.float16 if checkpoint.quantization else None if checkpoint.quantized else checkpoint.dtype()
    dtype = model_options.get("dtype") or management.unet_dtype(
        model_params=checkpoint.parameters, supported_dtypes=supported, weight_dtype=stored,
    )
    manual_cast = management.unet_manual_cast(None if kept else dtype, management.get_torch_device(), supported)
    model_config.set_inference_dtype(dtype, manual_cast)
    model_config.optimizations["fp8"] = bool(model_options.get("fp8_optimizations"))
    return model_config


def _as_trained(model: comfy.model_base.BaseModel, checkpoint: Checkpoint) -> None:
    """Lets the model predict what the scheduler's config next to its weights says; markers in the file itself go before that.

    The host reads `v_pred` of SDXL alone, but writes it into what it saves of all models.
    """
    schedule, marked = checkpoint.schedule, [name for name in MARKERS if name in checkpoint.shapes]
    if marked:
        schedule = Schedule("v_prediction", "ztsnr" in marked, edm=False) if "v_pred" in marked else None
    if schedule is None or model.model_type not in PREDICTIONS.values():
        return
    kind = PREDICTIONS.get(schedule.prediction)
    if kind is None:
        logging.warning(
            "%s: its scheduler_config.json says that it predicts '%s', which the host has no sampling for; it runs as %s.",
            checkpoint.path.name, printable(schedule.prediction), model.model_type.name,
        )
        return
    model.model_config.sampling_settings["zsnr"] = schedule.zero_snr
    model.model_type, model.model_sampling = kind, comfy.model_base.model_sampling(model.model_config, kind)


class _Zero123(comfy.model_base.Stable_Zero123):
    """The host's class asks for the UNet's dtype while it is made, before ours is in place."""

    def get_dtype(self):
        return self.model_config.unet_config["dtype"]


def _base_model(checkpoint: Checkpoint, model_config, mapped: bool, packed: bool):
    """The host's BaseModel of the family with our network in it.

    `mapped`: weights stay mapped from the file where they can; `packed`: those of a GGUF file stay quantized.
    """
    dtype, kept = model_config.unet_config["dtype"], kept_in(model_config)
    weights = (
        checkpoint.state_dict(dtype, mapped, packed=True, stored_mapped=maps_quantized()) if packed
        else read_weights(checkpoint, kept, dtype, mapped, maps_quantized())
    )
    report_dequantized(checkpoint, kept, dtype)
    markers = {name: checkpoint.tensor(name).clone() for name in MARKERS if name in checkpoint.shapes}
    if SPREAD in checkpoint.names:  # from the file, not in fp8, of which PyTorch computes no spread
        markers[SPREAD] = checkpoint.tensor(checkpoint.names[SPREAD]).float()
    if checkpoint.schedule is not None and checkpoint.schedule.edm:
        markers |= {name: torch.zeros(4) for name in ("edm_mean", "edm_std")}  # the host asks whether they are there
    diffusion_model = _diffusion_model(checkpoint.config, model_config, weights, packed)
    unet_config = model_config.unet_config
    unet_config["disable_unet_model_creation"] = True
    if checkpoint.config.temporal:
        model = VIDEO_MODELS[checkpoint.family.host](model_config, diffusion_model.chunked_run)
    elif checkpoint.family.name == "zero123":
        model = _Zero123(
            model_config, cc_projection_weight=markers["cc_projection.weight"],
            cc_projection_bias=markers["cc_projection.bias"],
        )
    else:
        model = model_config.get_model({**weights, **markers}, "")
    _as_trained(model, checkpoint)
    del unet_config["disable_unet_model_creation"]
    unet_config.update(own_config(checkpoint.config))
    model.diffusion_model = diffusion_model
    return model.to(management.unet_offload_device())


def _diffusion_model(config: UNetConfig, model_config, weights: dict, packed: bool) -> UNetModel:
    """Our network, built on the meta device: it takes these tensors as they are, so loading needs no second copy."""
    dtype = model_config.unet_config["dtype"]
    operations = comfy.ops.pick_operations(
        dtype, model_config.manual_cast_dtype, fp8_optimizations=model_config.optimizations["fp8"],
        model_config=model_config,
    )
    operations = with_mixed_layers(operations) if kept_in(model_config) else with_quick_layers(operations)
    model = UNetModel(
        config, attn_precision=model_config.unet_config.get("attn_precision"),
        operations=with_packed_layers(operations) if packed else operations, dtype=dtype, device="meta",
    )
    load_weights(model, weights, dtype)
    model.requires_grad_(False).eval()
    if management.force_channels_last() and not config.temporal:  # 5-D weights have no such format
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch declares no such overload
    management.archive_model_dtypes(model)
    return model
