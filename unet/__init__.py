"""The UNet family of diffusion models in plain PyTorch: SD1, SD2, SDXL and Stable Video Diffusion.

`model.py` is the network, `encoder.py` its way down and middle, `layers.py` and `transformer.py` the parts, `controlnet.py` the
ControlNet of SVD; `config.py` is the table of the family, `detect.py` tells which member a file holds, `checkpoint.py` reads
it; `chunks.py` and `memory.py` keep its working memory small and tell it; `hooks.py` and `residuals.py` are where a host and a ControlNet come in.
"""

from .checkpoint import (
    Checkpoint, ControlNetFile, holds_svd_controlnet, load_unet, open_checkpoint, open_controlnet,
)
from .config import FAMILIES, Family, UNetConfig
from .controlnet import ControlNetConfig, SVDControlNet
from .detect import UNetFileError, detect
from .hooks import Hooks
from .memory import activation_bytes
from .model import UNetModel
from .residuals import Residuals

__all__ = [
    "FAMILIES", "Checkpoint", "ControlNetConfig", "ControlNetFile", "Family", "Hooks", "Residuals", "SVDControlNet",
    "UNetConfig", "UNetFileError", "UNetModel", "activation_bytes", "detect", "holds_svd_controlnet", "load_unet", "open_checkpoint", "open_controlnet",
]
