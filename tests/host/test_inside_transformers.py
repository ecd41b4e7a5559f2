"""What other packs do inside of the transformers, where they look for the host's own classes: as in the host's network."""

from types import MethodType
from unittest.mock import patch

import pytest
import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.diffusionmodules import openaimodel

from support.families import relative_error
from support.oracle import SMALL, Pair, prompts, sample

PLACE = "diffusion_model.output_blocks.3.1.transformer_blocks.0"


@pytest.fixture(scope="module", params=["svd", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd1", "sdxl"))])
def pair(request, pack, tmp_path_factory):
    return Pair(pack, tmp_path_factory.mktemp("packs"), request.param)


class Doubled(torch.nn.Module):
    """An attention module of a pack, with the host's signature."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, context=None, value=None, mask=None, transformer_options={}):  # noqa: B006  # the host's default
        assert "block_index" in transformer_options
        return 2 * self.inner(x, context, value, transformer_options=transformer_options)


class Halved(torch.nn.Module):
    """A transformer block of a pack, with the host's signature."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.attn1, self.attn2 = inner.attn1, inner.attn2

    def forward(self, x, context=None, transformer_options={}):  # noqa: B006  # the host's default
        assert transformer_options["block"] == ("output", 3) and context.shape[0] == x.shape[0]
        return 0.5 * self.inner(x, context=context, transformer_options=transformer_options)


def with_another_attention(model):
    for name in ("attn1", "attn2"):
        model.add_object_patch(f"{PLACE}.{name}", Doubled(model.get_model_object(f"{PLACE}.{name}")))


def with_another_block(model):
    model.add_object_patch(PLACE, Halved(model.get_model_object(PLACE)))


def transformer_blocks(model):
    network = model.model.diffusion_model
    return [(name, module) for name, module in network.named_modules() if isinstance(module, attention.BasicTransformerBlock)]


def with_another_forward(model):
    """As TPG: the forward of every block, which shuffles the tokens of half of the channels, calls the one before."""
    def wrapped(before):
        def forward(x, context=None, transformer_options={}):  # noqa: B006  # the host's default
            return before(torch.cat([x[:, :, ::2], x.flip(1)[:, :, 1::2]], dim=2), context, transformer_options)
        return forward

    for name, block in transformer_blocks(model):
        model.add_object_patch(f"diffusion_model.{name}.forward", wrapped(block.forward))


def rewritten(self, x, context=None, transformer_options={}):  # noqa: B006  # the host's default
    """A block as packs write it out again, with whatever they read of it."""
    assert (self.n_heads, self.d_head) == (self.attn1.heads, self.attn1.dim_head) and transformer_options["sigmas"] is not None
    if self.ff_in:
        x = self.ff_in(self.norm_in(x)) + (x if self.is_res else 0)
    x = x + self.attn1(self.norm1(x), context=context if self.disable_self_attn else None, value=None)
    n = self.norm2(x)
    x = x + 1.5 * self.attn2(n, context=n if self.switch_temporal_ca_to_sa else context, value=None)
    return self.ff(self.norm3(x)) + (x if self.is_res else 0)


def with_rewritten_blocks(model):
    """As T-GATE and reference ControlNets, through the object patch that restores them."""
    for name, block in transformer_blocks(model):
        model.add_object_patch(f"diffusion_model.{name}.forward", MethodType(rewritten, block))


def with_another_context(model):
    """As NAG: keys and values of another text are computed beforehand, by the attention layers found in the network."""
    for name, block in transformer_blocks(model):
        if "transformer_blocks" not in name:
            continue
        kind, index = name.split("_")[0], int(name.split(".")[1])
        width = block.attn2.to_k.weight.shape[1]
        other = torch.randn(1, 1, width, generator=torch.Generator().manual_seed(9))
        key, value = block.attn2.to_k(other), block.attn2.to_v(other)

        def replaced(q, k, v, extra, key=key, value=value):
            k, v = k + key, v + value
            return attention.optimized_attention(q, k, v, extra["n_heads"])

        model.set_model_attn2_replace(replaced, kind, index - (kind == "middle"))


@pytest.mark.parametrize(
    "change", [with_another_attention, with_another_block, with_another_forward, with_rewritten_blocks, with_another_context]
)
def test_what_packs_change_inside_of_transformers_acts_as_in_the_hosts_network(pair, change):
    def changed(model):
        model = model.clone()
        change(model)
        return sample(model, *prompts(SMALL[pair.name]), steps=1)

    before = pair.plain(steps=1)
    ours, host = map(changed, pair)
    assert relative_error(ours, host) <= 1e-4
    assert relative_error(ours, before) > 1e-2
    for model in pair:  # nothing stays behind
        assert relative_error(sample(model, *prompts(SMALL[pair.name]), steps=1), before) <= 1e-4


def shuffled(cls):
    """As ToMe: a class under a block, an attention or a layer that is there already, with the host's signature."""
    class Shuffled(cls):
        def forward(self, x, *args, **kwargs):
            assert "hooks" not in kwargs
            for given in (*args, *kwargs.values()):
                assert given is None or isinstance(given, (torch.Tensor, dict, int, torch.Size)), type(given)
            half = x.shape[1] // 2
            return super().forward(torch.cat([x[:, :half].flip(-1), x[:, half:]], dim=1), *args, **kwargs)

    return Shuffled


@pytest.mark.parametrize("kind", [
    attention.BasicTransformerBlock, attention.CrossAttention, attention.SpatialTransformer, openaimodel.ResBlock,
    openaimodel.Upsample,
])
def test_another_class_under_a_layer_acts_as_in_the_hosts_network(pair, kind):
    made = []
    for model in pair:
        named = model.model.diffusion_model.named_modules()  # with residual blocks over time, ResBlocks in the host alone
        changed = [module for name, module in named if isinstance(module, kind) and not name.endswith("time_stack")]
        before = [module.__class__ for module in changed]
        for module in changed:
            vars(module).pop("forward", None)  # the host leaves one there where it takes off a patch of it
            module.__class__ = shuffled(module.__class__)
        made.append(sample(model, *prompts(SMALL[pair.name]), steps=1))
        for module, cls in zip(changed, before, strict=True):
            module.__class__ = cls
    assert changed and relative_error(*made) <= 1e-4
    assert relative_error(made[0], pair.plain(steps=1)) > 1e-3


def test_a_pack_that_replaces_the_hosts_function_for_blocks_changes_every_block(pair):
    """As adain of reference ControlNets: the function is there for the time of a run only."""
    own, seen = openaimodel.forward_timestep_embed, []

    def function(*args, **kwargs):
        seen.append(args[4]["block"])
        h = own(*args, **kwargs)
        return h * 1.1 if args[4]["block"] == ("input", 2) else h

    with patch.object(openaimodel, "forward_timestep_embed", function):
        ours, host = (sample(model, *prompts(SMALL[pair.name]), steps=1) for model in pair)
    assert relative_error(ours, host) <= 1e-4 and seen[:len(seen) // 2] == seen[len(seen) // 2:]
    assert relative_error(ours, pair.plain(steps=1)) > 1e-2


def test_layers_are_of_exactly_the_hosts_classes_to_who_asks_by_equality(pair):
    """As AnimateDiff, which looks for the place of its motion modules."""
    def kinds(model):
        named = (
            attention.SpatialTransformer, attention.SpatialVideoTransformer, attention.BasicTransformerBlock,
            attention.CrossAttention, openaimodel.ResBlock, openaimodel.VideoResBlock,
        )
        found = {}
        for name, module in model.model.diffusion_model.named_modules():
            equal = [type(module) == kind for kind in named]  # noqa: E721  # what packs ask
            found[name] = equal + [isinstance(module, kind) for kind in named]
        return found

    ours, host = map(kinds, pair)
    known = [name for name, kind in host.items() if any(kind) and not name.endswith(".time_stack")]  # inside of a residual block
    assert len(known) > 20 and {name: ours[name] for name in known} == {name: host[name] for name in known}


def test_an_attention_layer_takes_a_mask_as_the_hosts_does(pair):
    (_, ours), (_, host) = (transformer_blocks(model)[0] for model in pair)
    x = torch.randn(2, 6, ours.attn1.to_q.weight.shape[1], generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(2, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), -1e4)
    assert relative_error(ours.attn1(x, mask=mask), host.attn1(x, mask=mask)) <= 1e-5
