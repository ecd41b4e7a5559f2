"""SVD in its real size with GGUF weights, 25 frames of 1024x576 in fp16: what it takes of a card, as reported and as counted."""

from types import SimpleNamespace

import pytest
import torch

from support.full_svd import SVD
from support.live import peak_bytes

GIB, MIB = 2**30, 2**20
FRAMES, SIZE = 25, (72, 128)
MOST = {"Q4_0": 2.1 * GIB, "Q4_K": 2.1 * GIB, "Q8_0": 3.0 * GIB}  # weights and activations
META = {"dtype": torch.float16, "device": "meta"}


@pytest.fixture
def svd_file(pack):
    """The header of a file as Save UNet writes it, with another type in the place of Q4_0, which has its places."""
    plan = pack("unet.weights.save_plan")

    def make(kind):
        shapes = {name: tuple(tensor.shape) for name, tensor in pack("unet").UNetModel(SVD, device="meta").state_dict().items()}
        network = plan.Network(shapes, dict.fromkeys(shapes, "F16"), {}, {})
        tensors = plan.plan_tensors(network, plan.Wanted("GGUF", "Q4_0"))
        dtypes = {tensor.name: kind if tensor.format == "Q4_0" else tensor.format for tensor in tensors}
        return SimpleNamespace(names={name: name for name in shapes}, shapes=shapes, dtypes=dtypes)

    return make


@pytest.mark.parametrize("kind", MOST)
def test_weights_and_what_the_host_is_told_of_fit_a_small_card(pack, svd_file, kind):
    weights = pack("nodes.bridge.model.packed_weights").packed_bytes(svd_file(kind), torch.float16)
    told = pack("nodes.bridge.model.memory_budget").ChunkedRun(SVD).need(1, FRAMES, *SIZE, 2)
    assert weights + told <= MOST[kind]


@pytest.mark.slow
@pytest.mark.one_host
def test_weights_and_activations_are_counted_below_that_while_layers_dequantize(pack, svd_file):
    """On the meta device, where attention costs its output alone, in chunks of 512 MiB, the largest that are taken there."""
    import comfy.ops

    packed, types, unet = pack("nodes.bridge.model.packed_weights"), pack("unet.weights.ggml_types"), pack("unet")

    class OutputOnly(unet.Hooks):
        def attention(self, q, k, v, heads):
            return torch.empty_like(q)

    file = svd_file("Q4_0")
    network = unet.UNetModel(SVD, operations=packed.with_packed_layers(comfy.ops.manual_cast), **META)
    weights = {}
    for name, kind in file.dtypes.items():
        shape, known = file.shapes[name], types.TYPES[kind]
        data = torch.empty(known.size(torch.Size(shape).numel()), dtype=torch.uint8, device="meta")
        weights[name] = types.PackedTensor(data, known, shape) if types.is_quantized(kind) else torch.empty(shape, **META)
    packed.load_weights(network, weights, torch.float16)
    call = {
        "x": torch.empty(FRAMES, 8, *SIZE, **META), "timesteps": torch.empty(FRAMES, device="meta"),
        "context": torch.empty(FRAMES, 1, 1024, **META), "y": torch.empty(FRAMES, 768, **META),
    }
    with torch.no_grad():
        peak = peak_bytes(lambda: network(**call, budget=512 * MIB, hooks=OutputOnly()))
    assert 1.0 * GIB < peak and packed.packed_bytes(file, torch.float16) + peak <= MOST["Q4_0"]
