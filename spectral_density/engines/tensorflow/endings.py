"""How the outputs of a model end in a graph: logits or probabilities."""

from __future__ import annotations

import tensorflow as tf

from spectral_density.engines.keras_shared import endings
from spectral_density.engines.keras_shared.endings import OutputEnding
from spectral_density.engines.tensorflow.keras_internals import marked_logits
from spectral_density.engines.tensorflow.terms import OutputTerm, term_values

ACTIVATIONS = {"Softmax": tf.nn.softmax, "Sigmoid": tf.nn.sigmoid}


def activation_of(output: tf.Tensor) -> tuple[str | None, tf.Tensor]:
    """Return the name of the softmax or sigmoid that an output is, and its argument.

    Keras marks the outputs of its own activations with their logits; where a graph is traced the
    operation tells as well. Both are where Keras's losses look.
    """
    name = getattr(getattr(output, "op", None), "type", None)
    if name not in ACTIVATIONS:
        return None, output
    marked = marked_logits(output)
    return name, output.op.inputs[0] if marked is None else marked


def logits_of(output: tf.Tensor) -> tf.Tensor:
    """Return the argument of the softmax or sigmoid that an output is."""
    name, logits = activation_of(output)
    marked = marked_logits(output)
    if name is None and marked is None:
        raise RuntimeError(
            "the output is a softmax or sigmoid whose argument is known in a graph only: products "
            "cannot run under tf.config.run_functions_eagerly(True)."
        )
    return logits if marked is None else marked


def ending_of(part: OutputTerm, warn: bool) -> OutputEnding:
    """Decide where the model of a term ends, and warn where that is at probabilities."""

    def fits_outputs() -> bool:
        # Labels that broadcast against the outputs give more values than there are outputs.
        return bool(term_values(part).shape.is_compatible_with(part.output.shape[:-1]))

    activation, _ = activation_of(part.output)
    rank = part.output.shape.rank
    return endings.ending_of(part.term.loss, activation, rank, fits_outputs, warn)
