"""Minimization of a curvature operator's loss: of functions, and over full batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import integer, number
from spectral_density.linalg.norms import euclidean_norm
from spectral_density.training.methods import SecondOrderMethod
from spectral_density.training.problem import problem_of
from spectral_density.training.steps import TrainingStatus, TrainingStep

# Consecutive steps that were not accepted, after which a method has stalled.
_MOST_REJECTED = 60
# A loss this far below the first, in units of it, has no minimum.
_UNBOUNDED = 1e16


@dataclass(frozen=True, repr=False, eq=False)
class Minimization:
    """How a minimization ended, and its steps."""

    status: TrainingStatus
    loss: float  # at the end
    gradient_norm: float  # there
    steps: tuple[TrainingStep, ...]
    num_products: int
    data_passes: float
    params: Any = None  # the minimizer, a pytree like the operator's; None where variables hold it

    @property
    def converged(self) -> bool:
        """Whether the norm of the gradient is within the tolerance."""
        return self.status is TrainingStatus.CONVERGED

    @property
    def losses(self) -> np.ndarray:
        """Loss before each step and at the end, (len(steps) + 1,)."""
        return np.array([*(step.loss for step in self.steps), self.loss])

    def __repr__(self) -> str:
        """Say how it ended."""
        return (
            f"Minimization({self.status.name}, loss={self.loss:.9g}, "
            f"gradient_norm={self.gradient_norm:.3g}, {len(self.steps):,} steps, "
            f"{self.num_products:,} products)"
        )


def minimize(
    operator: CurvatureOperator,
    method: SecondOrderMethod,
    /,
    *,
    max_steps: int = 100,
    gradient_tolerance: float = 1e-8,
    callback: Callable[[TrainingStep], Any] | None = None,
    progress: bool | None = None,
) -> Minimization:
    """Minimize an operator's loss over its variables, with gradient and matrix of all its data.

    The variables move; they end at the last accepted step. Arrays of JAX cannot: the pytree that an
    operator was made of stays as it is, the minimizer is the `params` of the result, a pytree like
    it, and the operator itself is at the minimizer from then on, as it is where variables have
    moved. The method is reset first.

    Args:
        operator: its `loss()` is minimized, and its products are the method's matrix.
        method: a second-order method; its `curvature` and `hessian_data` are the operator's.
        max_steps: steps at most, rejected ones included.
        gradient_tolerance: norm of the gradient at which to stop.
        callback: called with each `TrainingStep`.
        progress: show a bar; None for only in interactive runs.

    Returns:
        Minimization, whose `status` says how it ended: CONVERGED, MAX_STEPS, STALLED, or what
        stopped it.

    Raises:
        TypeError: if the operator is no curvature operator, or the method no second-order method.

    Example:
        >>> x = tf.Variable([0.1, 0.2], dtype=tf.float64)                        # doctest: +SKIP
        >>> f = HessianOperator.from_function(
        ...     lambda x: x[0]**2 * x[1]**2 + x[0] * x[1], x)                    # doctest: +SKIP
        >>> minimize(f, LowRankSaddleFreeNewton(refresh=1))                      # doctest: +SKIP

        With JAX, of a loss `loss(params)` or `loss(params, batch)`:

        >>> f = HessianOperator.from_function(loss, params, dataset)             # doctest: +SKIP
        >>> params = minimize(f, NewtonCG()).params                              # doctest: +SKIP
    """
    if not isinstance(operator, CurvatureOperator):
        raise TypeError(
            f"the operator must be a CurvatureOperator, whose loss and variables are minimized, "
            f"got {type(operator).__name__}."
        )
    if not isinstance(method, SecondOrderMethod):
        raise TypeError(
            f"the method must be a second-order method such as NewtonCG(), got {method!r}."
        )
    max_steps = integer(max_steps, "max_steps", 0)
    gradient_tolerance = number(gradient_tolerance, "gradient_tolerance", least=0.0)
    problem = problem_of(operator)
    method.reset()
    steps: list[TrainingStep] = []
    status: TrainingStatus | None = None
    num_rejected = 0
    with progress_bar(max_steps, "steps", progress) as bar:
        while status is None and len(steps) < max_steps:
            step = method.step(problem, gradient_tolerance=gradient_tolerance)
            if step.status is TrainingStatus.CONVERGED:
                status = step.status
                break
            steps.append(step)
            bar.update(1)
            if callback is not None:
                callback(step)
            num_rejected = 0 if step.accepted else num_rejected + 1
            status = _end(steps, num_rejected, method.globalization.turns)
    if status is TrainingStatus.CONVERGED:
        loss, norm = step.loss, step.gradient_norm
    else:
        loss, norm = _loss_and_gradient_norm(operator)
    if status is None:
        converged = norm <= gradient_tolerance
        status = TrainingStatus.CONVERGED if converged else TrainingStatus.MAX_STEPS
    work = problem.work
    return Minimization(
        status,
        loss,
        norm,
        tuple(steps),
        work.num_products,
        work.data_passes,
        problem.params(),
    )


def _end(steps: list[TrainingStep], num_rejected: int, turns: bool) -> TrainingStatus | None:
    """Return how the minimization ends after the last step, None where it goes on.

    Args:
        steps: so far.
        num_rejected: how many of the last ones were not accepted.
        turns: whether another direction follows one that is not a descent direction.
    """
    last = steps[-1]
    # After a rejected step the trust region is another one, and so is the damping after a direction
    # that is not a descent direction; any other step would be repeated.
    changes = last.status is TrainingStatus.REJECTED or (
        last.status is TrainingStatus.NOT_DESCENT and turns
    )
    if num_rejected and not changes:
        return last.status
    if last.loss < -_UNBOUNDED * max(1.0, abs(steps[0].loss)):
        return TrainingStatus.UNBOUNDED
    return TrainingStatus.STALLED if num_rejected > _MOST_REJECTED else None


def _loss_and_gradient_norm(operator: CurvatureOperator) -> tuple[float, float]:
    """Return the loss and the norm of the gradient, NaN where they are not finite."""
    loss = operator.loss()
    if not np.isfinite(loss):
        return loss, np.nan
    try:
        return loss, euclidean_norm(operator.gradient())
    except FloatingPointError:
        return loss, np.nan
