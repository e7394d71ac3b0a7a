"""Random samples that grow to a tolerance, and exact results where they cost no more products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, hypot, inf
from typing import Any, Protocol, TypeVar

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import (
    block_product,
    integer,
    number,
    product_error,
)
from spectral_density.linalg.dense import blocks, identity_products
from spectral_density.linalg.estimates import DiagonalEstimate, Estimate, QuadratureEstimate
from spectral_density.linalg.threads import blas_threads
from spectral_density.linalg.vectors import HostVectors, rounding_of, vectors_of

GROWTH = 1.5
"""Factor by which a sample grows when its error is still above the tolerance.

Each test of the error is a chance to stop on one that came out too small. A sample that grows by
a factor is tested seldom.
"""

DEFAULT_LIMIT = 10
"""`max_products` as a multiple of `num_products` where none is given."""

ROUNDING_UNITS = 10
"""What a product is off by at most, in units of its precision."""

_Result = TypeVar("_Result", Estimate, QuadratureEstimate, DiagonalEstimate)
_ResultOut = TypeVar("_ResultOut", Estimate, QuadratureEstimate, DiagonalEstimate, covariant=True)


@dataclass(frozen=True)
class Plan:
    """How large a sample is to begin with, and when it is large enough."""

    first: int
    tolerance: float | None  # largest relative error
    limit: int  # largest sample
    cost: int = 1  # products for each unit of the sample
    exact_rows: float = inf  # rows up to which all columns of the identity may be multiplied

    def prefers_exact(self, size: int, sample: int, used: int = 0) -> bool:
        """Return whether all columns of the identity take no more products than a sample."""
        affordable = min(sample * self.cost, self.limit * self.cost - used)
        return size <= min(affordable, self.exact_rows)

    def share_of(self, result: Estimate) -> float:
        """Return the largest error that meets the tolerance."""
        return inf if self.tolerance is None else self.tolerance * abs(result.value)

    def judged(self, result: _Result) -> _Result:
        """Return a result that says whether it meets the tolerance, if there is one."""
        if self.tolerance is None:
            return result
        return replace(result, converged=bool(result.relative_error <= self.tolerance))


def planned(num_products: Any, least: int, tolerance: Any, max_products: Any) -> Plan:
    """Return the plan that arguments ask for, which are checked."""
    first = integer(num_products, "num_products", least)
    if tolerance is None:
        if max_products is not None:
            raise ValueError(
                "max_products is where a sample that grows to a tolerance ends: give a tolerance, "
                "or the size of the sample as num_products."
            )
        return Plan(first, None, first)
    tolerance = number(tolerance, "tolerance", above=0.0)
    if max_products is None:
        return Plan(first, tolerance, DEFAULT_LIMIT * first)
    limit = integer(max_products, "max_products", least)
    return Plan(min(first, limit), tolerance, limit)


class ScaledOperator:
    """An operator that counts its products, and scales them by a power of two.

    The scale is that of the first block, so that no square under- or overflows.

    Attributes:
        vectors: what is computed with vectors that stay where the operator has them.
    """

    def __init__(self, operator: LinearOperator, bar: Any) -> None:
        self.operator = operator
        self.size = operator.shape[0]
        self.vectors = vectors_of(operator)
        rounding = ROUNDING_UNITS * rounding_of(operator, self.vectors)
        self.rounding = rounding + product_error(operator)
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

    def images(self, probes: Any) -> Any:
        """Return the products with vectors: rows of NumPy, or vectors where the operator has them.

        Args:
            probes: as `probes` returns them.
        """
        if isinstance(probes, np.ndarray):
            return self(probes)
        products, _ = self.vectors.products(self.operator, probes)
        self.count += len(probes)
        self.bar.update(len(probes))
        if not self.scale:
            self.scale = 2.0 ** np.floor(np.log2(self.vectors.peak(products) or 1.0))
        exponent = int(np.log2(self.scale))
        return [self.vectors.times_power(product, -exponent) for product in products]

    def probes(self, rows: np.ndarray) -> Any:
        """Return rows of the host as vectors of the operator; NumPy's as they are."""
        if isinstance(self.vectors, HostVectors):
            return rows
        return [self.vectors.to_engine(row) for row in rows]

    def blocks(self, begin: int, end: int) -> Iterator[range]:
        """Split a range of draws into those that are multiplied together."""
        return blocks(begin, end, self.size)


class Sampler(Protocol[_ResultOut]):
    """An estimator whose sample can be made larger."""

    def extend(self, num_products: int) -> None:
        """Make the sample as large as `num_products` products in all allow."""

    def result(self) -> _ResultOut:
        """Return the estimate so far."""


def run_sampler(
    operator: LinearOperator,
    plan: Plan,
    *,
    make_sampler: Callable[[ScaledOperator], Sampler[_Result]],
    exact: Callable[[ScaledOperator], _Result],
    description: str,
    progress: bool | None,
) -> _Result:
    """Sample as planned, or multiply the identity where that costs no more."""
    size = operator.shape[0]
    goal = plan.first if plan.tolerance is None else plan.limit
    total = min(goal, size) if size <= plan.first else goal
    with progress_bar(total, description, progress) as bar:
        products = ScaledOperator(operator, bar)
        if plan.prefers_exact(size, plan.first):
            return plan.judged(exact(products).scaled(products.scale))
        sampler = make_sampler(products)

        def estimate() -> _Result:
            with blas_threads(size):
                return sampler.result().scaled(products.scale)

        return grow_sample(
            plan,
            size,
            # A basis of all the space would leave no direction for the probes.
            extend=lambda sample: sampler.extend(min(sample, size - 1)),
            estimate=estimate,
            exact=lambda used: exact(products).scaled(products.scale),
        )


def grow_sample(
    plan: Plan,
    size: int,
    *,
    extend: Callable[[int], None],
    estimate: Callable[[], _Result],
    exact: Callable[[int], _Result],
    hopeless: Callable[[_Result], bool] = lambda result: False,
) -> _Result:
    """Estimate from a sample that grows until the tolerance or its limit is reached.

    Args:
        plan: sizes of the sample, and the tolerance.
        size: rows of the operator.
        extend: makes the sample as large as it is asked for.
        estimate: returns the result so far.
        exact: returns the exact result, given the number of products so far.
        hopeless: returns whether a larger sample would not help.
    """
    sample = plan.first
    extend(sample)
    result = plan.judged(estimate())
    while result.converged is False and sample < plan.limit and not hopeless(result):
        used = result.num_products
        sample = min(ceil(GROWTH * sample), plan.limit)
        if plan.prefers_exact(size, sample, used):
            return plan.judged(exact(used))
        extend(sample)
        larger = estimate()
        if larger.num_products == used:
            break
        result = plan.judged(larger)
    return result


def exact_trace(products: ScaledOperator) -> Estimate:
    """Add up the diagonal."""
    value = rounding = 0.0
    for draws, images in identity_products(products, products.size):
        value += float(images[np.arange(len(draws)), draws].sum())
        rounding += float(np.linalg.norm(images, axis=1).sum())
    return Estimate(value, products.rounding * rounding, products.count)


def exact_norm(products: ScaledOperator) -> Estimate:
    """Return the Frobenius norm of all columns."""
    norm = 0.0
    for _, images in identity_products(products, products.size):
        norm = hypot(norm, float(np.linalg.norm(images)))
    return Estimate(norm, products.rounding * norm, products.count)


def exact_diagonal(products: ScaledOperator) -> DiagonalEstimate:
    """Pick the diagonal from all columns."""
    values = np.zeros(products.size)
    for draws, images in identity_products(products, products.size):
        values[draws.start : draws.stop] = images[np.arange(len(draws)), draws]
    return DiagonalEstimate(values, products.rounding * np.abs(values), products.count)
