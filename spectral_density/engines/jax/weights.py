"""The weights as one vector that is moved: leaves of a pytree, or a Keras model's variables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from spectral_density._repr import repr_with_shapes
from spectral_density.engines.engine import Derivatives
from spectral_density.engines.jax.derivatives import JaxDerivatives
from spectral_density.engines.jax.models import BoundModel, PytreeModel
from spectral_density.engines.jax.parameters import Leaves


@dataclass(frozen=True, eq=False)
class HeldArrays:
    """Values of the weights, to restore them or to move them from there."""

    arrays: list[jax.Array]  # of each leaf, of its dtype
    vector: np.ndarray  # (size,), all of them, float64

    __repr__ = repr_with_shapes


class ArrayWeights(ABC):
    """The weights as one vector that can be held, moved, and restored bit for bit."""

    def __init__(self, parameters: Leaves):
        """Take the leaves."""
        self.parameters = parameters

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.parameters.size

    def hold(self) -> HeldArrays:
        """Return the values of now, for `restore` and `move`."""
        arrays = self.parameters.current()
        vector = self.parameters.flatten([np.asarray(array, np.float64) for array in arrays])
        return HeldArrays(arrays, vector)

    def restore(self, held: HeldArrays) -> None:
        """Set the weights to values that were held, bit for bit."""
        self._set(held.arrays)

    def move(self, held: HeldArrays, displacement: np.ndarray) -> None:
        """Set the weights to values that were held plus a displacement, shape (size,)."""
        parts = self.parameters.unflatten(held.vector + displacement)
        # The sum is rounded once, to the dtype of the leaf, and goes to the devices of the leaf.
        self._set(
            [
                jax.device_put(part.astype(array.dtype), array.sharding)
                for part, array in zip(parts, held.arrays, strict=True)
            ]
        )

    @abstractmethod
    def _set(self, arrays: Sequence[jax.Array]) -> None:
        """Compute with these arrays from now on."""


class LeafWeights(ArrayWeights):
    """Leaves of a pytree: an operator computes with others, and the pytree stays as it is."""

    def _set(self, arrays: Sequence[jax.Array]) -> None:
        self.parameters.arrays = list(arrays)


class VariableWeights(ArrayWeights):
    """Variables of a Keras model, which are assigned to."""

    def _set(self, arrays: Sequence[jax.Array]) -> None:
        for variable, array in zip(self.parameters.variables, arrays, strict=True):
            variable.assign(array)


def weights_of(derivatives: Derivatives) -> ArrayWeights:
    """Return the weights that derivatives of this engine are taken in."""
    model, parameters = _model_and_leaves(derivatives)
    of_pytree = isinstance(model, PytreeModel)
    return LeafWeights(parameters) if of_pytree else VariableWeights(parameters)


def params_of(derivatives: Derivatives) -> Any | None:
    """Return a pytree like that of the loss with the weights of now; None for a Keras model."""
    model, parameters = _model_and_leaves(derivatives)
    if not isinstance(model, PytreeModel):
        return None
    with model.bound(parameters.current(), model.constants()) as params:
        return params


def _model_and_leaves(derivatives: Derivatives) -> tuple[BoundModel, Leaves]:
    if not isinstance(derivatives, JaxDerivatives):
        raise TypeError(f"expected derivatives by JAX, got {type(derivatives).__name__}.")
    return derivatives.objective.model, derivatives.parameters
