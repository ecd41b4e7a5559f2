"""Every number format of GGUF files against the `gguf` package, the reference in Python, bit for bit."""

import gguf
import numpy as np
import pytest
import torch

from unet.weights import ggml_types
from unet.weights.ggml_types import BY_ID, TYPES, PackedTensor, dequantize, ggml_type

# of the package, where random bytes are NaN or infinite as a scale
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")

QUANTIZED = [row for row in TYPES.values() if not row.plain]
PLAIN = [row for row in TYPES.values() if row.plain]


def random_blocks(row, count=300):
    """Any bytes, so that scales are also infinite, not a number, subnormal and negative; first some of equal bytes."""
    blocks = np.random.default_rng(row.id).integers(0, 256, (count, row.bytes), dtype=np.uint8)
    for index, byte in enumerate((0, 255, 128, 127, 124)):
        blocks[index] = byte
    return blocks


def same_bits(found, expected):
    """Equal bit for bit, but that any NaN equals any other."""
    equal = found.view(np.uint32) == expected.view(np.uint32)
    return bool((equal | (np.isnan(found) & np.isnan(expected))).all())


def test_every_type_that_the_package_dequantizes_is_in_the_table():
    known = set()
    for kind in gguf.GGMLQuantizationType:
        try:
            gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8), kind)
            known.add(kind.name)
        except NotImplementedError:
            pass
    assert known <= TYPES.keys()


@pytest.mark.parametrize("row", TYPES.values(), ids=TYPES.keys())
def test_a_type_has_the_id_and_the_block_of_the_package(row):
    kind = gguf.GGMLQuantizationType[row.name]
    assert (row.id, (row.block, row.bytes)) == (kind.value, gguf.GGML_QUANT_SIZES[kind])
    assert ggml_type(row.name) is ggml_type(row.id) is BY_ID[row.id] is row


@pytest.mark.parametrize("row", QUANTIZED, ids=lambda row: row.name)
def test_quantized_blocks_have_the_values_of_the_package_bit_for_bit(row):
    blocks = random_blocks(row)
    expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType(row.id))
    found = dequantize(torch.from_numpy(blocks.reshape(-1)), row.name, expected.shape)
    assert found.dtype == torch.float32 and found.shape == expected.shape
    assert same_bits(found.numpy(), expected)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "IQ2_XS", "NVFP4"])
def test_chunks_change_no_value(name, monkeypatch):
    row, data = TYPES[name], torch.from_numpy(random_blocks(TYPES[name]).reshape(-1))
    whole = dequantize(data, row, (300, row.block))
    monkeypatch.setattr(ggml_types, "CHUNK_ON_CPU", 7 * row.block)  # the last chunk is a smaller one
    assert same_bits(dequantize(data, row, (300, row.block)).numpy(), whole.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["Q8_0", "Q5_1", "Q6_K", "IQ3_S"])
def test_another_dtype_is_the_fp32_value_rounded_once(name, dtype):
    row, data = TYPES[name], torch.from_numpy(random_blocks(TYPES[name]).reshape(-1))
    expected = dequantize(data, row, (-(-300 * row.block // 32), 32)).to(dtype)
    assert torch.equal(dequantize(data, row, expected.shape, dtype).view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("row", PLAIN, ids=lambda row: row.name)
def test_plain_numbers_keep_their_values_in_memory_of_their_own(row):
    values = torch.arange(-60, 60).to(row.plain).reshape(4, 5, 6)
    data = values.reshape(-1).view(torch.uint8)
    found = dequantize(data, row, (4, 5, 6), row.plain)
    assert torch.equal(found, values) and found.data_ptr() != values.data_ptr()


def test_a_packed_tensor_knows_its_values():
    row = TYPES["Q4_0"]
    data = torch.from_numpy(random_blocks(row)[5:].reshape(-1))
    packed = PackedTensor(data, row, (295, 4, 8, 1))
    expected = gguf.dequantize(data.numpy().reshape(-1, row.bytes), gguf.GGMLQuantizationType.Q4_0)
    assert same_bits(packed.dequantize().numpy(), expected.reshape(295, 4, 8, 1))
    assert packed.dequantize(torch.float16).dtype == torch.float16


def test_bytes_that_are_not_of_the_shape_are_refused():
    with pytest.raises(ValueError, match="33 bytes, expected 34 for Q8_0"):
        dequantize(torch.zeros(33, dtype=torch.uint8), "Q8_0", (4, 8))
    with pytest.raises(ValueError, match="no whole blocks of Q8_0"):
        dequantize(torch.zeros(34, dtype=torch.uint8), "Q8_0", (33,))
