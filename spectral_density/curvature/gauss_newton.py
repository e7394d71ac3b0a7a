"""The generalized Gauss-Newton matrix of a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spectral_density._arguments import explained
from spectral_density.curvature.arguments import check_places
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.sweep import SweepOptions
from spectral_density.engines import engine_of
from spectral_density.engines.engine import BatchVerbs, Block, Needs


class GaussNewtonOperator(CurvatureOperator):
    r"""The generalized Gauss-Newton matrix of a loss over a dataset.

    .. math:: G = \frac{1}{D} \sum_i J_i' \, \nabla^2_z \ell(z_i, y_i) \, J_i + \nabla^2_w R(w)

    with J_i the Jacobian of the model's outputs z_i = f_w(x_i). It is the Hessian without the
    curvature of the model: `HessianOperator(...) - GaussNewtonOperator(...)` is
    sum_i sum_c dl/dz_ic grad^2 z_ic. Sample weights, masks, loss weights and weight regularization
    R enter as they do there. For a loss that is convex in the outputs the first part is positive
    semidefinite.

    **The outputs are logits.** Where an output is a softmax or a sigmoid and its loss one of
    Keras's cross-entropies (or the Kullback-Leibler divergence), that activation belongs to the
    loss, so that a model ending in softmax has the matrix of the same model with logits. A
    squared error, or any other loss that is no function of probabilities, takes the outputs as
    they are. Losses that layers add in their call are no functions of the outputs: G holds nothing
    of them (a warning says so), while `loss()` and `gradient()` do.

    Products with the Hessian of the loss are closed forms for softmax and sigmoid cross-entropy
    and the squared error, and come from autodiff for any other.

    Example:
        >>> ggn = GaussNewtonOperator(model, "mse", [(x, y)])           # doctest: +SKIP
        >>> residue = HessianOperator(model, "mse", [(x, y)]) - ggn     # doctest: +SKIP

    References:
        Schraudolph (2002), Neural Computation 14:1723. Martens (2020), JMLR 21(146), section 8.
    """

    needs = Needs(outputs=True, logits=True)
    definition = "outputs"

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
                `(y_true, y_pred)`, or a pair `(predict(model, batch), loss(outputs, batch))`.
            dataset: re-iterable batches, as in `HessianOperator`.
            variables: which trainable variables, as in `HessianOperator`.
            reduction: "mean" or "sum" over the data; None for a Keras loss's own, or, with a
                pair, "mean".
            training: whether a Keras loss calls the model in training mode.
            batch_weight: weight of a batch in the mean of a pair's values, default its number of
                examples.
            memory_share: share of the free memory that kept batches may take, and once more what
                their products leave behind (1 GiB at most); 0 streams.
            class_weight: weights of the classes, as in `HessianOperator`.
            linearize: whether what no vector touches is kept from one product to the next; False
                computes each product anew, for the same matrix.
            join_batches: whether small batches are computed together, where the loss is known to
                be a sum over examples; False keeps the batches of the dataset.
            matmul_precision: what products multiply matrices in, with JAX, as in `HessianOperator`.

        Raises:
            ValueError: outputs and loss cannot be separated (a function `loss_fn(model, batch)`),
                and all that `HessianOperator` raises.
            TypeError: model, loss or dataset is no such thing.

        Warns:
            UserWarning: a softmax or sigmoid cannot be moved into the loss, or layers add losses.
        """
        check_places("GaussNewtonOperator", model, loss, dataset)
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

    def batch_products(self, batch: BatchVerbs, vectors: Block) -> Block:
        """See `CurvatureOperator`."""
        tangents = batch.jacobian_products(vectors)
        return batch.transposed_jacobian_products(batch.output_hessian_products(tangents))
