"""Where NaN and infinity in a loss, a gradient or a product come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_SINGULAR = (
    "Look for a derivative that is infinite at a point (sqrt or norm at 0, a power below 2 at 0, a "
    "division by 0, also in a branch that `where` does not choose) and add an epsilon to its "
    "argument."
)
_PARTS = ("inputs", "labels", "sample weights")


def cause(
    what: str,
    batch: Any,
    weights: Mapping[str, Any],
    steps: Mapping[str, Callable[[], Any]],
    is_finite: Callable[[Any], bool],
) -> str:
    """Return in a sentence why something is not finite in a batch, and what to do.

    Args:
        what: is not finite, "product" for instance.
        batch: the one where it is not.
        weights: by name.
        steps: the loss of the batch, its gradient, or what else comes before, in this order.
        is_finite: tells whether an array of the framework holds numbers only.
    """
    named = [name for name, value in weights.items() if not is_finite(value)]
    if named:
        return f"NaN or infinity is in the weights: {', '.join(named)}."
    first = next((name for name, compute in steps.items() if not is_finite(compute())), what)
    places = [place for place, leaf in _leaves(batch) if not is_finite(leaf)]
    if not places:
        return _of_step(first)
    found = f"NaN or infinity is in its data: {', '.join(places)}."
    # Masked values that a loss leaves out come back in its derivatives.
    return found if first == "loss" else f"{found} {_of_step(first)}"


def _of_step(name: str) -> str:
    if name == "loss":
        return (
            "The loss is not finite there, and data and weights are: look for log of 0, a division "
            "by 0 or an overflow in it."
        )
    if name == "gradient":
        return f"The gradient is not finite, while the loss is. {_SINGULAR}"
    return f"The curvature is not finite, while the loss and its gradient are. {_SINGULAR}"


def _leaves(structure: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what a structure is made of, with the place: that of a batch `(x, y, w)` by name."""
    if isinstance(structure, (tuple, list)):
        for number, part in enumerate(structure):
            named = _PARTS[number] if number < len(_PARTS) else f"part {number}"
            yield from _leaves(part, f"{place}[{number}]" if place else named)
    elif isinstance(structure, Mapping):
        for key, part in structure.items():
            yield from _leaves(part, f"{place}[{key!r}]" if place else repr(key))
    elif structure is not None:
        yield place or "the batch itself", structure
