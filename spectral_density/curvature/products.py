"""Products of a curvature matrix: their compiled graphs, and what is kept between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import RLock
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.curvature.frameworks import ExactMoments, recurrences_written_out
from spectral_density.curvature.linearization import (
    Linearization,
    TracedProducts,
    flat,
    linearize,
)
from spectral_density.curvature.losses import Objective

# Vectors unrolled into one graph. Wider blocks are cut, still within one pass over the data.
MAX_WIDTH = 16

# Operations of the forward pass, times vectors, in one graph: tracing takes milliseconds for each.
_MAX_OPERATIONS = 1024

# All that is kept for the batches of one operator.
MAX_BYTES = 2**30

# Replicas trace in threads of their own, and a Keras layer holds the losses of one call at a time.
_TRACED_ALONE = RLock()


def compiled(method: Callable[..., Any], objective: Objective) -> Any:
    """Return a function of tensors as a graph, to be differentiated: see `frameworks`."""

    # TensorFlow counts retracing by code object, so that several operators, each with a trace per
    # batch signature, would be warned of; a partial has no code object and is counted by itself.
    def traced(*arguments: Any) -> Any:
        with _TRACED_ALONE, ExactMoments(), recurrences_written_out(objective.model):
            return method(*arguments)

    return tf.function(partial(traced), autograph=objective.autograph)


def width_of_chunks(graph: tf.Graph) -> int:
    """Return how many vectors to unroll into one graph, from that of the forward pass.

    It depends on the model alone: another width has other bits.
    """
    return min(MAX_WIDTH, max(1, _MAX_OPERATIONS // len(graph.get_operations())))


class Products:
    """Graphs of the products of one batch with blocks of vectors, shared by operators.

    Attributes:
        num_traces: how many were built so far.
        depends: whether a gradient reaches any variable; found out when one is built.
    """

    def __init__(self, add: Callable[..., list[tf.Tensor]], objective: Objective):
        """Build nothing yet.

        Args:
            add: what to trace: `(batch, weight, scales, rows, *sums)`, with a row for each vector;
                returns the sums with the products, and the gradient, of the batch.
            objective: what is differentiated.
        """
        self._add = add
        self._objective = objective
        self._whole: dict[tuple[int, int], Any] = {}
        self._traced: dict[int, TracedProducts] = {}
        self._cut: dict[int, Linearization] = {}
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

    def add(
        self,
        residuals: Residuals,
        batch: tuple[Any, tf.Tensor, tf.Tensor],
        number: int,
        chunks: Sequence[tf.Tensor],
        sums: Sequence[list[tf.Tensor]],
    ) -> list[list[tf.Tensor]]:
        """Add the products of a batch with each chunk of vectors to its sums.

        Args:
            residuals: of the dataset.
            batch: with its weight and the scales of the terms of the loss.
            number: of the batch in the dataset.
            chunks: each (width, num_params).
            sums: for each chunk that of its products, (width, num_params), and if wanted that of
                the gradient, (num_params,).
        """
        known: dict[tuple[str, ...], list[tf.Tensor]] = {}

        def left_behind(cut: Linearization) -> list[tf.Tensor]:
            """Return the residuals of the batch, computed once for all chunks."""
            if cut.names not in known:
                known[cut.names] = cut.residuals(batch)
            return known[cut.names]

        added = []
        for chunk, before in zip(chunks, sums, strict=True):
            width = chunk.shape[0]
            # The gradient is no matter of the vectors.
            if len(before) > 1:
                added.append(self.whole(width)(*batch, chunk, *before))
                continue
            cut, kept = residuals.kept(number, width)
            if cut is None or kept is None:
                cut = self._linearized(self.whole(width), *batch, chunk, *before)
                kept = residuals.of(number, width, cut, left_behind)
            added.append(cut.products(kept, batch, chunk, *before))
        return added

    def _trace(
        self, batch: Any, weight: tf.Tensor, scales: tf.Tensor, rows: tf.Tensor, *sums: tf.Tensor
    ) -> list[tf.Tensor]:
        self.num_traces += 1
        outputs = self._add(batch, weight, scales, rows, *sums)
        fixed = flat((batch, weight, scales))
        self._traced[id(rows.graph)] = TracedProducts(fixed, [rows, *sums], outputs)
        return outputs

    def _linearized(self, whole: Any, *arguments: Any) -> Linearization:
        concrete = whole.get_concrete_function(*arguments)
        key = id(concrete.graph)
        if key not in self._cut:
            cut = linearize(self._traced.pop(key))
            self._cut[key] = Linearization.of_nothing(concrete) if cut is None else cut
        return self._cut[key]


class Residuals:
    """What the vectors do not touch in the products of each batch, kept while the weights stay."""

    def __init__(self, num_batches: int, room: float):
        """Keep nothing yet.

        Args:
            num_batches: for how many like the first there has to be room, or nothing is kept.
            room: bytes.
        """
        self._num_batches = num_batches
        self._room = min(room, MAX_BYTES)
        self._fit: bool | None = None
        self._of_batches: dict[int, tuple[tuple[str, ...], list[tf.Tensor]]] = {}
        self._cuts: dict[tuple[int, int], Linearization] = {}
        self._weights: dict[int, tuple[Linearization, list[np.ndarray]]] = {}

    def __len__(self) -> int:
        """Return the number of batches whose residuals are kept."""
        return len(self._of_batches)

    def kept(
        self, number: int, width: int
    ) -> tuple[Linearization, list[tf.Tensor]] | tuple[None, None]:
        """Return the two parts and the residuals of a batch and a width, if they are kept."""
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
        if self._fit is None and cut.names:
            self._fit = cut.nbytes * self._num_batches <= self._room
        if not self._room or (cut.names and not self._fit):
            return left_behind(cut)
        if not cut.names:
            self._cuts[number, width] = cut
            return []
        if id(cut) not in self._weights:
            self._weights[id(cut)] = cut, cut.weights()
        # Those of another width are the same; where they are not, the last ones are kept.
        if number not in self._of_batches or self._of_batches[number][0] != cut.names:
            self._of_batches[number] = cut.names, left_behind(cut)
            self._cuts = {key: each for key, each in self._cuts.items() if key[0] != number}
        self._cuts[number, width] = cut
        return self._of_batches[number][1]

    def forget_if_weights_changed(self) -> None:
        """Drop all that is kept unless every variable has the value that it was computed with."""
        same = (
            np.array_equal(now, then)
            for cut, before in self._weights.values()
            for now, then in zip(cut.weights(), before, strict=True)
        )
        if not all(same):
            self._of_batches.clear()
            self._cuts.clear()
            self._weights.clear()
