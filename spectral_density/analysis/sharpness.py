"""Critical sharpness: how far along a training step the loss stays below where it began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import nan
from typing import Any

import numpy as np

from spectral_density._arguments import explained
from spectral_density._repr import repr_with_shapes
from spectral_density.analysis.arguments import require_movable
from spectral_density.analysis.crossing import CrossingStatus, Line, search_crossing
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.arguments import number, product_precision
from spectral_density.linalg.memory import check_memory

# A change of the loss within this many roundings of it has no sign.
_ROUNDINGS = 8


@dataclass(frozen=True)
class CriticalSharpness:
    """The loss along a step d from weights w, and where it is back at its value at w."""

    value: float  # 2 / (multiple * learning_rate), as an eigenvalue; NaN where it is not known
    multiple: float  # c: the loss at w + c d is that at w; NaN where it is not known
    # Below that at w by more than rounding at the first, 0 for nowhere; above at the second.
    bracket: tuple[float, float]
    learning_rate: float  # of the step
    status: CrossingStatus
    multiples: np.ndarray  # (k,), those that the loss was computed at, 0 first
    losses: np.ndarray  # (k,), infinite where it is not finite
    data: str = field(default="", kw_only=True)  # what the loss is over
    num_moved: int = field(default=0, kw_only=True)  # parameters; all others stay as they are

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
        passes = (
            f"{len(self.losses)} passes over {self.data}, {self.num_moved:,} parameters moved and "
            "all others held"
        )
        low, high = self.bracket
        if not self.multiples.size:
            return f"no critical sharpness: {self.status.message}"
        if not self.converged:
            tried = f"multiples up to {self.multiples.max():.3g}, bracket {low:.4g} to {high:.4g}"
            return f"no critical sharpness ({tried}, {passes}): {self.status.message}"
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
        step: d, shape (num_params,) or one array for each variable of the operator. Of an operator
            of some variables it is their part of the step, and all others stay as they are, after
            the step where the operator's are: the number is that of moving these alone.
        learning_rate: that the step was made with.
        after_step: whether the weights are those after the step, w + d; otherwise they are w.
        dataset: measure on these data instead of the operator's, as `operator.with_dataset`: of a
            model that is trained on one and must not lose another.
        max_multiple: the largest c that is tried, more than 1.

    Returns:
        CriticalSharpness; its `status` says whether there is a number: none where the loss rises at
        once, never up to `max_multiple`, or by no more than rounding, and none where `bracket`,
        between losses that are clearly below and above the first, is wider than a factor of 2.
        It is 2 % wide where seven were enough and rounding is small. `data` says which data were
        measured.

    Raises:
        TypeError: if the operator is no curvature operator, or the step no real array.
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
    if not direction.any():
        return without_value(operator, eta, CrossingStatus.ZERO_STEP)
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

        line = Line(loss, _ROUNDINGS * product_precision(operator))
        status = search_crossing(line, most)
    multiple = line.crossing() if status is CrossingStatus.CROSSING else nan
    return CriticalSharpness(
        2 / (multiple * eta),
        multiple,
        (line.low, line.high),
        eta,
        status,
        np.array([0.0, *line.rises]),
        np.array([line.start, *line.losses]),
        data=_data_of(operator),
        num_moved=size,
    )


def without_value(
    operator: CurvatureOperator, learning_rate: float, status: CrossingStatus
) -> CriticalSharpness:
    """Return the result of a step along which no loss is computed, and why."""
    nothing, ends = np.zeros(0), (nan, nan)
    data = _data_of(operator)
    return CriticalSharpness(nan, nan, ends, learning_rate, status, nothing, nothing, data=data)


def _direction(operator: CurvatureOperator, step: Any) -> np.ndarray:
    """Return a step as one vector, checked.

    Raises:
        TypeError: if it is no vector and no list of arrays of real numbers.
        ValueError: if it has another shape, or is not finite.
    """
    parts = list(step) if isinstance(step, (list, tuple)) else [step]
    for part in parts:
        kind = np.asarray(part).dtype
        if kind.kind not in "fiu" and kind.name != "bfloat16":
            raise TypeError(
                f"step is real numbers, one vector or a list of one array for each variable, got "
                f"a {type(part).__name__} of dtype {kind}: of a pytree pass jax.tree.leaves(step)."
            )
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
