"""What a matrix needs of a loss, checked on the first batch: outputs apart, losses of examples."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from spectral_density.engines.engine import Needs
from spectral_density.engines.keras_shared.objective import unpack
from spectral_density.engines.loss_needs import (
    check_coefficients,
    check_distribution,
    check_example_losses,
    refuse_negative_weights,
    warn_of_variables_beyond_outputs,
)
from spectral_density.engines.tensorflow.compiled_products import compiled
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
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
            refuse_negative_weights(tf.nest.flatten(sample_weight))

    def _check_loss(self, batch: Any) -> None:
        objective, needs = self._objective, self._needs
        check_coefficients(needs, objective.coefficients)
        if needs.example_losses and isinstance(objective, KerasObjective):
            compiled(self._check_values, objective).get_concrete_function(batch)
        if needs.distribution and self.output_loss is not None:
            check_distribution(needs, self.output_loss.endings, objective.description)

    def _check_values(self, batch: Any) -> None:
        if self.output_loss is None:
            return
        outputs = self.output_loss.at(batch)
        check_example_losses(
            self._needs,
            [
                (_shape(term_values(part).shape), _shape(part.output.shape))
                for part, _ in outputs.terms()
            ],
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
            warn_of_variables_beyond_outputs(names)


def _shape(shape: tf.TensorShape) -> tuple[Any, ...]:
    return tuple(shape.as_list())
