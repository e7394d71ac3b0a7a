"""Stochastic estimates of traces, diagonals and Frobenius norms, each with its error.

Where the operator has vectors on a device (`linalg.vectors`), probes and a basis stay there.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from spectral_density.linalg.arguments import as_real_square, integer
from spectral_density.linalg.diagonal_samplers import (
    DiagonalPlusPlus,
    HutchinsonDiagonal,
    diagonal_sampler,
)
from spectral_density.linalg.estimates import DiagonalEstimate, Estimate
from spectral_density.linalg.sampling import (
    exact_diagonal,
    exact_norm,
    exact_trace,
    planned,
    run_sampler,
)
from spectral_density.linalg.trace_samplers import Hutchinson, HutchPlusPlus, XTrace


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
    samplers: dict[str, type[Hutchinson | HutchPlusPlus | XTrace]] = {
        "hutchinson": Hutchinson,
        "hutch++": HutchPlusPlus,
        "xtrace": XTrace,
    }
    sampler = _choice(samplers, method)
    operator = as_real_square(operator)
    plan = planned(num_products, sampler.least, tolerance, max_products)
    seed = integer(seed, "seed", 0)
    return run_sampler(
        operator,
        plan,
        make_sampler=lambda products: sampler(products, seed, grows=plan.tolerance is not None),
        exact=exact_trace,
        description="Trace",
        progress=progress,
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
    samplers: dict[str, type[Hutchinson | XTrace]] = {
        "hutchinson": Hutchinson,
        "xtrace": XTrace,
    }
    sampler = _choice(samplers, method)
    operator = as_real_square(operator)
    plan = planned(num_products, sampler.least, tolerance, max_products)
    seed = integer(seed, "seed", 0)
    return run_sampler(
        operator,
        plan,
        make_sampler=lambda products: sampler(products, seed, squared=True),
        exact=exact_norm,
        description="Frobenius norm",
        progress=progress,
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
    samplers: dict[str, type[HutchinsonDiagonal | DiagonalPlusPlus]] = {
        "hutchinson": HutchinsonDiagonal,
        "diag++": DiagonalPlusPlus,
    }
    sampler = _choice(samplers, method)
    operator = as_real_square(operator)
    plan = planned(num_products, sampler.least, tolerance, max_products)
    seed = integer(seed, "seed", 0)
    return run_sampler(
        operator,
        plan,
        make_sampler=lambda products: diagonal_sampler(sampler, products, seed),
        exact=exact_diagonal,
        description="Diagonal",
        progress=progress,
    )


_Kind = TypeVar("_Kind")


def _choice(kinds: dict[str, _Kind], method: Any) -> _Kind:
    if not isinstance(method, str) or method not in kinds:
        raise ValueError(f"method must be one of {list(kinds)}, got {method!r}.")
    return kinds[method]
