"""The generalized Gauss-Newton matrix of a loss."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from spectral_density.curvature.frameworks import check_backend
from spectral_density.curvature.keras_internals import exact_second_derivatives
from spectral_density.curvature.losses import Objective, PairObjective, make_objective
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.outputs import OutputLoss, OutputsOfBatch
from spectral_density.curvature.parameters import Parameters, select
from spectral_density.curvature.refusals import gradients_explained, refuse_without_derivatives
from spectral_density.curvature.scopes import layers_of
from spectral_density.curvature.traced import note


class ThroughOutputs(CurvatureOperator):
    """A matrix J' B J, with J the Jacobian of the model's outputs and B a matrix at the outputs.

    A subclass writes `_at_outputs`, the products with B.
    """

    # Whether the matrix is another one where the outputs are probabilities instead of logits.
    _warn_of_probabilities = True

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        dataset: Any,
        *,
        batch_weight: Callable[[Any], float] | None = None,
        memory_share: float = 0.25,
        class_weight: Mapping[int, float] | None = None,
    ):
        """See `CurvatureOperator`.

        Raises:
            ValueError: if outputs and loss cannot be separated.
        """
        self._output_loss = OutputLoss(objective, self._warn_of_probabilities)
        self._endings_known = False
        super().__init__(
            objective,
            parameters,
            dataset,
            batch_weight=batch_weight,
            memory_share=memory_share,
            class_weight=class_weight,
        )

    @abstractmethod
    def _at_outputs(
        self,
        outputs: OutputsOfBatch,
        weight: tf.Tensor,
        scales: tf.Tensor,
        tangents: list[list[tf.Tensor]],
    ) -> list[list[tf.Tensor]]:
        """Return B times each tangent; tangents and products are one tensor for each output."""

    def _survey(self, batch: Any, weight: float) -> None:
        super()._survey(batch, weight)
        if not self._endings_known:
            with self._put_back():
                self._output_loss.survey(batch)
                self._warn_of_variables_beyond_outputs(batch)
            self._endings_known = True

    def _warn_of_variables_beyond_outputs(self, batch: Any) -> None:
        """Warn where a user's loss reads variables itself, of which J knows nothing."""
        if not isinstance(self.objective, PairObjective):
            return
        variables = self.parameters.variables
        with (
            exact_second_derivatives(self.objective.model),
            tf.GradientTape(watch_accessed_variables=False) as tape,
        ):
            tape.watch(variables)
            outputs = self.objective.outputs_of(batch)
            cut = tf.nest.map_structure(tf.stop_gradient, outputs)
            value = self.objective.value_at(cut, batch)
        reached = tape.gradient(value, variables)
        names = [
            name
            for name, part in zip(self.parameters.names, reached, strict=True)
            if part is not None
        ]
        if names:
            warnings.warn(
                f"loss(outputs, batch) reads variables beside the outputs: {', '.join(names)}. "
                "The matrix holds nothing of what they do there. Compute it in predict, or use "
                "HessianOperator.",
                stacklevel=2,
            )

    def _outputs(self, batch: Any) -> OutputsOfBatch:
        return self._output_loss.at(batch)

    def _batch_products(
        self, batch: Any, weight: tf.Tensor, scales: tf.Tensor, vectors: list[list[tf.Tensor]]
    ) -> tuple[list[list[Any]], list[Any]]:
        variables = self.parameters.variables
        with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
            tape.watch(variables)
            outputs = self._outputs(batch)
            value = note("loss", outputs.value(weight, scales))
        layers = layers_of(self.objective.model)
        refuse_without_derivatives(variables, [value, *outputs.tensors], layers, order=2)
        with gradients_explained():
            gradient = tape.gradient(value, variables)
        tangents = jacobian_products(tape, outputs.tensors, variables, vectors, layers)
        at_outputs = self._at_outputs(outputs, weight, scales, tangents)
        # What is only noted is not computed in a product.
        zero = tf.UnconnectedGradients.ZERO
        slopes = tape.gradient(value, outputs.tensors, unconnected_gradients=zero)
        for what, tensors in (
            ("outputs", outputs.tensors),
            ("output gradients", slopes),
            ("tangents", tangents[0]),
            ("cotangents", at_outputs[0]),
        ):
            for tensor in tensors:
                note(what, tensor)
        products = [
            tape.gradient(outputs.tensors, variables, output_gradients=cotangents)
            for cotangents in at_outputs
        ]
        return products, gradient


class GaussNewtonOperator(ThroughOutputs):
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

        Raises:
            ValueError: outputs and loss cannot be separated (a function `loss_fn(model, batch)`),
                and all that `HessianOperator` raises.
            TypeError: model, loss or dataset is no such thing.

        Warns:
            UserWarning: a softmax or sigmoid cannot be moved into the loss, or layers add losses.
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

    def _at_outputs(
        self,
        outputs: OutputsOfBatch,
        weight: tf.Tensor,
        scales: tf.Tensor,
        tangents: list[list[tf.Tensor]],
    ) -> list[list[tf.Tensor]]:
        return outputs.hessian_products(weight, scales, tangents)


def jacobian_products(
    tape: tf.GradientTape,
    outputs: list[tf.Tensor],
    variables: Any,
    vectors: list[list[tf.Tensor]],
    layers: Sequence[Any] = (),
) -> list[list[tf.Tensor]]:
    """Return the Jacobian of `outputs`, recorded on a persistent tape, times each vector.

    J v is the derivative of <J' u, v> in u: a second reverse pass over the first. Compiled, what
    depends on u alone is pruned, and no more is left than a pass in forward mode does; the vectors
    share the primal pass, and loops go through. TensorFlow's forward mode (`ForwardAccumulator`)
    is the same trick for each operation, needs a primal pass for each vector, measures 1.0 to 1.7
    times the time of this, gives the same bits, and fails in compiled loops.

    Raises:
        ValueError: if an operation lacks a derivative, naming it and its layer among `layers`.

    References:
        Townsend (2017), "A new trick for calculating Jacobian vector products".
    """
    dummies = [tf.zeros_like(output) for output in outputs]
    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as second:
        second.watch(dummies)
        pulled = [
            None if part is None else tf.convert_to_tensor(part)
            for part in tape.gradient(outputs, variables, output_gradients=dummies)
        ]
    used = [position for position, part in enumerate(pulled) if part is not None]
    if not used:
        return [dummies for _ in vectors]
    parts = [pulled[position] for position in used]
    refuse_without_derivatives(dummies, parts, layers, order=1)
    with gradients_explained():
        return [
            second.gradient(
                parts,
                dummies,
                output_gradients=[vector[position] for position in used],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            for vector in vectors
        ]
