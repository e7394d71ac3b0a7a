"""Does the model or the loss stop gradients on purpose? Then the matrix is that of a surrogate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spectral_density.curvature.graph_walk import deliberate_stops
from spectral_density.curvature.preflight.report import Check

_SHOWN = 3


def surrogate(forward: Any, variables: Sequence[Any], layers: Sequence[Any]) -> Check:
    """Return whether gradients are stopped between the variables and the loss, and where.

    Args:
        forward: concrete function of the loss of a batch, whose first output are its sums.
        variables: with respect to which the matrix is.
        layers: of the model, to name them.
    """
    found = deliberate_stops(forward.graph, variables, forward.outputs[:1], layers)
    if not found:
        message = "no gradient is stopped between the variables and the loss."
        return Check("surrogate", "passed", None, message)
    shown = [f"StopGradient ({name}) in {place}" for name, place in found[:_SHOWN]]
    if len(found) > _SHOWN:
        shown.append(f"and {len(found) - _SHOWN} more")
    message = (
        f"the model or the loss stops gradients itself: {', '.join(shown)}. The matrix is that of "
        "the surrogate that an optimizer sees, in which the stopped values are constants, and not "
        "that of the loss as it is computed."
    )
    return Check("surrogate", "doubtful", None, message)
