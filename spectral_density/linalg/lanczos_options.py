"""Options of a Lanczos run: argument checks, memory, checkpoint identity, groups of draws."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.checkpoint import workers_of
from spectral_density.linalg.arguments import array_hash, integer, signature
from spectral_density.linalg.lanczos_recurrence import LanczosRecurrence
from spectral_density.linalg.lockstep import LockstepGroup, lockstep_groups
from spectral_density.linalg.memory import on_disk
from spectral_density.linalg.start_vectors import as_starts, start_vector
from spectral_density.linalg.vectors import (
    Bases,
    HostBases,
    HostVectors,
    Vectors,
    check_memory_of,
    identity_of,
    vectors_of,
)

_WAYS_OUT = (
    "basis_dtype='float32' halves the basis, basis='disk' keeps it in a file, fewer draws_at_once "
    "and keep_basis=False hold fewer vectors, reorthogonalize='none' holds two a draw and is right "
    "for densities; or choose a lower order, or fewer parameters with variables=."
)
_WAYS_OUT_OF_A_DEVICE = "basis='host' keeps it in the memory of the host, in float64; " + _WAYS_OUT


class LanczosOptions:
    """The options of `lanczos`, checked; see there for their meaning and for the errors.

    Attributes:
        size: n, rows of the operator.
        vectors: where the Lanczos vectors are.
        dtype: of the basis.
        starts: given start vectors as unit columns, shape (n, num_draws), or None.
        groups: draws that advance together, one range a group.
    """

    def __init__(
        self,
        operator: LinearOperator,
        order: Any,
        *,
        num_draws: Any,
        seed: Any,
        first_draw: Any,
        reorthogonalize: Any,
        draws_at_once: Any,
        basis_dtype: Any,
        basis: Any,
        keep_basis: bool,
        start: Any,
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        self.size: int = operator.shape[0]
        self.order = integer(order, "order", 1)
        if self.order > self.size:
            raise ValueError(
                f"order is {order}, but the operator has n = {self.size} rows and no more than n "
                f"Lanczos steps exist. Use order <= {self.size}."
            )
        self.num_draws = integer(num_draws, "num_draws", 1)
        self.seed = integer(seed, "seed", 0)
        self.first_draw = integer(first_draw, "first_draw", 0)
        if reorthogonalize not in ("full", "none"):
            raise ValueError(f"reorthogonalize must be 'full' or 'none', got {reorthogonalize!r}.")
        self.reorthogonalize: str = reorthogonalize
        self.basis: str = basis
        self.vectors = basis_vectors(operator, basis)
        self.dtype = checked_basis_dtype(basis_dtype, self.vectors)
        self.keep_basis = keep_basis
        self.starts = None if start is None else as_starts(start, self.size, self.num_draws)
        self.checkpoint = checkpoint
        self.groups = lockstep_groups(
            self.size,
            self.order,
            num_draws=self.num_draws,
            first_draw=self.first_draw,
            draws_at_once=draws_at_once,
            reorthogonalize=reorthogonalize,
            basis_dtype=self.dtype,
            checkpoint=checkpoint,
            workers=workers_of(operator),
        )

    @property
    def full(self) -> bool:
        """Whether every vector is made orthogonal to all before it."""
        return self.reorthogonalize == "full"

    @property
    def keeps_rows(self) -> bool:
        """Whether the result has a basis."""
        return self.keep_basis and self.full

    def check_memory(self) -> None:
        """Raise a `MemoryError` if the run would not fit into the free memory."""
        needed = memory_needed(
            self.size,
            self.order,
            num_draws=self.num_draws,
            draws_at_once=max(map(len, self.groups)),
            reorthogonalize=self.reorthogonalize,
            basis_dtype=self.dtype,
            basis=self.basis,
            keep_basis=self.keep_basis,
            vectors=self.vectors,
        )
        on_host = isinstance(self.vectors, HostVectors)
        check_memory_of(self.vectors, needed, _WAYS_OUT if on_host else _WAYS_OUT_OF_A_DEVICE)

    def problem(self, operator: LinearOperator) -> dict[str, Any]:
        """Return what must be the same in every run that shares a checkpoint."""
        return {
            "algorithm": "lanczos",
            "operator": signature(operator),
            "seed": self.seed,
            "start": None if self.starts is None else array_hash(self.starts),
            "reorthogonalize": self.reorthogonalize,
            "basis_dtype": self.dtype.name,
            **identity_of(self.vectors),
        }

    def allocate(self, num_draws: int) -> Bases:
        """Return room for the Lanczos vectors of some draws."""
        num_rows = self.order if self.full else 2
        if self.basis == "disk":
            shape = (num_draws, num_rows, self.size)
            return HostBases(on_disk(shape, self.dtype, self.checkpoint))
        return self.vectors.bases(num_draws, num_rows, self.dtype)

    def group(
        self, draws: range, alpha: np.ndarray, beta: np.ndarray, bases: Bases | None
    ) -> LockstepGroup:
        """Return a group before its first step, given the arrays of all draws."""
        members = slice(draws.start - self.first_draw, draws.stop - self.first_draw)
        parts = self.allocate(len(draws)).parts if bases is None else bases.parts[members]
        recurrences = []
        for draw, rows, a, b in zip(draws, parts, alpha[members], beta[members], strict=True):
            rows.write(0, self.vectors.to_engine(self.first_vector(draw)))
            recurrences.append(
                LanczosRecurrence(
                    rows,
                    a,
                    b,
                    key=(self.seed, draw),
                    full=self.full,
                    extendable=self.checkpoint is not None,
                )
            )
        return LockstepGroup(draws, recurrences, alpha[members], beta[members])

    def first_vector(self, draw: int) -> np.ndarray:
        """Return the start vector of a draw."""
        if self.starts is None:
            return start_vector(self.size, self.seed, draw)
        return self.starts[:, draw - self.first_draw]


def memory_needed(
    size: int,
    order: int,
    *,
    num_draws: int = 1,
    draws_at_once: int = 1,
    reorthogonalize: str = "full",
    basis_dtype: Any = "float64",
    basis: str = "memory",
    keep_basis: bool = True,
    vectors: Vectors | None = None,
) -> dict[str, int]:
    """Return the bytes that `lanczos` holds between two products, by name.

    `vectors` are those of the operator where the basis is; None for NumPy's.
    """
    full = reorthogonalize == "full"
    kept = num_draws if keep_basis and full else draws_at_once
    row = size * np.dtype(basis_dtype).itemsize
    vectors = HostVectors(size) if vectors is None else vectors
    num_rows = vectors.allocated(order if full else 2)
    return {
        "basis": kept * num_rows * row if basis != "disk" else 0,
        # The vectors, their products, and a copy of these as rows.
        "block": 3 * draws_at_once * size * vectors.dtype.itemsize,
    }


def basis_vectors(operator: Any, basis: Any) -> Vectors:
    """Return the vectors of a basis that is to be in a place.

    Raises:
        ValueError: if there is no such place.
    """
    if basis not in ("memory", "host", "disk"):
        raise ValueError(f"basis must be 'host', 'memory' or 'disk', got {basis!r}.")
    return vectors_of(operator) if basis == "memory" else HostVectors(operator.shape[0])


def checked_basis_dtype(dtype: Any, vectors: Vectors) -> np.dtype:
    """Return the dtype of a basis: that of the vectors where None is given.

    Raises:
        ValueError: if it is not float64 or float32, or more precise than the vectors are.
    """
    if dtype is None:
        return vectors.dtype
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = np.dtype(object)
    if result not in (np.float32, np.float64):
        raise ValueError(f"basis_dtype must be 'float64' or 'float32', got {dtype!r}.")
    if result.itemsize > vectors.dtype.itemsize:
        raise ValueError(
            f"basis_dtype is {result.name}, and the vectors on {vectors.place} are "
            f"{vectors.dtype.name}: leave it out, or have the basis on the host with basis='host'."
        )
    return result
