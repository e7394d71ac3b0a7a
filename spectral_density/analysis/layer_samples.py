"""Products with H and G for each layer: columns of small blocks, random probes of large ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, inf, isfinite, nan
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density._repr import repr_with_shapes
from spectral_density.linalg.arguments import stream
from spectral_density.linalg.estimates import Estimate
from spectral_density.linalg.sampling import GROWTH, Plan
from spectral_density.linalg.threads import blas_threads

# Random streams: a key of this file's own.
_KEY = 7048

# Vectors that are multiplied together, fewer where 16 of them would take more than a gigabyte.
_WIDTH = 16
_BLOCK_ENTRIES = 2**27
# The whole matrix is put together where all its layers are exact and it is no larger than this.
_DENSE_LIMIT = 2048


@dataclass(frozen=True)
class HessianParts:
    """The Hessian H, its Gauss-Newton part G, and the seed of the probes that multiply them."""

    hessian: LinearOperator
    gauss_newton: LinearOperator
    seed: int

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.hessian.shape[0]


@dataclass(eq=False)
class LayerSamples:
    """Products of the columns or probes of one layer with H, G and R = H - G, in this order."""

    position: int  # among the layers: the probes of each are random numbers of its own
    name: str
    indices: np.ndarray  # of its parameters
    exact: bool  # whether all columns are multiplied, not probes
    # One entry for each product: the squared norm of its part in the layer and of all of it, and
    # the quadratic form; each for three matrices.
    samples: list[np.ndarray] = field(default_factory=list)  # (3, 3) each
    columns: list[np.ndarray] = field(default_factory=list)  # if exact, (2, kept rows), H and G

    __repr__ = repr_with_shapes

    @property
    def size(self) -> int:
        """Number of parameters."""
        return len(self.indices)

    def vector(self, index: int, seed: int) -> np.ndarray:
        """Return column `index` of the identity, or probe `index`, (size,)."""
        if self.exact:
            return (np.arange(self.size) == index).astype(np.float64)
        probe = stream(seed, _KEY, self.position, index).standard_normal(self.size)
        return probe * (np.sqrt(self.size) / np.linalg.norm(probe))

    def add(self, vector: np.ndarray, products: np.ndarray, kept: slice | np.ndarray) -> None:
        """Add the products (3, n) of a vector with H, G and R; if exact, keep some rows of them."""
        parts = products[:, self.indices]
        squares = np.einsum("ij,ij->i", parts, parts)
        totals = np.einsum("ij,ij->i", products, products)
        self.samples.append(np.array([squares, totals, parts @ vector]))
        if self.exact:
            self.columns.append(products[:2, kept])


def sample(
    parts: HessianParts, layers: list[LayerSamples], plan: Plan, progress: bool | None
) -> tuple[int, bool | None]:
    """Multiply the columns and probes of all layers.

    Returns:
        The number of products with H, and whether the tolerance was met; None without one.
    """
    keep_all = parts.size <= _DENSE_LIMIT and all(layer.exact for layer in layers)
    estimated = [layer for layer in layers if not layer.exact]
    vectors = [(layer, i) for layer in layers if layer.exact for i in range(layer.size)]
    count, done, target = 0, 0, plan.first
    total = len(vectors) + plan.limit * len(estimated)
    with progress_bar(total, "Products with H and with G", progress) as bar:
        while True:
            # Probe by probe, so that an interrupted run has equally many of each layer.
            vectors += [(layer, i) for i in range(done, target) for layer in estimated]
            _multiply(parts, vectors, keep_all, bar)
            count, done, vectors = count + len(vectors), target, []
            if plan.tolerance is None:
                return count, None
            groups = [[layer] for layer in layers] + [layers]
            if all(_accurate(group, plan.tolerance) for group in groups):
                return count, True
            if done >= plan.limit:
                return count, False
            target = min(plan.limit, ceil(GROWTH * done))


def _multiply(
    parts: HessianParts, vectors: list[tuple[LayerSamples, int]], keep_all: bool, bar: Any
) -> None:
    """Add the products of vectors, each a layer and a number, to their layers, block by block."""
    n = parts.size
    width = max(1, min(_WIDTH, _BLOCK_ENTRIES // n))
    for start in range(0, len(vectors), width):
        block = [
            (layer, layer.vector(index, parts.seed))
            for layer, index in vectors[start : start + width]
        ]
        # The last block is filled up with zeros: another width would take another graph.
        columns = np.zeros((n, width))
        for column, (layer, vector) in enumerate(block):
            columns[layer.indices, column] = vector
        of_hessian, of_gauss_newton = (
            parts.hessian.matmat(columns),
            parts.gauss_newton.matmat(columns),
        )
        with blas_threads(n):
            for column, (layer, vector) in enumerate(block):
                h, g = of_hessian[:, column], of_gauss_newton[:, column]
                kept = slice(None) if keep_all else layer.indices
                layer.add(vector, np.stack([h, g, h - g]), kept)
        bar.update(len(block))


# Estimates ---------------------------------------------------------------------------------------


def sums(layers: list[LayerSamples], whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return samples of squared Frobenius norms and of traces, each (count, 3); one if exact.

    The whole matrix is made of the columns of all layers: their probes are independent, so that
    sums over the layers of their i-th samples are samples of the whole.
    """
    squares, traces = np.zeros((1, 3)), np.zeros((1, 3))
    for layer in layers:
        samples = np.array(layer.samples)  # (count, quantity, matrix)
        if layer.exact:
            samples = samples.sum(axis=0, keepdims=True)
        squares = squares + samples[:, 1 if whole else 0]
        traces = traces + samples[:, 2]
    return squares, traces


def mean_estimate(samples: np.ndarray, num_products: int, root: bool = False) -> Estimate:
    """Return the mean of samples, or its root by the delta method."""
    count = len(samples)
    value = float(samples.mean())
    error = float(samples.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
    if root:
        value = float(np.sqrt(value))
        error = error / (2 * value) if value > 0 else 0.0
    freedom = count - 1 if count > 1 else inf
    return Estimate(value, error, num_products, degrees_of_freedom=freedom)


def ratio_estimate(squares: np.ndarray, num_products: int) -> Estimate:
    """Return ||R||_F / ||G||_F of paired samples with the jackknife's standard error."""
    count = len(squares)
    g, r = squares[:, 1], squares[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(np.sqrt(r.mean() / g.mean()))
        if count == 1 or not isfinite(value):
            return Estimate(value, 0.0 if isfinite(value) else nan, num_products)
        without = np.sqrt((r.sum() - r) / (g.sum() - g))
    error = float(np.sqrt((count - 1) * without.var()))
    return Estimate(value, error, num_products, degrees_of_freedom=count - 1)


def meets(norm: Estimate, tolerance: float) -> bool:
    """Tell whether a norm is exact, or its relative error within a tolerance."""
    return not norm.standard_error or norm.relative_error <= tolerance


def _accurate(layers: list[LayerSamples], tolerance: float) -> bool:
    """Tell whether the Frobenius norms of H and G of a layer, or of all, meet a tolerance."""
    squares, _ = sums(layers, len(layers) > 1)
    return all(
        meets(mean_estimate(squares[:, matrix], 0, root=True), tolerance) for matrix in (0, 1)
    )


def dense_parts(layers: list[LayerSamples], size: int, whole: bool) -> list[np.ndarray] | None:
    """Return H, G and R of a layer, or of all, symmetric; None where columns were not kept.

    Args:
        layers: one, or all of them.
        size: number of parameters of the whole matrix.
        whole: whether the matrix is that of all parameters.
    """
    if not all(layer.columns for layer in layers):
        return None
    all_rows = all(layer.columns[0].shape[1] == size for layer in layers)
    if whole and not all_rows:
        return None
    columns = np.array([column for layer in layers for column in layer.columns])
    if all_rows:
        # In the order of the columns, which is that of the layers.
        columns = columns[:, :, np.concatenate([layer.indices for layer in layers])]
    h, g = columns.transpose(1, 0, 2)
    return [(matrix + matrix.T) / 2 for matrix in (h, g, h - g)]
