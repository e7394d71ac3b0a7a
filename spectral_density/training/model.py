"""A Keras model whose `fit` trains by a second-order method."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any

import keras

from spectral_density.engines.keras_shared.own_code import own_training_method
from spectral_density.linalg.arguments import number
from spectral_density.training.best_weights import BestWeights
from spectral_density.training.methods import SecondOrderMethod
from spectral_density.training.steps import TrainingStep

# TensorFlow is imported when it is needed: without it this class says so.
if TYPE_CHECKING:
    import tensorflow as tf

    from spectral_density.training.batch_problem import BatchProblem
    from spectral_density.training.fit_state import FitState


class SecondOrderModel(keras.Model):
    """A Keras model whose `fit` steps by a second-order method.

    `compile`, `fit`, `evaluate`, `predict`, metrics, callbacks, class and sample weights, `History`
    and the progress bar are Keras's own. The wrapped model stays the user's: its weights are those
    that train, `evaluate` and `predict` work on it, and saving this model saves that one.

    Each step differentiates the objective of its batch at `training=False`: dropout is off, and
    BatchNormalization uses its moving statistics, so that loss, gradient and curvature are those
    of one function. Regularization, sample and class weights count in all three; variables that
    the loss writes keep their values.

    The method's `hessian_data` or `hessian_batch_size` chooses the examples of the matrix; without
    them they are those of the gradient. A batch that is smaller, as the last one of an epoch may
    be, is filled up with the examples of the batch before.

    Attributes:
        model: the wrapped model.
        last_step: the `TrainingStep` made last, None before the first.
        best: `BestWeights` of the best validation so far, None without any.

    Example:
        >>> trainer = SecondOrderModel(model)                                    # doctest: +SKIP
        >>> trainer.compile(LowRankSaddleFreeNewton(), loss="mse")               # doctest: +SKIP
        >>> trainer.fit(x, y, batch_size=128, epochs=3)                          # doctest: +SKIP
    """

    train_function: Any

    def __init__(self, model: keras.Model, *, l2: float = 0.0, name: str | None = None):
        """Wrap a model.

        Args:
            model: any Keras 3 model.
            l2: adds l2 times the sum of the squares of all weights to the loss.
            name: of this model, default that of the wrapped one.

        Raises:
            TypeError: if it is no Keras 3 model.
            ValueError: if Keras runs on another backend than TensorFlow, or under a distribution
                strategy.
        """
        _require_tensorflow()
        if not isinstance(model, keras.Model):
            raise TypeError(
                f"model must be a Keras 3 model, got {type(model).__name__}. For a function of "
                "variables use spectral_density.training.minimize."
            )
        super().__init__(name=name or model.name)
        if self._distribute_strategy is not None:
            raise ValueError(
                "SecondOrderModel runs on one device: create it outside of any strategy's scope."
            )
        self.model = model
        self.l2 = number(l2, "l2", least=0.0)
        self.supports_masking = True
        self.built = model.built
        self._fit_state: FitState | None = None

    # Keras's side --------------------------------------------------------------------------------

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Call the wrapped model."""
        return self.model(inputs, training=training, mask=mask)

    def build(self, input_shape: Any = None) -> None:
        """Build the wrapped model."""
        if not self.model.built:
            self.model.build(input_shape)
        self.built = True

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs, of models that have them."""
        return self.model.output_names

    def compile(  # noqa: PLR0917 (Keras's signature)
        self,
        optimizer: SecondOrderMethod,
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        steps_per_execution: int = 1,
        **options: Any,
    ) -> None:
        """Configure the training, as `keras.Model.compile` does.

        Args:
            optimizer: a second-order method; it is reset.
            loss: a Keras loss, its name, a function `(y_true, y_pred)`, or a list or dict of these.
            loss_weights: weights of the outputs.
            metrics: as in Keras.
            weighted_metrics: as in Keras.
            run_eagerly: as in Keras; products are compiled all the same.
            steps_per_execution: as in Keras.
            **options: Keras's others; `jit_compile=True` is refused.

        Raises:
            TypeError: if the optimizer is no second-order method.
            ValueError: without a loss, if XLA is asked for, or if the wrapped model has a
                `train_step`, `make_train_function` or `compute_loss` of its own.
        """
        _check_compilation(self.model, optimizer, loss, options.pop("jit_compile", False))
        settings = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
            "run_eagerly": run_eagerly,
            "steps_per_execution": steps_per_execution,
            "jit_compile": False,
        }
        super().compile(optimizer=None, **settings, **options)
        self.optimizer = optimizer
        optimizer.reset()
        if not self.model.compiled:
            # So that evaluate works on the wrapped model too, and on what is loaded from its file;
            # Keras cannot load a model that was compiled without an optimizer.
            self.model.compile(optimizer="sgd", **settings, **options)
        from spectral_density.training.fit_state import FitState

        self._fit_state = FitState(self, optimizer, loss, loss_weights)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return Keras's loss plus the L2 term."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training=training)
        return loss if not self.l2 else loss + keras.ops.cast(self._l2_term(), loss.dtype)

    def make_train_function(self, force: bool = False) -> Any:
        """Make the function that Keras's `fit` calls with an iterator over batches."""
        if self.train_function is not None and not force:
            return self.train_function
        import tensorflow as tf

        step = self._autoconvert_optionals(self.train_step)

        def train_function(iterator: Any) -> dict[str, Any]:
            logs = None
            for _ in range(self.steps_per_execution):
                try:
                    batch = next(iterator)
                except (StopIteration, tf.errors.OutOfRangeError):
                    if logs is None:
                        raise
                    break
                logs = step(batch)
            return logs or {}

        self.train_function = train_function
        return train_function

    def train_step(self, data: Any) -> dict[str, Any]:
        """Make one step on a batch and return the metrics, as Keras's own does."""
        if self._fit_state is None:
            raise ValueError("compile the model with a second-order method first.")
        return self._fit_state.step(data)

    # Saving: what is on disk is the wrapped model ------------------------------------------------

    def save(self, filepath: Any, *args: Any, **options: Any) -> None:
        """Save the wrapped model."""
        self.model.save(filepath, *args, **options)

    def export(self, filepath: Any, *args: Any, **options: Any) -> Any:
        """Export the wrapped model for inference."""
        return self.model.export(filepath, *args, **options)

    def save_weights(self, filepath: Any, *args: Any, **options: Any) -> None:
        """Save the weights of the wrapped model."""
        self.model.save_weights(filepath, *args, **options)

    def load_weights(self, filepath: Any, *args: Any, **options: Any) -> None:
        """Load the weights of the wrapped model."""
        self.model.load_weights(filepath, *args, **options)

    def summary(self, *args: Any, **options: Any) -> Any:
        """Print the summary of the wrapped model."""
        return self.model.summary(*args, **options)

    # Results -------------------------------------------------------------------------------------

    @property
    def last_step(self) -> TrainingStep | None:
        """What the last step did."""
        return None if self._fit_state is None else self._fit_state.method.last_step

    @property
    def problem(self) -> BatchProblem | None:
        """Cost, gradient and matrix of the last step's batch; None before the first."""
        return None if self._fit_state is None else self._fit_state.problem

    @property
    def best(self) -> BestWeights | None:
        """The weights of the epoch with the best validation, since `compile`."""
        return None if self._fit_state is None else self._fit_state.best

    def restore_best(self) -> BestWeights:
        """Set the weights to those with the best validation, and return them.

        Raises:
            ValueError: if nothing was validated since `compile`.
        """
        if self.best is None:
            raise ValueError("nothing was validated: pass validation_data or validation_split.")
        self.model.set_weights(self.best.weights)
        return self.best

    def _l2_term(self) -> tf.Tensor:
        import tensorflow as tf

        squares = [tf.reduce_sum(tf.square(v.value)) for v in self.model.trainable_variables]
        dtype = max((square.dtype for square in squares), key=lambda dtype: dtype.size)
        return self.l2 * tf.add_n([tf.cast(square, dtype) for square in squares])


def _require_tensorflow() -> None:
    """Raise unless Keras computes with TensorFlow, outside of graphs."""
    if keras.config.backend() != "tensorflow":
        raise ValueError(
            "SecondOrderModel needs TensorFlow, and Keras runs on the "
            f"{keras.config.backend()!r} backend: set KERAS_BACKEND=tensorflow before Keras is "
            "imported."
        )
    from spectral_density.engines.tensorflow.frameworks import check_eager

    check_eager()


def _check_compilation(model: Any, optimizer: Any, loss: Any, jit_compile: Any) -> None:
    """Check the arguments of `SecondOrderModel.compile`; see there for the errors."""
    if not isinstance(optimizer, SecondOrderMethod):
        raise TypeError(
            "optimizer must be a second-order method such as LowRankSaddleFreeNewton() or "
            f"NewtonCG(), got {optimizer!r}. For Keras's own optimizers compile the wrapped "
            "model itself."
        )
    if loss is None:
        raise ValueError(
            "compile needs loss=: a method's line searches and matrices are made from it."
        )
    own = own_training_method(model)
    if own is not None:
        raise ValueError(
            f"{own[0]} has a {own[1]} of its own, which the steps and the "
            "products with the Hessian know nothing of. Write its terms as a loss (y_true, "
            "y_pred), or add them with add_loss in call."
        )
    if jit_compile is True:
        raise ValueError(
            "jit_compile=True is not supported: XLA's second derivatives of max-pooling are "
            "not exact."
        )


@functools.wraps(keras.Model.fit)
def _fit(self: SecondOrderModel, *args: Any, **options: Any) -> Any:
    given = inspect.signature(keras.Model.fit).bind(self, *args, **options)
    if self._fit_state is not None:
        self._fit_state.begin_fit(given.arguments)
        callbacks = given.arguments.get("callbacks")
        observer = self._fit_state.observer()
        if isinstance(callbacks, keras.callbacks.CallbackList):
            observer.set_model(self)
            callbacks.append(observer)
        else:
            given.arguments["callbacks"] = [*_as_list(callbacks), observer]
    return keras.Model.fit(*given.args, **given.kwargs)


# Its signature is Keras's, whichever version that is.
SecondOrderModel.fit = _fit


def _as_list(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
