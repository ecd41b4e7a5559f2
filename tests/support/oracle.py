"""The host's own UNet and MODEL on given weights: what ours are compared with."""

from dataclasses import replace

import comfy.cldm.cldm
import comfy.controlnet
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import comfy.t2i_adapter.adapter
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

from support import small
from support.families import TINY, random_weights, write_unet
from unet import FAMILIES

CPU = torch.device("cpu")
ROWS = {family.name: family for family in FAMILIES}


def host_unet_config(weights: dict, family, head_channels: int | None = None) -> dict:
    """What the host itself detects in these weights, with what its class for the family adds.

    `head_channels`: the head width of a miniature, which the host would take as 64.
    """
    detected = comfy.model_detection.detect_unet_config(weights, "")
    config_class = getattr(comfy.supported_models, family.host)
    detected.update(config_class.unet_extra_config)
    if family.name == "sd2_tiny":  # the host knows this one in diffusers' layout only
        detected["disable_self_attentions"] = [True, False, False]
    if head_channels is not None:
        detected.update(num_head_channels=head_channels, num_heads=-1)
    return detected


def host_unet(weights: dict, family, dtype=torch.float32, head_channels: int | None = None) -> UNetModel:
    unet = UNetModel(**host_unet_config(weights, family, head_channels), dtype=dtype, operations=comfy.ops.disable_weight_init)
    unet.load_state_dict(weights, strict=True)
    return unet.to(dtype).requires_grad_(False).eval()


def host_model(weights: dict, family, beside: dict | None = None, dtype=torch.float32, head_channels=None, quant_config=None):
    """The host's own MODEL on these weights, made as its loader makes it but without its check of the width.

    `quant_config`: what the host detects in quantized weights.
    """
    model_config = getattr(comfy.supported_models, family.host)(comfy.model_detection.detect_unet_config(weights, ""))
    model_config.unet_config = host_unet_config(weights, family, head_channels)
    model_config.quant_config = quant_config
    cast_from = None if quant_config else dtype
    manual_cast = comfy.model_management.unet_manual_cast(cast_from, CPU, list(model_config.supported_inference_dtypes))
    model_config.set_inference_dtype(dtype, manual_cast)
    model = model_config.get_model({**weights, **(beside or {})}, "")
    model.load_model_weights(dict(weights), "")
    return comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)


# What the tests of the bridge run: a quarter of the miniatures' size where they are slow on a CPU.
SMALL = {
    "sd1": TINY["sd1"],
    "sd1_tiny": TINY["sd1_tiny"],
    "sd2": replace(TINY["sd2"], model_channels=32, head_channels=32),
    "sdxl": replace(
        TINY["sdxl"], model_channels=32, head_channels=32, depth_in=(0, 0, 1, 1, 3, 3),
        depth_out=(3, 3, 3, 1, 1, 1, 0, 0, 0), depth_middle=3,
    ),
    "svd": replace(TINY["svd"], model_channels=32, head_channels=32),
}
# Two levels, for what is the sampler's business: a call takes two fifths of one of SMALL["svd"].
TWO_LEVELS = replace(small.SVD, context_dim=TINY["svd"].context_dim)


class Pair:
    """Our MODEL, loaded from a file by our loader, and the host's MODEL on the same weights."""

    def __init__(self, pack, folder, name: str, seed: int = 0, dtype=None, config=None):
        self.name, self.config = name, config or SMALL[name]
        self.made: dict[tuple, torch.Tensor] = {}
        self.path = folder / f"{name}-{seed}.safetensors"
        metadata = None if self.config.num_heads else {"temporal_unet.head_channels": str(self.config.head_channels)}
        self.weights = write_unet(self.path, self.config, seed=seed, metadata=metadata)
        self.ours = pack("nodes.bridge.model.unet_loader").load_model(str(self.path), {} if dtype is None else {"dtype": dtype})
        self.host = host_model(
            self.weights, ROWS[name], dtype=dtype or torch.float32,
            head_channels=None if self.config.num_heads else self.config.head_channels,
        )

    def __iter__(self):
        return iter((self.ours, self.host))

    def plain(self, **options) -> torch.Tensor:
        """What our MODEL makes of `prompts` with these options of `sample`; computed once for each set of them."""
        key = tuple(sorted(options.items()))
        if key not in self.made:
            self.made[key] = sample(self.ours, *prompts(self.config), **options)
        return self.made[key]


def run_node(node_class, *args, **kwargs) -> tuple:
    """The outputs of a node of either API generation."""
    if hasattr(node_class, "define_schema"):
        out = node_class.execute(*args, **kwargs)
        return tuple(out) if isinstance(out, tuple) else out.args
    return getattr(node_class(), node_class.FUNCTION)(*args, **kwargs)


def prompt(config, seed: int, **extra) -> list:
    """A CONDITIONING for this network: text of 7 tokens, or an image embedding with its latent for video."""
    generator = torch.Generator().manual_seed(seed)
    cond = torch.randn(1, 1 if config.temporal else 7, config.context_dim, generator=generator)
    if config.temporal:
        extra = {
            "motion_bucket_id": 127, "fps": 6, "augmentation_level": 0.0,
            "concat_latent_image": torch.randn(1, 4, 8, 8, generator=generator), **extra,
        }
    return [[cond, {"pooled_output": torch.randn(1, 1280, generator=generator), **extra}]]


def prompts(config) -> tuple[list, list]:
    return prompt(config, 1), prompt(config, 2)


def sample(model, positive, negative, *, frames=3, size=(8, 8), steps=2, cfg=3.0, sampler="euler", scheduler="normal",
           denoise=1.0, seed=5, **latent) -> torch.Tensor:
    """The host's KSampler on an empty latent of `frames` (or a batch of images); `latent` overrides its entries."""
    import nodes as host_nodes

    latent = {"samples": torch.zeros(frames, 4, *size), **latent}
    return host_nodes.common_ksampler(
        model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
    )[0]["samples"]


def fill(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random parameters as `families.random_weights` makes them: a ControlNet's zero convolutions are not zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            value *= parameter[0].numel() ** -0.5
        elif name.endswith("weight"):  # norms
            value = 1 + 0.1 * value
        else:
            value *= 0.1
        parameter.data = value
    return module.requires_grad_(False).eval()


def controlnet(name: str, seed: int = 11):
    """A CONTROL_NET of the host for the miniature `name`, in ldm's layout, with random weights."""
    small = SMALL[name]
    config = host_unet_config(random_weights(small), ROWS[name], None if small.num_heads else small.head_channels)
    config.pop("out_channels")
    for key in [key for key in config if key.startswith(("use_temporal", "extra_ff", "merge", "video_"))]:
        del config[key]
    net = comfy.cldm.cldm.ControlNet(**config, hint_channels=3, operations=comfy.ops.disable_weight_init)
    net.dtype = torch.float32
    return comfy.controlnet.ControlNet(fill(net, seed), load_device=CPU)


def t2i_adapter(name: str, seed: int = 12):
    """A T2I-Adapter of the host with the widths of the miniature `name`."""
    config = SMALL[name]
    xl = name.startswith("sdxl")
    channels = [config.model_channels * mult for mult in config.channel_mult]
    channels = [channels[0], channels[1], channels[2], channels[2]] if xl else channels
    adapter = comfy.t2i_adapter.adapter.Adapter(
        cin=3 * (256 if xl else 64), channels=channels, nums_rb=2, ksize=1, sk=True, use_conv=False, xl=xl
    )
    return comfy.controlnet.T2IAdapter(fill(adapter, seed), adapter.input_channels, 8, "nearest-exact", device=CPU)


def hints(count: int, seed: int = 21, size=64) -> torch.Tensor:
    """Control images [count, size, size, 3], each different from the others."""
    return torch.rand(count, size, size, 3, generator=torch.Generator().manual_seed(seed))
