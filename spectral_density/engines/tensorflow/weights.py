"""The weights as one vector that is moved, and variables that are restored bit for bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density._repr import repr_with_shapes
from spectral_density.engines.layout import Parameters


@contextmanager
def restored(variables: Iterable[Any]) -> Iterator[None]:
    """Restore variables at the end, bit for bit, after an exception too."""
    # Not copied: what assigns to a variable whose value is held elsewhere leaves that as it is.
    before = [(variable, variable.value()) for variable in variables]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


@dataclass(frozen=True, eq=False)
class HeldWeights:
    """Values of the weights, to restore them or to move them from there."""

    values: list[tf.Tensor]  # of each variable, of its dtype
    vector: np.ndarray  # (size,), all of them, float64

    __repr__ = repr_with_shapes


class Weights:
    """The variables as one vector that can be held, moved, and restored bit for bit.

    Each variable is read and assigned by an operation of its own, which runs immediately: a graph
    of them waits for threads, on a busy machine longer than the gradient of a small network takes.
    """

    def __init__(self, parameters: Parameters):
        """Take the variables."""
        self.parameters = parameters

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.parameters.size

    def hold(self) -> HeldWeights:
        """Return the values of now, for `restore` and `move`."""
        values = [variable.value() for variable in self.parameters.variables]
        return HeldWeights(values, self.parameters.flatten(values))

    def restore(self, held: HeldWeights) -> None:
        """Set the variables to values that were held, bit for bit."""
        for variable, value in zip(self.parameters.variables, held.values, strict=True):
            _assign(variable, value)

    def move(self, held: HeldWeights, displacement: np.ndarray) -> None:
        """Set the variables to values that were held plus a displacement, shape (size,)."""
        moved = self.parameters.unflatten(held.vector + displacement)
        for variable, value in zip(self.parameters.variables, moved, strict=True):
            # The sum is rounded once, to the dtype of the variable.
            _assign(variable, value.astype(variable.dtype.as_numpy_dtype))


def _assign(variable: tf.Variable, value: Any) -> None:
    if isinstance(variable, tf.distribute.DistributedValues):
        variable.assign(value)
    else:
        # The operation of `assign`, at half its time.
        tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
