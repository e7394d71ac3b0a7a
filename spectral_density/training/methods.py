"""Base class of the second-order methods: options, and one step from direction to weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from spectral_density._repr import repr_with_shapes
from spectral_density.linalg.arguments import integer, number
from spectral_density.linalg.norms import euclidean_norm, inner
from spectral_density.linalg.solvers import Status
from spectral_density.training.globalization import Globalization, Ray, StepChoice, as_globalization
from spectral_density.training.options import one_of, representation
from spectral_density.training.problem import CountedOperator, HeldWeights, Problem
from spectral_density.training.steps import TrainingStatus, TrainingStep

CURVATURES = ("hessian", "gauss_newton")


@dataclass(frozen=True, eq=False)
class Direction:
    """A direction to step along, with the method's model of the loss there."""

    vector: np.ndarray  # d, (num_params,)
    curvature: float  # d'Bd with the method's own matrix B, damping included
    status: TrainingStatus = TrainingStatus.ACCEPTED  # of a step along it
    damping: float = np.nan
    rank: int = 0
    smallest_eigenvalue: float = np.nan
    largest_eigenvalue: float = np.nan
    solver_status: Status | None = None

    __repr__ = repr_with_shapes


class SecondOrderMethod(ABC):
    """A method that steps along a direction made from the gradient and products with a matrix.

    A subclass writes `_direction`. State that a method keeps from step to step (eigenpairs, forcing
    terms, the radius of a trust region) is cleared by `reset`, which `compile` calls.

    Attributes:
        learning_rate: step length along the direction, or the first one that is tried. May be set
            between steps, as Keras's callbacks do.
        globalization: how far to step: "fixed", "spectral", "armijo", "trust_region",
            "levenberg_marquardt", or an object with options.
        curvature: "hessian" or "gauss_newton", the matrix `SecondOrderModel` makes.
        hessian_data: batches for the matrix, one for each time it is made; None for those of the
            gradient.
        hessian_batch_size: how many of the gradient's examples the matrix is made of, None for as
            many as its first batch has.
        last_step: record of the last step, None before the first.
    """

    def __init__(
        self,
        *,
        learning_rate: float,
        globalization: str | Globalization,
        curvature: Literal["hessian", "gauss_newton"],
        hessian_data: Any,
        hessian_batch_size: int | None,
    ):
        """Check the options of all methods."""
        self.learning_rate = number(learning_rate, "learning_rate", above=0.0)
        self.globalization = as_globalization(globalization)
        self.curvature = one_of(curvature, "curvature", CURVATURES)
        if hessian_data is not None and hessian_batch_size is not None:
            raise ValueError(
                "Give either hessian_data, whose batches the matrix is made of, or "
                "hessian_batch_size, a number of the gradient's own examples."
            )
        self.hessian_data = hessian_data
        self.hessian_batch_size = (
            None
            if hessian_batch_size is None
            else integer(hessian_batch_size, "hessian_batch_size", 1)
        )
        self.reset()

    def reset(self) -> None:
        """Clear the state from earlier steps."""
        self.globalization.reset()
        self.last_step: TrainingStep | None = None
        self._num_steps = 0
        self._before: HeldWeights | None = None  # before a step whose loss was not computed

    @abstractmethod
    def _direction(self, problem: Problem, loss: float, gradient: np.ndarray) -> Direction:
        """Return the direction of this step."""

    def _taken(self, direction: Direction, choice: StepChoice) -> None:
        """Update the state of the method after a step."""
        return

    def step(self, problem: Problem, *, gradient_tolerance: float = 0.0) -> TrainingStep:
        """Make one step of the problem's weights.

        Whatever ends it, interruptions and errors included, the weights are those of the last
        accepted step.

        Args:
            problem: cost, gradient, matrix and weights.
            gradient_tolerance: norm of the gradient at which no step is made.

        Returns:
            TrainingStep, with a `status`; also in `last_step`.
        """
        self._num_steps += 1
        held = problem.weights.hold()
        self._figures: dict[str, Any] = {"loss": np.nan, "gradient_norm": np.nan}
        try:
            status = self._step(problem, held, gradient_tolerance)
        except BaseException:
            problem.weights.restore(held)
            self.last_step = self._record(problem, TrainingStatus.INTERRUPTED)
            raise
        self.last_step = self._record(problem, status)
        return self.last_step

    def _step(
        self, problem: Problem, held: HeldWeights, gradient_tolerance: float
    ) -> TrainingStatus:
        loss, gradient = problem.loss_and_gradient()
        self._figures["loss"] = loss
        if not np.isfinite(loss):
            if self._before is not None:
                problem.weights.restore(self._before)
                self._before = None
            return TrainingStatus.LOSS_NOT_FINITE
        self._before = None
        if not np.isfinite(gradient).all():
            return TrainingStatus.GRADIENT_NOT_FINITE
        norm = self._figures["gradient_norm"] = euclidean_norm(gradient)
        if norm <= gradient_tolerance:
            return TrainingStatus.CONVERGED
        try:
            direction = self._direction(problem, loss, gradient)
        except FloatingPointError:
            return TrainingStatus.CURVATURE_NOT_FINITE
        slope = inner(gradient, direction.vector)
        self._figures |= {
            "slope": slope,
            "damping": direction.damping,
            "rank": direction.rank,
            "smallest_eigenvalue": direction.smallest_eigenvalue,
            "largest_eigenvalue": direction.largest_eigenvalue,
            "solver_status": direction.solver_status,
        }
        if not slope < 0:
            self.globalization.refuse()
            self._taken(direction, StepChoice(0.0, TrainingStatus.NOT_DESCENT, True))
            return TrainingStatus.NOT_DESCENT
        return self._along(problem, held, loss, slope, direction)

    def _along(
        self, problem: Problem, held: HeldWeights, loss: float, slope: float, direction: Direction
    ) -> TrainingStatus:
        """Choose the length of the step, and take it."""
        weights, d = problem.weights, direction.vector
        at = 0.0

        def loss_at(length: float) -> float:
            nonlocal at
            weights.move(held, length * d)
            at = length
            return problem.loss()

        def curvature_along() -> float:
            operator: CountedOperator = problem.curvature()
            return inner(d, operator.matvec(d))

        ray = Ray(
            loss=loss,
            slope=slope,
            norm=euclidean_norm(d),
            curvature=direction.curvature,
            first=self.learning_rate,
            weight_norm=euclidean_norm(held.vector),
            loss_at=loss_at,
            curvature_along=curvature_along,
            rounding=problem.rounding,
        )
        try:
            choice = self.globalization.choose(ray)
        except FloatingPointError:
            return TrainingStatus.CURVATURE_NOT_FINITE
        if not choice.length:
            weights.restore(held)
        else:
            if choice.length != at:
                weights.move(held, choice.length * d)
            if not choice.checked:
                self._before = held
            self._figures |= {
                "step_length": choice.length,
                "step_norm": choice.length * ray.norm,
            }
        self._taken(direction, choice)
        if choice.status is TrainingStatus.ACCEPTED:
            return direction.status
        return choice.status

    def _record(self, problem: Problem, status: TrainingStatus) -> TrainingStep:
        radius = self.globalization.radius
        missing = {"slope": np.nan, "step_length": 0.0, "step_norm": 0.0, "damping": np.nan}
        spectrum = {"rank": 0, "smallest_eigenvalue": np.nan, "largest_eigenvalue": np.nan}
        figures = missing | spectrum | {"solver_status": None} | self._figures
        return TrainingStep(
            number=self._num_steps,
            status=status,
            radius=np.nan if radius is None else radius,
            num_products=problem.work.num_products,
            data_passes=problem.work.data_passes,
            **figures,
        )

    def __repr__(self) -> str:
        """Name the options, without data."""
        return representation(self, hidden=("hessian_data", "last_step"))
