"""Thick-restart Lanczos with locking, one step at a time, and its termination test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from math import log, pi
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.arguments import random_direction, row_products
from spectral_density.linalg.eigenvalue_selection import (
    log_distances,
    nearest_to_ends,
    result_order,
    wanted_edges,
    wanted_indices,
)
from spectral_density.linalg.orthogonalization import orthogonalize, orthonormalize
from spectral_density.linalg.threads import blas_threads

MISS_PROBABILITY = 1e-4
"""How likely an eigenvalue that was asked for may at most be missed by the last random start."""

# Random streams: a key of this file's own.
_KEY = 7045
_EPS = float(np.finfo(np.float64).eps)

# Share of the tolerance that the recurrence's own residual must meet: the rest is for rounding.
_SHARE = 0.5

# Share of what is left of that with each attempt to improve pairs whose true residual is larger.
_POLISH = 0.1

# A restart keeps what is wanted and, of the others, as many as have converged within these shares:
# measured on cases A and B of the tests, where they need no more products than ARPACK's rule.
_KEPT_SHARES = (0.4, 0.7)

# Products for true residuals that are computed together, and columns that are rotated together.
_CHECK_WIDTH = 8
_ROTATE_LENGTH = 2**13


class _Ritz(NamedTuple):
    """Rayleigh-Ritz pairs of the rows that are not locked."""

    values: np.ndarray  # (active,), ascending
    weights: np.ndarray  # (active, active), coefficients of the Ritz vectors as columns
    residuals: np.ndarray  # (active,), as the recurrence has them


class CheckedPairs(NamedTuple):
    """Pairs whose products were computed afresh, in units of 2**exponent."""

    values: np.ndarray  # (k,)
    rows: np.ndarray  # (k, n), orthonormal
    residuals: np.ndarray  # (k,)


@dataclass(eq=False, repr=False)
class EigenState:
    """The state of a `top_eigenpairs` run between two steps; `advance` makes one step.

    Rows of the basis, in this order: `locked` eigenvectors; `active` vectors V whose products are
    known, A V = V T + P B but for locked directions; `pending` vectors P, to be multiplied next.
    T and B are in the rows and columns of `projected` that belong to V and P.

    A round is a random start and what grows out of it in the complement of the locked vectors. It
    ends when the wanted eigenvalues it has are converged and locked. The last round has none.
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
    norm: float = 0.0  # largest |Ritz value| or norm of a product
    asymmetry: float = 0.0  # largest |u' A v - v' A u|: rounding, or no symmetric operator
    log_beta: float = 0.0  # sum of log beta in this round
    log_upper: float = 0.0  # sum of log |edge - Ritz value| over those discarded, upper edge
    log_lower: float = 0.0  # the same for the lower edge
    settled: bool = False  # whether all wanted pairs have converged, by the recurrence

    @property
    def used(self) -> int:
        """Rows of the basis in use."""
        return self.locked + self.active + self.pending

    @property
    def values(self) -> np.ndarray:
        """Best approximations of the wanted eigenvalues so far, in the order of the result."""
        active = self._ritz().values
        wanted = self._union(active)[self._wanted(active)]
        return np.ldexp(wanted[result_order(wanted, self.which)], self.exponent)

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
        """Return the state of `arrays`, which are copied; a run continues from it to the same bits.

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

    def polish(self, pairs: CheckedPairs) -> None:
        """Go on from checked pairs: those that passed are locked, the others multiplied again."""
        self.polishes += 1
        failed = ~self.passed(pairs)
        # New directions need rows too: the worst ones are improved first.
        worst = np.argsort(-np.where(failed, pairs.residuals, -1.0), kind="stable")
        most = max(1, (self.subspace - self.k) // 2)
        again = np.sort(worst[: min(failed.sum(), most)])
        kept = np.setdiff1d(np.arange(self.k), again)
        self.basis[: self.k] = pairs.rows[np.concatenate([kept, again])]
        self.projected[:] = 0.0
        np.fill_diagonal(self.projected[: len(kept), : len(kept)], pairs.values[kept])
        self.locked, self.active, self.pending = len(kept), 0, len(again)
        self.log_beta = self.log_upper = self.log_lower = 0.0
        self.settled = False

    def check(self, operator: LinearOperator) -> CheckedPairs:
        """Return the k wanted pairs with residuals from products of their own; changes nothing."""
        ritz = self._ritz()
        wanted = self._wanted(ritz.values)
        wanted = wanted[result_order(self._union(ritz.values)[wanted], self.which)]
        active = self.basis[self.locked : self.locked + self.active]
        rows = np.empty((len(wanted), self.size))
        with blas_threads(self.size):
            for row, index in zip(rows, wanted, strict=True):
                if index < self.locked:
                    row[:] = self.basis[index]
                else:
                    np.matmul(ritz.weights[:, index - self.locked], active, out=row)
            orthonormalize(rows)
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
        return CheckedPairs(values, rows, residuals)

    def passed(self, pairs: CheckedPairs) -> np.ndarray:
        """Return which pairs have a small enough true residual, shape (k,)."""
        return pairs.residuals <= self.tolerance * self.norm

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
        products, _ = row_products(operator, rows, where)
        return np.ldexp(products, -self.exponent, out=products)

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
                continue  # the rest is rounding
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
        """End the round if the wanted pairs have converged; else make room for the next step."""
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
        """Length below which the rest of a product is rounding."""
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
        return wanted_indices(values, self.which, self.k, bonus)

    def _split(self, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices among the locked, and those among the active."""
        return wanted[wanted < self.locked], wanted[wanted >= self.locked] - self.locked

    # Rounds

    def _edges(self) -> tuple[float, float]:
        """Return (lower, upper), beyond which no eigenvalue may be left once k are locked."""
        if self.locked < self.k:
            return -np.inf, np.inf
        return wanted_edges(self._locked_values(), self.which, self._slack())

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
                log_x = self.log_beta - discarded - log_distances(edge, ritz.values)
                if log_x + 0.5 * log(2 * dimension / pi) > log(MISS_PROBABILITY):
                    return False
        return True

    def _lock(self, ritz: _Ritz, wanted: np.ndarray) -> None:
        """Lock the wanted pairs, discard all others, and begin a round."""
        from_locked, from_active = self._split(wanted)
        values = self._union(ritz.values)[wanted]
        self._rotate(ritz.weights[:, from_active])
        rotated = np.arange(self.locked, self.locked + len(from_active))
        order = np.concatenate([from_locked, rotated])
        # Downwards, one row at a time: no row is written before it is read.
        for to, origin in enumerate(order):
            self.basis[to] = self.basis[origin]
        self.locked, self.active, self.pending = len(wanted), 0, 0
        orthonormalize(self.basis[: self.locked])
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
        order = nearest_to_ends(ritz.values, self.which)
        kept, discarded = np.sort(order[:keep]), order[keep:]
        lower, upper = self._edges()
        self.log_lower += log_distances(lower, ritz.values[discarded])
        self.log_upper += log_distances(upper, ritz.values[discarded])
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
        """Make the part of a unit vector across the basis a pending row, unless it is rounding."""
        used = self.used
        orthogonalize(vector, self.basis[:used])
        norm = float(np.linalg.norm(vector))
        if norm > 1e-10:
            self.basis[used] = vector / norm
            self.pending += 1

    def _add_random(self) -> None:
        vector = random_direction(self.size, self.seed, _KEY, self.draws)
        self.draws += 1
        self._add(vector)
