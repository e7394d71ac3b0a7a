"""Globalization: step lengths that are fixed, spectral, by Armijo's rule, or of a trust region."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spectral_density.linalg.arguments import integer, number
from spectral_density.training.options import one_of, representation
from spectral_density.training.steps import TrainingStatus

# Adaptive damping never falls below this share of its first value.
_LEAST_DAMPING = 1e-12
# Changes of the loss within this many roundings of it are none.
_ROUNDINGS = 10


@dataclass
class Ray:
    """A direction d from the weights w, with the loss along it and its quadratic model."""

    loss: float  # at w
    slope: float  # g'd, negative
    norm: float  # ||d||
    curvature: float  # d'Bd in the method's own model of the loss
    first: float  # step length to try first: the learning rate
    weight_norm: float  # ||w||
    loss_at: Callable[[float], float]  # of t, the loss at w + t d; moves the weights there
    curvature_along: Callable[[], float]  # d'Ad with the matrix itself, by one product
    rounding: float = float(np.finfo(np.float64).eps)  # of the loss, relative to it

    @property
    def least_change(self) -> float:
        """The change of the loss below which rounding hides its sign."""
        return _ROUNDINGS * self.rounding * abs(self.loss)

    def predicted(self, length: float) -> float:
        """Return the decrease of the quadratic model at w + t d."""
        return -length * (self.slope + 0.5 * length * self.curvature)

    def agreement(self, length: float) -> float:
        """Return rho, the decrease of the loss at w + t d over that of the quadratic model.

        Where both are within the rounding of the loss, rho is about 1: such a difference is no
        reason to refuse a step. It is minus infinity where no step should be taken: for a loss that
        is not finite, or a model that does not decrease.
        """
        actual, predicted = self.loss - self.loss_at(length), self.predicted(length)
        if not (np.isfinite(actual) and predicted > 0):
            return -np.inf
        return (actual + self.least_change) / (predicted + self.least_change)


@dataclass(frozen=True)
class StepChoice:
    """The length of a step, 0 for none, and the reason."""

    length: float
    status: TrainingStatus
    checked: bool  # whether the loss there was computed, and is finite


class Globalization(ABC):
    """A rule for the step length, which may depend on earlier steps.

    Attributes:
        turns: whether a direction that is not a descent direction is followed by another one at
            the same weights.
    """

    turns = False

    @abstractmethod
    def choose(self, ray: Ray) -> StepChoice:
        """Choose the length of the step."""

    @property
    def radius(self) -> float | None:
        """The longest step there may be now, None for any."""
        return None

    def damping(self, first: Callable[[], float]) -> float | None:
        """Return the damping of the next step, None to leave it to the method.

        Args:
            first: returns the curvature along the gradient, by one product, to begin with.
        """
        return None

    def refuse(self) -> None:
        """Update the state after a direction that is not a descent direction."""
        return

    def reset(self) -> None:
        """Clear the state from earlier steps."""
        return

    def __repr__(self) -> str:
        """Name the options."""
        return representation(self)


class FixedStep(Globalization):
    """The learning rate, shortened where the step would be long relative to the weights.

    Between two refreshes of the eigenpairs curvature may grow tenfold, most of all at the start of
    training. A step of at most a hundredth of the weights' length, whatever their units, keeps the
    model valid at no cost.
    """

    def __init__(self, max_relative_step: float | None = None):
        """Take the bound.

        Args:
            max_relative_step: longest step relative to the length of the vector of all weights;
                None for any.
        """
        self.max_relative_step = (
            None
            if max_relative_step is None
            else number(max_relative_step, "max_relative_step", above=0.0)
        )

    def choose(self, ray: Ray) -> StepChoice:
        """See `Globalization`."""
        return StepChoice(self.bounded(ray.first, ray), TrainingStatus.ACCEPTED, False)

    def bounded(self, length: float, ray: Ray) -> float:
        """Return the length, shortened where the step would be too long."""
        if self.max_relative_step is None or not ray.weight_norm:
            return length
        return min(length, self.max_relative_step * ray.weight_norm / ray.norm)


class SpectralStep(FixedStep):
    """The minimum of the quadratic model along the direction, never beyond the learning rate.

    The step length is -g'd / d'Ad, with one product of the matrix of this step; where the curvature
    along d is not positive it is the learning rate.
    """

    def choose(self, ray: Ray) -> StepChoice:
        """See `Globalization`."""
        curvature = ray.curvature_along()
        best = -ray.slope / curvature if curvature > 0 else np.inf
        length = self.bounded(min(ray.first, best), ray)
        return StepChoice(length, TrainingStatus.ACCEPTED, False)


class ArmijoBacktracking(Globalization):
    """Shorten the step until the loss has fallen by a share of what the slope predicts.

    The loss is that of the gradient batch, whose gradient the direction came from. A loss that is
    not finite is no decrease; one that is higher by no more than its rounding is no increase at the
    end of the first step that is tried.

    References:
        Nocedal, Wright (2006), Numerical Optimization, algorithm 3.1.
        Hager, Zhang (2005), SIAM J. Optim. 16:170 (for decreases within rounding).
    """

    def __init__(
        self,
        sufficient_decrease: float = 1e-4,
        contraction: float = 0.5,
        max_backtracks: int = 20,
        max_relative_step: float | None = None,
    ):
        """Take the options.

        Args:
            sufficient_decrease: c in loss(w + t d) <= loss(w) + c t g'd.
            contraction: factor of t after each trial that fails.
            max_backtracks: how often t is shortened before the search fails.
            max_relative_step: longest first trial relative to the length of the weights.
        """
        self.sufficient_decrease = number(sufficient_decrease, "sufficient_decrease", above=0.0)
        self.contraction = number(contraction, "contraction", above=0.0)
        if self.contraction >= 1:
            raise ValueError(f"contraction must be less than 1, got {contraction!r}.")
        self.max_backtracks = integer(max_backtracks, "max_backtracks", 0)
        self.max_relative_step = FixedStep(max_relative_step).max_relative_step

    def choose(self, ray: Ray) -> StepChoice:
        """See `Globalization`."""
        length = FixedStep(self.max_relative_step).bounded(ray.first, ray)
        # Near a minimum rounding hides what a whole step gains; a shorter one would gain less.
        hidden = ray.least_change
        for _ in range(self.max_backtracks + 1):
            bound = ray.loss + self.sufficient_decrease * length * ray.slope
            if ray.loss_at(length) <= bound + hidden:
                return StepChoice(length, TrainingStatus.ACCEPTED, True)
            length, hidden = length * self.contraction, 0.0
        return StepChoice(0.0, TrainingStatus.LINE_SEARCH_FAILED, True)


class TrustRegion(Globalization):
    """Take the step if the loss falls as the model predicts, and adapt the radius to the agreement.

    With rho the decrease of the loss over that of the model: below `shrink_below` the radius
    shrinks to a part of the direction's length, above `grow_above` it grows where the direction
    goes to its boundary, and below `accept_above` the step is rejected and the weights are restored
    bit for bit.
    Newton-CG solves within the radius (Steihaug); other directions are shortened to it. The step is
    the learning rate times what is within the radius.

    References:
        Nocedal, Wright (2006), Numerical Optimization, algorithm 4.1.
        Conn, Gould, Toint (2000), Trust-Region Methods (and for rho within rounding).
    """

    def __init__(
        self,
        initial_radius: float | None = None,
        max_radius: float | None = None,
        accept_above: float = 1e-4,
        shrink_below: float = 0.25,
        grow_above: float = 0.75,
        *,
        shrink: float = 0.5,
        grow: float = 2.0,
    ):
        """Take the options.

        Args:
            initial_radius: of the first step; None for the length of the first direction.
            max_radius: the radius never grows beyond it; None for any.
            accept_above: least rho of a step that is taken.
            shrink_below: rho below which the radius shrinks.
            grow_above: rho above which it grows.
            shrink: factor of the direction's length that is the new radius.
            grow: factor of the radius.
        """
        self.initial_radius = _positive_or_none(initial_radius, "initial_radius")
        self.max_radius = _positive_or_none(max_radius, "max_radius")
        self.accept_above = number(accept_above, "accept_above", least=0.0)
        self.shrink_below = number(shrink_below, "shrink_below", least=self.accept_above)
        self.grow_above = number(grow_above, "grow_above", least=self.shrink_below)
        self.shrink = number(shrink, "shrink", above=0.0)
        self.grow = number(grow, "grow", least=1.0)
        if self.shrink >= 1:
            raise ValueError(f"shrink must be less than 1, got {shrink!r}.")
        self._radius = self.initial_radius

    @property
    def radius(self) -> float | None:
        """The radius now, None before the first step."""
        return self._radius

    def reset(self) -> None:
        """Go back to the initial radius."""
        self._radius = self.initial_radius

    def choose(self, ray: Ray) -> StepChoice:
        """See `Globalization`."""
        if self._radius is None:
            self._radius = ray.norm
            if self.max_radius is not None:
                self._radius = min(self._radius, self.max_radius)
        # The learning rate shortens the step within the region, and does not change the radius.
        inside = min(ray.norm, self._radius)
        length = ray.first * inside / ray.norm
        ratio = ray.agreement(length)
        if ratio < self.shrink_below:
            self._radius = self.shrink * inside
        elif ratio > self.grow_above and inside >= (1 - 1e-6) * self._radius:
            self._radius *= self.grow
            if self.max_radius is not None:
                self._radius = min(self._radius, self.max_radius)
        if ratio < self.accept_above or ratio <= 0:
            return StepChoice(0.0, TrainingStatus.REJECTED, True)
        return StepChoice(length, TrainingStatus.ACCEPTED, True)


class LevenbergMarquardt(Globalization):
    """Adapt the damping, instead of a radius, to the agreement of the model with the loss.

    With rho as in `TrustRegion`, damping is raised where rho is low and lowered where it is high.
    It begins at the curvature along the gradient and falls slowly: the first steps are short, and
    the eigenvalues that a Krylov method reaches in few iterations come first. A step that does not
    lower the loss, beyond its rounding, is rejected, and the weights are restored bit for bit.

    References:
        Martens (2010), Deep learning via Hessian-free optimization, ICML, section 4.1.
        Nocedal, Wright (2006), Numerical Optimization, section 10.3.
    """

    turns = True

    def __init__(
        self,
        initial_damping: float | None = None,
        decrease: float = 0.8,
        increase: float = 1.25,
        reject: float = 2.0,
        *,
        increase_below: float = 0.25,
        decrease_above: float = 0.75,
    ):
        """Take the options.

        Args:
            initial_damping: of the first step; None for the magnitude of the curvature along its
                gradient.
            decrease: factor of the damping where rho is above `decrease_above`.
            increase: factor where it is below `increase_below`.
            reject: factor after a step that was rejected.
            increase_below: rho below which the damping is raised.
            decrease_above: rho above which it is lowered.
        """
        self.initial_damping = _positive_or_none(initial_damping, "initial_damping")
        self.decrease = number(decrease, "decrease", above=0.0)
        self.increase = number(increase, "increase", least=1.0)
        self.reject = number(reject, "reject", least=self.increase)
        self.increase_below = number(increase_below, "increase_below", least=0.0)
        self.decrease_above = number(decrease_above, "decrease_above", least=self.increase_below)
        if self.decrease > 1:
            raise ValueError(f"decrease must be at most 1, got {decrease!r}.")
        self._damping: float | None = self.initial_damping
        self.reset()

    def damping(self, first: Callable[[], float]) -> float:
        """See `Globalization`."""
        if self._damping is None:
            # Where there is no curvature along the gradient, the step is the gradient's.
            self._damping = abs(first()) or 1.0
            self._least = _LEAST_DAMPING * self._damping
        return self._damping

    def refuse(self) -> None:
        """Raise the damping, which turns the direction towards the gradient."""
        self._damping = self.reject * (self._damping or 0.0)

    def reset(self) -> None:
        """Go back to the initial damping."""
        self._damping = self.initial_damping
        self._least = _LEAST_DAMPING * (self.initial_damping or 0.0)

    def choose(self, ray: Ray) -> StepChoice:
        """See `Globalization`."""
        damping = self._damping or 0.0
        ratio = ray.agreement(ray.first)
        if ratio <= 0:
            self._damping = self.reject * damping
            return StepChoice(0.0, TrainingStatus.REJECTED, True)
        if ratio < self.increase_below:
            self._damping = self.increase * damping
        elif ratio > self.decrease_above:
            self._damping = max(self.decrease * damping, self._least)
        return StepChoice(ray.first, TrainingStatus.ACCEPTED, True)


def _positive_or_none(value: float | None, name: str) -> float | None:
    return None if value is None else number(value, name, above=0.0)


_BY_NAME: dict[str, type[Globalization]] = {
    "fixed": FixedStep,
    "spectral": SpectralStep,
    "armijo": ArmijoBacktracking,
    "trust_region": TrustRegion,
    "levenberg_marquardt": LevenbergMarquardt,
}


def as_globalization(globalization: str | Globalization) -> Globalization:
    """Return a globalization, given itself or its name with the default options.

    Raises:
        ValueError: if the name is unknown.
        TypeError: if it is neither.
    """
    if isinstance(globalization, Globalization):
        return globalization
    if not isinstance(globalization, str):
        raise TypeError(
            f"globalization must be a Globalization or its name, got {globalization!r}."
        )
    return _BY_NAME[one_of(globalization, "globalization", _BY_NAME)]()
