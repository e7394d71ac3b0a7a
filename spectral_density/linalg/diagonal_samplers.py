"""Stochastic estimators of a diagonal: Hutchinson's regression and Diag++."""

from __future__ import annotations

import numpy as np

from spectral_density.linalg.estimates import DiagonalEstimate
from spectral_density.linalg.orthogonalization import project_out_rows
from spectral_density.linalg.sampling import ScaledOperator
from spectral_density.linalg.sketch import RESIDUAL, Sketch, gaussians, padded, sketch_rank
from spectral_density.linalg.threads import blas_threads


class HutchinsonDiagonal:
    """The regression of each entry of A w on that of w."""

    least = 3

    def __init__(self, products: ScaledOperator, seed: int) -> None:
        self.products = products
        self.seed = seed
        self.line = _Regression(products.size)

    def extend(self, num_products: int) -> None:
        """Make the sample as large as that many products allow."""
        for draws in self.products.blocks(self.line.count, num_products):
            probes = gaussians(self.products.size, self.seed, draws, RESIDUAL)
            self.line.add(probes, self.products(probes))

    def result(self) -> DiagonalEstimate:
        """Return the estimate so far."""
        slopes = self.line.slopes.copy()
        errors = np.hypot(self.line.errors(), self.products.rounding * np.abs(slopes))
        return DiagonalEstimate(
            slopes, errors, self.products.count, degrees_of_freedom=self.line.count - 1
        )


class _Regression:
    """Lines through zero, one an entry, fitted to points that come in turn."""

    def __init__(self, size: int) -> None:
        self.count = 0
        self.slopes = np.zeros(size)
        self.squares = np.zeros(size)  # sum of x^2
        self.residuals = np.zeros(size)  # sum of squares about the line

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        """Take points, shape (k, n) each."""
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
        return np.sqrt(self.residuals / (self.count - 1) / self.squares)


class DiagonalPlusPlus:
    """The diagonal of A in the range of a sketch, and the regression for what is left of A.

    With P = QQ', A = PA + AP - PAP + (I - P) A (I - P).
    """

    least = 5

    def __init__(self, products: ScaledOperator, seed: int) -> None:
        self.products = products
        self.seed = seed
        self.sketch = Sketch(products, seed, keep_images=True)
        self.images = np.zeros((0, products.size))  # of residual probes, A (I - P) w

    def extend(self, num_products: int) -> None:
        """Make the sample as large as that many products allow."""
        size, known, count = self.products.size, self.sketch.rank, len(self.images)
        rank = sketch_rank(num_products, known, max(count, 3))
        old_basis = self.sketch.basis
        self.sketch.extend(rank)
        basis, images = self.sketch.basis[known:], self.sketch.images[known:]
        for part in self.products.blocks(0, count if rank > known else 0):
            # The columns that are new to the basis come off what was orthogonal to the old ones.
            probes = gaussians(size, self.seed, part, RESIDUAL)
            with blas_threads(size):
                probes = project_out_rows(probes, old_basis)
                self.images[part.start : part.stop] -= (probes @ basis.T) @ images
        self.images = padded(self.images, num_products - 2 * rank, size)
        for part in self.products.blocks(count, len(self.images)):
            probes = gaussians(size, self.seed, part, RESIDUAL)
            with blas_threads(size):
                probes = project_out_rows(probes, self.sketch.basis)
            self.images[part.start : part.stop] = self.products(probes)

    def result(self) -> DiagonalEstimate:
        """Return the estimate so far."""
        size, basis, images = self.products.size, self.sketch.basis, self.sketch.images
        line = _Regression(size)
        for part in self.products.blocks(0, len(self.images)):
            rest = project_out_rows(self.images[part.start : part.stop], basis)
            line.add(gaussians(size, self.seed, part, RESIDUAL), rest)
        inner = self.sketch.compressed @ basis
        known = np.einsum("kn,kn->n", basis, 2 * images - inner)
        scale = np.einsum("kn,kn->n", np.abs(basis), np.abs(images))
        errors = np.hypot(line.errors(), self.products.rounding * scale)
        return DiagonalEstimate(
            known + line.slopes,
            errors,
            self.products.count,
            degrees_of_freedom=line.count - 1,
        )
