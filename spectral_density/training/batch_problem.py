"""Cost, gradient and matrix of one training batch at a time, in graphs traced once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.hessian import HessianOperator
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.sweep import SweepOptions
from spectral_density.engines.keras_shared.objective import unpack
from spectral_density.engines.tensorflow.batches import count_examples, form_of, join
from spectral_density.engines.tensorflow.derivatives import TensorFlowDerivatives
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.keras_objective import KerasObjective
from spectral_density.engines.tensorflow.layer_losses import losses_put_back
from spectral_density.engines.tensorflow.state import TensorFlowState
from spectral_density.engines.tensorflow.variables import Variables, select
from spectral_density.engines.tensorflow.weights import Weights
from spectral_density.training.problem import (
    CountedOperator,
    Problem,
    counted_parts,
)
from spectral_density.training.steps import Work

Observer = Callable[[Any, Any, tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]


class BatchProblem(Problem):
    """The objective of one batch at a time, and the matrix of examples of its own.

    The graphs of loss and gradient take batches of any number of rows, and those of products see
    the same number of rows at each step, so that neither is traced again.
    """

    def __init__(
        self,
        objective: KerasObjective,
        batch: Any,
        *,
        curvature: str,
        l2: float,
        hessian_data: Any,
        hessian_batch_size: int | None,
        observe: Observer | None = None,
    ):
        """Take the objective of a model that is built, and a first batch (x, y, weights or None).

        Args:
            objective: what is minimized.
            batch: the first batch, by which the loss is checked.
            curvature: "hessian" or "gauss_newton".
            l2: factor of the squares of all weights in the loss.
            hessian_data: batches for the matrix, None for those of the gradient.
            hessian_batch_size: examples of the matrix, None for as many as this batch has.
            observe: called in the graph of the gradient with batch, outputs, loss and count; its
                result is in `observed`.
        """
        self.objective = objective
        self.work = Work(1.0)
        self._l2 = l2
        self._observe = observe
        self.observed: dict[str, tf.Tensor] = {}  # by the last gradient
        self.parameters = select(objective.model)
        self.weights = Weights(self.parameters)
        with losses_put_back(objective.model):
            objective.validate(_without_none(batch))
        self._batch = batch
        self._rows = count_examples(batch)
        self._hessian_rows = hessian_batch_size or self._rows
        self._recent: Any = None
        self._curvature_kind = curvature
        self._hessian_batches = None if hessian_data is None else _cycle(hessian_data)
        self._base: CurvatureOperator | None = None
        self._operator: CurvatureOperator | None = None
        self._evaluate = _BatchFunction(self._traced_evaluate)
        self._value = _BatchFunction(self._traced_value)
        self._state = TensorFlowState(objective, self.parameters, None)

    @property
    def operator(self) -> CurvatureOperator:
        """The matrix of this step's examples, without the L2 term."""
        if self._operator is None:
            batches = [self._hessian_batch()]
            if self._base is None:
                self._base = _make_operator(
                    self._curvature_kind, self.objective, self.parameters, batches
                )
                self._operator = self._base
            else:
                self._operator = self._base.with_dataset(batches)
        return self._operator

    @property
    def num_traces(self) -> int:
        """How many graphs of products were built so far."""
        return 0 if self._base is None else self._base.num_traces

    def set_batch(self, batch: Any) -> int:
        """Go on to another batch, and return its number of examples."""
        self._batch = batch
        self._rows = count_examples(batch)
        self._operator = None
        if self._hessian_batches is None:
            self._recent = self._filled(batch)
        return self._rows

    def loss_and_gradient(self) -> tuple[float, np.ndarray]:
        """See `Problem`."""
        self.work.gradient_examples += self._rows
        batch = _without_none(self._batch)
        with self._state_restored(batch):
            loss, gradient, self.observed = self._evaluate(batch)
        return float(loss), np.asarray(gradient).astype(np.float64)

    def loss(self) -> float:
        """See `Problem`."""
        self.work.loss_examples += self._rows
        batch = _without_none(self._batch)
        with self._state_restored(batch):
            return float(self._value(batch))

    def curvature(self) -> CountedOperator:
        """See `Problem`."""
        operator = self.operator
        return CountedOperator(
            operator, self.work, float(operator.batches.num_examples), 2 * self._l2, in_blocks=True
        )

    def parts(self) -> list[CountedOperator]:
        """See `Problem`."""
        return counted_parts(self.operator, self.work, 2 * self._l2, in_blocks=True)

    def _hessian_batch(self) -> Any:
        if self._hessian_batches is not None:
            return _without_none(next(self._hessian_batches))
        return _without_none(_at_most(self._recent, self._hessian_rows))

    def _filled(self, batch: Any) -> Any:
        """Return at least as many of the last examples as the matrix has, this batch first.

        The rest is cut off where a matrix is made, which is not at every step.
        """
        enough = self._rows >= self._hessian_rows or self._recent is None
        if enough or not _has_rows(batch, self._rows):
            return batch
        # Earlier batches may have longer sequences, or no weights.
        if form_of(batch)[1] != form_of(self._recent)[1]:
            return batch
        return _at_most(join([batch, self._recent]), self._hessian_rows)

    @contextmanager
    def _state_restored(self, batch: Any) -> Iterator[None]:
        """Restore what the loss writes; metrics, which the gradient's graph updates, stay.

        Raises:
            ValueError: before anything has run, if the loss writes a trainable variable.
        """
        graph = self._value.graph(batch)
        if not self._state.graphs.knows(graph):
            self._state.add(graph)
        with self._state.unchanged():
            yield

    # In the graph --------------------------------------------------------------------------------

    # The losses that a layer keeps change where a call is traced, and only there.

    def _traced_evaluate(self, batch: Any) -> tuple[tf.Tensor, tf.Tensor, dict[str, tf.Tensor]]:
        variables = self.parameters.variables
        model = self.objective.model
        with losses_put_back(model), exact_second_derivatives(model):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(variables)
                value, outputs, count = self._cost(batch)
            gradient = self.parameters.join(tape.gradient(value, variables))
            observed = {}
            if self._observe is not None:
                observed = self._observe(unpack(batch), outputs, value, count)
        return value, gradient, observed

    def _traced_value(self, batch: Any) -> tf.Tensor:
        model = self.objective.model
        with losses_put_back(model), exact_second_derivatives(model):
            return self._cost(batch)[0]

    def _cost(self, batch: Any) -> tuple[tf.Tensor, Any, tf.Tensor]:
        """Return the objective of a batch, the model's outputs, and the number of examples."""
        x, y, sample_weight = unpack(batch)
        outputs = self.objective.outputs(x)
        leading = next(part for part in tf.nest.flatten(x) if part is not None)
        count = tf.shape(leading)[0]
        sums, denominators = self.objective.sums_at(outputs, y, sample_weight, count)
        averaged = tf.constant(self.objective.averaged)
        # A batch whose weights are all zero has no loss.
        terms = tf.where(averaged, tf.math.divide_no_nan(sums, denominators), sums)
        value = tf.reduce_sum(terms * tf.cast(self.objective.coefficients, terms.dtype))
        penalty = self.objective.penalty()
        if penalty is not None:
            value += tf.cast(penalty, value.dtype)
        if self._l2:
            squares = [tf.reduce_sum(tf.square(v)) for v in self.parameters.variables]
            value += self._l2 * tf.add_n([tf.cast(square, value.dtype) for square in squares])
        return value, outputs, count


class _BatchFunction:
    """A function of batches as graphs, traced for each kind of batch: structure, types, ranks.

    A graph takes any number of rows. Where other axes differ, as lengths of sequences do, it is
    traced once more, for any size there.

    Attributes:
        num_traces: how many graphs were traced so far.
    """

    def __init__(self, method: Callable[..., Any]):
        self._method = method
        self._graphs: dict[str, tuple[list[tf.TensorShape], Any]] = {}
        self._for_others = self._compiled(reduce_retracing=True)
        self.num_traces = 0

    def __call__(self, batch: Any) -> Any:
        """Return the function of a batch."""
        return self._compiled_for(batch)(batch)

    def graph(self, batch: Any) -> tf.Graph:
        """Return the graph for a batch, traced when it is first needed."""
        return self._compiled_for(batch).get_concrete_function(batch).graph

    def _compiled_for(self, batch: Any) -> Any:
        parts = tf.nest.flatten(batch)
        if not all(isinstance(part, tf.Tensor) and part.shape.rank for part in parts):
            return self._for_others
        kind = repr(tf.nest.map_structure(lambda part: (part.dtype.name, part.shape.rank), batch))
        shapes = [tf.TensorShape([None, *part.shape[1:]]) for part in parts]
        known, graph = self._graphs.get(kind, (shapes, None))
        if graph is None or not all(map(tf.TensorShape.is_subtype_of, shapes, known)):
            pairs = zip(shapes, known, strict=True)
            shapes = [shape.most_specific_common_supertype([other]) for shape, other in pairs]
            dtypes = [part.dtype for part in parts]
            specs = list(map(tf.TensorSpec, shapes, dtypes))
            graph = self._compiled(input_signature=[tf.nest.pack_sequence_as(batch, specs)])
            self._graphs[kind] = shapes, graph
        return graph

    def _compiled(self, **options: Any) -> Any:
        # TensorFlow counts retracing by code object, and would warn of the first steps of several
        # models; a partial has no code object and is counted by itself.
        return tf.function(partial(self._traced), autograph=False, **options)

    def _traced(self, batch: Any) -> Any:
        self.num_traces += 1
        return self._method(batch)


def full_batch(data: Any) -> tuple[Any, Any, Any]:
    """Return a batch of Keras's iterators as (x, y, sample_weight or None).

    Raises:
        ValueError: if it has another structure, or no labels.
    """
    x, y, sample_weight = unpack(data)
    if y is None:
        raise ValueError(
            "the batch has no labels. Train an autoencoder with its inputs as labels: (x, x)."
        )
    return tf.nest.map_structure(
        lambda part: part if part is None or tf.is_tensor(part) else tf.convert_to_tensor(part),
        (x, y, sample_weight),
    )


def _without_none(batch: Any) -> Any:
    """Return (x, y), or (x, y, w) where there are weights."""
    return batch[:2] if isinstance(batch, tuple) and batch[-1] is None else batch


def _make_operator(
    kind: str, objective: KerasObjective, parameters: Variables, batches: list[Any]
) -> CurvatureOperator:
    matrix = GaussNewtonOperator if kind == "gauss_newton" else HessianOperator
    derivatives = TensorFlowDerivatives(objective, parameters, matrix.needs)
    # All of the memory may go to one batch.
    return matrix.from_derivatives(derivatives, batches, SweepOptions(memory_share=1.0))


def _at_most(batch: Any, wanted: int) -> Any:
    """Return the first rows of a batch; all of it where it has no more, or cannot be cut."""
    rows = count_examples(batch)
    return _rows_of(batch, 0, wanted) if rows > wanted and _has_rows(batch, rows) else batch


def _rows_of(batch: Any, start: int, count: int) -> Any:
    """Return `count` rows of each tensor of a batch."""
    return tf.nest.map_structure(
        lambda tensor: None if tensor is None else tensor[start : start + count], batch
    )


def _has_rows(batch: Any, rows: int) -> bool:
    """Tell whether all tensors of a batch are dense and have this many rows."""
    tensors = [part for part in tf.nest.flatten(batch) if part is not None]
    return all(isinstance(t, tf.Tensor) and t.shape.rank and t.shape[0] == rows for t in tensors)


def _cycle(dataset: Any) -> Iterator[Any]:
    """Yield the batches of a dataset again and again.

    Raises:
        ValueError: if it has none, or is used up after one pass.
    """
    while True:
        empty = True
        for batch in _batches(dataset):
            empty = False
            yield full_batch(batch)
        if empty:
            raise ValueError(
                "hessian_data gave no batch: it is empty, or used up after one pass. Pass a "
                "tf.data.Dataset, a list of batches, or a callable that returns a new iterator."
            )


def _batches(dataset: Any) -> Iterable[Any]:
    if isinstance(dataset, keras.utils.PyDataset):
        return (dataset[position] for position in range(dataset.num_batches))
    return dataset() if callable(dataset) else dataset
