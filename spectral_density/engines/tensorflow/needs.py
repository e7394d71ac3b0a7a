"""What a matrix needs of a loss, checked on the first batch: outputs apart, losses of examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density._warnings import warn
from spectral_density.engines.engine import Needs
from spectral_density.engines.tensorflow.compiled_products import compiled
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.keras_objective import KerasObjective, unpack
from spectral_density.engines.tensorflow.objectives import Objective, PairObjective
from spectral_density.engines.tensorflow.output_loss import OutputLoss
from spectral_density.engines.tensorflow.terms import term_values
from spectral_density.engines.tensorflow.variables import Variables


class LossNeeds:
    """The needs of a matrix, and whether a loss meets them.

    Attributes:
        output_loss: the loss as a function of the outputs, None where a matrix has no need of it.
    """

    def __init__(self, needs: Needs, objective: Objective, parameters: Variables):
        """Check nothing yet.

        Raises:
            ValueError: if outputs and loss are needed apart, and cannot be separated.
        """
        self._needs = needs
        self._objective = objective
        self._parameters = parameters
        self._is_checked = False
        self.output_loss = OutputLoss(objective, needs.logits) if needs.outputs else None

    @property
    def outputs_of_examples(self) -> bool:
        """Whether the matrix is made of losses of single examples."""
        return bool(self._needs.example_losses or self._needs.distribution)

    def check(self, batch: Any) -> None:
        """Check the loss on the first batch, and the sample weights of each.

        Raises:
            ValueError: if a need is not met.
        """
        if not self._is_checked:
            if self.output_loss is not None:
                self.output_loss.survey(batch)
                self._warn_of_variables_beyond_outputs(batch)
            self._check_loss(batch)
            self._is_checked = True
        if self._needs.positive_weights and isinstance(self._objective, KerasObjective):
            _, _, sample_weight = unpack(batch)
            given = [part for part in tf.nest.flatten(sample_weight) if part is not None]
            if any(np.any(np.asarray(part) < 0) for part in given):
                raise ValueError(
                    "a sample weight is negative: an outer product of gradients cannot count less "
                    "than nothing. Use weights >= 0."
                )

    def _check_loss(self, batch: Any) -> None:
        objective, needs = self._objective, self._needs
        if needs.positive_weights and np.any(objective.coefficients < 0):
            raise ValueError(
                "a loss weight is negative: an outer product of gradients cannot count less than "
                "nothing. Use loss_weights >= 0."
            )
        if needs.example_losses and isinstance(objective, KerasObjective):
            compiled(self._check_values, objective).get_concrete_function(batch)
        if needs.distribution and self.output_loss is not None:
            endings = self.output_loss.endings
            if not endings or any(ending.distribution is None for ending in endings):
                raise ValueError(
                    f"{needs.distribution} needs the distribution of the labels, and "
                    f"{objective.description} has none that is known here: use Keras's softmax or "
                    "sigmoid cross-entropy (at logits, or with a model that ends in Keras's "
                    'softmax or sigmoid) or mean squared error, or kind="empirical".'
                )

    def _check_values(self, batch: Any) -> None:
        if self.output_loss is None:
            return
        outputs = self.output_loss.at(batch)
        rows = set()
        for part, _ in outputs.terms():
            values = term_values(part)
            if values.shape.rank == 0 or values.shape[0] != part.output.shape[0]:
                raise ValueError(
                    f"{self._needs.example_losses} needs a loss of one value (or more) for each "
                    f"example, got shape {tuple(values.shape)} for outputs of shape "
                    f"{tuple(part.output.shape)}."
                )
            rows.add(values.shape[0])
        if len(rows) > 1:
            raise ValueError(
                f"the outputs have {sorted(rows)} rows: which of them belong to one example?"
            )

    def _warn_of_variables_beyond_outputs(self, batch: Any) -> None:
        """Warn where a user's loss reads variables itself, of which J knows nothing."""
        objective = self._objective
        if not isinstance(objective, PairObjective):
            return
        variables = self._parameters.variables
        with (
            exact_second_derivatives(objective.model),
            tf.GradientTape(watch_accessed_variables=False) as tape,
        ):
            tape.watch(variables)
            outputs = objective.outputs_of(batch)
            cut = tf.nest.map_structure(tf.stop_gradient, outputs)
            value = objective.value_at(cut, batch)
        reached = tape.gradient(value, variables)
        pairs = zip(self._parameters.names, reached, strict=True)
        names = [name for name, part in pairs if part is not None]
        if names:
            warn(
                f"loss(outputs, batch) reads variables beside the outputs: {', '.join(names)}. "
                "The matrix holds nothing of what they do there. Compute it in predict, or use "
                "HessianOperator."
            )
