"""Products and gradients against central differences, layer by layer, within rounding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from spectral_density.curvature.preflight.report import Status

# The first step length relative to the weights. The second is so many times as long. Where the
# function bends by more than this share of its change, the second is shorter, so that it bends by
# that share: deep networks that were trained bend in 1e-5 of their weights. The third-order error
# of a quotient is about the square of the share.
_STEPS = {"float32": 1e-3, "float64": 1e-6}
_RATIO = 4.0
_MOST_RATIO = 32.0
_BENT = {"float32": 0.1, "float64": 2e-3}

# Relative differences that are none, whatever the quotients say.
_TOLERANCES = {"float32": 2e-3, "float64": 1e-6}

# A product in float32 that is further off differences in float64 is computed in float64, too.
_IN_QUESTION = 1e-5

# So many times the error of the shorter step where the function is smooth, the difference between
# the two quotients where kinks are crossed, and the rounding that the values show, explain a gap.
_SMOOTH_ERRORS = 3.0
_SPREAD_OVER_KINKS = 10.0
_ROUNDINGS = 4.0

# Quotients that differ by more than this share of their norm do not agree, and say nothing.
_DISAGREEMENT = 0.3

# More rounding than this share of the values is none: the function varies within the step.
_UNEVEN = 0.1

# A function that varies within the shorter step has quotients that mean nothing and may agree by
# chance: what fails is looked at once more at a step that is so many times shorter.
_SHORTER = 16.0

# A layer is judged where what explains a gap is less than this share of the product.
_DECIDABLE = 0.5


class Finding(NamedTuple):
    """What a comparison says."""

    status: Status
    figure: float | None  # relative difference, of the worst layer
    message: str


class DifferenceAccuracy(NamedTuple):
    """How well derivatives are known."""

    precision: str  # "float32" or "float64", what products are computed in
    saturation: float = 0.0  # roundings in derivatives, where a cross-entropy is all but zero
    crosses_kinks: bool = False  # whether differences may cross kinks
    differences: str = ""  # what differences are computed in, if in another precision

    def tolerance(self) -> float:
        """Return the relative difference that is none."""
        exactly = self.differences == "float64" and self.precision == "float32"
        least = _IN_QUESTION if exactly else _TOLERANCES[self.precision]
        return least + self.saturation * self.eps()

    def step(self) -> float:
        """Return the first step length."""
        return _STEPS[self.differences or self.precision]

    def bent(self) -> float:
        """Return the share of its change that a function bends by within a good step."""
        return _BENT[self.differences or self.precision]

    def eps(self) -> float:
        """Return the spacing of numbers near 1."""
        return float(np.finfo(self.differences or self.precision).eps)

    def of_differences(self) -> DifferenceAccuracy:
        """Return that of products which are computed as differences are."""
        return self._replace(precision=self.differences or self.precision, differences="")


class Pair(NamedTuple):
    """Values of a function at w + h d and w - h d."""

    step: float
    after: np.ndarray
    before: np.ndarray

    def quotient(self) -> np.ndarray:
        """Return the central difference."""
        return (self.after - self.before) / (2 * self.step)

    def bend(self, here: np.ndarray) -> np.ndarray:
        """Return the second difference."""
        return self.after + self.before - 2 * here

    def of_part(self, where: Any) -> Pair:
        """Return some elements."""
        return Pair(self.step, self.after[where], self.before[where])

    def second_step(self, here: np.ndarray, accuracy: DifferenceAccuracy) -> float:
        """Return a longer step than this one, or a shorter one where the function bends much."""
        bend, change = np.linalg.norm(self.bend(here)), np.linalg.norm(self.after - self.before)
        bent = accuracy.bent() * change
        if not bend > bent:
            return self.step * _RATIO
        return self.step / float(np.clip(bend / bent, _RATIO, _MOST_RATIO) if bent else _RATIO)


class Quotients(NamedTuple):
    """A vector that is a derivative, from differences at two step lengths."""

    far: np.ndarray  # at the longer step
    near: np.ndarray  # at the shorter one
    error: np.ndarray  # of the shorter one, where the function is smooth
    rounding: np.ndarray  # that the shorter step lets through, one for each element
    most: np.ndarray  # quotients that are nothing but rounding may be as large

    @classmethod
    def of(cls, here: np.ndarray, pairs: Sequence[Pair], eps: float) -> Quotients:
        """Return the quotients of a function from its values at both ends of two steps."""
        near, far = sorted(pairs, key=lambda pair: pair.step)
        # Second differences of a smooth function fall with the square of the step; what is left
        # of them beyond that is rounding.
        share = (near.step / far.step) ** 2
        uneven = np.abs(near.bend(here) - share * far.bend(here)) / (2 * near.step)
        most = np.maximum(np.abs(near.after), np.abs(near.before))
        most = np.maximum(most, np.abs(here)) / near.step
        rounding = uneven + eps * np.abs(here) / near.step
        return cls.at_two_steps(far.quotient(), near.quotient(), share, rounding, most)

    @classmethod
    def at_two_steps(
        cls,
        far: np.ndarray,
        near: np.ndarray,
        share: float,
        rounding: np.ndarray,
        most: np.ndarray,
    ) -> Quotients:
        """Return quotients with errors of second order, from the ratio of the steps' squares."""
        return cls(far, near, np.abs(far - near) * share / (1 - share), rounding, most)

    def of_part(self, where: Any) -> Quotients:
        """Return those of some elements."""
        return Quotients(*(part[where] for part in self))


class Parts(Protocol):
    """Quotients of which parts are judged."""

    def of_part(self, where: Any) -> Quotients:
        """Return those of some elements."""


# Returns gradient, (n,), and loss, (1,), where weights are moved by a vector.
Evaluate = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Slopes(NamedTuple):
    """Gradient and loss around a point along a direction."""

    gradient: np.ndarray  # there
    loss: float
    of_gradient: Sequence[Pair]
    of_loss: Sequence[Pair]

    def quotients(self, accuracy: DifferenceAccuracy) -> QuotientsOfParts:
        """Return the derivative of the gradient."""
        return QuotientsOfParts(self, accuracy.eps())


class QuotientsOfParts(NamedTuple):
    """Quotients of slopes, made for a part at a time: of all they are five vectors more."""

    slopes: Slopes
    eps: float

    def of_part(self, where: Any) -> Quotients:
        """Return those of some elements."""
        pairs = [pair.of_part(where) for pair in self.slopes.of_gradient]
        return Quotients.of(self.slopes.gradient[where], pairs, self.eps)

    def of_all(self) -> Quotients:
        """Return those of all elements."""
        return self.of_part(slice(None))


def slopes_along(
    evaluate: Evaluate,
    direction: np.ndarray,
    accuracy: DifferenceAccuracy,
    known: Slopes | None = None,
) -> Slopes:
    """Evaluate gradient and loss at a point and at both ends of two steps: five gradients.

    Args:
        evaluate: returns gradient and loss at the point plus a vector.
        direction: as long as the weights in each layer that it moves.
        accuracy: of the differences.
        known: slopes along another direction: four gradients more.
    """
    if known is None:
        here, value = evaluate(0.0 * direction)
        loss = float(value[0])
    else:
        here, loss = known.gradient, known.loss
    first = pairs_at(evaluate, direction, accuracy.step())
    second = pairs_at(evaluate, direction, first[0].second_step(here, accuracy))
    of_gradient, of_loss = zip(first, second, strict=True)
    return Slopes(here, loss, of_gradient, of_loss)


def pairs_at(evaluate: Evaluate, direction: np.ndarray, step: float) -> tuple[Pair, Pair]:
    """Return gradient and loss at both ends of a step: two gradients."""
    after, before = evaluate(step * direction), evaluate(-step * direction)
    of_gradient, of_loss = (Pair(step, *ends) for ends in zip(after, before, strict=True))
    return of_gradient, of_loss


def judge_product(
    product: np.ndarray, slopes: Parts, layers: Mapping[str, Any], accuracy: DifferenceAccuracy
) -> Finding:
    """Say whether a product is the derivative that differences show, layer by layer.

    Args:
        product: of the matrix with the direction, (n,).
        slopes: of what the matrix is the derivative of, along the same direction.
        layers: the indices of each layer, by its name.
        accuracy: of both.
    """
    parts = {
        name: _Part.of(product[where], slopes.of_part(where)) for name, where in layers.items()
    }
    if not all(part.is_finite() for part in parts.values()):
        return Finding("skipped", None, "not judged: gradients beside the weights are not finite.")
    least = 100 * accuracy.eps() * float(np.linalg.norm(product))
    wrong: dict[str, float] = {}
    right: list[float] = []
    for name, part in parts.items():
        explained = part.explained(accuracy) + least
        if part.gap > explained:
            wrong[name] = part.relative
        elif explained <= _DECIDABLE * part.scale:
            right.append(part.relative)
    if wrong:
        names = sorted(wrong, key=lambda name: -wrong[name])
        return Finding("failed", wrong[names[0]], names[0])
    if right:
        return Finding("passed", max(right), "the product is the derivative of the gradient.")
    sizes, roundings = zip(*((part.size, part.rounding) for part in parts.values()), strict=True)
    vanishes = not product.any() and (
        np.linalg.norm(sizes) <= _ROUNDINGS * np.linalg.norm(roundings)
    )
    why = "the product vanishes" if vanishes else "rounding outweighs the product, or kinks do"
    return Finding("skipped", None, f"not judged: {why}.")


def judge_gradient(slopes: Slopes, direction: np.ndarray, accuracy: DifferenceAccuracy) -> Finding:
    """Say whether a gradient has the slopes that differences of the loss show.

    Where the slope vanishes, at a minimum, the bend of the loss is compared with the change of the
    gradient along the direction.
    """
    here = np.array([slopes.loss])
    along = Quotients.of(here, slopes.of_loss, accuracy.eps())
    first = _compare_numbers(slopes.gradient @ direction, along, accuracy)
    if first.status != "skipped":
        return first
    near, far = sorted(
        zip(slopes.of_loss, slopes.of_gradient, strict=True), key=lambda pair: pair[0].step
    )
    bends = [loss.bend(here) / loss.step**2 for loss, _ in (far, near)]
    last_bits = 4 * accuracy.eps() * np.abs([*near[0].after, *near[0].before, *here]).max()
    rounding = np.array([last_bits / near[0].step ** 2])
    share = (near[0].step / far[0].step) ** 2
    along = Quotients.at_two_steps(bends[0], bends[1], share, rounding, np.array([np.inf]))
    return _compare_numbers(near[1].quotient() @ direction, along, accuracy)


def shorter_step(pairs: Sequence[Pair]) -> float:
    """Return the step at which what fails is looked at once more."""
    return min(pair.step for pair in pairs) / _SHORTER


def settled(slopes: Quotients) -> bool:
    """Tell whether two quotients agree with each other, up to rounding."""
    return _Part.of(slopes.near, slopes).is_settled()


def _compare_numbers(slope: float, along: Quotients, accuracy: DifferenceAccuracy) -> Finding:
    part = _Part.of(np.array([slope]), along)
    explained = part.explained(accuracy)
    if not np.isfinite([part.scale, part.gap, part.spread, part.rounding]).all():
        return Finding("skipped", None, "not judged: losses beside the weights are not finite.")
    if part.gap > explained and part.gap > 0:
        return Finding(
            "failed",
            part.relative,
            f"the gradient is {part.relative:.2g} off the differences of the loss, relative to its "
            "slope: it is that of another function. Look for a custom gradient, a Python function, "
            "or an operation whose registered gradient is wrong.",
        )
    if explained > _DECIDABLE * part.scale or not part.scale:
        why = "rounding of the loss outweighs its slope"
        return Finding("skipped", None, f"not judged: {why}.")
    return Finding("passed", part.relative, "the gradient has the slopes of the loss.")


class _Part(NamedTuple):
    """Norms of what is compared, of one layer."""

    scale: float
    size: float  # of the quotient
    gap: float  # to the closer quotient
    spread: float  # between the quotients
    error: float  # of the closer step, if smooth
    rounding: float
    most: float

    @classmethod
    def of(cls, product: np.ndarray, slopes: Quotients) -> _Part:
        norm = np.linalg.norm
        far, near, error, rounding, most = slopes
        return cls(
            float(max(norm(product), norm(near))),
            float(norm(near)),
            float(min(norm(product - far), norm(product - near))),
            float(norm(far - near)),
            float(norm(error)),
            float(norm(rounding)),
            float(norm(most)),
        )

    @property
    def relative(self) -> float:
        return self.gap / self.scale if self.scale else 0.0

    def is_finite(self) -> bool:
        """Tell whether product and quotients are."""
        norms = [self.size, self.gap, self.spread, self.error, self.rounding]
        return bool(np.isfinite(norms).all())

    def is_settled(self) -> bool:
        """Tell whether the quotients agree with each other, and are not rounding alone."""
        agree = self.spread <= _DISAGREEMENT * self.size + _ROUNDINGS * self.rounding
        return agree and self.rounding <= _UNEVEN * self.most

    def explained(self, accuracy: DifferenceAccuracy) -> float:
        """Return how large a gap the errors of the quotients explain."""
        if not self.is_settled():
            return np.inf
        kinks = _SPREAD_OVER_KINKS * self.spread if accuracy.crosses_kinks else 0.0
        errors = max(kinks, _SMOOTH_ERRORS * self.error) + _ROUNDINGS * self.rounding
        return accuracy.tolerance() * self.scale + errors


def last_wrong_layer(names: Sequence[str], is_wrong: Callable[[Sequence[str]], bool]) -> str:
    """Return the last of the layers that lie before what is wrong, by bisection.

    The block of the matrix that belongs to some layers is wrong where any of them lies before a
    wrong operation, whatever lies beside it or behind.

    Args:
        names: of the layers, in the order of the model; the block of all of them is wrong.
        is_wrong: tells whether the block of some layers is.
    """
    start, stop = 0, len(names)
    while stop - start > 1:
        middle = (start + stop) // 2
        if is_wrong(names[middle:]):
            start = middle
        else:
            stop = middle
    return names[start]
