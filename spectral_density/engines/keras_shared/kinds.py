"""Which Keras a model or a loss is of."""

from __future__ import annotations

import sys
from typing import Any

import keras

# tf_keras is optional: an object of it can only exist once the user has imported it.
_TF_KERAS = "tf_keras"

NOTHING_TRAINABLE = (
    "the model has no trainable variables: it was never built, or every layer is frozen."
)


def keras_module(model: Any) -> Any | None:
    """Return the Keras package that `model` belongs to, or None for anything else."""
    if isinstance(model, keras.layers.Layer):
        return keras
    tf_keras = sys.modules.get(_TF_KERAS)
    if tf_keras is not None and isinstance(model, tf_keras.layers.Layer):
        return tf_keras
    return None


def is_keras_loss(loss: Any) -> bool:
    """Tell whether `loss` is a loss object of Keras 3 or of tf_keras."""
    tf_keras = sys.modules.get(_TF_KERAS)
    legacy = () if tf_keras is None else (tf_keras.losses.Loss,)
    return isinstance(loss, (keras.losses.Loss, *legacy))


def is_metric(loss: Any) -> bool:
    """Tell whether something passed for a loss is a metric of Keras 3 or of tf_keras."""
    tf_keras = sys.modules.get(_TF_KERAS)
    legacy = () if tf_keras is None else (tf_keras.metrics.Metric,)
    return isinstance(loss, (keras.metrics.Metric, *legacy))


def refuse_unbuilt(model: Any) -> None:
    """Raise if a Keras model has no weights yet.

    Raises:
        ValueError: naming the model.
    """
    if not model.built:
        raise ValueError(
            f"model {model.name!r} was never built, so it has no weights yet. "
            "Call it on a batch, or model.build(input_shape), first."
        )
