"""Checkpoints of thick-restart Lanczos: its state on disk."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.checkpoint import CheckpointError, RunDirectory, VectorLog
from spectral_density.linalg.arguments import (
    array_hash,
    identifies,
    is_same_form,
    signature,
)
from spectral_density.linalg.thick_restart import EigenState
from spectral_density.linalg.vectors import Vectors, identity_of


class SavedState:
    """The state on disk: rows of the basis are appended until a restart changes all of them.

    Each such generation has a log of its own, and the one before it is removed once the new one
    has a state.
    """

    def __init__(self, run: RunDirectory, vectors: Vectors) -> None:
        self._run = run
        self._vectors = vectors
        self._logs = ExitStack()
        self._log: VectorLog | None = None
        self._newest = -1
        self._key: tuple[int, ...] | None = None

    def __enter__(self) -> SavedState:
        return self

    def __exit__(self, *error: object) -> None:
        self._logs.close()

    def load(self, operator: LinearOperator) -> EigenState | None:
        """Return the state of the newest generation that has one, if it is of this operator."""
        generations = [int(name.split("-")[1]) for name in self._run.names("generation-*")]
        for generation in sorted(generations, reverse=True):
            self._log = self._open(generation)
            if not self._log.num_vectors:
                continue
            rows = np.stack([self._log.read(index) for index in range(self._log.num_vectors)])
            arrays = {**self._log.arrays, "basis": rows}
            state = EigenState.from_arrays(arrays, vectors=self._vectors)
            self._key = self._generation(state)
            if not identifies(signature(operator)):
                first = state.rows.read(0)
                (product,), rounding = self._vectors.products(operator, [first])
                now = self._vectors.inner(first, product)
                value = np.ldexp(state.projected[0, 0], state.exponent)
                norm = float(np.ldexp(state.norm, state.exponent))
                if not is_same_form(now, value, norm, rounding):
                    raise CheckpointError(
                        f"the checkpoint {self._run.path} is of another operator: v'Av of its "
                        f"first vector is {now:.6g} and was {value:.6g}. Use another "
                        "directory."
                    )
            return state
        return None

    def save(self, state: EigenState) -> None:
        """Make the state durable."""
        arrays = state.arrays_but_basis()
        if self._log is None or self._generation(state) != self._key:
            old, self._key = self._log, self._generation(state)
            self._log = self._open(self._newest + 1)
            self._log.append(state.rows.to_host(state.used), arrays)
            if old is not None:
                old.remove()
        else:
            known = self._log.num_vectors
            self._log.append(state.rows.to_host(state.used - known, known), arrays)

    def _open(self, generation: int) -> VectorLog:
        self._newest = max(generation, self._newest)
        opened = self._run.log(f"generation-{generation}", self._vectors.size, self._vectors.dtype)
        self._logs.callback(opened.close)
        return opened

    @staticmethod
    def _generation(state: EigenState) -> tuple[int, ...]:
        return state.restarts, state.rounds, state.polishes


def problem_of(
    state: EigenState, operator: dict[str, Any], starts: np.ndarray | None
) -> dict[str, Any]:
    """Return what must be the same in every run that shares a checkpoint."""
    names = ("k", "which", "tolerance", "precision", "subspace", "block_size", "seed")
    return {
        "algorithm": "top_eigenpairs",
        "operator": operator,
        "start": None if starts is None else array_hash(starts),
        **identity_of(state.rows.vectors),
    } | {name: getattr(state, name) for name in names}
