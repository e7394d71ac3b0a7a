"""Search for the multiple of a step at which the loss is back where it began, from few losses."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf, isfinite, log, nan, sqrt

# Losses after the one at the start: seven passes in all, 2.5 gradients where one is three passes.
_MOST = 6
# How far beyond where the crossing is expected the last loss is.
_LAST = 1.5
# The ends of the bracket are that close in the end, as a share of the multiple.
_WIDTH = 0.02
# There is a number where the ends are this close: it is off by a factor of 2 at most, then.
_WIDEST = 2.0
# How many times its rounding a loss should be away from its start.
_CLEARANCE = 1.5
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
        "The loss is below where it began up to the largest multiple that was tried, max_multiple "
        "or where seven losses ended: raise max_multiple, or the learning rate."
    )
    UNRESOLVED = (
        "The loss is within rounding of where it began all around the crossing, or all along the "
        "step: there is no sign to go by. Compute in float64, or raise max_multiple."
    )
    NOT_NARROWED = (
        "Seven losses leave the crossing within a factor of more than 2: the loss is no parabola "
        "along the step. See bracket for what is known."
    )
    ZERO_STEP = (
        "The step, or its learning rate, is zero: there is nothing to go along. At the start of a "
        "warm-up it is."
    )
    UNKNOWN_STEP = (
        "The step is not known: more than one was made since the weights before it were kept, in "
        "an epoch of another number of steps than the last. Tell fit steps_per_epoch, or measure "
        "with every_steps."
    )

    @property
    def message(self) -> str:
        """What it means, and what to do."""
        return self.value


class Line:
    """The loss along a line, as far as it was computed.

    Attributes:
        start: the loss at 0.
        rises: of each multiple the loss less that at 0, in the order computed.
        low: the largest multiple where it is below by more than rounding; 0 for none.
        high: the smallest where it is above by more than rounding; infinite for none.
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
        if rise < -self._noise:
            self.low = max(self.low, multiple)
            return -1
        return 0

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

    @property
    def has_undecided(self) -> bool:
        """Whether any loss is within rounding of the start."""
        return any(abs(rise) <= self._noise for rise in self.rises.values())

    @property
    def is_narrow(self) -> bool:
        """Whether the bracket says where the crossing is."""
        return self.low > 0 and self.high <= _WIDEST * self.low

    def margin(self, between: float) -> float:
        """Return how far from a crossing rounding hides the sign, as a share of the multiple."""
        slope = (self.slope(self.high) - self.slope(self.low)) / (self.high - self.low)
        if not (isfinite(slope) and slope > 0):
            return _WIDTH / 4
        return max(_WIDTH / 4, _CLEARANCE * self._noise / (slope * between**2))


def search_crossing(line: Line, most: float) -> CrossingStatus:
    """Find a multiple where the loss is below its start, one where it is above, and the crossing.

    A loss within rounding of its start is neither, and leaves the bracket as it is.
    """
    first = line.try_at(1.0)
    at, found = 1.0, first
    if first == 0:
        at = 0.5
        found = line.try_at(at)
    status = _inward(line, at) if found > 0 else _outward(line, most, 1.0)
    if status is not CrossingStatus.CROSSING:
        return status
    if not line.low and not _fall_below(line):
        return CrossingStatus.UNRESOLVED
    _narrow(line)
    if line.is_narrow:
        return CrossingStatus.CROSSING
    return CrossingStatus.UNRESOLVED if line.has_undecided else CrossingStatus.NOT_NARROWED


def _outward(line: Line, most: float, before: float) -> CrossingStatus:
    """Go from a multiple to larger ones until the loss has risen."""
    beyond = 1 + _WIDTH / 4
    # Where nothing has fallen by more than rounding, the step is far too short.
    at = min((2 if line.low else _STRIDE) * before, most)
    while True:
        found = line.try_at(at)
        if found > 0:
            return CrossingStatus.CROSSING
        if at == most or not line.left:
            return CrossingStatus.NEVER_RISES if found < 0 else CrossingStatus.UNRESOLVED
        ahead = line.secant(before, at)
        is_known = found < 0 and ahead > at  # not where it bends the other way
        if is_known and line.left == 1:
            ahead = _LAST * ahead  # for the end of the bracket
        elif is_known:
            ahead *= beyond
            if ahead < _STRIDE * at:
                beyond *= 2  # should this be too near, the next is further out
            ahead = min(max(ahead, 2 * at), _STRIDE * at)
        elif found == 0 and line.low:
            ahead = 2 * at  # the crossing is near
        elif line.left == 2:  # one of the last losses is for the end
            ahead = most
        else:
            ahead = _STRIDE / (2 if line.low else 1) * at
        before, at = at, min(ahead, most)


def _inward(line: Line, before: float) -> CrossingStatus:
    """Go from a multiple where the loss has risen to smaller ones until it has fallen."""
    at = before / 2
    while line.left:
        found = line.try_at(at)
        if found < 0:
            return CrossingStatus.CROSSING
        ahead = line.secant(at, before)
        is_ahead = 0 < ahead < (at if found else before)
        if found == 0:
            has_fallen = line.left and line.try_at(at / 2) < 0
            if has_fallen:
                return CrossingStatus.CROSSING
            return CrossingStatus.UNRESOLVED if is_ahead else CrossingStatus.RISES_AT_ONCE
        if not is_ahead:
            ahead = at / _STRIDE
        before, at = at, min(max(ahead * (1 - _WIDTH / 4), at / _STRIDE**3), at / 2)
    return CrossingStatus.RISES_AT_ONCE


def _fall_below(line: Line) -> bool:
    """Look for a loss that has fallen between those within rounding of the start and the rise."""
    while line.left and not line.low:
        undecided = [multiple for multiple in line.rises if multiple < line.high]
        line.try_at(sqrt(max(undecided) * line.high) if undecided else line.high / 2)
    return line.low > 0


def _narrow(line: Line) -> None:
    """Narrow the bracket: next to where the crossing should be, on the side of the further end.

    From where that has not about halved it, in the middle: a loss that falls like a line and rises
    like a wall is far from its secants (Dekker's safeguard). As near as rounding hides the crossing
    no loss is computed, and one that it hides nevertheless is the last.
    """
    has_helped, before = True, 0.0
    while line.left and line.high > (1 + _WIDTH) * line.low:
        width = log(line.high / line.low)
        between = line.crossing()
        # The estimates so far say how good they are.
        margin = max(line.margin(between), abs(between / before - 1) if before else 0.0)
        before = between
        is_near_low = between - line.low < line.high - between
        at = between * (1 + (margin if is_near_low else -margin))
        if not (has_helped and line.low < at < line.high):
            if line.margin(between) > _WIDTH / 4:
                other = between * (1 - (margin if is_near_low else -margin))
                if not line.low < other < line.high:
                    return
                at = other
            else:
                at = line.middle
        if line.left == 1 and not line.is_narrow:
            at = _last_of(line, between)
        if line.try_at(at) == 0:
            return
        has_helped = has_helped and log(line.high / line.low) < 0.55 * width


def _last_of(line: Line, between: float) -> float:
    """Return the multiple whose loss leaves a bracket narrow enough for a number, as may be."""
    if line.high <= _WIDEST**2 * line.low:
        return line.middle
    return line.low * _WIDEST if between < line.middle else line.high / _WIDEST
