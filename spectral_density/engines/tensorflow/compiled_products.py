"""Products of a curvature matrix: their compiled graphs, and what is kept between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BatchProducts
from spectral_density.engines.tensorflow.exact_gradients import exact_second_derivatives
from spectral_density.engines.tensorflow.frameworks import check_eager
from spectral_density.engines.tensorflow.keras_internals import graphs_as_traced
from spectral_density.engines.tensorflow.layer_losses import losses_put_back
from spectral_density.engines.tensorflow.linearization import (
    Linearization,
    TracedProducts,
    VariableRead,
    flat,
    linearize,
)
from spectral_density.engines.tensorflow.merging import bytes_of_tensors
from spectral_density.engines.tensorflow.objectives import Objective

# Vectors unrolled into one graph. Wider blocks are cut, still within one pass over the data.
MAX_WIDTH = 16

# Operations of the forward pass, times vectors, in one graph: tracing takes milliseconds for each.
_MAX_OPERATIONS = 1024

# Tensors of the forward pass, times vectors: they may all be alive at once.
_MAX_UNROLLED_BYTES = 2**28

# All that is kept for the batches of one operator.
MAX_BYTES = 2**30


def compiled(method: Callable[..., Any], objective: Objective) -> Any:
    """Return a function of tensors as a graph, to be differentiated: see `exact_gradients`."""

    # TensorFlow counts retracing by code object, so that several operators, each with a trace per
    # batch signature, would be warned of; a partial has no code object and is counted by itself.
    def traced(*arguments: Any) -> Any:
        with exact_second_derivatives(objective.model), losses_put_back(objective.model):
            return method(*arguments)

    return tf.function(partial(traced), autograph=objective.autograph)


def width_of_chunks(graph: tf.Graph) -> int:
    """Return how many vectors to unroll into one graph, from that of the first batch's loss.

    It does not depend on the memory that is free: another width has other bits.
    """
    nbytes = bytes_of_tensors(graph) or 1
    width = min(_MAX_OPERATIONS // len(graph.get_operations()), _MAX_UNROLLED_BYTES // nbytes)
    return min(MAX_WIDTH, max(1, width))


class CompiledProducts(BatchProducts):
    """Graphs of the products of one batch with blocks of vectors, shared by operators.

    Attributes:
        num_traces: how many were built so far.
        depends: whether a gradient reaches any variable; found out when one is built.
    """

    def __init__(self, add: Callable[..., list[tf.Tensor]], objective: Objective, dtype: np.dtype):
        """Build nothing yet.

        Args:
            add: what to trace: `(at, rows, *sums)`, with a row for each vector; returns the sums
                with the products, and the gradient, of the batch.
            objective: what is differentiated.
            dtype: of the variables.
        """
        self._add = add
        self._dtype = dtype
        self._objective = objective
        self._whole: dict[tuple[int, int], Any] = {}
        self._traced: dict[int, TracedProducts] = {}
        self._cut: dict[int, Linearization] = {}
        self._cut_alone = RLock()
        self.num_traces = 0
        self.depends = False

    def whole(self, width: int, replica: int = 0) -> Any:
        """Return the compiled graph of products with `width` vectors on a replica.

        Each has a function of its own: TensorFlow warns of one that is traced often.
        """
        key = width, replica
        if key not in self._whole:
            self._whole[key] = compiled(self._trace, self._objective)
        return self._whole[key]

    def cache(self, num_batches: int, room: float, linearize: bool) -> Residuals | None:
        """See `BatchProducts`."""
        return Residuals(num_batches, room) if linearize else None

    def add_all(
        self,
        cache: Residuals | None,
        inputs: Iterable[BatchInput],
        rows: Sequence[tf.Tensor],
        sums: list[list[tf.Tensor]],
    ) -> list[list[tf.Tensor]]:
        """See `BatchProducts`."""
        for number, at in enumerate(inputs):
            sums = self.add(cache, at, number, rows, sums)
        return sums

    def add(
        self,
        cache: Residuals | None,
        at: BatchInput,
        number: int,
        rows: Sequence[tf.Tensor],
        sums: list[list[tf.Tensor]],
    ) -> list[list[tf.Tensor]]:
        """Add the products of a batch with each chunk of vectors to its sums, in their place."""
        known: dict[tuple[str, ...], list[tf.Tensor]] = {}

        def left_behind(cut: Linearization) -> list[tf.Tensor]:
            """Return the residuals of the batch, computed once for all chunks."""
            if cut.names not in known:
                with graphs_as_traced():
                    known[cut.names] = cut.residuals(at)
            return known[cut.names]

        for place, chunk in enumerate(rows):
            before, width = sums[place], chunk.shape[0]
            # The gradient is no matter of the vectors.
            if cache is None or len(before) > 1:
                sums[place] = self.whole(width)(at, chunk, *before)
                continue
            cut, kept = cache.kept(number, width)
            if cut is None or kept is None:
                cut = self._linearized(self.whole(width), at, chunk, *before)
                kept = cache.of(number, width, cut, left_behind)
            sums[place] = cut.products(kept, at, chunk, *before)
        return sums

    def add_on(
        self, local: int, at: BatchInput, rows: Sequence[tf.Tensor], sums: list[list[tf.Tensor]]
    ) -> list[list[tf.Tensor]]:
        """See `BatchProducts`."""
        return [
            self.whole(part.shape[0], local)(at, part, *before)
            for part, before in zip(rows, sums, strict=True)
        ]

    def linearized(
        self, cache: Residuals | None, at: BatchInput, rows: tf.Tensor
    ) -> np.ndarray | None:
        """See `BatchProducts`."""
        sums = self.zeros([rows], with_gradient=False)
        if cache is None or not self._linearized(self.whole(len(rows)), at, rows, *sums[0]).names:
            return None
        cache.refresh()
        return np.asarray(self.add(cache, at, 0, [rows], sums)[0][0])

    @graphs_as_traced()
    def of_batch(self, at: BatchInput, rows: tf.Tensor, local: int = 0) -> np.ndarray:
        """See `BatchProducts`."""
        zeros = tf.zeros(rows.shape, tf.float64)
        return np.asarray(self.whole(rows.shape[0], local)(at, rows, zeros)[0])

    def check_context(self) -> None:
        """See `BatchProducts`."""
        if not tf.executing_eagerly():
            check_eager()

    def rows(self, block: np.ndarray, width: int) -> list[tf.Tensor]:
        """See `BatchProducts`."""
        parts = (block[:, start : start + width] for start in range(0, block.shape[1], width))
        return [
            tf.convert_to_tensor(np.ascontiguousarray(part.T, dtype=self._dtype)) for part in parts
        ]

    def zeros(self, rows: Sequence[tf.Tensor], with_gradient: bool) -> list[list[tf.Tensor]]:
        """See `BatchProducts`."""
        sums = [[tf.zeros(chunk.shape, tf.float64)] for chunk in rows]
        if with_gradient:
            sums[0].append(tf.zeros([rows[0].shape[1]], tf.float64))
        return sums

    def _trace(self, at: BatchInput, rows: tf.Tensor, *sums: tf.Tensor) -> list[tf.Tensor]:
        self.num_traces += 1
        outputs = self._add(at, rows, *sums)
        self._traced[id(rows.graph)] = TracedProducts(flat(at), [rows, *sums], outputs)
        return outputs

    def _linearized(self, whole: Any, *arguments: Any) -> Linearization:
        concrete = whole.get_concrete_function(*arguments)
        key = id(concrete.graph)
        with self._cut_alone:
            if key not in self._cut:
                # Forgotten after it was cut: whoever is interrupted comes back for it.
                cut = linearize(self._traced[key])
                self._cut[key] = Linearization.of_nothing(concrete) if cut is None else cut
                del self._traced[key]
            return self._cut[key]


class Residuals:
    """What the vectors do not touch in the products of each batch, kept while the weights stay.

    Attributes:
        nbytes: of all that is kept.
    """

    def __init__(self, num_batches: int, room: float):
        """Keep nothing yet.

        Args:
            num_batches: for how many like the first there has to be room, or nothing is kept.
            room: bytes, which are not exceeded either where later ones are larger.
        """
        self._num_batches = num_batches
        self._room = min(room, MAX_BYTES)
        self.nbytes = 0
        self._fit: bool | None = None
        self._of_batches: dict[int, tuple[Linearization, list[tf.Tensor]]] = {}
        self._cuts: dict[tuple[int, int], Linearization] = {}
        self._weights: dict[int, tuple[VariableRead, np.ndarray]] = {}
        self._alone = RLock()

    def __len__(self) -> int:
        """Return the number of batches whose residuals are kept."""
        return len(self._of_batches)

    def kept(
        self, number: int, width: int
    ) -> tuple[Linearization, list[tf.Tensor]] | tuple[None, None]:
        """Return the two parts and the residuals of a batch and a width, if they are kept."""
        with self._alone:
            cut = self._cuts.get((number, width))
            if cut is None:
                return None, None
            return cut, self._of_batches[number][1] if cut.names else []

    def of(
        self,
        number: int,
        width: int,
        cut: Linearization,
        left_behind: Callable[[Linearization], list[tf.Tensor]],
    ) -> list[tf.Tensor]:
        """Return what a graph leaves behind of a batch, and keep it if there is room."""
        with self._alone:
            if not self._room:
                return left_behind(cut)
            if not cut.names:
                self._cuts[number, width] = cut
                return []
            before, found = self._of_batches.get(number, (None, []))
            # Those of another width are the same; where they are not, the last ones are kept.
            if before is None or before.names != cut.names:
                nbytes = cut.nbytes - (0 if before is None else before.nbytes)
                if not self._has_room(cut, nbytes):
                    return left_behind(cut)
                for read in cut.variables:
                    self._weights.setdefault(id(read.handle), (read, read.value()))
                found = left_behind(cut)
                self._of_batches[number] = cut, found
                self.nbytes += nbytes
                self._cuts = {key: each for key, each in self._cuts.items() if key[0] != number}
            self._cuts[number, width] = cut
            return found

    def refresh(self) -> None:
        """Drop all that is kept unless every variable has the value that it was computed with."""
        with self._alone:
            weights = self._weights.values()
            if not all(np.array_equal(read.value(), then) for read, then in weights):
                self.nbytes = 0
                self._of_batches.clear()
                self._cuts.clear()
                self._weights.clear()

    def _has_room(self, cut: Linearization, nbytes: int) -> bool:
        if self._fit is None:
            self._fit = cut.nbytes * self._num_batches <= self._room
        return self._fit and self.nbytes + nbytes <= self._room
