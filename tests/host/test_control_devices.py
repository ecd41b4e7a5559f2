"""ControlNets where the host holds back some of the weights (low VRAM), or spreads the work over several devices."""

import comfy.controlnet
import comfy.ops
import pytest
import torch
from comfy.patcher_extension import CallbacksMP
from safetensors.torch import save_file

from support import controlnexts
from support.controls import ours, pairs, svd_net, theirs  # noqa: F401  (fixtures among them)
from support.devices import clone_of, multigpu, one_kernel, with_clones  # noqa: F401  (a fixture among them)
from support.families import relative_error
from support.oracle import CPU, SMALL, fill, hints, prompts, run_node, sample
from support.published import WIDTHS

FRAMES, CLIP = 3, 7
SECOND = torch.device("cpu:0")  # for the host another device than "cpu"


def in_memory(module):
    """With weights in memory of their own: a CPU sums in another order where they lie as a file has them."""
    for parameter in module.parameters():
        parameter.data = parameter.data.clone()


@pytest.fixture(scope="module")
def svd(pairs):
    """Our MODEL of the small SVD."""
    model = pairs("svd").ours
    in_memory(model.model)
    return model


@pytest.fixture(scope="module")
def controlnext(pack, tmp_path_factory):
    """A ControlNeXt of this version, loaded from a file of this dtype."""
    folder, made = tmp_path_factory.mktemp("controlnext"), {}

    def load(version, dtype=torch.float32):
        if (version, dtype) not in made:
            path = folder / f"{version}-{dtype}.safetensors"
            save_file({name: value.to(dtype) for name, value in controlnexts.tensors(version, WIDTHS[version]).items()}, path)
            made[version, dtype] = pack("nodes.bridge.control.controlnext_control").load_controlnext(str(path))
            in_memory(made[version, dtype].control_model)
        return made[version, dtype]

    return load


@pytest.fixture(scope="module")
def half_svd_net(pack):
    """SVD's, stored in fp16 and computed in fp32."""
    bridge = pack("nodes.bridge.control.svd_control")
    config = pack("unet").ControlNetConfig(SMALL["svd"], 3, (4, 6, 8, 10))
    net = bridge.SVDControlNet(config, operations=comfy.ops.manual_cast, dtype=torch.float16)
    return bridge.SVDControl(fill(net, 13).half(), load_device=CPU, manual_cast_dtype=torch.float32)


@pytest.fixture
def net_of(controlnext, half_svd_net, svd_net):
    """The CONTROL_NET of this name."""
    return {
        "svd": svd_net, "svd in fp16": half_svd_net, "controlnext v1": controlnext(1), "controlnext v2": controlnext(2),
        "controlnext v1 in fp16": controlnext(1, torch.float16),
    }.__getitem__


# low VRAM


def held_back(net):
    """The layers that fetch their weights at each call."""
    return [layer for layer in net.modules() if hasattr(layer, "prev_comfy_cast_weights")]


def loads_a_quarter(patcher):
    patcher.detach()
    patcher.load(CPU, lowvram_model_memory=patcher.model_size() // 4)


def unloads_half(patcher):
    """As where the host makes room for another model."""
    patcher.partially_unload(CPU, patcher.model_size() // 2)


class LowVRAM:
    """Has the host hold back some weights of a MODEL, and of `nets` next to it, once it has loaded them for one run.

    On a CPU weights held back lie where the others do, so fp64, which holds them exactly, stands for the other place: a layer
    that took one from there as it is would mix dtypes, which is an error.
    """

    def __init__(self, model, nets, hold):
        self.model, self.nets, self.hold, self.moved = model.clone(), nets, hold, []
        self.model.add_callback(CallbacksMP.ON_PRE_RUN, self._hold)

    def _hold(self, patcher):
        for part in (patcher, *self.nets):
            self.hold(part)
            for weight in (weight for layer in held_back(part.model) for weight in layer.parameters(recurse=False)):
                self.moved.append((weight, weight.data))
                weight.data = weight.data.double()
        self.loaded = [part.loaded_size() for part in self.nets]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for weight, data in reversed(self.moved):
            weight.data = data
        for part in (self.model, *self.nets):
            part.detach()


def sampled(model, conds):
    return sample(model, *conds, frames=FRAMES, steps=1)


@pytest.mark.slow
@pytest.mark.parametrize("name, hold", [
    ("svd", loads_a_quarter), ("svd", unloads_half), ("svd in fp16", loads_a_quarter),
    ("controlnext v1", loads_a_quarter), ("controlnext v2", loads_a_quarter), ("controlnext v2", unloads_half),
    ("controlnext v1 in fp16", loads_a_quarter),
])
def test_weights_held_back_change_nothing(svd, ours, net_of, name, hold):
    """Bit-equal to all loaded; what was held back still is so after the run, and the next run is as before."""
    net = net_of(name)
    conds = ours(prompts(SMALL["svd"]), net, hints(FRAMES), 0.7)
    expected, (patcher,) = sampled(svd, conds), net.get_models()
    with LowVRAM(svd, [patcher], hold) as low:
        result = sampled(low.model, conds)
        weights = [weight for layer in held_back(patcher.model) for weight in layer.parameters(recurse=False)]
        assert sum(weight.numel() for weight in weights) > 0.4 * sum(p.numel() for p in patcher.model.parameters())
        assert all(weight.dtype == torch.float64 for weight in weights)
        assert low.loaded == [patcher.loaded_size()] and 0 < patcher.loaded_size() < patcher.model_size()
    assert torch.equal(result, expected)
    assert torch.equal(sampled(svd, conds), expected)


@pytest.mark.parametrize("name", ["svd", "controlnext v1", "controlnext v2"])
def test_all_but_single_numbers_can_be_held_back(net_of, name):
    """The host holds back what its layers hold, and leaves the rest in place: here only learned factors."""
    net = net_of(name).control_model
    fixed = [p for m in net.modules() if not hasattr(m, "comfy_cast_weights") for p in m.parameters(recurse=False)]
    assert all(parameter.numel() == 1 for parameter in fixed)


@pytest.mark.slow
@pytest.mark.one_host
def test_stored_residuals_where_the_unet_is_held_back(svd, node, svd_net):
    """They need no net: nothing is loaded for them, and they stay where they are."""
    conds, images = prompts(SMALL["svd"]), hints(FRAMES)
    latent = {"samples": torch.zeros(FRAMES, 4, 8, 8)}
    compute, apply = node("TemporalUNetComputeControlNetResiduals"), node("TemporalUNetApplyControlNetResiduals")
    stored = run_node(compute, svd, conds[0], svd_net, images, latent)[0]
    controlled = run_node(apply, *conds, residuals=stored)
    expected = sampled(svd, controlled)
    with LowVRAM(svd, svd_net.get_models(), loads_a_quarter) as low:
        again = run_node(compute, low.model, conds[0], svd_net, images, latent)[0]
    assert all(torch.equal(a, b) for a, b in zip(again.controls, stored.controls, strict=True))
    with LowVRAM(svd, [], loads_a_quarter) as low:
        assert torch.equal(sampled(low.model, controlled), expected)
    control = controlled[0][0][1]["control"]
    assert control.get_models() == [] and control.inner.ready is None


@pytest.mark.slow
@pytest.mark.one_host
def test_two_nets_held_back_in_our_windows(svd, ours, net_of, node):
    """A net of residuals and a ControlNeXt in one chain, on a clip of several windows."""
    images = hints(CLIP)
    nets = [net_of("svd"), net_of("controlnext v2")]
    conds = ours(ours(prompts(SMALL["svd"]), nets[0], images, 0.5), nets[1], images)
    expected = in_windows(node, svd, conds)
    with LowVRAM(svd, [patcher for net in nets for patcher in net.get_models()], loads_a_quarter) as low:
        assert torch.equal(in_windows(node, low.model, conds), expected)


def in_windows(node, model, conds):
    return run_node(
        node("TemporalUNetSVDSampler"), model, *conds, {"samples": torch.zeros(CLIP, 4, 8, 8)}, 5, 1, 1.0, 2.0, "linear",
        "euler", "karras", window_frames=4, window_overlap=1,
    )[0]["samples"]


# several devices


def on_two_devices(model):
    """The MODEL with a clone next to it on a second device: the host runs one half of each step on each."""
    return with_clones(model, [clone_of(model)])


def rows_of(module):
    """The list of rows that each call of a module will take."""
    rows = []
    return rows, module.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0]))


@multigpu
@pytest.mark.parametrize("name, by", [
    ("svd", "the host's node"), ("controlnext v1", "our node"), ("controlnext v2", "our node"),
    ("controlnext v2", "the host's node"),
])
@pytest.mark.slow
def test_on_two_devices_as_on_one(svd, ours, theirs, net_of, name, by):
    """Through the host's own division of a step; the clone is of the same kind and has weights of its own."""
    net = net_of(name)
    apply = ours if by == "our node" else theirs
    conds = apply(prompts(SMALL["svd"]), net, hints(FRAMES), 0.7)
    expected, both = sampled(svd, conds), on_two_devices(svd)
    (second,) = both.get_additional_models_with_key("multigpu")
    rows, handle = rows_of(second.model.diffusion_model)
    result = sampled(both, conds)
    handle.remove()
    assert rows == [FRAMES], "one of the two halves of the step"
    assert relative_error(result, expected) <= 1e-4
    assert relative_error(sampled(svd, prompts(SMALL["svd"])), expected) > 1e-2, "the control did nothing"
    control = conds[0][0][1]["control"]
    clone = control.get_instance_for_device(SECOND)
    if by == "our node":
        assert torch.equal(clone.images, control.images)
        control, clone = control.inner, clone.inner
    assert type(clone) is type(control) and clone.strength == 0.7
    assert torch.equal(clone.cond_hint_original, control.cond_hint_original)
    assert not {p.data_ptr() for p in clone.control_model.parameters()} & {p.data_ptr() for p in net.control_model.parameters()}


@multigpu
@pytest.mark.slow
def test_a_chain_on_two_devices_in_our_windows(svd, ours, net_of, node):
    images = hints(CLIP)
    conds = ours(prompts(SMALL["svd"]), net_of("svd"), images, 0.5, frame_strengths="0:0, 1:1")
    conds = ours(conds, net_of("controlnext v2"), images)
    expected, plain = in_windows(node, svd, conds), in_windows(node, svd, prompts(SMALL["svd"]))
    assert relative_error(in_windows(node, on_two_devices(svd), conds), expected) <= 1e-4
    assert relative_error(plain, expected) > 1e-2, "the controls did nothing"
