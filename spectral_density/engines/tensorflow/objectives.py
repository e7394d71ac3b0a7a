"""Losses over batches as weighted sums of terms, and those that are functions of a user's.

An objective over a dataset is `sum_k c_k S_k / D_k + penalty`. `S_k` (a sum of weighted values) and
`D_k` (its denominator) add up over batches, so the objective is that of the whole dataset, however
it is cut into batches; the penalty (weight regularization) is added once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.keras_shared.inputs import inputs_explained
from spectral_density.engines.keras_shared.kinds import keras_module
from spectral_density.engines.keras_shared.objective import describe
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.frameworks import tf_variable
from spectral_density.engines.tensorflow.keras_internals import AUTOGRAPH_ERROR
from spectral_density.engines.tensorflow.layer_losses import losses_put_back

# What tracing a user's function raises where it is called with things it does not expect.
TRACING_ERRORS = (
    *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(NameError, RuntimeError, AUTOGRAPH_ERROR, tf.errors.OpError),
)


class Objective(ABC):
    """A loss over batches as weighted sums of terms.

    Attributes:
        coefficients: shape (num_terms,), the weight c_k of each term.
        averaged: shape (num_terms,), whether the term is divided by its denominator.
        model: the model that a forward pass calls, None for none.
        description: what the loss is, in a word or two.
        autograph: whether the user's own function has to be converted.
    """

    coefficients: np.ndarray
    averaged: np.ndarray
    description: str
    autograph = False
    model: Any = None

    @abstractmethod
    def sums(self, batch: Any, weight: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the sums and the denominators of a batch, each of shape (num_terms,).

        Args:
            batch: what the dataset yields, as tensors.
            weight: scalar tensor, the number of examples in the batch (or its `batch_weight`).
        """

    def settings(self) -> dict[str, Any]:
        """Return what the value depends on beside variables and data, as text and numbers."""
        return {
            "description": self.description,
            "coefficients": [float(c) for c in self.coefficients],
            "averaged": [bool(a) for a in self.averaged],
        }

    def penalty(self) -> tf.Tensor | None:
        """Return what is added once, not once a batch, as a scalar; None for nothing."""
        return None

    def state(self) -> list[tf.Variable]:
        """Return the variables that a forward pass may write to."""
        return []

    def num_labels(self, batch: Any) -> int:
        """Return by how many examples the numbering of a dataset goes on after a batch."""
        del batch
        return 0

    def validate(self, batch: Any) -> None:
        """Raise a clear error if the loss of this batch is no loss."""
        return

    def check_labels(self, batch: Any) -> None:
        """Raise if labels are none that the loss is defined for, as far as it is known."""
        return

    def explanation(self, batch: Any) -> str | None:
        """Return why the loss of a batch raised an error or is not finite, None if not known."""
        del batch
        return None


class FunctionObjective(Objective):
    """A user's function of a batch, averaged or summed over batches as declared."""

    autograph = True

    def __init__(
        self,
        function: Callable[[Any], tf.Tensor],
        reduction: str,
        description: str,
        model: Any = None,
        shape: tf.TensorShape | None = None,
    ):
        """Take `function(batch) -> scalar`, its model, and the shape it has if that is known."""
        self._function = function
        self._shape = shape
        self.model = model
        self.description = description
        self.coefficients = np.ones(1)
        self.averaged = np.array([reduction == "mean"])

    def sums(self, batch: Any, weight: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Objective.sums`: the sum is the function's mean times the batch's weight."""
        value = tf.convert_to_tensor(self._function(batch))
        weight = tf.cast(weight, value.dtype)
        total = value * weight if self.averaged[0] else value
        return tf.reshape(total, [1]), tf.reshape(weight, [1])

    def state(self) -> list[tf.Variable]:
        """See `Objective.state`."""
        return non_trainable_variables(self.model)

    def validate(self, batch: Any) -> None:
        """Raise if the function does not return a real scalar tensor."""
        shape = self._shape
        if shape is None:
            with inputs_explained(self.model, batch, TRACING_ERRORS):
                shape = loss_shape(self._function, batch)
        if shape.rank is None:
            raise ValueError(
                "loss_fn must return a scalar, and the shape of what it returns is not known in "
                "a graph (after a table lookup or a Python function, for instance). Sum or average "
                "it, or return tf.reshape(value, []) if it is a scalar."
            )
        if shape.rank != 0:
            raise ValueError(
                f"loss_fn must return a scalar, got shape {_format(shape)}. Average or sum it over "
                'the batch, and say which with reduction="mean" or "sum".'
            )


class PairObjective(FunctionObjective):
    """A user's model call and loss apart: `predict(model, batch)` and `loss(outputs, batch)`.

    A loss of one value for each example, where `examples` allows it, is averaged (or summed).
    """

    def __init__(
        self,
        model: Any,
        predict: Callable[[Any, Any], Any],
        loss: Callable[[Any, Any], tf.Tensor],
        reduction: str,
        examples: bool = False,
    ):
        """Take the two functions; `examples` requires losses of shape (num_examples,)."""
        super().__init__(
            lambda batch: self.value_at(self.outputs_of(batch), batch),
            reduction,
            describe(loss),
            model,
        )
        self._predict = predict
        self._loss = loss
        self._examples = examples

    def outputs_of(self, batch: Any) -> Any:
        """Return the model's outputs for a batch, as the user's function gives them."""
        return self._predict(self.model, batch)

    def examples_at(self, outputs: Any, batch: Any) -> tf.Tensor:
        """Return what the user's loss gives where the outputs are given."""
        return tf.convert_to_tensor(self._loss(outputs, batch))

    def value_at(self, outputs: Any, batch: Any) -> tf.Tensor:
        """Return the scalar loss of a batch where the outputs are given."""
        values = self.examples_at(outputs, batch)
        if not self._examples:
            return values
        return tf.reduce_mean(values) if self.averaged[0] else tf.reduce_sum(values)

    def validate(self, batch: Any) -> None:
        """Raise if the loss is no scalar, or, where it has to be, not one value per example."""
        if not self._examples:
            super().validate(batch)
            return
        with inputs_explained(self.model, batch, TRACING_ERRORS):
            shape = loss_shape(lambda batch: self.examples_at(self.outputs_of(batch), batch), batch)
        if shape.rank != 1:
            raise ValueError(
                "loss(outputs, batch) must return one value for each example, shape "
                f"(num_examples,), got shape {_format(shape)}."
            )


def loss_shape(function: Callable[[Any], Any], batch: Any) -> tf.TensorShape:
    """Return the shape of `function(batch)` without computing it.

    Raises:
        TypeError: if the function returns no real floating-point tensor.
    """
    try:
        with exact_second_derivatives(), losses_put_back(None):
            value = tf.function(function).get_concrete_function(batch).structured_outputs
    except AUTOGRAPH_ERROR as error:  # in place of the user's own
        raise error.__context__ or error from None
    if not (hasattr(value, "shape") and hasattr(value, "dtype")) or not value.dtype.is_floating:
        found = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"loss_fn must return a real floating-point tensor, got {found}.")
    return value.shape


@contextmanager
def explained(objective: Objective, batch: Any) -> Iterator[None]:
    """Explain an error of TensorFlow in the loss of a batch, where the objective knows why.

    Raises:
        ValueError: from such an error; others stay.
    """
    try:
        yield
    except tf.errors.OpError as error:
        sentence = objective.explanation(batch)
        if sentence is None:
            raise
        raise ValueError(sentence) from error


def non_trainable_variables(model: Any) -> list[tf.Variable]:
    """Return the variables of a model that are not trained, states of recurrent layers included."""
    if model is None or not hasattr(model, "variables"):
        return []
    trainable = {id(tf_variable(v)) for v in model.trainable_variables}
    everything = [*model.variables, *_recurrent_states(model)]
    found = {id(tf_variable(v)): tf_variable(v) for v in everything}
    return [v for key, v in found.items() if key not in trainable]


def _recurrent_states(model: Any) -> list[Any]:
    """Return the states that stateful recurrent layers keep, which no model lists as its own."""
    if keras_module(model) is None:
        return []
    stateful = [layer for layer in all_layers(model) if getattr(layer, "stateful", False)]
    states = [state for layer in stateful for state in tf.nest.flatten(layer.states)]
    return [state for state in states if state is not None]


def _format(shape: tf.TensorShape) -> str:
    return str(tuple(shape.as_list())) if shape.rank is not None else "unknown"
