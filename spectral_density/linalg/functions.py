"""Traces of matrix functions by stochastic Lanczos quadrature, with both of its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.arguments import (
    as_real_square,
    block_product,
    integer,
    number,
    product_precision,
)
from spectral_density.linalg.estimates import Estimate
from spectral_density.linalg.quadrature import Quadrature, gauss_quadrature
from spectral_density.linalg.sampling import BLOCK_COLUMNS, DEFAULT_LIMIT, GROWTH, ROUNDING_UNITS
from spectral_density.linalg.sketch import ASYMMETRY
from spectral_density.linalg.tridiagonalization import Tridiagonalization, lanczos

DENSE_ROWS = 4096
"""Rows up to which all eigenvalues are computed where that takes no more products."""

# How far below `lower_bound` the prescribed node is put, as a share of the distance to -damping. A
# node on the bound itself would coincide with the eigenvalues there.
_BELOW_BOUND = 0.01


@dataclass(frozen=True)
class QuadratureEstimate(Estimate):
    """The trace of a function of an operator: both errors, that of sampling and of quadrature.

    The truth is about `standard_error` away on account of the random start vectors, and too low by
    up to `quadrature_error` on account of the finite order: Gauss quadrature of the functions here
    is an upper bound.
    """

    quadrature_error: float = 0.0  # not negative; see `log_determinant` for what it is
    order: int = 0  # Lanczos steps a draw
    num_draws: int = 0  # start vectors, or 0 where all eigenvalues were computed

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the t-interval of the sampling error, its lower end less `quadrature_error`.

        Args:
            level: probability that the t-interval holds the true value, above 0 and below 1.
        """
        lower, upper = super().interval(level)
        return lower - self.quadrature_error, upper

    def __str__(self) -> str:
        """Say the value to two digits of its error, and the quadrature's part."""
        text = super().__str__()
        if not self.quadrature_error:
            return text
        return f"{text}, quadrature error {self.quadrature_error:.1e}"


def log_determinant(
    operator: Any,
    /,
    damping: float,
    *,
    order: int = 80,
    num_draws: int = 10,
    lower_bound: float | None = None,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    reorthogonalize: Literal["full", "none"] = "full",
    progress: bool | None = None,
) -> QuadratureEstimate:
    """Estimate log det(A + damping I), the sum of log(lambda + damping) over all eigenvalues.

    Each random start vector v on the sphere gives n v' log(A + damping I) v by Gauss quadrature
    with `order` nodes; the average over the draws is unbiased up to the quadrature, and its
    standard error is that between the draws, with `num_draws - 1` degrees of freedom, and not less
    than the law of the start vectors gives for the spectrum that was seen.

    The quadrature errs for all draws alike. All even derivatives of the logarithm are negative, so
    that Gauss quadrature is too high, and less so at each step:

    - with `lower_bound`, `quadrature_error` is the difference to the Gauss-Radau rule with a node
      below all eigenvalues, which is too low: a bound, whatever the matrix;
    - without, the node is at zero, and it is a bound for positive semidefinite A. The difference to
      the rule with half as many nodes is taken where that is larger, and for A with eigenvalues
      below zero there is no more than these estimates: state a `lower_bound`.

    Rounding of the products moves eigenvalues by a share of the largest one. What that makes of the
    value belongs to `standard_error`; where damping is below that share, it is most of it.

    Args:
        operator: symmetric and real, shape (n, n).
        damping: not negative; A + damping I must be positive definite.
        order: Lanczos steps a draw, one product each; no more than n are done.
        num_draws: random start vectors, at least 2. Where n <= num_draws * order and n <= 4,096,
            the columns of the identity are multiplied instead, and the result is exact.
        lower_bound: a number above -damping that no eigenvalue is below, such as 0 for a positive
            semidefinite operator: a Gauss-Newton or Fisher matrix, A'A.
        tolerance: if given, draws are added until half the width of the 95 % interval is at most
            `tolerance * |value|`. If `quadrature_error` alone is more than that, no draws are
            added: a larger `order` is what helps.
        max_products: products to give up after, with a tolerance only; 10 times
            `num_draws * order` if not given.
        seed: seed of the start vectors; draw i is the same in a sample of any size.
        reorthogonalize: see `lanczos`; "none" needs three vectors of memory a draw.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        QuadratureEstimate with `value`, `standard_error` and `quadrature_error`.

    Raises:
        TypeError: if the operator is not real, or an argument has a wrong type.
        ValueError: if the operator is not square, an argument is out of its range, A + damping I
            has an eigenvalue that is not positive, or A is singular to rounding and not damped.
        FloatingPointError: if a product is not finite.

    References:
        Ubaru, Chen, Saad (2017), SIAM J. Matrix Anal. Appl. 38:1075.
        Golub, Meurant (2010), Matrices, Moments and Quadrature, chapters 6 and 11.
    """
    damping = number(damping, "damping", least=0.0)
    return _estimate(
        operator,
        lambda shifted: np.log(shifted),
        damping,
        order,
        num_draws,
        lower_bound,
        tolerance,
        max_products,
        seed,
        reorthogonalize,
        progress,
    )


def effective_dimension(
    operator: Any,
    /,
    damping: float,
    *,
    order: int = 80,
    num_draws: int = 10,
    lower_bound: float | None = None,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    reorthogonalize: Literal["full", "none"] = "full",
    progress: bool | None = None,
) -> QuadratureEstimate:
    """Estimate tr A (A + damping I)^-1, the number of eigenvalues that are not damped away.

    An eigenvalue well above the damping counts as 1, one well below as 0. Method, errors and
    arguments are those of `log_determinant`: all even derivatives of lambda / (lambda + damping)
    are negative, too.

    Args:
        operator: symmetric and real, shape (n, n).
        damping: positive, in the units of the eigenvalues; A + damping I must be positive
            definite.
        order: Lanczos steps a draw.
        num_draws: random start vectors, at least 2.
        lower_bound: a number above -damping that no eigenvalue is below, such as 0 for a positive
            semidefinite operator.
        tolerance: relative error to go on to.
        max_products: products to give up after, with a tolerance only.
        seed: seed of the start vectors.
        reorthogonalize: see `lanczos`.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        QuadratureEstimate with `value`, `standard_error` and `quadrature_error`.

    Raises:
        TypeError, ValueError, FloatingPointError: as `log_determinant` does.

    References:
        MacKay (1992), Neural Computation 4:415 (the number of well-determined parameters).
        Golub, Meurant (2010), Matrices, Moments and Quadrature, chapters 6 and 11.
    """
    damping = number(damping, "damping", above=0.0)
    return _estimate(
        operator,
        lambda shifted: 1.0 - damping / shifted,
        damping,
        order,
        num_draws,
        lower_bound,
        tolerance,
        max_products,
        seed,
        reorthogonalize,
        progress,
    )


_Function = Callable[[np.ndarray], np.ndarray]


def _estimate(
    operator: Any,
    function: _Function,
    damping: float,
    order: int,
    num_draws: int,
    lower_bound: float | None,
    tolerance: float | None,
    max_products: int | None,
    seed: int,
    reorthogonalize: Literal["full", "none"],
    progress: bool | None,
) -> QuadratureEstimate:
    """Estimate the trace of `function(A + damping I)`."""
    operator = as_real_square(operator)
    size = operator.shape[0]
    order = integer(order, "order", 1)
    draws = integer(num_draws, "num_draws", 2)
    seed = integer(seed, "seed", 0)
    if lower_bound is not None:
        lower_bound = number(lower_bound, "lower_bound", above=-damping)
    if reorthogonalize not in ("full", "none"):
        raise ValueError(f"reorthogonalize must be 'full' or 'none', got {reorthogonalize!r}.")
    if tolerance is not None:
        tolerance = number(tolerance, "tolerance", above=0.0)
    elif max_products is not None:
        raise ValueError(
            "max_products is where draws that are added up to a tolerance end: give a tolerance, "
            "or the number of draws as num_draws."
        )
    if size <= min(draws * order, DENSE_ROWS):
        return _judged(_exact(operator, function, damping), tolerance)
    order = min(order, size)
    limit = DEFAULT_LIMIT * draws
    if max_products is not None:
        limit = integer(max_products, "max_products", 2 * order) // order
    draws = min(draws, limit)

    rounding = ROUNDING_UNITS * product_precision(operator)
    rules: list[tuple[float, ...]] = []  # of each draw: see `_rules`
    while True:
        result = lanczos(
            operator,
            order,
            num_draws=draws - len(rules),
            first_draw=len(rules),
            seed=seed,
            reorthogonalize=reorthogonalize,
            keep_basis=False,
            progress=progress,
        )
        rules += _rules(result, function, damping, lower_bound, rounding)
        estimate = _judged(_average(np.array(rules), size, order, rounding), tolerance)
        if tolerance is None or estimate.converged or draws >= limit:
            return estimate
        if estimate.quadrature_error / 2 > tolerance * abs(estimate.value):
            return estimate
        used, draws = draws * order, min(ceil(GROWTH * draws), limit)
        if size <= min(draws * order, limit * order - used, DENSE_ROWS):
            estimate = _exact(operator, function, damping)
            return _judged(replace(estimate, num_products=used + size), tolerance)


def _average(rules: np.ndarray, size: int, order: int, rounding: float) -> QuadratureEstimate:
    values, errors, roundings, variances = rules.T
    count = len(values)
    # Few draws that all miss a rare eigenvalue agree with each other: the variance that the law of
    # the start vectors gives to what the rules show is the least there is.
    least = 2 / (size + 2) * float(variances.mean())
    sampling = size * np.sqrt(max(float(values.var(ddof=1)), least) / count)
    value = size * float(values.mean())
    # Of the eigenvalues, and of the products as such: the same for all draws.
    rounded = float(np.hypot(roundings.mean(), rounding * size * np.abs(values).mean()))
    return QuadratureEstimate(
        value=value,
        standard_error=float(np.hypot(sampling, rounded)),
        num_products=count * order,
        degrees_of_freedom=count - 1,
        quadrature_error=size * float(errors.mean()),
        order=order,
        num_draws=count,
    )


def _judged(estimate: QuadratureEstimate, tolerance: float | None) -> QuadratureEstimate:
    if tolerance is None:
        return estimate
    return replace(estimate, converged=bool(estimate.relative_error <= tolerance))


def _rules(
    result: Tridiagonalization,
    function: _Function,
    damping: float,
    lower_bound: float | None,
    rounding: float,
) -> Iterator[tuple[float, ...]]:
    """Yield v' f(A + damping I) v of each draw, how much too high it may be, and two more.

    These are the rounding of the trace, n times as much, and the variance of the function over
    the eigenvalues, the largest that any of the rules shows.
    """
    size = result.size
    for alpha, beta, residual in zip(result.alpha, result.beta, result.residual_norms, strict=True):
        gauss = gauss_quadrature(alpha, beta)
        norm = float(np.abs(gauss.nodes).max())
        shift = rounding * norm
        _check_positive(gauss.nodes[0], damping, "Ritz value", _negligible(size, rounding, norm))
        value = _apply(gauss, function, damping)
        others = _other_rules(alpha, beta, residual, gauss, damping, lower_bound, shift)
        error = max(abs(value - _apply(other, function, damping)) for other in others)
        counts = size * gauss.weights
        rounded = _rounding_error(gauss.nodes, counts, function, damping, shift)
        yield value, error, rounded, max(_variance(r, function, damping) for r in (gauss, *others))


def _other_rules(
    alpha: np.ndarray,
    beta: np.ndarray,
    residual: float,
    gauss: Quadrature,
    damping: float,
    lower_bound: float | None,
    shift: float,
) -> list[Quadrature]:
    """Return what the Gauss rule is held against: see `log_determinant`."""
    half = len(alpha) // 2
    others = []
    bound = lower_bound
    if bound is None:
        if not half:
            raise ValueError(
                "order is 1, which leaves nothing to estimate the quadrature's error from. Use a "
                "larger order, or state a lower_bound of the eigenvalues."
            )
        others.append(gauss_quadrature(alpha[:half], beta[: half - 1]))
        # That of a semidefinite matrix, if it is one; without damping, of one that is not singular
        # to rounding. Otherwise half of what the lowest Ritz value leaves.
        bound = 0.0 if damping else shift
        if not gauss.nodes[0] > bound:
            bound = (float(gauss.nodes[0]) - damping) / 2
    below = bound - _BELOW_BOUND * (bound + damping)
    return [*others, _radau(alpha, beta, residual, gauss, below)]


def _rounding_error(
    eigenvalues: np.ndarray,
    counts: np.ndarray | float,
    function: _Function,
    damping: float,
    shift: float,
) -> float:
    """Return what eigenvalues that rounding moved by up to `shift` make of a trace.

    Each is moved for itself, and all on average where the function is far from linear over that
    length. None is moved below zero, of which semidefinite matrices have none.
    """
    values = function(eigenvalues + damping)
    up = function(eigenvalues + damping + shift) - values
    lowest = np.minimum(eigenvalues + damping, damping) if damping else eigenvalues / 2
    down = function(np.maximum(eigenvalues + damping - shift, lowest)) - values
    moved = np.maximum(np.abs(up), np.abs(down))
    bias = np.abs(up + down) / 2
    return float(np.hypot(np.sqrt(np.sum(counts * moved**2)), np.sum(counts * bias)))


def _negligible(size: int, rounding: float, norm: float) -> float:
    """Return below what an eigenvalue may be zero: NumPy's measure of rank, or more."""
    return max(rounding, size * float(np.finfo(np.float64).eps)) * norm


def _apply(rule: Quadrature, function: _Function, damping: float) -> float:
    return float(rule.weights @ function(rule.nodes + damping))


def _variance(rule: Quadrature, function: _Function, damping: float) -> float:
    values = function(rule.nodes + damping)
    return float(rule.weights @ (values - rule.weights @ values) ** 2)


def _radau(
    alpha: np.ndarray, beta: np.ndarray, residual: float, gauss: Quadrature, node: float
) -> Quadrature:
    """Return the Gauss-Radau rule with one more node, a prescribed one below all eigenvalues.

    References:
        Golub (1973), SIAM Review 15:318, section 7.
    """
    if not gauss.nodes[0] > node:
        raise ValueError(
            f"The operator has an eigenvalue of at most {gauss.nodes[0]:.6g}, which is below "
            "lower_bound. State a bound that holds, or none."
        )
    if not residual:
        return gauss  # the start vector's space is exhausted: the rule is exact
    last = float(np.sum(gauss.last**2 / (gauss.nodes - node)))
    return gauss_quadrature(np.append(alpha, node + residual**2 * last), np.append(beta, residual))


def _exact(operator: LinearOperator, function: _Function, damping: float) -> QuadratureEstimate:
    """Sum over all eigenvalues of the dense matrix."""
    size = operator.shape[0]
    matrix = np.empty((size, size))
    for begin in range(0, size, BLOCK_COLUMNS):
        end = min(begin + BLOCK_COLUMNS, size)
        matrix[:, begin:end] = block_product(operator, np.eye(size, end - begin, -begin))
    asymmetry, norm = np.linalg.norm(matrix - matrix.T), np.linalg.norm(matrix)
    if asymmetry > max(ASYMMETRY, 10 * ROUNDING_UNITS * product_precision(operator)) * norm:
        raise ValueError(
            f"The operator is not symmetric: A and A' differ by {asymmetry / norm:.1e} of ||A||. "
            "Pass a symmetric one, such as (A + A') / 2."
        )
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    rounding = ROUNDING_UNITS * product_precision(operator)
    largest = float(np.abs(eigenvalues).max(initial=0.0))
    if size:
        _check_positive(eigenvalues[0], damping, "eigenvalue", _negligible(size, rounding, largest))
    return QuadratureEstimate(
        value=float(function(eigenvalues + damping).sum()),
        standard_error=_rounding_error(eigenvalues, 1.0, function, damping, rounding * largest),
        num_products=size,
        order=size,
    )


def _check_positive(smallest: float, damping: float, what: str, negligible: float) -> None:
    if not damping and abs(smallest) <= negligible:
        raise ValueError(
            f"A has the {what} {smallest:.6g}, which is zero to rounding, and is singular: a "
            "positive definite matrix is needed, and the determinant of this one is zero, or not "
            f"known. Use a damping, above {negligible:.1g} for digits that are not rounding."
        )
    if not smallest + damping > 0:
        raise ValueError(
            f"A + damping I must be positive definite, but A has the {what} {smallest:.6g} and "
            f"damping is {damping:g}. Use a damping above {-smallest:.6g}."
        )
