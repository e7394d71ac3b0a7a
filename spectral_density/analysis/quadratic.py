"""Quadratic models of a loss: gradient step, Newton decrement, and the error of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density._repr import repr_with_shapes
from spectral_density.analysis.arguments import require_movable
from spectral_density.analysis.slopes import fitted_slope, neighbour_slopes
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import (
    as_real_square,
    block_product,
    product_error,
    product_precision,
)
from spectral_density.linalg.norms import euclidean_norm
from spectral_density.linalg.solution import Solution, Status
from spectral_density.linalg.solvers import solve
from spectral_density.linalg.tridiagonalization import lanczos

# g'Ag within this many roundings of ||g|| ||Ag|| has no sign that means anything.
_ROUNDINGS = 10

DAMPING_SHARE = 1e-3
"""The damping of a Newton step as a share of the largest eigenvalue, where none is given."""

# Lanczos steps for that eigenvalue, and what CG takes at most with such damping: a tenth in theory.
_STEPS, _DAMPED_ITERATIONS = 10, 1000


class StepStatus(Enum):
    """Shape of the quadratic model along the negative gradient; the value is a message."""

    MINIMUM = "The quadratic model has its minimum along the negative gradient at this step."
    NEGATIVE_CURVATURE = (
        "The curvature along the gradient is negative: the quadratic model falls without end, and "
        "no step is best. Bound the step by a trust region, damp the matrix, or use the "
        "Gauss-Newton matrix."
    )
    ZERO_CURVATURE = (
        "The curvature along the gradient is zero to the precision of the product: the quadratic "
        "model falls without end, and no step is best. Bound the step, or damp the matrix."
    )
    ZERO_GRADIENT = "The gradient is zero: there is no direction to step along."

    @property
    def message(self) -> str:
        """What it means, and what to do."""
        return self.value


@dataclass(frozen=True)
class GradientStep:
    """The best step along the negative gradient g on the quadratic model with matrix A."""

    step: float  # g'g / g'Ag where the curvature is positive, else NaN
    curvature: float  # g'Ag / g'g, in the units of A's eigenvalues; NaN where g is zero
    gradient_norm: float  # ||g||
    decrease: float  # by which the model falls at the step, (g'g)^2 / (2 g'Ag); NaN without one
    status: StepStatus

    def __str__(self) -> str:
        """Return the step, or why there is none, as text."""
        if self.status is StepStatus.MINIMUM:
            return f"step {self.step:.6g} (curvature {self.curvature:.6g} along the gradient)"
        return f"no step (curvature {self.curvature:.6g}): {self.status.message}"


@dataclass(frozen=True)
class NewtonDecrement:
    """The number g'(A + damping I)^-1 g of a gradient g, and the solution of its system."""

    value: float  # squared decrement, in the units of the loss; NaN without convergence
    decrease: float  # by which the quadratic model falls at the Newton step, value / 2
    damping: float  # in the units of A's eigenvalues
    num_products: int  # those that the default damping takes included
    solution: Solution = field(repr=False)  # of (A + damping I) x = g; -x is the Newton step

    @property
    def converged(self) -> bool:
        """Whether the system was solved; if not, `message` says what to do."""
        return self.solution.converged

    @property
    def message(self) -> str:
        """Why there is a value or none, and what to do."""
        solution = self.solution
        if solution.status is Status.NEGATIVE_CURVATURE and solution.curvature is not None:
            least = self.damping - solution.curvature
            return (
                f"{self._matrix} has negative curvature ({solution.curvature:.3g} along a "
                "direction), so that its quadratic model falls without end. Take the Gauss-Newton "
                f"matrix, damping={1.1 * least:.2g} or more, or method='minres' for the value at a "
                "saddle point."
            )
        if solution.status in (Status.SINGULAR, Status.LEAST_SQUARES, Status.STAGNATION):
            return (
                f"{self._matrix} is singular to the precision of its products, and the gradient "
                "is none of its products: no Newton step solves it. Raise the damping; None "
                f"takes {DAMPING_SHARE:g} of the largest eigenvalue."
            )
        if solution.status is Status.MAX_ITERATIONS:
            share = solution.residual_norm / solution.residual_norms[0]
            return (
                f"{solution.iterations:,} iterations left {share:.1e} of the gradient. Raise the "
                "damping or maxiter, or pass a preconditioner."
            )
        return solution.status.message

    @property
    def _matrix(self) -> str:
        return f"A + {self.damping:.3g} I" if self.damping else "A"

    def __str__(self) -> str:
        """Return the value, or why there is none, as text."""
        products = f"{self.num_products:,} products"
        if self.converged:
            return f"g'({self._matrix})^-1 g = {self.value:.6g} ({products})"
        return f"no value after {products}: {self.message}"


@dataclass(frozen=True)
class QuadraticModelError:
    """Difference of the loss and its quadratic model, at steps h p for some scales h."""

    scales: np.ndarray  # (k,), h
    losses: np.ndarray  # (k,), loss(w + h p)
    errors: np.ndarray  # (k,), loss(w + h p) - [loss(w) + h g'p + h^2/2 p'Ap]
    first_order_errors: np.ndarray  # (k,), loss(w + h p) - [loss(w) + h g'p]
    loss: float  # loss(w)
    derivative: float  # g'p
    curvature: float  # p'Ap

    __repr__ = repr_with_shapes

    @property
    def slopes(self) -> np.ndarray:
        """Slopes of log |error| against log |h| between neighbours, (k - 1,).

        They tend to 3 where A is the Hessian, the loss smooth and rounding small; NaN or infinite
        where an error is zero.
        """
        return neighbour_slopes(self.scales, self.errors)

    def slope(self, smallest: float = 0.0, largest: float = np.inf) -> float:
        """Return the least-squares slope of log |error| against log |h|.

        Args:
            smallest: scales of less magnitude are left out: rounding hides the error there.
            largest: so are those of more, where higher orders show.

        Raises:
            ValueError: if fewer than two scales of finite, non-zero error are left.
        """
        return fitted_slope(self.scales, self.errors, smallest, largest, name="scales")


def gradient_step(operator: Any, /, *, gradient: np.ndarray | None = None) -> GradientStep:
    """Return the step along the negative gradient that minimizes the quadratic model.

    The model is loss + g'd + 1/2 d'Ad, along d = -t g at its least for t = g'g / g'Ag. It takes two
    passes over the data, one for g and one for A g; one where the gradient is given.

    Args:
        operator: a `CurvatureOperator`, or, with `gradient`, any symmetric operator (n, n).
        gradient: g, shape (n,); None for the operator's own.

    Returns:
        GradientStep; its `status` says whether there is such a step.

    Raises:
        TypeError: if the operator has no gradient and none is given.
        ValueError: if the gradient has another shape or is not finite.
    """
    linear, g = _with_gradient(operator, gradient)
    norm = euclidean_norm(g)
    if norm == 0:
        return GradientStep(np.nan, np.nan, 0.0, np.nan, StepStatus.ZERO_GRADIENT)
    # A unit vector: neither its square nor a product in half precision under- or overflows.
    direction = g / np.abs(g).max()
    direction /= np.linalg.norm(direction)
    product = block_product(linear, direction, "with the gradient")
    curvature = float(direction @ product)
    rounding = _ROUNDINGS * product_precision(linear) + product_error(linear)
    if abs(curvature) <= rounding * float(np.linalg.norm(product)):
        status = StepStatus.ZERO_CURVATURE
    elif curvature < 0:
        status = StepStatus.NEGATIVE_CURVATURE
    else:
        return GradientStep(
            1 / curvature, curvature, norm, norm / curvature * norm / 2, StepStatus.MINIMUM
        )
    return GradientStep(np.nan, curvature, norm, np.nan, status)


def newton_decrement(
    operator: Any,
    /,
    *,
    gradient: np.ndarray | None = None,
    method: Literal["cg", "minres", "gmres"] = "cg",
    damping: float | None = None,
    preconditioner: Any = None,
    rtol: float = 1e-5,
    maxiter: int | None = None,
    progress: bool | None = None,
) -> NewtonDecrement:
    """Return g'(A + damping I)^-1 g: twice the decrease of the quadratic model at a Newton step.

    With x an approximate solution of B x = g, B = A + damping I, the value is 2 g'x - x'Bx, whose
    error is r'B^-1 r for a residual r: the square of what it is in g'x.

    Of a network A is singular or nearly so, and the value depends on the damping, which belongs to
    it: a tenth of the damping may double it.

    Args:
        operator: a `CurvatureOperator`, or, with `gradient`, any symmetric operator (n, n).
        gradient: g, shape (n,); None for the operator's own.
        method: "cg" for a positive definite B; "minres" for an indefinite one, whose value may be
            negative and belongs to a saddle point of the model.
        damping: added to the diagonal, in the units of A's eigenvalues; 0 for A as it is. None for
            a thousandth of its largest eigenvalue by magnitude (from ten products more) with "cg",
            and for 0 with other methods.
        preconditioner: see `spectral_density.linalg.solvers.solve`, as for the rest.
        rtol: residual of the system relative to ||g||.
        maxiter: iterations at most; None for 1,000 where the damping is None, too, and 10 n
            otherwise.
        progress: show a bar; None for only in interactive runs.

    Returns:
        NewtonDecrement; NaN with the `solution` that says why where the solver did not converge:
        negative curvature, a singular matrix, too few iterations.

    Raises:
        TypeError: if the operator has no gradient and none is given.
        ValueError: if the gradient has another shape or is not finite, or an option out of range.

    References:
        Boyd, Vandenberghe (2004), Convex Optimization, section 9.5.1, where its root is the
        decrement.
    """
    linear, g = _with_gradient(operator, gradient)
    steps = 0
    if damping is None:
        damping = 0.0
        maxiter = min(_DAMPED_ITERATIONS, 10 * len(g)) if maxiter is None else maxiter
        if method == "cg" and g.any():
            steps = min(_STEPS, len(g))
            damping = DAMPING_SHARE * _largest(linear, steps)
    solution = solve(
        linear,
        g,
        method=method,
        damping=damping,
        preconditioner=preconditioner,
        rtol=rtol,
        maxiter=maxiter,
        progress=progress,
    )
    value = -2 * solution.model_value if solution.converged else np.nan
    return NewtonDecrement(value, value / 2, damping, solution.num_products + steps, solution)


def _largest(linear: Any, steps: int) -> float:
    """Return the largest magnitude among the Ritz values of some Lanczos steps."""
    run = lanczos(linear, steps, keep_basis=False, check=False, progress=False)
    return float(np.abs(np.linalg.eigvalsh(run.tridiagonal())).max())


def quadratic_model_error(
    operator: CurvatureOperator,
    step: np.ndarray,
    /,
    *,
    scales: Sequence[float] | np.ndarray | None = None,
    progress: bool | None = None,
) -> QuadraticModelError:
    """Compare the loss along a step with the operator's quadratic model.

    The weights are moved to w + h p for each scale h, and restored bit for bit, after an exception
    too. It takes one pass over the data for each scale and two more. With the Hessian of a smooth
    loss the error falls as h^3, with another matrix as h^2, until rounding takes over: in a float32
    model at h of some 1e-2, in float64 of 1e-5, for a step that is as long as the weights.

    Args:
        operator: whose loss, gradient and matrix are used.
        step: p, shape (num_params,).
        scales: h, none zero; None for 1, 1/2, ..., 2^-9.
        progress: show a bar; None for only in interactive runs.

    Returns:
        QuadraticModelError with an error for each scale.

    Raises:
        TypeError: if the operator is no curvature operator.
        ValueError: if the step has another shape, is zero or not finite, or a scale is.
    """
    require_movable(operator)
    scales = np.array(2.0 ** -np.arange(10) if scales is None else scales, dtype=np.float64)
    if scales.ndim != 1 or not scales.size or not np.isfinite(scales).all() or not scales.all():
        raise ValueError(f"scales must be finite numbers, none of them zero, got {scales}.")
    product, gradient = operator.product_and_gradient(step)
    step = np.asarray(step, dtype=np.float64)
    if not step.any():
        raise ValueError("the step is zero: there is nothing to compare along it.")
    derivative, curvature = float(gradient @ step), float(step @ product)
    here = operator.loss()
    losses = np.empty(len(scales))
    with (
        operator.derivatives.state.moved() as move,
        progress_bar(len(scales), "scales", progress) as bar,
    ):
        for position, scale in enumerate(scales):
            move(scale * step)
            losses[position] = operator.loss()
            bar.update(1)
    # Differences first: they are what is small.
    beyond_first = (losses - here) - scales * derivative
    beyond_second = beyond_first - scales**2 / 2 * curvature
    return QuadraticModelError(
        scales, losses, beyond_second, beyond_first, here, derivative, curvature
    )


def _with_gradient(operator: Any, gradient: Any) -> tuple[Any, np.ndarray]:
    """Return an operator and the gradient, checked."""
    linear = as_real_square(operator)
    if gradient is None:
        if not hasattr(operator, "gradient"):
            raise TypeError(
                f"a {type(operator).__name__} has no gradient of its own: pass it as gradient=."
            )
        return linear, operator.gradient()
    if np.iscomplexobj(gradient):
        raise ValueError("the gradient is complex, and the matrix real.")
    g = np.asarray(gradient, dtype=np.float64)
    if g.shape != (linear.shape[0],):
        raise ValueError(f"gradient must have shape ({linear.shape[0]},), got {g.shape}.")
    if not np.isfinite(g).all():
        raise ValueError("the gradient holds NaN or infinity.")
    return linear, g
