"""Extreme eigenpairs of a symmetric operator, with true residuals and nothing missed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from math import log, pi
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._progress import progress_bar
from spectral_density.checkpoint import (
    CheckpointError,
    RunDirectory,
    VectorLog,
    open_run,
    workers_of,
)
from spectral_density.linalg.arguments import (
    array_hash,
    as_real_square,
    block_product,
    identifies,
    integer,
    is_same_form,
    number,
    product_precision,
    rounding_share,
    signature,
    stream,
)
from spectral_density.linalg.lanczos import as_starts, check_operator, orthogonalize
from spectral_density.linalg.memory import foresee
from spectral_density.linalg.threads import blas_threads

WHICH = ("LM", "LA", "SA", "BE")
"""Ends of the spectrum: largest magnitude, largest, smallest, both ends."""

MISS_PROBABILITY = 1e-4
"""How likely an eigenvalue that was asked for may at most be missed by the last random start."""

_EPS = float(np.finfo(np.float64).eps)
# Share of the tolerance that the recurrence's own residual must meet: the rest is for rounding.
_SHARE = 0.5
# Share of what is left of that with each attempt to improve pairs whose true residual is larger.
_POLISH = 0.1
_MAX_POLISHES = 3
# A restart keeps what is wanted and, of the others, as many as have converged within these shares:
# measured on cases A and B of the tests, where they need no more products than ARPACK's rule.
_KEPT_SHARES = (0.4, 0.7)
# Blocks beside k vectors that the default basis has room for: with fewer, restarts undo the work.
_BLOCKS = 8
# Products true residuals are computed from at once, and columns of the basis rotated at once.
_CHECK_WIDTH = 8
_ROTATE_LENGTH = 2**13


class ConvergenceWarning(UserWarning):
    """Some result is not as accurate as was asked for; the flags say which."""


@dataclass(frozen=True, repr=False, eq=False)
class Eigenpairs:
    """Extreme eigenpairs of a symmetric operator A.

    Largest magnitude first for "LM", largest first for "LA", smallest first for "SA", and
    ascending for "BE". Some eigenvalue of A is within `residuals[i]` of `values[i]`.
    """

    values: np.ndarray  # (k,), Rayleigh quotients v' A v
    vectors: np.ndarray  # (n, k), orthonormal columns
    residuals: np.ndarray  # (k,), ||A v - value v||, from products with the vectors themselves
    converged: np.ndarray  # (k,) bool, residuals <= tolerance * norm
    complete: bool  # whether a fresh random start in their complement found no other that is wanted
    num_products: int  # products with single vectors, those for the residuals included
    which: str
    tolerance: float
    norm: float  # largest |Ritz value| or ||A v|| met: at most ||A||, and max |values| for "LM"

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


@dataclass(frozen=True, repr=False, eq=False)
class PowerIteration:
    """The eigenpair of largest magnitude as the power method finds it."""

    value: float  # Rayleigh quotient v' A v
    vector: np.ndarray  # (n,), of length 1
    residual: float  # ||A v - value v||: some eigenvalue of A is at most this far away
    converged: bool  # residual <= tolerance * ||A v||
    num_products: int

    def __repr__(self) -> str:
        """Name the value and how good it is, never the vector."""
        state = "converged" if self.converged else "not converged"
        return (
            f"PowerIteration({self.value:.9g}, residual {self.residual:.1e}, {state}, "
            f"{self.num_products:,} products)"
        )


class _Ritz(NamedTuple):
    """Rayleigh-Ritz pairs of the rows that are not locked."""

    values: np.ndarray  # (active,), ascending
    weights: np.ndarray  # (active, active), coefficients of the Ritz vectors as columns
    residuals: np.ndarray  # (active,), as the recurrence has them


@dataclass(eq=False, repr=False)
class EigenState:
    """All there is to a `top_eigenpairs` run between two steps; `advance` makes one step.

    Rows of the basis, in this order: `locked` eigenvectors; `active` vectors V whose products are
    known, A V = V T + P B but for locked directions; `pending` vectors P, to be multiplied next.
    T and B are in the rows and columns of `projected` that belong to V and P.

    A round is a random start and what grows out of it in the complement of the locked vectors. It
    ends when the wanted eigenvalues it has are converged and locked. The last round finds none.
    """

    size: int  # n
    k: int
    which: str
    tolerance: float
    precision: float  # relative rounding of the products
    subspace: int  # m
    block_size: int  # b, vectors a step in the first round; one in all others
    seed: int
    basis: np.ndarray  # (m + b, n), of which locked + active + pending rows are used
    projected: np.ndarray  # (m + b, m + b), in units of 2**exponent, as are norm and asymmetry
    locked: int = 0
    active: int = 0
    pending: int = 0
    steps: int = 0
    restarts: int = 0
    rounds: int = 0
    polishes: int = 0
    draws: int = 0  # random vectors taken, the key of the next one
    num_products: int = 0
    scaled: bool = False  # whether `exponent` is set, which the first product that is not zero does
    exponent: int = 0
    norm: float = 0.0  # largest |Ritz value| or product met
    asymmetry: float = 0.0  # largest |u' A v - v' A u| met: rounding, or no symmetric operator
    log_beta: float = 0.0  # sum of log beta in this round
    log_upper: float = 0.0  # sum of log |edge - Ritz value| over those discarded, upper edge
    log_lower: float = 0.0  # the same for the lower edge
    settled: bool = False  # whether all is found, as far as the recurrence can tell

    @property
    def used(self) -> int:
        """Rows of the basis in use."""
        return self.locked + self.active + self.pending

    @property
    def values(self) -> np.ndarray:
        """Best approximations of the wanted eigenvalues so far, in the order of the result."""
        active = self._ritz().values
        found = self._union(active)[self._wanted(active)]
        return np.ldexp(found[_result_order(found, self.which)], self.exponent)

    def __repr__(self) -> str:
        """Name where it is, never the arrays."""
        return (
            f"EigenState({self.which}, k={self.k}, n={self.size:,}, step {self.steps}, "
            f"round {self.rounds}, {self.locked} locked, {self.num_products:,} products)"
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the state as arrays by name, which `from_arrays` takes and `numpy.savez` stores.

        They are read-only views of it: write or copy them before the next step. Between restarts
        rows of "basis" are only added.
        """
        result = {}
        for item in fields(self):
            value = getattr(self, item.name)
            result[item.name] = np.asarray(value[: self.used] if item.name == "basis" else value)
            result[item.name] = result[item.name].view()
            result[item.name].flags.writeable = False
        return result

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], /) -> EigenState:
        """Return the state of `arrays`, which are copied; it goes on to the same bits.

        Raises:
            ValueError: if an array is missing or the shapes do not fit.
        """
        names = {item.name for item in fields(cls)}
        missing = sorted(names - set(arrays))
        if missing:
            raise ValueError(f"This is no state of top_eigenpairs: {', '.join(missing)} missing.")
        values: dict[str, Any] = {
            name: np.asarray(arrays[name]).item() for name in names - {"basis", "projected"}
        }
        rows = np.asarray(arrays["basis"])
        projected = np.array(arrays["projected"], dtype=np.float64)
        capacity = values["subspace"] + values["block_size"]
        used = values["locked"] + values["active"] + values["pending"]
        if rows.shape != (used, values["size"]) or projected.shape != (capacity, capacity):
            raise ValueError(
                f"This is no state of top_eigenpairs: basis {rows.shape} and projected "
                f"{projected.shape} must have shapes ({used}, {values['size']}) and "
                f"({capacity}, {capacity})."
            )
        basis = np.empty((capacity, values["size"]))
        basis[:used] = rows
        return cls(basis=basis, projected=projected, **values)

    # Steps. Each leaves the state ready for the next product, or settled.

    def advance(self, operator: LinearOperator) -> None:
        """Make one step: one block product, and all that follows from it."""
        first = self.locked + self.active
        block = self.basis[first : first + self.pending]
        products = self._multiply(operator, block, f"at step {self.steps + 1}")
        with blas_threads(self.size):
            self._absorb(products)
            self.steps += 1
            self._settle()

    def begin(self, starts: np.ndarray | None) -> None:
        """Take start vectors, unit columns of shape (n, count), and random ones for the rest."""
        self.rounds = 1
        with blas_threads(self.size):
            for column in [] if starts is None else starts.T:
                self._add(np.array(column))
            while self.pending < self.block_size:
                self._add_random()

    def polish(self, pairs: _Checked) -> None:
        """Go on from checked pairs: those that passed are locked, the others multiplied again."""
        self.polishes += 1
        failed = pairs.residuals > self.tolerance * self.norm
        # New directions need rows too: the worst go first, and others have to wait.
        worst = np.argsort(-np.where(failed, pairs.residuals, -1.0), kind="stable")
        room = max(1, (self.subspace - self.k) // 2)
        again = np.sort(worst[: min(failed.sum(), room)])
        kept = np.setdiff1d(np.arange(self.k), again)
        self.basis[: self.k] = pairs.rows[np.concatenate([kept, again])]
        self.projected[:] = 0.0
        np.fill_diagonal(self.projected[: len(kept), : len(kept)], pairs.values[kept])
        self.locked, self.active, self.pending = len(kept), 0, len(again)
        self.log_beta = self.log_upper = self.log_lower = 0.0
        self.settled = False

    def check(self, operator: LinearOperator) -> _Checked:
        """Return the k wanted pairs with residuals from products of their own; changes nothing."""
        ritz = self._ritz()
        wanted = self._wanted(ritz.values)
        wanted = wanted[_result_order(self._union(ritz.values)[wanted], self.which)]
        active = self.basis[self.locked : self.locked + self.active]
        rows = np.empty((len(wanted), self.size))
        with blas_threads(self.size):
            for row, index in zip(rows, wanted, strict=True):
                if index < self.locked:
                    row[:] = self.basis[index]
                else:
                    np.matmul(ritz.weights[:, index - self.locked], active, out=row)
            _orthonormalize(rows)
        values, residuals = np.empty(len(rows)), np.empty(len(rows))
        # One by one where all products are: blocks of another width might not repeat to the bit.
        width = min(self.block_size, _CHECK_WIDTH)
        for begin in range(0, len(rows), width):
            piece = slice(begin, begin + width)
            products = self._scale(operator, rows[piece], "of the residuals")
            with blas_threads(self.size):
                values[piece] = np.einsum("ij,ij->i", rows[piece], products)
                products -= values[piece, np.newaxis] * rows[piece]
                residuals[piece] = np.linalg.norm(products, axis=1)
        return _Checked(values, rows, residuals)

    def _multiply(self, operator: LinearOperator, block: np.ndarray, where: str) -> np.ndarray:
        self.num_products += len(block)
        products = self._scale(operator, block, where)
        if not self.scaled and products.any():
            # Only zeros came before, so units may still change: no square over- or underflows.
            self.exponent = int(np.frexp(np.abs(products).max())[1])
            self.scaled = True
            products = np.ldexp(products, -self.exponent)
        return products

    def _scale(self, operator: LinearOperator, rows: np.ndarray, where: str) -> np.ndarray:
        """Return the products with rows as rows in units of 2**exponent: always a copy."""
        product = block_product(operator, rows[0] if len(rows) == 1 else rows.T, where)
        columns = np.array(product.T, dtype=np.float64, order="C", ndmin=2)
        return np.ldexp(columns, -self.exponent, out=columns)

    def _absorb(self, products: np.ndarray) -> None:
        """Make the pending rows active, given their products, and pending what these add."""
        first = self.locked + self.active
        rows = after = first + self.pending
        for index, w in enumerate(products):
            self.norm = max(self.norm, float(np.linalg.norm(w)))
            along = orthogonalize(w, self.basis[:rows])
            beta = float(np.linalg.norm(w))
            column = first + index
            self.projected[self.locked : rows, column] = along[self.locked :]
            if rows == self.size or beta <= self._negligible():
                continue  # nothing new but rounding
            self.basis[rows] = w / beta
            self.projected[rows, column] = beta
            self.log_beta += log(beta)
            rows += 1
        self.active += self.pending
        self.pending = rows - after
        old = slice(self.locked, first)
        new = slice(first, after)
        mismatch = self.projected[old, new] - self.projected[new, old].T
        within = self.projected[new, new] - self.projected[new, new].T
        for difference in (mismatch, within):
            self.asymmetry = max(self.asymmetry, float(np.abs(difference).max(initial=0.0)))

    def _settle(self) -> None:
        """End the round if it has what is wanted; else see that there is room for the next step."""
        ritz = self._ritz()
        self.norm = max(self.norm, float(np.abs(ritz.values).max()))
        wanted = self._wanted(ritz.values)
        _, from_active = self._split(wanted)
        enough = len(wanted) == self.k
        if enough and (ritz.residuals[from_active] <= self._target()).all():
            whole = self.locked + self.active == self.size
            if whole or (not len(from_active) and self._nothing_missed(ritz)):
                self.settled = True
                return
            if len(from_active):
                self._lock(ritz, wanted)
                return
        if not self.pending:
            self._add_random()
        if self.used + self.pending > len(self.basis):
            self._restart(ritz, len(from_active))

    # Rayleigh-Ritz

    def _ritz(self) -> _Ritz:
        active = slice(self.locked, self.locked + self.active)
        pending = slice(active.stop, active.stop + self.pending)
        matrix = self.projected[active, active]
        # Above the diagonal are products measured, below it norms: either has its own rounding.
        values, weights = np.linalg.eigh((matrix + matrix.T) / 2)
        coupling = self.projected[pending, active] @ weights
        return _Ritz(values, weights, np.linalg.norm(coupling, axis=0))

    def _rounding(self) -> float:
        # Symmetric products differ from symmetry by their rounding, whatever dtype they state.
        return max(4 * _EPS * self.norm, self.asymmetry)

    def _negligible(self) -> float:
        """Length of what is left of a product that is rounding and nothing else."""
        # Products may be better than the dtype they state: a tolerance below that is believed.
        return max(10 * _EPS, min(10 * self.precision, self.tolerance)) * self.norm

    def _target(self) -> float:
        """Residual of the recurrence that is small enough."""
        share = _SHARE * _POLISH**self.polishes
        return max(share * self.tolerance * self.norm, self._rounding())

    def _slack(self) -> float:
        """Difference of eigenvalues that is none."""
        return max(self.tolerance * self.norm, self._rounding())

    def _locked_values(self) -> np.ndarray:
        return np.diagonal(self.projected)[: self.locked]

    def _union(self, active: np.ndarray) -> np.ndarray:
        return np.concatenate([self._locked_values(), active])

    def _wanted(self, active: np.ndarray) -> np.ndarray:
        """Return which of the locked and active values are wanted, up to k indices, locked first.

        Where they are equal but for slack, the locked ones are.
        """
        values = self._union(active)
        bonus = np.where(np.arange(len(values)) < self.locked, self._slack(), 0.0)
        highest = np.argsort(-(values + bonus), kind="stable")
        lowest = np.argsort(values - bonus, kind="stable")
        if self.which == "LA":
            found = highest[: self.k]
        elif self.which == "SA":
            found = lowest[: self.k]
        elif self.which == "LM":
            found = np.argsort(-(np.abs(values) + bonus), kind="stable")[: self.k]
        else:
            high = highest[: (self.k + 1) // 2]
            low = lowest[~np.isin(lowest, high)][: self.k // 2]
            found = np.concatenate([high, low])
        return np.sort(found)

    def _split(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices among the locked, and those among the active."""
        return wanted[wanted < self.locked], wanted[wanted >= self.locked] - self.locked

    # Rounds

    def _edges(self) -> tuple[float, float]:
        """Return the values beyond which nothing may be left once k are locked: (lower, upper)."""
        values = np.sort(self._locked_values())
        lower, upper = -np.inf, np.inf
        if len(values) == self.k:
            slack = self._slack()
            if self.which == "LM":
                upper = np.abs(values).min() + slack
                lower = -upper
            if self.which in ("LA", "BE"):
                high = self.k if self.which == "LA" else (self.k + 1) // 2
                upper = values[-high] + slack
            if self.which == "SA" or (self.which == "BE" and self.k > 1):
                low = self.k if self.which == "SA" else self.k // 2
                lower = values[low - 1] - slack
        return lower, upper

    def _nothing_missed(self, ritz: _Ritz) -> bool:
        """Whether an eigenvalue beyond the edges would have shown itself.

        The pending vector is p(A) r / (beta_1 ... beta_j) with r the random start of this round and
        p the monic polynomial whose roots are the Ritz values, those that restarts discarded
        included. Its component along the unit eigenvector u of an eigenvalue mu is at most 1, so
        |u' r| is at most beta_1 ... beta_j / |p(mu)|, and less the further mu is beyond all roots.
        A random r in N dimensions has |u' r| <= x with a probability below x sqrt(2 N / pi).
        """
        if not self.pending:
            return True
        lower, upper = self._edges()
        dimension = self.size - self.locked
        for edge, discarded in ((lower, self.log_lower), (upper, self.log_upper)):
            if np.isfinite(edge):
                log_x = self.log_beta - discarded - _log_distances(edge, ritz.values)
                if log_x + 0.5 * log(2 * dimension / pi) > log(MISS_PROBABILITY):
                    return False
        return True

    def _lock(self, ritz: _Ritz, wanted: np.ndarray) -> None:
        """Lock what is wanted, forget all else, and begin a round."""
        from_locked, from_active = self._split(wanted)
        values = self._union(ritz.values)[wanted]
        self._rotate(ritz.weights[:, from_active])
        found = slice(self.locked, self.locked + len(from_active))
        order = np.concatenate([from_locked, np.arange(found.start, found.stop)])
        # Downwards, one row at a time: no row is written before it is read.
        for to, origin in enumerate(order):
            self.basis[to] = self.basis[origin]
        self.locked, self.active, self.pending = len(wanted), 0, 0
        _orthonormalize(self.basis[: self.locked])
        self.projected[:] = 0.0
        np.fill_diagonal(self.projected[: self.locked, : self.locked], values)
        self.rounds += 1
        self.log_beta = self.log_upper = self.log_lower = 0.0
        self._add_random()

    def _restart(self, ritz: _Ritz, num_wanted: int) -> None:
        """Keep the Ritz vectors nearest to the wanted ends, and the pending rows."""
        most = len(self.basis) - self.locked - 2 * self.pending
        others = self.active - num_wanted
        done = int((ritz.residuals <= self._target()).sum())
        fewest, fullest = (int(share * others) for share in _KEPT_SHARES)
        keep = min(most, num_wanted + max(1, fewest, min(done, fullest)))
        ranks = np.arange(self.active)
        nearness = {
            "LA": -ranks,
            "SA": ranks,
            "BE": np.minimum(2 * ranks + 1, 2 * ranks[::-1]),
            "LM": -np.abs(ritz.values),
        }[self.which]
        order = np.argsort(nearness, kind="stable")
        kept, discarded = np.sort(order[:keep]), order[keep:]
        lower, upper = self._edges()
        self.log_lower += _log_distances(lower, ritz.values[discarded])
        self.log_upper += _log_distances(upper, ritz.values[discarded])
        active = slice(self.locked, self.locked + self.active)
        pending = slice(active.stop, self.used)
        coupling = self.projected[pending, active] @ ritz.weights[:, kept]
        self._rotate(ritz.weights[:, kept])
        last = self.locked + keep
        self.basis[last : last + self.pending] = self.basis[pending].copy()
        self.projected[self.locked :, self.locked :] = 0.0
        diagonal = np.arange(self.locked, last)
        self.projected[diagonal, diagonal] = ritz.values[kept]
        self.projected[last : last + self.pending, self.locked : last] = coupling
        self.active = keep
        self.restarts += 1

    def _rotate(self, weights: np.ndarray) -> None:
        """Replace the first active rows by combinations of all of them, shape (active, count)."""
        active = slice(self.locked, self.locked + self.active)
        target = slice(self.locked, self.locked + weights.shape[1])
        for begin in range(0, self.size, _ROTATE_LENGTH):
            piece = slice(begin, begin + _ROTATE_LENGTH)
            self.basis[target, piece] = weights.T @ self.basis[active, piece]

    def _add(self, vector: np.ndarray) -> None:
        """Make what a unit vector has across the basis a pending row, if that is anything."""
        used = self.used
        orthogonalize(vector, self.basis[:used])
        norm = float(np.linalg.norm(vector))
        if norm > 1e-10:
            self.basis[used] = vector / norm
            self.pending += 1

    def _add_random(self) -> None:
        vector = stream(self.seed, self.draws).standard_normal(self.size)
        self.draws += 1
        self._add(vector / np.linalg.norm(vector))


class _Checked(NamedTuple):
    """Pairs whose products were computed afresh, in units of 2**exponent."""

    values: np.ndarray  # (k,)
    rows: np.ndarray  # (k, n), orthonormal
    residuals: np.ndarray  # (k,)


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

    Thick-restart Lanczos with full reorthogonalization in float64. A Krylov space holds one vector
    of each eigenspace, so when k pairs have converged they are locked, and Lanczos starts again
    from a random vector in their complement, until such a start finds nothing more that is wanted
    and would have found it with probability `1 - MISS_PROBABILITY`: multiple eigenvalues come as
    often as they are there. Where `subspace` is n, as it is for n <= 20, the decomposition is the
    full one.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
            An attribute `product_dtype` states the precision of its products where this is
            lower than its `dtype`.
        k: number of pairs, 1 to n.
        which: "LM" largest magnitude, "LA" largest, "SA" smallest, or "BE" both ends, the high
            end first where k is odd; the words are those of `scipy.sparse.linalg.eigsh`.
        tolerance: residual over `norm`, the best lower bound of ||A|| met, at which a pair has
            converged. None is eps^(3/4) of the products: 1.8e-12 for float64, 6.4e-6 for float32.
            An eigenvalue that stands alone is off by about the residual's square over its gap.
            Eigenvalues nearer to each other than tolerance * norm count as equal.
        max_products: products at most, with single vectors and for the residuals too; None is
            100 times `subspace`, at least 1000.
        subspace: rows of the basis; None is the largest of 2 k + 1, 20 and k + 8 block_size, or n
            where that is less. More take more memory, n float64 each, and fewer products.
        block_size: vectors multiplied at once until k pairs are found; None is 1. More take fewer
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
            one fixed, symmetric, finite matrix: two passes over the data, once for its weights.

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
    state = _initial_state(operator, size, k, which, tolerance, subspace, block_size, seed)
    # k pairs to begin with, whatever is left of the block then, and their residuals.
    least = min(state.k + state.block_size - 1, size) + state.k
    if max_products is None:
        max_products = max(1000, 100 * state.subspace, 2 * least)
    max_products = integer(max_products, "max_products", least)
    starts = None if start is None else _start_columns(start, size, state.block_size)
    if resume is not None and (start is not None or checkpoint is not None):
        other = "start" if start is not None else "checkpoint"
        raise ValueError(f"A run that is resumed has one already: pass {other} or resume.")
    if resume is not None:
        state = _same_problem(resume, state)
    check_operator(operator, check)
    with ExitStack() as stack:
        saved = None
        if checkpoint is not None:
            run = stack.enter_context(
                open_run(
                    checkpoint,
                    _problem(state, signature(operator), starts),
                    workers_of(operator),
                )
            )
            saved = stack.enter_context(_SavedState(run, state.size))
            state = saved.load(operator) or state
        if not state.rounds:
            state.begin(starts)
        bar = stack.enter_context(progress_bar(max_products, "Eigenpairs", progress))
        bar.update(state.num_products)
        while True:
            while (
                not state.settled and state.num_products + state.pending + state.k <= max_products
            ):
                before = state.num_products
                state.advance(operator)
                bar.update(state.num_products - before)
                if saved is not None:
                    saved.save(state)
                if callback is not None:
                    callback(state)
            checked = state.check(operator)
            bar.update(state.k)
            passed = checked.residuals <= state.tolerance * state.norm
            affordable = state.num_products + 3 * state.k <= max_products
            if not state.settled or passed.all() or not affordable:
                break
            if state.polishes == _MAX_POLISHES:
                break
            state.num_products += state.k
            state.polish(checked)
    return _result(operator, state, checked, passed, max_products)


class _SavedState:
    """The state on disk: rows of the basis are appended until a restart changes them all.

    Each such generation has a log of its own, and the one before it is removed once the new one
    has a state.
    """

    def __init__(self, run: RunDirectory, size: int) -> None:
        self._run = run
        self._size = size
        self._logs = ExitStack()
        self._log: VectorLog | None = None
        self._newest = -1
        self._key: tuple[int, ...] | None = None

    def __enter__(self) -> _SavedState:
        return self

    def __exit__(self, *error: object) -> None:
        self._logs.close()

    def load(self, operator: LinearOperator) -> EigenState | None:
        """Return the state of the newest generation that has one, if it is of this operator."""
        found = [int(name.split("-")[1]) for name in self._run.names("generation-*")]
        for generation in sorted(found, reverse=True):
            self._log = self._open(generation)
            if not self._log.num_vectors:
                continue
            rows = np.stack([self._log.read(index) for index in range(self._log.num_vectors)])
            state = EigenState.from_arrays({**self._log.arrays, "basis": rows})
            self._key = self._generation(state)
            if not identifies(signature(operator)):
                found_value = rows[0] @ block_product(operator, rows[0])
                value = np.ldexp(state.projected[0, 0], state.exponent)
                norm = float(np.ldexp(state.norm, state.exponent))
                if not is_same_form(found_value, value, norm, product_precision(operator)):
                    raise CheckpointError(
                        f"the checkpoint {self._run.path} is of another operator: v'Av of its "
                        f"first vector is {found_value:.6g} and was {value:.6g}. Use another "
                        "directory."
                    )
            return state
        return None

    def save(self, state: EigenState) -> None:
        """Make the state durable."""
        arrays = state.arrays()
        rows = arrays.pop("basis")
        if self._log is None or self._generation(state) != self._key:
            old, self._key = self._log, self._generation(state)
            self._log = self._open(self._newest + 1)
            self._log.append(rows, arrays)
            if old is not None:
                old.remove()
        else:
            self._log.append(rows[self._log.num_vectors :], arrays)

    def _open(self, generation: int) -> VectorLog:
        self._newest = max(generation, self._newest)
        opened = self._run.log(f"generation-{generation}", self._size, np.float64)
        self._logs.callback(opened.close)
        return opened

    @staticmethod
    def _generation(state: EigenState) -> tuple[int, ...]:
        return state.restarts, state.rounds, state.polishes


def _problem(
    state: EigenState, operator: dict[str, Any], starts: np.ndarray | None
) -> dict[str, Any]:
    names = ("k", "which", "tolerance", "precision", "subspace", "block_size", "seed")
    return {
        "algorithm": "top_eigenpairs",
        "operator": operator,
        "start": None if starts is None else array_hash(starts),
    } | {name: getattr(state, name) for name in names}


def power_iteration(
    operator: Any,
    /,
    *,
    tolerance: float | None = None,
    max_products: int = 1000,
    start: np.ndarray | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PowerIteration:
    """Find the eigenvalue of largest magnitude by the power method.

    The classical baseline: the error falls by |lambda_2 / lambda_1| a product, where
    `top_eigenpairs` gains as much in the square root of the number of products. Two eigenvalues of
    largest magnitude and opposite sign keep it from converging, which is noticed and said.

    Args:
        operator: symmetric and real, shape (n, n): `LinearOperator`, array or sparse matrix.
        tolerance: residual over ||A v|| at which it has converged; None is eps^(3/4) of the
            products, see `top_eigenpairs`.
        max_products: products at most.
        start: start vector instead of a random one, shape (n,).
        seed: seed of the random start.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        PowerIteration with `value`, `vector` and true `residual`. Where it has not converged, the
        best so far with `converged` false, and a `ConvergenceWarning`.

    Raises:
        TypeError: if the operator or its products are not real, or an argument has a wrong type.
        ValueError: if the operator is not square, or an argument is out of its range.
        FloatingPointError: if a product with the operator is not finite.

    References:
        Golub, Van Loan (2013), Matrix Computations, section 8.2.1.
    """
    operator = as_real_square(operator)
    size = integer(operator.shape[0], "The number of rows", 1)
    tolerance = _tolerance(tolerance, product_precision(operator))
    max_products = integer(max_products, "max_products", 1)
    seed = integer(seed, "seed", 0)
    if start is None:
        vector = stream(seed, 0).standard_normal(size)
        vector /= np.linalg.norm(vector)
    else:
        vector = _start_columns(start, size, 1)[:, 0].copy()
    before = None
    with progress_bar(max_products, "Power iteration", progress) as bar:
        for count in range(1, max_products + 1):
            product = np.array(block_product(operator, vector, f"at step {count}"))
            bar.update(1)
            with blas_threads(size):
                exponent = int(np.frexp(np.abs(product).max())[1])
                product = np.ldexp(product, -exponent)
                norm = float(np.linalg.norm(product))
                value = float(vector @ product)
                residual = float(np.linalg.norm(product - value * vector))
                converged = residual <= tolerance * norm
                if not converged:
                    product /= norm
                # Two products lead back to where they began, and one far away.
                alternates = (
                    before is not None
                    and residual > tolerance**0.5 * norm
                    and bool(np.linalg.norm(product - before) <= tolerance)
                )
            if converged or alternates or count == max_products:
                break
            before, vector = vector, product
    result = PowerIteration(
        value=float(np.ldexp(value, exponent)),
        vector=vector,
        residual=float(np.ldexp(residual, exponent)),
        converged=converged,
        num_products=count,
    )
    if not converged:
        why = f"has not converged in {count} products"
        remedy = "raise max_products, or use top_eigenpairs, which needs fewer"
        if alternates:
            magnitude = np.ldexp(norm, exponent)
            why = f"cannot converge: both {magnitude:.6g} and {-magnitude:.6g} are eigenvalues"
            remedy = 'use top_eigenpairs with which="BE" or "LM"'
        warnings.warn(
            f"power_iteration {why}. The residual is {result.residual:.2g} where "
            f"{np.ldexp(tolerance * norm, exponent):.2g} was asked for: {remedy}.",
            ConvergenceWarning,
            stacklevel=2,
        )
    return result


def _initial_state(
    operator: LinearOperator,
    size: int,
    k: int,
    which: str,
    tolerance: float | None,
    subspace: int | None,
    block_size: int | None,
    seed: int,
) -> EigenState:
    """Return the state before any start vector, of arguments that are checked."""
    k = integer(k, "k", 1, size)
    if which not in WHICH:
        raise ValueError(f"which must be one of {', '.join(map(repr, WHICH))}, got {which!r}.")
    block_size = 1 if block_size is None else integer(block_size, "block_size", 1, size)
    # Room for the pairs, and to restart from both ends, one block kept and one block new.
    least = min(size, k + 2 * block_size + 1)
    if subspace is None:
        subspace = min(size, max(2 * k + 1, 20, k + _BLOCKS * block_size))
    subspace = integer(subspace, "subspace", 1, size)
    if subspace < least:
        raise ValueError(
            f"subspace must be at least k + 2 block_size + 1 or n, here {least}, got {subspace}."
        )
    precision = product_precision(operator)
    capacity = subspace + block_size
    foresee(
        {"basis": capacity * size * 8, "pairs and products": (k + 3 * block_size) * size * 8},
        "Ask for fewer pairs, a smaller subspace, or fewer parameters with variables=.",
    )
    return EigenState(
        size=size,
        k=k,
        which=which,
        tolerance=_tolerance(tolerance, precision),
        precision=precision,
        subspace=subspace,
        block_size=block_size,
        seed=integer(seed, "seed", 0),
        # Not zeroed: a page of memory is taken only when its row is written.
        basis=np.empty((capacity, size)),
        projected=np.zeros((capacity, capacity)),
    )


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
    return state


def _result(
    operator: LinearOperator,
    state: EigenState,
    checked: _Checked,
    passed: np.ndarray,
    max_products: int,
) -> Eigenpairs:
    order = _result_order(checked.values, state.which)
    # They are in order but for rounding, and a copy would take as much memory again.
    in_order = (order == np.arange(state.k)).all()
    result = Eigenpairs(
        values=np.ldexp(checked.values[order], state.exponent),
        vectors=(checked.rows if in_order else checked.rows[order]).T,
        residuals=np.ldexp(checked.residuals[order], state.exponent),
        converged=passed[order],
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
    if asymmetry > _EPS**0.25 * result.norm:
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
    warnings.warn(text, ConvergenceWarning, stacklevel=4)


def _result_order(values: np.ndarray, which: str) -> np.ndarray:
    keys = {"LM": -np.abs(values), "LA": -values, "SA": values, "BE": values}
    return np.argsort(keys[which], kind="stable")


def _tolerance(tolerance: float | None, precision: float) -> float:
    if tolerance is None:
        return precision**0.75
    return number(tolerance, "tolerance", above=0.0)


def _start_columns(start: Any, size: int, block_size: int) -> np.ndarray:
    """Return start vectors as unit columns, shape (n, count), count at most block_size."""
    shape = np.shape(start)
    count = min(max(shape[1], 1), block_size) if len(shape) == 2 else 1
    return as_starts(start, size, count)


def _log_distances(edge: float, values: np.ndarray) -> float:
    """Return the sum of log |edge - values|; 0 for an edge at infinity."""
    if not np.isfinite(edge):
        return 0.0
    return float(np.log(np.maximum(np.abs(edge - values), np.finfo(np.float64).tiny)).sum())


def _orthonormalize(rows: np.ndarray) -> None:
    """Make rows that are orthonormal but for rounding so to the last digit, in place."""
    for index, row in enumerate(rows):
        orthogonalize(row, rows[:index])
        row /= np.linalg.norm(row)
