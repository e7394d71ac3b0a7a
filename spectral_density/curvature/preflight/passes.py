"""Two passes over the data, and what they show of an operator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from spectral_density.curvature.batches import batch_hash
from spectral_density.curvature.losses import TRACING_ERRORS
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.preflight.data import Contents, Difference, compare
from spectral_density.curvature.preflight.halves import Halves, in_two, plain, weights_add_up
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
        u, v: the two vectors, as rows.
        entry, weight: the first batch.
        first, rest: the product of u with the first batch, and with all others together.
        halves: the same with each half of the first batch, or None, and `why_whole` says why.
        along_u, along_v: products in one state of the model, with half of it if it has halves.
        fresh_first, rest_again: `first` and `rest` of the second pass.
    """

    def __init__(self, operator: CurvatureOperator, seed: int):
        self.operator = operator
        self.num_products = 0.0
        self.changed = 0  # batches that are others on the second pass
        self.stopped = ""  # what ended a pass early
        self.before, self.after = Contents(), Contents()  # of the data, where they may differ
        self.weights_add_up = True  # those of halves to that of a batch
        self.rounding = stated_rounding(operator)
        normals = [stream(seed, k).normal(size=operator.parameters.size) for k in range(2)]
        self.u, self.v = (operator._rows(v[None] / np.linalg.norm(v)) for v in normals)

    def make_first(self) -> None:
        """Multiply each batch with u."""
        operator = self.operator
        operator.num_passes += 1
        self.hashes: list[list[str]] = []  # of the batches, by what is computed together
        rest = self.zeros()
        for position, (entry, weight) in enumerate(self._entries()):
            if not operator.batches.kept:
                self.hashes.append(self._hashes(position, entry))
                self.before += self._contents(position, entry)
            if position == 0:
                self.entry, self.weight = entry, weight
                self.first = self.product(entry, weight, self.u)
            else:
                rest = self._added(entry, weight, rest)
        self.rest = np.array(rest)[0]

    def make_second(self) -> None:
        """Multiply again, the first batch in halves, and look at the data iterated afresh."""
        operator = self.operator
        operator.num_passes += 1
        self.halves = self._in_halves()
        if self.halves is None:
            # Both vectors in one state of the model.
            with operator._put_back():
                self.along_u = self.product(self.entry, self.weight, self.u)
            self.along_v = self.product(self.entry, self.weight, self.v)
        # A first batch that is another one on a stream: what the product would be with it.
        self.fresh_first = self.first
        rest = self.zeros()
        for position, (entry, weight) in enumerate(self._entries()):
            if not operator.batches.kept:
                hashes = zip(self._hashes(position, entry), self.hashes[position], strict=True)
                changed = sum(a != b for a, b in hashes)
                self.changed += changed
                self.after += self._contents(position, entry)
                if position == 0 and changed:
                    self.fresh_first = self.product(entry, weight, self.u)
            if position:
                rest = self._added(entry, weight, rest)
        self.rest_again = np.array(rest)[0]
        if operator.batches.kept:
            found = compare(list(operator.batches), operator.batches.afresh())
            self.changed, self.stopped, self.before, self.after = found

    @property
    def data(self) -> Difference:
        """Return what differs between the data of the passes."""
        return Difference(self.changed, self.stopped, self.before, self.after)

    def _entries(self) -> Iterator[tuple[Any, tf.Tensor]]:
        entries = iter(self.operator._weighted_batches())
        while True:
            try:
                entry = next(entries)
            except StopIteration:
                return
            except ValueError as error:  # another number of batches than before
                self.stopped = str(error)
                return
            yield entry

    def _members(self, position: int, entry: Any) -> list[Any]:
        """Return the batches that are computed together."""
        batches = self.operator.batches
        return batches.apart(plain(self.operator, entry), batches.parcels[position])

    def _hashes(self, position: int, entry: Any) -> list[str]:
        return [batch_hash(batch) for batch in self._members(position, entry)]

    def _contents(self, position: int, entry: Any) -> Contents:
        return sum(map(Contents.of, self._members(position, entry)), Contents())

    def _in_halves(self) -> Halves | None:
        """Multiply the halves of the first batch with u; the first, in the same state, with v."""
        self.why_whole = ""
        try:
            cut = in_two(self.operator, self.entry, self.weight)
            if cut is None:
                self.why_whole = "the first batch has one example, or none that can be told apart"
                return None
            (a, b), shares = cut
            self.weights_add_up = weights_add_up(self.operator, (a, b), self.weight)
            with self.operator._put_back():
                self.along_u = self.product(*a, self.u, share=shares[0])
            self.along_v = self.product(*a, self.v, share=shares[0])
            other = self.product(*b, self.u, share=shares[1])
        except TRACING_ERRORS as error:
            # Models of a fixed batch size take no halves.
            self.why_whole = f"the model or loss takes no half of a batch ({line(error)})"
            return None
        return Halves([self.along_u, other], shares)

    def zeros(self) -> tf.Tensor:
        """Return a sum of products with one vector to begin with."""
        return tf.zeros(self.u.shape, tf.float64)

    def _added(self, entry: Any, weight: tf.Tensor, total: tf.Tensor) -> tf.Tensor:
        operator = self.operator
        self.num_products += 1 / len(operator.batches.parcels)
        return operator._product_fn(1)(entry, weight, operator._scales, self.u, total)[0]

    def product(
        self, entry: Any, weight: tf.Tensor, rows: tf.Tensor, share: float = 1.0
    ) -> np.ndarray:
        """Return the product of one batch with vectors, (k, n), or (n,) for one of them."""
        operator = self.operator
        self.num_products += share * len(rows) / len(operator.batches.parcels)
        zeros = tf.zeros(rows.shape, tf.float64)
        multiply = operator._product_fn(len(rows))
        products = multiply(entry, weight, operator._scales, rows, zeros)[0]
        # float32 holds the products of half precision too, and nothing vanishes in it.
        wide = operator.product_dtype == np.float64
        found = np.array(tf.cast(products, tf.float64 if wide else tf.float32))
        return found[0] if len(found) == 1 else found

    def measure_rounding(self) -> None:
        """Take what does not scale with the vector for rounding: two columns of one graph."""
        rows = tf.concat([self.u, self.u / 3], axis=0)
        product, third = self.product(self.entry, self.weight, rows)
        self.rounding = max(self.rounding, _MEASURED * difference(3 * third, product))

    def unrepeated(self) -> float:
        """Return how far products of the first batch differ, in one state and in a later one."""
        once, twice = self._at_rest(), self._at_rest()
        return max(difference(twice, once), difference(once, self.first))

    def _at_rest(self) -> np.ndarray:
        with self.operator._put_back():
            return self.product(self.entry, self.weight, self.u)


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


def stated_rounding(operator: CurvatureOperator) -> float:
    """Return the relative rounding of products in the dtype they are computed in."""
    return _ROUNDING[operator.product_dtype.name]


def line(error: Exception) -> str:
    """Return the first line of what an error says."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
