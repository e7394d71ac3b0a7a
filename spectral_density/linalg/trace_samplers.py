"""Stochastic estimators of a trace: Hutchinson, Hutch++ and XTrace."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import hypot
from typing import Any

import numpy as np

from spectral_density.linalg.estimates import Estimate
from spectral_density.linalg.sampling import ScaledOperator
from spectral_density.linalg.sketch import (
    RESIDUAL,
    SKETCH,
    gaussians,
    padded,
    sketch_of,
    sketch_rank,
)
from spectral_density.linalg.threads import blas_threads

# Pairs of left-out directions nearer than this are one: all images but one are dependent.
_SAME_DIRECTION = 1e-4


class Hutchinson:
    """n w'Aw / w'w, or with `squared` n ||Aw||^2 / w'w, averaged over probes."""

    least = 2

    def __init__(
        self, products: ScaledOperator, seed: int, *, squared: bool = False, grows: bool = False
    ) -> None:
        self.products = products
        self.seed = seed
        self.squared = squared
        self.samples = np.zeros(0)
        self.sizes = np.zeros(0)  # ||Aw|| / ||w||, what rounding is relative to

    def extend(self, num_products: int) -> None:
        """Make the sample as large as that many products allow."""
        vectors = self.products.vectors
        for draws in self.products.blocks(len(self.samples), num_products):
            rows = gaussians(self.products.size, self.seed, draws, SKETCH)
            probes = self.products.probes(rows)
            images = self.products.images(probes)
            square = vectors.inners(probes, probes)
            image_square = vectors.inners(images, images)
            forms = image_square if self.squared else vectors.inners(probes, images)
            self.samples = np.append(self.samples, self.products.size * forms / square)
            self.sizes = np.append(self.sizes, np.sqrt(image_square / square))

    def result(self) -> Estimate:
        """Return the estimate so far."""
        size = float(self.sizes.mean())
        rounding = self.products.size * self.products.rounding * size
        if self.squared:
            rounding *= 2 * size
        return _from_samples(self.samples, rounding, self.products.count, self.squared)


class HutchPlusPlus:
    """The exact trace in the range of a sketch, plus Hutchinson's estimate in its complement."""

    least = 4

    def __init__(self, products: ScaledOperator, seed: int, *, grows: bool = False) -> None:
        self.products = products
        self.seed = seed
        self.sketch = sketch_of(products, seed, keep_images=grows)
        # For residual probes u, orthogonal to the first columns of Q (those at their time):
        self.forms = np.zeros(0)  # u'Au
        self.squares = np.zeros(0)  # u'u
        self.inside = np.zeros((0, 0))  # Q'u, zero along those first columns
        self.crossed = np.zeros((0, 0))  # Q'Au, the same rows as zero
        self.stages: list[tuple[range, int]] = []  # residual draws, number of those columns

    def extend(self, num_products: int) -> None:
        """Make the sample as large as that many products allow."""
        known = self.sketch.rank
        count = len(self.forms)
        rank = sketch_rank(num_products, known, max(count, 2))
        self.sketch.extend(rank)
        self.inside = padded(self.inside, rank, count)
        self.crossed = padded(self.crossed, rank, count)
        for draws, columns in self.stages:
            for part in self.products.blocks(draws.start, draws.stop):
                probes = self._residual_probes(part, columns)
                where = slice(known, rank), slice(part.start, part.stop)
                with blas_threads(self.products.size):
                    self.inside[where] = self.sketch.inside(probes, rank, known)
                    self.crossed[where] = self.sketch.crossed(probes, rank, known)
        draws = range(count, num_products - 2 * rank)
        for part in self.products.blocks(draws.start, draws.stop):
            probes = self._residual_probes(part, rank)
            images = self.sketch.multiply(probes)
            vectors = self.products.vectors
            self.forms = np.append(self.forms, vectors.inners(probes, images))
            self.squares = np.append(self.squares, vectors.inners(probes, probes))
        self.inside = padded(self.inside, rank, len(self.forms))
        self.crossed = padded(self.crossed, rank, len(self.forms))
        self.stages.append((draws, rank))

    def _residual_probes(self, draws: range, columns: int) -> Any:
        probes = gaussians(self.products.size, self.seed, draws, RESIDUAL)
        with blas_threads(self.products.size):
            return self.sketch.outside(self.sketch.place(probes), columns)

    def result(self) -> Estimate:
        """Return the estimate so far."""
        compressed = self.sketch.compressed
        forms = (
            self.forms
            - 2 * _column_dots(self.inside, self.crossed)
            + _column_dots(self.inside, compressed @ self.inside)
        )
        squares = self.squares - _column_dots(self.inside, self.inside)
        samples = np.trace(compressed) + (self.products.size - self.sketch.rank) * forms / squares
        rounding = self.products.rounding * float(self.sketch.image_norms.sum())
        return _from_samples(samples, rounding, self.products.count)


class XTrace:
    """Hutch++ for every probe, with the range of the images of all others.

    Let Y = A W = Q R and let s_i be the unit vector along column i of R^-T, which is orthogonal to
    all columns of R but the i-th. Then Q (I - s_i s_i') Q' projects on the range of Y without its
    column i, and every estimate follows from small matrices: with F = A, or A'A if `squared`,
    those are R, Q'W, Q'FQ and Q'FW.
    """

    least = 6  # three probes: leaving out two must leave one

    def __init__(
        self, products: ScaledOperator, seed: int, *, squared: bool = False, grows: bool = False
    ) -> None:
        self.products = products
        self.squared = squared
        self.sketch = sketch_of(products, seed, keep_images=squared)

    def extend(self, num_products: int) -> None:
        """Make the sample as large as that many products allow."""
        self.sketch.extend(num_products // 2)

    def result(self) -> Estimate:
        """Return the estimate so far."""
        sketch = self.sketch
        left_out, dimension = sketch.left_out()
        inside, squares = sketch.probes_inside()
        triangle, norms = sketch.triangle, sketch.image_norms
        if self.squared:
            form = sketch.image_gram()
            crossed = sketch.compressed @ triangle
            whole = _column_dots(triangle, triangle)
            rounding = 2 * self.products.rounding * float((norms**2).sum())
        else:
            form = sketch.compressed
            crossed = triangle
            whole = _column_dots(inside, triangle)
            rounding = self.products.rounding * float(norms.sum())
        projections = _Projections(
            left_out=left_out,
            form=form,
            inside=inside,
            crossed=crossed,
            whole=whole,
            lengths=squares,
            dimension=dimension,
        )
        samples = projections.samples
        # Given all other probes each sample is right on average, so a product of two samples'
        # errors has the mean of that of their changes when the other's probe is left out.
        changes = samples - projections.samples_of_pairs()
        np.fill_diagonal(changes, 0.0)
        spread = float(((samples - samples.mean()) ** 2).sum())
        shared = float((changes * changes.T).sum())
        k = len(samples)
        error = float(np.sqrt(max(spread + shared, spread / 2) / (k * (k - 1))))
        return _estimate(
            float(samples.mean()),
            error,
            rounding,
            degrees=k - 1,
            num_products=self.products.count,
            squared=self.squared,
        )


@dataclass(frozen=True)
class _Projections:
    """The samples of k probes from small matrices; see `XTrace`. Columns are probes."""

    left_out: np.ndarray  # (k, k), s_i
    form: np.ndarray  # (k, k), Q'FQ
    inside: np.ndarray  # (k, k), Q'W
    crossed: np.ndarray  # (k, k), Q'FW
    whole: np.ndarray  # (k,), w'Fw
    lengths: np.ndarray  # (k,), w'w
    dimension: int  # of the complement of the range without one image

    # The probe i without its part in the range of the other images is u = w - Q kept.

    @cached_property
    def kept(self) -> np.ndarray:
        return self.inside - self.left_out * _column_dots(self.left_out, self.inside)

    @cached_property
    def pulled(self) -> np.ndarray:
        """Q'Fu."""
        return self.crossed - self.form @ self.kept

    @cached_property
    def forms(self) -> np.ndarray:
        """U'Fu."""
        return self.whole - _column_dots(self.kept, self.crossed + self.pulled)

    @cached_property
    def squares(self) -> np.ndarray:
        """U'u."""
        return self.lengths - _column_dots(self.kept, self.kept)

    @cached_property
    def captured(self) -> np.ndarray:
        """The trace of F in the range without one image."""
        return np.trace(self.form) - _column_dots(self.left_out, self.form @ self.left_out)

    @cached_property
    def samples(self) -> np.ndarray:
        """The estimate of each probe, with the range of all other images."""
        return self.captured + self.dimension * self.forms / self.squares

    def samples_of_pairs(self) -> np.ndarray:
        """Return the sample of probe i in column i with image j, too, out of the range, in row j.

        Beside s_i the direction b is out, which is s_j made orthogonal to s_i: the probe u has
        Qb b'Q'w more, its complement a dimension more, and the range b'Q'FQb less.
        """
        left_out, form = self.left_out, self.form
        cosines = left_out.T @ left_out
        sines = np.sqrt(np.clip(1 - cosines**2, 0.0, None))
        distinct = (sines > _SAME_DIRECTION) & (np.diag(cosines) > 0)

        def along_b(products: np.ndarray) -> np.ndarray:
            """Return b'x for columns x from all s_j'x."""
            numerator = products - cosines * np.diag(products)
            return np.divide(numerator, sines, out=np.zeros_like(numerator), where=distinct)

        within = left_out.T @ form @ left_out
        own = np.diag(within)
        numerator = own[:, np.newaxis] - cosines * (2 * within - cosines * own)
        dropped = np.divide(numerator, sines**2, out=np.zeros_like(numerator), where=distinct)
        beta = along_b(left_out.T @ self.inside)
        forms = self.forms + 2 * beta * along_b(left_out.T @ self.pulled) + beta**2 * dropped
        dimension = self.dimension + distinct
        return self.captured - dropped + dimension * forms / (self.squares + beta**2)


def _from_samples(
    samples: np.ndarray, rounding: float, num_products: int, squared: bool = False
) -> Estimate:
    """Average independent estimates."""
    error = float(samples.std(ddof=1)) / np.sqrt(len(samples))
    return _estimate(
        float(samples.mean()),
        error,
        rounding,
        degrees=len(samples) - 1,
        num_products=num_products,
        squared=squared,
    )


def _estimate(
    value: float,
    sampling: float,
    rounding: float,
    *,
    degrees: int,
    num_products: int,
    squared: bool,
) -> Estimate:
    """Put an estimate together; with `squared`, that of the root."""
    error = hypot(sampling, rounding)
    if squared:
        value = float(np.sqrt(max(value, 0.0)))
        error = error / (2 * value) if value else float(np.sqrt(error))
    return Estimate(value, error, num_products, degrees_of_freedom=degrees)


def _column_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("kn,kn->n", a, b)
