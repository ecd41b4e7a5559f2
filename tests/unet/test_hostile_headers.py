"""Damaged and hostile safetensors headers: each is one short error of ours, at once and in little memory."""

import json
import math
import signal
import struct
import tracemalloc
from functools import cache

import pytest
import torch
from safetensors.torch import save_file

from support import controlnexts
from support.families import PREFIX, TINY
from support.public_controlnets import public_tensors
from unet import (
    UNetFileError,
    UNetModel,
    find_controlnet,
    load_unet,
    open_checkpoint,
    open_controlnet,
    open_controlnext,
    read_residuals,
)

BYTES = {
    "F32": 4, "C64": 8, "I64": 8, "F16": 2, "I8": 1, "U8": 1, "BOOL": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F4": 0.5, "F6_E2M3": 0.75,
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "odd.safetensors"


@pytest.fixture(autouse=True)
def in_time():
    """Far more than any of it takes: what goes through all names for each block takes minutes."""
    def late(*_):
        raise TimeoutError("it takes too long")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    yield
    signal.alarm(0)


def write(path, header: bytes, data: int = 0):
    """A file with this header and so many bytes of data, which take no room."""
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + data)


def listed(shapes: dict, dtype="F32") -> tuple[bytes, int]:
    """(header, bytes of data) for tensors of these shapes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + int(math.prod(shape) * BYTES[dtype])
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return json.dumps(header).encode(), end


def refused(opener, path) -> str:
    with pytest.raises(UNetFileError, match="^odd.safetensors: ") as error:
        opener(path)
    assert len(str(error.value)) <= 1000 and str(error.value).isprintable()
    return str(error.value)


def one(offsets: str) -> bytes:
    return b'{"a":{"dtype":"F32","shape":[1],"data_offsets":%s}}' % offsets.encode()


SENSELESS = {
    "no offsets": one("[]"), "one offset": one("[0]"), "text": one('[0,"x"]'), "null": one("[0,null]"), "list": one("[0,[1]]"),
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge number": one("[0,1" + "0" * 5000 + "]"),
    "infinite": one("[0,1e999]"),
    "cut JSON": b'{"a":', "no UTF-8": b'{"\xff":1}', "a number": b'{"a":5}',
}
ODD_METADATA = {  # header -> what the message says of it
    b'{"__metadata__":{"a":5}}': "5 under 'a'", b'{"__metadata__" : {"b":"x", "a": {"c": [1]}}}': "{'c': [1]} under 'a'",
    b'{"__metadata__":{"a":null}}': "None under 'a'", b'{"__metadata__":{"a":true}}': "True under 'a'",
    b'{"__metadata__":[1]}': "[1]",
}


@pytest.mark.parametrize("opener", [open_checkpoint, find_controlnet, read_residuals])
@pytest.mark.parametrize("header", SENSELESS)
def test_a_senseless_header_is_refused(header, opener, path):
    write(path, SENSELESS[header])
    assert "it is not a safetensors file" in refused(opener, path)


@pytest.mark.parametrize("opener", [open_checkpoint, find_controlnet, read_residuals])
@pytest.mark.parametrize("header", ODD_METADATA)
def test_metadata_that_are_no_texts_are_named(header, opener, path):
    """The file is whole: another download would bring the same."""
    write(path, header)
    message = refused(opener, path)
    assert message == f"odd.safetensors: its metadata hold {ODD_METADATA[header]}, expected texts alone. Save it again with each " \
        "value as a text (str)."


@pytest.mark.parametrize("metadata", [
    "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000, '{"a": 1' + "0" * 5000 + "}", f"[{'[],' * 600_000}[]]",
], ids=["deep list", "deep names", "huge number", "many lists"])
def test_metadata_that_are_a_bomb_are_refused_at_once(metadata, path):
    write(path, f'{{"__metadata__":{metadata}}}'.encode())
    assert "it is not a safetensors file" in refused(open_checkpoint, path)


@pytest.mark.parametrize("opener", [open_checkpoint, find_controlnet, read_residuals])
def test_a_huge_header_is_not_read(opener, path):
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 300 * 2**20 - 16) + b"{")
        file.truncate(300 * 2**20)
    tracemalloc.start()
    refused(opener, path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20 * 2**20


LONG = {  # headers of over 2 MiB -> are they refused
    "tensors": (",".join(f'"t{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(60_000)), True),
    "dimensions": ('"a":{"dtype":"F32","shape":[0' + ",1" * 1_500_000 + '],"data_offsets":[0,0]}', True),
    "texts of metadata": ('"__metadata__":{' + ",".join(f'"{i}":""' for i in range(300_000)) + "}", True),
    "a long text of metadata": ('"__metadata__":{"workflow":"' + '{\\"a\\": [1, 2], \\"\\\\\\\\\\": []}' * 100_000 + '"}', False),
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("opener", [open_checkpoint, find_controlnet, read_residuals])
def test_a_header_that_lists_too_much_is_refused_before_it_is_parsed(opener, kind, path):
    body, too_much = LONG[kind]
    write(path, f"{{{body}}}".encode())
    if not too_much and opener is find_controlnet:
        assert opener(path) is None
    else:
        assert ("lists more than any model" in refused(opener, path)) is too_much


MANY = {  # kinds of blocks, by the thousand
    open_checkpoint: ["input_blocks.{}.0.op.x", "input_blocks.{}.0.out_layers.3.weight", "output_blocks.{}.1.x"],
    open_controlnet: ["down_blocks.{}.resnets.0.x", "down_blocks.0.resnets.{}.x", "down_blocks.{}.downsamplers.0.conv.x"],
    read_residuals: ["controls.{}"],
}
BEGIN = {
    open_checkpoint: {"input_blocks.0.0.weight": (64, 4, 1, 1), "output_blocks.0.0.x": (1,)},
    open_controlnet: {"controlnet_mid_block.x": (1,), "a.temporal_res_block.b": (1,), "conv_in.weight": (64, 4, 1, 1)},
    read_residuals: {},
}


@pytest.mark.parametrize("opener, name", [(opener, name) for opener, names in MANY.items() for name in names])
def test_thousands_of_blocks_are_refused_at_once(opener, name, path):
    write(path, *listed(BEGIN[opener] | {name.format(index): (64, 1) for index in range(1, 20_000)}))
    refused(opener, path)


def sd1(**more) -> dict:
    attention = "input_blocks.1.1.transformer_blocks.0"
    return {
        "input_blocks.0.0.weight": (64, 4, 3, 3), "input_blocks.1.0.out_layers.3.weight": (64, 64, 3, 3),
        "out.2.weight": (4, 64, 3, 3), "output_blocks.0.0.x": (1,), "middle_block.0.x": (1,),
        f"{attention}.attn1.to_q.weight": (64, 64), f"{attention}.attn1.to_k.weight": (64, 64),
        f"{attention}.attn2.to_k.weight": (64, 768), **more,
    }


@pytest.mark.parametrize("index", [2, 10**4, 10**9, "9" * 5000, "٣"])
@pytest.mark.parametrize("layer", ["input_blocks.1", "middle_block", "output_blocks.0"])
def test_a_gap_before_a_transformer_block_is_named(layer, index, path):
    write(path, *listed(sd1(**{f"{layer}.1.transformer_blocks.{index}.x": (1,)})))
    missing = 1 if layer == "input_blocks.1" else 0
    assert f"{layer}.1.transformer_blocks.{missing} is missing: the file is damaged" in refused(open_checkpoint, path)


def test_more_blocks_than_any_network_of_the_family_has_are_refused(path):
    write(path, *listed(sd1(**{f"input_blocks.1.1.transformer_blocks.{index}.x": (1,) for index in range(600)})))
    assert "it has 601 blocks, expected 500 at most" in refused(open_checkpoint, path)


WIDTHS = {
    "no channels": ("input_blocks.0.0.weight", (0, 4, 3, 3)), "no multiple of 32": ("input_blocks.0.0.weight", (33, 4, 3, 3)),
    "as wide as no memory": ("input_blocks.0.0.weight", (2**62, 4, 3, 0)), "of 2**63": ("out.2.weight", (2**63, 0, 3, 3)),
    "a context of 2**40": ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (0, 2**40)),
}


@pytest.mark.parametrize("case", WIDTHS)
def test_widths_that_no_network_has_are_refused(case, path):
    name, shape = WIDTHS[case]
    write(path, *listed(unet_shapes("") | {name: shape}))
    refused(open_checkpoint, path)


@pytest.mark.parametrize("shape", [(), (16,), (0, 3, 3, 3)])
@pytest.mark.parametrize("name", ["conv_in", "blocks.1"])
def test_a_hint_net_of_odd_shapes_is_refused(name, shape, path):
    write(path, *listed(net_shapes() | {f"controlnet_cond_embedding.{name}.weight": shape}))
    assert f"controlnet_cond_embedding.{name}.weight" in refused(open_controlnet, path)


@pytest.mark.parametrize(
    "name", ["x" * 10**6, "\x1b[2J\n" * 1000, "input_blocks." + "7" * 10**6 + ".0.x", "controls." + "1" * 5000]
)
@pytest.mark.parametrize("opener", [open_checkpoint, open_controlnet, open_controlnext, read_residuals])
def test_names_of_any_length_and_content_make_short_messages(opener, name, path):
    write(path, *listed({name: (1,), **sd1()}))
    refused(opener, path)


# dtypes

@cache
def unet_shapes(prefix=PREFIX):
    return {prefix + name: tuple(t.shape) for name, t in UNetModel(TINY["sd1_tiny"], device="meta").state_dict().items()}


@cache
def net_shapes():
    return {name: tuple(tensor.shape) for name, tensor in public_tensors().items()}


@cache
def controlnext_shapes():
    return {name: tuple(tensor.shape) for name, tensor in controlnexts.tensors(2).items()}


def residual_shapes():
    return {"controls.0": (1, 4, 4, 4), "controls.1": (1, 4, 4, 4)}


HOLDERS = {
    open_checkpoint: unet_shapes, load_unet: unet_shapes, open_controlnet: net_shapes, open_controlnext: controlnext_shapes,
    read_residuals: residual_shapes,
}
NO_WEIGHTS = ["BOOL", "U8", "I8", "I64", "C64", "F4", "F6_E2M3", "F8_E8M0", "F8_E4M3FNUZ"]


@pytest.mark.parametrize("dtype", NO_WEIGHTS)
@pytest.mark.parametrize("opener", HOLDERS, ids=lambda opener: opener.__name__)
def test_weights_that_are_no_plain_floats_are_refused_by_name(opener, dtype, path):
    write(path, *listed(HOLDERS[opener](), dtype))
    assert f" is {dtype}, expected floating-point numbers: fp32, fp16, bf16, fp64, or fp8" in refused(opener, path)


def test_a_single_tensor_of_integers_is_named(path):
    weights = {name: torch.zeros(shape) for name, shape in unet_shapes().items()}
    save_file(weights | {PREFIX + "out.2.bias": torch.zeros(4, dtype=torch.int32)}, path)
    assert f"{PREFIX}out.2.bias is I32, expected floating-point" in refused(open_checkpoint, path)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_integers_next_to_the_network_are_no_matter(dtype, path):
    weights = {name: torch.zeros(shape) for name, shape in unet_shapes().items()}
    save_file(weights | {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1, 77, dtype=dtype)}, path)
    assert load_unet(path).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
def test_a_pickled_net_of_no_plain_floats_is_refused_by_name(dtype, tmp_path):
    torch.save({name: torch.zeros(shape, dtype=dtype) for name, shape in net_shapes().items()}, tmp_path / "net.pth")
    with pytest.raises(UNetFileError, match=rf"^net.pth: .* is {str(dtype).removeprefix('torch.')}, expected floating-point"):
        open_controlnet(tmp_path / "net.pth")
