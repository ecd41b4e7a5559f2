"""Numbers that inputs of nodes must have."""

import math


def finite(node: str, **values: float) -> None:
    """Raises ValueError, which names node and input, at the first of `values` (input -> its number) that is NaN or infinite.

    The host lets such a number pass: NaN is neither below an input's least value nor above its highest, and what comes from
    another node is not looked at.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            found = "NaN" if math.isnan(value) else "infinite"
            raise ValueError(
                f"{node}: {name} is {found}, expected a finite number in the range of this input. Enter one, or correct the node "
                f"that is connected to it."
            )
