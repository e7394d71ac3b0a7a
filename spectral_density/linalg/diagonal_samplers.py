"""Stochastic estimators of a diagonal: Hutchinson's regression and Diag++."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_density.linalg.estimates import DiagonalEstimate
from spectral_density.linalg.sampling import ScaledOperator
from spectral_density.linalg.sketch import (
    RESIDUAL,
    DeviceSketch,
    gaussians,
    padded,
    sketch_of,
    sketch_rank,
)
from spectral_density.linalg.threads import blas_threads
from spectral_density.linalg.vectors import HostVectors, Vectors


class HutchinsonDiagonal:
    """The regression of each entry of A w on that of w."""

    least = 3

    def __init__(self, products: ScaledOperator, seed: int) -> None:
        self.products = products
        self.seed = seed
        self.line = _Regression(products.vectors)

    def extend(self, num_products: int) -> None:
        """Make the sample as large as that many products allow."""
        for draws in self.products.blocks(self.line.count, num_products):
            rows = gaussians(self.products.size, self.seed, draws, RESIDUAL)
            probes = self.products.probes(rows)
            self.line.add(probes, self.products.images(probes))

    def result(self) -> DiagonalEstimate:
        """Return the estimate so far."""
        slopes = self.line.on_host(self.line.slopes)
        errors = np.hypot(self.line.errors(), self.products.rounding * np.abs(slopes))
        return DiagonalEstimate(
            slopes, errors, self.products.count, degrees_of_freedom=self.line.count - 1
        )


class _Regression:
    """Lines through zero, one an entry, fitted to points that come in turn.

    The sums are vectors where the operator has them: arrays of any engine add and multiply.
    """

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors
        self.count = 0
        self.slopes, self.squares, self.residuals = (
            vectors.to_engine(np.zeros(vectors.size)) for _ in range(3)
        )  # and the sum of x^2, and that of squares about the line

    def on_host(self, vector: Any) -> np.ndarray:
        """Return a copy of a sum, float64."""
        return np.array(self.vectors.to_host(vector), dtype=np.float64)

    def add(self, x: Any, y: Any) -> None:
        """Take points, k vectors each."""
        for probe, image in zip(x, y, strict=True):
            # Recursive least squares: the sum of squares is never the difference of two.
            missed = image - self.slopes * probe
            squares = self.squares + probe**2
            self.residuals += missed**2 * (self.squares / squares)
            self.slopes += missed * (probe / squares)
            self.squares = squares
        self.count += len(x)

    def errors(self) -> np.ndarray:
        """Return the standard errors of the slopes, with `count - 1` degrees of freedom."""
        residuals, squares = self.on_host(self.residuals), self.on_host(self.squares)
        return np.sqrt(residuals / (self.count - 1) / squares)


class DiagonalPlusPlus:
    """The diagonal of A in the range of a sketch, and the regression for what is left of A.

    With P = QQ', A = PA + AP - PAP + (I - P) A (I - P).
    """

    least = 5

    def __init__(self, products: ScaledOperator, seed: int) -> None:
        self.products = products
        self.seed = seed
        self.sketch = sketch_of(products, seed, keep_images=True)
        self.images: Any = np.zeros((0, products.size))  # of residual probes, A (I - P) w

    def extend(self, num_products: int) -> None:
        """Make the sample as large as that many products allow."""
        known, count = self.sketch.rank, len(self.images)
        rank = sketch_rank(num_products, known, max(count, 3))
        self.sketch.extend(rank)
        for part in self.products.blocks(0, count if rank > known else 0):
            self.take_off(part, known)
        self.reserve(num_products - 2 * rank)
        for part in self.products.blocks(count, num_products - 2 * rank):
            probes = self.residual_probes(part, rank)
            self.images[part.start : part.stop] = self.sketch.multiply(probes)

    def residual_probes(self, part: range, rank: int) -> Any:
        """Return probes without what lies along the first columns of the basis."""
        probes = self.sketch.place(gaussians(self.products.size, self.seed, part, RESIDUAL))
        with blas_threads(self.products.size):
            return self.sketch.outside(probes, rank)

    # What is done otherwise where the operator has its vectors.

    def reserve(self, count: int) -> None:
        """Make room for a number of images."""
        self.images = padded(self.images, count, self.products.size)

    def take_off(self, part: range, known: int) -> None:
        """Take what is along columns that are new to the basis off probes orthogonal to the old."""
        basis, images = self.sketch.basis[known:], self.sketch.images[known:]
        probes = self.residual_probes(part, known)
        with blas_threads(self.products.size):
            self.images[part.start : part.stop] -= (probes @ basis.T) @ images

    def captured(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the diagonal of PA + AP - PAP, and the size of what is summed in each entry."""
        basis, images = self.sketch.basis, self.sketch.images
        inner = self.sketch.compressed @ basis
        known = np.einsum("kn,kn->n", basis, 2 * images - inner)
        return known, np.einsum("kn,kn->n", np.abs(basis), np.abs(images))

    def result(self) -> DiagonalEstimate:
        """Return the estimate so far."""
        sketch = self.sketch
        line = _Regression(self.products.vectors)
        for part in self.products.blocks(0, len(self.images)):
            rest = sketch.outside(self.images[part.start : part.stop], sketch.rank)
            rows = gaussians(self.products.size, self.seed, part, RESIDUAL)
            line.add(sketch.place(rows), rest)
        known, scale = self.captured()
        errors = np.hypot(line.errors(), self.products.rounding * scale)
        return DiagonalEstimate(
            known + line.on_host(line.slopes),
            errors,
            self.products.count,
            degrees_of_freedom=line.count - 1,
        )


class DeviceDiagonalPlusPlus(DiagonalPlusPlus):
    """Diag++ on vectors of the operator's engine, one by one."""

    sketch: DeviceSketch

    def __init__(self, products: ScaledOperator, seed: int) -> None:
        super().__init__(products, seed)
        self.images = []

    def reserve(self, count: int) -> None:
        """Do nothing: the images are a list, which grows by itself."""

    def take_off(self, part: range, known: int) -> None:
        """Take what is along columns that are new to the basis off probes orthogonal to the old."""
        sketch, vectors = self.sketch, self.products.vectors
        along = sketch.inside(self.residual_probes(part, known), sketch.rank, known)
        for index, weights in zip(part, along.T, strict=True):
            change = sketch.images_of.combine(weights, known)
            self.images[index] = vectors.subtract(self.images[index], 1.0, change)

    def captured(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the diagonal of PA + AP - PAP, and the size of what is summed in each entry."""
        sketch, vectors = self.sketch, self.products.vectors
        known, scale = (vectors.to_engine(np.zeros(vectors.size)) for _ in range(2))
        for index, weights in enumerate(sketch.compressed):
            row, image = sketch.rows.read(index), sketch.images_of.read(index)
            known = known + row * (image + image - sketch.rows.combine(weights))
            scale = scale + abs(row) * abs(image)
        return vectors.to_host(known).astype(np.float64), vectors.to_host(scale)


def diagonal_sampler(
    kind: type[HutchinsonDiagonal | DiagonalPlusPlus], products: ScaledOperator, seed: int
) -> HutchinsonDiagonal | DiagonalPlusPlus:
    """Return a sampler of a kind, whose vectors are where the operator has them."""
    if kind is DiagonalPlusPlus and not isinstance(products.vectors, HostVectors):
        kind = DeviceDiagonalPlusPlus
    return kind(products, seed)
