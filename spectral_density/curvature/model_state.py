"""Where a model stands: its loss, the norm of its gradient, and its accuracy on the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from spectral_density.curvature.operator import CurvatureOperator


@dataclass(frozen=True)
class ModelState:
    """Loss, gradient norm and, of a classifier, accuracy over the dataset of an operator.

    A spectrum is that of the loss on given data. Data that are not what the model was trained on,
    such as pixels on another scale, show here: the spectrum of such a loss is a sound one.
    """

    loss: float  # as `CurvatureOperator.loss`
    gradient_norm: float  # over the variables of the operator
    accuracy: float | None = None  # share of labels that are predicted; None if not a classifier

    def numbers(self) -> dict[str, float]:
        """Return those that are known, by name."""
        found = {"loss": self.loss, "gradient_norm": self.gradient_norm}
        return found if self.accuracy is None else {**found, "accuracy": self.accuracy}

    def __str__(self) -> str:
        """Say the numbers in a line."""
        text = f"loss {self.loss:.4g}, gradient norm {self.gradient_norm:.3g}"
        return text if self.accuracy is None else f"{text}, accuracy {100 * self.accuracy:.1f} %"


def model_state(operator: CurvatureOperator) -> ModelState:
    """Return where the model of an operator stands, from three passes over its data.

    Raises:
        FloatingPointError: if the loss or the gradient is not finite.
    """
    loss, gradient = operator.loss(), operator.gradient()
    return ModelState(loss, float(np.linalg.norm(gradient)), _accuracy(operator))


def _accuracy(operator: CurvatureOperator) -> float | None:
    if operator.sweep.replicas is not None:  # whose batches are in several places
        return None
    right = total = 0
    with operator.sweep.one_pass(), operator.derivatives.state.unchanged():
        for batch in operator.batches:
            found = operator.derivatives.inspection.correctly_classified(batch)
            if found is None:
                return None
            right, total = right + found[0], total + found[1]
    return right / total if total else None
