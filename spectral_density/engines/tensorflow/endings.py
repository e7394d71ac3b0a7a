"""How the outputs of a model end: logits or probabilities, and the distribution of the labels."""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from spectral_density._warnings import warn
from spectral_density.engines.tensorflow.keras_internals import (
    is_of_keras,
    is_of_tf_keras,
    loss_arguments,
    marked_logits,
)
from spectral_density.engines.tensorflow.terms import OutputTerm, term_values

# The distribution that a loss is the negative log-likelihood of, up to averages and constants: its
# parameters are the outputs. The squared error's is normal with variance 1/2.
_DISTRIBUTIONS = {
    "categorical_crossentropy": "categorical",
    "sparse_categorical_crossentropy": "categorical",
    "binary_crossentropy": "bernoulli",
    "mean_squared_error": "normal",
}
ACTIVATIONS = {"Softmax": tf.nn.softmax, "Sigmoid": tf.nn.sigmoid}
_ACTIVATION_OF = {"categorical": "Softmax", "bernoulli": "Sigmoid", "normal": None}

_OTHER_MATRIX = (
    "G at probabilities is another matrix than G at logits (for softmax cross-entropy it is the "
    "empirical Fisher matrix)."
)


class OutputEnding(NamedTuple):
    """How an output ends, and what its loss is in closed form."""

    activation: str | None  # moved into the loss: "Softmax", "Sigmoid" or None
    distribution: str | None  # "categorical", "bernoulli", "normal", or None: no closed form


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
    name, options = standard_loss(part.term.loss)
    activation, _ = activation_of(part.output)
    if is_of_probabilities(name):
        if activation is None and not options.get("from_logits", False):
            if warn:
                warn_unmoved(name)
            return OutputEnding(None, None)
    else:
        if warn and activation is not None and name in (None, "dice", "tversky"):
            warn_unmoved(getattr(part.term.loss, "__name__", type(part.term.loss).__name__))
        activation = None
    distribution = _DISTRIBUTIONS.get(name or "")
    if distribution is not None:
        rank = part.output.shape.rank
        values = term_values(part)
        fits = (
            activation in (None, _ACTIVATION_OF[distribution])
            and options.get("axis", -1) in (-1, rank - 1)
            and rank >= 2
            # Labels that broadcast against the outputs give more values than there are outputs.
            and values.shape.is_compatible_with(part.output.shape[:-1])
        )
        distribution = distribution if fits else None
    return OutputEnding(activation, distribution)


def standard_loss(loss: Any) -> tuple[str | None, dict[str, Any]]:
    """Return the name and options of one of Keras's own losses, or None for anybody else's."""
    function = getattr(loss, "fn", loss)
    for part in {id(loss): type(loss), id(function): function}.values():
        if not is_of_keras(part, "losses") and not is_of_tf_keras(part, "losses"):
            return None, {}
    return getattr(function, "__name__", None), dict(loss_arguments(loss))


def is_of_probabilities(name: str | None) -> bool:
    """Tell whether one of Keras's losses, by its name, takes probabilities or their logits."""
    return name is not None and ("crossentropy" in name or name in ("kl_divergence", "kld"))


def warn_unmoved(what: str | None) -> None:
    """Warn that an activation stays a part of the model, where it should belong to the loss."""
    warn(
        f"the activation that the model ends in cannot be moved into the loss ({what}). If that is "
        f"a cross-entropy, {_OTHER_MATRIX} Let the model end in Keras's softmax or sigmoid and use "
        "Keras's cross-entropy, or let it give logits, with from_logits=True."
    )
