"""State of a second-order training under Keras's `fit`, over a TensorFlow model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from spectral_density._warnings import warn
from spectral_density.engines.keras_shared.attributes import compiled_loss, loss_tracker
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
from spectral_density.engines.tensorflow.layer_losses import losses_put_back
from spectral_density.training.batch_problem import BatchProblem, full_batch
from spectral_density.training.best_weights import BestWeights
from spectral_density.training.methods import SecondOrderMethod
from spectral_density.training.metrics import first_accuracy

if TYPE_CHECKING:
    from spectral_density.training.model import SecondOrderModel


class FitState:
    """State of the training since `compile`: the problem, made at the first batch, and the best.

    It is no part of the model, whose attributes Keras tracks.
    """

    def __init__(
        self, trainer: SecondOrderModel, method: SecondOrderMethod, loss: Any, loss_weights: Any
    ):
        """Take what a model was compiled with."""
        self.trainer = trainer
        self.method = method
        self.objective = KerasObjective(trainer.model, loss, loss_weights=loss_weights)
        self.problem: BatchProblem | None = None
        self.best: BestWeights | None = None
        self.num_examples: float | None = None  # of an epoch, None for not known yet
        self._steps: int | None = None
        self._seen = 0

    def begin_fit(self, arguments: dict[str, Any]) -> None:
        """Read off the arguments of `fit` how many examples an epoch has."""
        self.num_examples, self._steps = _epoch_size(arguments)
        if arguments.get("class_weight") is not None and self.method.hessian_data is not None:
            warn(
                "class_weight weighs the examples that fit is given, and not those of "
                "hessian_data: the matrix is of another loss than the gradient. Give hessian_data "
                "sample weights, (x, y, sample_weight), or leave it out."
            )
        if self.problem is not None:
            self.problem.work.go_on_with_other_data()

    def observer(self) -> keras.callbacks.Callback:
        """Return a callback of `fit` that says when epochs begin and end."""
        return _EpochObserver(self)

    def begin_epoch(self) -> None:
        """Count the examples of an epoch anew."""
        self._seen = 0

    def end_epoch(self) -> None:
        """Set how many examples an epoch has to those of the one that has ended."""
        if self._seen:
            self.num_examples = float(self._seen)
            if self.problem is not None:
                self.problem.work.num_examples = self.num_examples

    def step(self, data: Any) -> dict[str, Any]:
        """Make one step on a batch and return the metrics."""
        batch = full_batch(data)
        if self.problem is None:
            self.problem = self._make_problem(batch)
        rows = self.problem.set_batch(batch)
        self._seen += rows
        if self.num_examples is not None:
            self.problem.work.num_examples = self.num_examples
        else:
            # What an epoch has at least, until it ends: all batches are about as large as this.
            seen = max(self._seen, rows * (self._steps or 1))
            self.problem.work.num_examples = float(seen)
        self.method.step(self.problem)
        return self.problem.observed

    def _make_problem(self, batch: Any) -> BatchProblem:
        model = self.trainer.model
        if not model.built:
            with losses_put_back(model):
                model(batch[0], training=False)
        self.trainer.built = True
        return BatchProblem(
            self.objective,
            batch,
            curvature=self.method.curvature,
            l2=self.trainer.l2,
            hessian_data=self.method.hessian_data,
            hessian_batch_size=self.method.hessian_batch_size,
            observe=self._observe,
        )

    def _observe(
        self, batch: Any, outputs: Any, loss: tf.Tensor, count: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Update the metrics with a batch, in the graph of its gradient, and return them."""
        trainer = self.trainer
        x, y, sample_weight = batch
        loss_tracker(trainer).update_state(loss, sample_weight=count)
        update_losses = compiled_loss(trainer)
        if update_losses is not None:
            update_losses(y, outputs, sample_weight)  # those of several outputs
        return trainer.compute_metrics(x, y, outputs, sample_weight=sample_weight)

    def validated(self, epoch: int, logs: dict[str, Any]) -> None:
        """Keep the weights if their validation is better than any before."""
        monitor = _monitor(logs)
        if monitor is None:
            return
        value = float(logs[monitor])
        if not np.isfinite(value):
            return
        sign = -1.0 if monitor == "val_loss" else 1.0
        if self.best is None or sign * value > sign * self.best.value:
            self.best = BestWeights(monitor, value, epoch, self.trainer.model.get_weights())


class _EpochObserver(keras.callbacks.Callback):
    """Pass the begin and end of epochs, and their validation, to the state of a training."""

    def __init__(self, state: FitState):
        super().__init__()
        self._fit_state = state

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._fit_state.begin_epoch()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._fit_state.end_epoch()
        self._fit_state.validated(epoch, logs or {})


def _monitor(logs: dict[str, Any]) -> str | None:
    """Return the name of the first validation accuracy, or of the validation loss."""
    accuracy = first_accuracy(logs, "val_")
    if accuracy is not None:
        return accuracy
    return "val_loss" if "val_loss" in logs else None


def _epoch_size(arguments: dict[str, Any]) -> tuple[float | None, int | None]:
    """Return the number of examples of an epoch, and of its batches, None where not known."""
    steps = arguments.get("steps_per_epoch")
    x = arguments.get("x")
    if steps is None and isinstance(x, tf.data.Dataset):
        cardinality = int(x.cardinality())
        return None, cardinality if cardinality > 0 else None
    if steps is None:
        steps = getattr(x, "num_batches", None)
    arrays = [part for part in tf.nest.flatten(x) if hasattr(part, "shape")]
    if steps is not None or not arrays or not arrays[0].shape:
        return None, steps
    total = int(arrays[0].shape[0])
    split = arguments.get("validation_split") or 0.0
    if split and arguments.get("validation_data") is None:
        total = int(np.floor(total * (1 - split)))
    return float(total), None
