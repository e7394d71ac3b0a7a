"""The objective that Keras's `fit` minimizes, over a whole dataset, under the JAX backend."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from spectral_density.engines.jax.batches import opener
from spectral_density.engines.jax.keras_internals import mask_of
from spectral_density.engines.jax.keras_model import KerasModel
from spectral_density.engines.jax.models import Arrays
from spectral_density.engines.jax.objectives import Objective, OutputsOfBatch, shape_of
from spectral_density.engines.jax.terms import (
    OutputTerm,
    term_values,
    term_weights,
    weighted_sum,
    with_ranks_matched,
)
from spectral_density.engines.keras_shared.class_weights import WeightedBatches, check_class_weight
from spectral_density.engines.keras_shared.endings import (
    correctly_classified,
    is_of_classes,
    mistaken_outputs,
)
from spectral_density.engines.keras_shared.inputs import refuse_single_example
from spectral_density.engines.keras_shared.labels import (
    check_label_shapes,
    check_label_values,
    is_no_class,
    outside_classes,
)
from spectral_density.engines.keras_shared.objective import (
    Term,
    align,
    describe,
    options_of,
    takes_training,
    terms_of,
    unpack,
)
from spectral_density.engines.keras_shared.own_code import refuse_own_call


class KerasObjective(Objective):
    """The objective that Keras's `fit` minimizes, over the whole dataset at once.

    Denominators are the loss's own: the number of values, of unmasked values, or the sum of
    weights (`mean_with_sample_weight`). Weight regularization counts once; losses that layers add
    in their `call` are means over a batch and weigh as many examples as it has.
    """

    outputs_apart = True

    def __init__(
        self,
        model: KerasModel,
        loss: Any,
        *,
        loss_weights: Any = None,
        reduction: str | None = None,
        training: bool = False,
    ):
        """Take a Keras loss, its name, a function `(y_true, y_pred)`, or a list or dict of these.

        Args:
            model: the model.
            loss: one for all outputs, or a list or dict, one for each.
            loss_weights: weights of the outputs, as in `compile`.
            reduction: None for the loss's own; "mean" or "sum" to override it.
            training: whether the model is called in training mode.

        Raises:
            ValueError: if a loss has a `__call__` of its own.
        """
        refuse_own_call(loss)
        self.model: KerasModel = model
        self._losses = loss
        self._loss_weights = loss_weights
        self._reduction = reduction
        self._call_options = {"training": training} if takes_training(model.model) else {}
        self.terms: list[Term | None] = []  # of each output, known after `validate`
        self.description = describe(loss)
        self.adds_losses = False  # whether layers do in their call; known after `validate`

    def validate(self, batch: Any) -> None:
        """Read off the outputs of one batch which loss goes with which, and check them."""
        x, y, sample_weight = unpack(batch)
        refuse_single_example(x, y)

        def outputs(weights: Arrays, constants: Arrays, batch: Any) -> Any:
            structure, added, _ = self._called(weights, constants, batch)
            self.adds_losses = bool(added)
            return structure

        with self.model.inputs_explained(batch):
            structure = shape_of(outputs, self.model, batch)
        self._structure = structure
        names = getattr(self.model.model, "output_names", None)
        losses = align(self._losses, structure, names, "loss")
        weights = align(self._loss_weights, structure, names, "loss_weights")
        labels = align(y, structure, names, "y")
        for position, (loss, label) in enumerate(zip(losses, labels, strict=True)):
            if loss is not None and label is None:
                raise ValueError(f"output {position} of {len(losses)} has a loss but no labels.")
        self._output_names = names
        self.terms = terms_of(losses, weights, self._reduction, keras, with_ranks_matched)
        sample_weights = align(sample_weight, structure, names, "sample_weight")
        check_label_shapes(self.terms, labels, keras.tree.flatten(structure), sample_weights)
        used = [term for term in self.terms if term is not None]
        # The last term holds what layers add in their call, a mean over the batch.
        self.coefficients = np.array([term.coefficient for term in used] + [1.0])
        self.averaged = np.array(
            [term.reduction != "sum" for term in used] + [self._reduction != "sum"]
        )

    def is_of_whole_batch(self, batch: Any) -> bool:
        """Tell whether a term is one number for its batch, and no sum over examples."""

        def ranks(weights: Arrays, constants: Arrays, batch: Any) -> list[Any]:
            outputs = self.outputs(weights, constants, batch)
            return [term_values(part)[0] for part in self.terms_at(outputs, batch)]

        return any(not found.shape for found in shape_of(ranks, self.model, batch))

    def _called(
        self, weights: Arrays, constants: Arrays, batch: Any
    ) -> tuple[Any, list[Any], list[Any]]:
        """Return the outputs, what layers added to the loss, and the masks of the outputs."""
        x, _, _ = unpack(batch)
        with self.model.bound(weights, constants) as model:
            structure = model(x, **self._call_options)
            losses = list(model.losses)
        # Those of weight regularization are last.
        added = losses[: len(losses) - len(self._regularized())]
        masks = [mask_of(output) for output in keras.tree.flatten(structure)]
        return structure, [jnp.sum(loss) for loss in added], masks

    def _regularized(self) -> list[Any]:
        return [v for v in self.model.model.trainable_variables if v.regularizer is not None]

    def outputs(self, weights: Arrays, constants: Arrays, batch: Any) -> OutputsOfBatch:
        """See `Objective.outputs`."""
        structure, _, masks = self._called(weights, constants, batch)
        return OutputsOfBatch([jnp.asarray(x) for x in keras.tree.flatten(structure)], masks)

    def sums(
        self, weights: Arrays, constants: Arrays, batch: Any, weight: Any
    ) -> tuple[jax.Array, jax.Array]:
        """See `Objective.sums`."""
        structure, added, masks = self._called(weights, constants, batch)
        outputs = OutputsOfBatch([jnp.asarray(x) for x in keras.tree.flatten(structure)], masks)
        return self._summed(self.terms_at(outputs, batch), added, weight)

    def sums_at(
        self, outputs: OutputsOfBatch, constants: Arrays, batch: Any, weight: Any
    ) -> tuple[jax.Array, jax.Array]:
        """See `Objective.sums_at`: what layers add in their call is no function of the outputs."""
        del constants
        return self._summed(self.terms_at(outputs, batch), [], weight)

    def _summed(
        self, parts: list[OutputTerm], added: list[Any], weight: Any
    ) -> tuple[jax.Array, jax.Array]:
        pairs = [weighted_sum(part, weight) for part in parts]
        dtype = jnp.result_type(*(total for total, _ in pairs))
        count = jnp.asarray(weight, dtype)
        activity = sum((part.astype(dtype) for part in added), jnp.zeros((), dtype))
        pairs.append((activity if self._reduction == "sum" else activity * count, count))
        totals = jnp.stack([jnp.asarray(total, dtype) for total, _ in pairs])
        return totals, jnp.stack([jnp.asarray(denominator, dtype) for _, denominator in pairs])

    def terms_at(self, outputs: OutputsOfBatch, batch: Any) -> list[OutputTerm]:
        """Return each output that has a loss with its labels, mask and weights."""
        _, y, sample_weight = unpack(batch)
        labels = align(y, self._structure, self._output_names, "y")
        weights = align(sample_weight, self._structure, self._output_names, "sample_weight")
        used = [(at, term) for at, term in enumerate(self.terms) if term is not None]
        return [
            OutputTerm(
                number, at, term, labels[at], outputs.tensors[at], outputs.rest[at], weights[at]
            )
            for number, (at, term) in enumerate(used)
        ]

    def penalty(self, weights: Arrays, constants: Arrays) -> jax.Array | None:
        """See `Objective.penalty`: the sum of the model's weight regularization."""
        regularized = self._regularized()
        if not regularized:
            return None
        with self.model.bound(weights, constants):
            terms = [jnp.sum(v.regularizer(v.value)) for v in regularized]
        dtype = jnp.result_type(*terms)
        return sum((term.astype(dtype) for term in terms), jnp.zeros((), dtype))

    def num_labels(self, batch: Any) -> int:
        """See `Objective.num_labels`: the rows of its labels."""
        _, y, _ = unpack(batch)
        labels = [part for part in jax.tree.leaves(y) if part.ndim]
        return max((int(part.shape[0]) for part in labels), default=0)

    def check_labels(self, batch: Any) -> None:
        """See `Objective.check_labels`: JAX takes a class that there is not for none at all.

        Raises:
            ValueError: if a label that counts is no class of its output, or no whole number.
        """
        _, y, _ = unpack(batch)
        labels = align(y, self._structure, self._output_names, "y")
        outputs = keras.tree.flatten(self._structure)
        check_label_values(self.terms, labels, outputs)
        for term, label, output in zip(self.terms, labels, outputs, strict=True):
            refused = None if term is None else outside_classes(term.loss, label, output)
            if refused and self._counts(batch):
                raise ValueError(refused)

    def _counts(self, batch: Any) -> bool:
        """Tell whether a label that is no class has a weight: masks leave some out."""
        model = self.model
        outputs = self.outputs(model.leaves.current(), model.constants(), batch)
        for part in self.terms_at(outputs, batch):
            if is_of_classes(part.term.loss, part.output.ndim):
                values, of_values = term_values(part)
                weights, _ = term_weights(part, values, of_values)
                wrong = is_no_class(part.term.loss, jnp.asarray(part.label), part.output.shape[-1])
                counted = wrong.reshape(values.shape) & (True if weights is None else weights != 0)
                if bool(jnp.any(counted)):
                    return True
        return False

    def sample_weights(self, batch: Any) -> list[Any]:
        """See `Objective.sample_weights`."""
        return jax.tree.leaves(unpack(batch)[2])

    def example_shapes(self, batch: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """See `Objective.example_shapes`."""
        shapes: list[Any] = []

        def values(weights: Arrays, constants: Arrays, batch: Any) -> list[Any]:
            parts = self.terms_at(self.outputs(weights, constants, batch), batch)
            shapes[:] = [(term_values(part)[0].shape, part.output.shape) for part in parts]
            return []

        shape_of(values, self.model, batch)
        return shapes

    def check_class_weight(self, class_weight: Any) -> dict[int, float] | None:
        """See `Objective.check_class_weight`."""
        return check_class_weight(class_weight)

    def with_class_weight(self, dataset: Any, class_weight: Any) -> Any:
        """See `Objective.with_class_weight`."""
        return WeightedBatches(opener(dataset), class_weight)

    def mistaken_outputs(self, batch: Any) -> tuple[list[str], float | None] | None:
        """See `Objective.mistaken_outputs`."""
        return mistaken_outputs(self.terms, lambda: self._current_outputs(batch))

    def correctly_classified(self, batch: Any) -> tuple[int, int] | None:
        """See `Objective.correctly_classified`."""
        labels = [np.asarray(part) for part in keras.tree.flatten(unpack(batch)[1])]
        return correctly_classified(self.terms, labels, lambda: self._current_outputs(batch))

    def _current_outputs(self, batch: Any) -> list[np.ndarray]:
        """Return the outputs for a batch at the weights of now, float64."""
        model = self.model
        found = self.outputs(model.leaves.current(), model.constants(), batch)
        return [np.asarray(tensor, np.float64) for tensor in found.tensors]

    def settings(self) -> dict[str, Any]:
        """See `Objective.settings`: the options of the losses, and the mode of the model."""
        losses = keras.tree.flatten(self._losses)
        options = [options_of(loss) for loss in losses]
        return super().settings() | {"options": options, "call": str(self._call_options)}
