"""Losses over batches as weighted sums of terms, pure functions of the arrays of a model.

An objective over a dataset is `sum_k c_k S_k / D_k + penalty`. `S_k` (a sum of weighted values) and
`D_k` (its denominator) add up over batches; the penalty (weight regularization) is added once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.jax.models import Arrays, BoundModel


class OutputsOfBatch(NamedTuple):
    """The outputs of a model that a loss depends on, and what else the loss reads of the call."""

    tensors: list[jax.Array]  # the real ones, flattened
    rest: Any  # arrays: masks, outputs that are no real numbers


class Objective(ABC):
    """A loss over batches as weighted sums of terms.

    Attributes:
        model: what it is a function of.
        coefficients: shape (num_terms,), the weight c_k of each term.
        averaged: shape (num_terms,), whether the term is divided by its denominator.
        description: what the loss is, in a word or two.
        outputs_apart: whether the loss is a function of the outputs of the model.
        is_function: whether it is a user's function, a mean or sum as declared.
    """

    model: BoundModel
    coefficients: np.ndarray
    averaged: np.ndarray
    description: str
    outputs_apart = False
    is_function = False

    @abstractmethod
    def sums(
        self, weights: Arrays, constants: Arrays, batch: Any, weight: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Return the sums and the denominators of a batch, each of shape (num_terms,).

        Args:
            weights: the arrays that derivatives are taken in.
            constants: those held constant.
            batch: what the dataset yields, as arrays of JAX.
            weight: the number of examples in the batch (or its `batch_weight`).
        """

    def outputs(self, weights: Arrays, constants: Arrays, batch: Any) -> OutputsOfBatch:
        """Return the outputs of the model, where the loss is a function of them."""
        raise NotImplementedError

    def sums_at(
        self, outputs: OutputsOfBatch, constants: Arrays, batch: Any, weight: Any
    ) -> tuple[jax.Array, jax.Array]:
        """Return sums and denominators where the outputs are given."""
        raise NotImplementedError

    def penalty(self, weights: Arrays, constants: Arrays) -> jax.Array | None:
        """Return what is added once, not once a batch, as a scalar; None for nothing."""
        del weights, constants
        return None

    def num_labels(self, batch: Any) -> int:
        """Return by how many examples the numbering of a dataset goes on after a batch."""
        del batch
        return 0

    def validate(self, batch: Any) -> None:
        """Raise a clear error if the loss of this batch is no loss."""
        return

    def is_of_whole_batch(self, batch: Any) -> bool:
        """Tell whether a term is known to be one number for its batch, and no sum over examples."""
        del batch
        return False

    def check_labels(self, batch: Any) -> None:
        """Raise if labels are none that the loss is defined for, as far as it is known."""
        return

    def sample_weights(self, batch: Any) -> list[Any]:
        """Return the sample weights of a batch, as far as the loss knows them."""
        del batch
        return []

    def example_shapes(self, batch: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
        """Return the shapes of each term's values and of its output; None where they are checked.

        For a pair of functions `validate` has checked them.
        """
        del batch
        return None

    def check_class_weight(self, class_weight: Any) -> dict[int, float] | None:
        """Return weights of classes, checked."""
        if class_weight is None:
            return None
        raise ValueError(
            "class_weight= needs a Keras loss: a function computes its loss itself, and weighs "
            "the examples there."
        )

    def with_class_weight(self, dataset: Any, class_weight: Any) -> Any:
        """Return a dataset with the weight of its class in the weight of each example."""
        raise NotImplementedError

    def mistaken_outputs(self, batch: Any) -> tuple[list[str], float | None] | None:
        """Return what looks like logits where probabilities belong; None where it is not known."""
        del batch
        return None

    def correctly_classified(self, batch: Any) -> tuple[int, int] | None:
        """Return how many labels the model predicts, of how many; None where there are none."""
        del batch
        return None

    def settings(self) -> dict[str, Any]:
        """Return what the value depends on beside arrays and data, as text and numbers."""
        return {
            "description": self.description,
            "coefficients": [float(c) for c in self.coefficients],
            "averaged": [bool(a) for a in self.averaged],
        }


class FunctionObjective(Objective):
    """A user's function of model (or params) and batch, a mean or sum over it as declared."""

    is_function = True

    def __init__(
        self,
        model: BoundModel,
        function: Callable[[Any, Any], Any],
        reduction: str,
        description: str,
    ):
        """Take `function(model, batch) -> scalar`."""
        self.model = model
        self._function = function
        self.description = description
        self.coefficients = np.ones(1)
        self.averaged = np.array([reduction == "mean"])

    def sums(
        self, weights: Arrays, constants: Arrays, batch: Any, weight: Any
    ) -> tuple[jax.Array, jax.Array]:
        """See `Objective.sums`: the sum is the function's mean times the batch's weight."""
        return self._weighted(self.value(weights, constants, batch), weight)

    def value(self, weights: Arrays, constants: Arrays, batch: Any) -> Any:
        """Return what the function gives for a batch."""
        with self.model.bound(weights, constants) as model:
            return self._function(model, batch)

    def _weighted(self, value: Any, weight: Any) -> tuple[jax.Array, jax.Array]:
        value = jnp.asarray(value)
        weight = jnp.asarray(weight, value.dtype)
        return jnp.reshape(value * weight if self.averaged[0] else value, 1), weight.reshape(1)

    def validate(self, batch: Any) -> None:
        """Raise if the function does not return a real scalar."""
        with self.model.inputs_explained(batch):
            shape = shape_of(self.value, self.model, batch)
        check_loss(shape, rank=0)


class PairObjective(FunctionObjective):
    """A user's model call and loss apart: `predict(model, batch)` and `loss(outputs, batch)`.

    A loss of one value for each example, where `examples` asks for it, is averaged (or summed).
    """

    outputs_apart = True

    def __init__(
        self,
        model: BoundModel,
        pair: tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]],
        reduction: str,
        description: str,
        examples: bool = False,
    ):
        """Take the two functions; `examples` requires losses of shape (num_examples,)."""
        super().__init__(model, self._of_batch, reduction, description)
        self._predict, self._loss = pair
        self._examples = examples

    def _of_batch(self, model: Any, batch: Any) -> Any:
        return self._reduced(self._loss(self._predict(model, batch), batch))

    def _reduced(self, values: Any) -> Any:
        if not self._examples:
            return values
        return jnp.mean(values) if self.averaged[0] else jnp.sum(values)

    def outputs(self, weights: Arrays, constants: Arrays, batch: Any) -> OutputsOfBatch:
        """See `Objective.outputs`."""
        with self.model.bound(weights, constants) as model:
            structure = self._predict(model, batch)
        leaves, self._structure = jax.tree.flatten(structure)
        self._real = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in leaves]
        pairs = list(zip(map(jnp.asarray, leaves), self._real, strict=True))
        return OutputsOfBatch(
            [leaf for leaf, is_real in pairs if is_real],
            [leaf for leaf, is_real in pairs if not is_real],
        )

    def sums_at(
        self, outputs: OutputsOfBatch, constants: Arrays, batch: Any, weight: Any
    ) -> tuple[jax.Array, jax.Array]:
        """See `Objective.sums_at`."""
        return self._weighted(self._reduced(self.examples_at(outputs, batch)), weight)

    def examples_at(self, outputs: OutputsOfBatch, batch: Any) -> jax.Array:
        """Return what the user's loss gives where the outputs are given."""
        real, others = iter(outputs.tensors), iter(outputs.rest)
        leaves = [next(real) if is_real else next(others) for is_real in self._real]
        return jnp.asarray(self._loss(jax.tree.unflatten(self._structure, leaves), batch))

    def validate(self, batch: Any) -> None:
        """Raise if the loss is no scalar, or, where it has to be, not one value per example."""
        if not self._examples:
            super().validate(batch)
            return

        def values(weights: Arrays, constants: Arrays, batch: Any) -> Any:
            with self.model.bound(weights, constants) as model:
                return self._loss(self._predict(model, batch), batch)

        with self.model.inputs_explained(batch):
            shape = shape_of(values, self.model, batch)
        if len(shape.shape) != 1:
            raise ValueError(
                "loss(outputs, batch) must return one value for each example, shape "
                f"(num_examples,), got shape {tuple(shape.shape)}."
            )


def shape_of(function: Callable[..., Any], model: BoundModel, batch: Any) -> Any:
    """Return shape and dtype of what a function of weights, constants and batch returns.

    Traced until no constant is met that was not known.
    """
    while True:
        found = jax.eval_shape(function, model.leaves.current(), model.constants(), batch)
        if not model.traced_again():
            return found


def check_loss(found: Any, rank: int) -> None:
    """Raise unless a loss is one real number.

    Raises:
        TypeError: if it is no real floating-point array.
        ValueError: if it is no scalar.
    """
    if not hasattr(found, "dtype") or not jnp.issubdtype(found.dtype, jnp.floating):
        name = getattr(found, "dtype", type(found).__name__)
        raise TypeError(f"loss_fn must return a real floating-point tensor, got {name}.")
    if len(found.shape) != rank:
        raise ValueError(
            f"loss_fn must return a scalar, got shape {tuple(found.shape)}. Average or sum it over "
            'the batch, and say which with reduction="mean" or "sum".'
        )
