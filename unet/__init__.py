"""The UNet family of diffusion models in plain PyTorch: SD1, SD2, SDXL and Stable Video Diffusion.

`model.py` is the network, `encoder.py` its way down and middle, `layers.py` and `transformer.py` the parts, `controlnet.py` the
ControlNet of SVD, `controlnext.py` its ControlNeXt; `config.py` is the table of the family, `detect.py` detects which member a
file holds, `files.py` opens it (`pickles.py` a pickled one, which `pickle_check.py` looks through first; `on_disk.py` is what
both need) and `checkpoint.py` reads it, `errors.py` is how that fails; `chunks.py` and `group_norm.py` keep its working memory
small, `memory.py` tells it; `hooks.py` and `residuals.py` are where a host and a ControlNet come in, `residual_file.py` keeps a
ControlNet's residuals.
"""

from .config import FAMILIES, Family, Levels, UNetConfig
from .controlnet import ControlNetConfig, SVDControlNet
from .controlnext import ControlNeXt, ControlNeXtConfig
from .hooks import Hooks
from .memory import activation_bytes, encoder_bytes, residual_bytes
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
    "UNetFileError", "UNetModel", "activation_bytes", "changed_in_place", "detect", "encoder_bytes", "find_controlnet",
    "load_unet", "open_checkpoint", "open_controlnet", "open_controlnext", "read_residuals", "residual_bytes",
    "residual_shapes", "write_residuals",
]
