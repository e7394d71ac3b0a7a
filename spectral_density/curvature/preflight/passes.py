"""Two passes over the data, and what they show of an operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from spectral_density.curvature.preflight.data import Contents, Difference, compare
from spectral_density.curvature.preflight.halves import Halves, in_two, weights_add_up
from spectral_density.curvature.sweep import Sweep
from spectral_density.engines.data import BatchInput
from spectral_density.linalg.arguments import stream

# Relative differences that are rounding, by the coarsest dtype a model computes in. Another kernel
# for another batch size, or another order of summing, gives 4e-7 in float32.
_ROUNDING = {"float64": 1e-11, "float32": 1e-5, "float16": 1e-2, "bfloat16": 8e-2}

# Rounding as measured (what of a product does not scale) is known within this factor.
_MEASURED = 10.0
_PART = 1 << 20


class Passes:
    """The passes over the data, and what they showed.

    Products of one batch are held in float32 unless they were computed in float64: they are many,
    and long.

    Attributes:
        u, v: the two vectors, (1, n), in the dtype of the variables.
        at: the first batch.
        first, rest: the product of u with the first batch, and with all others together.
        halves: the same with each half of the first batch, or None, and `why_whole` says why.
        along_u, along_v: products in one state of the model, with half of it if it has halves.
        fresh_first, rest_again: `first` and `rest` of the second pass.
    """

    def __init__(self, sweep: Sweep, seed: int):
        self.sweep = sweep
        self.num_products = 0.0
        self.changed = 0  # batches that are others on the second pass
        self.stopped = ""  # what ended a pass early
        self.before, self.after = Contents(), Contents()  # of the data, where they may differ
        self.weights_add_up = True  # those of halves to that of a batch
        derivatives = sweep.derivatives
        self.rounding = stated_rounding(derivatives.product_dtype)
        parameters = derivatives.parameters
        normals = (stream(seed, k).normal(size=parameters.size) for k in range(2))
        self.u, self.v = ((v[None] / np.linalg.norm(v)).astype(parameters.dtype) for v in normals)

    def make_first(self) -> None:
        """Multiply each batch with u."""
        self.sweep.num_passes += 1
        self.hashes: list[list[str]] = []  # of the batches, by what is computed together
        self.rest = np.zeros(self.u.shape[1])
        for position, at in enumerate(self._inputs()):
            if not self.sweep.batches.kept:
                self.hashes.append(self._hashes(position, at))
                self.before += self._contents(position, at)
            if position == 0:
                self.at = at
                self.first = self.product(at, self.u)
            else:
                self.rest += self._product(at, self.u)[0]

    def make_second(self) -> None:
        """Multiply again, the first batch in halves, and look at the data iterated afresh."""
        sweep = self.sweep
        sweep.num_passes += 1
        self.halves = self._in_halves()
        if self.halves is None:
            # Both vectors in one state of the model.
            with sweep.derivatives.state.unchanged():
                self.along_u = self.product(self.at, self.u)
            self.along_v = self.product(self.at, self.v)
        # A first batch that is another one on a stream: what the product would be with it.
        self.fresh_first = self.first
        self.rest_again = np.zeros(self.u.shape[1])
        for position, at in enumerate(self._inputs()):
            if not sweep.batches.kept:
                hashes = zip(self._hashes(position, at), self.hashes[position], strict=True)
                changed = sum(a != b for a, b in hashes)
                self.changed += changed
                self.after += self._contents(position, at)
                if position == 0 and changed:
                    self.fresh_first = self.product(at, self.u)
            if position:
                self.rest_again += self._product(at, self.u)[0]
        if sweep.batches.kept:
            batches = sweep.batches
            functions = sweep.derivatives.functions
            found = compare(list(batches), batches.afresh(), functions)
            self.changed, self.stopped, self.before, self.after = found

    @property
    def data(self) -> Difference:
        """Return what differs between the data of the passes."""
        return Difference(self.changed, self.stopped, self.before, self.after)

    def _inputs(self) -> Iterator[BatchInput]:
        inputs = iter(self.sweep.inputs())
        while True:
            try:
                at = next(inputs)
            except StopIteration:
                return
            except ValueError as error:  # another number of batches than before
                self.stopped = str(error)
                return
            yield at

    def _members(self, position: int, at: BatchInput) -> list[Any]:
        """Return the batches that are computed together."""
        batches = self.sweep.batches
        return batches.apart(at.batch, batches.parcels[position])

    def _hashes(self, position: int, at: BatchInput) -> list[str]:
        batch_hash = self.sweep.derivatives.functions.batch_hash
        return [batch_hash(batch) for batch in self._members(position, at)]

    def _contents(self, position: int, at: BatchInput) -> Contents:
        functions = self.sweep.derivatives.functions
        members = self._members(position, at)
        return sum((Contents.of(batch, functions) for batch in members), Contents())

    def _in_halves(self) -> Halves | None:
        """Multiply the halves of the first batch with u; the first, in the same state, with v."""
        self.why_whole = ""
        sweep = self.sweep
        try:
            cut = in_two(sweep, self.at)
            if cut is None:
                self.why_whole = "the first batch has one example, or none that can be told apart"
                return None
            (a, b), shares = cut
            self.weights_add_up = weights_add_up(sweep, (a, b), self.at)
            with sweep.derivatives.state.unchanged():
                self.along_u = self.product(a, self.u, share=shares[0])
            self.along_v = self.product(a, self.v, share=shares[0])
            other = self.product(b, self.u, share=shares[1])
        except sweep.derivatives.inspection.tracing_errors as error:
            # Models of a fixed batch size take no halves.
            self.why_whole = f"the model or loss takes no half of a batch ({line(error)})"
            return None
        return Halves([self.along_u, other], shares)

    def product(
        self, at: BatchInput, vectors: np.ndarray, share: float = 1.0, *, exact: bool = False
    ) -> np.ndarray:
        """Return the product of one batch with vectors, (k, n), or (n,) for one of them.

        Args:
            at: the batch.
            vectors: (k, n).
            share: of the batch in the first one, in examples.
            exact: at full precision, whatever was asked for.
        """
        found = self._product(at, vectors, share, exact)
        # float32 holds the products of half precision too, and nothing vanishes in it.
        if self.sweep.derivatives.product_dtype != np.float64:
            found = found.astype(np.float32)
        return found[0] if len(found) == 1 else found

    def _product(
        self, at: BatchInput, vectors: np.ndarray, share: float = 1.0, exact: bool = False
    ) -> np.ndarray:
        """Return the same in float64, (k, n)."""
        sweep = self.sweep
        self.num_products += share * len(vectors) / len(sweep.batches.parcels)
        rows = sweep.derivatives.tensors.to_rows(vectors, vectors.dtype)
        matrix = sweep.matrix.exact if exact else sweep.matrix
        return matrix.of_batch(at, rows, sweep.local)

    def linearized(self) -> np.ndarray | None:
        """Return the product of the first batch with u from what is kept of it, if anything is."""
        sweep = self.sweep
        if sweep.derivatives.replicas is not None:
            return None
        rows = sweep.derivatives.tensors.to_rows(self.u, self.u.dtype)
        with sweep.derivatives.state.unchanged():
            found = sweep.matrix.linearized(sweep.cache, self.at, rows)
        if found is not None:
            self.num_products += 1 / len(sweep.batches.parcels)
        return found

    def measure_rounding(self) -> None:
        """Take what does not scale with the vector for rounding: two columns of one graph."""
        vectors = np.concatenate([self.u, self.u / self.u.dtype.type(3)], axis=0)
        product, third = self.product(self.at, vectors)
        self.rounding = max(self.rounding, _MEASURED * difference(3 * third, product))

    def unrepeated(self) -> float:
        """Return how far products of the first batch differ, in one state and in a later one."""
        once, twice = self._at_rest(), self._at_rest()
        return max(difference(twice, once), difference(once, self.first))

    def _at_rest(self) -> np.ndarray:
        with self.sweep.derivatives.state.unchanged():
            return self.product(self.at, self.u)


def difference(found: Any, expected: np.ndarray) -> float:
    """Return the norm of the difference relative to the larger norm; infinity where not finite."""
    squares = np.zeros(3)
    found, expected = found.reshape(-1), expected.reshape(-1)
    # In parts: no float64 copy of a whole.
    for start in range(0, len(expected), _PART):
        a = np.asarray(found[start : start + _PART], np.float64)
        b = np.asarray(expected[start : start + _PART], np.float64)
        squares += [np.sum((a - b) ** 2), np.sum(a**2), np.sum(b**2)]
    gap, *norms = np.sqrt(squares).tolist()
    if not np.isfinite(gap):
        return np.inf
    return gap / max(norms) if gap else 0.0


def stated_rounding(dtype: np.dtype) -> float:
    """Return the relative rounding of products that are computed in a dtype."""
    return _ROUNDING[dtype.name]


def line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
