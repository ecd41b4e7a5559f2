"""What reading a file of the whole size takes, by ours and by ComfyUI's own loaders: time and memory.

    python dev.py bench files -- --costs svd [sd1 sdxl] [--only GGUF]

Each kind is written with zeros for weights, and each loader loads it in a process of its own, on one thread. `wall` and `CPU` are
the seconds of loading and then reading every weight once, which maps those that stay in the file. `own` is the most anonymous
memory meanwhile beyond that of before, `RSS` the most of all, with what is mapped; `weights` what they take as the host counts
them. MiB.
"""

import ctypes
import gc
import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from support.families import FULL, PREFIX
from support.memory_status import Peak, status
from support.quantized import bytes_of, linear
from tools.bench.written_files import COMFY_PLAIN, Weights, diffusers, pickled, safetensors
from unet import UNetConfig, UNetModel

COLUMNS = ("wall", "CPU", "own", "RSS", "weights")
HEADS = {  # in diffusers' config.json
    "sd1": {"attention_head_dim": 8}, "sdxl": {"attention_head_dim": [5, 10, 20]}, "svd": {"num_attention_heads": [5, 10, 20, 20]},
}


def zeros(config: UNetConfig) -> Weights:
    """Weights as a file has them."""
    return {
        name: torch.zeros(tensor.shape, dtype=torch.float32 if name.endswith("mix_factor") else torch.float16)
        for name, tensor in UNetModel(config, device="meta").state_dict().items()
    }


def scaled(folder: Path, weights: Weights) -> Path:
    tensors = {}
    for name, weight in weights.items():
        if not linear(name, weight):
            tensors[PREFIX + name] = weight
            continue
        layer = PREFIX + name.removesuffix("weight")
        tensors[f"{layer}weight"], tensors[f"{layer}weight_scale"] = weight.to(torch.float8_e4m3fn), torch.ones(())
        tensors[f"{layer}comfy_quant"] = bytes_of({"format": "float8_e4m3fn", "full_precision_matrix_mult": True})
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def packed(folder: Path, weights: Weights, kind: str) -> Path:
    """GGUF in the dialect of ComfyUI-GGUF, convolutions quantized, too."""
    chosen = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[chosen]
    writer = gguf.GGUFWriter(folder / "model.gguf", "sd1")
    for name, weight in weights.items():
        if weight.ndim < 2 or name.startswith(COMFY_PLAIN):
            writer.add_tensor(name, weight.numpy())
            continue
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(map(int, weight.shape)))
        rows = np.zeros((weight.numel() // 256, 256 // block * size), np.uint8)
        writer.add_tensor(name, rows.view(np.float16) if kind == "F16" else rows, raw_dtype=None if kind == "F16" else chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def kinds(family: str) -> dict[str, tuple[str, Callable[[Path, Weights], Path]]]:
    """By title: the dtype that is asked for ("default": none), and what writes the file, given fp16 weights."""
    def first(write, **options):
        return lambda folder, weights: write(folder, weights, **options)[0]

    plain = first(safetensors, prefix=PREFIX)
    layout = partial(first, diffusers, config=FULL[family], heads=HEADS[family])
    fp8_file = first(safetensors, dtype=torch.float8_e4m3fn)
    return {
        "fp16 safetensors, kept as fp16": ("float16", plain),
        "fp16 safetensors, converted": ("default", plain),
        "fp16 .ckpt, converted": ("default", first(pickled, name="model.ckpt")),
        "diffusers file, converted": ("default", layout()),
        "diffusers folder, converted": ("default", layout(how="folder")),
        "diffusers parts, converted": ("default", layout(how="parts")),
        "fp8, kept": ("float8_e4m3fn", fp8_file),
        "fp8, converted": ("default", fp8_file),
        "scaled fp8, kept": ("default", scaled),
        **{f"GGUF {kind}": ("default", partial(packed, kind=kind)) for kind in ("F16", "Q8_0", "Q4_0", "Q4_K")},
    }


def read_once(network: torch.nn.Module) -> None:
    """Touches every page of the weights; quantized ones stay quantized."""
    for weight in network.state_dict(keep_vars=True).values():
        stored = getattr(weight, "_qdata", weight)
        stored.detach().flatten().view(torch.uint8)[::1024].sum()


def load(package: str, loader: str, path: Path, dtype: str):
    """The MODEL by "ours" or the "host"."""
    import comfy.diffusers_load
    import comfy.sd

    options = {} if dtype == "default" else {"dtype": getattr(torch, dtype)}
    if loader == "ours":
        return importlib.import_module(f"{package}.nodes.bridge.model.unet_loader").load_model(str(path), options)
    if path.is_dir():
        return comfy.diffusers_load.load_diffusers(str(path), output_vae=False, output_clip=False)[0]
    return comfy.sd.load_diffusion_model(str(path), model_options=options)


def child(pipe, *how) -> None:
    """Sends COLUMNS, or the error's text; `how`: arguments of `load`."""
    own, everything = status("RssAnon"), status("VmRSS")
    watches = Peak("RssAnon"), Peak("VmRSS")
    begun = time.perf_counter(), time.process_time()
    try:
        with torch.inference_mode():
            model = load(*how)
            read_once(model.model.diffusion_model)
    except Exception as error:
        return pipe.send(str(error) or type(error).__name__)
    spent = time.perf_counter() - begun[0], time.process_time() - begun[1]
    peaks = [watch.stop() - before for watch, before in zip(watches, (own, everything), strict=True)]
    return pipe.send(dict(zip(COLUMNS, (*spent, *peaks, model.model_size() / 2**20), strict=True)))


def in_page_cache(path: Path) -> float:
    """Reads the file or folder once, so that the first loader does not pay for the disk; its MB."""
    files = [file for file in path.parent.rglob("*") if file.is_file()]
    for file in files:
        with file.open("rb") as opened:
            while opened.read(2**24):
                pass
    return sum(file.stat().st_size for file in files) / 1e6


def measured(*how) -> dict[str, float] | str:
    """What `child` sends, from a process of its own that has the host and the pack from this one."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free here would be used there, and not counted
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, *how))
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def cell(row: dict[str, float] | str) -> str:
    if isinstance(row, str):
        return f"fails: {row.splitlines()[0][:60]}"
    return ", ".join(f"{row[name]:.{1 if name in ('wall', 'CPU') else 0}f}" for name in COLUMNS)


def costs(package: str, family: str, only: str = "") -> None:
    """Prints a table in Markdown of a family of `FULL`; kinds with `only` in their title."""
    torch.set_num_threads(1)  # a process that is forked from one with threads cannot have any
    print(f"| {family} | file, MB | ours: {', '.join(COLUMNS)} | ComfyUI |\n|---|---|---|---|", flush=True)
    for title, (dtype, write) in kinds(family).items():
        if only not in title:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = write(Path(folder), zeros(FULL[family]))
            size = in_page_cache(path)
            cells = [cell(measured(package, loader, path, dtype)) for loader in ("ours", "host")]
        print(f"| {title} | {size:.0f} | {' | '.join(cells)} |", flush=True)
