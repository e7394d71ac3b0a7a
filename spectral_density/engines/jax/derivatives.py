"""Derivatives of one loss in the leaves of a pytree, or in the variables of a Keras model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density._warnings import warn
from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BatchVerbs, Composition, Derivatives, Needs
from spectral_density.engines.jax import arrays, batches
from spectral_density.engines.jax.arrays import total
from spectral_density.engines.jax.inspection import JaxInspection
from spectral_density.engines.jax.jaxprs import coarsest_dtype
from spectral_density.engines.jax.loss_functions import LossFunctions, reached
from spectral_density.engines.jax.needs import check_needs, check_weights
from spectral_density.engines.jax.objectives import Objective
from spectral_density.engines.jax.output_loss import OutputLoss
from spectral_density.engines.jax.parameters import Leaves
from spectral_density.engines.jax.precision import compiled, lower_precision
from spectral_density.engines.jax.processes import JaxProcesses
from spectral_density.engines.jax.products import JaxProducts, width_of_chunks
from spectral_density.engines.jax.state import JaxState
from spectral_density.engines.jax.vectors import JaxVectors

# Batches of so many shapes are traced without a word.
_MANY_SHAPES = 8


class JaxDerivatives(Derivatives):
    """The derivatives of a loss that JAX differentiates.

    Attributes:
        objective: the loss in one form.
        functions_of_loss: compiled.
    """

    framework = "jax"
    functions = batches
    tensors = arrays
    parameters: Leaves
    state: JaxState
    replicas = None

    def __init__(self, objective: Objective, needs: Needs, output_loss: OutputLoss | None):
        """Trace nothing yet.

        Args:
            objective: the loss.
            needs: of the matrix.
            output_loss: the loss as a function of the outputs, where the matrix needs it.
        """
        self.objective = objective
        self.parameters = objective.model.leaves
        self.needs = needs
        self.functions_of_loss = LossFunctions(objective, output_loss)
        self.description = objective.description
        self.is_function = objective.is_function
        self.product_dtype = self.parameters.dtype
        self.penalized = False  # known, as `width`, after the first batch
        self.width = 1
        self.depends = False
        self.state = JaxState(self.functions_of_loss)
        self.inspection = JaxInspection(self)
        self._forms: set[str] = set()
        self._num_surveyed = 0
        self._vectors: JaxVectors | None = None

    @property
    def coefficients(self) -> np.ndarray:  # type: ignore[override]
        """Weight of each term of the loss; known after the first batch."""
        return self.objective.coefficients

    @property
    def averaged(self) -> np.ndarray:  # type: ignore[override]
        """Whether each term is divided by its denominator; known after the first batch."""
        return self.objective.averaged

    # Batches -------------------------------------------------------------------------------------

    def survey(self, batch: Any, weight: Any, is_first_dataset: bool) -> np.ndarray:
        """See `Derivatives`: the loss of each batch of the first dataset is computed, too."""
        self._trace(batch, weight)
        self.objective.check_labels(batch)
        functions = self.functions_of_loss
        functions.see(batch)
        weights, constants = functions.arrays()
        if is_first_dataset:
            self._num_surveyed += 1
            self._refuse_several_whole_batches(batch)
            found = functions.sums(weights, constants, batch, weight)[1]
        else:
            found = functions.denominators(weights, constants, batch, weight)
        check_weights(self.needs, self.objective, batch)
        return np.asarray(found, np.float64)

    def _trace(self, batch: Any, weight: float) -> None:
        """Look into the loss of a batch of a new form before anything is computed."""
        leaves, structure = jax.tree.flatten(batch)
        form = f"{structure}{[(leaf.shape, leaf.dtype.name) for leaf in leaves]}"
        if form in self._forms:
            return
        functions = self.functions_of_loss
        if not self._forms:
            self.objective.validate(batch)
        functions.learn(batch, weight)
        closed = functions.jaxpr(batch, weight)
        self.state.add(closed)
        if not self._forms:
            self.penalized = functions.penalty() is not None
            self.width = width_of_chunks(closed.jaxpr)
            inputs = functions.are_weights(closed.jaxpr)
            self.product_dtype = coarsest_dtype(closed.jaxpr, inputs, self.parameters.dtype)
            ones = np.ones(len(self.objective.coefficients))
            at = BatchInput(batch, 0, weight, arrays.to_rows(ones, np.float64))
            self.depends = any(reached(functions, at))
            check_needs(self.needs, self.objective, functions.output_loss, batch)
        self._forms.add(form)
        if len(self._forms) == _MANY_SHAPES + 1:
            warn(
                f"the batches have more than {_MANY_SHAPES} shapes, and each shape builds graphs "
                "of its own, which takes most of the time. Pad or bucket: pad sequences to one "
                "length (or a few), with a mask, and give all batches the same number of examples."
            )

    def _refuse_several_whole_batches(self, batch: Any) -> None:
        if self._num_surveyed == 2 and self.objective.is_of_whole_batch(batch):
            raise ValueError(
                f"{self.description} is one number for its whole batch, and no sum over examples: "
                "the loss of several batches is not that of all examples. Pass the data as one "
                "batch, or a function loss_fn(model, batch), which is averaged over batches."
            )

    def num_labels(self, batch: Any) -> int:
        """See `Derivatives`."""
        return self.objective.num_labels(batch)

    def examples_together(self, batch: Any, weight: Any) -> int:
        """See `Derivatives`: batches stay as they are."""
        return 0

    def check_class_weight(self, class_weight: Any) -> dict[int, float] | None:
        """See `Derivatives`."""
        return self.objective.check_class_weight(class_weight)

    def with_class_weight(self, dataset: Any, class_weight: Mapping[int, float] | None) -> Any:
        """See `Derivatives`."""
        if class_weight is None:
            return dataset
        return self.objective.with_class_weight(dataset, class_weight)

    # Derivatives ---------------------------------------------------------------------------------

    def loss(self, at: BatchInput, local: int = 0) -> float:
        """See `Derivatives`."""
        return self.functions_of_loss.loss(at)

    def gradient(self, at: BatchInput, local: int = 0) -> np.ndarray:
        """See `Derivatives`."""
        return self.functions_of_loss.gradient(at)

    def products(self, matrix: Composition, matmul_precision: str | None = None) -> JaxProducts:
        """See `Derivatives`."""
        lower = lower_precision(matmul_precision)
        return JaxProducts(self.functions_of_loss, matrix, lower)

    def evaluate(self, function: Callable[[BatchVerbs], Any]) -> Callable[[BatchInput], Any]:
        """See `Derivatives`."""
        functions = self.functions_of_loss
        evaluated = compiled(
            lambda weights, constants, at: function(functions.verbs(weights, constants, at))
        )
        return lambda at: jax.tree.map(np.asarray, evaluated(*functions.arrays(), at))

    def penalty(self) -> float | None:
        """See `Derivatives`."""
        return self.functions_of_loss.penalty()

    def penalty_products(self, rows: Any) -> tuple[jax.Array, jax.Array]:
        """See `Derivatives`."""
        return self.functions_of_loss.penalty_products(rows)

    @property
    def devices(self) -> str:
        """See `Derivatives`."""
        return repr(self.functions_of_loss.devices)

    @property
    def workers(self) -> JaxProcesses | None:
        """See `Derivatives`."""
        return self.functions_of_loss.devices.processes

    @property
    def vectors(self) -> JaxVectors | None:
        """See `Derivatives`: on an accelerator; a CPU has no faster place than NumPy's."""
        if self._vectors is None and jax.default_backend() != "cpu":
            self._vectors = JaxVectors(
                self.parameters.size, sharding=self.functions_of_loss.devices.sharding
            )
        return self._vectors

    def on_engine(self, sums: Any, divisor: float, added: Any) -> jax.Array:
        """See `Derivatives`."""
        dtype = self.parameters.dtype if self.vectors is None else self.vectors.dtype
        return _on_engine(sums, divisor, added, dtype=dtype)

    def settings(self) -> dict[str, Any]:
        """See `Derivatives`."""
        return self.objective.settings()


@partial(jax.jit, static_argnames="dtype")
def _on_engine(sums: Any, divisor: Any, added: Any, *, dtype: np.dtype) -> jax.Array:
    parts = [total(each) / divisor for (each,) in sums]
    found = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
    return (found if added is None else found + added).astype(dtype)
