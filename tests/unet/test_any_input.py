"""Any header, config, index or list of shapes gives a right result or one short error of ours, at once and in little memory.

The inputs are drawn by hypothesis, the same in every run: near to what is right, so that they come far.
"""

import json
import math
import resource
import signal
import struct
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.families import PREFIX, TINY
from support.ggufs import gguf, list_pair, pair, shape_pair, tensor, text_pair
from unet import UNetFileError, UNetModel, detect, find_controlnet, open_checkpoint, open_controlnet, read_residuals
from unet.weights.checkpoint import expected_shapes
from unet.weights.detect import HEAD_CHANNELS
from unet.weights.lora_file import open_lora

MOST_MEMORY = 200 * 2**20  # bytes
BITS = {"F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "U8": 8, "I8": 8, "I64": 64, "F4": 4}
OPENERS = (open_checkpoint, find_controlnet, open_controlnet, open_lora, read_residuals)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("any") / "odd.safetensors"


@pytest.fixture(autouse=True)
def in_little_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < MOST_MEMORY


def accepted(function, *arguments):
    """What it gives; None where it ends in our error. It may take 5 s."""
    def late(*_):
        raise TimeoutError("it takes too long")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(30)  # far more than 5 s of the CPU, on a busy machine
    try:
        return function(*arguments)
    except UNetFileError as error:
        assert len(str(error)) <= 1000 and str(error).isprintable()
        return None
    finally:
        signal.alarm(0)


# What files hold: values that are nearly right

DIMS = st.sampled_from([0, 1, 2, 3, 4, 8, 16, 31, 32, 64, 320, 768, 1024, 2**31, 2**40, 2**62])
SHAPES = st.lists(DIMS, max_size=5).map(tuple)
WORDS = st.sampled_from([
    "input_blocks", "output_blocks", "middle_block", "down_blocks", "up_blocks", "mid_block", "resnets", "attentions", "time_stack",
    "0", "1", "2", "3", "7", "999", "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "proj_in", "op", "conv", "out_layers",
    "in_layers", "weight", "bias", "controls", "label_emb", "out", "controlnet_mid_block", "controlnet_down_blocks",
    "controlnet_cond_embedding", "blocks", "conv_in", "lora_up", "lora_A", "alpha", "unet", "lora_unet_x", "base_model", "model",
    "diffusion_model", "weight_scale", "comfy_quant", "scaled_fp8", "absmax", "quant_state", "bitsandbytes__nf4",
    "temporal_res_block", "٣", "", "\n",
])
NAMES = st.lists(WORDS, min_size=1, max_size=7).map(".".join)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2**70, 2**70), st.floats(), st.text(max_size=5), DIMS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4), max_leaves=8,
)


@cache
def own_shapes(name="sd1_tiny") -> dict:
    return {PREFIX + key: tuple(value.shape) for key, value in UNetModel(TINY[name], device="meta").state_dict().items()}


@st.composite
def damaged(draw, shapes: dict) -> dict:
    """Shapes of a network of which a few are missing, under another name, or of another shape."""
    made = dict(shapes)
    for name in draw(st.lists(st.sampled_from(sorted(shapes)), max_size=4, unique=True)):
        what = draw(st.integers(0, 3))
        shape = made.pop(name)
        parts = name.split(".")
        at = draw(st.integers(0, len(parts) - 1))
        if what == 1:
            made[".".join([*parts[:at], draw(WORDS), *parts[at + 1:]])] = shape
        elif what == 2:
            made[name] = draw(SHAPES)
        elif what == 3 and shape:
            at = draw(st.integers(0, len(shape) - 1))
            made[name] = (*shape[:at], draw(DIMS), *shape[at + 1:])
    return made


@pytest.mark.parametrize("family, examples", [pytest.param("sd1_tiny", 10, marks=pytest.mark.slow), ("svd", 4)])
def test_what_is_detected_of_any_shapes_is_right_or_refused(family, examples):
    @settings(max_examples=examples)
    @given(damaged(own_shapes(family)), st.dictionaries(st.just(HEAD_CHANNELS), st.text(max_size=3) | st.just("64")))
    def check(shapes, metadata):
        found = accepted(detect, shapes, metadata)
        if found is not None:
            config, _, names = found
            expected = accepted(expected_shapes, config) or {}
            if {name: shapes[on_disk] for name, on_disk in names.items()} == expected and not metadata:
                assert config == TINY[family] or shapes != own_shapes(family)

    check()


def listed(tensors, metadata=None) -> bytes:
    """A sound header, and no values: they are a hole in the file."""
    rows, end = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * BITS[dtype] // 8
        rows[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    return json.dumps(rows).encode()


def write(path, header: bytes, length: int | None = None, data: int = 2**16) -> None:
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header) if length is None else length) + header)
        file.truncate(8 + len(header) + data)


ROWS = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "F16", "U8", "F4", "X"]) | JSON, "shape": SHAPES | JSON},
    optional={"data_offsets": st.lists(DIMS) | JSON},
)
SOUND = st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 8), max_size=4))  # dtype and shape
HEADERS = st.one_of(
    st.dictionaries(NAMES, ROWS | JSON, max_size=5).map(lambda rows: json.dumps(rows).encode()),
    st.dictionaries(NAMES, SOUND, max_size=8).map(listed),
    st.tuples(JSON, JSON).map(lambda both: json.dumps({"__metadata__": both[0], "a": both[1]}).encode()),
    st.binary(max_size=40),
)


@settings(max_examples=100)
@given(HEADERS, st.none() | DIMS)
def test_any_safetensors_header_is_read_or_refused(path, header, length):
    write(path, header, length)
    for opener in OPENERS:
        accepted(opener, path)


RESIDUALS = st.dictionaries(
    st.integers(0, 4).map(lambda index: f"controls.{index}") | NAMES,
    st.tuples(st.sampled_from(["F32", "F16", "F8_E4M3", "I64"]), st.lists(st.integers(0, 3), min_size=3, max_size=5)), max_size=5,
)


@settings(max_examples=50)
@given(RESIDUALS, st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
def test_any_residual_file_is_read_as_it_is_or_refused(path, tensors, metadata):
    write(path, listed(tensors, metadata))
    found = accepted(read_residuals, path)
    if found is not None:
        names = [f"controls.{index}" for index in range(5)]
        shapes = [list(tensors[name][1]) for name in names if name in tensors]
        assert [list(control.shape) for control in found.controls] == shapes and found.about == metadata
        assert not any(control.any() for control in found.controls)


LORA_ENDS = st.sampled_from([
    ".lora_up.weight", ".lora_down.weight", ".alpha", ".hada_w1_a", ".lokr_w1", ".diff", ".dora_scale", ".lora_A.weight",
    ".oft_blocks",
])
LORA = st.dictionaries(
    st.tuples(st.sampled_from(["lora_unet_a", "unet.b", "lora_te_c", "x"]), LORA_ENDS).map("".join),
    st.tuples(st.sampled_from(["F32", "F16", "I64"]), st.lists(st.integers(0, 4), max_size=4)), max_size=6,
)


@settings(max_examples=60)
@given(LORA, JSON | st.fixed_dictionaries({"lora_alpha": JSON, "alpha_pattern": JSON}))
def test_any_lora_is_read_as_it_is_or_refused(path, tensors, settings):
    write(path, listed(tensors, {"lora_adapter_metadata": json.dumps(settings)}))
    found = accepted(open_lora, path)
    for layer in found.layers if found else ():
        assert {tensors[key][1] == list(found.shapes[key]) for key in found.layers[layer].values()} == {True}
        found.read(layer)


CONFIG = st.fixed_dictionaries({}, optional={
    "_class_name": st.sampled_from(["UNet2DConditionModel", "ControlNetSDVModel"]) | JSON,
    "block_out_channels": st.just([32, 64, 128]) | JSON, "in_channels": st.just(4) | JSON,
    "cross_attention_dim": st.just(768) | JSON, "num_attention_heads": JSON, "attention_head_dim": JSON, "prediction_type": JSON,
})


@settings(max_examples=60)
@given(CONFIG.map(json.dumps) | st.text(max_size=20), CONFIG.map(json.dumps))
def test_any_configs_next_to_the_weights_are_read_or_refused(tmp_path_factory, config, schedule):
    """The network's own, which says the heads, and that of the scheduler."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "unet").mkdir()
    (folder / "scheduler").mkdir()
    (folder / "unet" / "config.json").write_text(config, encoding="utf-8", errors="replace")
    (folder / "scheduler" / "scheduler_config.json").write_text(schedule, encoding="utf-8")
    shapes = {name: ("F16", shape) for name, shape in own_shapes().items()}
    write(folder / "unet" / "diffusion_pytorch_model.safetensors", listed(shapes), data=2**25)
    found = accepted(open_checkpoint, folder)
    if found is not None:
        heads, width = found.config.num_heads, found.config.head_channels
        assert (heads is None) != (width is None) and 32 % (heads or width) == 0


FILES = st.sampled_from(["a", "odd.safetensors", "../a", "."])
INDEX = st.fixed_dictionaries({"weight_map": st.dictionaries(NAMES, JSON | FILES) | JSON})


@settings(max_examples=50)
@given((INDEX | JSON).map(json.dumps))
def test_any_index_of_shards_is_refused_where_its_parts_are_no_weights(path, index):
    (path.parent / "a").write_bytes(b"no weights")
    (path.parent / "m.index.json").write_text(index)
    write(path, b"{}")
    assert accepted(open_checkpoint, path.parent / "m.index.json") is None


NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 8, 12, 24, 30, 32, 39, 40, 64, 256, 2**16, 2**31, 2**32 - 1])
PAIRS = st.one_of(
    st.tuples(NAMES, NAMES).map(lambda both: text_pair(*both)),
    st.tuples(NAMES, NUMBERS, st.binary(max_size=16)).map(lambda all_: pair(*all_)),
    st.tuples(NAMES, st.lists(st.integers(-2**31, 2**31 - 1), max_size=6)).map(lambda both: shape_pair(*both)),
    st.tuples(NAMES, NUMBERS, st.binary(max_size=16), NUMBERS).map(lambda all_: list_pair(*all_)),
    NUMBERS.map(lambda value: pair("general.alignment", 4, struct.pack("<I", value))),
)
TENSORS = st.tuples(NAMES, st.lists(NUMBERS, max_size=6), NUMBERS, NUMBERS).map(lambda all_: tensor(*all_))


@settings(max_examples=150)
@given(st.lists(TENSORS, max_size=3), st.lists(PAIRS, max_size=3), st.sampled_from([2, 3, 3, 3, 1]), st.none() | NUMBERS)
def test_any_gguf_header_is_read_or_refused(path, tensors, pairs, version, count):
    path.write_bytes(gguf(tensors, pairs, bytes(4096), version=version, tensor_count=count))
    for opener in OPENERS:
        accepted(opener, path)
