"""Update rules of optimizers: the diagonal matrix P of step = -eta P^-1 m, and what m is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import isfinite
from typing import Any

import numpy as np

from spectral_density.engines.layout import Parameters


class Momentum(Enum):
    """What m is made of, from the gradient g and the coefficient b."""

    NONE = "m = g"
    HEAVY_BALL = "m <- b m + g"
    NESTEROV = "t <- b t + g, m = b t + g"
    AVERAGE = "m <- b m + (1 - b) g"


@dataclass(frozen=True)
class Dynamics:
    """The numbers of an update w <- w - eta wd w - eta P^-1 m, at its next step."""

    learning_rate: float  # eta
    momentum: Momentum = Momentum.NONE
    coefficient: float = 0.0  # b
    weight_decay: float = 0.0  # wd, decoupled: not a part of the loss

    def __post_init__(self) -> None:
        """Raise where steps of the whole gradient are stable at no curvature.

        Raises:
            ValueError: naming the number.
        """
        eta, decay = self.learning_rate, self.weight_decay
        if not (isfinite(eta) and eta >= 0):
            raise ValueError(f"learning_rate must be finite and not negative, got {eta:g}.")
        refuse_no_average("the coefficient of the momentum", self.coefficient)
        if not (isfinite(decay) and decay >= 0):
            raise ValueError(f"weight_decay must be finite and not negative, got {decay:g}.")
        if eta * decay >= 2:
            raise ValueError(
                f"learning_rate times weight_decay must be less than 2, got {eta:g} * {decay:g}: "
                "the decay alone is unstable, without any curvature."
            )


class UpdateRule(ABC):
    """What one optimizer makes of gradients, read from the optimizer itself.

    Attributes:
        name: of the method, such as "Adam".
    """

    name: str

    @abstractmethod
    def diagonal(self, parameters: Parameters) -> np.ndarray:
        """Return the diagonal of P at the step made last, (num_params,), float64.

        Args:
            parameters: in whose order it is.

        Raises:
            ValueError: if there is no state for them, or none yet.
        """

    @abstractmethod
    def dynamics(self) -> Dynamics:
        """Return learning rate, momentum and weight decay.

        Raises:
            ValueError: if one of them is not known.
        """

    @property
    def num_steps(self) -> int | None:
        """How many steps were made so far; None where the state stays as it is."""
        return None


class ConstantRule(UpdateRule):
    """A diagonal P that is given."""

    name = "P given by hand"

    def __init__(self, diagonal: Any):
        """Take one vector (num_params,), or one array for each variable."""
        self._diagonal = diagonal

    def diagonal(self, parameters: Parameters | None) -> np.ndarray:
        """See `UpdateRule`; of a matrix that says nothing of its parameters it is one vector."""
        if isinstance(self._diagonal, (list, tuple)):
            if parameters is None:
                raise ValueError(
                    "P is a list of arrays, and the operator does not say which variables its rows "
                    "are: pass P as one vector."
                )
            return parameters.flatten(self._diagonal)
        return np.asarray(self._diagonal)

    def dynamics(self) -> Dynamics:
        """See `UpdateRule`: a matrix P alone has none."""
        raise ValueError(
            "P alone has no learning rate, and so no threshold: 2 / learning_rate without "
            "momentum. Pass an optimizer."
        )


def refuse_no_average(name: str, coefficient: float) -> None:
    """Raise if a coefficient b of sums b m + g, or averages b m + (1 - b) g, is none.

    Raises:
        ValueError: if it is not in [0, 1).
    """
    if not 0 <= coefficient < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {coefficient:g}.")


def refuse_hyperparameters(names: Mapping[str, Any], owner: str) -> None:
    """Raise if hyperparameters are passed beside something that has its own.

    Raises:
        TypeError: naming them.
    """
    if names:
        raise TypeError(
            f"{', '.join(names)} was passed, and {owner}: hyperparameters are passed for the "
            "states of Optax alone, which do not hold them."
        )
