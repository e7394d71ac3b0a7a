"""Whatever loss the user has, in one form: sums over examples, and what divides them.

An objective over a dataset is `sum_k c_k S_k / D_k + penalty`. `S_k` (a sum of weighted values) and
`D_k` (its denominator) add up over batches, so the objective is that of the whole dataset, however
it is cut into batches; the penalty (weight regularization) is added once.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.autograph.impl.api import StagingError

from spectral_density.engines.tensorflow.batches import first_batch
from spectral_density.engines.tensorflow.frameworks import (
    is_keras_loss,
    keras_module,
    tf_variable,
    trainable_variables,
)
from spectral_density.engines.tensorflow.keras_internals import exact_second_derivatives
from spectral_density.engines.tensorflow.layer_losses import losses_put_back
from spectral_density.engines.tensorflow.own_code import (
    is_second_order_model,
    refuse_own_call,
    refuse_own_training,
)

REDUCTIONS = ("mean", "sum")

# What tracing a user's function raises where it is called with things it does not expect.
TRACING_ERRORS = (
    *(TypeError, ValueError, AttributeError, LookupError, ArithmeticError, AssertionError),
    *(NameError, RuntimeError, StagingError, tf.errors.OpError),
)
_ERROR_SHOWN = 300  # characters


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
        return _non_trainable(self.model)

    def validate(self, batch: Any) -> None:
        """Raise if the function does not return a real scalar tensor."""
        shape = loss_shape(self._function, batch) if self._shape is None else self._shape
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
            _describe(loss),
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
    except StagingError as error:
        # In place of errors that AutoGraph cannot make anew, such as an IndexError: the user's own.
        raise error.__context__ or error from None
    if not (hasattr(value, "shape") and hasattr(value, "dtype")) or not value.dtype.is_floating:
        found = getattr(value, "dtype", type(value).__name__)
        raise TypeError(f"loss_fn must return a real floating-point tensor, got {found}.")
    return value.shape


class Term(NamedTuple):
    """One output's loss: values per example, how they reduce, and its weight."""

    values: Callable[[Any, Any], tf.Tensor]
    reduction: str
    dtype: str
    coefficient: float
    loss: Any  # the object or function itself


class OutputTerm(NamedTuple):
    """One output of a batch with its loss, labels and weights."""

    number: int  # of the term among the objective's
    position: int  # of the output among the flattened outputs
    term: Term
    label: Any
    output: tf.Tensor
    sample_weight: Any


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
        self._call_options = {"training": training} if _takes_training(model) else {}
        self.terms: list[Term | None] = []  # of each output, known after `validate`
        self.description = _describe(loss)

    def outputs(self, x: Any) -> Any:
        """Return the model's outputs for inputs `x`."""
        return self.model(x, **self._call_options)

    def validate(self, batch: Any) -> None:
        """Read off the outputs of one batch which loss goes with which, and check them."""
        x, y, _ = unpack(batch)

        def outputs(x: Any) -> Any:
            return self.outputs(x)

        with exact_second_derivatives(self.model), losses_put_back(self.model):
            graph = tf.function(outputs, autograph=False).get_concrete_function(x)
        structure = graph.structured_outputs
        num_outputs = len(tf.nest.flatten(structure))
        names = getattr(self.model, "output_names", None)
        losses = _align(self._losses, structure, names, "loss")
        weights = _align(self._loss_weights, structure, names, "loss_weights")
        labels = _align(y, structure, names, "y")
        if all(loss is None for loss in losses):
            raise ValueError("every output's loss is None: there is nothing to differentiate.")
        for position, (loss, label) in enumerate(zip(losses, labels, strict=True)):
            if loss is not None and label is None:
                raise ValueError(f"output {position} of {num_outputs} has a loss but no labels.")
        self._output_names = names
        self.terms = [
            None if loss is None else self._term(loss, weight)
            for loss, weight in zip(losses, weights, strict=True)
        ]
        used = [term for term in self.terms if term is not None]
        # The last term holds what layers add in their call, a mean over the batch.
        self.coefficients = np.array([term.coefficient for term in used] + [1.0])
        self.averaged = np.array(
            [term.reduction != "sum" for term in used] + [self._reduction != "sum"]
        )

    def _term(self, loss: Any, weight: Any) -> Term:
        keras = keras_module(self.model) or keras_module_default()
        if isinstance(loss, str):
            loss = keras.losses.get(loss)
        own = getattr(loss, "reduction", "sum_over_batch_size")
        if own in (None, "none"):
            raise ValueError(
                f"loss {_describe(loss)} has reduction={own!r}, so it gives one value per example "
                "and no scalar. Use a loss with reduction='sum_over_batch_size' or 'sum'."
            )
        reduction = "sum" if own == "sum" else str(own)
        if self._reduction == "sum":
            reduction = "sum"
        elif self._reduction == "mean" and own == "sum":
            reduction = "sum_over_batch_size"
        values = loss.call if is_keras_loss(loss) else loss
        if not is_keras_loss(loss) or keras.__name__ == "tf_keras":
            values = _with_ranks_matched(values)
        dtype = getattr(loss, "dtype", None) or keras.backend.floatx()
        coefficient = 1.0 if weight is None else float(weight)
        return Term(values, reduction, str(dtype), coefficient, loss)

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
        labels = _align(y, outputs, self._output_names, "y")
        weights = _align(sample_weight, outputs, self._output_names, "sample_weight")
        used = [(at, term) for at, term in enumerate(self.terms) if term is not None]
        return [
            OutputTerm(number, at, term, labels[at], flat[at], weights[at])
            for number, (at, term) in enumerate(used)
        ]

    def settings(self) -> dict[str, Any]:
        """See `Objective.settings`: the options of the losses, and the mode of the model."""
        losses = tf.nest.flatten(self._losses)
        options = [_options(loss) for loss in losses]
        found = {"options": options, "call": str(self._call_options)}
        l2 = _l2_factor(self.model)
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
        return _non_trainable(self.model)


def make_objective(
    model: Any,
    loss: Any,
    *,
    reduction: str | None = None,
    training: bool = False,
    examples: bool = False,
    dataset: Any = None,
) -> Objective:
    """Bring whatever loss the user has into one form.

    A function whose first parameter is neither `model` nor `y_true` is traced with the first batch:
    as `loss_fn(model, batch)`, and if that raises, as `loss(y_true, y_pred)`.

    Args:
        model: Keras model or `tf.Module`.
        loss: a Keras loss object, its name, a function from `keras.losses` or one whose first
            parameter is `y_true`, a list or dict of these, None for the compiled loss, a function
            `loss_fn(model, batch) -> scalar`, or a pair `(predict(model, batch),
            loss(outputs, batch))`.
        reduction: "mean" or "sum" over batches; None for a Keras loss's own, or the mean.
        training: mode in which a Keras loss calls the model.
        examples: whether the loss of a pair returns one value for each example, no scalar.
        dataset: whose first batch a function is tried with; None for a function of model and batch.

    Raises:
        ValueError: if there is no loss to be had, `reduction` is unknown, or `fit` minimizes
            something else than the loss says.
        TypeError: if `loss` is none of these, or a function that traces in neither way.
    """
    if reduction is not None and reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}.')
    if inspect.isclass(loss):
        raise TypeError(f"loss is the class {loss.__name__}: pass an object, {loss.__name__}().")
    if loss is None:
        loss, loss_weights = _compiled_loss(model)
        return KerasObjective(
            model, loss, loss_weights=loss_weights, reduction=reduction, training=training
        )
    if _is_per_example(loss) or isinstance(loss, (list, dict)):
        return KerasObjective(model, loss, reduction=reduction, training=training)
    shape = None
    if callable(loss) and dataset is not None and _first_parameter(loss) != "model":
        shape, of_outputs = traced_loss(
            model,
            loss,
            dataset,
            KerasObjective(model, loss, reduction=reduction, training=training),
        )
        if of_outputs is not None:
            return of_outputs
    if training:
        raise ValueError(
            "training= applies to Keras losses: a function calls the model itself, "
            "so pass training=True to the model there."
        )
    if isinstance(loss, tuple) and len(loss) == 2 and all(callable(part) for part in loss):
        return PairObjective(model, *loss, reduction or "mean", examples)
    if callable(loss):
        return FunctionObjective(
            lambda batch: loss(model, batch), reduction or "mean", _describe(loss), model, shape
        )
    raise TypeError(
        "loss must be a Keras loss, its name, None for the compiled loss, a function "
        f"loss_fn(model, batch), or a pair (predict, loss), got {type(loss).__name__}."
    )


def traced_loss(
    model: Any, loss: Any, dataset: Any, of_outputs: KerasObjective
) -> tuple[tf.TensorShape | None, KerasObjective | None]:
    """Find out by tracing what a function takes: a model and a batch, or labels and outputs.

    Args:
        model: to call it with.
        loss: the function.
        dataset: whose first batch it is called with.
        of_outputs: the objective that it is if it takes labels and outputs.

    Returns:
        The shape of `loss(model, batch)` and None, or None and `of_outputs`.

    Raises:
        TypeError: if it traces in neither way, with both errors.
    """
    trainable_variables(model)  # before the function calls a model that was never built
    batch = first_batch(dataset)
    if _first_parameter(loss) == "model":
        return loss_shape(lambda batch: loss(model, batch), batch), None
    try:
        return loss_shape(lambda batch: loss(model, batch), batch), None
    except TRACING_ERRORS as error:
        of_batch = error
    try:
        of_outputs.validate(batch)
        sums = tf.function(lambda batch: of_outputs.sums(batch, 1.0), autograph=False)
        with exact_second_derivatives(model), losses_put_back(model):
            sums.get_concrete_function(batch)
    except TRACING_ERRORS as error:
        name = _describe(loss)
        raise TypeError(
            f"{name} traces in neither of the two forms that a loss may have:\n"
            f"- loss_fn(model, batch) -> scalar: {_shown(of_batch)}\n"
            f"- loss(y_true, y_pred) -> one value per example: {_shown(error)}\n"
            f"Mend {name} in the form that is meant. A first parameter called model says that "
            "it is the first, one called y_true the second."
        ) from of_batch
    of_outputs.description += " as loss(y_true, y_pred)"
    return None, of_outputs


def _shown(error: Exception) -> str:
    """Return an error in one line, the end of it where it is long."""
    text = " ".join(str(error).split())
    if len(text) > _ERROR_SHOWN:
        text = f"... {text[-_ERROR_SHOWN:]}"
    return f"{type(error).__name__}: {text}"


def is_batch_function(loss: Any) -> bool:
    """Tell whether `loss` is a function `loss_fn(model, batch)`."""
    return callable(loss) and not _is_per_example(loss)


def unpack(batch: Any) -> tuple[Any, Any, Any]:
    """Return x, y and sample_weight (or None) of a batch.

    Raises:
        ValueError: if the batch has another structure.
    """
    if isinstance(batch, (list, tuple)) and len(batch) in (2, 3):
        x, y, *rest = batch
        return x, y, (rest[0] if rest else None)
    found = (
        f"a {type(batch).__name__} of {len(batch)}"
        if isinstance(batch, (list, tuple, dict))
        else f"a single {type(batch).__name__}"
    )
    raise ValueError(
        f"with a Keras loss a batch is (x, y) or (x, y, sample_weight), got {found}. "
        "For other batches pass a function loss_fn(model, batch)."
    )


def keras_module_default() -> Any:
    """Return Keras 3, for models that are of no Keras at all."""
    import keras

    return keras


def _compiled_loss(model: Any) -> tuple[Any, Any]:
    loss = getattr(model, "loss", None)
    if loss is None:
        raise ValueError(
            "no loss was given and the model is not compiled with one. "
            "Pass loss=, or call model.compile(loss=...) first."
        )
    refuse_own_training(model)
    container = getattr(model, "_compile_loss", None) or getattr(model, "compiled_loss", None)
    return loss, getattr(container, "_user_loss_weights", None)


def _is_per_example(loss: Any) -> bool:
    """Tell a Keras loss (object, name or function of y_true, y_pred) from a loss of a batch."""
    if isinstance(loss, str) or is_keras_loss(loss):
        return True
    if not callable(loss):
        return False
    module = getattr(loss, "__module__", None) or ""
    if module.startswith(("keras.src.losses", "tf_keras.src.losses")):
        return True
    return _first_parameter(loss) == "y_true"


def _first_parameter(function: Any) -> str | None:
    """Return the name of the first parameter of a function, None for none."""
    try:
        return next(iter(inspect.signature(function).parameters), None)
    except (TypeError, ValueError):
        return None


def _takes_training(model: Any) -> bool:
    if keras_module(model) is not None:
        return True
    try:
        return "training" in inspect.signature(model).parameters
    except (TypeError, ValueError):
        return False


def _options(loss: Any) -> str:
    """Return what a Keras loss was made with, but for the name, which Keras may have numbered."""
    if not hasattr(loss, "get_config"):
        return _describe(loss)
    arguments = getattr(loss, "_fn_kwargs", None) or {}
    named = {"config": loss.get_config(), "arguments": arguments}
    return str({key: {k: v for k, v in part.items() if k != "name"} for key, part in named.items()})


def _describe(loss: Any) -> str:
    if isinstance(loss, str):
        return loss
    if isinstance(loss, (list, tuple)):
        return ", ".join(_describe(part) for part in loss)
    if isinstance(loss, dict):
        return ", ".join(f"{name}: {_describe(part)}" for name, part in loss.items())
    return getattr(loss, "__name__", None) or type(loss).__name__


def _align(values: Any, outputs: Any, names: Any, what: str) -> list[Any]:
    """Return one of `values` for each output, in the order of the flattened outputs."""
    num_outputs = len(tf.nest.flatten(outputs))
    shared = what in ("loss", "loss_weights", "sample_weight")
    if isinstance(values, dict):
        keys = list(outputs) if isinstance(outputs, dict) else list(names or ())
        unknown = sorted(set(values) - set(keys))
        if unknown:
            raise ValueError(f"{what} names outputs {unknown}; the model's are {sorted(keys)}.")
        # tf.nest flattens a dict in the order of its sorted keys.
        keys = sorted(keys) if isinstance(outputs, dict) else keys
        return [values.get(key) for key in keys]
    if isinstance(values, (list, tuple)):
        if len(values) != num_outputs:
            raise ValueError(
                f"{what} has {len(values)} entries and the model {num_outputs} outputs."
            )
        return list(values)
    if num_outputs > 1 and values is not None and not shared:
        raise ValueError(f"the model has {num_outputs} outputs, and {what} is a single tensor.")
    return [values] * num_outputs


def weighted_sum(part: OutputTerm, count: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the weighted sum of a term's values over a batch, and its denominator."""
    values = term_values(part)
    if values.shape.rank == 0:
        return _weighted_scalar(part.term, values, part.sample_weight, count)
    weights, denominator = term_weights(part, values)
    if weights is None:
        return tf.reduce_sum(values), denominator
    # A masked value may be anything, NaN included, and counts for nothing.
    return tf.reduce_sum(tf.math.multiply_no_nan(values, weights)), denominator


def term_values(part: OutputTerm) -> tf.Tensor:
    """Return the values of a term's loss, in the wider of the loss's and the output's dtypes.

    A float32 loss must not round a float64 model.
    """
    dtype = max(tf.as_dtype(part.term.dtype), part.output.dtype, key=lambda d: d.size)
    return part.term.values(tf.cast(part.label, dtype), tf.cast(part.output, dtype))


def term_weights(part: OutputTerm, values: tf.Tensor) -> tuple[tf.Tensor | None, tf.Tensor]:
    """Return the weights of a term's values, of their rank or None for ones, and the denominator.

    As Keras does it (`keras.losses.Loss.__call__`), but before the division.
    """
    dtype = values.dtype
    # The output's mask says which steps are padding, that of the values which labels are ignored.
    found = [getattr(tensor, "_keras_mask", None) for tensor in (part.output, values)]
    masks = [tf.cast(mask, tf.bool) for mask in found if mask is not None]
    denominator = tf.cast(tf.size(values), dtype)
    weights = None
    if masks:
        mask = masks[0] if len(masks) == 1 else masks[0] & masks[1]
        weights = tf.cast(mask, dtype)
        denominator *= tf.reduce_sum(weights) / tf.cast(tf.size(mask), dtype)
    if part.sample_weight is not None:
        given = _match_rank(tf.cast(part.sample_weight, dtype), values)
        weights = given if weights is None else given * _match_rank(weights, given)
    if weights is None:
        return None, denominator
    weights = _match_rank(weights, values)
    if part.term.reduction == "mean_with_sample_weight":
        denominator = tf.reduce_sum(weights)
    return weights, denominator


def _weighted_scalar(
    term: Term, value: tf.Tensor, sample_weight: Any, count: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the sum and the denominator of a loss that reduces by itself: a mean over the batch.

    Keras multiplies it with the weight of each example, as if all had the same loss.
    """
    count = tf.cast(count, value.dtype)
    if sample_weight is None:
        return (value if term.reduction == "sum" else value * count), count
    total = tf.reduce_sum(tf.cast(sample_weight, value.dtype))
    return value * total, total if term.reduction == "mean_with_sample_weight" else count


def _with_ranks_matched(
    values: Callable[[Any, Any], tf.Tensor],
) -> Callable[[Any, Any], tf.Tensor]:
    """Give labels and outputs one rank where a last axis of size 1 is all that differs.

    `compile` does so around a function; labels (n,) and outputs (n, 1) would broadcast to (n, n).
    """

    def matched(y: tf.Tensor, output: tf.Tensor) -> tf.Tensor:
        if y.shape.rank == output.shape.rank + 1 and y.shape[-1] == 1:
            output, y = _same_rank(output, y)
        elif output.shape.rank == y.shape.rank + 1 and output.shape[-1] == 1:
            y, output = _same_rank(y, output)
        return values(y, output)

    return matched


def _same_rank(short: tf.Tensor, long: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if short.shape.rank == 1:
        return tf.expand_dims(short, -1), long
    return short, tf.squeeze(long, -1)


def _match_rank(weights: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Give per-example weights the rank of the values that they multiply."""
    if weights.shape.rank == values.shape.rank + 1 and weights.shape[-1] == 1:
        return tf.squeeze(weights, -1)
    while weights.shape.rank < values.shape.rank:
        weights = tf.expand_dims(weights, -1)
    return weights


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
    return [term() for layer in model._flatten_layers() for term in layer._callable_losses]


def _l2_factor(model: Any) -> float:
    """Return the factor of the squares of all weights that `SecondOrderModel` adds to its loss."""
    return float(model.l2) if is_second_order_model(model) else 0.0


def _l2_terms(model: Any) -> list[tf.Tensor]:
    factor = _l2_factor(model)
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


def _non_trainable(model: Any) -> list[tf.Variable]:
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
    layers = model._flatten_layers()
    stateful = [layer for layer in layers if getattr(layer, "stateful", False)]
    states = [state for layer in stateful for state in tf.nest.flatten(layer.states)]
    return [state for state in states if state is not None]


def _format(shape: tf.TensorShape) -> str:
    return str(tuple(shape.as_list())) if shape.rank is not None else "unknown"
