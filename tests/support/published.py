"""ControlNeXt-SVD as its authors use it, hooked into a MODEL of the small SVD by hand: what the bridge is compared with."""

import math

import torch

from support import controlnexts

WIDTHS = {1: 128, 2: 32}  # of the small SVD before its middle, and after its first level


class Published:
    """The authors' control of a MODEL, without anything of the pack: the layer after which it acts is given a changed input.

    `controls`: any number of (version, images of the whole clip, gains), of which `gains` are the factors of the conditioned
    and the unconditioned half, each one number or [frames of the clip, 1, h, w]. They act where `acts(sigma)`.
    """

    def __init__(self, model, *controls, acts=lambda sigma: True):
        self.model, self.controls, self.acts = model.clone(), controls, acts
        self.model.set_model_unet_function_wrapper(self._call)

    def __enter__(self):
        unet, self.handles = self.model.model.diffusion_model, []
        for index, (version, _, _) in enumerate(self.controls):
            layer = unet.middle_block[0] if version == 1 else unet.input_blocks[4][0]
            self.handles.append(layer.register_forward_pre_hook(lambda _, args, index=index: self._change(index, args)))
        return self.model

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def _call(self, apply_model, args):
        halves = args["cond_or_uncond"]
        self.sigma, self.halves = args["timestep"][0].item(), [list(halves) for _ in self.controls]
        self.frames = list(range(args["input"].shape[0] // len(halves)))
        if "context_window" in args["c"]["transformer_options"]:
            window = args["c"]["transformer_options"]["context_window"]
            anchored = len(self.frames) > len(window.index_list)
            self.frames = [*([window.causal_anchor_index] if anchored else []), *window.index_list]
        return apply_model(args["input"], args["timestep"], **args["c"])

    def _change(self, index, args):
        if not self.acts(self.sigma):
            return args
        out = []
        for video in args[0].split(len(self.frames)):  # our UNet may run them one by one
            gain = self.controls[index][2][self.halves[index].pop(0)]
            out.append(self._controlled(video, index, gain) if torch.is_tensor(gain) or gain else video)
        return (torch.cat(out), *args[1:])

    def _controlled(self, h, index, gain):
        version, images, _ = self.controls[index]
        images = images[self.frames] if len(images) > 1 else images
        weights = {name: value.double() for name, value in controlnexts.tensors(version, WIDTHS[version]).items()}
        feature = controlnexts.feature(weights, images.movedim(-1, 1).double(), 0.25 * math.log(self.sigma))
        gain = gain[self.frames] if torch.is_tensor(gain) else gain
        return controlnexts.joined(h.double(), feature.expand(len(h), -1, -1, -1), gain).to(h)


def gains_of(version, strength=1.0):
    return (0.2 * strength, 0.0) if version == 2 else (1.3 * strength / (1 + math.exp(-0.8766)), 0.65 * strength)
