"""Makes the GGUF files in tests/support/sdcpp/ with stable-diffusion.cpp: its README says how."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from support.families import TINY, write_unet
from support.ggufs import pair, text_pair

FOLDER = Path(__file__).parent / "sdcpp"
_SMALL = {  # one level of 32 channels, the least that 32 groups of channels can be
    "model_channels": 32, "channel_mult": (1,), "num_res_blocks": (1,), "depth_in": (1,), "depth_out": (1, 1), "depth_middle": None,
    "self_attention": (True,), "context_dim": 256,
}
CONFIGS = {
    "sd1": replace(TINY["sd1"], **_SMALL),
    "sv3d_u": replace(TINY["sv3d_u"], **{**_SMALL, "context_dim": 32, "head_channels": 16}),
}
TYPES = {  # by parts of tensors' names, the first that fits; rows of 256 numbers are in attn2.to_k and to_v alone
    "input_blocks.*attn2.to_k": "q2_K", "input_blocks.*attn2.to_v": "q3_K", "output_blocks.0.*attn2.to_k": "q4_K",
    "output_blocks.0.*attn2.to_v": "q5_K", "output_blocks.1.*attn2.to_k": "q6_K", "output_blocks.1.*attn2.to_v": "iq4_xs",
    "to_q": "q4_0", "to_k": "q4_1", "to_v": "q5_0", "to_out": "q5_1", "ff.net.0": "q8_0", "ff.net.2": "iq4_nl",
    "norm": "q8_0",
}
FILES = {  # name: (network, type, types of single tensors)
    "sd1_mixed.gguf": ("sd1", "f16", ",".join(f"{part}={kind}" for part, kind in TYPES.items())),
    "sv3d_q4_0.gguf": ("sv3d_u", "q4_0", ""),
}


def write_source(path, network: str) -> dict[str, torch.Tensor]:
    """The weights that such a file was made of, in fp16, as a safetensors file."""
    return write_unet(path, CONFIGS[network], dtype=torch.float16)


def write_with_head_width(path, name: str):
    """A copy of such a file that names its miniature's head width, which the program does not keep."""
    content = (FOLDER / name).read_bytes()
    pairs = text_pair("temporal_unet.head_channels", str(CONFIGS[FILES[name][0]].head_channels))
    filler = pair("x" * (64 - len(pairs) - 13), 7, bytes(1))  # so that the data stay aligned
    path.write_bytes(content[:16] + (2).to_bytes(8, "little") + pairs + filler + content[24:])


def main(python: str):
    """`python` is one with stable-diffusion-cpp-python. It runs in a process of its own, since it may crash."""
    convert = "import sys, stable_diffusion_cpp as sd; sys.exit(not sd.StableDiffusion(verbose=True).convert(" \
              "sys.argv[1], '', sys.argv[2], sys.argv[3], sys.argv[4], convert_name=False))"
    with TemporaryDirectory() as folder:
        for name, (network, kind, rules) in FILES.items():
            source = Path(folder) / f"{network}.safetensors"
            write_source(source, network)
            subprocess.run([python, "-c", convert, source, FOLDER / name, kind, rules], check=True)


if __name__ == "__main__":
    main(sys.argv[1])
