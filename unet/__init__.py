"""The UNet family of diffusion models in plain PyTorch: SD1, SD2, SDXL and Stable Video Diffusion.

`model.py` is the network, `encoder.py` its down path and middle block, `layers.py` and `transformer.py` its layers,
`controlnet.py` the ControlNet of SVD, `controlnext.py` its ControlNeXt; `config.py` describes a network, with the layout of
its blocks, and lists the family's members. `chunks.py` and `group_norm.py` keep the working memory small, `costs.py` says
what each layer needs, `memory.py` estimates a whole call from that. What takes less time: `onednn.py`, `fused_linear.py`,
`quick_conv.py`, `winograd.py` and `doubling.py` on a CPU, where `probes.py` says which pay, `card_kernels.py` and
`triton_kernels.py` on a graphics card.
`hooks.py` and `residuals.py` are where a host and a ControlNet come in. `replica.py` is a network that answers calls of
another process, with `arrays.py` (what passes between them), `held_networks.py` and `stored_layers.py` (its weights),
`asked_controls.py` and `embedded_hints.py` (its ControlNets) and `within_memory.py`. `weights/` reads files.
"""

from .config import FAMILIES, Family, Levels, UNetConfig
from .controlnet import ControlNetConfig, SVDControlNet
from .controlnext import ControlNeXt, ControlNeXtConfig
from .hooks import Hooks
from .memory import activation_bytes, encoder_bytes, feature_bytes, residual_bytes
from .model import UNetModel
from .residuals import Residuals, residual_shapes
from .weights.checkpoint import (
    Checkpoint,
    ControlNetFile,
    ControlNeXtFile,
    find_controlnet,
    load_unet,
    open_checkpoint,
    open_controlnet,
    open_controlnext,
)
from .weights.detect import detect
from .weights.errors import UNetFileError
from .weights.on_disk import FileStamp, changed_in_place
from .weights.residual_file import ControlResiduals, read_residuals, write_residuals

__all__ = [
    "FAMILIES", "Checkpoint", "ControlNeXt", "ControlNeXtConfig", "ControlNeXtFile", "ControlNetConfig", "ControlNetFile",
    "ControlResiduals", "Family", "FileStamp", "Hooks", "Levels", "Residuals", "SVDControlNet", "UNetConfig",
    "UNetFileError", "UNetModel", "activation_bytes", "changed_in_place", "detect", "encoder_bytes", "feature_bytes",
    "find_controlnet", "load_unet", "open_checkpoint", "open_controlnet", "open_controlnext", "read_residuals", "residual_bytes",
    "residual_shapes", "write_residuals",
]
