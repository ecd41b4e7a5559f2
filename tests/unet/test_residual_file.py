"""A ControlNet's residuals as a file: what is written and read back, files made elsewhere, and damaged ones."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from support import small
from support.families import TINY
from unet import ControlResiduals, UNetFileError, UNetModel, read_residuals, residual_shapes, write_residuals

CONTROLS = [(2, 8, 4, 4), (2, 16, 2, 2), (2, 16, 2, 2)]


def tensors(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in CONTROLS]


def named(controls):
    return {f"controls.{i}": control for i, control in enumerate(controls)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_is_read_bit_for_bit(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    residuals = ControlResiduals(tuple(tensors(dtype)), {"sigma": "2.5"})
    write_residuals(path, residuals, {"model": "SD15"})
    back = read_residuals(path)
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(back.controls, residuals.controls, strict=True))
    assert back.about == {"sigma": "2.5", "model": "SD15", "controls": "3"}
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_file_has_the_originals_names(tmp_path):
    write_residuals(tmp_path / "a.safetensors", ControlResiduals(tuple(tensors())))
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert sorted(file.keys()) == ["controls.0", "controls.1", "controls.2"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.float8_e4m3fn])
def test_a_file_made_elsewhere_needs_the_tensors_alone(tmp_path, dtype):
    save_file({**named(tensors(dtype)), "other": torch.zeros(1)}, tmp_path / "a.safetensors")
    back = read_residuals(tmp_path / "a.safetensors")
    assert len(back.controls) == 3 and back.frames == 2
    if dtype != torch.float64:
        assert all(torch.equal(a.double(), b.double()) for a, b in zip(back.controls, tensors(dtype), strict=True))


def test_more_than_ten_stay_in_order(tmp_path):
    controls = [torch.full((1, 1, 1, 1), float(i)) for i in range(13)]
    save_file(named(controls), tmp_path / "a.safetensors")
    assert [control.item() for control in read_residuals(tmp_path / "a.safetensors").controls] == list(range(13))


BAD = {
    "gap": (lambda t: {k: v for k, v in named(t).items() if k != "controls.1"}, ["controls.1 is missing", "found controls.2"]),
    "other tensors": (lambda t: {"weight": t[0]}, ["holds no ControlNet residuals", "found weight", "expected controls.0"]),
    "nothing": (lambda t: {}, ["holds no ControlNet residuals", "found nothing"]),
    "NaN": (lambda t: named([t[0], t[1] * float("nan"), t[2]]), ["controls.1 holds NaN", "expected finite"]),
    "infinite": (lambda t: named([t[0], t[1], t[2] / 0]), ["controls.2 holds NaN or infinite"]),
    "integers": (lambda t: named([t[0].long(), *t[1:]]), ["controls.0 is I64", "expected floating-point"]),
    "three dimensions": (lambda t: named([t[0], t[1][0], t[2]]), ["controls.1 is of shape [16, 2, 2]", "[frames, "]),
    "other frames": (lambda t: named([t[0], t[1], t[2][:1]]), ["controls.2 holds 1 frames, expected 2"]),
    "no frames": (lambda t: named([c[:0] for c in t]), ["controls.0", "shape [0, 8, 4, 4]"]),
}


@pytest.mark.parametrize("case", BAD)
def test_an_unusable_file_is_one_error_that_names_it(tmp_path, case):
    make, words = BAD[case]
    save_file({name: value.contiguous() for name, value in make(tensors()).items()}, tmp_path / "bad.safetensors")
    with pytest.raises(UNetFileError, match="^bad.safetensors: ") as error:
        read_residuals(tmp_path / "bad.safetensors")
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize("content", [None, b"", b"<!doctype html>", "cut"])
def test_a_missing_or_damaged_file_is_an_error_that_names_it(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    if content == "cut":
        save_file(named(tensors()), path)
        content = path.read_bytes()[:-50]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UNetFileError, match="^bad.safetensors: (no such file|it is)") as error:
        read_residuals(path)
    assert content in (None, b"<!doctype html>") or str(error.value).endswith(" Save or download it again."), str(error.value)


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_residuals(tmp_path / "a.safetensors", ControlResiduals(tuple(tensors()), {"sigma": 2.5}))  # text alone is allowed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, size", [
    *((name, (9, 7)) for name in ("sd1", "sd1_tiny")), ("sd1", (8, 8)),
    *(pytest.param(name, (9, 7), marks=pytest.mark.slow) for name in ("sdxl", "koala_1b", "svd")),
])
def test_the_expected_shapes_are_those_of_the_skips(name, size):
    """Against what the network's own input blocks leave, on the meta device."""
    config = TINY[name]
    model = UNetModel(config, device="meta")
    seen = []
    for block in model.input_blocks:
        block[-1].register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[1:])))
    call = {
        "x": torch.empty(1, config.in_channels, *size, device="meta"), "timesteps": torch.empty(1, device="meta"),
        "context": torch.empty(1, 1, config.context_dim, device="meta"),
    }
    if config.adm_channels:
        call["y"] = torch.empty(1, config.adm_channels, device="meta")
    with torch.no_grad():
        model(**call)
    shapes = residual_shapes(config, *size)
    assert shapes == [*seen, seen[-1]]


def test_they_are_those_of_the_small_network():
    shapes = residual_shapes(small.SVD, 7, 5)
    assert [(3, *shape) for shape in shapes] == small.skip_shapes(3, 7, 5)
