"""How outputs end, and what that is to a loss: logits or probabilities, and whose distribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from spectral_density._warnings import warn
from spectral_density.engines.keras_shared.attributes import (
    is_of_keras,
    is_of_tf_keras,
    loss_arguments,
)
from spectral_density.engines.keras_shared.objective import Term

# The distribution that a loss is the negative log-likelihood of, up to averages and constants: its
# parameters are the outputs. The squared error's is normal with variance 1/2.
_DISTRIBUTIONS = {
    "categorical_crossentropy": "categorical",
    "sparse_categorical_crossentropy": "categorical",
    "binary_crossentropy": "bernoulli",
    "mean_squared_error": "normal",
}
_ACTIVATION_OF = {"categorical": "Softmax", "bernoulli": "Sigmoid", "normal": None}

_OTHER_MATRIX = (
    "G at probabilities is another matrix than G at logits (for softmax cross-entropy it is the "
    "empirical Fisher matrix)."
)


class OutputEnding(NamedTuple):
    """How an output ends, and what its loss is in closed form."""

    activation: str | None  # moved into the loss: "Softmax", "Sigmoid" or None
    distribution: str | None  # "categorical", "bernoulli", "normal", or None: no closed form


def ending_of(
    loss: Any,
    activation: str | None,
    rank: int,
    fits_outputs: Callable[[], bool],
    warned: bool,
) -> OutputEnding:
    """Decide where a model ends, and warn where that is at probabilities.

    Args:
        loss: of the output.
        activation: that the output is, "Softmax" or "Sigmoid", None for another.
        rank: of the output.
        fits_outputs: returns whether the loss has one value for each row of outputs.
        warned: whether it matters that the outputs are not logits.
    """
    name, options = standard_loss(loss)
    if is_of_probabilities(name):
        if activation is None and not options.get("from_logits", False):
            if warned:
                warn_unmoved(name)
            return OutputEnding(None, None)
    else:
        if warned and activation is not None and name in (None, "dice", "tversky"):
            warn_unmoved(getattr(loss, "__name__", type(loss).__name__))
        activation = None
    distribution = _DISTRIBUTIONS.get(name or "")
    if distribution is not None:
        fits = (
            activation in (None, _ACTIVATION_OF[distribution])
            and options.get("axis", -1) in (-1, rank - 1)
            and rank >= 2
            and fits_outputs()
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


def is_of_classes(loss: Any, rank: int) -> bool:
    """Tell whether a loss is Keras's own of integer labels, with the classes on the last axis.

    Args:
        loss: object or function.
        rank: of the output.
    """
    name, options = standard_loss(loss)
    return name == "sparse_categorical_crossentropy" and options.get("axis", -1) in (-1, rank - 1)


def warn_unmoved(what: str | None) -> None:
    """Warn that an activation stays a part of the model, where it should belong to the loss."""
    warn(
        f"the activation that the model ends in cannot be moved into the loss ({what}). If that is "
        f"a cross-entropy, {_OTHER_MATRIX} Let the model end in Keras's softmax or sigmoid and use "
        "Keras's cross-entropy, or let it give logits, with from_logits=True."
    )


def correctly_classified(
    terms: Sequence[Term | None],
    labels: Sequence[np.ndarray],
    outputs: Callable[[], list[np.ndarray]],
) -> tuple[int, int] | None:
    """Return how many labels are those of the largest output, of how many.

    None where there is not one output with a cross-entropy of classes. Sample weights do not count.

    Args:
        terms: the losses of the outputs.
        labels: of the outputs.
        outputs: returns the outputs of a batch, float64.
    """
    if len(terms) != 1 or len(labels) != 1 or terms[0] is None:
        return None
    name, options = standard_loss(terms[0].loss)
    if options.get("ignore_class") is not None or options.get("axis", -1) != -1:
        return None
    if name == "binary_crossentropy":
        values = outputs()[0]
        positive = values > (0.0 if options.get("from_logits", False) else 0.5)
        if positive.size != labels[0].size:
            return None
        right = positive.ravel() == (labels[0].ravel() > 0.5)
    elif name in ("sparse_categorical_crossentropy", "categorical_crossentropy"):
        found = np.argmax(outputs()[0], axis=-1)
        true = labels[0] if name.startswith("sparse") else np.argmax(labels[0], axis=-1)
        if found.size != true.size:
            return None
        right = found.ravel() == true.ravel()
    else:
        return None
    return int(right.sum()), int(right.size)


def mistaken_outputs(
    terms: Sequence[Term | None], outputs: Callable[[], list[np.ndarray]]
) -> tuple[list[str], float | None]:
    """Return what looks like logits where probabilities belong, or the reverse.

    Args:
        terms: the losses of the outputs.
        outputs: returns the outputs of a batch, float64.
    """
    suspects = []
    for term in terms:
        name, options = standard_loss(term.loss) if term is not None else (None, {})
        known = is_of_probabilities(name)
        suspects.append((name, options.get("from_logits", False)) if known else None)
    if not any(suspects):
        return [], None
    doubts: list[str] = []
    worst: float | None = None
    for position, (suspect, values) in enumerate(zip(suspects, outputs(), strict=True)):
        if suspect is None:
            continue
        name, from_logits = suspect
        low, high = float(values.min()), float(values.max())
        inside = low >= -1e-3 and high <= 1 + 1e-3
        which = f"output {position}" if len(suspects) > 1 else "the output"
        if not from_logits and not inside:
            worst = max(worst or 0.0, -low, high - 1)
            doubts.append(
                f"{which} lies in [{low:.3g}, {high:.3g}], and {name} expects probabilities: are "
                "these logits? Then pass from_logits=True."
            )
        elif from_logits and "binary" not in str(name) and values.shape[-1] > 1 and inside:
            off = float(np.abs(values.sum(axis=-1) - 1).max())
            if off <= 1e-2:
                worst = max(worst or 0.0, off)
                doubts.append(
                    f"{which} lies in [{low:.3g}, {high:.3g}] and sums to 1 (to {off:.1g}), and "
                    f"{name} expects logits: are these probabilities? Then drop from_logits=True."
                )
    return doubts, worst
