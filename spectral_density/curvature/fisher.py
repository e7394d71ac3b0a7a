"""The Fisher information matrix of a model, and its empirical look-alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from spectral_density._arguments import explained
from spectral_density.curvature.arguments import check_places
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.sweep import SweepOptions
from spectral_density.engines import engine_of
from spectral_density.engines.engine import BatchVerbs, Block, Needs
from spectral_density.linalg.arguments import integer

KINDS = ("type2", "monte_carlo", "empirical")


class FisherOperator(CurvatureOperator):
    r"""The Fisher matrix of a model over a dataset: outer products of per-example gradients.

    .. math:: F = \sum_i \mathrm{E} \, s_i s_i' + \nabla^2_w R(w), \qquad
              s_i = \nabla_w \sum_u \sqrt{a_{iu}} \, \ell_{iu}(y)

    Here ell_iu is a negative log-likelihood -log p(y | z_iu) of example i, one for each of its
    steps or outputs u, and a_iu its weight in the objective sum_iu a_iu ell_iu + R. What E is over
    depends on `kind`:

    - "type2": labels y from the model's own distribution, exactly. This is the Fisher information
      matrix, and equal to `GaussNewtonOperator` for the losses that it is there for: softmax and
      sigmoid cross-entropy, and the squared error as the normal distribution of variance 1/2.
    - "monte_carlo": `num_samples` labels drawn from that distribution for each example, keyed by
      (seed, sample, example): one fixed matrix for one state of the model, however the data is cut
      into batches. Its mean over seeds is type 2.
    - "empirical": the labels of the data; any loss of one value per example. It is *not* the Fisher
      information.

    **Scaling.** The weights a_iu enter once, not squared: with a mean over N examples
    F = (1/N) sum_i w_i g_i g_i', g_i the gradient of example i's loss and w_i its sample weight,
    masks and loss weights likewise. Keras's binary cross-entropy and squared error are means over
    C outputs, (1/C) sum_c -log p(y_c | z_c): a_iu has that 1/C and g_i is the gradient of the sum,
    so that F = (C/N) sum_i w_i g_i g_i' with g_i the gradient of Keras's value. Without it type 2
    would be G / C. For losses without a distribution (kind="empirical" only) C = 1.

    Label smoothing does not enter type 2 and Monte Carlo. Weight regularization R adds its Hessian,
    as in the other operators; losses that layers add in their call are left out, with a warning.

    Example:
        >>> fisher = FisherOperator(model, "mse", [(x, y)], kind="empirical")   # doctest: +SKIP

    References:
        Martens (2020), JMLR 21(146), sections 5, 9 and 11. Kunstner, Balles, Hennig (2019),
        Limitations of the empirical Fisher approximation, arXiv 1905.12558.
    """

    definition = "outputs"

    @explained
    def __init__(
        self,
        model: Any,
        loss: Any = None,
        dataset: Any = None,
        *,
        kind: str = "type2",
        num_samples: int = 1,
        seed: int = 0,
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
            loss: Keras loss object, its name, None for the compiled loss, or a function
                `(y_true, y_pred)`; with kind="empirical" also a pair `(predict(model, batch),
                loss(outputs, batch))` whose loss returns one value for each example.
            dataset: re-iterable batches, as in `HessianOperator`.
            kind: "type2", "monte_carlo" or "empirical".
            num_samples: labels drawn for each example, for kind="monte_carlo".
            seed: of these labels.
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
            ValueError: unknown kind; outputs and loss cannot be separated; a loss without a
                distribution (type 2, Monte Carlo) or without values for each example (empirical);
                negative weights; and all that `HessianOperator` raises.
            TypeError: model, loss or dataset is no such thing.

        Warns:
            UserWarning: layers add losses in their call.
        """
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}.")
        self.kind = kind
        self.num_samples = integer(num_samples, "num_samples", 1)
        self.seed = integer(seed, "seed", 0)
        # Labels are drawn by the places of examples in the dataset.
        self.numbers_examples = kind == "monte_carlo"
        empirical = kind == "empirical"
        self.needs = Needs(
            outputs=True,
            example_losses="the empirical Fisher matrix" if empirical else "",
            distribution="" if empirical else f"kind={kind!r}",
            positive_weights=kind != "type2",
        )
        check_places("FisherOperator", model, loss, dataset)
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
        if self.kind == "type2":
            cotangents = batch.output_hessian_products(tangents)
        else:
            gradients = (
                batch.example_gradients()
                if self.kind == "empirical"
                else batch.sampled_gradients(self.num_samples, self.seed)
            )
            cotangents = batch.outer_products(gradients, tangents)
        return batch.transposed_jacobian_products(cotangents)

    def sampled_labels(self) -> list[list[np.ndarray]]:
        """Return the labels that kind="monte_carlo" draws, for each batch one array per output.

        Classes (integers) of shape (num_samples, examples, ...) for softmax cross-entropy; zeros
        and ones, or real numbers, of shape (num_samples, *outputs.shape) for sigmoid cross-entropy
        and the squared error.

        Raises:
            ValueError: if the kind is another.
        """
        if self.kind != "monte_carlo":
            raise ValueError(f'labels are drawn for kind="monte_carlo", not for {self.kind!r}.')

        draw = self.derivatives.evaluate(
            lambda batch: batch.sampled_labels(self.num_samples, self.seed)
        )
        with self.sweep.one_pass():
            return [draw(at) for at in self.sweep.inputs()]

    def settings(self) -> dict[str, Any]:
        """See `CurvatureOperator`."""
        if self.kind != "monte_carlo":
            return {"labels": self.kind}
        return {"labels": self.kind, "num_samples": self.num_samples, "seed": self.seed}

    def _words(self) -> list[str]:
        if self.kind != "monte_carlo":
            return [self.kind]
        samples = "1 sample" if self.num_samples == 1 else f"{self.num_samples} samples"
        return [self.kind, samples, f"seed {self.seed}"]
