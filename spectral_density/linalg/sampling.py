"""Samples that grow to a tolerance, and the exact result where that costs no more products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil, hypot
from typing import Any, Protocol, TypeVar

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import block_product, integer, number, product_precision
from spectral_density.linalg.estimates import DiagonalEstimate, Estimate
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

_Result = TypeVar("_Result", Estimate, DiagonalEstimate)
_ResultOut = TypeVar("_ResultOut", Estimate, DiagonalEstimate, covariant=True)


@dataclass(frozen=True)
class Plan:
    """How many products to begin with, and when to stop."""

    first: int
    tolerance: float | None
    limit: int


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


class Products:
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


class Sampler(Protocol[_ResultOut]):
    """An estimator whose sample can be made larger."""

    def extend(self, num_products: int) -> None:
        """Make the sample as large as `num_products` products in all allow."""

    def result(self) -> _ResultOut:
        """Return the estimate so far."""


def run_sampler(
    operator: LinearOperator,
    plan: Plan,
    make_sampler: Callable[[Products], Sampler[_Result]],
    exact: Callable[[Products], _Result],
    description: str,
    progress: bool | None,
) -> _Result:
    """Sample as planned, or multiply the identity where that costs no more."""
    size = operator.shape[0]
    goal = plan.first if plan.tolerance is None else plan.limit
    total = min(goal, size) if size <= plan.first else goal
    with progress_bar(total, description, progress) as bar:
        products = Products(operator, bar)
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


def _result(sampler: Sampler[_Result], size: int) -> _Result:
    with blas_threads(size):
        return sampler.result()


def _judged(result: _Result, scale: float, plan: Plan) -> _Result:
    result = result.scaled(scale)
    if plan.tolerance is None:
        return result
    return replace(result, converged=bool(result.relative_error <= plan.tolerance))


def exact_trace(products: Products) -> Estimate:
    """Add up the diagonal."""
    value = rounding = 0.0
    for draws, images in _identity_images(products):
        value += float(images[np.arange(len(draws)), draws].sum())
        rounding += float(np.linalg.norm(images, axis=1).sum())
    return Estimate(value, products.rounding * rounding, products.count)


def exact_norm(products: Products) -> Estimate:
    """Return the Frobenius norm of all columns."""
    norm = 0.0
    for _, images in _identity_images(products):
        norm = hypot(norm, float(np.linalg.norm(images)))
    return Estimate(norm, products.rounding * norm, products.count)


def exact_diagonal(products: Products) -> DiagonalEstimate:
    """Pick the diagonal from all columns."""
    values = np.zeros(products.size)
    for draws, images in _identity_images(products):
        values[draws.start : draws.stop] = images[np.arange(len(draws)), draws]
    return DiagonalEstimate(values, products.rounding * np.abs(values), products.count)


def _identity_images(products: Products) -> Iterator[tuple[range, np.ndarray]]:
    """Yield the columns of the operator as rows, block by block, with their numbers."""
    for draws in products.blocks(0, products.size):
        rows = np.zeros((len(draws), products.size))
        rows[np.arange(len(draws)), draws] = 1.0
        yield draws, products(rows)
