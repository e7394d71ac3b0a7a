"""The result of a linear solve: the solution, its residuals, and the status with its message."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np


class Status(Enum):
    """How a solver ended; the value is a message that says what to do."""

    CONVERGED = "The residual is within the tolerance."
    MAX_ITERATIONS = (
        "maxiter iterations were made and the residual is above the tolerance. x is the last "
        "iterate: go on from it with x0=x, allow more iterations, or use a preconditioner or "
        "damping. A residual above that of the start means a singular or very ill-conditioned "
        "matrix: damp it."
    )
    NEGATIVE_CURVATURE = (
        "The matrix plus damping is not positive definite: its curvature along negative_curvature "
        "is below zero. x is the iterate before it, or, with a radius, the end of that direction "
        "on the boundary. Step along it, raise the damping by more than -curvature, or use "
        "method='minres'."
    )
    SINGULAR = (
        "The matrix plus damping is singular to the precision of its products, and x, the iterate "
        "of the smallest residual, is no solution. Raise the damping, or use method='minres', "
        "which finds a least-squares solution."
    )
    LEAST_SQUARES = (
        "The system has no solution to the precision of its products: the matrix plus damping is "
        "singular, and x minimizes the residual (in the norm of the preconditioner, if there is "
        "one). Raise the damping for a unique solution."
    )
    TRUST_RADIUS = (
        "The path of the iterates left the ball of the given radius; x is the point on its "
        "boundary. The residual is above the tolerance, which only a larger radius can change."
    )
    STAGNATION = (
        "The residual does not fall any further, and it is above the tolerance: rounding in the "
        "products, a matrix that is nearly singular or not symmetric, or, for 'gmres', too short a "
        "restart. Raise rtol or the damping, use method='gmres', or a higher precision."
    )

    @property
    def message(self) -> str:
        """What it means, and what to do."""
        return self.value


@dataclass(frozen=True)
class SolverStep:
    """State after an iteration, for the callback."""

    iteration: int  # from 1
    residual_norm: float  # as in Solution.residual_norms
    x: np.ndarray | None = field(repr=False)  # (n,), read-only; None with method="gmres"


@dataclass(frozen=True, repr=False, eq=False)
class Solution:
    """The x of B x = b, with B = A + damping I, and how the solver ended.

    The history of residual norms is what the recurrence of the method carries along (GMRES: its
    estimate), ||b - B x|| with any preconditioner, at no product. Rounding can separate it from
    the true one, which is `residual_norm`.
    """

    x: np.ndarray  # (n,), float64
    status: Status
    iterations: int
    residual_norms: np.ndarray  # (iterations + 1,), of the start and after each iteration
    residual_norm: float  # ||b - B x||, by a product of its own unless verify=False
    tolerance: float  # max(rtol ||b||, atol), which residual_norm is compared with
    num_products: int  # with the operator, those for residuals included
    model_value: float  # 1/2 x'B x - b'x, the quadratic model of a step
    negative_curvature: np.ndarray | None  # (n,), unit d with b'd > 0 and d'B d <= 0 to rounding
    curvature: float | None  # d'B d
    method: str
    damping: float

    @property
    def converged(self) -> bool:
        """Whether the residual is within the tolerance, measured."""
        return self.status is Status.CONVERGED

    def __repr__(self) -> str:
        """Say how it ended, never the arrays."""
        curvature = "" if self.curvature is None else f", curvature={self.curvature:.3g}"
        return (
            f"Solution({self.status.name}, {self.method}, n={len(self.x):,}, "
            f"{self.iterations:,} iterations, {self.num_products:,} products, "
            f"residual_norm={self.residual_norm:.3g}, tolerance={self.tolerance:.3g}{curvature})"
        )
