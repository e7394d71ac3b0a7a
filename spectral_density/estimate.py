"""Stochastic Lanczos quadrature: the spectrum of an operator, of given size or to a tolerance."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from spectral_density._arguments import explained
from spectral_density._progress import progress_bar
from spectral_density.checkpoint import recorded_problem, workers_of
from spectral_density.linalg.arguments import as_real_square, integer, number
from spectral_density.linalg.lanczos_options import (
    basis_vectors,
    checked_basis_dtype,
    checked_block,
)
from spectral_density.linalg.lockstep import GROUP_BYTES, default_draws_at_once
from spectral_density.linalg.tridiagonalization import LanczosStep
from spectral_density.spectrum.accuracy import Ending
from spectral_density.spectrum.draws import Draws
from spectral_density.spectrum.plans import (
    FIRST_DRAWS,
    LEAST_STEPS,
    Limits,
    add_by_count,
    add_to_tolerance,
    add_within,
)
from spectral_density.spectrum.spectrum import Spectrum

ORDER = 90
"""Lanczos steps of a draw by default."""

NUM_DRAWS = 10
"""Start vectors by default, or the most of them where their number is chosen."""

BLOCK = 2
"""Start vectors of a block where that is chosen."""

# Products for which all eigenvalues are computed where nothing is asked for.
_EXACT_PRODUCTS = 600
# Where a budget of products is spent best on a wider block than `BLOCK`, see `_block_within`.
_WIDE_BLOCK, _WIDE_BLOCK_FROM, _MANY_EIGENVALUES = 4, 128, 1000


@explained
def estimate_spectrum(
    operator: Any,
    /,
    order: int | None = None,
    num_draws: int | None = None,
    *,
    block: int | None = None,
    eigenpairs: int = 0,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    reorthogonalize: Literal["full", "none"] = "full",
    draws_at_once: int | None = None,
    basis_dtype: Any = None,
    basis: Literal["memory", "host", "disk"] = "memory",
    checkpoint: str | os.PathLike[str] | None = None,
    check: bool = True,
    progress: bool | None = None,
    callback: Callable[[LanczosStep], None] | None = None,
) -> Spectrum:
    """Estimate the eigenvalue density of a symmetric operator by stochastic Lanczos quadrature.

    What is not given is chosen, and `Spectrum.choice` says what and why. Without `num_draws` there
    are two start vectors, which share a Krylov space, and more only where so few eigenvalues are
    within a kernel width that two would leave the height of the density uncertain by more than 5 %:
    ten at most. A network of 1e5 weights takes two.

    With a `tolerance` the run makes as many steps and draws as that takes. What is held against it
    is `Spectrum.accuracy`: Wasserstein-1 distances (the area between two cumulative distributions)
    as shares of the range of the eigenvalues. The first draw or two make steps until the
    distribution at this order differs from that at half of it by no more than half the tolerance,
    or by what the width of the band leaves. Then draws of that order are added until this and the
    share of the draws are no more than the tolerance together; the true distance is then within it
    for nearly all seeds. `Spectrum.ended_by` says whether that was met or which bound came first.
    Of an operator with far outliers the range is large, so its bulk takes a small tolerance.

    Args:
        operator: symmetric, shape (n, n): any `LinearOperator`, array or sparse matrix.
        order: Lanczos steps a draw, at most n; None for 90. The extreme eigenvalues and the
            resolution of the density depend on it. With a tolerance, the most that a draw may
            make; None then for as many as keep the vectors of a draw within 1 GiB, at least 90.
        num_draws: start vectors, or blocks of them; None for as many as the density takes, two to
            ten start vectors (ten without reorthogonalization). The error band narrows with their
            square root. With a tolerance, the most; None then for as many as `max_products` has
            room for.
        block: start vectors of a draw that share one Krylov space (block Lanczos), see `lanczos`. A
            step takes as many products, in one pass over the data. One block shows which
            eigenvalues are simple, where single vectors take two draws, and what it spends on the
            outliers is spent once. None for 2, or 1 where `num_draws` or a tolerance is given,
            where `draws_at_once` is 1, where there are too few eigenvalues for so many steps, or
            where the vectors of a block would take more than 2 GiB.
        eigenpairs: number k of eigenvalues of largest magnitude whose vectors are wanted, too:
            `Spectrum.eigenpairs` has Ritz pairs from the basis of the first draw, which take no
            more products, with their residuals; fewer where that has fewer nodes. Of a multiple
            eigenvalue there are as many copies as a draw has start vectors.
        tolerance: make steps and draws until `Spectrum.accuracy.total` is at most this. With 3e-4
            the outliers of small classifiers were found; with 1e-2 a run ends after 8 steps, and
            none is known.
        max_products: products with single vectors that a run may take at most, those read from a
            checkpoint included. With a tolerance None is what it would take without: `order` times
            `num_draws`, which is 900 where neither is given. Without a tolerance, and with neither
            `order` nor `num_draws`, block, steps and draws are chosen to spend them best.
        seed: seed of the start vectors.
        reorthogonalize: "full", or "none" for three vectors of memory a draw.
        draws_at_once: draws that share each pass over the data; None follows from the size.
        basis_dtype: "float64", or "float32" for half the memory; None for that of the vectors, see
            `lanczos`.
        basis: "memory", of the device where the operator has vectors there, "host", or "disk" for
            the basis in a temporary file, see `lanczos`.
        checkpoint: a directory in which each step is made durable, see `lanczos`: a run that was
            killed goes on where it was, and steps or draws can be added to one that ended, also
            by a smaller tolerance.
        check: let an operator that can (`CurvatureOperator.check`) first verify that it is one
            fixed, symmetric, finite matrix and the right derivative: two passes over the data and
            five gradients of a batch, once for its weights. Three passes at the first step record
            its loss, gradient norm and accuracy in `Spectrum.model_state`.
        progress: show a bar; None for only in interactive runs.
        callback: called after each step, see `lanczos`.

    Returns:
        Spectrum of the quadratures of all draws. With two draws or more, or a block of two or more
        (and reorthogonalization), the outliers that are converged and simple are known to weigh 1/n
        each.

    Raises:
        ValueError: if order < 1 or order * block > n, an argument is out of range, or the check
            fails (`PreflightError`).
        MemoryError: if the run would not fit into the free memory; the message has the figures.
        CheckpointError: if the checkpoint is of another problem, damaged, in use or unwritable.

    References:
        Ghorbani, Krishnan, Xiao (2019), arXiv 1901.10159.
        Chen, Trogdon, Ubaru (2021), arXiv 2105.06595.
    """
    linear = as_real_square(operator)
    size = linear.shape[0]
    basis_dtype = checked_basis_dtype(basis_dtype, basis_vectors(linear, basis))
    num_eigenpairs = integer(eigenpairs, "eigenpairs", 0)
    if num_eigenpairs and reorthogonalize != "full":
        raise ValueError(
            f"eigenpairs is {eigenpairs}, and vectors need the basis that reorthogonalize='full' "
            "keeps: leave one of them out."
        )
    chosen = num_draws is None and tolerance is None and reorthogonalize == "full"
    budgeted = chosen and order is None and max_products is not None
    if block is None and checkpoint is not None:
        block = _block_of(checkpoint, linear)
    of_all = _block_of_all(size)
    if chosen and order is None and block in (None, of_all) and _is_small(size, max_products):
        block, order = of_all, size // of_all
    if block is None and (not chosen or draws_at_once == 1):
        block = 1
    elif block is None and budgeted:
        block = _block_within(size, max_products, basis_dtype)
    elif block is None:
        block = _default_block(size, order, basis_dtype)
    block = checked_block(block, size)
    limits = _limits(
        size,
        block,
        order,
        num_draws,
        tolerance=tolerance,
        max_products=max_products,
        budgeted=budgeted,
    )
    if (tolerance is not None or budgeted) and order is None:
        limits = replace(limits, order=_most_steps(size, block, reorthogonalize, basis_dtype))
    with progress_bar(limits.num_products, "Lanczos", progress) as bar:
        draws = Draws(
            operator,
            {
                "seed": seed,
                "reorthogonalize": reorthogonalize,
                "basis_dtype": basis_dtype,
                "basis": basis,
                "checkpoint": checkpoint,
                "check": check,
                "block": block,
            },
            draws_at_once,
            bar,
            callback,
            num_eigenpairs=num_eigenpairs,
        )
        if chosen:
            choice = (add_within if budgeted else add_by_count)(draws, limits)
            return replace(draws.spectrum(Ending.PLAN), choice=choice)
        if limits.tolerance is None:
            draws.add_all(limits.num_draws, limits.order)
            return draws.spectrum(Ending.PLAN)
        return draws.spectrum(add_to_tolerance(draws, limits, limits.tolerance))


def _limits(
    size: int,
    block: int,
    order: Any,
    num_draws: Any,
    *,
    tolerance: Any,
    max_products: Any,
    budgeted: bool,
) -> Limits:
    """Return the limits of a run, checked, with defaults for those that are None.

    Raises:
        ValueError: if one is out of range, or `max_products` is given beside what it decides.
    """
    steps = min(ORDER, size // block) if order is None else integer(order, "order", 1)
    draws = max(NUM_DRAWS // block, 1)
    draws = draws if num_draws is None else integer(num_draws, "num_draws", 1)
    if tolerance is None and not budgeted:
        if max_products is not None:
            raise ValueError(
                "max_products decides the steps and draws of a run: leave order, num_draws and "
                "reorthogonalize out, or pass tolerance= too."
            )
        return Limits(steps, draws, steps * draws * block, None)
    if tolerance is not None:
        tolerance = number(tolerance, "tolerance", above=0.0)
    products = steps * draws * block if max_products is None else max_products
    products = integer(products, "max_products", 1)
    if products < block:
        raise ValueError(
            f"max_products is {products}, and the first step of a block of {block} takes {block}: "
            f"raise it, or use a smaller block."
        )
    # Where no number of draws is given, the budget alone bounds them: one more than it has.
    return Limits(steps, products + 1 if num_draws is None else draws, products, tolerance)


def _block_of(checkpoint: str | os.PathLike[str], operator: Any) -> int | None:
    """Return the number of start vectors of a draw of the run in a checkpoint; None without any."""
    problem = recorded_problem(checkpoint, workers_of(operator))
    return None if problem is None else int(problem.get("block", 1))


def _block_of_all(size: int) -> int:
    """Return the number of start vectors by which all eigenvalues are computed, and are simple.

    One block of two takes a product for each; where that does not come out even, and where the
    steps of a draw are enough anyway, two draws do.
    """
    return BLOCK if size > ORDER and size % BLOCK == 0 else 1


def _is_small(size: int, max_products: Any) -> bool:
    """Tell whether a matrix has so few eigenvalues that all of them are computed."""
    most = None if max_products is None else integer(max_products, "max_products", 1)
    products = size * FIRST_DRAWS // _block_of_all(size)
    return products <= (_EXACT_PRODUCTS if most is None else most)


def _default_block(size: int, order: Any, basis_dtype: Any) -> int:
    """Return the number of start vectors of a draw for so many steps.

    Of a large matrix the vectors of a block would take more memory than single draws in turn need.
    """
    steps = ORDER if order is None else integer(order, "order", 1)
    fits = default_draws_at_once(size, steps, basis_dtype=basis_dtype) >= BLOCK
    return BLOCK if BLOCK * steps <= size and fits else 1


def _block_within(size: int, max_products: Any, basis_dtype: Any) -> int:
    """Return the number of start vectors of a draw for a budget of products.

    Steps limit the distance first, then the few start vectors, and these the sooner the fewer
    eigenvalues there are: of trained networks and model spectra a block of two is nearest up to
    about this many products, or half of it where there are few eigenvalues, and one of four above.
    Single vectors where those of a block take more memory than single draws in turn need.
    """
    most = integer(max_products, "max_products", 1)
    if most < BLOCK:
        return 1
    if most * size * np.dtype(basis_dtype).itemsize > GROUP_BYTES:
        return 1
    wide = most >= (_WIDE_BLOCK_FROM if size >= _MANY_EIGENVALUES else _WIDE_BLOCK_FROM // 2)
    return max(min(_WIDE_BLOCK if wide else BLOCK, size // LEAST_STEPS), 1)


def _most_steps(size: int, block: int, reorthogonalize: str, basis_dtype: Any) -> int:
    """Return the default limit of the steps of a draw, from the size of the problem alone."""
    if reorthogonalize == "none":
        return size // block
    row_bytes = np.dtype(basis_dtype).itemsize * size
    vectors = max(FIRST_DRAWS, block)
    return min(size // block, max(ORDER, GROUP_BYTES // (vectors * row_bytes)))
