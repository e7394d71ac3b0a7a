"""Randomized sketches: a basis of the range of an operator that grows by random probes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from spectral_density.linalg.arguments import precision, rounding_share, stream
from spectral_density.linalg.orthogonalization import (
    orthonormal_extension,
    project_out,
    project_out_rows,
    qr,
)
from spectral_density.linalg.sampling import ScaledOperator
from spectral_density.linalg.threads import blas_threads
from spectral_density.linalg.vectors import HostVectors, Rows

# An operator whose products differ from their transpose by more than this is not symmetric; it is
# far above what float32 networks show.
ASYMMETRY = 1e-3

# What probes are for, the last part of the key of their random streams.
SKETCH, RESIDUAL, _FRESH = 0, 1, 2

# A direction is lost to rounding where Gram-Schmidt leaves this share of it in the basis.
_LOST = 0.1
_EPS = float(np.finfo(np.float64).eps)
# Random streams: a key of this file's own.
_KEY = 7047


class Sketch:
    """An orthonormal basis of the range of A W, and A within it, that grow by more probes W.

    The probes are not kept: they are drawn again when they are needed. Vectors are rows.
    """

    def __init__(self, products: ScaledOperator, seed: int, *, keep_images: bool) -> None:
        self.products = products
        self.seed = seed
        self.keep_images = keep_images
        self.basis = np.zeros((0, products.size))  # Q'
        self.images = np.zeros((0, products.size))  # (A Q)', without rows where it is not kept
        self.triangle = np.zeros((0, 0))  # R of A W = Q R
        self.compressed = np.zeros((0, 0))  # Q'AQ
        self.image_norms = np.zeros(0)  # of the columns of A Q

    @property
    def rank(self) -> int:
        """Number of probes, and of columns of the basis."""
        return len(self.triangle)

    def extend(self, rank: int) -> None:
        """Add probes up to a number; two products each."""
        known = self.rank
        self.reserve(rank)
        self.triangle = padded(self.triangle, rank, rank)
        self.compressed = padded(self.compressed, rank, rank)
        for draws in self.products.blocks(known, rank):
            begin, end = draws.start, draws.stop
            probes = gaussians(self.products.size, self.seed, draws, SKETCH)
            images = self.multiply(self.place(probes))
            with blas_threads(self.products.size):
                rows = self.append(images, draws)
                self.triangle[:end, begin:end] = self.inside(images, end)
            images = self.multiply(rows)
            with blas_threads(self.products.size):
                forms = self.inside(images, end)
            self.compressed[:begin, begin:end] = forms[:begin]
            self.compressed[begin:end, :begin] = forms[:begin].T
            self.compressed[begin:end, begin:end] = (forms[begin:] + forms[begin:].T) / 2
            self.image_norms = np.append(self.image_norms, self.keep(images, draws))
            self._check_symmetry(forms[begin:], end - 1)

    # What a sketch on a device does otherwise. Vectors are rows of NumPy here, and there a list.

    def place(self, rows: np.ndarray) -> Any:
        """Return rows of NumPy as the vectors that the other methods take."""
        return rows

    def multiply(self, vectors: Any) -> Any:
        """Return the products with vectors."""
        return self.products(vectors)

    def reserve(self, rank: int) -> None:
        """Make room for a number of basis vectors."""
        self.basis = padded(self.basis, rank, self.products.size)
        if self.keep_images:
            self.images = padded(self.images, rank, self.products.size)

    def append(self, images: Any, draws: range) -> Any:
        """Add orthonormal directions that extend the basis by the span of images; return them."""
        rows = _orthonormal(images, self.basis[: draws.start], partial(self.fresh, draws))
        self.basis[draws.start : draws.stop] = rows
        return rows

    def inside(self, vectors: Any, rank: int, first: int = 0) -> np.ndarray:
        """Return the inner products of basis vectors with vectors, shape (rank - first, k)."""
        return self.basis[first:rank] @ vectors.T

    def crossed(self, vectors: Any, rank: int, first: int = 0) -> np.ndarray:
        """Return the inner products of images of basis vectors with vectors, as `inside` does."""
        return self.images[first:rank] @ vectors.T

    def outside(self, vectors: Any, rank: int) -> Any:
        """Return vectors without their parts along the first basis vectors."""
        return project_out_rows(vectors, self.basis[:rank])

    def keep(self, images: Any, draws: range) -> np.ndarray:
        """Keep the images of basis vectors, as far as they are needed; return their norms."""
        if self.keep_images:
            self.images[draws.start : draws.stop] = images
        return np.linalg.norm(images, axis=1)

    def image_gram(self) -> np.ndarray:
        """Return the inner products of the images, (AQ)'AQ."""
        return self.images @ self.images.T

    def direction(self, index: int) -> np.ndarray:
        """Return a basis vector."""
        return self.basis[index]

    def fresh(self, draws: range) -> np.ndarray:
        """Return random rows for directions that do not exist."""
        return gaussians(self.products.size, self.seed, draws, _FRESH)

    def _check_symmetry(self, corner: np.ndarray, newest: int) -> None:
        off = float(np.linalg.norm(corner - corner.T))
        size = float(np.linalg.norm(self.image_norms))
        if off <= max(ASYMMETRY, 10 * self.products.rounding) * size:
            return
        # A matrix that is zero but for rounding is not symmetric, and its estimate not wrong.
        if off > 10 * rounding_share(self.products.operator, self.direction(newest)) * size:
            raise ValueError(
                f"The operator is not symmetric: u'Av and v'Au differ by {off / size:.1e} of "
                "||A|| on average. Pass (A + A') / 2, which has the same trace and diagonal."
            )

    def left_out(self) -> tuple[np.ndarray, int]:
        """Return unit vectors s_i as columns, and the dimension of each complement.

        Q (I - s_i s_i') Q' projects on the range of all images but the i-th. Where the images are
        dependent none of them is missed, and all s_i are 0.
        """
        rank = self.rank
        u, values, vt = np.linalg.svd(self.triangle)
        if values[-1] <= rank * _EPS * values[0]:
            return np.zeros((rank, rank)), self.products.size - rank
        inverse = u @ ((values[-1] / values)[:, np.newaxis] * vt)
        return inverse / np.linalg.norm(inverse, axis=0), self.products.size - rank + 1

    def probes_inside(self) -> tuple[np.ndarray, np.ndarray]:
        """Return Q'W, shape (rank, rank), and the squared norms of the probes."""
        inside = np.empty((self.rank, self.rank))
        squares = np.empty(self.rank)
        for draws in self.products.blocks(0, self.rank):
            rows = gaussians(self.products.size, self.seed, draws, SKETCH)
            where = slice(draws.start, draws.stop)
            inside[:, where] = self.inside(self.place(rows), self.rank)
            squares[where] = row_dots(rows, rows)
        return inside, squares


class DeviceSketch(Sketch):
    """A sketch whose basis is where the operator has its vectors; probes go there, scalars come.

    Attributes:
        rows: the basis.
        images_of: their products, where they are kept.
    """

    def __init__(self, products: ScaledOperator, seed: int, *, keep_images: bool) -> None:
        super().__init__(products, seed, keep_images=keep_images)
        self.rows = products.vectors.rows(0)
        self.images_of = products.vectors.rows(0)

    def place(self, rows: np.ndarray) -> Any:
        """Return rows of NumPy as vectors of the operator."""
        return [self.products.vectors.to_engine(row) for row in rows]

    def multiply(self, vectors: Any) -> Any:
        """Return the products with vectors."""
        return self.products.images(vectors)

    def reserve(self, rank: int) -> None:
        """Make room for a number of basis vectors."""
        self.rows = self.rows.grown(rank, self.rank)
        if self.keep_images:
            self.images_of = self.images_of.grown(rank, self.rank)

    def append(self, images: Any, draws: range) -> Any:
        """Add the directions of the images one by one."""
        vectors, basis = self.products.vectors, self.rows
        for index, image in zip(draws, images, strict=True):
            rest, _ = basis.orthogonalize(vectors.copy(image), index)
            # What is left of a dependent vector is rounding.
            if vectors.norm(rest) <= 10 * precision(basis.dtype) * vectors.norm(image):
                (row,) = self.fresh(range(index, index + 1))
                rest = vectors.to_engine(row)
            # A second time: what is left may be small, and its rounding is not.
            for _ in range(2):
                rest, _ = basis.orthogonalize(vectors.divided(rest, vectors.norm(rest)), index)
            basis.write(index, vectors.divided(rest, vectors.norm(rest)))
        return [basis.read(index) for index in draws]

    def inside(self, vectors: Any, rank: int, first: int = 0) -> np.ndarray:
        """Return the inner products of basis vectors with vectors, shape (rank - first, k)."""
        return _products_of_rows(self.rows, vectors, rank)[first:]

    def crossed(self, vectors: Any, rank: int, first: int = 0) -> np.ndarray:
        """Return the inner products of images of basis vectors with vectors, as `inside` does."""
        return _products_of_rows(self.images_of, vectors, rank)[first:]

    def outside(self, vectors: Any, rank: int) -> Any:
        """Return vectors without their parts along the first basis vectors."""
        return [self.rows.orthogonalize(vector, rank)[0] for vector in vectors]

    def keep(self, images: Any, draws: range) -> np.ndarray:
        """Keep the images of basis vectors, as far as they are needed; return their norms."""
        if self.keep_images:
            for index, image in zip(draws, images, strict=True):
                self.images_of.write(index, image)
        return self.products.vectors.norms(images)

    def image_gram(self) -> np.ndarray:
        """Return the inner products of the images, (AQ)'AQ."""
        images = [self.images_of.read(index) for index in range(self.rank)]
        return self.crossed(images, self.rank)

    def direction(self, index: int) -> np.ndarray:
        """Return a basis vector, float64 on the host."""
        return self.rows.to_host(1, index)[0].astype(np.float64)


def _products_of_rows(rows: Rows, vectors: Sequence[Any], count: int) -> np.ndarray:
    return np.stack([rows.project(vector, count) for vector in vectors], axis=1)


def sketch_of(products: ScaledOperator, seed: int, *, keep_images: bool) -> Sketch:
    """Return an empty sketch with its basis where the operator has its vectors."""
    on_host = isinstance(products.vectors, HostVectors)
    return (Sketch if on_host else DeviceSketch)(products, seed, keep_images=keep_images)


def _orthonormal(
    vectors: np.ndarray, basis: np.ndarray, fresh: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return orthonormal rows that extend orthonormal ones by the span of others.

    Args:
        vectors: shape (b, n); they may be dependent or zero.
        basis: orthonormal rows, shape (k, n).
        fresh: returns random rows, shape (b, n), for directions that do not exist.
    """
    columns = project_out(vectors.T, basis.T)
    block = qr(columns)[0]
    # What is left of a dependent vector is rounding, and that can lie in the basis itself.
    lost = np.linalg.norm(basis @ block, axis=0) > _LOST
    if lost.any():
        columns[:, lost] = fresh()[lost].T
        block = qr(project_out(columns, basis.T))[0]
    return orthonormal_extension(block, basis.T).T


def gaussians(size: int, seed: int, draws: range, purpose: int) -> np.ndarray:
    """Return standard normal probes as rows; each has its own stream."""
    return np.stack([stream(seed, _KEY, draw, purpose).standard_normal(size) for draw in draws])


def sketch_rank(num_products: int, known: int, others: int) -> int:
    """Return the rank that takes two thirds of the products, and never a probe from the others."""
    return max(known, min(num_products // 3, (num_products - others) // 2))


def row_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the inner product of each row with its counterpart."""
    return np.einsum("kn,kn->k", a, b)


def padded(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return a copy with zeros below and at the right; the array itself if it has that shape."""
    if array.shape == (rows, columns):
        return array
    result = np.zeros((rows, columns))
    result[: array.shape[0], : array.shape[1]] = array
    return result
