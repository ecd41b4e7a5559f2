"""Numbers that inputs of nodes must have."""

import math
from collections.abc import Callable

from comfy_api.latest import io


def finite(node: str, **values: float) -> None:
    """Raises ValueError, which names node and input, at the first of `values` (input -> its value) that is NaN or infinite.

    The host lets such a number pass: NaN is neither below an input's least value nor above its highest, and what comes from
    another node is not checked.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            found = "NaN" if math.isnan(value) else "infinite"
            raise ValueError(
                f"{node}: {name} is {found}, expected a finite number in the range of this input. Enter one, or correct the node "
                f"that is connected to it."
            )


def in_order(node: str, **ends: float) -> None:
    """Raises ValueError, which names node and inputs, where the first of the two `ends` of a range lies after the second."""
    (start, at), (end, until) = ends.items()
    if at > until:
        raise ValueError(
            f"{node}: {start} {at:g} lies after {end} {until:g}, so that nothing would be done. Enter a {start} that is at most "
            f"{end}."
        )


def numbers(**values) -> dict[str, float]:
    """Those of the values that `validate_inputs` is given that can be checked: numbers.

    None is not: such an input is linked or left out. What is of another type, the host itself refuses.
    """
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def in_schema(node: str, schema: io.Schema, **values) -> None:
    """Raises ValueError, which names node and input, at the first of `values` that is out of its input's range in `schema`.

    For `validate_inputs`, in whose place the host does not check the inputs that it names; only `numbers` are checked.
    """
    for name, value in numbers(**values).items():
        finite(node, **{name: value})
        [known] = [one for one in schema.inputs if one.id == name]
        if not known.min <= value <= known.max:
            raise ValueError(f"{node}: {name} is {value:g}, expected a number from {known.min:g} to {known.max:g}. Enter one.")


def passes(node: str, check: Callable[[], object]) -> bool | str:
    """What `validate_inputs` returns: True, or the text of the ValueError that `check` raises.

    It leaves out the name of the `node` at its beginning, for the editor puts the node's title there.
    """
    try:
        check()
    except ValueError as error:
        return str(error).removeprefix(f"{node}: ")
    return True
