"""The loss of one batch beside its weights, from the jaxpr of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BesideWeights, Composition, Precision
from spectral_density.engines.jax.held import crosses_kinks, recorded, replayed
from spectral_density.engines.jax.jaxprs import equations, line_of
from spectral_density.engines.jax.loss_functions import LossFunctions
from spectral_density.engines.jax.objectives import OutputsOfBatch
from spectral_density.engines.jax.precision import compiled, exactly

# Logarithms near one are rounding of numbers near zero.
_SATURATED = 4.0  # roundings


class JaxBesideWeights(BesideWeights):
    """One batch, computed again on the pieces that it is on, in the dtype of the model.

    Attributes:
        num_gradients: how many were computed.
        in_float64: whether in float64: where the weights are.
        loss: where the gradient was taken last.
    """

    def __init__(self, functions: LossFunctions, matrix: Composition, at: BatchInput):
        """Trace value, gradient and outputs of a batch once.

        Args:
            functions: of the loss.
            matrix: whose products are compared.
            at: the batch.
        """
        self._functions, self._matrix, self._at = functions, matrix, at
        self._weights, self._constants = functions.arrays()
        self._start = functions.parameters.flatten([np.asarray(w, float) for w in self._weights])
        self.num_gradients = 0
        self.in_float64 = functions.parameters.dtype == np.float64
        self.loss = 0.0
        self._closed = jax.make_jaxpr(exactly(self._computed))(self._weights, self._constants, at)
        stops = frozenset(map(line_of, functions.deliberate_stops(at.batch)))
        self._record = jax.jit(lambda arguments: recorded(self._closed, arguments, stops))
        self._replay = jax.jit(
            lambda arguments, taken: replayed(self._closed, arguments, taken, stops)
        )
        self._branches: list[Any] | None = None
        self._product = compiled(self._traced_product)
        self._kept: Any = None
        self._at_outputs = jax.jit(exactly(self._traced_at_outputs), static_argnums=0)

    def _computed(self, weights: Any, constants: Any, at: BatchInput) -> list[jax.Array]:
        batch = self._functions.verbs(weights, constants, at)
        value, gradient = jax.value_and_grad(batch.value)(weights)
        loss = self._functions.output_loss
        outputs = [] if loss is None else loss.outputs(weights, constants, at.batch).tensors
        return [value, *gradient, *outputs]

    def at(self, displacement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `BesideWeights`: the first time the weights are not moved."""
        self.num_gradients += 1
        parameters = self._functions.parameters
        moved = parameters.unflatten(self._start + displacement)
        weights = [
            jnp.asarray(part, weight.dtype)
            for part, weight in zip(moved, self._weights, strict=True)
        ]
        arguments = jax.tree.leaves((weights, self._constants, self._at))
        if self._branches is None:
            found, self._branches = self._record(arguments)
        else:
            found = self._replay(arguments, self._branches)
        value, *others = (np.asarray(part, np.float64) for part in found)
        self.loss = float(value)
        return np.concatenate([part.reshape(-1) for part in others]), np.array([self.loss])

    def precision(self, num_examples: float) -> Precision | None:
        """See `BesideWeights`."""
        jaxpr = self._closed.jaxpr
        all_equations = list(equations(jaxpr))
        dtypes = {var.aval.dtype for eqn in all_equations for var in eqn.outvars}
        if dtypes & {np.dtype(jnp.float16), np.dtype(jnp.bfloat16)}:
            return None
        in_float32 = self._functions.parameters.dtype == np.float32
        saturation = 0.0
        if any(eqn.primitive.name in ("log", "log1p", "logistic") for eqn in all_equations):
            loss = abs(self.loss) / num_examples
            saturation = _SATURATED / loss if loss else np.inf
        precision = "float32" if in_float32 else "float64"
        return Precision(precision, saturation, crosses_kinks(jaxpr), "")

    def product(self, rows: Any) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
        """See `BesideWeights`."""
        found, self._kept = self._product(self._weights, self._constants, self._at, rows)
        product, tangents, cotangents = jax.tree.map(lambda x: np.asarray(x, np.float64), found)
        return product[0], [t[0] for t in tangents], [c[0] for c in cotangents]

    def _traced_product(self, weights: Any, constants: Any, at: BatchInput, rows: Any) -> Any:
        batch: Any = _Watched(self._functions.verbs(weights, constants, at))
        parameters = self._functions.parameters
        product = parameters.join(self._matrix(batch, parameters.split(rows)))
        return (product, batch.tangents, batch.cotangents), batch.kept_of_outputs()

    def at_outputs(self, what: str) -> Callable[[list[np.ndarray]], np.ndarray]:
        """See `BesideWeights`."""
        like = self._kept["outputs"].tensors

        def function(outputs: list[np.ndarray]) -> np.ndarray:
            tensors = [jnp.asarray(x, z.dtype) for x, z in zip(outputs, like, strict=True)]
            parts = self._at_outputs(what, tensors, self._kept, self._constants, self._at)
            return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in parts])

        return function

    def _traced_at_outputs(
        self, what: str, tensors: Any, kept: Any, constants: Any, at: BatchInput
    ) -> list[jax.Array]:
        loss = self._functions.output_loss
        if loss is None:
            raise TypeError(f"{self._functions.objective.description} has no outputs apart.")
        outputs = OutputsOfBatch(tensors, kept["outputs"].rest)
        if what == "output gradients":
            return jax.grad(lambda z: loss.value(outputs._replace(tensors=z), constants, at))(
                tensors
            )
        if "labels" in kept:
            return [loss.sampled_losses(outputs, at, kept["labels"])]
        return [loss.example_losses(outputs, constants, at)]

    def knows(self, what: str) -> bool:
        """See `BesideWeights`."""
        of_examples = {"labels", "example gradients"} & set(self._kept)
        return what == "output gradients" or (what == "example losses" and bool(of_examples))


class _Watched:
    """The verbs of a batch, of which tangents and cotangents are noted."""

    def __init__(self, batch: Any):
        self._batch = batch
        self.tangents: list[jax.Array] = []
        self.cotangents: list[jax.Array] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def jacobian_products(self, vectors: Any) -> Any:
        self.tangents = self._batch.jacobian_products(vectors)
        return self.tangents

    def transposed_jacobian_products(self, cotangents: Any) -> Any:
        self.cotangents = cotangents
        return self._batch.transposed_jacobian_products(cotangents)

    def kept_of_outputs(self) -> dict[str, Any]:
        """Return what was computed at the outputs: no linear function of the weights."""
        names = ("outputs", "labels", "example gradients")
        return {name: self._batch.kept[name] for name in names if name in self._batch.kept}
