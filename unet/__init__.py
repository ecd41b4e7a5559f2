"""The UNet family of diffusion models in plain PyTorch: SD1, SD2, SDXL and Stable Video Diffusion.

`model.py` is the network, `layers.py` and `transformer.py` its parts, `config.py` the table of the family, `detect.py` tells
which member a file holds, `checkpoint.py` reads it, `hooks.py` and `residuals.py` are where a host and a ControlNet come in.
"""

from .checkpoint import Checkpoint, load_unet, open_checkpoint
from .config import FAMILIES, Family, UNetConfig
from .detect import UNetFileError, detect
from .hooks import Hooks
from .model import UNetModel
from .residuals import Residuals

__all__ = [
    "FAMILIES", "Checkpoint", "Family", "Hooks", "Residuals", "UNetConfig", "UNetFileError", "UNetModel",
    "detect", "load_unet", "open_checkpoint",
]
