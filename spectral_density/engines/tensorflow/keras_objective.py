"""The objective that Keras's `fit` minimizes, over a whole dataset."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spectral_density.engines.keras_shared.attributes import all_layers
from spectral_density.engines.keras_shared.inputs import inputs_explained, refuse_single_example
from spectral_density.engines.keras_shared.kinds import keras_module
from spectral_density.engines.keras_shared.labels import (
    check_label_shapes,
    check_label_values,
    outside_classes,
)
from spectral_density.engines.keras_shared.objective import (
    Term,
    align,
    describe,
    l2_factor,
    options_of,
    takes_training,
    terms_of,
    unpack,
)
from spectral_density.engines.keras_shared.own_code import refuse_own_call
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.frameworks import tf_variable
from spectral_density.engines.tensorflow.keras_internals import penalty_functions
from spectral_density.engines.tensorflow.layer_losses import losses_put_back
from spectral_density.engines.tensorflow.objectives import (
    TRACING_ERRORS,
    Objective,
    non_trainable_variables,
)
from spectral_density.engines.tensorflow.terms import OutputTerm, weighted_sum, with_ranks_matched


class KerasObjective(Objective):
    """The objective that Keras's `fit` minimizes, over the whole dataset at once.

    Denominators are the loss's own: the number of values, of unmasked values, or the sum of
    weights (`mean_with_sample_weight`). Weight regularization counts once; losses that layers add
    in their `call` are means over a batch and weigh as many examples as it has.
    """

    def __init__(
        self,
        model: Any,
        loss: Any,
        *,
        loss_weights: Any = None,
        reduction: str | None = None,
        training: bool = False,
    ):
        """Take a Keras loss, its name, a function `(y_true, y_pred)`, or a list or dict of these.

        Args:
            model: Keras model, or any callable with `trainable_variables`.
            loss: one for all outputs, or a list or dict, one for each.
            loss_weights: weights of the outputs, as in `compile`.
            reduction: None for the loss's own; "mean" or "sum" to override it.
            training: whether the model is called in training mode.

        Raises:
            ValueError: if a loss has a `__call__` of its own.
        """
        refuse_own_call(loss)
        self.model = model
        self._losses = loss
        self._loss_weights = loss_weights
        self._reduction = reduction
        self.training = training
        self._call_options = {"training": training} if takes_training(model) else {}
        self.terms: list[Term | None] = []  # of each output, known after `validate`
        self.description = describe(loss)

    def outputs(self, x: Any) -> Any:
        """Return the model's outputs for inputs `x`."""
        return self.model(x, **self._call_options)

    def validate(self, batch: Any) -> None:
        """Read off the outputs of one batch which loss goes with which, and check them."""
        x, y, sample_weight = unpack(batch)
        refuse_single_example(x, y)

        def outputs(x: Any) -> Any:
            return self.outputs(x)

        with (
            exact_second_derivatives(self.model),
            losses_put_back(self.model),
            inputs_explained(self.model, batch, TRACING_ERRORS),
        ):
            graph = tf.function(outputs, autograph=False).get_concrete_function(x)
        structure = graph.structured_outputs
        flat = tf.nest.flatten(structure)
        num_outputs = len(flat)
        names = getattr(self.model, "output_names", None)
        losses = align(self._losses, structure, names, "loss")
        weights = align(self._loss_weights, structure, names, "loss_weights")
        labels = align(y, structure, names, "y")
        for position, (loss, label) in enumerate(zip(losses, labels, strict=True)):
            if loss is not None and label is None:
                raise ValueError(f"output {position} of {num_outputs} has a loss but no labels.")
        self._output_names = names
        self.terms = terms_of(
            losses,
            weights,
            self._reduction,
            keras_module(self.model) or keras,
            with_ranks_matched,
        )
        sample_weights = align(sample_weight, structure, names, "sample_weight")
        check_label_shapes(self.terms, labels, flat, sample_weights)
        self._output_shapes = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in flat]
        self._structure = tf.nest.pack_sequence_as(structure, self._output_shapes)
        used = [term for term in self.terms if term is not None]
        # The last term holds what layers add in their call, a mean over the batch.
        self.coefficients = np.array([term.coefficient for term in used] + [1.0])
        self.averaged = np.array(
            [term.reduction != "sum" for term in used] + [self._reduction != "sum"]
        )

    def check_labels(self, batch: Any) -> None:
        """See `Objective.check_labels`."""
        _, y, _ = unpack(batch)
        labels = align(y, self._structure, self._output_names, "y")
        check_label_values(self.terms, labels, self._output_shapes)

    def explanation(self, batch: Any) -> str | None:
        """See `Objective.explanation`: labels that are no class of their output."""
        _, y, _ = unpack(batch)
        labels = align(y, self._structure, self._output_names, "y")
        for term, label, output in zip(self.terms, labels, self._output_shapes, strict=True):
            found = None if term is None else outside_classes(term.loss, label, output)
            if found:
                return found
        return None

    def outputs_of(self, batch: Any) -> Any:
        """Return the model's outputs for a batch `(x, y)` or `(x, y, sample_weight)`."""
        return self.outputs(unpack(batch)[0])

    def sums(self, batch: Any, weight: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """See `Objective.sums`."""
        x, y, sample_weight = unpack(batch)
        outputs = self.outputs(x)
        return self.sums_at(outputs, y, sample_weight, weight)

    def sums_at(
        self, outputs: Any, y: Any, sample_weight: Any, weight: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the sums and denominators where the model's outputs are given."""
        pairs = [weighted_sum(part, weight) for part in self.terms_at(outputs, y, sample_weight)]
        dtype = max((total.dtype for total, _ in pairs), key=lambda d: d.size)
        count = tf.cast(weight, dtype)
        added = _added_losses(self.model)
        activity = tf.add_n([tf.cast(a, dtype) for a in added]) if added else tf.zeros([], dtype)
        pairs.append((activity if self._reduction == "sum" else activity * count, count))
        totals = tf.stack([tf.cast(total, dtype) for total, _ in pairs])
        return totals, tf.stack([tf.cast(denominator, dtype) for _, denominator in pairs])

    def num_labels(self, batch: Any) -> int:
        """See `Objective.num_labels`: the rows of its labels."""
        _, y, _ = unpack(batch)
        labels = [part for part in tf.nest.flatten(y) if part is not None and part.shape.rank]
        return max((int(part.shape[0]) for part in labels), default=0)

    def losses(self) -> list[Any]:
        """Return the losses of the outputs, objects or functions, once `validate` has seen them."""
        return [term.loss for term in self.terms if term is not None]

    def adds_losses(self) -> bool:
        """Tell whether layers added losses in the call just made."""
        return bool(_added_losses(self.model))

    def terms_at(self, outputs: Any, y: Any, sample_weight: Any) -> list[OutputTerm]:
        """Return each output that has a loss with its labels and weights."""
        flat = tf.nest.flatten(outputs)
        labels = align(y, outputs, self._output_names, "y")
        weights = align(sample_weight, outputs, self._output_names, "sample_weight")
        used = [(at, term) for at, term in enumerate(self.terms) if term is not None]
        return [
            OutputTerm(number, at, term, labels[at], flat[at], weights[at])
            for number, (at, term) in enumerate(used)
        ]

    def settings(self) -> dict[str, Any]:
        """See `Objective.settings`: the options of the losses, and the mode of the model."""
        losses = tf.nest.flatten(self._losses)
        options = [options_of(loss) for loss in losses]
        found = {"options": options, "call": str(self._call_options)}
        l2 = l2_factor(self.model)
        return super().settings() | found | ({"l2": l2} if l2 else {})

    def penalty(self) -> tf.Tensor | None:
        """See `Objective.penalty`: the sum of the model's weight regularization."""
        terms = [*_weight_penalties(self.model), *_l2_terms(self.model)]
        if not terms:
            return None
        dtype = max((t.dtype for t in terms), key=lambda d: d.size)
        return tf.add_n([tf.cast(tf.reduce_sum(t), dtype) for t in terms])

    def state(self) -> list[tf.Variable]:
        """See `Objective.state`."""
        return non_trainable_variables(self.model)


def _weight_penalties(model: Any) -> list[tf.Tensor]:
    keras = keras_module(model)
    if keras is None:
        return []
    if keras.__name__ == "keras":
        return [
            tf.convert_to_tensor(v.regularizer(v))
            for v in model.trainable_variables
            if v.regularizer is not None
        ]
    return [term() for layer in all_layers(model) for term in penalty_functions(layer)]


def _l2_terms(model: Any) -> list[tf.Tensor]:
    factor = l2_factor(model)
    variables = map(tf_variable, model.trainable_variables) if factor else ()
    return [factor * tf.reduce_sum(tf.square(variable)) for variable in variables]


def _added_losses(model: Any) -> list[tf.Tensor]:
    """Return what layers added in the call just made (activity regularization, `add_loss`)."""
    keras = keras_module(model)
    if keras is None:
        return []
    losses = list(model.losses)
    num_penalties = len(_weight_penalties(model))
    if len(losses) == num_penalties:
        return []
    if keras.__name__ == "keras":
        added = losses[: len(losses) - num_penalties]
    else:
        # tf_keras lists both kinds layer by layer; what is not weight regularization is the rest.
        added = [tf.add_n(losses) - tf.add_n(_weight_penalties(model))] if num_penalties else losses
    return [tf.reduce_sum(loss) for loss in added]
