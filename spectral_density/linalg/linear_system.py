"""Damped, preconditioned linear systems, and the restart cycles in which methods solve them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._repr import repr_with_shapes
from spectral_density.linalg.arguments import (
    as_real_square,
    block_product,
    precision,
    product_precision,
)
from spectral_density.linalg.solution import Status

ROUNDING = 10.0
"""Curvature below this many eps ||A|| is zero."""

# MINRES passes a least-squares solution where ||B r|| / (||B|| ||r||) had a minimum below this many
# square roots of eps; it cannot get below one.
_STATIONARY_ROOTS = 2.0


class LinearSystem:
    """B = A + damping I and the preconditioner M, with checked products that are counted."""

    def __init__(self, operator: LinearOperator, damping: float, preconditioner: Any):
        self.operator = operator
        self.size = operator.shape[0]
        self.damping = damping
        self.preconditioner = _as_preconditioner(preconditioner, self.size)
        self.eps = max(product_precision(operator), precision(None))
        self.norm = 0.0  # of B, the largest ||B v|| / ||v|| so far
        self.num_products = 0

    def product(self, vector: np.ndarray, iteration: int) -> np.ndarray:
        """Return B @ vector, a new array."""
        product = block_product(self.operator, vector, f"at iteration {iteration}")
        self.num_products += 1
        return product + self.damping * vector if self.damping else product.copy()

    def precondition(self, vector: np.ndarray, iteration: int) -> np.ndarray:
        """Return M @ vector, or the vector itself where there is no preconditioner."""
        if self.preconditioner is None:
            return vector
        where = f"(it is the preconditioner's, at iteration {iteration})"
        return block_product(self.preconditioner, vector, where)

    def is_stationary(self, residual: np.ndarray, norm: float) -> bool:
        """Measure whether B M r = 0 to rounding, so that no x has a smaller r'M r."""
        z = self.precondition(residual / norm, 0)
        slope = float(np.linalg.norm(self.product(z, 0)) / np.linalg.norm(z))
        return slope <= 10 * self.stationary(self.norm)

    @property
    def is_damped(self) -> bool:
        """Whether the damping is above the rounding of float64."""
        return self.damping > ROUNDING * precision(None) * self.norm

    def stationary(self, norm: float) -> float:
        """Return the ||B r|| / ||r|| below which B r may be zero, for ||B|| = norm.

        With damping, that takes an eigenvalue of A of -damping, which no semidefinite A has.
        """
        limit = _STATIONARY_ROOTS * float(np.sqrt(self.eps)) * norm
        if not self.is_damped:
            return limit
        return min(limit, 0.5 * self.damping) if self.preconditioner is None else 0.0


@dataclass
class Cycle:
    """A cycle of a method between two restarts: B x = rhs from x = 0, with rhs of length 1."""

    system: LinearSystem
    rhs: np.ndarray
    goal: float  # the ||rhs - B x|| at which it ends
    maxiter: int
    report: Callable[[float, np.ndarray | None], None]  # called with the norm and x at each step
    offset: np.ndarray | None  # what is added to x before its length is compared with the radius
    radius: float | None
    is_first: bool  # whether nothing is added to x
    restart: int  # vectors of GMRES

    __repr__ = repr_with_shapes


@dataclass
class CycleResult:
    """How a cycle ended; status CONVERGED says that the goal is reached, None that it is not."""

    x: np.ndarray
    residual: np.ndarray
    status: Status | None
    direction: np.ndarray | None = None
    curvature: float | None = None  # d'B d / d'd
    measured: bool = False  # whether the residual comes from a product, not from a recurrence

    __repr__ = repr_with_shapes


def positive_form(
    vector: np.ndarray, image: np.ndarray, iteration: int, or_zero: bool = False
) -> float:
    """Return v'Mv, which a positive definite preconditioner makes positive.

    With `or_zero`, v may be rounding alone, and so may v'Mv.
    """
    product = float(vector @ image)
    if product > 0:
        return product
    size = float(np.linalg.norm(vector) * np.linalg.norm(image))
    if or_zero and abs(product) <= 10 * precision(None) * size:
        return 0.0
    share = product / size if size else 0.0
    raise ValueError(
        f"The preconditioner is not positive definite: r'M r is {share:.3g} of ||r|| ||M r|| at "
        f"iteration {iteration}. Use its absolute value, method='gmres', or none."
    )


def _as_preconditioner(preconditioner: Any, size: int) -> LinearOperator | None:
    if preconditioner is None:
        return None
    shape = getattr(preconditioner, "shape", None)
    if shape is not None and tuple(shape) != (size, size):
        raise ValueError(
            f"The preconditioner must have the operator's shape ({size}, {size}), got "
            f"{tuple(shape)}."
        )
    try:
        return as_real_square(preconditioner)
    except TypeError as error:
        raise TypeError(f"preconditioner: {error}") from None
