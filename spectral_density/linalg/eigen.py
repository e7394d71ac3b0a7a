"""Extreme eigenpairs of a symmetric operator by thick-restart Lanczos, with true residuals."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density._warnings import warn
from spectral_density.checkpoint import open_run, workers_of
from spectral_density.linalg.arguments import (
    as_real_square,
    check_operator,
    integer,
    number,
    product_error,
    rounding_share,
    signature,
)
from spectral_density.linalg.eigen_checkpoint import SavedState, problem_of
from spectral_density.linalg.eigenvalue_selection import WHICH, result_order
from spectral_density.linalg.low_rank import PartialEigendecomposition
from spectral_density.linalg.start_vectors import start_columns
from spectral_density.linalg.thick_restart import CheckedPairs, EigenState
from spectral_density.linalg.vectors import HostVectors, check_memory_of, rounding_of, vectors_of

_EPS = float(np.finfo(np.float64).eps)
_MAX_POLISHES = 3

# Blocks beside k vectors that the default basis holds: with fewer, restarts undo the work.
_BLOCKS = 8


class ConvergenceWarning(UserWarning):
    """Some result is not as accurate as was asked for; the flags say which."""


@dataclass(frozen=True, repr=False, eq=False)
class Eigenpairs(PartialEigendecomposition):
    """Extreme eigenpairs of a symmetric operator A.

    Largest magnitude first for "LM", largest first for "LA", smallest first for "SA", and
    ascending for "BE". Some eigenvalue of A is within `residuals[i]` of `values[i]`.
    """

    values: np.ndarray  # (k,), Rayleigh quotients v' A v
    vectors: np.ndarray  # (n, k), orthonormal columns
    residuals: np.ndarray  # (k,), ||A v - value v||, from products with the vectors themselves, and
    # what products at a lower precision than the full one are off by
    converged: np.ndarray  # (k,) bool, residuals (without that) <= tolerance * norm
    complete: bool  # whether a new start in their complement showed no other that is wanted
    num_products: int  # products with single vectors, those for the residuals included
    which: str
    tolerance: float
    norm: float  # largest |Ritz value| or ||A v||: at most ||A||, and max |values| for "LM"

    def __repr__(self) -> str:
        """Name the values and how good they are, never the vectors."""
        with np.printoptions(precision=6, threshold=8, edgeitems=3):
            values = np.array2string(self.values, separator=", ", max_line_width=1000)
        return (
            f"Eigenpairs({self.which} {values}, largest residual {self.residuals.max():.1e}, "
            f"{self.converged.sum()} of {len(self.values)} converged"
            f"{'' if self.complete else ', maybe not complete'}, "
            f"{self.num_products:,} products)"
        )


def top_eigenpairs(
    operator: Any,
    /,
    k: int = 1,
    which: Literal["LM", "LA", "SA", "BE"] = "LM",
    *,
    tolerance: float | None = None,
    max_products: int | None = None,
    subspace: int | None = None,
    block_size: int | None = None,
    start: np.ndarray | None = None,
    seed: int = 0,
    progress: bool | None = None,
    callback: Callable[[EigenState], None] | None = None,
    resume: EigenState | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    check: bool = True,
) -> Eigenpairs:
    """Find the extreme eigenvalues of a symmetric operator, and their vectors.

    Thick-restart Lanczos with full reorthogonalization in float64, or in the dtype of the vectors
    where the operator has them on a device (`linalg.vectors`). A Krylov space holds one vector
    of each eigenspace, so when k pairs have converged they are locked, and Lanczos starts again
    from a random vector in their complement, until such a start shows no other that is wanted
    and would have shown it with probability `1 - MISS_PROBABILITY`: multiple eigenvalues come as
    often as they are there. Where `subspace` is n, as it is for n <= 20, the decomposition is the
    full one.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
            An attribute `product_dtype` states the precision of its products where this is
            lower than its `dtype`.
        k: number of pairs, 1 to n.
        which: "LM" largest magnitude, "LA" largest, "SA" smallest, or "BE" both ends, the high
            end first where k is odd; the words are those of `scipy.sparse.linalg.eigsh`.
        tolerance: residual over `norm`, the best lower bound of ||A||, at which a pair has
            converged. None is eps^(3/4) of the products: 1.8e-12 for float64, 6.4e-6 for float32;
            at a lower precision (`matmul_precision`) twice what they are off by.
            An eigenvalue that stands alone is off by about the residual's square over its gap.
            Eigenvalues nearer to each other than tolerance * norm count as equal.
        max_products: products at most, with single vectors and for the residuals too; None is
            100 times `subspace`, at least 1000.
        subspace: rows of the basis; None is the largest of 2 k + 1, 20 and k + 8 block_size, or n
            where that is less. More take more memory, n float64 each, and fewer products.
        block_size: vectors multiplied together until k pairs are known; None is 1. More take fewer
            passes over the data and more products.
        start: start vectors instead of random ones, shape (n,) or (n, count), count <= block_size.
        seed: seed of the random streams.
        progress: show a progress bar; None shows it in terminals and notebooks only.
        callback: called with the `EigenState` after each step; see `EigenState.arrays` to keep it.
        resume: the state to go on from, of a run with the same operator and options;
            `max_products` may differ. It is changed by going on.
        checkpoint: a directory in which each step is made durable, and from which a run that was
            killed, or used up `max_products`, goes on.
        check: let an operator that can (`CurvatureOperator.check`) first find out whether it is
            one fixed, symmetric, finite matrix and the right derivative: two passes over the data
            and five gradients of a batch, once for its weights.

    Returns:
        Eigenpairs, in the order stated there. Where some have not converged, the best so far with
        `converged` false, and a `ConvergenceWarning`.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if the operator is not square, an argument is out of its range, the state to
            resume is of another problem, or the check fails (`PreflightError`).
        FloatingPointError: if a product with the operator is not finite.
        MemoryError: if the basis would not fit into the free memory; the message has the figures.
        CheckpointError: if the checkpoint is of another problem, damaged, in use or unwritable.

    References:
        Wu, Simon (2000), SIAM J. Matrix Anal. Appl. 22:602, section 3. Stathopoulos, Saad, Wu
        (1998), SIAM J. Sci. Comput. 19:227. Parlett (1998), The Symmetric Eigenvalue Problem,
        chapters 11 and 13.
    """
    operator = as_real_square(operator)
    size = integer(operator.shape[0], "The number of rows", 1)
    state = _initial_state(
        operator,
        k=k,
        which=which,
        tolerance=tolerance,
        subspace=subspace,
        block_size=block_size,
        seed=seed,
    )
    max_products = _checked_budget(max_products, state)
    starts = None if start is None else start_columns(start, size, state.block_size)
    if resume is not None:
        if start is not None or checkpoint is not None:
            other = "start" if start is not None else "checkpoint"
            raise ValueError(f"A run that is resumed has one already: pass {other} or resume.")
        state = _same_problem(resume, state)
    check_operator(operator, check)
    with ExitStack() as stack:
        saved = None
        if checkpoint is not None:
            problem = problem_of(state, signature(operator), starts)
            run = stack.enter_context(open_run(checkpoint, problem, workers_of(operator)))
            saved = stack.enter_context(SavedState(run, state.rows.vectors))
            state = saved.load(operator) or state
        if not state.rounds:
            state.begin(starts)
        bar = stack.enter_context(progress_bar(max_products, "Eigenpairs", progress))
        bar.update(state.num_products)
        pairs = _Search(operator, state, max_products, bar, saved, callback).run()
    return _result(operator, state, pairs, max_products)


@dataclass(frozen=True)
class _Search:
    """The steps of a run, until its pairs pass the test of their true residuals."""

    operator: LinearOperator
    state: EigenState
    max_products: int
    bar: Any
    saved: SavedState | None
    callback: Callable[[EigenState], None] | None

    def run(self) -> CheckedPairs:
        """Make steps as far as `max_products` allows; return the pairs with true residuals."""
        state = self.state
        while True:
            while not state.settled and self._affords(state.pending + state.k):
                self._step()
            pairs = state.check(self.operator)
            self.bar.update(state.k)
            if not state.settled or state.passed(pairs).all() or not self._affords(3 * state.k):
                return pairs
            if state.polishes == _MAX_POLISHES:
                return pairs
            state.num_products += state.k
            state.polish(pairs)

    def _affords(self, num_products: int) -> bool:
        return self.state.num_products + num_products <= self.max_products

    def _step(self) -> None:
        state = self.state
        before = state.num_products
        state.advance(self.operator)
        self.bar.update(state.num_products - before)
        if self.saved is not None:
            self.saved.save(state)
        if self.callback is not None:
            self.callback(state)


def _initial_state(
    operator: LinearOperator,
    *,
    k: Any,
    which: Any,
    tolerance: Any,
    subspace: Any,
    block_size: Any,
    seed: Any,
) -> EigenState:
    """Return the state before any start vector, of arguments that are checked."""
    size = operator.shape[0]
    k = integer(k, "k", 1, size)
    if which not in WHICH:
        raise ValueError(f"which must be one of {', '.join(map(repr, WHICH))}, got {which!r}.")
    block_size = 1 if block_size is None else integer(block_size, "block_size", 1, size)
    # For the pairs, and to restart from both ends, one block kept and one block new.
    least = min(size, k + 2 * block_size + 1)
    if subspace is None:
        subspace = min(size, max(2 * k + 1, 20, k + _BLOCKS * block_size))
    subspace = integer(subspace, "subspace", 1, size)
    if subspace < least:
        raise ValueError(
            f"subspace must be at least k + 2 block_size + 1 or n, here {least}, got {subspace}."
        )
    vectors = vectors_of(operator)
    capacity = subspace + block_size
    row = size * vectors.dtype.itemsize
    needed = {
        "basis": vectors.allocated(capacity) * row,
        "pairs and products": (vectors.allocated(k) + 3 * block_size) * row,
    }
    if not isinstance(vectors, HostVectors):
        needed["basis after a restart"] = subspace * row
    check_memory_of(
        vectors,
        needed,
        "Ask for fewer pairs, a smaller subspace, or fewer parameters with variables=.",
    )
    coarsest = rounding_of(operator, vectors)
    return EigenState(
        size=size,
        k=k,
        which=which,
        tolerance=residual_tolerance(tolerance, coarsest, product_error(operator)),
        precision=coarsest,
        subspace=subspace,
        block_size=block_size,
        seed=integer(seed, "seed", 0),
        rows=vectors.rows(capacity),
        projected=np.zeros((capacity, capacity)),
    )


def _checked_budget(max_products: Any, state: EigenState) -> int:
    # k pairs to begin with, whatever is left of the block then, and their residuals.
    least = min(state.k + state.block_size - 1, state.size) + state.k
    if max_products is None:
        max_products = max(1000, 100 * state.subspace, 2 * least)
    return integer(max_products, "max_products", least)


def _same_problem(state: EigenState, fresh: EigenState) -> EigenState:
    if not isinstance(state, EigenState):
        raise TypeError(f"resume must be an EigenState, got {type(state).__name__}.")
    names = ("size", "k", "which", "tolerance", "precision", "subspace", "block_size", "seed")
    for name in names:
        theirs, ours = getattr(state, name), getattr(fresh, name)
        if theirs != ours:
            raise ValueError(
                f"The state to resume is of another problem: its {name} is {theirs}, not {ours}."
            )
    theirs, ours = state.rows.vectors, fresh.rows.vectors
    if (theirs.place, theirs.dtype) != (ours.place, ours.dtype):
        raise ValueError(
            f"The state to resume has its vectors on {theirs.place} in {theirs.dtype}, and the "
            f"operator on {ours.place} in {ours.dtype}: make it by "
            "EigenState.from_arrays(arrays, vectors=operator.vectors)."
        )
    return state


def _result(
    operator: LinearOperator, state: EigenState, pairs: CheckedPairs, max_products: int
) -> Eigenpairs:
    order = result_order(pairs.values, state.which)
    rows = pairs.rows.to_host(state.k).astype(np.float64, copy=False)
    # They are in order but for rounding, and a copy would take as much memory again.
    in_order = (order == np.arange(state.k)).all()
    off = product_error(operator) * state.norm
    result = Eigenpairs(
        values=np.ldexp(pairs.values[order], state.exponent),
        vectors=(rows if in_order else rows[order]).T,
        residuals=np.ldexp(pairs.residuals[order] + off, state.exponent),
        converged=state.passed(pairs)[order],
        complete=state.settled,
        num_products=state.num_products + state.k,
        which=state.which,
        tolerance=state.tolerance,
        norm=float(np.ldexp(state.norm, state.exponent)),
    )
    if not (result.complete and result.converged.all()):
        _warn(operator, state, result, max_products)
    return result


def _warn(
    operator: LinearOperator, state: EigenState, result: Eigenpairs, max_products: int
) -> None:
    """Say what is not as it was asked for, by how much, and what to do."""
    worst = float(result.residuals.max())
    asymmetry = float(np.ldexp(state.asymmetry, state.exponent))
    text = (
        f"{result.converged.sum()} of {state.k} eigenpairs have converged: the largest residual is "
        f"{worst:.2g}, tolerance * norm is {result.tolerance * result.norm:.2g}. "
    )
    if asymmetry > max(_EPS**0.25, 2 * product_error(operator)) * result.norm:
        if rounding_share(operator, np.array(result.vectors[:, 0])) > 0.1:
            text += "The products are nothing but rounding: on paper the matrix is zero."
        else:
            text += (
                f"The operator is not symmetric: u'Av and v'Au differ by {asymmetry:.2g} for unit "
                "vectors. Pass a symmetric one, such as (A + A') / 2."
            )
    elif not state.settled:
        if result.converged.all():
            text += "Whether others of that size were missed is not known yet. "
        text += f"Raise max_products (now {max_products}) or subspace (now {state.subspace})."
    else:
        text += (
            "The products are not accurate enough to reduce it: raise tolerance to "
            f"{2 * worst / result.norm:.1g}."
        )
    warn(text, ConvergenceWarning)


def residual_tolerance(tolerance: float | None, precision: float, error: float) -> float:
    """Return the residual over ||A|| that is small enough: what is asked for, or eps^(3/4).

    No less than twice the error of products, which residuals do not fall below.
    """
    if tolerance is None:
        return max(precision**0.75, 2 * error)
    return number(tolerance, "tolerance", above=0.0)
