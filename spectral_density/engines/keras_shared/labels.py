"""Labels that do not go with their loss and outputs: shapes and values of Keras's own losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectral_density._warnings import warn
from spectral_density.engines.keras_shared.endings import is_of_classes, standard_loss
from spectral_density.engines.keras_shared.objective import Term, describe

Shape = tuple[Any, ...]  # of sizes, None for one that is not known

_SPARSE = "sparse_categorical_crossentropy"
# One row of class probabilities for each row of outputs.
_OF_ROWS = frozenset(
    {
        "categorical_crossentropy",
        "categorical_focal_crossentropy",
        "categorical_hinge",
        "kl_divergence",
    }
)
_OF_PROBABILITIES = frozenset({"binary_crossentropy", "binary_focal_crossentropy"})
# One label for each output.
_ELEMENTWISE = _OF_PROBABILITIES | {
    "cosine_similarity",
    "hinge",
    "huber",
    "log_cosh",
    "mean_absolute_error",
    "mean_absolute_percentage_error",
    "mean_squared_error",
    "mean_squared_logarithmic_error",
    "poisson",
    "squared_hinge",
}


def check_label_shapes(
    terms: Sequence[Term | None],
    labels: Sequence[Any],
    outputs: Sequence[Any],
    sample_weights: Sequence[Any],
) -> None:
    """Check the labels and sample weights of a batch against the outputs, before they are used.

    What Keras's own losses take is known; a loss of anybody else's takes what it likes.

    Args:
        terms: losses of the outputs, None for an output without one.
        labels: of the outputs, arrays.
        outputs: arrays, or what has their shapes.
        sample_weights: of the outputs, None for none.

    Raises:
        ValueError: which says what to write.

    Warns:
        UserWarning: where one label is compared with several outputs.
    """
    for term, label, output, weight in zip(terms, labels, outputs, sample_weights, strict=True):
        of_label, of_output = _shape(label), _shape(output)
        if term is None or of_label is None or of_output is None:
            continue
        if _is_text(label):
            raise ValueError(
                f"the labels are text, and {describe(term.loss)} takes numbers: number the "
                "classes, for instance with np.unique(y, return_inverse=True)[1]."
            )
        refused = _refused(term.loss, of_label, of_output)
        if refused:
            raise ValueError(refused)
        of_weight = _shape(weight)
        if of_label and of_weight and not _fits(of_weight[:1], of_label[:1]):
            raise ValueError(
                f"a batch has {of_label[0]} labels and {of_weight[0]} sample weights: there must "
                "be one for each example, (x, y, sample_weight)."
            )


def _refused(loss: Any, label: Shape, output: Shape) -> str | None:
    """Return why a loss does not take labels of a shape, None where it does or is not known."""
    name, options = standard_loss(loss)
    rank = len(output)
    if rank < 2 or output[-1] is None or options.get("axis", -1) not in (-1, rank - 1):
        return None
    # As Keras matches ranks: a last axis of size 1 may be there or not.
    squeezed = label[:-1] if label and label[-1] == 1 else label
    numbers = _fits(label, output[:-1]) or _fits(squeezed, output[:-1])
    rows = _fits(label, output) or _fits(squeezed, output)
    which = f"the labels have shape {label}"
    if name == _SPARSE:
        if numbers:
            return None
        wanted = f"{describe(loss)} takes class numbers, shape {output[:-1]}"
        if rows:
            return (
                f"{which}, rows such as one-hot, and {wanted}: pass np.argmax(y, axis=-1), or the "
                f"loss {_dense(loss)}."
            )
        return f"{which} and the outputs {output}, and {wanted}."
    if name in _OF_ROWS:
        if rows:
            return None
        wanted = f"{describe(loss)} takes one-hot rows, shape {output}"
        if numbers:
            other = f", or the loss {_sparse(loss)}" if name == "categorical_crossentropy" else ""
            return (
                f"{which}, class numbers, and {wanted}: pass "
                f"keras.utils.to_categorical(y, {output[-1]}){other}."
            )
        return f"{which}, and {wanted}: the model has {output[-1]} outputs."
    if name not in _ELEMENTWISE or rows or (numbers and output[-1] == 1):
        return None
    if len(label) == rank and _broadcasts(label, output):
        if label[-1] == 1:
            warn(
                f"{which} and the outputs {output}: {describe(loss)} compares each label with all "
                f"{output[-1]} outputs. Is a row of {output[-1]} labels for each example meant?"
            )
        return None
    advice = ""
    if numbers:
        advice = f" Class numbers are made rows by keras.utils.to_categorical(y, {output[-1]})."
        if name in _OF_PROBABILITIES:
            advice += f" For one class of {output[-1]} the loss is SparseCategoricalCrossentropy."
    return (
        f"{which} and the outputs {output}, and {describe(loss)} takes one label for each output."
        f"{advice}"
    )


def check_label_values(
    terms: Sequence[Term | None], labels: Sequence[Any], outputs: Sequence[Any]
) -> None:
    """Check the values of labels that a loss would take for others without an error.

    Args:
        terms: losses of the outputs, None for an output without one.
        labels: of the outputs, arrays.
        outputs: arrays, or what has their shapes.

    Raises:
        ValueError: if a class number is no whole number.

    Warns:
        UserWarning: if labels of a binary cross-entropy are no probabilities.
    """
    for term, label, output in zip(terms, labels, outputs, strict=True):
        shape = _shape(output)
        if term is None or shape is None or not _is_of_numbers(label):
            continue
        name, _ = standard_loss(term.loss)
        if is_of_classes(term.loss, len(shape)) and not _is_whole(label):
            values = np.asarray(label)
            fraction = values[values != np.floor(values)][0]
            raise ValueError(
                f"{describe(term.loss)} takes class numbers, and among the labels is "
                f"{fraction:.6g}, no whole number: for values to be predicted the loss is mse."
            )
        if name in _OF_PROBABILITIES:
            _warn_of_no_probabilities(term.loss, np.asarray(label))


def _is_whole(label: Any) -> bool:
    values = np.asarray(label)
    return values.dtype.kind != "f" or bool(np.all(values == np.floor(values)))


def _warn_of_no_probabilities(loss: Any, labels: np.ndarray) -> None:
    if not labels.size:
        return
    low, high = float(labels.min()), float(labels.max())
    if low < 0 or high > 1:
        advice = (
            " Labels of -1 and 1 become (y + 1) / 2."
            if low == -1 and high <= 1
            else " For class numbers the loss is SparseCategoricalCrossentropy."
        )
        warn(
            f"the labels are from {low:.6g} to {high:.6g}, and {describe(loss)} takes "
            f"probabilities, 0 to 1.{advice}"
        )


def outside_classes(loss: Any, label: Any, output: Any) -> str | None:
    """Return why a label is no class of an output, None where all are or it is not known.

    Args:
        loss: of the output.
        label: array of class numbers.
        output: array, or what has its shape.
    """
    shape = _shape(output)
    if shape is None or not _is_of_numbers(label) or not is_of_classes(loss, len(shape)):
        return None
    labels = np.asarray(label)
    if not np.any(is_no_class(loss, labels, shape[-1])):
        return None
    message = (
        f"the labels are from {np.min(labels):g} to {np.max(labels):g}, and the model has "
        f"{shape[-1]} outputs, the classes 0 to {shape[-1] - 1}."
    )
    if shape[-1] == 1:
        return (
            f"the labels are from {np.min(labels):g} to {np.max(labels):g}, and the model has one "
            f"output: {describe(loss)} takes one for each class. For two classes at one output "
            "the loss is BinaryCrossentropy, for values to be predicted mse."
        )
    if np.min(labels) == 1 and np.max(labels) == shape[-1]:
        return f"{message} Pass y - 1: classes are numbered from 0."
    if np.min(labels) < 0:
        return (
            f"{message} Where {np.min(labels):g} marks what does not count, pass "
            f"SparseCategoricalCrossentropy(ignore_class={np.min(labels):g})."
        )
    return f"{message} Classes are numbered from 0, and each has an output."


def is_no_class(loss: Any, labels: Any, classes: int) -> Any:
    """Tell for each label whether it is neither a class, 0 to classes - 1, nor ignored."""
    wrong = (labels < 0) | (labels >= classes)
    ignored = standard_loss(loss)[1].get("ignore_class")
    return wrong if ignored is None else wrong & (labels != ignored)


def _dense(loss: Any) -> str:
    return "CategoricalCrossentropy" if _is_named_in_capitals(loss) else "categorical_crossentropy"


def _sparse(loss: Any) -> str:
    return "SparseCategoricalCrossentropy" if _is_named_in_capitals(loss) else _SPARSE


def _is_named_in_capitals(loss: Any) -> bool:
    return describe(loss)[:1].isupper()


def _shape(part: Any) -> Shape | None:
    """Return the shape of an array, None where it has none that is known."""
    try:
        return tuple(part.shape)
    except (AttributeError, TypeError, ValueError):  # None, or a tensor of unknown rank
        return None


def _is_of_numbers(label: Any) -> bool:
    """Tell whether labels are an array of numbers, neither text nor ragged nor sparse."""
    shape = _shape(label)
    return shape is not None and None not in shape and np.asarray(label).dtype.kind in "fiub"


def _is_text(label: Any) -> bool:
    name = getattr(label.dtype, "name", str(label.dtype))
    return name in ("string", "object") or name.startswith(("str", "bytes"))


def _fits(shape: Shape, other: Shape) -> bool:
    """Tell whether two shapes are the same as far as they are known."""
    return len(shape) == len(other) and all(
        a is None or b is None or a == b for a, b in zip(shape, other, strict=True)
    )


def _broadcasts(label: Shape, output: Shape) -> bool:
    return all(
        a is None or b is None or a in (1, b) or b == 1 for a, b in zip(label, output, strict=True)
    )
