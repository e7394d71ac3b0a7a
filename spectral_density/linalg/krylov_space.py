"""Block Krylov spaces of a random block: their basis, products, and norm bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._repr import repr_with_shapes
from spectral_density.linalg.arguments import block_product, has_adjoint, integer, product_precision
from spectral_density.linalg.gaussian_blocks import PROBE, TEST, gaussian, probed_norm
from spectral_density.linalg.norms import column_norms
from spectral_density.linalg.orthogonalization import project_out, rank_revealing_extension
from spectral_density.linalg.threads import blas_threads

ROUNDING = 10
"""Of products, in units of their eps: what is left of a block below this is no direction."""


@dataclass(frozen=True)
class Probes:
    """Gaussian vectors that are independent of the basis, and their products."""

    vectors: np.ndarray  # (n, k), Z
    products: np.ndarray  # (m, k), A Z
    range_norm: float = inf  # bound of ||B||, B = (I - Q Q') A, through products with B'B

    __repr__ = repr_with_shapes


class KrylovSpace:
    """A block Krylov space of the operator: its basis, and the products so far.

    With `keep`, the adjoint's products with the basis are kept as they come: for a symmetric
    operator those that build the space, so that only the last block is left for `finish`.
    """

    def __init__(
        self,
        operator: LinearOperator,
        symmetric: bool,
        seed: int,
        advance: Callable[[int], Any] = lambda count: None,
        keep: bool = False,
    ) -> None:
        self.operator = operator
        self.symmetric = symmetric
        self.seed = seed
        self.advance = advance
        self.keep = keep
        self.num_products = 0
        self.num_passes = 0
        self._basis = _Columns(operator.shape[0])
        self._products = _Columns(operator.shape[1])
        self._rounding = ROUNDING * product_precision(operator)
        self._norm = 0.0  # the largest ||A x|| of a unit x so far

    @property
    def basis(self) -> np.ndarray:
        """Q, shape (m, r)."""
        return self._basis.array

    @property
    def products(self) -> np.ndarray:
        """A' Q as far as it is known, shape (n, at most r)."""
        return self._products.array

    @property
    def rank(self) -> int:
        """Number of basis vectors, r."""
        return self._basis.count

    @property
    def is_full(self) -> bool:
        """Whether Q spans everything."""
        return self.rank == self.operator.shape[0]

    def multiply(self, block: np.ndarray, adjoint: bool = False) -> np.ndarray:
        """Return the product of A, or of A', with a block, in one pass."""
        operator = self.operator.H if adjoint and not self.symmetric else self.operator
        self.num_passes += 1
        try:
            products = block_product(operator, block, f"in pass {self.num_passes}")
        except (NotImplementedError, TypeError) as error:
            if not adjoint or self.symmetric or has_adjoint(self.operator):
                raise
            raise ValueError(
                f"The operator of shape {self.operator.shape} has no adjoint, which only one "
                "that is symmetric can do without. Give it rmatvec or rmatmat."
            ) from error
        self.num_products += block.shape[1]
        self.advance(block.shape[1])
        return products

    def grow(self, block: np.ndarray, depth: int, most: int) -> int:
        """Add the products `block` of unit vectors and their Krylov space; return columns added."""
        before = self.rank
        added = self._extend(block, most)
        for _ in range(depth - 1):
            if not added or self.rank == most:
                break
            block = self.multiply(self.basis[:, -added:], adjoint=True)
            if self.keep:
                self._products.append(block)
            if not self.symmetric:
                sizes = column_norms(block)
                block = self.multiply(block / np.where(sizes > 0, sizes, 1.0))
            added = self._extend(block, most)
        return self.rank - before

    def finish(self, others: np.ndarray) -> np.ndarray:
        """Multiply the rest of the basis, and others in the same pass; return products of these."""
        rest = self.basis[:, self._products.count :]
        count = rest.shape[1]
        if not count + others.shape[1]:
            return others
        products = self.multiply(np.hstack([rest, others]), adjoint=True)
        self._products.append(products[:, :count])
        return products[:, count:]

    def probed_norm(self, products: np.ndarray) -> float:
        """Bound ||(I - Q Q') B|| by products of B with Gaussian vectors."""
        return 0.0 if self.is_full else probed_norm(project_out(products, self.basis))

    def _extend(self, block: np.ndarray, most: int) -> int:
        """Add what lies outside of the basis, but for rounding; return the columns added."""
        with blas_threads(len(block)):
            self._norm = max(self._norm, column_norms(block).max())
            new = rank_revealing_extension(
                block, self.basis, self._rounding * self._norm, most - self.rank
            )
            self._basis.append(new)
        return new.shape[1]


class _Columns:
    """A matrix that grows by columns, which lie in one array throughout."""

    def __init__(self, rows: int) -> None:
        self.count = 0
        self._storage = np.empty((rows, 0), order="F")

    @property
    def array(self) -> np.ndarray:
        """All columns, a view."""
        return self._storage[:, : self.count]

    def append(self, block: np.ndarray) -> None:
        """Add columns."""
        end = self.count + block.shape[1]
        if end > self._storage.shape[1]:
            grown = np.empty((len(self._storage), max(end, 2 * self.count)), order="F")
            grown[:, : self.count] = self.array
            self._storage = grown
        self._storage[:, self.count : end] = block
        self.count = end


def sketch(space: KrylovSpace, width: int, depth: int, num_probes: int) -> Probes:
    """Build the space from `width` test vectors; probes are multiplied in its first pass."""
    size = space.operator.shape[1]
    tests = gaussian(size, space.seed, TEST, width)
    probes = gaussian(size, space.seed, PROBE, num_probes)
    products = space.multiply(np.hstack([tests, probes]))
    own = products[:, width:].copy()  # the operator may use its buffer again
    space.grow(products[:, :width] / np.sqrt(size), depth, space.operator.shape[0])
    return Probes(probes, own)


def block_width(rank: int, oversampling: Any, operator: LinearOperator) -> int:
    """Return how many test vectors a rank takes, with some to spare."""
    return min(rank + integer(oversampling, "oversampling", 0), *operator.shape)
