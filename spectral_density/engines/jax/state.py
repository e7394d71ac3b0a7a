"""The arrays around a loss: weights that are moved, and what is held constant."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax.numpy as jnp
import numpy as np

from spectral_density.engines.datasets import hash_of
from spectral_density.engines.engine import State
from spectral_density.engines.jax.arrays import to_host
from spectral_density.engines.jax.loss_functions import LossFunctions

_ADDRESS = re.compile(r"0x[0-9a-f]+")


class JaxState(State):
    """See `State`: functions of JAX write nothing, and weights are moved by being passed."""

    is_written = False

    def __init__(self, functions: LossFunctions):
        """Look into nothing yet."""
        self._functions = functions
        self._jaxprs: list[Any] = []

    def add(self, jaxpr: Any) -> None:
        """Take note of the jaxpr of the loss for a form of batches."""
        self._jaxprs.append(jaxpr)

    def unchanged(self) -> AbstractContextManager[None]:
        """See `State`."""
        return nullcontext()

    @contextmanager
    def moved(self) -> Iterator[Callable[[np.ndarray], None]]:
        """See `State`."""
        parameters = self._functions.parameters
        before, start = parameters.arrays, self.read()
        dtypes = [weight.dtype for weight in parameters.current()]

        def move(displacement: np.ndarray) -> None:
            parts = parameters.unflatten(start + displacement)
            pairs = zip(parts, dtypes, strict=True)
            parameters.arrays = [jnp.asarray(part, dtype) for part, dtype in pairs]

        try:
            yield move
        finally:
            parameters.arrays = before

    def read(self) -> np.ndarray:
        """See `State`."""
        parameters = self._functions.parameters
        return parameters.flatten([np.asarray(w, np.float64) for w in parameters.current()])

    def hash_of_weights(self) -> str:
        """See `State`."""
        everything = self._functions.objective.model.everything()
        return hash_of([to_host(array) for array in everything.values()])

    def hash_of_other_variables(self) -> str:
        """See `State`."""
        return hash_of([to_host(array) for array in self._functions.objective.model.constants()])

    def hash_of_graph(self) -> str:
        """See `State`."""
        texts = [_ADDRESS.sub("", str(closed.jaxpr)) for closed in self._jaxprs]
        consts = [to_host(const) for closed in self._jaxprs for const in closed.consts]
        return hash_of([np.frombuffer("".join(texts).encode(), np.uint8), *consts])
