"""The loss as a function of the model's outputs: where they end, and its Hessian there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from spectral_density._warnings import warn
from spectral_density.engines.keras_shared.endings import OutputEnding, warn_unmoved
from spectral_density.engines.keras_shared.objective import unpack
from spectral_density.engines.tensorflow.compiled_products import compiled
from spectral_density.engines.tensorflow.endings import (
    ACTIVATIONS,
    activation_of,
    ending_of,
    logits_of,
)
from spectral_density.engines.tensorflow.keras_internals import (
    mark_logits,
    marked_logits,
    mask_of,
    set_mask,
)
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
from spectral_density.engines.tensorflow.objectives import Objective, PairObjective
from spectral_density.engines.tensorflow.reverse_mode import hessian_products
from spectral_density.engines.tensorflow.terms import (
    OutputTerm,
    term_values,
    term_weights,
    weighted_sum,
)


class OutputLoss:
    """An objective whose model and loss are apart, as a function of the model's outputs.

    The outputs are logits: where a model's output is a softmax or a sigmoid and its loss a
    cross-entropy, that activation counts to the loss. Other losses (a squared error of sigmoids)
    take the output as the model gives it.

    Attributes:
        endings: for each output that has a loss, its activation and distribution.
    """

    def __init__(self, objective: Objective, warn_of_probabilities: bool = True):
        """Take a Keras loss or a pair of functions.

        Args:
            objective: what is differentiated.
            warn_of_probabilities: whether it matters that the outputs are not logits.

        Raises:
            ValueError: if outputs and loss cannot be separated.
        """
        if not isinstance(objective, (KerasObjective, PairObjective)):
            raise ValueError(
                f"the outputs of {objective.description} cannot be separated from its loss, which "
                "this matrix needs. Instead of loss_fn(model, batch) pass a Keras loss, or the "
                "pair (predict, loss) of functions predict(model, batch) -> outputs and "
                "loss(outputs, batch) -> scalar."
            )
        self.objective = objective
        self.endings: list[OutputEnding] = []
        self._warn = warn_of_probabilities

    def survey(self, batch: Any) -> None:
        """Find out how each output ends, in a trace of the model, and warn of what G is not."""
        compiled(self._survey, self.objective).get_concrete_function(batch)

    def _survey(self, batch: Any) -> None:
        structure = self.objective.outputs_of(batch)
        if isinstance(self.objective, PairObjective):
            for output in tf.nest.flatten(structure):
                if self._warn and activation_of(output)[0] is not None:
                    warn_unmoved(self.objective.description)
            return
        terms = _terms(self.objective, structure, batch)
        self.endings = [ending_of(part, self._warn) for part in terms]
        if self.objective.adds_losses():
            warn(
                "the model's layers add losses in their call (activity regularization or "
                "add_loss). They are linear in themselves and no function of the outputs, so this "
                "matrix holds nothing of them: it is that of the loss at the outputs."
            )

    def at(self, batch: Any, first_example: tf.Tensor | None = None) -> OutputsOfBatch:
        """Call the model on a batch, whose first example may come with its number."""
        structure = self.objective.outputs_of(batch)
        if isinstance(self.objective, PairObjective):
            tensors = [part for part in tf.nest.flatten(structure) if _is_real(part)]
            return OutputsOfBatch(self, batch, structure, tensors, first_example)
        tensors = [
            part.output if ending.activation is None else logits_of(part.output)
            for part, ending in self.terms(structure, batch)
        ]
        return OutputsOfBatch(self, batch, structure, tensors, first_example)

    def terms(self, structure: Any, batch: Any) -> list[tuple[OutputTerm, OutputEnding]]:
        """Return the terms of a Keras loss at a model's outputs, and how these end."""
        if isinstance(self.objective, PairObjective):
            return []
        return list(zip(_terms(self.objective, structure, batch), self.endings, strict=True))


class OutputsOfBatch:
    """A model's outputs for one batch, and the loss as a function of them.

    Attributes:
        tensors: the outputs that the loss depends on, logits where an activation was moved.
        first_example: the number of the first example in the dataset, if it was given.
    """

    def __init__(
        self,
        loss: OutputLoss,
        batch: Any,
        structure: Any,
        tensors: list[tf.Tensor],
        first_example: tf.Tensor | None,
    ):
        """Keep what the model gave and what of it the loss is a function of."""
        self.first_example = first_example
        self._loss = loss
        self._batch = batch
        self._structure = structure
        self.tensors = tensors

    def terms(self) -> list[tuple[OutputTerm, OutputEnding]]:
        """Return the terms of a Keras loss at these outputs, one for each of `tensors`."""
        return self._loss.terms(self._structure, self._batch)

    def value(self, weight: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        """Return the share of the batch in the objective, as a function of the variables."""
        objective = self._loss.objective
        if isinstance(objective, PairObjective):
            return self._pair_value(objective, self._structure, weight, scales)
        _, y, sample_weight = unpack(self._batch)
        sums, _ = objective.sums_at(self._structure, y, sample_weight, weight)
        return tf.reduce_sum(sums * tf.cast(scales, sums.dtype))

    def hessian_products(
        self, weight: tf.Tensor, scales: tf.Tensor, tangents: Sequence[list[tf.Tensor]]
    ) -> list[list[tf.Tensor]]:
        """Return the Hessian of the loss at the outputs times each tangent, one per output."""
        objective = self._loss.objective
        if isinstance(objective, PairObjective):
            return _by_autodiff(
                lambda tensors: self._pair_value(objective, self._with(tensors), weight, scales),
                self.tensors,
                tangents,
            )
        columns = []
        for i, (part, ending) in enumerate(self.terms()):
            along = [tangent[i] for tangent in tangents]
            columns.append(
                self._term_products(i, part, ending, along, weight=weight, scales=scales)
            )
        return [list(row) for row in zip(*columns, strict=True)]

    def example_gradients(self, weight: tf.Tensor, scales: tf.Tensor) -> list[tf.Tensor]:
        """Return the gradients at the outputs of `sum_i sum_u sqrt(a_iu) ell_iu`, one per output.

        ell_iu are the losses of example i (several where it has steps or outputs), summed over
        what a squared error or a sigmoid cross-entropy averages; the objective is the sum of all
        a_iu ell_iu.
        """
        objective = self._loss.objective
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            free = [_without_history(tensor) for tensor in self.tensors]
            tape.watch(free)
            if isinstance(objective, PairObjective):
                total = self._pair_root_sum(objective, self._with(free), weight, scales)
            else:
                total = tf.add_n(
                    [
                        tf.cast(_root_sum(self._moved(*term, tensor), term[1], scales), tf.float64)
                        for term, tensor in zip(self.terms(), free, strict=True)
                    ]
                )
        return tape.gradient(total, free, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    def example_losses(self, weight: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        """Return `sum_u sqrt(a_iu) ell_iu` of each example i, (num_examples,), as above."""
        objective = self._loss.objective
        if isinstance(objective, PairObjective):
            return self._pair_root_losses(objective, self._structure, weight, scales)
        losses = [_root_losses(part, ending, scales) for part, ending in self.terms()]
        return tf.add_n([tf.cast(_sum_of_each(part), losses[0].dtype) for part in losses])

    def _pair_root_sum(
        self, objective: PairObjective, structure: Any, weight: tf.Tensor, scales: tf.Tensor
    ) -> tf.Tensor:
        return tf.reduce_sum(self._pair_root_losses(objective, structure, weight, scales))

    def _pair_root_losses(
        self, objective: PairObjective, structure: Any, weight: tf.Tensor, scales: tf.Tensor
    ) -> tf.Tensor:
        values = objective.examples_at(structure, self._batch)
        scale = scales[0]
        if objective.averaged[0]:
            scale *= weight / tf.cast(tf.size(values), weight.dtype)
        return values * tf.cast(tf.sqrt(scale), values.dtype)

    def _term_products(
        self,
        i: int,
        part: OutputTerm,
        ending: OutputEnding,
        along: list[tf.Tensor],
        *,
        weight: tf.Tensor,
        scales: tf.Tensor,
    ) -> list[tf.Tensor]:
        if ending.distribution is not None:
            weights = value_weights(part, term_values(part), scales)
            return closed_form(ending.distribution, self.tensors[i], weights, along)

        def value(tensors: list[tf.Tensor]) -> tf.Tensor:
            total, _ = weighted_sum(self._moved(part, ending, tensors[0]), weight)
            return total * tf.cast(scales[part.number], total.dtype)

        products = _by_autodiff(value, [self.tensors[i]], [[tangent] for tangent in along])
        return [product for (product,) in products]

    @staticmethod
    def _moved(part: OutputTerm, ending: OutputEnding, tensor: tf.Tensor) -> OutputTerm:
        """Return a term where its logits (or output) are another tensor."""
        return part._replace(output=_rebuilt(part.output, tensor, ending.activation))

    def _pair_value(
        self, objective: PairObjective, structure: Any, weight: tf.Tensor, scales: tf.Tensor
    ) -> tf.Tensor:
        value = tf.convert_to_tensor(objective.value_at(structure, self._batch))
        scale = scales[0] * (weight if objective.averaged[0] else tf.ones_like(weight))
        return value * tf.cast(scale, value.dtype)

    def _with(self, tensors: list[tf.Tensor]) -> Any:
        """Return the structure of the outputs with other tensors in it."""
        new = iter(tensors)
        flat = [next(new) if _is_real(old) else old for old in tf.nest.flatten(self._structure)]
        return tf.nest.pack_sequence_as(self._structure, flat)


def value_weights(part: OutputTerm, values: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
    """Return the weight of each value of a term in the objective, of the shape of the values."""
    weights, _ = term_weights(part, values)
    scale = tf.cast(scales[part.number], values.dtype)
    if weights is None:
        return tf.fill(tf.shape(values), scale)
    return tf.broadcast_to(scale * weights, tf.shape(values))


def _terms(objective: KerasObjective, structure: Any, batch: Any) -> list[OutputTerm]:
    _, y, sample_weight = unpack(batch)
    return objective.terms_at(structure, y, sample_weight)


def num_averaged(output: tf.Tensor, distribution: str | None, dtype: Any) -> tf.Tensor:
    """Return over how many outputs a value of the loss is a mean."""
    count = tf.shape(output)[-1] if distribution in ("bernoulli", "normal") else 1
    return tf.cast(count, dtype)


def _root_sum(part: OutputTerm, ending: OutputEnding, scales: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(_root_losses(part, ending, scales))


def _sum_of_each(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(values, axis=tf.range(1, tf.rank(values)))


def _root_losses(part: OutputTerm, ending: OutputEnding, scales: tf.Tensor) -> tf.Tensor:
    values = term_values(part)
    weights = value_weights(part, values, scales)
    count = num_averaged(part.output, ending.distribution, values.dtype)
    return tf.math.multiply_no_nan(values, tf.sqrt(weights * count))


def closed_form(
    distribution: str, output: tf.Tensor, weights: tf.Tensor, along: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    r"""Return the Hessian of `sum(weights * values)` at the outputs times each tangent.

    With p the softmax or sigmoid of the C outputs of a value: diag(p) - p p' for softmax
    cross-entropy, diag(p (1 - p)) / C for sigmoid cross-entropy, 2 I / C for the squared error.
    Labels, smoothed or not, do not enter.

    Args:
        distribution: "categorical", "bernoulli" or "normal".
        output: logits or predictions, shape (..., C).
        weights: of the values of the loss, shape (...).
        along: tangents of the shape of `output`.
    """
    dtype = weights.dtype
    output = tf.cast(output, dtype)
    weights = tf.expand_dims(weights, -1)
    weights /= num_averaged(output, distribution, dtype)
    products = []
    for tangent in along:
        u = tf.cast(tangent, dtype)
        if distribution == "categorical":
            p = tf.nn.softmax(output)
            product = p * (u - tf.reduce_sum(p * u, axis=-1, keepdims=True))
        elif distribution == "bernoulli":
            p = tf.nn.sigmoid(output)
            product = p * tf.nn.sigmoid(-output) * u
        else:
            product = 2.0 * u
        # What is masked counts for nothing, NaN included.
        products.append(tf.cast(tf.math.multiply_no_nan(product, weights), tangent.dtype))
    return products


def _by_autodiff(
    value: Any, tensors: list[tf.Tensor], tangents: Sequence[list[tf.Tensor]]
) -> list[list[tf.Tensor]]:
    # Cut off from the model, so that the tape of the loss does not reach into it.
    free = [_without_history(tensor) for tensor in tensors]
    products, _ = hessian_products(lambda: value(free), free, list(tangents))
    return [
        [
            tf.zeros_like(tensor) if part is None else tf.convert_to_tensor(part)
            for part, tensor in zip(product, free, strict=True)
        ]
        for product in products
    ]


def _without_history(tensor: tf.Tensor) -> tf.Tensor:
    copy = tf.stop_gradient(tensor)
    _copy_mask(tensor, copy)
    return copy


def _rebuilt(old: tf.Tensor, tensor: tf.Tensor, activation: str | None) -> tf.Tensor:
    """Return the output that the model would have given at another tensor before its ending."""
    if activation is None:
        output = tf.identity(tensor)
    else:
        output = ACTIVATIONS[activation](tensor)
        if marked_logits(old) is not None:
            # Where Keras's losses look for the logits themselves.
            mark_logits(output, tensor)
    _copy_mask(old, output)
    return output


def _copy_mask(old: tf.Tensor, new: tf.Tensor) -> None:
    mask = mask_of(old)
    if mask is not None:
        set_mask(new, mask)


def _is_real(part: Any) -> bool:
    return isinstance(part, tf.Tensor) and part.dtype.is_floating
