"""Does the model or the loss stop gradients on purpose? Then the matrix is that of a surrogate."""

from __future__ import annotations

from collections.abc import Sequence

from spectral_density.curvature.preflight.report import Check

_SHOWN = 3


def surrogate(stops: Sequence[tuple[str, str]]) -> Check:
    """Return whether gradients are stopped between the variables and the loss, and where.

    Args:
        stops: the operations that do, each with its place.
    """
    if not stops:
        message = "no gradient is stopped between the variables and the loss."
        return Check("surrogate", "passed", None, message)
    shown = [f"StopGradient ({name}) in {place}" for name, place in stops[:_SHOWN]]
    if len(stops) > _SHOWN:
        shown.append(f"and {len(stops) - _SHOWN} more")
    message = (
        f"the model or the loss stops gradients itself: {', '.join(shown)}. The matrix is that of "
        "the surrogate that an optimizer sees, in which the stopped values are constants, and not "
        "that of the loss as it is computed."
    )
    return Check("surrogate", "doubtful", None, message)
