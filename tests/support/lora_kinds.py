"""LoRA and its relatives: parameters of a layer for each kind, and by its formula in fp64 the weight that they make of W.

Source: LyCORIS (Yeh et al. 2023), and what its scripts save.
"""

import torch

from support.loras import STRENGTH, product

ALPHA, RANK = 3.0, 2
KINDS = {}


def kind(function):
    """A maker of a layer's parameters: gives them and, in fp64, the weight that they make of W at STRENGTH."""
    KINDS[function.__name__.strip("_")] = function
    return function


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def low_rank(rows, columns):
    return random(rows, RANK), random(RANK, columns) * columns ** -0.5


@kind
def lora(weight):
    up, down = low_rank(weight.shape[0], weight[0].numel())
    return {"lora_up.weight": up, "lora_down.weight": down}, weight + STRENGTH * ALPHA / RANK * product(up, down, weight.shape)


@kind
def lora_with_a_core(weight):
    """LoCon's Tucker form of a convolution."""
    if weight.ndim == 2:
        return lora(weight)
    ones = [1] * (weight.ndim - 2)
    up, down = random(weight.shape[0], RANK, *ones), random(RANK, weight.shape[1], *ones)
    core = random(RANK, RANK, *weight.shape[2:])
    made = torch.einsum("or,rs...,si->oi...", up.double().flatten(1), core.double(), down.double().flatten(1))
    return {"lora_up.weight": up, "lora_mid.weight": core, "lora_down.weight": down}, weight + STRENGTH * ALPHA / RANK * made


@kind
def loha(weight):
    (a, b), (c, d) = low_rank(weight.shape[0], weight[0].numel()), low_rank(weight.shape[0], weight[0].numel())
    made = (product(a, b, weight.shape) * product(c + 1, d, weight.shape))
    return {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c + 1, "hada_w2_b": d}, weight + STRENGTH * ALPHA / RANK * made


@kind
def loha_with_cores(weight):
    if weight.ndim == 2:
        return loha(weight)
    parts, made = {}, torch.ones(())
    for half in "12":
        core, a, b = random(RANK, RANK, *weight.shape[2:]), random(RANK, weight.shape[0]), random(RANK, weight.shape[1])
        parts |= {f"hada_t{half}": core, f"hada_w{half}_a": a, f"hada_w{half}_b": b}
        made = made * torch.einsum("rs...,ro,si->oi...", core.double(), a.double(), b.double())
    return parts, weight + STRENGTH * ALPHA / RANK * made


def kronecker(w1, w2, shape):
    """w1 ⊗ w2 over the first two dimensions, by its definition."""
    return torch.einsum("ab,cd...->acbd...", w1.double(), w2.double()).reshape(shape)


@kind
def lokr(weight):
    """Both sides whole: then there is no alpha."""
    w1, w2 = random(4, 2), random(weight.shape[0] // 4, weight.shape[1] // 2, *weight.shape[2:]) * 0.1
    return {"lokr_w1": w1, "lokr_w2": w2, "alpha": None}, weight + STRENGTH * kronecker(w1, w2, weight.shape)


@kind
def lokr_of_low_rank(weight):
    w1, shape = random(4, 2), (weight.shape[0] // 4, weight.shape[1] // 2, *weight.shape[2:])
    a, b = low_rank(shape[0], weight[0].numel() // 2)
    made = kronecker(w1, product(a, b, shape), weight.shape)
    return {"lokr_w1": w1, "lokr_w2_a": a, "lokr_w2_b": b}, weight + STRENGTH * ALPHA / RANK * made


@kind
def glora(weight):
    """LyCORIS: W + W · a1 · a2 + b1 · b2, the first over the input channels."""
    (a1, a2), (b1, b2) = low_rank(weight.shape[1], weight.shape[1]), low_rank(weight.shape[0], weight[0].numel())
    made = torch.einsum("oi...,ir,rj->oj...", weight, a1.double(), a2.double()) + product(b1, b2, weight.shape)
    return {"a1.weight": a1, "a2.weight": a2, "b1.weight": b1, "b2.weight": b2}, weight + STRENGTH * ALPHA / RANK * made


@kind
def diff(weight):
    return {"diff": (change := random(*weight.shape)), "alpha": None}, weight + STRENGTH * change.double()


@kind
def set_weight(weight):
    return {"set_weight": (value := random(*weight.shape)), "alpha": None}, value.double()
