"""Critical sharpness: how far along a training step the loss stays below where it began."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf, isfinite, nan, sqrt
from typing import Any

import numpy as np

from spectral_density._arguments import explained
from spectral_density._repr import repr_with_shapes
from spectral_density.analysis.arguments import require_movable
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import number, product_precision
from spectral_density.linalg.memory import check_memory

# Losses after the one at the start: seven passes in all, 2.5 gradients where one is three passes.
_MOST = 6
# The ends of the bracket are that close in the end, as a share of the multiple.
_WIDTH = 0.02
# A change of the loss within this many roundings of it has no sign.
_ROUNDINGS = 8
# How much further, or nearer, the next multiple is where the losses so far do not tell.
_STRIDE = 8.0


class CrossingStatus(Enum):
    """What the loss does along a step; the value is a message."""

    CROSSING = "The loss falls along the step, and is back where it began at this multiple of it."
    RISES_AT_ONCE = (
        "The loss rises from the start, as far as it can be told: the step does not descend on "
        "these data. It was made for others (a mini-batch, another dataset), or by momentum that "
        "overshoots."
    )
    NEVER_RISES = (
        "The loss is below where it began up to the largest multiple that was tried: raise "
        "max_multiple, or the learning rate."
    )
    UNRESOLVED = (
        "The loss changes along the step by no more than its rounding: there is no sign to go by. "
        "Compute in float64, or raise max_multiple."
    )
    ZERO_STEP = "The step is zero: there is nothing to go along."

    @property
    def message(self) -> str:
        """What it means, and what to do."""
        return self.value


@dataclass(frozen=True)
class CriticalSharpness:
    """The loss along a step d from weights w, and where it is back at its value at w."""

    value: float  # 2 / (multiple * learning_rate), as an eigenvalue; NaN without a crossing
    multiple: float  # c: the loss at w + c d is that at w; NaN without a crossing
    bracket: tuple[float, float]  # the loss is below that at w at the first, above at the second
    learning_rate: float  # of the step
    status: CrossingStatus
    multiples: np.ndarray  # (k,), those that the loss was computed at, 0 first
    losses: np.ndarray  # (k,), infinite where it is not finite
    data: str = field(default="", kw_only=True)  # what the loss is over

    __repr__ = repr_with_shapes

    @property
    def converged(self) -> bool:
        """Whether there is a value; if not, `status.message` says what to do."""
        return self.status is CrossingStatus.CROSSING

    @property
    def critical_learning_rate(self) -> float:
        """The learning rate at which this step would leave the loss where it began."""
        return self.multiple * self.learning_rate

    def __str__(self) -> str:
        """Return the value, or why there is none, as text."""
        passes = f"{len(self.losses)} passes over {self.data}"
        if not self.converged:
            tried = f"multiples up to {self.multiples.max():.3g}"
            return f"no critical sharpness ({tried}, {passes}): {self.status.message}"
        low, high = self.bracket
        return (
            f"critical sharpness {self.value:.4g}: the loss is back at {self.multiple:.4g} "
            f"({low:.4g} to {high:.4g}) times the step ({passes})"
        )


@explained
def critical_sharpness(
    operator: CurvatureOperator,
    step: np.ndarray | Sequence[Any],
    /,
    learning_rate: float,
    *,
    after_step: bool = True,
    dataset: Any = None,
    max_multiple: float = 1000.0,
) -> CriticalSharpness:
    """Return the sharpness along the step of an optimizer, from at most seven losses.

    With c the smallest multiple of a step d at which the loss is back where it began, loss(w + c d)
    = loss(w), the critical learning rate is c times that of the step, and the sharpness 2 over it.
    On a quadratic it is -d'Hd / (learning_rate g'd): of gradient descent g'Hg / g'g, the curvature
    along the gradient, at most the largest eigenvalue, and near it at the edge of stability. At c
    below 1 the step has raised the loss; at 2 it has gone to the minimum along its line. Neither H
    nor P is needed: it costs some two gradients, and takes steps of any optimizer.

    Between losses that are there the smallest c is sought by secants of (loss(w + c d) - loss(w)) /
    c, which is a line in c for a quadratic. A loss that crosses its start, falls back and crosses
    again between two of the multiples tried is not seen.

    The weights are moved and restored bit for bit, after an exception too.

    Args:
        operator: whose loss is taken, over its data: those that the step was made for, or others.
        step: d, shape (num_params,) or one array for each variable of the operator.
        learning_rate: that the step was made with.
        after_step: whether the weights are those after the step, w + d; otherwise they are w.
        dataset: measure on these data instead of the operator's, as `operator.with_dataset`: of a
            model that is trained on one and must not lose another.
        max_multiple: the largest c that is tried, more than 1.

    Returns:
        CriticalSharpness; its `status` says whether there is a number: none where the loss rises at
        once, never up to `max_multiple`, or by no more than rounding. `bracket` has the number
        between losses below and above the first, 2 % apart where seven were enough; `data` says
        which data were measured.

    Raises:
        TypeError: if the operator is no curvature operator.
        ValueError: if the step has another shape or is not finite, or an option is out of range.
        FloatingPointError: if the loss where the step begins is not finite.
        MemoryError: if a copy of the weights does not fit into the free memory.

    References:
        arXiv 2601.16979 (2026).
    """
    require_movable(operator)
    direction = _direction(operator, step)
    eta = number(learning_rate, "learning_rate", above=0.0)
    most = number(max_multiple, "max_multiple", above=1.0)
    if dataset is not None:
        operator = operator.with_dataset(dataset)
    data = _data_of(operator)
    if not direction.any():
        nothing = np.zeros(0)
        status = CrossingStatus.ZERO_STEP
        return CriticalSharpness(nan, nan, (nan, nan), eta, status, nothing, nothing, data=data)
    size = operator.parameters.size
    check_memory(
        {"a copy of the weights": 8 * size, "weights along the step": 24 * size},
        "Choose fewer variables with variables=.",
    )
    behind = 1.0 if after_step else 0.0
    with operator.derivatives.state.moved() as move:

        def loss(multiple: float) -> float:
            move((multiple - behind) * direction)
            return operator.loss()

        line = _Line(loss, _ROUNDINGS * product_precision(operator))
        status = _bracket(line, most)
        if status is CrossingStatus.CROSSING:
            _narrow(line)
    multiple = line.crossing() if status is CrossingStatus.CROSSING else nan
    return CriticalSharpness(
        2 / (multiple * eta),
        multiple,
        (line.low, line.high) if isfinite(multiple) else (nan, nan),
        eta,
        status,
        np.array([0.0, *line.rises]),
        np.array([line.start, *line.losses]),
        data=data,
    )


def _direction(operator: CurvatureOperator, step: Any) -> np.ndarray:
    """Return a step as one vector, checked."""
    if isinstance(step, (list, tuple)):
        step = operator.parameters.flatten(step)
    direction = np.asarray(step, dtype=np.float64)
    size = operator.parameters.size
    if direction.shape != (size,):
        raise ValueError(
            f"step has one entry for each parameter, shape ({size},), or is one array for each "
            f"variable, got shape {direction.shape}."
        )
    if not np.isfinite(direction).all():
        raise ValueError("the step holds NaN or infinity.")
    return direction


def _data_of(operator: CurvatureOperator) -> str:
    count = len(operator.batches)
    batches = f"{count:,} batch{'' if count == 1 else 'es'}"
    return f"{operator.batches.num_examples:,.10g} examples in {batches}"


# The search --------------------------------------------------------------------------------------


class _Line:
    """The loss along a line, as far as it was computed.

    Attributes:
        start: the loss at 0.
        rises: of each multiple the loss less that at 0, in the order computed.
        low: the largest multiple found below the crossing; 0 for none.
        high: the smallest found above; infinite for none.
    """

    def __init__(self, loss: Callable[[float], float], rounding: float):
        self._loss = loss
        self.start = loss(0.0)
        if not isfinite(self.start):
            raise FloatingPointError(
                f"the loss where the step begins is {self.start}: there is nothing to compare with."
            )
        self._noise = rounding * abs(self.start)
        self.rises: dict[float, float] = {}
        self.losses: list[float] = []
        self.low, self.high = 0.0, inf

    @property
    def left(self) -> int:
        """How many losses may still be computed."""
        return _MOST - len(self.rises)

    def try_at(self, multiple: float) -> int:
        """Compute a loss; return 1 where it has risen, -1 where it has fallen, 0 for rounding."""
        try:
            found = self._loss(multiple)
        except FloatingPointError:
            found = inf
        found = found if isfinite(found) else inf  # far away it may overflow
        self.losses.append(found)
        rise = found - self.start
        self.rises[multiple] = rise
        if rise > self._noise:
            self.high = min(self.high, multiple)
            return 1
        self.low = max(self.low, multiple)
        return -1 if rise < -self._noise else 0

    def has_fallen(self) -> bool:
        """Tell whether any loss below the crossing is less than the first by more than rounding."""
        return any(
            rise < -self._noise for multiple, rise in self.rises.items() if multiple < self.high
        )

    def slope(self, multiple: float) -> float:
        """Return the mean slope from 0 to a multiple: of a quadratic a line in the multiple."""
        return self.rises[multiple] / multiple

    def secant(self, first: float, second: float) -> float:
        """Return where the mean slope is zero on the line through two multiples; NaN nowhere."""
        at_first, at_second = self.slope(first), self.slope(second)
        if not isfinite(at_first - at_second) or at_first == at_second:
            return nan
        return first - at_first * (second - first) / (at_second - at_first)

    def crossing(self) -> float:
        """Return where the crossing should be between the ends of the bracket."""
        between = self.secant(self.low, self.high)
        if not isfinite(between):
            return self.middle
        return min(max(between, self.low), self.high)

    @property
    def middle(self) -> float:
        """The middle of the bracket, by ratio."""
        return sqrt(self.low * self.high)


def _bracket(line: _Line, most: float) -> CrossingStatus:
    """Find a multiple where the loss is below its start, and one where it is above."""
    status = _outward(line, most) if line.try_at(1.0) <= 0 else _inward(line)
    if status is not CrossingStatus.CROSSING or line.has_fallen():
        return status
    # What is not above is not below either, and a crossing needs both.
    has_fallen = line.left and line.try_at(line.low / 2) < 0
    return status if has_fallen else CrossingStatus.UNRESOLVED


def _outward(line: _Line, most: float) -> CrossingStatus:
    """Go to larger multiples until the loss has risen."""
    before, at, beyond = 1.0, min(2.0, most), 1 + _WIDTH / 4
    while line.try_at(at) <= 0:
        if at == most or not line.left:
            return CrossingStatus.NEVER_RISES if line.has_fallen() else CrossingStatus.UNRESOLVED
        ahead = line.secant(before, at)
        is_known = ahead > at  # not where it bends the other way
        ahead = beyond * ahead if is_known else _STRIDE / 2 * at
        if is_known and ahead < _STRIDE * at:
            beyond *= 2  # should this be too near, the next is further out
        # One of the last losses is for the end.
        is_last = line.left == (1 if is_known else 2)
        ahead = most if is_last else min(max(ahead, 2 * at), _STRIDE * at)
        before, at = at, min(ahead, most)
    return CrossingStatus.CROSSING


def _inward(line: _Line) -> CrossingStatus:
    """Go to smaller multiples until the loss has fallen."""
    before, at = 1.0, 0.5
    while line.left:
        found = line.try_at(at)
        if found < 0:
            return CrossingStatus.CROSSING
        if found == 0:
            break
        ahead = line.secant(at, before)
        if not 0 < ahead < at:
            ahead = at / _STRIDE
        before, at = at, min(max(ahead * (1 - _WIDTH / 4), at / _STRIDE**3), at / 2)
    return CrossingStatus.RISES_AT_ONCE


def _narrow(line: _Line) -> None:
    """Narrow the bracket: next to where the crossing should be, on the side of the further end.

    Where the loss was not near its start there, in the middle: one that falls like a line and rises
    like a wall is far from its secants (Dekker's safeguard).
    """
    is_near = True
    while line.left and line.high > (1 + _WIDTH) * line.low:
        between = line.crossing()
        is_near_low = between - line.low < line.high - between
        at = between * (1 + (_WIDTH / 4 if is_near_low else -_WIDTH / 4))
        if not (is_near and line.low < at < line.high):
            at = line.middle
        before = min(abs(line.slope(line.low)), abs(line.slope(line.high)))
        line.try_at(at)
        is_near = abs(line.slope(at)) < before / 2
