"""The network as a whole: frames, broadcasting, sizes, errors, hooks."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from support import small
from support.families import FULL, inputs, relative_error
from unet import Hooks, UNetModel

TOLERANCE = 2e-5  # fp32; a batch of another size may take another kernel


def rows_of(call, rows):
    return {key: value[rows] for key, value in call.items()}


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 14])
def test_each_video_of_a_batch_equals_that_video_alone(frames):
    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=frames, batch=2)
    both = model(**call, num_frames=frames)
    assert both.shape == (2 * frames, 4, 8, 8)
    for rows in (slice(0, frames), slice(frames, None)):
        assert relative_error(both[rows], model(**rows_of(call, rows), num_frames=frames)) <= TOLERANCE


def test_frames_of_a_video_see_each_other():
    """Six rows as two videos, as one, and as six stills are three different results."""
    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=3, batch=2)
    results = [model(**call, num_frames=frames) for frames in (1, 3, 6)]
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert relative_error(results[i], results[j]) > 1e-3


def test_without_a_frame_count_the_batch_is_one_video():
    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=5)
    assert torch.equal(model(**call), model(**call, num_frames=5))


def test_images_do_not_care_about_the_frame_count():
    model = small.build(small.SD)
    call = inputs(small.SD, batch=4)
    assert torch.equal(model(**call, num_frames=2), model(**call, num_frames=1))


@pytest.mark.parametrize("num_frames", [0, 4, 7, -1])
def test_a_frame_count_that_does_not_divide_the_batch_is_an_error(num_frames):
    model = small.build(small.SVD)
    with pytest.raises(ValueError, match=rf"num_frames {num_frames}\b.*\b6 rows"):
        model(**inputs(small.SVD, frames=3, batch=2), num_frames=num_frames)


@pytest.mark.parametrize("name", ["timesteps", "context", "y", "c_concat"])
def test_one_row_serves_the_whole_batch(name):
    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=3, batch=2)
    call["x"], call["c_concat"] = call["x"].split(4, dim=1)
    row = call[name][:1]
    repeated = {**call, name: row.repeat(6, *[1] * (row.ndim - 1))}
    one = {**call, name: row}
    assert relative_error(model(**one, num_frames=3), model(**repeated, num_frames=3)) <= TOLERANCE


def test_one_class_index_serves_the_whole_batch():
    model = small.build(small.CLASSES)
    call = inputs(small.CLASSES, batch=3)
    one, repeated = torch.tensor([7]), torch.tensor([7, 7, 7])
    assert torch.equal(model(**{**call, "y": one}), model(**{**call, "y": repeated}))


def test_class_indices_pick_a_row_of_the_table():
    model = small.build(small.CLASSES)
    call = inputs(small.CLASSES, batch=2)
    both = model(**{**call, "y": torch.tensor([2, 9])})
    assert relative_error(both[1:], model(**{**rows_of(call, slice(1, 2)), "y": torch.tensor([9])})) <= TOLERANCE
    assert relative_error(both[1:], model(**{**rows_of(call, slice(1, 2)), "y": torch.tensor([2])})) > 1e-3


def test_a_timestep_of_no_dimensions_serves_the_whole_batch():
    model = small.build(small.SD)
    call = inputs(small.SD, batch=2)
    call["timesteps"] = torch.tensor(500.0)
    assert torch.equal(model(**call), model(**{**call, "timesteps": torch.tensor([500.0, 500.0])}))


def test_c_concat_joins_after_the_channels_of_x():
    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=3)
    joined = call.pop("x")
    latent, image = joined.split(4, dim=1)
    result = model(x=latent, c_concat=image, **call)
    assert torch.equal(result, model(x=joined, **call))
    assert relative_error(model(x=image, c_concat=latent, **call), result) > 1e-3


def test_a_first_convolution_that_was_widened_takes_as_many_channels_as_its_weight():
    wide, narrow = small.build(replace(small.SD, in_channels=6)), small.build(small.SD)
    weights = wide.state_dict()
    narrow.input_blocks[0][0].weight = nn.Parameter(weights.pop("input_blocks.0.0.weight"), requires_grad=False)
    narrow.load_state_dict(weights, strict=False)
    call = inputs(wide.config, batch=2)
    expected = wide(**call)
    latent, more = call.pop("x").split((4, 2), dim=1)
    assert torch.equal(narrow(latent, c_concat=more, **call), expected)
    with pytest.raises(ValueError, match="The UNet takes 6 input channels .*, found 8"):
        narrow(latent, c_concat=more.repeat(1, 2, 1, 1), **call)


@pytest.mark.parametrize("config, there", [(small.SD, False), (small.SVD, True), (small.CLASSES, True)])
def test_there_is_a_label_embedding_only_where_the_network_takes_y(config, there):
    assert hasattr(small.build(config), "label_emb") == there


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (8, 7), (5, 13)])
def test_odd_sizes_keep_their_size(size):
    model = small.build(small.SVD)
    assert model(**inputs(small.SVD, frames=3, size=size)).shape == (3, 4, *size)


@pytest.mark.parametrize(
    "name, shape, words",
    [
        ("x", (6, 4, 8, 8), ["8", "4", "channels"]),
        ("c_concat", (6, 3, 8, 8), ["8", "11", "channels"]),
        ("c_concat", (4, 0, 8, 8), ["c_concat", "4 rows", "1 or 6"]),
        ("context", None, ["context", "none", "24"]),
        ("context", (6, 1, 1024), ["context", "1024", "24"]),
        ("context", (2, 1, 24), ["context", "2 rows", "1 or 6"]),
        ("time_context", (2, 1, 24), ["time_context", "2 rows", "1 or 6"]),
        ("y", None, ["y", "none", "768"]),
        ("y", (6, 20), ["y", "20", "768"]),
        ("y", (3, 768), ["y", "3 rows", "1 or 6"]),
        ("timesteps", (2,), ["timesteps", "2 rows", "1 or 6"]),
    ],
)
def test_a_shape_that_does_not_fit_is_an_error_with_what_was_found_and_expected(name, shape, words):
    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=3, batch=2)
    call[name] = None if shape is None else torch.zeros(shape)
    with pytest.raises(ValueError) as error:
        model(**call, num_frames=3)
    for word in words:
        assert re.search(rf"(?<!\w){re.escape(word)}(?!\w)", str(error.value)), f"{word!r} is not in: {error.value}"


@pytest.mark.parametrize("name, millions", [("sd1", 859.521), ("sdxl", 2567.464), ("svd", 1524.623)])
def test_parameter_totals_are_the_published_ones(name, millions):
    total = sum(parameter.numel() for parameter in UNetModel(FULL[name], device="meta").parameters())
    assert round(total / 1e6, 3) == millions


ON_DISK = {
    "sd1": {
        "time_embed.0.weight": (1280, 320),
        "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
        "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
        "input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
        "input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "input_blocks.9.0.op.weight": (1280, 1280, 3, 3),
        "input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
        "middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": (10240, 1280),
        "output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.8.2.conv.weight": (640, 640, 3, 3),
        "output_blocks.11.1.proj_out.bias": (320,),
        "out.2.weight": (4, 320, 3, 3),
    },
    "sdxl": {
        "label_emb.0.0.weight": (1280, 2816),
        "label_emb.0.2.weight": (1280, 1280),
        "input_blocks.4.1.transformer_blocks.1.attn2.to_v.weight": (640, 2048),
        "input_blocks.8.1.transformer_blocks.9.norm3.weight": (1280,),
        "middle_block.1.transformer_blocks.9.attn1.to_out.0.bias": (1280,),
        "output_blocks.2.2.conv.weight": (1280, 1280, 3, 3),
        "output_blocks.5.2.conv.weight": (640, 640, 3, 3),
        "output_blocks.8.0.emb_layers.1.weight": (320, 1280),
    },
    "svd": {
        "input_blocks.0.0.weight": (320, 8, 3, 3),
        "label_emb.0.0.weight": (1280, 768),
        "input_blocks.1.0.time_stack.in_layers.2.weight": (320, 320, 3, 1, 1),
        "input_blocks.1.0.time_stack.emb_layers.1.weight": (320, 1280),
        "input_blocks.1.0.time_mixer.mix_factor": (1,),
        "input_blocks.1.1.proj_in.weight": (320, 320),
        "input_blocks.1.1.time_stack.0.norm_in.weight": (320,),
        "input_blocks.1.1.time_stack.0.ff_in.net.0.proj.weight": (2560, 320),
        "input_blocks.1.1.time_stack.0.ff_in.net.2.weight": (320, 1280),
        "input_blocks.1.1.time_stack.0.attn2.to_k.weight": (320, 1024),
        "input_blocks.1.1.time_pos_embed.0.weight": (1280, 320),
        "input_blocks.1.1.time_pos_embed.2.weight": (320, 1280),
        "input_blocks.1.1.time_mixer.mix_factor": (1,),
        "middle_block.2.time_stack.out_layers.3.weight": (1280, 1280, 3, 1, 1),
        "output_blocks.11.1.time_stack.0.ff.net.2.bias": (320,),
    },
}


@pytest.mark.parametrize("name", ON_DISK)
def test_tensors_have_the_names_and_shapes_of_published_files(name):
    shapes = {key: tuple(t.shape) for key, t in UNetModel(FULL[name], device="meta").state_dict().items()}
    assert {key: shapes.get(key) for key in ON_DISK[name]} == ON_DISK[name]


def test_the_default_hooks_change_nothing():
    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=3)
    assert torch.equal(model(**call, hooks=Hooks()), model(**call))


class Recorder(Hooks):
    """Records the places that the network reports."""

    attn2_watched = True

    def __init__(self):
        self.seen = []

    def enter_block(self, kind, index):
        self.seen.append(f"{kind} {index}")

    def enter_transformer(self, shape):
        self.seen.append(f"transformer {tuple(shape)}")

    def enter_depth(self, index):
        self.seen.append(f"depth {index}")

    def embedding(self, emb):
        self.seen.append(f"embedding {tuple(emb.shape)}")
        return emb

    def layer(self, layer, x, call):
        self.seen.append(type(layer).__name__)
        return super().layer(layer, x, call)

    def input_block(self, h):
        self.seen.append("input_block")
        return h

    def after_skip(self, h):
        self.seen.append("after_skip")
        return h

    def middle_block(self, h, emb):
        self.seen.append("middle_block")
        return h

    def output_block(self, h, skip):
        self.seen.append(f"output_block {h.shape[1]}+{skip.shape[1]}")
        return h, skip

    def attn1(self, block, x, context):
        self.seen.append(f"attn1 {tuple(x.shape)}{'' if context is None else ' context'}")
        return super().attn1(block, x, context)

    def between(self, x):
        self.seen.append("between")
        return x

    def attn2(self, block, x, context):
        self.seen.append(f"attn2 {tuple(context.shape)}")
        return super().attn2(block, x, context)

    def attention(self, q, k, v, heads):
        self.seen.append(f"attention {heads}")
        return super().attention(q, k, v, heads)


def test_hooks_are_called_in_the_order_of_the_network():
    """Two videos of three frames of 8x6: the blocks, their layers, and in each transformer first space, then time."""
    model = small.build(small.SVD)
    recorder = Recorder()
    model(**inputs(small.SVD, frames=3, batch=2, size=(8, 6)), num_frames=3, hooks=recorder)

    def layers(channels, height, width):
        heads = channels // 16
        space = [f"attn1 {(6, height * width, channels)}", f"attention {heads}", "between", "attn2 (6, 1, 24)"]
        time = [f"attn1 {(2 * height * width, 3, channels)}", f"attention {heads}", "between",
                f"attn2 {(2 * height * width, 1, 24)}"]
        return ["VideoResBlock", "SpatialVideoTransformer", f"transformer {(6, channels, height, width)}", "depth 0",
                *space, f"attention {heads}", *time, f"attention {heads}"]

    kept = ["input_block", "after_skip"]
    assert recorder.seen == [
        "embedding (6, 128)",
        "input 0", "Conv2d", *kept,
        "input 1", *layers(32, 8, 6), *kept,
        "input 2", "Downsample", *kept,
        "input 3", *layers(64, 4, 3), *kept,
        "middle 0", *layers(64, 4, 3), "VideoResBlock", "middle_block",
        "output 0", "output_block 64+64", *layers(64, 4, 3),
        "output 1", "output_block 64+32", *layers(64, 4, 3), "Upsample",
        "output 2", "output_block 64+32", *layers(32, 8, 6),
        "output 3", "output_block 32+32", *layers(32, 8, 6),
    ]


def test_the_label_embedding_is_added_after_the_embedding_hook():
    """A hook that returns zeros leaves the label embedding alone, so timesteps no longer matter and y still does."""

    class NoTimestep(Hooks):
        def embedding(self, emb):
            return torch.zeros_like(emb)

    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=3)
    result = model(**call, hooks=NoTimestep())
    assert torch.equal(model(**{**call, "timesteps": torch.zeros(3)}, hooks=NoTimestep()), result)
    assert relative_error(model(**{**call, "y": -call["y"]}, hooks=NoTimestep()), result) > 1e-3


def test_a_hook_may_leave_a_skip_out():
    """The hook joins h and skip itself and returns no skip: the same network."""

    class Joined(Hooks):
        def output_block(self, h, skip):
            return torch.cat([h, skip], dim=1), None

    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=3, size=(7, 5))
    assert torch.equal(model(**call, hooks=Joined()), model(**call))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [small.SVD, small.SD], ids=["svd", "sd"])
def test_half_precision_runs_on_the_cpu(config, dtype):
    call = inputs(config, frames=3)
    half = {key: value.to(dtype) for key, value in call.items()}
    result = small.build(config, dtype)(**half)
    assert result.dtype == dtype
    assert relative_error(result, small.build(config)(**call)) <= (0.01 if dtype == torch.float16 else 0.08)


def test_no_input_is_changed_in_place():
    model = small.build(small.SVD)
    call = inputs(small.SVD, frames=3, batch=2)
    call["x"], call["c_concat"] = (half.contiguous() for half in call["x"].split(4, dim=1))
    call["time_context"] = torch.randn(6, 1, 24)
    call["image_only"] = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    before = {key: value.clone() for key, value in call.items()}
    controls = small.controls(6)
    controls_before = [control.clone() for control in controls]
    model(**call, num_frames=3, controls=controls, control_strength=2.0)
    assert [key for key in call if not torch.equal(call[key], before[key])] == []
    assert all(torch.equal(old, new) for old, new in zip(controls_before, controls, strict=True))
