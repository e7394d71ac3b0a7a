"""What a callback measures of the stability of a training: threshold, and critical sharpness."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_density.analysis.crossing import CrossingStatus
from spectral_density.analysis.sharpness import (
    CriticalSharpness,
    critical_sharpness,
    without_value,
)
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.preconditioned import preconditioned
from spectral_density.curvature.stability import stability_threshold
from spectral_density.engines.keras_shared.optimizers import learning_rate_of
from spectral_density.linalg.memory import check_memory

# A critical sharpness takes seven losses at most, which three products take longer than.
_LOSSES_IN_PRODUCTS = 3


class StabilityProbe:
    """The stability of a training: what is asked of it, and the weights before a step.

    Attributes:
        preconditioned: whether the matrix is that which the optimizer sees.
        critical: whether the critical sharpness of steps is measured.
    """

    def __init__(self, preconditioned: bool, critical: bool):
        """Take what is asked for."""
        self.preconditioned = bool(preconditioned)
        self.critical = bool(critical)
        # Weights, learning rate, and how many steps were made.
        self._before: tuple[np.ndarray, float, int] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What is recorded beside a spectrum, by the names of a `SpectrumRecord`."""
        of_threshold = ("threshold", "ratio") if self.preconditioned else ()
        return (*of_threshold, *(("critical_sharpness",) if self.critical else ()))

    @property
    def cost_in_products(self) -> int:
        """What it takes at most beside the spectrum, in products."""
        return _LOSSES_IN_PRODUCTS if self.critical else 0

    def check(self, model: Any) -> None:
        """Raise what is wrong with the model's optimizer, before the first step.

        Raises:
            TypeError: if its update is not known.
            ValueError: if its step has no threshold, it has several learning rates, or several
                steps are made together.
        """
        if self.preconditioned:
            stability_threshold(model.optimizer)
        if self.critical:
            learning_rate_of(model.optimizer)
        together = _steps_together(model) if self.critical else 1
        if together != 1:
            raise ValueError(
                f"critical_sharpness=True looks along single steps, and the model makes "
                f"{together} together: compile it with steps_per_execution=1."
            )

    def matrix(self, operator: CurvatureOperator, model: Any) -> Any:
        """Return the matrix to measure, with the optimizer's state of now."""
        if not self.preconditioned:
            return operator
        return preconditioned(operator, model.optimizer)

    def threshold(self, model: Any) -> float | None:
        """Return the threshold at the learning rate of the next step; None if not asked for."""
        return stability_threshold(model.optimizer) if self.preconditioned else None

    def before_step(self, operator: CurvatureOperator, model: Any, num_steps: int) -> None:
        """Keep a copy of the weights after so many steps, and the learning rate of the next.

        Raises:
            MemoryError: if there is no room for it.
        """
        copied = {"a copy of the weights": 8 * operator.parameters.size}
        check_memory(copied, "Leave out critical_sharpness=True, or choose fewer by variables=.")
        rate = learning_rate_of(model.optimizer)
        self._before = operator.derivatives.state.read(), rate, num_steps

    def forget(self) -> None:
        """Let go of the copy."""
        self._before = None

    def along_step(self, operator: CurvatureOperator, num_steps: int) -> CriticalSharpness | None:
        """Return the critical sharpness of the last of so many steps; None without a copy.

        Without a number, and with the status that says so, where more than one step was made since
        the copy, or the step or its learning rate is zero.

        Raises:
            FloatingPointError: if the step has diverged.
        """
        if self._before is None:
            return None
        before, rate, step_of_copy = self._before
        self._before = None
        if num_steps != step_of_copy + 1:
            return without_value(operator, rate, CrossingStatus.UNKNOWN_STEP)
        after = operator.derivatives.state.read()
        if not np.isfinite(after).all():
            raise FloatingPointError("NaN or infinity is in the weights after the step.")
        step = after - before
        if not (rate and step.any()):
            return without_value(operator, rate, CrossingStatus.ZERO_STEP)
        return critical_sharpness(operator, step, rate)


def _steps_together(model: Any) -> int | str:
    """Return how many steps a model makes in one call, or "auto"."""
    together = getattr(model, "steps_per_execution", 1)
    is_auto = isinstance(together, str) or getattr(model, "autotune_steps_per_execution", False)
    return "auto" if is_auto else int(together)
