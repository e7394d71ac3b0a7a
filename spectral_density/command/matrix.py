"""Curvature operator of a command, from a saved model, a dataset and a loss."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spectral_density.command.before_loading import NO_SUCH_LOSS, check_loss, check_source
from spectral_density.command.data import (
    DEFAULT_BATCH_SIZE,
    Examples,
    open_data,
    with_labels_for,
)
from spectral_density.command.framework import Framework, framework_of
from spectral_density.command.imported import import_object
from spectral_density.command.model_files import check_kind, load_model

if TYPE_CHECKING:
    from spectral_density.curvature import CurvatureOperator


@dataclass(frozen=True)
class MatrixRequest:
    """Which matrix, as given on the command line."""

    model: Path
    data: str
    batch_size: int | None = None
    scale: bool = True
    loss: str | None = None  # None for the compiled one
    from_logits: bool = False
    operator: str = "hessian"
    fisher_kind: str = "type2"
    layers: re.Pattern[str] | None = None  # None for all variables
    custom_objects: str | None = None
    unsafe: bool = False
    seed: int = 0
    download: bool = False


@dataclass(frozen=True)
class RequestedMatrix:
    """The operator, with descriptions of what it was made of."""

    operator: CurvatureOperator
    model: str
    data: str
    data_notes: tuple[str, ...]
    loss: str

    def __str__(self) -> str:
        """Describe model, data, loss and operator, one a line."""
        rows = (
            ("model", self.model),
            ("data", self.data),
            *(("", note) for note in self.data_notes),
            ("loss", self.loss),
            ("operator", repr(self.operator)),
        )
        return "\n".join(f"{name:<9} {text}" for name, text in rows)


def check_files(request: MatrixRequest) -> None:
    """Check what can be checked before Keras and its backend are imported, which takes seconds.

    Raises:
        FileNotFoundError: if the model or the data is not there.
        ModuleNotFoundError: if tensorflow_datasets is needed and not installed.
        ValueError: if the file of the model holds no model, the data no x and y or no such split,
            or there is no such loss or module.
    """
    check_kind(request.model)
    check_source(request.data, request.batch_size, request.download)
    check_loss(request.loss, request.from_logits, request.custom_objects)


def open_matrix(request: MatrixRequest) -> RequestedMatrix:
    """Load the model and the data, and make the operator: one pass over the data.

    Raises:
        FileNotFoundError: if the model or the data is not there.
        ModuleNotFoundError: if a package is missing.
        ValueError: if one of them is not what it should be, or they do not belong together.
    """
    model = load_model(
        request.model,
        custom_objects=request.custom_objects,
        compiled=request.loss is None,
        unsafe=request.unsafe,
    )
    loss = _loss(model, request)
    dataset = open_data(
        request.data,
        batch_size=request.batch_size,
        scale=request.scale,
        download=request.download,
    )
    framework = framework_of(model)
    outputs = _outputs(model, dataset, request.data, framework)
    if isinstance(dataset, Examples):
        dataset = _with_rescaling_note(dataset, model)
        dataset = with_labels_for(dataset, _standard_loss(model, loss)[0], _num_outputs(outputs))
    with _mismatches_explained(dataset, outputs, framework):
        operator = _operator(model, loss, dataset, request)
    return RequestedMatrix(
        operator,
        _describe_model(request.model, model),
        _describe_data(request, dataset, operator),
        dataset.notes if isinstance(dataset, Examples) else (),
        _describe_loss(model, loss, operator),
    )


def _operator(model: Any, loss: Any, dataset: Any, request: MatrixRequest) -> CurvatureOperator:
    from spectral_density.curvature import FisherOperator, GaussNewtonOperator, HessianOperator

    if request.operator == "fisher":
        return FisherOperator(
            model,
            loss,
            dataset,
            kind=request.fisher_kind,
            seed=request.seed,
            variables=request.layers,
        )
    kinds = {"hessian": HessianOperator, "ggn": GaussNewtonOperator}
    return kinds[request.operator](model, loss, dataset, variables=request.layers)


# The loss ----------------------------------------------------------------------------------------


def _loss(model: Any, request: MatrixRequest) -> Any:
    """Return what `--loss` names, or None where the model was compiled with one."""
    name = request.loss
    if name is None:
        if getattr(model, "loss", None) is None:
            raise ValueError(
                f"{request.model} was saved without a loss (never compiled): name one with --loss, "
                "for instance --loss sparse_categorical_crossentropy --from-logits."
            )
        return None
    if ":" in name:
        return import_object(name)
    from spectral_density.engines.keras_shared.endings import standard_loss
    from spectral_density.engines.keras_shared.kinds import keras_module

    losses: Any = keras_module(model).losses  # type: ignore[union-attr]
    try:
        loss = losses.get(name)
    except ValueError:
        loss = None
    if loss is None:
        raise ValueError(NO_SUCH_LOSS.format(name=name))
    if not request.from_logits:
        return loss
    function = standard_loss(loss)[0] or name
    of_class = getattr(losses, "".join(part.title() for part in function.split("_")), None)
    if of_class is None or "from_logits" not in inspect.signature(of_class).parameters:
        raise ValueError(f"--loss {name} knows no logits: leave --from-logits out.")
    return of_class(from_logits=True)


def _standard_loss(model: Any, loss: Any) -> tuple[str | None, dict[str, Any]]:
    """Return name and options of one of Keras's own losses; None for others and for several."""
    from spectral_density.engines.keras_shared.endings import standard_loss
    from spectral_density.engines.keras_shared.kinds import keras_module

    loss = model.loss if loss is None else loss
    if isinstance(loss, str):
        loss = keras_module(model).losses.get(loss)  # type: ignore[union-attr]
    if isinstance(loss, (list, tuple, dict)):
        return None, {}
    return standard_loss(loss)


# The model on the data ---------------------------------------------------------------------------


def _outputs(model: Any, dataset: Any, source: str, framework: Framework) -> Any:
    """Return the model's outputs for the first batch, which builds a model that was not built.

    Raises:
        ValueError: if the model does not take the data.
    """
    batch = framework.first_batch(dataset)
    x = batch[0] if isinstance(batch, (list, tuple)) else batch
    try:
        return model(x, training=False)
    except framework.errors as error:
        shapes = _shapes(framework.flatten(x))
        raise ValueError(
            f"the model does not take inputs of shape {shapes}, which {source} holds"
            f"{_expected(model)}: {_first_line(error)}"
        ) from error


def _shapes(tensors: list[Any]) -> str:
    """Return the shapes of the tensors of a batch, without the number of examples."""
    return ", ".join(str(tuple(part.shape[1:])) for part in tensors)


def _first_line(error: Exception) -> str:
    """Return the first informative line of an error.

    Keras puts a bold heading before it, TensorFlow a whole trace, and the operation after it.
    """
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line, following in pairwise(lines):
        if following.startswith("[[{{node"):
            return line
    informative = [line for line in lines if not line.startswith("Exception encountered")]
    return (informative or lines or [type(error).__name__])[0]


def _expected(model: Any) -> str:
    try:
        shape = model.input_shape
    except (AttributeError, ValueError):
        return ""
    return f" (it takes {tuple(shape[1:])})" if isinstance(shape, tuple) else ""


@contextmanager
def _mismatches_explained(dataset: Any, outputs: Any, framework: Framework) -> Iterator[None]:
    """Add the shapes of labels and outputs to a framework's error that a loss does not take them.

    Raises:
        ValueError: with their shapes.
    """
    try:
        yield
    except framework.errors as error:
        if not framework.is_of_computation(error):
            raise
        labels = framework.first_batch(dataset)[1]
        raise ValueError(
            f"the loss does not take labels of shape {_shapes(framework.flatten(labels))} and "
            f"outputs of shape {_shapes(framework.flatten(outputs))}: {_first_line(error)}"
        ) from error


def _num_outputs(outputs: Any) -> int | None:
    shape = getattr(outputs, "shape", None)
    return int(shape[-1]) if shape is not None and len(shape) == 2 else None


def _with_rescaling_note(dataset: Examples, model: Any) -> Examples:
    """Add a note to scaled images where the model has a layer that scales them."""
    from spectral_density.engines.keras_shared.attributes import all_layers

    layers = [layer.name for layer in all_layers(model) if "Rescaling" in type(layer).__name__]
    if layers and any("scaled to" in note for note in dataset.notes):
        return dataset.with_note(
            f"the model rescales by itself (layer {layers[0]!r}): if it was trained on [0, 255], "
            "pass --no-scale"
        )
    return dataset


# Descriptions ------------------------------------------------------------------------------------


def _describe_model(path: Path, model: Any) -> str:
    size = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return f"{path}: {type(model).__name__}, {size:,} trainable parameters"


def _describe_data(request: MatrixRequest, dataset: Any, operator: CurvatureOperator) -> str:
    count = len(operator.batches)
    batches = "1 batch" if count == 1 else f"{count:,} batches"
    text = f"{request.data}: {operator.batches.num_examples:,.0f} examples in {batches}"
    if not isinstance(dataset, Examples):
        return text
    return f"{text} of up to {request.batch_size or DEFAULT_BATCH_SIZE}"


def _describe_loss(model: Any, loss: Any, operator: CurvatureOperator) -> str:
    options = _standard_loss(model, loss)[1]
    logits = ", at logits" if options.get("from_logits") else ""
    compiled = ", as compiled" if loss is None else ""
    return f"{operator.derivatives.description}{logits}{compiled}"
