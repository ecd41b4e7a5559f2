"""ComfyUI's patches, as the network's hooks: what other nodes and packs may interpose while our UNet runs."""

import torch
from comfy.ldm.modules.diffusionmodules import openaimodel

from ....unet import Hooks
from ....unet.hooks import Layer, has_other_forward, is_watched
from ....unet.layers import Downsample
from ....unet.transformer import (
    BasicTransformerBlock,
    CrossAttention,
    SpatialTransformer,
    SpatialVideoTransformer,
    is_own,
    repeated,
    runs_whole,
)
from .feature_run import CachedCall
from .host_attention import attention_for, left_to_pytorch
from .layer_weights import convolution, norm_affine, norms_are_replaced
from .replaced_functions import of_a_pack

LOOKS = (  # patches that are given activations between layers
    "input_block_patch", "input_block_patch_after_skip", "middle_block_after_patch", "output_block_patch",
    "forward_timestep_embed_patch",
)

OWN = (Layer, Downsample, torch.nn.Conv2d)  # what blocks are built of


def patched_at_large(options: dict, network: torch.nn.Module) -> bool:
    """Does anything look into the attention of more than the middle block, where activations are small?

    Patches in `options`, or transformer blocks that packs replaced in the network, or whose `forward` they replaced.
    """
    replaced = any(kind != "middle" for kind, _ in _replaced_blocks(options))
    return _patched_everywhere(options) or replaced or any(map(runs_whole, _outer_blocks(network)))


def _outer_blocks(network):
    """The transformer blocks, over time too, outside of the middle block."""
    for layers in (*network.input_blocks, *network.output_blocks):
        for layer in layers:
            if isinstance(layer, SpatialTransformer):
                yield from layer.transformer_blocks
            if isinstance(layer, SpatialVideoTransformer):
                yield from layer.time_stack


def _patched_everywhere(options):
    return any("attn" in name or name == "middle_patch" for name in options.get("patches", {}))


def _replaced_blocks(options):
    """(kind, index) of the blocks with a replaced attention."""
    replacements = options.get("patches_replace", {})
    return {place[:2] for name in ("attn1", "attn2") for place in replacements.get(name, {})}


class AttentionHooks(Hooks):
    """Transformers under the host: honors the patches of attention in `transformer_options` and keeps its place marks there.

    The marks ("block_index", "activations_shape") and the arguments of each patch are the host's own
    (`comfy/ldm/modules/attention.py`), since packs read them.
    """

    def __init__(self, options: dict, attn_precision: torch.dtype | None):
        self.options = options
        self.attn_precision = attn_precision
        self.patches = options.get("patches", {})
        self.replacements = options.get("patches_replace", {})

    @property
    def patched(self):
        return _patched_everywhere(self.options) or self.options.get("block") in _replaced_blocks(self.options)

    @property
    def attn2_watched(self):
        patches = self.patches.get("attn2_patch") or self.patches.get("attn2_output_patch")
        return bool(patches or self._replacement("attn2") or "optimized_attention_override" in self.options)

    def enter_transformer(self, shape):
        self.options["activations_shape"] = list(shape)

    def enter_depth(self, index):
        self.options["block_index"] = index

    def transformer_block(self, block, x, context, call):
        """A block that a pack replaced, or whose `forward` it replaced, is called as the host calls its own."""
        if is_own(block, BasicTransformerBlock):
            return block(x, context, call)
        return block(x, context=repeated(context, x), transformer_options=self.options)

    def attn1(self, block, x, context):
        self.extra = None
        return self._attend("attn1", block, x, context)

    def between(self, x):
        for patch in self.patches.get("middle_patch", ()):
            x = patch(x, self.extra)
        return x

    def attn2(self, block, x, context):
        return self._attend("attn2", block, x, context)

    def attention(self, q, k, v, heads):
        if left_to_pytorch(q, heads, self.options):
            return super().attention(q, k, v, heads)
        attend = attention_for(q, k, v, self.attn_precision)
        return attend(q, k, v, heads, attn_precision=self.attn_precision, transformer_options=self.options)

    def without_bias(self, layer, x):
        return convolution(layer, x)

    def affine(self, norm, dtype, device):
        return norm_affine(norm, dtype, device)

    def _attend(self, name, block, x, context):
        """One attention with its patches: `<name>_patch` on the inputs, a replacement, `<name>_output_patch`."""
        attn = getattr(block, name)
        value, patches, outputs = None, self.patches.get(f"{name}_patch"), self.patches.get(f"{name}_output_patch", ())
        replacement = self._replacement(name)
        if patches or outputs or replacement or "middle_patch" in self.patches:
            self.extra = self.extra or self._extra_options(block)
        if patches:
            context = x if context is None else context
            value = context
            for patch in patches:
                x, context, value = patch(x, context, value, self.extra)
        if replacement:
            context = x if context is None else context
            value = context if value is None else value
            x = attn.to_out(replacement(attn.to_q(x), attn.to_k(context), attn.to_v(value), self.extra))
        elif is_own(attn, CrossAttention):
            x = attn(x, context, value, hooks=self)
        else:
            x = attn(x, context=context, value=value, transformer_options=self.options)
        for patch in outputs:
            x = patch(x, self.extra)
        return x

    def _replacement(self, name):
        """The function set for this transformer block, else for the whole block, else None."""
        found = self.replacements.get(name, {})
        block = self.options.get("block")
        exact = (*block, self.options.get("block_index", 0)) if block else None
        return found.get(exact) or found.get(block)

    def _extra_options(self, block):
        """What the patches of one transformer block are given, and share: all options but the patches themselves."""
        options = {key: value for key, value in self.options.items() if key not in ("patches", "patches_replace")}
        return {**options, "n_heads": block.heads, "dim_head": block.dim_head, "attn_precision": self.attn_precision}


class HostHooks(AttentionHooks):
    """One forward call under the host: honors every patch in `transformer_options` and keeps all place marks.

    The marks ("block", "transformer_index", "original_shape") and the arguments of each patch are the host's own
    (`comfy/ldm/modules/diffusionmodules/openaimodel.py`). `asked` holds what patches may ask for besides the activations:
    x, timesteps, context, y, image_only_indicator. `cached`: the call's inner blocks may be left out.
    """

    def __init__(self, options: dict, model_channels: int, attn_precision: torch.dtype | None, asked: dict,
                 cached: CachedCall | None = None):
        super().__init__(options, attn_precision)
        self.model_channels = model_channels
        self.asked = asked
        self.cached = cached
        self.outer = 0 if cached is None else cached.depth
        options["original_shape"] = list(asked["x"].shape)
        options["transformer_index"] = 0

    @property
    def sees_images(self):
        replaced = norms_are_replaced() or of_a_pack("forward_timestep_embed") or of_a_pack("apply_control")
        return bool(replaced or any(map(self.patches.get, LOOKS)))

    def enter_block(self, kind, index):
        self.options["block"] = (kind, index)

    def embedding(self, emb):
        for patch in self.patches.get("emb_patch", ()):
            emb = patch(emb, self.model_channels, self.options)
        return emb

    def layers(self, block):
        return (block,) if of_a_pack("forward_timestep_embed") else block.children()

    def watches(self, layer):
        patches = self.patches.get("forward_timestep_embed_patch", ())
        return any(isinstance(layer, kind) for kind, _ in patches) or super().watches(layer)

    def layer(self, layer, x, call):
        if isinstance(layer, openaimodel.TimestepEmbedSequential):
            return self._as_the_host(layer, x, call)
        for kind, patch in self.patches.get("forward_timestep_embed_patch", ()):
            if isinstance(layer, kind):
                return patch(
                    layer, x, call.emb, call.context, self.options, call.next_skip,
                    call.time_context, call.num_frames, self.asked["image_only_indicator"],
                )
        if isinstance(layer, Layer) and has_other_forward(layer):  # a pack's, with the host's arguments (RAUNet)
            return self._as_the_host((layer,), x, call)
        if is_watched(layer) or not isinstance(layer, OWN):  # what looks at it is given the usual order in memory
            x = x.contiguous()
        x = super().layer(layer, x, call)
        if isinstance(layer, SpatialTransformer):
            self.options["transformer_index"] += 1
        return x

    def _as_the_host(self, layers, x, call):
        """Layers, or a block, by the host's function, which a pack may have replaced (reference ControlNets)."""
        return openaimodel.forward_timestep_embed(
            layers, x.contiguous(), call.emb, call.context, self.options, call.next_skip,
            time_context=call.time_context, num_video_frames=call.num_frames,
            image_only_indicator=self.asked["image_only_indicator"],
        )

    def input_block(self, h):
        for patch in self.patches.get("input_block_patch", ()):
            h = patch(h, self.options)
        return h

    def after_skip(self, h):
        for patch in self.patches.get("input_block_patch_after_skip", ()):
            h = patch(h, self.options)
        return h

    def middle_block(self, h, emb):
        for patch in self.patches.get("middle_block_after_patch", ()):
            h = patch({
                "h": h, "x": self.asked["x"], "emb": emb, "context": self.asked["context"], "y": self.asked["y"],
                "timesteps": self.asked["timesteps"], "transformer_options": self.options,
            })["h"]
        return h

    def inner(self, h, compute):
        if self.cached is None:
            return compute(h)
        h = self.cached.inner(h, compute, self.options)
        return h.clone() if self.patches.get("output_block_patch") else h  # FreeU writes h in place

    def output_block(self, h, skip):
        patches = self.patches.get("output_block_patch", ())
        if patches and h is skip:  # no middle block: FreeU writes h in place and must not reach the skip
            h = h.clone()
        for patch in patches:
            h, skip = patch(h, skip, self.options)
        return h, skip
