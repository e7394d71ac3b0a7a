"""Lanczos tridiagonalization of a symmetric operator from random start vectors."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density.checkpoint import open_run, workers_of
from spectral_density.linalg.arguments import as_real_square, check_operator
from spectral_density.linalg.lanczos_options import LanczosOptions
from spectral_density.linalg.lockstep import LockstepGroup
from spectral_density.linalg.quadrature import block_tridiagonal
from spectral_density.linalg.vectors import Bases, HostBases


@dataclass(frozen=True)
class LanczosStep:
    """State after a step of a group of draws, for the callback; the arrays are read-only views."""

    step: int  # finished steps of this group, 1 to order
    order: int
    draws: range  # the k draws of this group
    # Of blocks of b > 1 each entry of these is a matrix, (b, b).
    alpha: np.ndarray = field(repr=False)  # (k, step)
    beta: np.ndarray = field(repr=False)  # (k, step - 1)
    residual_norms: np.ndarray = field(repr=False)  # (k,), the beta after this step


@dataclass(frozen=True, repr=False, eq=False)
class Tridiagonalization:
    """Lanczos tridiagonal matrices T of a symmetric A, one a draw, with A V = V T + residual.

    `basis[d].T` is V of draw d: n rows, orthonormal columns, the start vector first.

    Of draws of b > 1 start vectors T is block tridiagonal, and `alpha`, `beta` and `residual_norms`
    have its blocks, (b, b), in place of numbers: symmetric ones on its diagonal, upper triangular
    ones below it, and that which belongs below the last. `basis` has order * b rows a draw.
    """

    alpha: np.ndarray  # (num_draws, order), diagonals of T, float64
    beta: np.ndarray  # (num_draws, order - 1), off-diagonals of T, not negative, float64
    residual_norms: np.ndarray  # (num_draws,), ||A V - V T||, the beta after the last step
    bases: Bases | None  # Lanczos vectors where they were computed; None where they are not kept
    size: int  # n
    seed: int
    first_draw: int
    draws_at_once: int
    reorthogonalize: str

    @cached_property
    def basis(self) -> np.ndarray | None:
        """Lanczos vectors, (num_draws, order * b, n), from where they are; None where not kept."""
        return None if self.bases is None else self.bases.to_host(self.order * self.block)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the vectors as NumPy's, wherever they are."""
        bases = None if self.basis is None else HostBases(self.basis)
        return {item.name: getattr(self, item.name) for item in fields(self)} | {"bases": bases}

    @property
    def num_draws(self) -> int:
        """Number of draws, each of `block` start vectors."""
        return self.alpha.shape[0]

    @property
    def order(self) -> int:
        """Number of steps; with single start vectors the size of T."""
        return self.alpha.shape[1]

    @property
    def block(self) -> int:
        """Number of start vectors of a draw, b."""
        return self.alpha.shape[2] if self.alpha.ndim == 4 else 1

    def tridiagonal(self, draw: int = 0) -> np.ndarray:
        """Return T of one draw as a dense array, shape (order * b, order * b)."""
        beta = self.beta[draw]
        if self.block > 1:
            return block_tridiagonal(self.alpha[draw], beta)
        return np.diag(self.alpha[draw]) + np.diag(beta, 1) + np.diag(beta, -1)

    def __repr__(self) -> str:
        """Name the shape, never the arrays."""
        kept = "no basis" if self.bases is None else f"{self.bases.parts[0].dtype} basis"
        draws = f"{self.num_draws} draw{'s' if self.num_draws != 1 else ''}"
        if self.block > 1:
            draws += f" of {self.block} vectors"
        return f"Tridiagonalization(n={self.size:,}, order={self.order}, {draws}, {kept})"


def lanczos(
    operator: Any,
    /,
    order: int,
    *,
    num_draws: int = 1,
    block: int = 1,
    seed: int = 0,
    first_draw: int = 0,
    reorthogonalize: Literal["full", "none"] = "full",
    draws_at_once: int | None = None,
    basis_dtype: Any = None,
    basis: Literal["memory", "host", "disk"] = "memory",
    keep_basis: bool = True,
    start: np.ndarray | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    callback: Callable[[LanczosStep], None] | None = None,
    until: Callable[[LanczosStep], bool] | None = None,
    check: bool = True,
) -> Tridiagonalization:
    """Tridiagonalize a symmetric operator from random start vectors.

    Every vector is made orthogonal to all before it. An invariant subspace is not an error: the
    recurrence goes on in its complement, so the basis stays orthonormal, `order == n` recovers A
    exactly, and the quadrature of the start vector is untouched. The recurrence is float64
    also where the products are less precise. Where the operator has vectors on a device
    (`linalg.vectors`), the Lanczos vectors stay there, in their dtype: T is then as precise as the
    products are.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
            An attribute `product_dtype` states the precision of its products where this is
            lower than its `dtype`.
        order: number of steps, 1 to n; one product with the operator each, of `block` vectors.
        num_draws: number of draws, each of one start vector or, with `block`, of several.
        block: number b of start vectors of a draw that share one Krylov space (block Lanczos). A
            step multiplies all b in one block product, and T is block tridiagonal. It has copies of
            eigenvalues of multiplicity up to b; `order * block` is at most n. 1 is the Lanczos
            method.
        seed: seed of the random streams, which are keyed by (seed, start vector, step).
        first_draw: number of the first draw; draws 0-4 and 5-9 together are draws 0-9.
        reorthogonalize: "full", or "none" for three vectors of memory a draw: right for
            densities and moments, wrong for counting eigenvalues, which then appear repeatedly.
        draws_at_once: draws advanced in lockstep, with one block product a step. None follows
            from the size of the problem alone, see `default_draws_at_once`.
        basis_dtype: "float64", or "float32" for half the memory and orthogonality to 1e-6; None
            for that of the vectors, which is float64 on the host.
        basis: "memory" of the device where the operator has vectors there, and else of the host;
            "host" for the host's in any case; or "disk" for rows in a temporary file, in the
            directory of the checkpoint if there is one; each step then reads all of them. On the
            host and on the disk the recurrence is NumPy's, in float64.
        keep_basis: whether the result has the basis; without, a group's is freed when it ends.
        start: start vectors instead of random ones, shape (n,) or (n, num_draws * block), those of
            a block one after the other; they are made orthonormal.
        checkpoint: a directory in which each step is made durable. A run that has steps of its own
            there continues after them, and ends with the bits of an undisturbed run wherever the
            products repeat to the bit; with more steps or draws than before it computes those only,
            and one product to make sure that the operator is the same.
        progress: show a progress bar; None shows it in terminals and notebooks only.
        callback: called with a `LanczosStep` after each step of each group of draws, those of a
            checkpoint excepted.
        until: asked after each step of the first group, those of a checkpoint included;
            where it returns True, that step is the last of this group and of all after it.
        check: let an operator that can (`CurvatureOperator.check`) first find out whether it is
            one fixed, symmetric, finite matrix and the right derivative: two passes over the data
            and five gradients of a batch, once for its weights.

    Returns:
        Tridiagonalization with `alpha`, `beta`, `residual_norms` and `basis`.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if the operator is not square or not symmetric, an argument is out of its
            range, or the check fails (`PreflightError`).
        FloatingPointError: if a product with the operator is not finite.
        MemoryError: if the run would not fit into the free memory; the message has the figures.
        CheckpointError: if the checkpoint is of another problem, damaged, in use or unwritable.

    References:
        Paige (1976), J. Inst. Maths Applics 18:341 (the order of the subtractions).
        Daniel, Gragg, Kaufman, Stewart (1976), Math. Comp. 30:772 (when to orthogonalize again).
        Golub, Meurant (2010), Matrices, Moments and Quadrature (T as a quadrature rule).
        Golub, Underwood (1977), in Mathematical Software III, p. 361 (blocks).
    """
    operator = as_real_square(operator)
    options = LanczosOptions(
        operator,
        order,
        num_draws=num_draws,
        seed=seed,
        first_draw=first_draw,
        reorthogonalize=reorthogonalize,
        draws_at_once=draws_at_once,
        basis_dtype=basis_dtype,
        basis=basis,
        keep_basis=keep_basis,
        start=start,
        checkpoint=checkpoint,
        block=block,
    )
    options.check_memory()
    check_operator(operator, check)
    alpha, beta = options.coefficients()
    steps = options.order
    num_products = options.order * options.num_draws * options.block
    with ExitStack() as stack:
        bar = stack.enter_context(progress_bar(num_products, "Lanczos", progress))
        directory = None
        if checkpoint is not None:
            directory = stack.enter_context(
                open_run(checkpoint, options.problem(operator), workers_of(operator))
            )
        bases = options.allocate(options.num_draws) if options.keeps_rows else None
        for draws in options.groups:
            group = options.group(draws, alpha, beta, bases)
            with nullcontext() if directory is None else group.saved_in(directory, operator):
                observers = _Observers(bar, callback, until if draws is options.groups[0] else None)
                steps = _advance_group(operator, group, steps, observers)
            # The vectors of a group are freed before those of the next are allocated.
            del group
    return Tridiagonalization(
        alpha=alpha[:, :steps].copy(),
        beta=beta[:, : steps - 1].copy(),
        residual_norms=beta[:, steps - 1].copy(),
        bases=bases,
        size=options.size,
        seed=options.seed,
        first_draw=options.first_draw,
        draws_at_once=len(options.groups[0]),
        reorthogonalize=options.reorthogonalize,
    )


@dataclass(frozen=True)
class _Observers:
    """The progress bar and functions that are called after the steps of a group."""

    bar: Any
    callback: Callable[[LanczosStep], None] | None
    until: Callable[[LanczosStep], bool] | None

    def end_at(self, step: LanczosStep) -> bool:
        return self.until is not None and bool(self.until(step))


def _advance_group(
    operator: LinearOperator, group: LockstepGroup, last: int, observers: _Observers
) -> int:
    """Advance a group to the step `last`, or to that at which `until` is true; return that step."""
    vectors = len(group.draws) * group.width
    observers.bar.update(group.step * vectors)
    # `until` sees the steps of a checkpoint too: a run resumed ends where one undisturbed does.
    for step in range(1, group.step + 1):
        if observers.end_at(_record(group, last, step)):
            return step
    while group.step < last:
        group.advance(operator)
        observers.bar.update(vectors)
        if observers.callback is not None:
            observers.callback(_record(group, last, group.step))
        if observers.end_at(_record(group, last, group.step)):
            return group.step
    return last


def _record(group: LockstepGroup, order: int, step: int) -> LanczosStep:
    arrays = group.alpha[:, :step], group.beta[:, : step - 1], group.beta[:, step - 1]
    return LanczosStep(step, order, group.draws, *map(_read_only, arrays))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
