"""The Hessian of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from spectral_density.curvature.frameworks import check_backend, variable_name
from spectral_density.curvature.losses import FunctionObjective, make_objective
from spectral_density.curvature.operator import CurvatureOperator, hessian_products
from spectral_density.curvature.parameters import Parameters, select
from spectral_density.curvature.scopes import layers_of


class HessianOperator(CurvatureOperator):
    r"""The Hessian of a loss over a dataset with respect to a model's variables.

    .. math:: H = \nabla^2_w \Big( \frac{1}{D} \sum_i \ell(f_w(x_i), y_i) + R(w) \Big)

    With a Keras loss this is the Hessian of the objective that `fit` minimizes: sample weights,
    masks, loss weights and regularization included, at `training=False` unless asked otherwise.
    Variables are read afresh at every product. Products are reverse over reverse
    (Pearlmutter 1994, Neural Computation 6:147).

    Example:
        >>> hessian = HessianOperator(model, "mse", [(x, y)])           # doctest: +SKIP
        >>> scipy.sparse.linalg.eigsh(hessian, k=3)                     # doctest: +SKIP
    """

    def __init__(
        self,
        model: Any,
        loss: Any,
        dataset: Any,
        *,
        variables: Any = None,
        reduction: str | None = None,
        training: bool = False,
        batch_weight: Callable[[Any], float] | None = None,
        memory_share: float = 0.25,
        class_weight: Mapping[int, float] | None = None,
    ):
        """Survey the dataset and check the loss; one pass over the data.

        Args:
            model: Keras 3 or tf_keras model, or a `tf.Module`.
            loss: Keras loss object, its name, None for the compiled loss, a function
                `(y_true, y_pred)`, a function `loss_fn(model, batch) -> scalar`, or a pair
                `(predict(model, batch), loss(outputs, batch))`. A function whose first parameter
                is called neither `model` nor `y_true` is tried as `loss_fn(model, batch)` first.
            dataset: re-iterable batches: `tf.data.Dataset`, list, `PyDataset`, or a callable
                that returns an iterator. With a Keras loss a batch is `(x, y)` or `(x, y, w)`.
            variables: which trainable variables: None for all, the exact name of a layer or
                variable, `re.compile(...)`, a variable, a layer, or a list of these.
            reduction: "mean" or "sum" over the data; None for a Keras loss's own, or, with a
                function, "mean": what it returns is a mean over its batch.
            training: whether a Keras loss calls the model in training mode.
            batch_weight: weight of a batch in the mean of a function's values, default its number
                of examples (the leading dimension its tensors share).
            memory_share: share of the free memory that kept batches may take, and once more what
                their products leave behind (1 GiB at most); 0 streams.
            class_weight: with a Keras loss, the weight of the examples of each class, as in `fit`:
                a dict from class to weight, 1 for a class that is not in it. Labels are integers
                or one-hot. It multiplies the sample weights of the dataset. Nothing tells the
                operator of the `class_weight` that `fit` was called with: pass it here too.

        Raises:
            ValueError: a model never built, no loss, a loss that is no scalar or does not depend on
                the model, an unknown name, or a dataset that is empty, infinite, or used up
                after one pass. Also what cannot be right, before anything runs: an operation
                without a second derivative between the variables and the loss, a forward pass that
                writes to a trainable weight, the compiled loss of a model with a `train_step` of
                its own, a loss with a `__call__` of its own.
            TypeError: model, loss or dataset is no such thing, or a function is no loss of either
                form.

        Warns:
            UserWarning: batches of more than eight shapes.
        """
        check_backend()
        super().__init__(
            make_objective(model, loss, reduction=reduction, training=training, dataset=dataset),
            select(model, variables),
            dataset,
            batch_weight=batch_weight,
            memory_share=memory_share,
            class_weight=class_weight,
        )

    @classmethod
    def from_function(cls, loss: Callable[[Any], tf.Tensor], variables: Any) -> HessianOperator:
        """Return the Hessian of `loss(variables)` with respect to `variables`.

        Args:
            loss: called with exactly the object passed as `variables`; returns a scalar tensor.
            variables: a `tf.Variable`, or any nested structure of them.

        Raises:
            ValueError: if the loss is no scalar or does not depend on the variables, holds an
                operation without a second derivative, or writes to the variables.
        """
        flat = tf.nest.flatten(variables)
        names = [
            f"{variable_name(v)}_{i}" if len(flat) > 1 else variable_name(v)
            for i, v in enumerate(flat)
        ]
        operator = cls.__new__(cls)
        CurvatureOperator.__init__(
            operator,
            FunctionObjective(
                lambda batch: loss(variables), "sum", getattr(loss, "__name__", "function")
            ),
            Parameters(flat, names),
            [()],
            batch_weight=lambda batch: 1.0,
        )
        return operator

    def _batch_products(
        self, batch: Any, weight: tf.Tensor, scales: tf.Tensor, vectors: list[list[tf.Tensor]]
    ) -> tuple[list[list[Any]], list[Any]]:
        return hessian_products(
            lambda: self._batch_value(batch, weight, scales),
            self.parameters.variables,
            vectors,
            layers_of(self.objective.model),
        )
