"""What a loss depends on, and whether its outputs are what it takes."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.curvature.keras_internals import exact_second_derivatives
from spectral_density.curvature.losses import KerasObjective
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.outputs import standard_loss
from spectral_density.curvature.products import compiled


def gradient_reaches(
    operator: CurvatureOperator, entry: Any, weight: tf.Tensor, variables: list[tf.Variable]
) -> list[bool]:
    """Return which of the variables the loss of a batch depends on, as far as the graph knows."""
    reaches: list[bool] = []

    def trace(entry: Any, weight: tf.Tensor) -> None:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            value = operator._batch_value(entry, weight, operator._scales)
            penalty = operator.objective.penalty()
            if penalty is not None:
                value += tf.cast(penalty, value.dtype)
        reaches.extend(part is not None for part in tape.gradient(value, variables))

    compiled(trace, operator.objective).get_concrete_function(entry, weight)
    return reaches[-len(variables) :]


def mistaken_outputs(objective: KerasObjective, batch: Any) -> tuple[list[str], float | None]:
    """Return what looks like logits where probabilities belong, or the reverse."""
    suspects = []
    for term in objective._terms:
        name, options = standard_loss(term.loss) if term is not None else (None, {})
        of_probabilities = name is not None and (
            "crossentropy" in name or name in ("kl_divergence",)
        )
        suspects.append((name, options.get("from_logits", False)) if of_probabilities else None)
    if not any(suspects):
        return [], None
    with exact_second_derivatives(objective.model):
        outputs = objective.outputs_of(batch)  # once: tracing would cost more
    doubts: list[str] = []
    worst: float | None = None
    for position, (suspect, output) in enumerate(
        zip(suspects, tf.nest.flatten(outputs), strict=True)
    ):
        if suspect is None:
            continue
        name, from_logits = suspect
        values = np.asarray(tf.cast(output, tf.float64))
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
