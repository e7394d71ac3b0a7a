"""Arguments that the functions of this package have in common."""

from __future__ import annotations

from typing import Any

from spectral_density.curvature.operator import CurvatureOperator


def require_movable(operator: Any) -> None:
    """Check that an operator has a loss and weights that can be moved.

    Raises:
        TypeError: if it is no curvature operator.
    """
    if not isinstance(operator, CurvatureOperator):
        raise TypeError(
            f"the operator must be a CurvatureOperator, whose weights can be moved, got "
            f"{type(operator).__name__}."
        )
