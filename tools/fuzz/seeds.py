"""Small valid inputs of every kind that the pack reads: what the fuzzer damages."""
from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from support import controlnexts, public_controlnets, quantized
from support.families import PREFIX, TINY, in_diffusers_layout, random_weights
from support.gguf_networks import write_gguf

ONE_LEVEL = {
    "model_channels": 32, "channel_mult": (1,), "num_res_blocks": (1,), "depth_in": (1,), "depth_out": (1, 1),
    "self_attention": (True,),
}
SD1 = replace(TINY["sd1"], **ONE_LEVEL)
SD2 = replace(TINY["sd2"], **ONE_LEVEL, num_heads=None, head_channels=32, context_dim=1024)
SVD = replace(SD2, temporal=True, in_channels=8, adm_channels=768)
HEADS = {"temporal_unet.head_channels": "32"}
CONFIG = {
    "_class_name": "UNet2DConditionModel", "block_out_channels": [32], "in_channels": 4, "cross_attention_dim": 768,
    "attention_head_dim": 8,
}

PEFT = '{"lora_alpha": 2, "alpha_pattern": {"to_q": 4}}'
CONTROLNET_CONFIG = {"_class_name": "ControlNetSDVModel", "num_attention_heads": [1], "block_out_channels": [32]}


@dataclass(frozen=True)
class Seed:
    """One input: its files by their paths in a folder, and the one of them, or the folder, that is opened."""

    kind: str
    files: dict[str, bytes]
    entry: str


def make_seeds(folder: Path) -> list[Seed]:
    """All of them, written to folders in `folder`."""
    return [
        _seed(folder, f"{kind}-{index}", kind, write) for kind, writers in WRITERS.items() for index, write in enumerate(writers)
    ]


def _seed(folder: Path, name: str, kind: str, write) -> Seed:
    own = folder / name
    own.mkdir()
    torch.manual_seed(0)
    entry = write(own)
    files = {str(path.relative_to(own)): _ordered(path.read_bytes()) for path in sorted(own.rglob("*")) if path.is_file()}
    return Seed(kind, files, entry)


def _ordered(data: bytes) -> bytes:
    """A safetensors file with its metadata in one order: the library writes them in another each time."""
    if data[8:9] != b"{":
        return data
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:8 + size]), sort_keys=True).encode()
    return struct.pack("<Q", len(header)) + header + data[8 + size:]


def _half(tensors: dict) -> dict:
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def _image_model(folder: Path) -> str:
    vae = {f"first_stage_model.decoder.{name}": torch.zeros(4) for name in ("conv_in.weight", "norm_out.bias")}
    save_file({**{PREFIX + name: tensor for name, tensor in _half(random_weights(SD1)).items()}, **vae}, folder / "a.safetensors")
    return "a.safetensors"


def _video_model(folder: Path) -> str:
    save_file(_half(random_weights(SVD)), folder / "a.safetensors", HEADS)
    return "a.safetensors"


def _diffusers_folder(folder: Path) -> str:
    (folder / "m" / "unet").mkdir(parents=True)
    (folder / "m" / "scheduler").mkdir()
    save_file(in_diffusers_layout(SD1, _half(random_weights(SD1))), folder / "m" / "unet" / "diffusion_pytorch_model.safetensors")
    (folder / "m" / "unet" / "config.json").write_text(json.dumps(CONFIG))
    schedule = {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / "m" / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule))
    (folder / "m" / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    return "m"


def _scaled(spelling: str, dtype=torch.float8_e4m3fn):
    def write(folder: Path) -> str:
        quantized.write_quantized(folder / "a.safetensors", SD2, spelling, dtype)
        return "a.safetensors"

    return write


def _four_bit(folder: Path) -> str:
    """All linear weights as bitsandbytes has them: nf4, blocks of 64."""
    tensors = _half(random_weights(SD1))
    for name in [name for name, tensor in tensors.items() if quantized.linear(name, tensor)]:
        count = tensors[name].numel()
        settings = {"blocksize": 64, "quant_type": "nf4", "dtype": "float16", "shape": list(tensors[name].shape)}
        tensors[name] = torch.zeros((count + 1) // 2, 1, dtype=torch.uint8)
        tensors[f"{name}.absmax"], tensors[f"{name}.quant_map"] = torch.ones(-(-count // 64)), torch.linspace(-1, 1, 16)
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = quantized.bytes_of(settings)
    save_file(tensors, folder / "a.safetensors")
    return "a.safetensors"


def _pickled(tensors, name: str = "a.ckpt"):
    def write(folder: Path) -> str:
        torch.save(tensors(), folder / name)
        return name

    return write


def _pickled_before_1_6(state: dict, path: Path, **more) -> None:
    """One storage for all tensors, under the name "0": PyTorch takes the addresses of storages, which are others each time."""
    values = torch.cat([tensor.flatten() for tensor in state.values()]).split([tensor.numel() for tensor in state.values()])
    state = {name: part.view(tensor.shape) for (name, tensor), part in zip(state.items(), values, strict=True)}
    torch.save({"state_dict": state, **more}, path, _use_new_zipfile_serialization=False)
    name = rb"X(?:\x0d\0\0\0\d{13}|\x0e\0\0\0\d{14}|\x0f\0\0\0\d{15})(?!\d)"
    path.write_bytes(re.sub(name, b"X\x01\0\0\x000", path.read_bytes()))


def _old_checkpoint(folder: Path) -> str:
    _pickled_before_1_6(_checkpoint()["state_dict"], folder / "a.ckpt", global_step=1)
    return "a.ckpt"


def _checkpoint() -> dict:
    return {"state_dict": {PREFIX + name: tensor for name, tensor in _half(random_weights(SD1)).items()}, "global_step": 1}


def _gguf(dialect: str, kind: str, config=SD1):
    def write(folder: Path) -> str:
        write_gguf(folder / "a.gguf", config, kind, dialect)
        return "a.gguf"

    return write


def _shards(folder: Path) -> str:
    tensors = list(in_diffusers_layout(SD1, _half(random_weights(SD1))).items())
    places = {}
    for index in (1, 2):
        part, file = dict(tensors[index - 1::2]), f"m-0000{index}-of-00002.safetensors"
        save_file(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "m.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return "m.safetensors.index.json"


def _residuals(folder: Path) -> str:
    controls = {f"controls.{index}": torch.ones(2, 4, 8 >> index, 8) for index in range(3)}
    save_file(controls, folder / "a.safetensors", {"controls": "3", "model": "svd"})
    return "a.safetensors"


def _lora(prefix: str, up: str, down: str, **files):
    def write(folder: Path) -> str:
        tensors = {}
        for name, tensor in random_weights(SD1).items():
            if tensor.ndim == 2 and "attn" in name:
                layer = name.removesuffix(".weight")
                layer = prefix + (layer.replace(".", "_") if prefix.endswith("_") else layer)
                tensors |= {f"{layer}{up}": torch.ones(tensor.shape[0], 2), f"{layer}{down}": torch.ones(2, tensor.shape[1])}
                if prefix.endswith("_"):
                    tensors[f"{layer}.alpha"] = torch.tensor(2.0)
        save_file(tensors, folder / "a.safetensors", {"ss_network_dim": "2"})
        for file, text in files.items():
            (folder / f"{file}.json").write_text(text)
        return "a.safetensors"

    return write


def _relatives_of_lora(folder: Path) -> str:
    """Each kind on a layer of its own, of 32 x 32 weights."""
    kinds = {
        "attn1.to_q": {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)},
        "attn1.to_k": {"lokr_w1": (4, 4), "lokr_w2_a": (8, 2), "lokr_w2_b": (2, 8)},
        "attn1.to_v": {"oft_blocks": (4, 8, 8)}, "attn1.to_out.0": {"diff": (32, 32), "diff_b": (32,)},
        "attn2.to_q": {"a1.weight": (32, 2), "a2.weight": (2, 32), "b1.weight": (32, 2), "b2.weight": (2, 32)},
    }
    block = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
    shapes = {f"{block}.{layer}.{name}": shape for layer, rows in kinds.items() for name, shape in rows.items()}
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, folder / "a.safetensors")
    return "a.safetensors"


def _svd_controlnet(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(CONTROLNET_CONFIG))
    save_file(_controlnet(), folder / "a.safetensors")
    return "a.safetensors"


def _pickled_controlnet(folder: Path) -> str:
    (folder / "config.json").write_text(json.dumps(CONTROLNET_CONFIG))
    _pickled_before_1_6(_controlnet(), folder / "a.pth")
    return "a.pth"


def _controlnet() -> dict:
    """One of a single level, 32 channels wide."""
    joints = ("controlnet_down_blocks.", "controlnet_mid_block.")
    made = {name: tensor for name, tensor in public_controlnets.public_tensors(SVD).items() if not name.startswith(joints)}
    for name in ("controlnet_down_blocks.0", "controlnet_down_blocks.1", "controlnet_mid_block"):
        made |= {f"{name}.weight": torch.ones(32, 32, 1, 1), f"{name}.bias": torch.ones(32)}
    last = "controlnet_cond_embedding.conv_out"
    return _half(made | {f"{last}.{end}": made[f"{last}.{end}"][:32] for end in ("weight", "bias")})


def _small_controlnext() -> dict:
    return _half(controlnexts.tensors(2, 32))


def _curve(text: str):
    def write(folder: Path) -> str:
        (folder / "a.txt").write_text(text, encoding="utf-8")
        return "a.txt"

    return write


WRITERS = {
    "safetensors": [_image_model, _video_model],
    "diffusers": [_diffusers_folder],
    "scaled": [*map(_scaled, quantized.SPELLINGS), _scaled("comfy_quant", torch.int8), _four_bit],
    "pickle": [_pickled(_checkpoint), _old_checkpoint, _pickled(_small_controlnext, "a.pth")],
    "gguf": [_gguf("comfy", "Q8_0"), _gguf("sdcpp", "Q8_0"), _gguf("comfy", "Q4_0", SVD)],
    "shards": [_shards],
    "residuals": [_residuals],
    "lora": [
        _lora("lora_unet_", ".lora_up.weight", ".lora_down.weight"), _relatives_of_lora,
        _lora("base_model.model.", ".lora_B.weight", ".lora_A.weight", adapter_config=PEFT),
    ],
    "controlnet": [_svd_controlnet, _pickled_controlnet],
    "curve": [_curve("0:1.0, 0.5:3, 1:1.0"), _curve("0：1e3，0.25：-2；"), _curve("0.5:.5")],
}
