"""The transformers of the UNet: attention over the pixels of a frame, and over the frames of a pixel."""

from typing import TypeGuard, TypeVar

import torch
from torch import nn

from . import costs
from .card_kernels import group_norm, norm_takes
from .chunks import by_rows, memory_format, spans
from .fused_linear import added, gated
from .hooks import Call, Hooks, Layer, Own, is_watched, may_bypass
from .layers import GROUPS, AlphaBlender, timestep_embedding

Kind = TypeVar("Kind", bound=nn.Module)


class GEGLU(nn.Module):
    """x * gelu(gate) with the exact (erf) GELU (Shazeer 2020)."""

    def __init__(self, dim: int, dim_out: int, *, operations, factory: dict):
        super().__init__()
        self.proj = operations.Linear(dim, dim_out * 2, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return gated(self.proj, x)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, dim: int, *, operations, factory: dict):
        super().__init__()
        self.net = nn.Sequential(
            GEGLU(dim, dim * 4, operations=operations, factory=factory),
            nn.Identity(),  # dropout in training; keeps the last layer at index 2, as on disk
            operations.Linear(dim * 4, dim, **factory),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class CrossAttention(Own, own=True):
    """Multi-head attention of x to a context, or to itself where there is none."""

    def __init__(self, dim: int, context_dim: int, heads: int, dim_head: int, *, operations, factory: dict):
        super().__init__()
        self.heads = heads
        self.dim_head = dim_head
        inner = heads * dim_head
        self.to_q = operations.Linear(dim, inner, bias=False, **factory)
        self.to_k = operations.Linear(context_dim, inner, bias=False, **factory)
        self.to_v = operations.Linear(context_dim, inner, bias=False, **factory)
        self.to_out = nn.Sequential(operations.Linear(inner, dim, **factory), nn.Identity())

    def forward(
        self,
        x: torch.Tensor,
        context: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        hooks: Hooks | None = None,
    ) -> torch.Tensor:
        """x [n, tokens, dim], context and value [n, keys, context_dim] to [n, tokens, dim]."""
        hooks = hooks or Hooks()
        context = x if context is None else context
        value = context if value is None else value
        out = hooks.attention(self.to_q(x), self.to_k(context), self.to_v(value), self.heads)
        return self.to_out(out)


class BasicTransformerBlock(Own, own=True):
    """Self-attention, cross-attention and feed-forward, each on the normalized residual stream (Rombach et al. 2022, fig. 3).

    With `ff_in` a feed-forward comes first: the block over time of SVD. With `self_attention` False the first attention
    attends to the context as well (x4 upscaler, SDXS 0.9).
    """

    Attention: type[CrossAttention] = CrossAttention

    def __init__(
        self, dim: int, heads: int, dim_head: int, context_dim: int, *, operations, factory: dict,
        ff_in: bool = False, self_attention: bool = True,
    ):
        super().__init__()
        layer = {"operations": operations, "factory": factory}
        self.heads, self.dim_head = heads, dim_head
        self.self_attention = self_attention
        if ff_in:
            self.norm_in = operations.LayerNorm(dim, **factory)
        self.ff_in = FeedForward(dim, **layer) if ff_in else None
        self.norm1 = operations.LayerNorm(dim, **factory)
        self.attn1 = self.Attention(dim, dim if self_attention else context_dim, heads, dim_head, **layer)
        self.norm2 = operations.LayerNorm(dim, **factory)
        self.attn2 = self.Attention(dim, context_dim, heads, dim_head, **layer)
        self.norm3 = operations.LayerNorm(dim, **factory)
        self.ff = FeedForward(dim, **layer)

    def forward(self, x: torch.Tensor, context: torch.Tensor, call: Call) -> torch.Tensor:
        """x [n, tokens, dim], context [m, keys, context_dim] to x's shape; feed-forwards keep to the call's budget.

        Each row of the context serves n/m rows of x: over time, the pixels of a video.
        """
        if self.ff_in is not None:
            x = _fed(self.norm_in, self.ff_in, x, call.budget)
        x = x + call.hooks.attn1(self, self.norm1(x), None if self.self_attention else repeated(context, x))
        x = call.hooks.between(x)
        if context.shape[1] == 1 and not (call.hooks.attn2_watched or _altered(self.norm2, self.attn2)):
            x = _plus(x, self.attn2.to_out(self.attn2.to_v(context)))  # the softmax of one key is 1, whatever x asks
        else:
            x = x + call.hooks.attn2(self, self.norm2(x), repeated(context, x))
        return _fed(self.norm3, self.ff, x, call.budget)


def _altered(norm: nn.Module, attn: nn.Module) -> bool:
    """Whether calling this norm and attention may run other code than ours."""
    return not is_own(attn, CrossAttention) or any(map(is_watched, (norm, *attn.modules())))


def is_own(module: nn.Module, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a call of the module runs the `forward` of this class of ours, or of what a host derives from it, and no more."""
    return isinstance(module, kind) and not is_watched(module)


def runs_whole(block: nn.Module) -> bool:
    """Whether a transformer block, or one of its attentions, runs other code than ours, which may count on the whole batch."""
    if not is_own(block, BasicTransformerBlock):
        return True
    return not (is_own(block.attn1, CrossAttention) and is_own(block.attn2, CrossAttention))


def repeated(context: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """[m, keys, c] with a row for each of x's n: n/m times in a row."""
    if x.shape[0] == context.shape[0]:
        return context
    return context[:, None].expand(-1, x.shape[0] // context.shape[0], -1, -1).flatten(0, 1)


def _attention_budget(block: nn.Module, call: Call) -> int | None:
    """The working memory of a whole transformer block: without a limit where something may look at the whole batch."""
    return None if call.budget is None or call.hooks.patched or runs_whole(block) else call.budget


def _plus(x: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
    """x [n, tokens, c] plus a constant [m, 1, c], each row of which is added to n/m rows of x."""
    return (x.unflatten(0, (constant.shape[0], -1)) + constant[:, None]).flatten(0, 1)


def _fed(norm: nn.Module, feed_forward: FeedForward, x: torch.Tensor, budget: int | None) -> torch.Tensor:
    """x plus the feed-forward of its norm, as many rows at a time as the budget allows."""
    row = costs.TRANSFORMER * x.shape[1] * x.shape[2] * x.element_size()
    return by_rows(lambda rows: _fed_rows(feed_forward, norm(rows), rows), budget, row, x)


def _fed_rows(feed_forward, x, residual):
    if not (x.is_cpu and may_bypass(feed_forward, FeedForward) and may_bypass(feed_forward.net, nn.Sequential)):
        return residual + feed_forward(x)
    *first, last = feed_forward.net
    for layer in first:
        x = layer(x)
    return added(last, x, residual)


class SpatialTransformer(Layer, own=True):
    """Attention over the pixels of each image: norm, projection, `depth` blocks, projection, plus the input.

    The projections are 1x1 convolutions in SD1 and linear layers, applied to the tokens, in all later models.
    """

    Block: type[BasicTransformerBlock] = BasicTransformerBlock

    def __init__(
        self, channels: int, heads: int, dim_head: int, depth: int, context_dim: int, *, linear: bool,
        operations, factory: dict, self_attention: bool = True,
    ):
        super().__init__()
        inner = heads * dim_head
        self.linear = linear
        self.norm = operations.GroupNorm(GROUPS, channels, eps=1e-6, **factory)
        if linear:
            self.proj_in = operations.Linear(channels, inner, **factory)
            self.proj_out = operations.Linear(inner, channels, **factory)
        else:
            self.proj_in = operations.Conv2d(channels, inner, 1, **factory)
            self.proj_out = operations.Conv2d(inner, channels, 1, **factory)
        self.transformer_blocks = nn.ModuleList(
            self.Block(
                inner, heads, dim_head, context_dim,
                self_attention=self_attention, operations=operations, factory=factory,
            )
            for _ in range(depth)
        )

    def to_tokens(self, x: torch.Tensor, hooks: Hooks) -> torch.Tensor:
        """[n, c, h, w] to [n, h*w, inner]."""
        x = group_norm(x, self.norm, hooks, None, silu=False) if norm_takes(x, self.norm) else self.norm(x)
        if self.linear:
            return self.proj_in(x.flatten(2).transpose(1, 2).contiguous())
        return self.proj_in(x).flatten(2).transpose(1, 2).contiguous()

    def to_image(self, tokens: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """[n, h*w, inner] to [n, c, h, w], in memory as the image [n, c, h, w] is."""
        size, order = image.shape[2:], memory_format(image)
        if self.linear:
            return self.proj_out(tokens).transpose(1, 2).unflatten(2, size).contiguous(memory_format=order)
        return self.proj_out(tokens.transpose(1, 2).unflatten(2, size).contiguous(memory_format=order))

    def forward(self, x: torch.Tensor, call: Call) -> torch.Tensor:
        """x [n, c, h, w] to its shape; with a budget some images at a time."""
        call.hooks.enter_transformer(x.shape)
        row = costs.TRANSFORMER * x.shape[1] * x.shape[2] * x.shape[3] * x.element_size()
        tokens = by_rows(lambda rows: self.to_tokens(rows, call.hooks), call.budget, row, x)
        for depth, block in enumerate(self.transformer_blocks):
            call.hooks.enter_depth(depth)
            tokens = by_rows(
                lambda rows, context, block=block: call.hooks.transformer_block(block, rows, context, call),
                _attention_budget(block, call), row, tokens, call.context,  # type: ignore[arg-type]  # with transformers there is one
            )
            tokens = self.over_time(depth, tokens, call)
        return by_rows(lambda rows, image: self.to_image(rows, image) + image, call.budget, row, tokens, x)

    def over_time(self, depth: int, tokens: torch.Tensor, call: Call) -> torch.Tensor:
        """What follows the block at `depth`, on tokens [n, h*w, inner]: nothing, in images."""
        return tokens


class SpatialVideoTransformer(SpatialTransformer):
    """After each block over the pixels of a frame, one over the frames of each pixel; the two are blended (SVD)."""

    def __init__(
        self, channels: int, heads: int, dim_head: int, depth: int, context_dim: int, *, linear: bool,
        operations, factory: dict, self_attention: bool = True,
    ):
        super().__init__(
            channels, heads, dim_head, depth, context_dim,
            linear=linear, self_attention=self_attention, operations=operations, factory=factory,
        )
        self.channels = channels
        self.time_stack = nn.ModuleList(
            self.Block(
                heads * dim_head, heads, dim_head, context_dim,
                ff_in=True, self_attention=self_attention, operations=operations, factory=factory,
            )
            for _ in range(depth)
        )
        self.time_pos_embed = nn.Sequential(
            operations.Linear(channels, channels * 4, **factory),
            nn.SiLU(),
            operations.Linear(channels * 4, channels, **factory),
        )
        self.time_mixer = AlphaBlender(factory=factory)

    def frame_positions(self, num_frames: int, like: torch.Tensor) -> torch.Tensor:
        """The embedding of the frame indices 0 … num_frames-1: [1, t, 1, c]."""
        frames = torch.arange(num_frames, device=like.device)
        return self.time_pos_embed(timestep_embedding(frames, self.channels).to(like.dtype))[None, :, None]

    def over_time(self, depth: int, tokens: torch.Tensor, call: Call) -> torch.Tensor:
        """Tokens [b*t, h*w, c] blended with what the block over time at `depth` makes of them, in place where in chunks.

        It sees the context of the first frame of each video at every pixel. With a budget it runs by pixels.
        """
        block = self.time_stack[depth]
        positions = self.frame_positions(call.num_frames, tokens)
        context = call.context if call.time_context is None else call.time_context
        context = context[::call.num_frames]  # type: ignore[index]  # with transformers there is one
        pixel = costs.TRANSFORMER * tokens.shape[0] * tokens.shape[2] * tokens.element_size()
        chunks = list(spans(tokens.shape[1], pixel, _attention_budget(block, call)))
        for chunk in chunks:
            own = tokens[:, chunk]
            count = own.shape[1]
            video = own.unflatten(0, (-1, call.num_frames)) + positions  # [b, t, pixels, c]
            video = video.transpose(1, 2).flatten(0, 1)  # [b*pixels, t, c]
            video = call.hooks.transformer_block(block, video, context, call)
            video = video.unflatten(0, (-1, count)).transpose(1, 2).flatten(0, 1)  # [b*t, pixels, c]
            mixed = self.time_mixer(own, video, call.image_only)
            if len(chunks) == 1:
                return mixed
            tokens[:, chunk] = mixed
        return tokens
