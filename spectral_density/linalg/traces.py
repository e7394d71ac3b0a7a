"""Traces, diagonals and Frobenius norms from products with random vectors, each with its error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil, floor, hypot, inf, log10
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from scipy import stats
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import (
    as_real_square,
    block_product,
    integer,
    number,
    product_precision,
    rounding_share,
    stream,
)
from spectral_density.linalg.threads import blas_threads

BLOCK_COLUMNS = 16
"""Probes that are multiplied at once at most: one pass over the data for all of them."""

BLOCK_BYTES = 1024**3
"""Bytes that one block of probes may take."""

GROWTH = 1.5
"""Factor by which a sample grows when its error is still above the tolerance.

Each look at the error is a chance to stop on one that came out too small. A sample that grows by
a factor is looked at seldom.
"""

DEFAULT_LIMIT = 10
"""`max_products` as a multiple of `num_products` where none is given."""

ROUNDING_UNITS = 10
"""What a product is off by at most, in units of its precision."""

_CONFIDENCE = 0.95
# An operator whose products differ from their transpose by more than this is not symmetric; it is
# far above what float32 networks show.
ASYMMETRY = 1e-3
# What probes are for, the last part of the key of their random streams.
_SKETCH, _RESIDUAL, _FRESH = 0, 1, 2
# Pairs of left-out directions nearer than this are one: all images but one are dependent.
_SAME_DIRECTION = 1e-4
# A direction is lost to rounding where Gram-Schmidt leaves this share of it in the basis.
_LOST = 0.1
_EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Estimate:
    """A number estimated from a random sample, with its standard error."""

    value: float
    standard_error: float  # of sampling and of the products' rounding, in the units of `value`
    num_products: int  # with the operator
    converged: bool | None = None  # whether a tolerance was met; None where none was asked for
    degrees_of_freedom: float = inf  # of the t-law of the error

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the two-sided confidence interval by Student's t-law.

        Args:
            level: probability that the interval holds the true value, above 0 and below 1.
        """
        half = _t_factor(level, self.degrees_of_freedom) * self.standard_error
        return self.value - half, self.value + half

    def _scaled(self, factor: float) -> Estimate:
        return replace(self, value=factor * self.value, standard_error=factor * self.standard_error)

    @property
    def relative_error(self) -> float:
        """Half the width of the 95 % interval over |value|: what a tolerance is compared with."""
        lower, upper = self.interval(_CONFIDENCE)
        return _ratio(0.5 * (upper - lower), abs(self.value))

    def __str__(self) -> str:
        """Say the value to two digits of its error."""
        unmet = ", tolerance not met" if self.converged is False else ""
        products = f"{self.num_products:,} product{'s' if self.num_products != 1 else ''}"
        return f"{_with_error(self.value, self.standard_error)} ({products}{unmet})"


@dataclass(frozen=True, eq=False)
class DiagonalEstimate:
    """The diagonal of an operator estimated from a random sample, with standard errors."""

    values: np.ndarray = field(repr=False)  # (n,)
    standard_errors: np.ndarray = field(repr=False)  # (n,), of each value, in its units
    num_products: int  # with the operator
    converged: bool | None = None  # whether a tolerance was met; None where none was asked for
    degrees_of_freedom: float = inf  # of the t-law of the errors

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return two-sided confidence limits, each of shape (n,), that hold entry by entry.

        Args:
            level: probability that an entry is between its limits, above 0 and below 1.
        """
        half = _t_factor(level, self.degrees_of_freedom) * self.standard_errors
        return self.values - half, self.values + half

    def _scaled(self, factor: float) -> DiagonalEstimate:
        return replace(
            self, values=factor * self.values, standard_errors=factor * self.standard_errors
        )

    @property
    def relative_error(self) -> float:
        """||half the widths of the 95 % intervals|| / ||values||, what a tolerance is held to."""
        half = _t_factor(_CONFIDENCE, self.degrees_of_freedom) * self.standard_errors
        return _ratio(float(np.linalg.norm(half)), float(np.linalg.norm(self.values)))

    def __str__(self) -> str:
        """Say the size, the error and the price."""
        unmet = ", tolerance not met" if self.converged is False else ""
        return (
            f"diagonal of {len(self.values):,} entries, relative error {self.relative_error:.2g} "
            f"({self.num_products:,} products{unmet})"
        )


def trace(
    operator: Any,
    /,
    *,
    method: Literal["xtrace", "hutch++", "hutchinson"] = "xtrace",
    num_products: int = 90,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Estimate:
    """Estimate the trace of a symmetric operator, or compute it where `num_products >= n`.

    All methods draw Gaussian probes and use their direction only, which is uniform on the sphere:
    the law of the estimate depends on the eigenvalues alone, not on the eigenvectors. (Random signs
    would be exact for a diagonal matrix, and could show no spread where there is an error.) All
    three are unbiased.

    - "hutchinson" averages n w'Aw / w'w; its variance for one probe is
      2 n / (n+2) (||A||_F^2 - (tr A)^2 / n).
    - "hutch++" spends a third of the products on an orthonormal basis Q of the range of A W, a
      third on the exact trace of A there, and a third on Hutchinson's estimate in the complement.
      Its standard error is that of the last part. Nothing of the others is left out: given Q, the
      first part is exact and the last unbiased.
    - "xtrace" uses each of `num_products // 2` probes for both: the estimate i is that of
      Hutch++ with the range of all images but the i-th and the i-th probe in the complement, all
      of them from one factorization. They depend on one another, more so the faster the
      eigenvalues decay: their spread alone, the paper's error estimate, is 1.4 times too small for
      eigenvalues i^-2. Here their covariances are added, without bias, from the estimates with
      neither of two images in the range, which the same factorization gives.

    The error's law is taken for Student's t. It is skewed where a few eigenvalues make up most of
    the variance, and a 95 % interval then holds the truth in some 90 % of cases.

    Args:
        operator: symmetric and real, shape (n, n).
        method: "xtrace", "hutch++" or "hutchinson".
        num_products: products with the operator, at least 6 (4 for "hutch++", 2 for
            "hutchinson"); of an odd number "xtrace" uses one less. With n or more, the columns of
            the identity are multiplied and the result is exact.
        tolerance: if given, the sample is made larger, by all products so far and more, until half
            the width of the 95 % interval is at most `tolerance * |value|`. `num_products` is then
            the size of the first sample.
        max_products: products to give up after, with a tolerance only; 10 times `num_products`
            if not given.
        seed: seed of the probes; probe i is the same in a sample of any size.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        Estimate with `value` and `standard_error`, in the units of the operator's entries.

    Raises:
        TypeError: if the operator is not real, or an argument has a wrong type.
        ValueError: if the operator is not square, or not symmetric as far as the products show
            it, or an argument is out of its range.
        FloatingPointError: if a product is not finite.

    References:
        Hutchinson (1990), Commun. Stat. Simul. Comput. 19:433.
        Meyer, Musco, Musco, Woodruff (2021), arXiv 2010.09649, algorithm 1 (Hutch++).
        Epperly, Tropp, Webber (2024), arXiv 2301.07825, section 2 (XTrace and its
        normalization).
    """
    samplers: dict[str, type[_Hutchinson | _HutchPlusPlus | _XTrace]] = {
        "hutchinson": _Hutchinson,
        "hutch++": _HutchPlusPlus,
        "xtrace": _XTrace,
    }
    sampler = _choice(samplers, method)
    operator = as_real_square(operator)
    plan = _plan(num_products, sampler.least, tolerance, max_products)
    seed = integer(seed, "seed", 0)
    return _run(
        operator,
        plan,
        lambda products: sampler(products, seed, grows=plan.tolerance is not None),
        _exact_trace,
        "Trace",
        progress,
    )


def frobenius_norm(
    operator: Any,
    /,
    *,
    method: Literal["xtrace", "hutchinson"] = "xtrace",
    num_products: int = 90,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Estimate:
    """Estimate the Frobenius norm of a symmetric operator; exact where `num_products >= n`.

    The trace of A'A is estimated, from products with A alone: ||A w||^2 is a quadratic form of
    A'A. With "xtrace" the products that sketch the range, and those with its basis, serve A'A as
    they are, so that it costs no more products than the trace of A. The standard error of the root
    follows by the delta method, E / (2 ||A||_F) for an error E of the square.

    Args:
        operator: symmetric and real, shape (n, n).
        method: "xtrace" or "hutchinson", see `trace`.
        num_products: products with the operator, at least 6 (2 for "hutchinson").
        tolerance: relative error to go on to, see `trace`.
        max_products: products to give up after, with a tolerance only.
        seed: seed of the probes.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        Estimate in the units of the operator's entries.

    Raises:
        TypeError, ValueError, FloatingPointError: as `trace` does.

    References:
        Hutchinson (1990), Commun. Stat. Simul. Comput. 19:433.
        Epperly, Tropp, Webber (2024), arXiv 2301.07825.
    """
    samplers: dict[str, type[_Hutchinson | _XTrace]] = {
        "hutchinson": _Hutchinson,
        "xtrace": _XTrace,
    }
    sampler = _choice(samplers, method)
    operator = as_real_square(operator)
    plan = _plan(num_products, sampler.least, tolerance, max_products)
    seed = integer(seed, "seed", 0)
    return _run(
        operator,
        plan,
        lambda products: sampler(products, seed, squared=True),
        _exact_norm,
        "Frobenius norm",
        progress,
    )


def diagonal(
    operator: Any,
    /,
    *,
    method: Literal["diag++", "hutchinson"] = "diag++",
    num_products: int = 90,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> DiagonalEstimate:
    """Estimate the diagonal of a symmetric operator, or compute it where `num_products >= n`.

    With Gaussian probes w the diagonal is a regression: (A w)_i has slope a_ii on w_i, and the rest
    of row i is Gaussian noise. So the t-interval of an entry is exact for every matrix, and a
    diagonal matrix is recovered exactly.

    - "hutchinson" is this regression.
    - "diag++" spends a third of the products on an orthonormal basis Q of the range of A W and a
      third on the diagonal of A there, which is exact; the regression is of the rest,
      (I - QQ') A (I - QQ'). It is far better where the eigenvalues decay, and has three times the
      variance where they do not. Given Q its intervals are exact, too.

    Args:
        operator: symmetric and real, shape (n, n).
        method: "diag++" or "hutchinson".
        num_products: products with the operator, at least 5 (3 for "hutchinson"). With n or
            more, the columns of the identity are multiplied and the result is exact.
        tolerance: if given, the sample is made larger until the norm of the half widths of all
            95 % intervals is at most `tolerance` times the norm of the diagonal.
        max_products: products to give up after, with a tolerance only; 10 times `num_products`
            if not given.
        seed: seed of the probes.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        DiagonalEstimate with `values` and `standard_errors`, each of shape (n,).

    Raises:
        TypeError, ValueError, FloatingPointError: as `trace` does.

    References:
        Bekas, Kokiopoulou, Saad (2007), Appl. Numer. Math. 57:1214.
        Baston, Nakatsukasa (2022), arXiv 2201.10684 (Diag++; here the rest is projected on both
        sides, which leaves less of it).
    """
    samplers: dict[str, type[_HutchinsonDiagonal | _DiagonalPlusPlus]] = {
        "hutchinson": _HutchinsonDiagonal,
        "diag++": _DiagonalPlusPlus,
    }
    sampler = _choice(samplers, method)
    operator = as_real_square(operator)
    plan = _plan(num_products, sampler.least, tolerance, max_products)
    seed = integer(seed, "seed", 0)
    return _run(
        operator,
        plan,
        lambda products: sampler(products, seed),
        _exact_diagonal,
        "Diagonal",
        progress,
    )


# Samples that grow --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How many products to begin with, and when to stop."""

    first: int
    tolerance: float | None
    limit: int


class _Products:
    """An operator that counts its products, and scales them by a power of two.

    The scale is that of the first block, so that no square under- or overflows.
    """

    def __init__(self, operator: LinearOperator, bar: Any) -> None:
        self.operator = operator
        self.size = operator.shape[0]
        self.rounding = ROUNDING_UNITS * product_precision(operator)
        self.count = 0
        self.scale = 0.0
        self.bar = bar

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Return the products with the rows, as rows."""
        result = block_product(self.operator, rows.T)
        self.count += len(rows)
        self.bar.update(len(rows))
        if not self.scale:
            self.scale = 2.0 ** np.floor(np.log2(np.abs(result).max(initial=0.0) or 1.0))
        return result.T / self.scale

    def blocks(self, begin: int, end: int) -> Iterator[range]:
        """Split a range of draws; the width depends on the size alone, so that results repeat."""
        width = max(1, min(BLOCK_COLUMNS, BLOCK_BYTES // (8 * max(self.size, 1))))
        for first in range(begin, end, width):
            yield range(first, min(first + width, end))


_Result = TypeVar("_Result", Estimate, DiagonalEstimate)
_ResultOut = TypeVar("_ResultOut", Estimate, DiagonalEstimate, covariant=True)


class _Sampler(Protocol[_ResultOut]):
    """An estimator whose sample can be made larger."""

    def extend(self, num_products: int) -> None:
        """Make the sample as large as `num_products` products in all allow."""

    def result(self) -> _ResultOut:
        """Return the estimate so far."""


def _run(
    operator: LinearOperator,
    plan: _Plan,
    make_sampler: Callable[[_Products], _Sampler[_Result]],
    exact: Callable[[_Products], _Result],
    description: str,
    progress: bool | None,
) -> _Result:
    """Sample as planned, or multiply the identity where that costs no more."""
    size = operator.shape[0]
    goal = plan.first if plan.tolerance is None else plan.limit
    total = min(goal, size) if size <= plan.first else goal
    with progress_bar(total, description, progress) as bar:
        products = _Products(operator, bar)
        if size <= plan.first:
            return _judged(exact(products), products.scale, plan)
        sampler = make_sampler(products)
        sample = plan.first
        sampler.extend(sample)
        result = _judged(_result(sampler, size), products.scale, plan)
        while result.converged is False and sample < plan.limit:
            sample = min(ceil(GROWTH * sample), plan.limit)
            if sample >= size:
                if products.count + size <= plan.limit:
                    return _judged(exact(products), products.scale, plan)
                sample = size - 1
            before = products.count
            sampler.extend(sample)
            if products.count == before:
                break
            result = _judged(_result(sampler, size), products.scale, plan)
        return result


def _result(sampler: _Sampler[_Result], size: int) -> _Result:
    with blas_threads(size):
        return sampler.result()


def _judged(result: _Result, scale: float, plan: _Plan) -> _Result:
    result = result._scaled(scale)
    if plan.tolerance is None:
        return result
    return replace(result, converged=bool(result.relative_error <= plan.tolerance))


def _exact_trace(products: _Products) -> Estimate:
    value = rounding = 0.0
    for draws, images in _identity_images(products):
        value += float(images[np.arange(len(draws)), draws].sum())
        rounding += float(np.linalg.norm(images, axis=1).sum())
    return Estimate(value, products.rounding * rounding, products.count)


def _exact_norm(products: _Products) -> Estimate:
    norm = 0.0
    for _, images in _identity_images(products):
        norm = hypot(norm, float(np.linalg.norm(images)))
    return Estimate(norm, products.rounding * norm, products.count)


def _exact_diagonal(products: _Products) -> DiagonalEstimate:
    values = np.zeros(products.size)
    for draws, images in _identity_images(products):
        values[draws.start : draws.stop] = images[np.arange(len(draws)), draws]
    return DiagonalEstimate(values, products.rounding * np.abs(values), products.count)


def _identity_images(products: _Products) -> Iterator[tuple[range, np.ndarray]]:
    """Yield the columns of the operator as rows, block by block, with their numbers."""
    for draws in products.blocks(0, products.size):
        rows = np.zeros((len(draws), products.size))
        rows[np.arange(len(draws)), draws] = 1.0
        yield draws, products(rows)


# Estimators ---------------------------------------------------------------------------------------


class _Hutchinson:
    """n w'Aw / w'w, or with `squared` n ||Aw||^2 / w'w, averaged over probes."""

    least = 2

    def __init__(
        self, products: _Products, seed: int, *, squared: bool = False, grows: bool = False
    ) -> None:
        self.products = products
        self.seed = seed
        self.squared = squared
        self.samples = np.zeros(0)
        self.sizes = np.zeros(0)  # ||Aw|| / ||w||, what rounding is relative to

    def extend(self, num_products: int) -> None:
        for draws in self.products.blocks(len(self.samples), num_products):
            probes = _gaussians(self.products.size, self.seed, draws, _SKETCH)
            images = self.products(probes)
            square = _row_dots(probes, probes)
            image_square = _row_dots(images, images)
            forms = image_square if self.squared else _row_dots(probes, images)
            self.samples = np.append(self.samples, self.products.size * forms / square)
            self.sizes = np.append(self.sizes, np.sqrt(image_square / square))

    def result(self) -> Estimate:
        size = float(self.sizes.mean())
        rounding = self.products.size * self.products.rounding * size
        if self.squared:
            rounding *= 2 * size
        return _from_samples(self.samples, rounding, self.products.count, self.squared)


class _HutchPlusPlus:
    """The exact trace in the range of a sketch, plus Hutchinson's estimate in its complement."""

    least = 4

    def __init__(self, products: _Products, seed: int, *, grows: bool = False) -> None:
        self.products = products
        self.seed = seed
        self.sketch = _Sketch(products, seed, keep_images=grows)
        # For residual probes u, orthogonal to the first columns of Q (those at their time):
        self.forms = np.zeros(0)  # u'Au
        self.squares = np.zeros(0)  # u'u
        self.inside = np.zeros((0, 0))  # Q'u, zero along those first columns
        self.crossed = np.zeros((0, 0))  # Q'Au, the same rows as zero
        self.stages: list[tuple[range, int]] = []  # residual draws, number of those columns

    def extend(self, num_products: int) -> None:
        known = self.sketch.rank
        count = len(self.forms)
        rank = _sketch_rank(num_products, known, max(count, 2))
        self.sketch.extend(rank)
        self.inside = _padded(self.inside, rank, count)
        self.crossed = _padded(self.crossed, rank, count)
        for draws, columns in self.stages:
            for part in self.products.blocks(draws.start, draws.stop):
                probes = self._residual_probes(part, columns)
                where = slice(known, rank), slice(part.start, part.stop)
                with blas_threads(self.products.size):
                    self.inside[where] = self.sketch.basis[known:] @ probes.T
                    self.crossed[where] = self.sketch.images[known:] @ probes.T
        draws = range(count, num_products - 2 * rank)
        for part in self.products.blocks(draws.start, draws.stop):
            probes = self._residual_probes(part, rank)
            images = self.products(probes)
            self.forms = np.append(self.forms, _row_dots(probes, images))
            self.squares = np.append(self.squares, _row_dots(probes, probes))
        self.inside = _padded(self.inside, rank, len(self.forms))
        self.crossed = _padded(self.crossed, rank, len(self.forms))
        self.stages.append((draws, rank))

    def _residual_probes(self, draws: range, columns: int) -> np.ndarray:
        probes = _gaussians(self.products.size, self.seed, draws, _RESIDUAL)
        with blas_threads(self.products.size):
            return _complement(probes, self.sketch.basis[:columns])

    def result(self) -> Estimate:
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


class _XTrace:
    """Hutch++ for every probe, with the range of the images of all others.

    Let Y = A W = Q R and let s_i be the unit vector along column i of R^-T, which is orthogonal to
    all columns of R but the i-th. Then Q (I - s_i s_i') Q' projects on the range of Y without its
    column i, and every estimate follows from small matrices: with F = A, or A'A if `squared`,
    those are R, Q'W, Q'FQ and Q'FW.
    """

    least = 6  # three probes: leaving out two must leave one

    def __init__(
        self, products: _Products, seed: int, *, squared: bool = False, grows: bool = False
    ) -> None:
        self.products = products
        self.squared = squared
        self.sketch = _Sketch(products, seed, keep_images=squared)

    def extend(self, num_products: int) -> None:
        self.sketch.extend(num_products // 2)

    def result(self) -> Estimate:
        sketch = self.sketch
        left_out, dimension = sketch.left_out()
        inside, squares = sketch.probes_inside()
        triangle, norms = sketch.triangle, sketch.image_norms
        if self.squared:
            form = sketch.images @ sketch.images.T
            crossed = sketch.compressed @ triangle
            whole = _column_dots(triangle, triangle)
            rounding = 2 * self.products.rounding * float((norms**2).sum())
        else:
            form = sketch.compressed
            crossed = triangle
            whole = _column_dots(inside, triangle)
            rounding = self.products.rounding * float(norms.sum())
        # The probe i without its part in the range of the other images is u = w - Q kept.
        kept = inside - left_out * _column_dots(left_out, inside)
        pulled = crossed - form @ kept  # Q'Fu
        forms = whole - _column_dots(kept, crossed + pulled)  # u'Fu
        squares = squares - _column_dots(kept, kept)  # u'u
        captured = np.trace(form) - _column_dots(left_out, form @ left_out)
        samples = captured + dimension * forms / squares

        pairs = _leave_two_out(left_out, form, inside, pulled, forms, squares, captured, dimension)
        # Given all other probes each sample is right on average, so a product of two samples'
        # errors has the mean of that of their changes when the other's probe goes.
        changes = samples - pairs
        np.fill_diagonal(changes, 0.0)
        spread = float(((samples - samples.mean()) ** 2).sum())
        shared = float((changes * changes.T).sum())
        k = len(samples)
        error = float(np.sqrt(max(spread + shared, spread / 2) / (k * (k - 1))))
        return _estimate(
            float(samples.mean()), error, rounding, k - 1, self.products.count, self.squared
        )


def _leave_two_out(
    left_out: np.ndarray,
    form: np.ndarray,
    inside: np.ndarray,
    pulled: np.ndarray,
    forms: np.ndarray,
    squares: np.ndarray,
    captured: np.ndarray,
    dimension: int,
) -> np.ndarray:
    """Return the sample of probe i in column i with image j, too, out of the range, in row j.

    Beside s_i the direction b is out, which is s_j made orthogonal to s_i: the probe u has Qb b'Q'w
    more, its complement a dimension more, and the range b'Q'FQb less. The arguments are those of
    the samples themselves, see `_XTrace`.
    """
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
    beta = along_b(left_out.T @ inside)
    pair_forms = forms + 2 * beta * along_b(left_out.T @ pulled) + beta**2 * dropped
    return captured - dropped + (dimension + distinct) * pair_forms / (squares + beta**2)


class _HutchinsonDiagonal:
    """The regression of each entry of A w on that of w."""

    least = 3

    def __init__(self, products: _Products, seed: int) -> None:
        self.products = products
        self.seed = seed
        self.line = _Regression(products.size)

    def extend(self, num_products: int) -> None:
        for draws in self.products.blocks(self.line.count, num_products):
            probes = _gaussians(self.products.size, self.seed, draws, _RESIDUAL)
            self.line.add(probes, self.products(probes))

    def result(self) -> DiagonalEstimate:
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


class _DiagonalPlusPlus:
    """The diagonal of A in the range of a sketch, and the regression for what is left of A.

    With P = QQ', A = PA + AP - PAP + (I - P) A (I - P).
    """

    least = 5

    def __init__(self, products: _Products, seed: int) -> None:
        self.products = products
        self.seed = seed
        self.sketch = _Sketch(products, seed, keep_images=True)
        self.images = np.zeros((0, products.size))  # of residual probes, A (I - P) w

    def extend(self, num_products: int) -> None:
        size, known, count = self.products.size, self.sketch.rank, len(self.images)
        rank = _sketch_rank(num_products, known, max(count, 3))
        old_basis = self.sketch.basis
        self.sketch.extend(rank)
        basis, images = self.sketch.basis[known:], self.sketch.images[known:]
        for part in self.products.blocks(0, count if rank > known else 0):
            # The columns that are new to the basis come off what was orthogonal to the old ones.
            probes = _gaussians(size, self.seed, part, _RESIDUAL)
            with blas_threads(size):
                probes = _complement(probes, old_basis)
                self.images[part.start : part.stop] -= (probes @ basis.T) @ images
        self.images = _padded(self.images, num_products - 2 * rank, size)
        for part in self.products.blocks(count, len(self.images)):
            probes = _gaussians(size, self.seed, part, _RESIDUAL)
            with blas_threads(size):
                probes = _complement(probes, self.sketch.basis)
            self.images[part.start : part.stop] = self.products(probes)

    def result(self) -> DiagonalEstimate:
        size, basis, images = self.products.size, self.sketch.basis, self.sketch.images
        line = _Regression(size)
        for part in self.products.blocks(0, len(self.images)):
            rest = _complement(self.images[part.start : part.stop], basis)
            line.add(_gaussians(size, self.seed, part, _RESIDUAL), rest)
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


class _Sketch:
    """An orthonormal basis of the range of A W, and A within it, that grow by more probes W.

    The probes are not kept: they are drawn again when they are needed. Vectors are rows.
    """

    def __init__(self, products: _Products, seed: int, *, keep_images: bool) -> None:
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
        return len(self.basis)

    def extend(self, rank: int) -> None:
        """Add probes up to a number; two products each."""
        known = self.rank
        self.basis = _padded(self.basis, rank, self.products.size)
        if self.keep_images:
            self.images = _padded(self.images, rank, self.products.size)
        self.triangle = _padded(self.triangle, rank, rank)
        self.compressed = _padded(self.compressed, rank, rank)
        for draws in self.products.blocks(known, rank):
            begin, end = draws.start, draws.stop
            probes = _gaussians(self.products.size, self.seed, draws, _SKETCH)
            images = self.products(probes)
            with blas_threads(self.products.size):
                rows = _orthonormal(images, self.basis[:begin], partial(self._fresh, draws))
                self.basis[begin:end] = rows
                self.triangle[:end, begin:end] = self.basis[:end] @ images.T
            images = self.products(rows)
            with blas_threads(self.products.size):
                forms = self.basis[:end] @ images.T
            self.compressed[:begin, begin:end] = forms[:begin]
            self.compressed[begin:end, :begin] = forms[:begin].T
            self.compressed[begin:end, begin:end] = (forms[begin:] + forms[begin:].T) / 2
            self.image_norms = np.append(self.image_norms, np.linalg.norm(images, axis=1))
            self._check_symmetry(forms[begin:])
            if self.keep_images:
                self.images[begin:end] = images

    def _fresh(self, draws: range) -> np.ndarray:
        return _gaussians(self.products.size, self.seed, draws, _FRESH)

    def _check_symmetry(self, corner: np.ndarray) -> None:
        off = float(np.linalg.norm(corner - corner.T))
        size = float(np.linalg.norm(self.image_norms))
        if off <= max(ASYMMETRY, 10 * self.products.rounding) * size:
            return
        # A matrix that is zero but for rounding is not symmetric, and its estimate not wrong.
        if off > 10 * rounding_share(self.products.operator, self.basis[-1]) * size:
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
            probes = _gaussians(self.products.size, self.seed, draws, _SKETCH)
            where = slice(draws.start, draws.stop)
            inside[:, where] = self.basis @ probes.T
            squares[where] = _row_dots(probes, probes)
        return inside, squares


def _orthonormal(
    vectors: np.ndarray, basis: np.ndarray, fresh: Callable[[], np.ndarray]
) -> np.ndarray:
    """Return orthonormal rows that extend orthonormal ones by the span of others.

    Args:
        vectors: shape (b, n); they may be dependent or zero.
        basis: orthonormal rows, shape (k, n).
        fresh: returns random rows, shape (b, n), for directions that do not exist.
    """

    def off_basis(columns: np.ndarray) -> np.ndarray:
        return columns - basis.T @ (basis @ columns)

    columns = off_basis(vectors.T)
    rows = np.linalg.qr(columns)[0]
    # What is left of a dependent vector is rounding, and that can lie in the basis itself.
    lost = np.linalg.norm(basis @ rows, axis=0) > _LOST
    if lost.any():
        columns[:, lost] = fresh()[lost].T
        rows = np.linalg.qr(off_basis(columns))[0]
    return np.linalg.qr(off_basis(rows))[0].T


# Small parts --------------------------------------------------------------------------------------


def _gaussians(size: int, seed: int, draws: range, purpose: int) -> np.ndarray:
    """Return standard normal probes as rows; each has its own stream."""
    return np.stack([stream(seed, draw, purpose).standard_normal(size) for draw in draws])


def _complement(rows: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Return rows without their parts along the orthonormal rows of a basis."""
    return rows - (rows @ basis.T) @ basis


def _sketch_rank(num_products: int, known: int, others: int) -> int:
    """Return the rank that takes two thirds of the products, and never a probe from the others."""
    return max(known, min(num_products // 3, (num_products - others) // 2))


def _from_samples(
    samples: np.ndarray, rounding: float, num_products: int, squared: bool = False
) -> Estimate:
    """Average independent estimates."""
    error = float(samples.std(ddof=1)) / np.sqrt(len(samples))
    degrees = len(samples) - 1
    return _estimate(float(samples.mean()), error, rounding, degrees, num_products, squared)


def _estimate(
    value: float, sampling: float, rounding: float, degrees: int, num_products: int, squared: bool
) -> Estimate:
    """Put an estimate together; with `squared`, that of the root."""
    error = hypot(sampling, rounding)
    if squared:
        value = float(np.sqrt(max(value, 0.0)))
        error = error / (2 * value) if value else float(np.sqrt(error))
    return Estimate(value, error, num_products, degrees_of_freedom=degrees)


def _row_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("kn,kn->k", a, b)


def _column_dots(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.einsum("kn,kn->n", a, b)


def _padded(array: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return a copy with zeros below and at the right; the array itself if it has that shape."""
    if array.shape == (rows, columns):
        return array
    result = np.zeros((rows, columns))
    result[: array.shape[0], : array.shape[1]] = array
    return result


_Kind = TypeVar("_Kind")


def _choice(kinds: dict[str, _Kind], method: Any) -> _Kind:
    if not isinstance(method, str) or method not in kinds:
        raise ValueError(f"method must be one of {list(kinds)}, got {method!r}.")
    return kinds[method]


def _plan(num_products: Any, least: int, tolerance: Any, max_products: Any) -> _Plan:
    first = integer(num_products, "num_products", least)
    if tolerance is None:
        if max_products is not None:
            raise ValueError(
                "max_products is where a sample that grows to a tolerance ends: give a tolerance, "
                "or the size of the sample as num_products."
            )
        return _Plan(first, None, first)
    tolerance = number(tolerance, "tolerance", above=0.0)
    if max_products is None:
        return _Plan(first, tolerance, DEFAULT_LIMIT * first)
    limit = integer(max_products, "max_products", least)
    return _Plan(min(first, limit), tolerance, limit)


def _t_factor(level: float, degrees: float) -> float:
    level = number(level, "level", above=0.0)
    if not level < 1:
        raise ValueError(f"level must be below 1, got {level!r}.")
    return float(stats.t.isf((1 - level) / 2, degrees))


def _ratio(error: float, size: float) -> float:
    if size:
        return error / size
    return inf if error else 0.0


def _with_error(value: float, error: float) -> str:
    """Write a value to the second digit of its error."""
    if not error:
        return f"{value:.10g} +- 0"
    largest = max(abs(value), error)
    power = floor(log10(largest))
    if -4 <= power <= 6:
        power = 0
    scale = 10.0**power
    digits = max(0, power + 1 - floor(log10(error)))
    if digits > 12:  # rounding, not sampling
        return f"{value:.12g} +- {error:.1e}"
    text = f"{value / scale:.{digits}f} +- {error / scale:.{digits}f}"
    return f"({text})e{power:+03d}" if power else text
