"""What the layers of one forward call are given, and what a host may interpose in it: by default nothing."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch.nn.modules import module as torch_module

from .group_norm import read_affine


class Own(torch.nn.Module):
    """A module that is called with what only ours takes, or whose result may be computed without a call of it.

    Classes of ours that define its `forward` say `own=True`. A class that derives from them and has another one is a pack's: packs
    put such under modules that are built already (`module.__class__ = ...`, as ToMe does).
    """

    own_forward: ClassVar[Callable]
    replaced = False

    def __init_subclass__(cls, own: bool = False, **kwargs):
        super().__init_subclass__(**kwargs)
        if own:
            cls.own_forward = cls.forward
        cls.replaced = cls.forward is not cls.own_forward


def has_other_forward(module: torch.nn.Module) -> bool:
    """Whether a call of the module runs another `forward` than that of the class that it was built by."""
    return "forward" in vars(module) or isinstance(module, Own) and module.replaced


def is_watched(module: torch.nn.Module) -> bool:
    """Whether a call of the module runs more or other code than its class: forward hooks, or another forward."""
    return bool(has_other_forward(module) or module._forward_hooks or module._forward_pre_hooks)


def may_bypass(module: torch.nn.Module, kind: type[torch.nn.Module]) -> bool:
    """Whether what a call of the module computes may be computed without that call.

    It may where the call runs the `forward` of `kind` and nothing else: no hook, no forward of the module's own. Never while
    compiling: the compiler fuses on its own.
    """
    return (
        not torch.compiler.is_compiling() and type(module).forward is kind.forward and not is_watched(module)
        and not (torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
    )


class Layer(Own, own=True):
    """A layer of a block that is called as `layer(x, call)`.

    Any other module in a block, such as a plain convolution or what a host's pack put there, is called with x alone.
    """


class Hooks:
    """The places where a host can watch or change a running `UNetModel`.

    One object serves one forward call. The network reports to it where it is (`enter_*`) and passes every value that a
    host may replace through it. This class returns each value unchanged and computes attention with PyTorch's own kernel;
    a host subclasses it.
    """

    # Does anything look into this block's attention? Then it does not run in chunks: a patch may count on the whole batch.
    patched = False
    # Does anything look at attn2 of this transformer block? Else attention to one key is added as the constant that it is.
    attn2_watched = False

    # Does anything look at the activations between layers? Then they lie in memory in the order of their dimensions.
    sees_images = False

    # Blocks at each end of the network, from the first input and the last output block, that `inner` does not enclose.
    outer = 0

    def enter_block(self, kind: str, index: int) -> None:
        """The network starts the block at `index` of a `kind` ("input", "middle", "output")."""

    def enter_transformer(self, shape: torch.Size) -> None:
        """A spatial (or video) transformer starts on activations of `shape` [b*t, c, h, w]."""

    def enter_depth(self, index: int) -> None:
        """The transformer block at depth `index` starts; for video its temporal twin follows under the same index."""

    def embedding(self, emb: torch.Tensor) -> torch.Tensor:
        """The timestep embedding [b*t, 4*model_channels] before the label embedding is added."""
        return emb

    def layers(self, block: torch.nn.Module) -> Iterable[torch.nn.Module]:
        """What `layer` runs, one after another, for an input, middle or output block."""
        return block.children()

    def watches(self, layer: torch.nn.Module) -> bool:
        """Does anything look at what this layer of a block is given? Then that is joined before, not in the layer's chunks."""
        return is_watched(layer)

    def layer(self, layer: torch.nn.Module, x: torch.Tensor, call: "Call") -> torch.Tensor:
        """Runs one layer of a block on x [b*t, c, h, w]."""
        return layer(x, call) if isinstance(layer, Layer) else layer(x)

    def input_block(self, h: torch.Tensor) -> torch.Tensor:
        """The result of an input block, before it is kept as a skip."""
        return h

    def after_skip(self, h: torch.Tensor) -> torch.Tensor:
        """The result of an input block, after it was kept as a skip."""
        return h

    def middle_block(self, h: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """The result of the middle block."""
        return h

    def inner(self, h: torch.Tensor, compute: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What leaves the blocks between the `outer` ones: compute(h) for h that enters them, or what may take its place."""
        return compute(h)

    def output_block(self, h: torch.Tensor, skip: torch.Tensor):
        """The two inputs of an output block before they are joined; a skip of None leaves it out."""
        return h, skip

    def transformer_block(self, block, x: torch.Tensor, context: torch.Tensor, call: "Call") -> torch.Tensor:
        """Runs a transformer block on x [n, tokens, c]; each row of the context serves some rows of x."""
        return block(x, context, call)

    def attn1(self, block, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """The first attention of a transformer block; `context` None means self-attention. x is [n, tokens, c]."""
        return block.attn1(x, context, hooks=self)

    def between(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream between the two attentions."""
        return x

    def attn2(self, block, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """The second (cross) attention of a transformer block."""
        return block.attn2(x, context, hooks=self)

    def attention(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
        """softmax(q k^T / sqrt(d)) v for q [n, tokens, heads*d], k and v [n, keys, heads*d]; returns q's shape."""
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def without_bias(self, layer: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What a convolution makes of x without its bias, and the bias [c]; where it cannot be taken apart, layer(x) and None."""
        if type(layer).forward in (torch.nn.Conv2d.forward, torch.nn.Conv3d.forward):
            return layer._conv_forward(x, layer.weight, None), layer.bias
        return layer(x), None

    def affine(self, norm: torch.nn.GroupNorm, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias [c] of a GroupNorm that is computed without a call of the layer."""
        return read_affine(norm, dtype, device)


@dataclass
class Call:
    """All inputs of a layer besides the activations: the second argument of every `Layer`, which reads what it needs.

    Rows are the frames of one video after another: b videos of t frames.
    """

    emb: torch.Tensor  # [b*t, emb_channels]
    context: torch.Tensor | None = None  # [b*t, keys, context_dim]
    time_context: torch.Tensor | None = None  # [b*t, keys, context_dim], for the layers over time; None = context
    num_frames: int = 1  # t
    image_only: torch.Tensor | None = None  # [b*t], set where a row is a still image
    hooks: Hooks = field(default_factory=Hooks)
    budget: int | None = None  # working memory of one layer in bytes, as in `chunks.by_rows`
    skip: torch.Tensor | None = None  # [b*t, c', h, w] for the residual block that runs next to join to its input, and take away
    next_skip: torch.Size | None = None  # [b*t, c, h, w] that the next output block concatenates; Upsample resizes to its h and w
