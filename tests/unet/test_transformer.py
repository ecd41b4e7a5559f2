"""The transformers against their formulas in fp64 (formulas.py)."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from support import formulas
from support.families import relative_error
from support.formulas import fill, randn
from unet import transformer
from unet.hooks import Call, Hooks

PLAIN = {"operations": nn, "factory": {"dtype": None, "device": None}}


def test_geglu_gates_with_the_exact_gelu():
    layer, w = fill(transformer.GEGLU(8, 12, **PLAIN))
    x = randn(2, 5, 8) * 3
    value, gate = formulas.linear(x, w, "proj").chunk(2, -1)
    assert relative_error(layer(x), value * formulas.gelu(gate)) <= 1e-12


@pytest.mark.parametrize("heads, dim_head", [(1, 16), (2, 8), (8, 5)])
def test_cross_attention_scales_by_the_root_of_the_head_width(heads, dim_head):
    layer, w = fill(transformer.CrossAttention(12, 10, heads, dim_head, **PLAIN))
    x, context = randn(2, 6, 12) * 4, randn(2, 3, 10, seed=2) * 4
    assert relative_error(layer(x, context), formulas.cross_attention(x, context, w, heads)) <= 1e-10


def test_cross_attention_attends_to_its_input_where_there_is_no_context():
    layer, w = fill(transformer.CrossAttention(12, 12, 2, 6, **PLAIN))
    x = randn(2, 6, 12)
    assert relative_error(layer(x), formulas.cross_attention(x, x, w, 2)) <= 1e-10


def test_cross_attention_takes_values_of_their_own():
    layer, w = fill(transformer.CrossAttention(12, 10, 2, 6, **PLAIN))
    x, context, value = randn(2, 6, 12), randn(2, 3, 10, seed=2), randn(2, 3, 10, seed=3)
    q, k, v = (formulas.linear(z, w, name) for z, name in ((x, "to_q"), (context, "to_k"), (value, "to_v")))
    expected = formulas.linear(formulas.attention(q, k, v, 2), w, "to_out.0")
    assert relative_error(layer(x, context, value), expected) <= 1e-10


@pytest.mark.parametrize("self_attention", [True, False])
@pytest.mark.parametrize("ff_in", [True, False])
@pytest.mark.parametrize("keys", [1, 3])
def test_transformer_block_equals_its_formula(keys, ff_in, self_attention):
    block, w = fill(
        transformer.BasicTransformerBlock(16, 2, 8, 10, ff_in=ff_in, self_attention=self_attention, **PLAIN)
    )
    x, context = randn(2, 5, 16) * 0.01, randn(2, keys, 10, seed=2)  # small, so that the eps of the norms shows
    expected = formulas.transformer_block(x, context, w, 2, self_attention)
    assert relative_error(block(x, context, Call(None)), expected) <= 1e-10


def test_a_row_of_the_context_serves_as_many_rows_as_come_to_it():
    block, _ = fill(transformer.BasicTransformerBlock(16, 2, 8, 10, self_attention=False, **PLAIN))
    x = randn(6, 5, 16)
    for keys in (1, 3):
        context = randn(2, keys, 10, seed=2)
        expected = block(x, context.repeat_interleave(3, dim=0), Call(None))
        assert relative_error(block(x, context, Call(None)), expected) <= 1e-12


class Averaging(Hooks):
    """Attention that takes all keys alike, of which no operation is counted."""

    def __init__(self, attn2_watched):
        self.attn2_watched = attn2_watched

    def attention(self, q, k, v, heads):
        return v.mean(1, keepdim=True).expand_as(q)


def test_attention_to_one_key_computes_no_queries_and_no_keys():
    layer, _ = video_transformer()
    x, context = randn(6, 32, 2, 3), randn(6, 1, 10, seed=2)

    def run(watched):
        with FlopCounterMode(display=False) as counter:
            out = layer(x, Call(None, context, num_frames=3, hooks=Averaging(watched)))
        return out, counter.get_total_flops()

    (short, few), (full, many) = run(False), run(True)
    assert relative_error(short, full) <= 1e-12
    tokens, rows_in_space, rows_over_time, pixels = 6 * 2 * 3, 6, 2, 2 * 3
    to_q = to_out = 2 * 32 * 32
    to_k = to_v = 2 * 10 * 32
    in_full = 2 * tokens * (to_q + to_out) + (rows_in_space + rows_over_time * pixels) * (to_k + to_v)
    assert many - few == in_full - (rows_in_space + rows_over_time) * (to_v + to_out)


@pytest.mark.parametrize("place", ["norm2", "attn2", "attn2.to_q", "attn2.to_k", "attn2.to_out.0"])
def test_forward_hooks_see_attention_to_one_key_in_full(place):
    block, _ = fill(transformer.BasicTransformerBlock(16, 2, 8, 10, **PLAIN))
    x, context, seen = randn(6, 5, 16), randn(2, 1, 10, seed=2), []
    expected = block(x, context, Call(None))
    for register in ("register_forward_hook", "register_forward_pre_hook"):
        handle = getattr(block.get_submodule(place), register)(lambda module, args, *out: seen.append(args[0].shape[0]))
        assert relative_error(block(x, context, Call(None)), expected) <= 1e-12
        handle.remove()
    assert seen == [6, 6]


def test_another_module_or_forward_in_attn2_is_called_with_one_key():
    block, _ = fill(transformer.BasicTransformerBlock(16, 2, 8, 10, **PLAIN))
    x, context = randn(6, 5, 16), randn(2, 1, 10, seed=2)
    expected = block(x, context, Call(None))
    own, seen = block.attn2, []

    def forward(x, context, value=None, hooks=None):
        seen.append((x.shape[0], context.shape[0]))
        return own(x, context, value, hooks)

    class Other(nn.Module):
        def forward(self, *args, **kwargs):
            return forward(*args, **kwargs)

    block.attn2 = Other()
    assert relative_error(block(x, context, Call(None)), expected) <= 1e-12
    block.attn2 = own
    to_q = own.to_q.forward
    own.to_q.forward = lambda x: seen.append("to_q") or to_q(x)
    assert relative_error(block(x, context, Call(None)), expected) <= 1e-12
    assert seen == [(6, 6), "to_q"]


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("linear", [True, False], ids=["linear", "1x1 convolution"])
def test_spatial_transformer_equals_its_formula(linear, depth):
    layer, w = fill(transformer.SpatialTransformer(32, 2, 16, depth, 10, linear=linear, **PLAIN))
    x, context = randn(2, 32, 3, 4) * 0.003, randn(2, 5, 10, seed=2)
    expected = formulas.spatial_transformer(x, context, w, 2, depth)
    assert relative_error(layer(x, Call(None, context)), expected) <= 1e-10


def video_transformer(depth=1):
    return fill(transformer.SpatialVideoTransformer(32, 2, 16, depth, 10, linear=True, **PLAIN))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("frames, batch, keys", [(1, 2, 3), (2, 1, 1), (3, 2, 3), (5, 2, 1)])
def test_video_transformer_equals_its_formula(frames, batch, keys, depth):
    layer, w = video_transformer(depth)
    x, context = randn(batch * frames, 32, 2, 3), randn(batch * frames, keys, 10, seed=2)
    expected = formulas.video_transformer(x, context, w, 2, depth, frames)
    assert relative_error(layer(x, Call(None, context, num_frames=frames)), expected) <= 1e-6  # frame positions are fp32


def test_video_transformer_takes_a_time_context_of_its_own():
    layer, w = video_transformer()
    x, context, time_context = randn(6, 32, 2, 2), randn(6, 3, 10, seed=2), randn(6, 3, 10, seed=3)
    expected = formulas.video_transformer(x, context, w, 2, 1, 3, time_context)
    assert relative_error(layer(x, Call(None, context, time_context, 3)), expected) <= 1e-6


def test_blocks_over_time_see_the_context_of_the_first_frame_alone():
    layer, _ = video_transformer()
    x, context, time_context = randn(6, 32, 2, 2), randn(6, 3, 10, seed=2), randn(6, 3, 10, seed=3)
    others = time_context.clone()
    others[[1, 2, 4, 5]] = 7.0
    first = time_context.clone()
    first[3] = 7.0
    out = layer(x, Call(None, context, time_context, 3))
    assert torch.equal(layer(x, Call(None, context, others, 3)), out)
    changed = layer(x, Call(None, context, first, 3))
    assert torch.equal(changed[:3], out[:3])
    assert relative_error(changed[3:], out[3:]) > 1e-3


def test_videos_of_a_batch_do_not_mix_in_a_video_transformer():
    layer, _ = video_transformer()
    x, context = randn(6, 32, 2, 3), randn(6, 3, 10, seed=2)
    both = layer(x, Call(None, context, num_frames=3))
    for rows in (slice(0, 3), slice(3, 6)):
        assert relative_error(both[rows], layer(x[rows], Call(None, context[rows], num_frames=3))) <= 1e-12


def test_still_images_skip_the_blocks_over_time():
    layer, w = video_transformer()
    x, context = randn(3, 32, 2, 2), randn(3, 3, 10, seed=2)
    out = layer(x, Call(None, context, num_frames=3, image_only=torch.ones(3)))
    assert relative_error(out, formulas.spatial_transformer(x, context, w, 2, 1)) <= 1e-10
