"""The Hessian of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spectral_density._arguments import explained
from spectral_density.curvature.arguments import check_places
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.sweep import SweepOptions
from spectral_density.engines import engine_of
from spectral_density.engines.engine import BatchVerbs, Block


class HessianOperator(CurvatureOperator):
    r"""The Hessian of a loss over a dataset with respect to a model's variables.

    .. math:: H = \nabla^2_w \Big( \frac{1}{D} \sum_i \ell(f_w(x_i), y_i) + R(w) \Big)

    With a Keras loss this is the Hessian of the objective that `fit` minimizes: sample weights,
    masks, loss weights and regularization included, at `training=False` unless asked otherwise.
    Variables are read afresh at every product. Products are reverse over reverse
    (Pearlmutter 1994, Neural Computation 6:147).

    Example:
        >>> hessian = HessianOperator(model, "mse", [(x, y)])           # doctest: +SKIP
        >>> hessian = HessianOperator(model, dataset=[(x, y)])          # doctest: +SKIP
        >>> scipy.sparse.linalg.eigsh(hessian, k=3)                     # doctest: +SKIP
    """

    definition = "hessian"

    @explained
    def __init__(
        self,
        model: Any,
        loss: Any = None,
        dataset: Any = None,
        *,
        variables: Any = None,
        reduction: str | None = None,
        training: bool = False,
        batch_weight: Callable[[Any], float] | None = None,
        memory_share: float = 0.25,
        class_weight: Mapping[int, float] | None = None,
        linearize: bool = True,
        join_batches: bool = True,
        matmul_precision: str | None = None,
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
            linearize: whether what no vector touches is kept from one product to the next; False
                computes each product anew, for the same matrix.
            join_batches: whether small batches are computed together, where the loss is known to
                be a sum over examples; False keeps the batches of the dataset.
            matmul_precision: what products multiply matrices in, with JAX: None for the full
                precision of their dtype, or "tensorfloat32" or "bfloat16", as
                `jax.default_matmul_precision` names them, on chips that have it. Loss and gradient
                stay at full precision. How far products are off is measured, see `product_error`.

        Raises:
            ValueError: a model never built, no loss, a loss that is no scalar or does not depend on
                the model, an unknown name, any `matmul_precision` with TensorFlow, or a dataset
                that is empty, infinite, or used up after one pass. Also what cannot be right,
                before anything runs: an operation without a second derivative between the variables
                and the loss, a forward pass that writes to a trainable weight, the compiled loss of
                a model with a `train_step` of its own, a loss with a `__call__` of its own.
            TypeError: model, loss or dataset is no such thing, or a function is no loss of either
                form.

        Warns:
            UserWarning: batches of more than eight shapes.
        """
        check_places("HessianOperator", model, loss, dataset)
        derivatives = engine_of(model).derivatives(
            model,
            loss,
            dataset,
            needs=self.needs,
            variables=variables,
            reduction=reduction,
            training=training,
        )
        options = SweepOptions(
            batch_weight, memory_share, class_weight, linearize, join_batches, matmul_precision
        )
        super().__init__(derivatives, dataset, options)

    @classmethod
    @explained
    def from_function(
        cls,
        loss: Callable[..., Any],
        variables: Any,
        dataset: Any = None,
        *,
        reduction: str = "mean",
        batch_weight: Callable[[Any], float] | None = None,
        memory_share: float = 0.25,
        linearize: bool = True,
        matmul_precision: str | None = None,
    ) -> HessianOperator:
        """Return the Hessian of `loss(variables)`, or of `loss(variables, batch)` over a dataset.

        Args:
            loss: called with exactly the object passed as `variables` (with JAX, a pytree like it)
                and, if there is a dataset, a batch; returns a scalar.
            variables: a `tf.Variable`, or any nested structure of them; or a pytree of arrays of
                JAX, all of them floating point: to hold some constant, pass the pytree as the
                model of `HessianOperator(params, loss, dataset, variables=...)`.
            dataset: re-iterable batches, as for an operator; None for a function of no data.
            reduction: "mean" or "sum": what the loss of a batch is.
            batch_weight: weight of a batch in the mean, default its number of examples.
            memory_share: share of the free memory that kept batches may take, 0 to stream.
            linearize: whether what no vector touches is kept between products.
            matmul_precision: what products multiply matrices in, with JAX, as for an operator.

        Raises:
            ValueError: if the loss is no scalar or does not depend on the variables, holds an
                operation without a second derivative, or writes to the variables; and for
                `reduction` and `matmul_precision`.
        """
        if reduction not in ("mean", "sum"):
            raise ValueError(f'reduction must be "mean" or "sum", got {reduction!r}.')
        engine = engine_of(variables)
        if dataset is None:
            derivatives = engine.of_function(loss, variables)
            options = SweepOptions(
                lambda batch: 1.0, linearize=linearize, matmul_precision=matmul_precision
            )
            return cls.from_derivatives(derivatives, [()], options)
        derivatives = engine.of_function(loss, variables, reduction)
        options = SweepOptions(
            batch_weight, memory_share, linearize=linearize, matmul_precision=matmul_precision
        )
        return cls.from_derivatives(derivatives, dataset, options)

    def batch_products(self, batch: BatchVerbs, vectors: Block) -> Block:
        """See `CurvatureOperator`."""
        return batch.hessian_products(vectors)
