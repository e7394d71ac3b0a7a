"""Which function of TensorFlow, Keras or a user's made an operation or raised an error.

By the files and names in tracebacks, of which the libraries promise none.
"""

from __future__ import annotations

import importlib.util
import re
from inspect import getclosurevars, isfunction
from pathlib import Path
from traceback import walk_tb
from typing import Any

from spectral_density.engines.tensorflow.keras_internals.graphs import (
    gradient_type,
    has_custom_gradient,
    registered_gradient,
)

# Functions of TensorFlow and Keras between a call of `stop_gradient` and the operation it makes.
_MAKING = """
    from_node_def _create_op_internal create_op_internal _apply_op_helper apply_op stop_gradient
    op_dispatch_handler error_handler wrapper
"""
_LIBRARIES = ("tensorflow", "keras", "tf_keras", "spectral_density")

# Files of Keras that call a function because a model was made with it, and importers of graphs.
_ON_BEHALF = (
    "/keras/src/ops/core.py",
    "/layers/core/tf_op_layer.py",
    "/tensorflow/python/framework/importer.py",
)

# Functions that give results another gradient than theirs, by the end of the file they are in.
_CTC_FILE = "/tensorflow/python/ops/ctc_ops.py"
_QUANTIZED_CALLS = (
    *("_int8_call", "_int4_call", "_float8_call"),
    "fake_quant_with_min_max_vars",
)
_PASSED_THROUGH = "grad_pass_through."

# Where the gradient functions of operations are.
_GRADIENT_FUNCTIONS = re.compile(r"/tensorflow/python/ops/\w+_grad\.py$")


def calls(operation: Any) -> list[tuple[str, str]]:
    """Return the file and the function of each call that led to an operation, the last first.

    There are none where a graph was loaded from a file.
    """
    frames = reversed(operation.traceback or ())
    return [(frame.filename.replace("\\", "/"), frame.name) for frame in frames]


def user_stopped_gradient(operation: Any, counts_own: bool = False) -> bool:
    """Tell whether a `StopGradient` was made by no function of a library.

    One of unknown origin (a graph from a file) counts as the user's.

    Args:
        operation: of type `StopGradient`.
        counts_own: whether those of this package count (labels that a Fisher matrix draws).
    """
    for path, function in calls(operation):
        if counts_own and "/spectral_density/" in path:
            return True
        if not path.startswith(_ROOTS) or path.endswith(_ON_BEHALF):
            return True
        if function not in _MAKING.split():
            return False
    return True


def is_custom_gradient_of_ctc(operation: Any) -> bool:
    """Tell whether an operation is what `tf.nn.ctc_loss` makes of dense labels."""
    return has_custom_gradient(operation) and any(
        path.endswith(_CTC_FILE) for path, _ in calls(operation)
    )


def is_straight_through(operation: Any) -> bool:
    """Tell whether an operation has the gradient of another function, by Keras or TensorFlow.

    Those are quantized layers of Keras and functions in `tf.grad_pass_through`.
    """
    return has_custom_gradient(operation) and (
        _author_of_gradient(operation).startswith(_PASSED_THROUGH)
        or any(name in _QUANTIZED_CALLS for _, name in calls(operation))
    )


def _author_of_gradient(operation: Any) -> str:
    """Return the qualified name of the function that `tf.custom_gradient` takes a gradient from."""
    try:
        function = registered_gradient(gradient_type(operation))
    except LookupError:
        return ""
    # The function that was registered calls one that calls the one that was written.
    for name in ("tape_grad_fn", "grad_fn"):
        function = getclosurevars(function).nonlocals.get(name) if isfunction(function) else None
    return getattr(function, "__qualname__", "")


def raised_in_gradient_function(error: Exception) -> bool:
    """Tell whether an error was raised in one of TensorFlow's gradients of operations."""
    paths = (frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))
    return any(_GRADIENT_FUNCTIONS.search(path.replace("\\", "/")) for path in paths)


def _roots() -> tuple[str, ...]:
    specs = [importlib.util.find_spec(name) for name in _LIBRARIES]
    places = [place for spec in specs if spec for place in spec.submodule_search_locations or ()]
    return tuple(f"{Path(place).as_posix()}/" for place in places)


_ROOTS = _roots()
