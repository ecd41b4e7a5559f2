"""Do the parameters of a LoRA layer go with each other, and with a weight W? By their shapes alone.

They are multiplied out elsewhere, where what has the right number of values may be reshaped silently, and what does not fit left
out. W + alpha / rank · up · down (LoRA), W + (w1a · w1b) ∘ (w2a · w2b) (LoHa), W + w1 ⊗ w2 (LoKr),
W + W · a1 · a2 + b1 · b2 (GLoRA), Q · W (OFT, BOFT), W + diff. Source: LyCORIS.
"""

import math
from collections.abc import Callable, Mapping

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]  # of a layer's parameters

WHOLE = ("diff", "w_norm", "set_weight")  # parameters of the weight's own shape
WHOLE_BIAS = ("diff_b", "b_norm")


def kinds_of(parameters: Shapes) -> list[str]:
    """What there is for the weight: kinds of `KINDS` and names of `WHOLE`; none where it is for the bias alone."""
    factors = [kind for kind, (names, _) in KINDS.items() if not names.isdisjoint(parameters)]
    return factors + [name for name in WHOLE if name in parameters]


def missing_from(parameters: Shapes) -> str | None:
    """A parameter that is missing and without which others mean nothing."""
    try:
        fits(parameters, (0, 0), (0,))
    except KeyError as error:
        return error.args[0]
    return None


def fits(parameters: Shapes, weight: Shape, bias: Shape | None) -> bool:
    """Can these parameters change a layer of such a weight and bias (None: it has none)?"""
    kinds = [KINDS[kind][1] for kind in kinds_of(parameters) if kind in KINDS]
    factors = [fit(parameters, weight if len(weight) > 1 else (0, 0)) for fit in kinds]
    whole = [parameters.get(name, weight) == weight for name in WHOLE]
    whole_bias = [parameters.get(name, bias) == bias for name in WHOLE_BIAS]
    scaled = "dora_scale" not in parameters or math.prod(parameters["dora_scale"]) in weight[:2]
    return "reshape_weight" in parameters or scaled and all(factors + whole + whole_bias)


def _flat(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a tensor that is multiplied as a matrix."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (0, 0)


def _lora(parameters: Shapes, weight: Shape) -> bool:
    (rows, rank), (inner, columns) = _flat(parameters["lora_up.weight"]), _flat(parameters["lora_down.weight"])
    core = parameters.get("lora_mid.weight", (rank, rank))
    return 0 < rank == inner and core[:2] == (rank, rank) and (rows, columns * math.prod(core[2:])) == _flat(weight)


def _loha(parameters: Shapes, weight: Shape) -> bool:
    halves = [(_flat(parameters[f"hada_w{half}_a"]), _flat(parameters[f"hada_w{half}_b"])) for half in "12"]
    if "hada_t1" in parameters or "hada_t2" in parameters:
        cores = [parameters[f"hada_t{half}"] for half in "12"]
        return all(_tucker(a, b, core) == _flat(weight) for (a, b), core in zip(halves, cores, strict=True))
    return all(0 < a[1] == b[0] and (a[0], b[1]) == _flat(weight) for a, b in halves)


def _tucker(a: Shape, b: Shape, core: Shape) -> tuple[int, int]:
    """The matrix of a core [r1, r2, kernel…] with both its ranks multiplied out, by a [r1, rows] and b [r2, columns]."""
    sound = len(core) > 3 and core[:2] == (a[0], b[0])
    return (a[1], b[1] * math.prod(core[2:])) if sound else (0, 0)


def _lokr(parameters: Shapes, weight: Shape) -> bool:
    (rows, columns), (more_rows, more_columns) = _side(parameters, "lokr_w1"), _side(parameters, "lokr_w2")
    return 0 not in weight and (rows * more_rows, columns * more_columns) == _flat(weight)


def _side(parameters: Shapes, name: str) -> tuple[int, int]:
    """The matrix on one side of a Kronecker product."""
    if name in parameters:
        return _flat(parameters[name])
    a, b = _flat(parameters[f"{name}_a"]), _flat(parameters[f"{name}_b"])
    if name == "lokr_w2" and "lokr_t2" in parameters:
        return _tucker(a, b, parameters["lokr_t2"])
    return (a[0], b[1]) if 0 < a[1] == b[0] else (0, 0)


def _glora(parameters: Shapes, weight: Shape) -> bool:
    a1, a2, b1, b2 = (_flat(parameters[f"{name}.weight"]) for name in ("a1", "a2", "b1", "b2"))
    new = 0 < b1[1] == b2[0] == a1[1] == a2[0] and a1[0] == a2[1] == weight[1] and (b1[0], b2[1]) == _flat(weight)
    old = 0 < b2[1] == b1[0] == a2[1] == a1[0] and (b2[0], b1[1]) == _flat(weight) == (weight[0], a2[0]) == (weight[0], a1[1])
    return new or old


def _oft(parameters: Shapes, weight: Shape) -> bool:
    blocks = parameters["oft_blocks"]  # OFT: [count, size, size]; BOFT: [stages, count, size, size]
    return len(blocks) in (3, 4) and blocks[-1] == blocks[-2] and math.prod(blocks[-3:-1]) == weight[0] > 0


KINDS: dict[str, tuple[frozenset[str], Callable[[Shapes, Shape], bool]]] = {
    "LoRA": (frozenset({"lora_up.weight", "lora_down.weight"}), _lora),
    "LoHa": (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), _loha),
    "LoKr": (frozenset({"lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"}), _lokr),
    "GLoRA": (frozenset({"a1.weight", "a2.weight", "b1.weight", "b2.weight"}), _glora),
    "OFT": (frozenset({"oft_blocks"}), _oft),
}
