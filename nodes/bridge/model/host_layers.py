"""Our layers as layers of the host, for packs that walk the network themselves.

`forward_timestep_embed` in `comfy/ldm/modules/diffusionmodules/openaimodel.py` recognizes layers by class and calls each kind in
its own way. Each class here is one of ours and of the host's. Its second argument is a `Call` (our network) or the host's tensor.
"""

import torch
from comfy.ldm.modules import attention
from comfy.ldm.modules.diffusionmodules import openaimodel
from torch import nn

from ....unet import layers, transformer
from ....unet.encoder import Layers
from ....unet.hooks import Call
from .host_hooks import AttentionHooks


class _AsTheHosts(type):
    """Of a class whose last base is the host's: the two are equal, as packs ask (`type(layer) == SpatialTransformer`)."""

    def __eq__(cls, other):
        return cls is other or cls.__bases__[-1] is other

    def __hash__(cls):
        return type.__hash__(cls.__bases__[-1])


class _Kind(nn.Module, metaclass=_AsTheHosts):
    """Between our class and the host's: ends the chain of `__init__`, so that the host's class does not build its own layers."""

    def __init__(self):
        nn.Module.__init__(self)


class _HostResBlock(_Kind):
    """What packs read of the host's residual blocks: sizes, and options that none of the family uses."""

    dropout = 0
    use_conv = use_checkpoint = use_scale_shift_norm = exchange_temb_dims = updown = skip_t_emb = False
    channels = property(lambda self: self.in_layers[0].num_channels)
    emb_channels = property(lambda self: self.emb_layers[1].in_features)


class ResBlock(layers.ResBlock, _HostResBlock, openaimodel.ResBlock, own=True):
    def forward(self, x, emb):
        return super().forward(x, emb if isinstance(emb, Call) else Call(emb))


class VideoResBlock(layers.VideoResBlock, _HostResBlock, openaimodel.VideoResBlock, own=True):
    def forward(self, x, emb, num_video_frames=None, image_only_indicator=None):
        call = emb
        if not isinstance(call, Call):
            call = Call(emb, num_frames=num_video_frames, image_only=_rows(image_only_indicator))
        return super().forward(x, call)


class Attends(_Kind):
    """What holds an attention."""

    attn_precision: torch.dtype | None = None  # in which the host computes attention; None: the dtype of the activations


class CrossAttention(transformer.CrossAttention, Attends, attention.CrossAttention, own=True):
    def forward(
        self, x, context=None, value=None, mask=None, transformer_options={}, hooks=None,  # noqa: B006  # the host's default
    ):
        if mask is not None:  # neither network has one: a pack's own call
            return attention.CrossAttention.forward(self, x, context, value, mask, transformer_options)
        return super().forward(x, context, value, hooks or AttentionHooks(transformer_options, self.attn_precision))


class BasicTransformerBlock(transformer.BasicTransformerBlock, Attends, attention.BasicTransformerBlock, own=True):
    Attention = CrossAttention
    is_res, switch_temporal_ca_to_sa = True, False
    n_heads = property(lambda self: self.heads)
    d_head = property(lambda self: self.dim_head)
    disable_self_attn = property(lambda self: not self.self_attention)

    def forward(self, x, context=None, transformer_options={}):  # noqa: B006  # the host's default
        call = transformer_options
        if not isinstance(call, Call):
            call = Call(None, context, hooks=AttentionHooks(transformer_options, self.attn_precision))
        return super().forward(x, context, call)


class HostTransformer(Attends):
    """What both transformers have besides the layers of ours."""

    in_channels = property(lambda self: self.norm.num_channels)
    use_linear = property(lambda self: self.linear)


class SpatialTransformer(transformer.SpatialTransformer, HostTransformer, attention.SpatialTransformer, own=True):
    Block = BasicTransformerBlock

    def forward(self, x, context=None, transformer_options={}):  # noqa: B006  # the host's default
        call = context
        if not isinstance(call, Call):
            call = Call(None, context, hooks=AttentionHooks(transformer_options, self.attn_precision))
        return super().forward(x, call)


class SpatialVideoTransformer(transformer.SpatialVideoTransformer, HostTransformer, attention.SpatialVideoTransformer, own=True):
    Block = BasicTransformerBlock
    max_time_embed_period = 10000
    use_spatial_context = True
    depth = time_depth = property(lambda self: len(self.time_stack))

    def forward(
        self, x, context=None, time_context=None, timesteps=None, image_only_indicator=None, transformer_options={}  # noqa: B006
    ):
        """`timesteps` is the host's name for the number of frames."""
        call = context
        if not isinstance(call, Call):
            hooks = AttentionHooks(transformer_options, self.attn_precision)
            call = Call(None, context, time_context, timesteps, _rows(image_only_indicator), hooks)
        return super().forward(x, call)


class Downsample(layers.Downsample, _Kind, openaimodel.Downsample):
    use_conv, dims = True, 2
    channels = out_channels = property(lambda self: self.op.out_channels)


class Upsample(layers.Upsample, _Kind, openaimodel.Upsample, own=True):
    use_conv, dims = True, 2
    channels = out_channels = property(lambda self: self.conv.out_channels)

    def forward(self, x, call=None, output_shape=None):
        return super().forward(x, call or Call(None, next_skip=output_shape))


def _rows(image_only_indicator):
    """[b*t] of the host's [b, t]."""
    return None if image_only_indicator is None else image_only_indicator.flatten()


class HostLayers(Layers):
    """The classes of this file; a block that is called runs the host's `forward_timestep_embed`."""

    TimestepEmbedSequential = openaimodel.TimestepEmbedSequential
    ResBlock = ResBlock
    VideoResBlock = VideoResBlock
    SpatialTransformer = SpatialTransformer
    SpatialVideoTransformer = SpatialVideoTransformer
    Downsample = Downsample
    Upsample = Upsample
