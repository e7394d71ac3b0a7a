"""Thick-restart Lanczos with locking, one step at a time, and its termination test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import log, pi
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.arguments import random_direction
from spectral_density.linalg.eigenvalue_selection import (
    log_distances,
    nearest_to_ends,
    result_order,
    wanted_edges,
    wanted_indices,
)
from spectral_density.linalg.threads import blas_threads
from spectral_density.linalg.vectors import HostVectors, Rows, Vectors

MISS_PROBABILITY = 1e-4
"""How likely an eigenvalue that was asked for may at most be missed by the last random start."""

# Random streams: a key of this file's own.
_KEY = 7045

# Share of the tolerance that the recurrence's own residual must meet: the rest is for rounding.
_SHARE = 0.5

# Share of what is left of that with each attempt to improve pairs whose true residual is larger.
_POLISH = 0.1

# A restart keeps what is wanted and, of the others, as many as have converged within these shares:
# measured on cases A and B of the tests, where they need no more products than ARPACK's rule.
_KEPT_SHARES = (0.4, 0.7)

# Products for true residuals that are computed together.
_CHECK_WIDTH = 8


class _Ritz(NamedTuple):
    """Rayleigh-Ritz pairs of the rows that are not locked."""

    values: np.ndarray  # (active,), ascending
    weights: np.ndarray  # (active, active), coefficients of the Ritz vectors as columns
    residuals: np.ndarray  # (active,), as the recurrence has them


class CheckedPairs(NamedTuple):
    """Pairs whose products were computed afresh, in units of 2**exponent."""

    values: np.ndarray  # (k,)
    rows: Rows  # (k, n), orthonormal
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
    rows: Rows  # room for m + b, of which locked + active + pending are used
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
    def basis(self) -> np.ndarray:
        """The rows in use, (used, n): NumPy's own, or a copy from where they are."""
        return self.rows.to_host(self.used)

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
        return {**self.arrays_but_basis(), "basis": _read_only(self.basis)}

    def arrays_but_basis(self) -> dict[str, np.ndarray]:
        """Return `arrays` without "basis", for which vectors would come to the host."""
        names = [item.name for item in fields(self) if item.name != "rows"]
        return {name: _read_only(np.asarray(getattr(self, name))) for name in names}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], /, *, vectors: Vectors | None = None
    ) -> EigenState:
        """Return the state of `arrays`, which are copied; a run continues from it to the same bits.

        Args:
            arrays: by name.
            vectors: those of the operator where it has some on a device; None for NumPy's.

        Raises:
            ValueError: if an array is missing or the shapes do not fit.
        """
        names = {item.name for item in fields(cls)} - {"rows"} | {"basis"}
        missing = sorted(names - set(arrays))
        if missing:
            raise ValueError(f"This is no state of top_eigenpairs: {', '.join(missing)} missing.")
        values: dict[str, Any] = {
            name: np.asarray(arrays[name]).item() for name in names - {"basis", "projected"}
        }
        basis = np.asarray(arrays["basis"])
        projected = np.array(arrays["projected"], dtype=np.float64)
        capacity = values["subspace"] + values["block_size"]
        used = values["locked"] + values["active"] + values["pending"]
        if basis.shape != (used, values["size"]) or projected.shape != (capacity, capacity):
            raise ValueError(
                f"This is no state of top_eigenpairs: basis {basis.shape} and projected "
                f"{projected.shape} must have shapes ({used}, {values['size']}) and "
                f"({capacity}, {capacity})."
            )
        vectors = HostVectors(values["size"]) if vectors is None else vectors
        rows = vectors.rows(capacity)
        for index, row in enumerate(basis):
            rows.write(index, vectors.to_engine(row))
        return cls(rows=rows, projected=projected, **values)

    # Steps. Each leaves the state ready for the next product, or settled.

    def advance(self, operator: LinearOperator) -> None:
        """Make one step: one block product, and all that follows from it."""
        first = self.locked + self.active
        block = [self.rows.read(first + index) for index in range(self.pending)]
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
                self._add(self.rows.vectors.to_engine(np.array(column)))
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
        for to, origin in enumerate(np.concatenate([kept, again])):
            self.rows.write(to, pairs.rows.read(origin))
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
        vectors = self.rows.vectors
        rows = vectors.rows(len(wanted))
        with blas_threads(self.size):
            for number, index in enumerate(wanted):
                if index < self.locked:
                    rows.write(number, self.rows.read(index))
                else:
                    weights = ritz.weights[:, index - self.locked]
                    rows.write(number, self.rows.combine(weights, self.locked))
            rows.orthonormalize(len(wanted))
        values, residuals = np.empty(len(wanted)), np.empty(len(wanted))
        # One by one where all products are: blocks of another width might not repeat to the bit.
        width = min(self.block_size, _CHECK_WIDTH)
        for begin in range(0, len(wanted), width):
            piece = slice(begin, min(begin + width, len(wanted)))
            pairs = [rows.read(index) for index in range(piece.start, piece.stop)]
            products = self._scale(operator, pairs, "of the residuals")
            with blas_threads(self.size):
                values[piece] = vectors.inners(pairs, products)
                rests = map(vectors.subtract, products, values[piece], pairs)
                residuals[piece] = vectors.norms(list(rests))
        return CheckedPairs(values, rows, residuals)

    def passed(self, pairs: CheckedPairs) -> np.ndarray:
        """Return which pairs have a small enough true residual, shape (k,)."""
        return pairs.residuals <= self.tolerance * self.norm

    def _multiply(self, operator: LinearOperator, block: Sequence[Any], where: str) -> list[Any]:
        self.num_products += len(block)
        vectors = self.rows.vectors
        products = self._scale(operator, block, where)
        if not self.scaled and (peak := vectors.peak(products)):
            # Only zeros came before, so units may still change: no square over- or underflows.
            self.exponent = int(np.frexp(peak)[1])
            self.scaled = True
            products = [vectors.times_power(product, -self.exponent) for product in products]
        return products

    def _scale(self, operator: LinearOperator, block: Sequence[Any], where: str) -> list[Any]:
        """Return the products with vectors in units of 2**exponent: always copies."""
        vectors = self.rows.vectors
        products, _ = vectors.products(operator, block, where)
        return [vectors.times_power(product, -self.exponent) for product in products]

    def _absorb(self, products: Sequence[Any]) -> None:
        """Make the pending rows active, given their products, and pending what these add."""
        first = self.locked + self.active
        rows = after = first + self.pending
        vectors = self.rows.vectors
        for index, w in enumerate(products):
            self.norm = max(self.norm, vectors.norm(w))
            rest, along = self.rows.orthogonalize(w, rows)
            beta = vectors.norm(rest)
            column = first + index
            self.projected[self.locked : rows, column] = along[self.locked :]
            if rows == self.size or beta <= self._negligible():
                continue  # the rest is rounding
            self.rows.write(rows, vectors.divided(rest, beta))
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
        if self.used + self.pending > self.rows.capacity:
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
        return max(4 * self.rows.vectors.eps * self.norm, self.asymmetry)

    def _negligible(self) -> float:
        """Length below which the rest of a product is rounding."""
        # Products may be better than the dtype they state: a tolerance below that is believed.
        least = 10 * self.rows.vectors.eps
        return max(least, min(10 * self.precision, self.tolerance)) * self.norm

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
        self.rows.rotate(ritz.weights[:, from_active], self.locked)
        rotated = np.arange(self.locked, self.locked + len(from_active))
        order = np.concatenate([from_locked, rotated])
        # Downwards, one row at a time: no row is written before it is read.
        for to, origin in enumerate(order):
            self.rows.write(to, self.rows.read(origin))
        self.locked, self.active, self.pending = len(wanted), 0, 0
        self.rows.orthonormalize(self.locked)
        self.projected[:] = 0.0
        np.fill_diagonal(self.projected[: self.locked, : self.locked], values)
        self.rounds += 1
        self.log_beta = self.log_upper = self.log_lower = 0.0
        self._add_random()

    def _restart(self, ritz: _Ritz, num_wanted: int) -> None:
        """Keep the Ritz vectors nearest to the wanted ends, and the pending rows."""
        most = self.rows.capacity - self.locked - 2 * self.pending
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
        self.rows.rotate(ritz.weights[:, kept], self.locked)
        last = self.locked + keep
        for index in range(self.pending):
            self.rows.write(last + index, self.rows.read(pending.start + index))
        self.projected[self.locked :, self.locked :] = 0.0
        diagonal = np.arange(self.locked, last)
        self.projected[diagonal, diagonal] = ritz.values[kept]
        self.projected[last : last + self.pending, self.locked : last] = coupling
        self.active = keep
        self.restarts += 1

    def _add(self, vector: Any) -> None:
        """Make the part of a unit vector across the basis a pending row, unless it is rounding."""
        vectors, used = self.rows.vectors, self.used
        vector, _ = self.rows.orthogonalize(vector, used)
        norm = vectors.norm(vector)
        if norm > max(1e-10, 10 * self.rows.vectors.eps):
            self.rows.write(used, vectors.divided(vector, norm))
            self.pending += 1

    def _add_random(self) -> None:
        vector = random_direction(self.size, self.seed, _KEY, self.draws)
        self.draws += 1
        self._add(self.rows.vectors.to_engine(vector))


def _read_only(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
