"""The Fisher information matrix of a model, and its empirical look-alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.curvature.batches import Batches
from spectral_density.curvature.frameworks import check_backend
from spectral_density.curvature.gauss_newton import ThroughOutputs
from spectral_density.curvature.losses import (
    KerasObjective,
    OutputTerm,
    make_objective,
    term_values,
    unpack,
)
from spectral_density.curvature.outputs import (
    Ending,
    OutputsOfBatch,
    num_averaged,
    value_weights,
)
from spectral_density.curvature.parameters import select
from spectral_density.curvature.products import compiled
from spectral_density.curvature.replicas import Replicas
from spectral_density.curvature.traced import note
from spectral_density.linalg.arguments import integer, stream

KINDS = ("type2", "monte_carlo", "empirical")

# Random streams: a key of this file's own.
_KEY = 7049
_PHILOX = 1  # TensorFlow's number for the counter-based generator
_PER_COUNT = 4  # float32 numbers that one step of its counter gives


class FisherOperator(ThroughOutputs):
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

    _warn_of_probabilities = False

    def __init__(
        self,
        model: Any,
        loss: Any,
        dataset: Any,
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

        Raises:
            ValueError: unknown kind; outputs and loss cannot be separated; a loss without a
                distribution (type 2, Monte Carlo) or without values for each example (empirical);
                negative weights; and all that `HessianOperator` raises.
            TypeError: model, loss or dataset is no such thing.

        Warns:
            UserWarning: layers add losses in their call.
        """
        check_backend()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}.")
        self.kind = kind
        self.num_samples = integer(num_samples, "num_samples", 1)
        self._seed = integer(seed, "seed", 0)
        self._keys: list[tf.Tensor] = []
        objective = make_objective(
            model,
            loss,
            reduction=reduction,
            training=training,
            examples=kind == "empirical",
            dataset=dataset,
        )
        super().__init__(
            objective,
            select(model, variables),
            dataset,
            batch_weight=batch_weight,
            memory_share=memory_share,
            class_weight=class_weight,
        )

    @property
    def numbers_examples(self) -> bool:
        """Return whether labels are drawn, by the places of examples in the dataset."""
        return self.kind == "monte_carlo"

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

        def draw(numbered: Any) -> list[tf.Tensor]:
            outputs = self._outputs(numbered)
            return [
                self._labels(i, outputs, ending) for i, (_, ending) in enumerate(outputs.terms())
            ]

        graph = compiled(draw, self.objective)
        with self._pass():
            return [
                [np.asarray(labels) for labels in graph(numbered)]
                for numbered, _ in self._weighted_batches()
            ]

    def __repr__(self) -> str:
        """Say what it is: kind, samples and seed, parameters, batches, dtype."""
        name, what = type(self).__name__, self.kind
        if self.kind == "monte_carlo":
            samples = "1 sample" if self.num_samples == 1 else f"{self.num_samples} samples"
            what += f", {samples}, seed {self._seed}"
        return super().__repr__().replace(f"{name}(", f"{name}({what}, ", 1)

    def _read(self, dataset: Any) -> None:
        self._offsets: list[tf.Tensor] = []
        self._num_rows = 0
        super()._read(dataset)
        if self._replicas is not None:
            self._number_among_all(self._replicas)

    def _number_among_all(self, replicas: Replicas) -> None:
        """Count the examples before each batch, those of other replicas included."""
        places = [parcel.start for parcel in self.batches.parcels]
        before = [int(offset) for offset in self._offsets] + [self._num_rows]
        here = [(place, b - a) for place, (a, b) in zip(places, pairwise(before), strict=False)]
        rows = dict(sorted(entry for entries in replicas.gather(here) for entry in entries))
        ends = dict(zip(rows, np.cumsum(list(rows.values())).tolist(), strict=True))
        self._offsets = [tf.constant(ends[place] - rows[place], tf.int64) for place in places]

    def _take(self, batches: Batches, places: Sequence[int]) -> None:
        super()._take(batches, places)
        self._offsets = [self._offsets[place] for place in places]

    def _examples_at_once(self, batch: Any, graph: tf.Graph) -> int:
        return 0  # samples are numbered by batch

    # The survey ----------------------------------------------------------------------------------

    def _survey(self, batch: Any, weight: float) -> None:
        first = not self._offsets
        super()._survey(batch, weight)
        self._offsets.append(tf.constant(self._num_rows, tf.int64))
        if first:
            self._check_loss(batch)
        if isinstance(self.objective, KerasObjective):
            _, y, sample_weight = unpack(batch)
            labels = [part for part in tf.nest.flatten(y) if part is not None]
            self._num_rows += max(int(part.shape[0]) for part in labels)
            if self.kind != "type2" and any(
                np.any(np.asarray(part) < 0)
                for part in tf.nest.flatten(sample_weight)
                if part is not None
            ):
                raise ValueError(
                    "a sample weight is negative: an outer product of gradients cannot count less "
                    "than nothing. Use weights >= 0."
                )

    def _check_loss(self, batch: Any) -> None:
        """Raise unless the loss has what the kind needs; draw the keys of the samples."""
        if self.kind != "type2" and np.any(self.objective.coefficients < 0):
            raise ValueError(
                "a loss weight is negative: an outer product of gradients cannot count less than "
                "nothing. Use loss_weights >= 0."
            )
        if self.kind == "empirical":
            if isinstance(self.objective, KerasObjective):
                with self._put_back():
                    compiled(self._check_values, self.objective).get_concrete_function(batch)
            return
        endings = self._output_loss.endings
        if not endings or any(ending.distribution is None for ending in endings):
            raise ValueError(
                f"kind={self.kind!r} needs the distribution of the labels, and "
                f"{self.objective.description} has none that is known here: use Keras's softmax or "
                "sigmoid cross-entropy (at logits, or with a model that ends in Keras's softmax or "
                'sigmoid) or mean squared error, or kind="empirical".'
            )
        self._keys = [
            tf.constant(stream(self._seed, _KEY, output).integers(2**64, size=1, dtype=np.uint64))
            for output in range(len(endings))
        ]

    def _check_values(self, batch: Any) -> None:
        outputs = self._output_loss.at(batch)
        rows = set()
        for part, _ in outputs.terms():
            values = term_values(part)
            if values.shape.rank == 0 or values.shape[0] != part.output.shape[0]:
                raise ValueError(
                    "the empirical Fisher matrix needs a loss of one value (or more) for each "
                    f"example, got shape {tuple(values.shape)} for outputs of shape "
                    f"{tuple(part.output.shape)}."
                )
            rows.add(values.shape[0])
        if len(rows) > 1:
            raise ValueError(
                f"the outputs have {sorted(rows)} rows: which of them belong to one example?"
            )

    # A batch comes with the number of the first of its examples, which keys the samples. ---------

    def _weighted_batches(self) -> Iterator[tuple[Any, tf.Tensor]]:
        for (batch, weight), offset in zip(super()._weighted_batches(), self._offsets, strict=True):
            yield (batch, offset), weight

    def _plain(self, entry: Any) -> Any:
        return entry[0]

    def _batch_value(self, batch: Any, weight: tf.Tensor, scales: tf.Tensor) -> tf.Tensor:
        return super()._batch_value(batch[0], weight, scales)

    def _outputs(self, batch: Any) -> OutputsOfBatch:
        return self._output_loss.at(*batch)

    # At the outputs ------------------------------------------------------------------------------

    def _at_outputs(
        self,
        outputs: OutputsOfBatch,
        weight: tf.Tensor,
        scales: tf.Tensor,
        tangents: list[list[tf.Tensor]],
    ) -> list[list[tf.Tensor]]:
        if self.kind == "type2":
            return outputs.hessian_products(weight, scales, tangents)
        if self.kind == "empirical":
            gradients = [g[None] for g in outputs.example_gradients(weight, scales)]
            note("example losses", outputs.example_losses(weight, scales))
        else:
            gradients = [
                self._sampled_gradients(i, outputs, part, ending, scales)
                for i, (part, ending) in enumerate(outputs.terms())
            ]
        return [_outer_products(gradients, tangent) for tangent in tangents]

    def _sampled_gradients(
        self,
        i: int,
        outputs: OutputsOfBatch,
        part: OutputTerm,
        ending: Ending,
        scales: tf.Tensor,
    ) -> tf.Tensor:
        """Return the gradients at one output, as `example_gradients` scales them, per sample."""
        weights = value_weights(part, term_values(part), scales)
        dtype = weights.dtype
        labels = self._labels(i, outputs, ending)
        z = tf.cast(outputs.tensors[i], dtype)
        if ending.distribution == "categorical":
            gradients = tf.nn.softmax(z) - tf.one_hot(labels, tf.shape(z)[-1], dtype=dtype)
        elif ending.distribution == "bernoulli":
            gradients = tf.nn.sigmoid(z) - tf.cast(labels, dtype)
        else:
            gradients = 2.0 * (z - tf.cast(labels, dtype))
        roots = tf.sqrt(weights / num_averaged(z, ending.distribution, dtype))[..., None]
        losses = tf.math.multiply_no_nan(_losses(ending.distribution, z, labels), roots)
        losses = tf.reduce_sum(losses, axis=tf.range(2, tf.rank(losses)))
        note("example losses", losses / tf.sqrt(tf.cast(self.num_samples, dtype)))
        gradients = tf.math.multiply_no_nan(gradients, tf.broadcast_to(roots, tf.shape(gradients)))
        return tf.cast(gradients, outputs.tensors[i].dtype)

    def _labels(self, i: int, outputs: OutputsOfBatch, ending: Ending) -> tf.Tensor:
        """Draw labels, shape (num_samples, examples, ...), from the model's distribution."""
        tensor, first = outputs.tensors[i], outputs.first_example
        categorical = ending.distribution == "categorical"
        shape = tf.shape(tensor)[:-1] if categorical else tf.shape(tensor)
        draw = (
            tf.raw_ops.StatelessRandomNormalV2
            if ending.distribution == "normal"
            else tf.raw_ops.StatelessRandomUniformV2
        )
        dtype = max(tensor.dtype, tf.float32, key=lambda d: d.size)
        z = tf.cast(tensor, dtype)
        numbers = tf.map_fn(
            lambda sample: _numbers(draw, self._keys[i], sample, first, shape),
            tf.range(self.num_samples, dtype=tf.int64),
            fn_output_signature=tf.float32,
        )
        noise = tf.cast(numbers, dtype)
        if categorical:
            steps = tf.cumsum(tf.nn.softmax(z), axis=-1)[..., :-1]
            return tf.reduce_sum(tf.cast(steps <= noise[..., None], tf.int32), axis=-1)
        if ending.distribution == "bernoulli":
            return tf.cast(noise < tf.nn.sigmoid(z), tf.int32)
        return z + noise / np.sqrt(2.0)


def _numbers(
    draw: Callable[..., tf.Tensor],
    key: tf.Tensor,
    sample: tf.Tensor,
    first: tf.Tensor,
    shape: tf.Tensor,
) -> tf.Tensor:
    """Return random numbers, of which each example has its own wherever its batch begins.

    Philox computes its numbers from a key and a counter of two words, the low one counting on:
    here that is the place in the dataset, and the high one the number of the sample.
    """
    size = tf.reduce_prod(shape[1:])
    steps = (size + _PER_COUNT - 1) // _PER_COUNT
    flat = draw(
        shape=[shape[0] * steps * _PER_COUNT],
        key=key,
        counter=tf.cast(tf.stack([first * tf.cast(steps, tf.int64), sample]), tf.uint64),
        alg=_PHILOX,
        dtype=tf.float32,
    )
    return tf.reshape(tf.reshape(flat, [shape[0], steps * _PER_COUNT])[:, :size], shape)


def _losses(distribution: str | None, z: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return -log p(y | z) of labels, (num_samples, examples, ..., 1 or C), up to constants."""
    z = z[None]
    if distribution == "categorical":
        hot = tf.one_hot(labels, tf.shape(z)[-1], dtype=z.dtype)
        return -tf.reduce_sum(hot * tf.nn.log_softmax(z), axis=-1, keepdims=True)
    # Fixed, and no function of the outputs that they were drawn at.
    labels = tf.stop_gradient(tf.cast(labels, z.dtype))
    if distribution == "bernoulli":
        return tf.nn.softplus(z) - labels * z
    return tf.square(z - labels)


def _outer_products(gradients: list[tf.Tensor], tangent: list[tf.Tensor]) -> list[tf.Tensor]:
    """Return the mean over samples s of r_si <r_si, u_i> for each example i.

    Gradients are of shape (num_samples, examples, ...), tangents of shape (examples, ...); the
    inner product is over all outputs of an example.
    """
    dtype = max((r.dtype for r in gradients), key=lambda d: d.size)
    along = tf.add_n(
        [
            tf.cast(tf.reduce_sum(_flat(r) * _flat(u[None]), axis=-1), dtype)
            for r, u in zip(gradients, tangent, strict=True)
        ]
    )
    return [
        tf.reshape(
            tf.reduce_mean(_flat(r) * tf.cast(along[..., None], r.dtype), axis=0), tf.shape(u)
        )
        for r, u in zip(gradients, tangent, strict=True)
    ]


def _flat(tensor: tf.Tensor) -> tf.Tensor:
    shape = tf.shape(tensor)
    return tf.reshape(tensor, [shape[0], shape[1], -1])
