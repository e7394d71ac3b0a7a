"""Options of a Lanczos run: argument checks, memory, checkpoint identity, groups of draws."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.checkpoint import workers_of
from spectral_density.linalg.arguments import array_hash, integer, signature
from spectral_density.linalg.block_recurrence import BlockRecurrence
from spectral_density.linalg.lanczos_recurrence import LanczosRecurrence
from spectral_density.linalg.lockstep import LockstepGroup, lockstep_groups
from spectral_density.linalg.memory import on_disk
from spectral_density.linalg.start_vectors import (
    as_start_blocks,
    as_starts,
    start_block,
    start_vector,
)
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
    "and keep_basis=False hold fewer vectors, reorthogonalize='none' holds two a start vector and "
    "is right for densities; or choose a lower order, or fewer parameters with variables=."
)
_WAYS_OUT_OF_A_DEVICE = "basis='host' keeps it in the memory of the host, in float64; " + _WAYS_OUT


class LanczosOptions:
    """The options of `lanczos`, checked; see there for their meaning and for the errors.

    Attributes:
        size: n, rows of the operator.
        vectors: where the Lanczos vectors are.
        dtype: of the basis.
        block: b, start vectors of a draw.
        starts: given start vectors as unit columns, shape (n, num_draws * b), or None; those of a
            draw are orthonormal.
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
        block: Any = 1,
    ) -> None:
        self.size: int = operator.shape[0]
        self.block = checked_block(block, self.size)
        self.order = integer(order, "order", 1)
        check_order(self.order, self.size, self.block)
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
        self.starts = None
        if start is not None:
            self.starts = as_starts(start, self.size, self.num_draws * self.block)
            if self.block > 1:
                self.starts = as_start_blocks(self.starts, self.block)
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
            block=self.block,
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
            block=self.block,
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
            # Checkpoints of single vectors do not record it.
            **({"block": self.block} if self.block > 1 else {}),
        }

    def allocate(self, num_draws: int) -> Bases:
        """Return room for the Lanczos vectors of some draws."""
        num_rows = self.block * (self.order if self.full else 2)
        if self.basis == "disk":
            shape = (num_draws, num_rows, self.size)
            return HostBases(on_disk(shape, self.dtype, self.checkpoint))
        return self.vectors.bases(num_draws, num_rows, self.dtype)

    def coefficients(self) -> tuple[np.ndarray, np.ndarray]:
        """Return room for alpha and beta of all draws, zeros."""
        shape = (self.num_draws, self.order)
        alpha, beta = np.zeros((2, *shape) if self.block == 1 else (2, *shape, *2 * (self.block,)))
        return alpha, beta

    def group(
        self, draws: range, alpha: np.ndarray, beta: np.ndarray, bases: Bases | None
    ) -> LockstepGroup:
        """Return a group before its first step, given the arrays of all draws."""
        members = slice(draws.start - self.first_draw, draws.stop - self.first_draw)
        parts = self.allocate(len(draws)).parts if bases is None else bases.parts[members]
        recurrences = []
        kind = LanczosRecurrence if self.block == 1 else BlockRecurrence
        for draw, rows, a, b in zip(draws, parts, alpha[members], beta[members], strict=True):
            for index, vector in enumerate(self.first_vectors(draw)):
                rows.write(index, self.vectors.to_engine(vector))
            recurrences.append(
                kind(
                    rows,
                    a,
                    b,
                    key=(self.seed, draw),
                    full=self.full,
                    extendable=self.checkpoint is not None,
                )
            )
        return LockstepGroup(draws, recurrences, alpha[members], beta[members])

    def first_vectors(self, draw: int) -> np.ndarray:
        """Return the start vectors of a draw as rows, shape (b, n)."""
        if self.starts is not None:
            first = (draw - self.first_draw) * self.block
            return self.starts[:, first : first + self.block].T
        if self.block == 1:
            return start_vector(self.size, self.seed, draw)[np.newaxis]
        return start_block(self.size, self.seed, draw, self.block)


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
    block: int = 1,
) -> dict[str, int]:
    """Return the bytes that `lanczos` holds between two products, by name.

    `vectors` are those of the operator where the basis is; None for NumPy's.
    """
    full = reorthogonalize == "full"
    kept = num_draws if keep_basis and full else draws_at_once
    row = size * np.dtype(basis_dtype).itemsize
    vectors = HostVectors(size) if vectors is None else vectors
    num_rows = vectors.allocated(block * (order if full else 2))
    return {
        "basis": kept * num_rows * row if basis != "disk" else 0,
        # The vectors, their products, and a copy of these as rows.
        "block": 3 * draws_at_once * block * size * vectors.dtype.itemsize,
    }


def checked_block(block: Any, size: int) -> int:
    """Return a number of start vectors of a draw.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is less than 1, or more than there are directions.
    """
    block = integer(block, "block", 1)
    if block > size:
        raise ValueError(
            f"block is {block}, but the operator has n = {size} rows and no more than n orthogonal "
            f"start vectors exist. Use block <= {size}."
        )
    return block


def check_order(order: int, size: int, block: int = 1) -> None:
    """Check that so many steps exist.

    Raises:
        ValueError: if their vectors are more than n.
    """
    if order * block <= size:
        return
    if block == 1:
        raise ValueError(
            f"order is {order}, but the operator has n = {size} rows and no more than n "
            f"Lanczos steps exist. Use order <= {size}."
        )
    raise ValueError(
        f"order is {order} with blocks of {block}, but the operator has n = {size} rows and no "
        f"more than n / {block} steps exist. Use order <= {size // block}."
    )


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
