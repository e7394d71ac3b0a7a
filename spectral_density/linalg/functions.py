"""Traces of matrix functions by stochastic Lanczos quadrature, with both its errors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.arguments import (
    as_real_square,
    integer,
    number,
    product_error,
    product_precision,
)
from spectral_density.linalg.dense import dense_matrix
from spectral_density.linalg.estimates import QuadratureEstimate
from spectral_density.linalg.function_quadrature import DampedFunction, FunctionQuadrature
from spectral_density.linalg.sampling import DEFAULT_LIMIT, ROUNDING_UNITS, Plan, grow_sample
from spectral_density.linalg.sketch import ASYMMETRY
from spectral_density.linalg.tridiagonalization import lanczos
from spectral_density.linalg.vectors import rounding_of, vectors_of

DENSE_ROWS = 4096
"""Rows up to which all eigenvalues are computed where that takes no more products."""


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
        DampedFunction(np.log, damping),
        order=order,
        num_draws=num_draws,
        lower_bound=lower_bound,
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
        reorthogonalize=reorthogonalize,
        progress=progress,
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
        DampedFunction(lambda shifted: 1.0 - damping / shifted, damping),
        order=order,
        num_draws=num_draws,
        lower_bound=lower_bound,
        tolerance=tolerance,
        max_products=max_products,
        seed=seed,
        reorthogonalize=reorthogonalize,
        progress=progress,
    )


def _estimate(
    operator: Any,
    function: DampedFunction,
    *,
    order: int,
    num_draws: int,
    lower_bound: float | None,
    tolerance: float | None,
    max_products: int | None,
    seed: int,
    reorthogonalize: Literal["full", "none"],
    progress: bool | None,
) -> QuadratureEstimate:
    """Estimate the trace of `function(A)`."""
    operator = as_real_square(operator)
    size = operator.shape[0]
    order = integer(order, "order", 1)
    draws = integer(num_draws, "num_draws", 2)
    seed = integer(seed, "seed", 0)
    if lower_bound is not None:
        lower_bound = number(lower_bound, "lower_bound", above=-function.damping)
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
        return Plan(draws, tolerance, draws).judged(_exact(operator, function))
    order = min(order, size)
    limit = DEFAULT_LIMIT * draws
    if max_products is not None:
        limit = integer(max_products, "max_products", 2 * order) // order
    plan = Plan(min(draws, limit), tolerance, limit, cost=order, exact_rows=DENSE_ROWS)

    rounding = ROUNDING_UNITS * rounding_of(operator, vectors_of(operator))
    rounding += product_error(operator)
    quadrature = FunctionQuadrature(function, size, lower_bound, rounding)

    def extend(num_draws: int) -> None:
        quadrature.add(
            lanczos(
                operator,
                order,
                num_draws=num_draws - quadrature.num_draws,
                first_draw=quadrature.num_draws,
                seed=seed,
                reorthogonalize=reorthogonalize,
                keep_basis=False,
                progress=progress,
            )
        )

    return grow_sample(
        plan,
        size,
        extend=extend,
        estimate=lambda: _average(quadrature, order),
        exact=lambda used: _exact(operator, function, used),
        # Draws do not make the error of the quadrature any smaller.
        hopeless=lambda estimate: estimate.quadrature_error / 2 > plan.share_of(estimate),
    )


def _average(quadrature: FunctionQuadrature, order: int) -> QuadratureEstimate:
    size, rounding = quadrature.size, quadrature.rounding
    values, errors, roundings, variances = np.array(quadrature.rules).T
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


def _exact(operator: LinearOperator, function: DampedFunction, used: int = 0) -> QuadratureEstimate:
    """Sum over all eigenvalues of the dense matrix, after `used` products for an estimate."""
    size = operator.shape[0]
    matrix = dense_matrix(operator)
    asymmetry, norm = np.linalg.norm(matrix - matrix.T), np.linalg.norm(matrix)
    rounding = ROUNDING_UNITS * product_precision(operator)
    if asymmetry > max(ASYMMETRY, 10 * rounding, 2 * product_error(operator)) * norm:
        raise ValueError(
            f"The operator is not symmetric: A and A' differ by {asymmetry / norm:.1e} of ||A||. "
            "Pass a symmetric one, such as (A + A') / 2."
        )
    eigenvalues = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    rounding += product_error(operator)
    largest = float(np.abs(eigenvalues).max(initial=0.0))
    if size:
        function.check_positive(eigenvalues[0], "eigenvalue", size, rounding, largest)
    return QuadratureEstimate(
        value=float(function(eigenvalues).sum()),
        standard_error=function.rounding_error(eigenvalues, 1.0, rounding * largest),
        num_products=used + size,
        order=size,
    )
