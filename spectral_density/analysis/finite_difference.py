"""Central differences: errors of the gradient and the products of a curvature operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density._repr import repr_with_shapes
from spectral_density.analysis.arguments import require_movable
from spectral_density.analysis.slopes import fitted_slope, neighbour_slopes
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import stream
from spectral_density.linalg.norms import euclidean_norm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Key of the random direction, of this file's own.
_KEY = 7043


@dataclass(frozen=True, eq=False)
class FiniteDifferenceCheck:
    """How far gradient and product are from central differences, along a direction d.

    Errors fall as h^2 from large h down, until the rounding of loss and gradient, divided by h,
    makes them rise as 1/h. A constant error is that of a wrong derivative, or of a loss that is
    not smooth here: steps of ReLU and max-pooling cross kinks.
    """

    steps: np.ndarray  # (k,), h > 0
    gradient_errors: np.ndarray  # (k,), |(f(w + hd) - f(w - hd)) / 2h - g'd| / (||g|| ||d||)
    product_errors: np.ndarray  # (k,), ||(g(w + hd) - g(w - hd)) / 2h - Ad|| / ||Ad||
    derivative: float  # g'd
    gradient_norm: float  # ||g||
    product_norm: float  # ||Ad||

    __repr__ = repr_with_shapes

    @property
    def gradient_slopes(self) -> np.ndarray:
        """Slopes of log error against log h between neighbours, (k - 1,); 2 in theory."""
        return neighbour_slopes(self.steps, self.gradient_errors)

    @property
    def product_slopes(self) -> np.ndarray:
        """Slopes of log error against log h between neighbours, (k - 1,); 2 in theory."""
        return neighbour_slopes(self.steps, self.product_errors)

    def slope(
        self,
        what: Literal["gradient", "product"],
        smallest: float = 0.0,
        largest: float = np.inf,
    ) -> float:
        """Return the least-squares slope of log error against log h.

        Args:
            what: "gradient" or "product".
            smallest: steps less than this are left out: rounding hides the error there.
            largest: so are those greater than this, where higher orders show.

        Raises:
            ValueError: if `what` is neither, or fewer than two steps of finite, non-zero error are
                left.
        """
        if what not in ("gradient", "product"):
            raise ValueError(f'what must be "gradient" or "product", got {what!r}.')
        errors = self.gradient_errors if what == "gradient" else self.product_errors
        return fitted_slope(self.steps, errors, smallest, largest, name="steps")

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw both errors against the step, log-log, and return the axes."""
        from spectral_density.plotting import plot_finite_differences

        return plot_finite_differences(self, ax)

    def __str__(self) -> str:
        """Return the smallest errors, and at which steps, as text."""
        return "; ".join(
            f"{what} {errors[at]:.2g} off at h = {self.steps[at]:.2g}"
            for what, errors in (
                ("gradient", self.gradient_errors),
                ("product", self.product_errors),
            )
            for at in [int(np.argmin(np.where(np.isfinite(errors), errors, np.inf)))]
        )


def finite_difference_check(
    operator: CurvatureOperator,
    /,
    *,
    direction: Any = None,
    steps: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> FiniteDifferenceCheck:
    """Compare an operator's gradient and product with central differences over a range of steps.

    The weights are moved to w + h d and w - h d for each step h, and restored bit for bit, after an
    exception too. It takes four passes over the data for each step and two more. Only a Hessian is
    the derivative of the gradient: for a Gauss-Newton or Fisher matrix the product's error is how
    far it is from the Hessian.

    Args:
        operator: whose loss, gradient and matrix are used.
        direction: d, shape (num_params,); None for a random one of length 1.
        steps: h, positive; None for 1e-1 to 1e-7, two a decade. A float32 model is at its best
            near 1e-2 (product) and 1e-1 (gradient), in float64 near 1e-5.
        seed: seed of the random direction.
        progress: show a bar; None for only in interactive runs.

    Returns:
        FiniteDifferenceCheck with an error of gradient and product for each step.

    Raises:
        TypeError: if the operator is no curvature operator.
        ValueError: if the direction has another shape, is zero or not finite, or a step is not
            positive.

    References:
        Nocedal, Wright (2006), Numerical Optimization, section 8.1 (the steps that are best).
    """
    require_movable(operator)
    steps = np.array(10.0 ** -np.arange(1, 7.1, 0.5) if steps is None else steps, dtype=np.float64)
    if steps.ndim != 1 or not steps.size or not np.isfinite(steps).all() or (steps <= 0).any():
        raise ValueError(f"steps must be finite and positive, got {steps}.")
    d = _direction(direction, operator.parameters.size, seed)
    product, gradient = operator.product_and_gradient(d)
    derivative = float(gradient @ d)
    norms = euclidean_norm(gradient), euclidean_norm(product)
    gradient_errors, product_errors = np.empty(len(steps)), np.empty(len(steps))
    with (
        operator.derivatives.state.moved() as move,
        progress_bar(len(steps), "steps", progress) as bar,
    ):
        for position, step in enumerate(steps):
            move(step * d)
            loss_after, gradient_after = operator.loss(), operator.gradient()
            move(-step * d)
            loss_before, gradient_before = operator.loss(), operator.gradient()
            difference = (loss_after - loss_before) / (2 * step)
            gradient_errors[position] = abs(difference - derivative)
            change = (gradient_after - gradient_before) / (2 * step)
            product_errors[position] = euclidean_norm(change - product)
            bar.update(1)
    # Where gradient or product vanish the errors are absolute.
    gradient_errors /= norms[0] * euclidean_norm(d) or 1.0
    product_errors /= norms[1] or 1.0
    return FiniteDifferenceCheck(steps, gradient_errors, product_errors, derivative, *norms)


def _direction(direction: Any, size: int, seed: int) -> np.ndarray:
    if direction is None:
        d = stream(seed, _KEY).standard_normal(size)
        return d / np.linalg.norm(d)
    d = np.asarray(direction, dtype=np.float64)
    if d.shape != (size,):
        raise ValueError(f"direction must have shape ({size},), got {d.shape}.")
    if not np.isfinite(d).all() or not d.any():
        raise ValueError("direction must be finite and not zero.")
    return d
