"""Lanczos draws in lockstep: their groups, their block products, and their checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.checkpoint import CheckpointError, RunDirectory, VectorLog, Workers
from spectral_density.linalg.arguments import (
    identifies,
    integer,
    is_same_form,
    precision,
    product_error,
    rounding_share,
    signature,
)
from spectral_density.linalg.lanczos_recurrence import Recurrence
from spectral_density.linalg.vectors import Vectors

GROUP_BYTES = 2 * 1024**3
"""Bytes that the Lanczos vectors of draws advancing in lockstep may take by default."""

GROUP_DRAWS = 16
"""Start vectors of draws that advance in lockstep at most by default."""

# Share of ||A|| by which u'Av and v'Au may differ; low precision has more.
_ASYMMETRY = 1e-3


def lockstep_groups(
    size: int,
    order: int,
    *,
    num_draws: int,
    first_draw: int = 0,
    draws_at_once: int | None = None,
    reorthogonalize: str = "full",
    basis_dtype: Any = "float64",
    checkpoint: str | os.PathLike[str] | None = None,
    workers: Workers | None = None,
    block: int = 1,
) -> list[range]:
    """Return the draws that advance together, group by group; see `lanczos` for the arguments.

    Groups that a checkpoint has begun stay as they are. Of `workers` that compute a run together
    the chief alone looks for them, and all must call this.

    Raises:
        ValueError: if the last of the draws is in the middle of a group begun.
    """
    if draws_at_once is None:
        draws_at_once = default_draws_at_once(
            size, order, reorthogonalize=reorthogonalize, basis_dtype=basis_dtype, block=block
        )
    draws_at_once = integer(draws_at_once, "draws_at_once", 1)
    begun = groups_begun(checkpoint, workers)
    groups, draw, end = [], first_draw, first_draw + num_draws
    while draw < end:
        ahead = min((first for first in begun if first > draw), default=end)
        stop = begun.get(draw, min(draw + draws_at_once, end, ahead))
        if stop > end:
            raise ValueError(
                f"the checkpoint advances draws {draw} to {stop - 1} together, and {num_draws} "
                f"draws from {first_draw} end among them. Ask for num_draws={stop - first_draw}, "
                "or use another directory."
            )
        groups.append(range(draw, stop))
        draw = stop
    return groups


def groups_begun(
    path: str | os.PathLike[str] | None, workers: Workers | None = None
) -> dict[int, int]:
    """Return the groups of a checkpoint: the first draw to the one after the last.

    Of several workers only the chief may have the directory; its answer is sent to the others.
    """
    if path is None:
        return {}
    folder = Path(path)

    def here() -> dict[int, int]:
        names = (entry.name.split("-") for entry in folder.glob("draws-*-*"))
        return {int(first): int(end) for _, first, end in names}

    return here() if workers is None else workers.on_chief(here)


def default_draws_at_once(
    size: int,
    order: int,
    *,
    reorthogonalize: str = "full",
    basis_dtype: Any = "float64",
    block: int = 1,
) -> int:
    """Return how many draws advance in lockstep where no number is given.

    As many as keep their Lanczos vectors under `GROUP_BYTES`, and their start vectors at most
    `GROUP_DRAWS`, at least one. It depends on the problem alone, never on the memory that is free,
    so that results repeat.
    """
    num_rows = block * (order if reorthogonalize == "full" else 2)
    row_bytes = np.dtype(basis_dtype).itemsize * size
    return max(1, min(GROUP_DRAWS // block, GROUP_BYTES // (num_rows * row_bytes)))


class LockstepGroup:
    """The recurrences of k draws, advanced together by one block product a step.

    `alpha` and `beta`, shape (k, order), or (k, order, b, b) for blocks of b start vectors, are the
    arrays that the recurrences write into.
    """

    def __init__(
        self,
        draws: range,
        recurrences: Sequence[Recurrence],
        alpha: np.ndarray,
        beta: np.ndarray,
    ) -> None:
        self.draws = draws
        self.recurrences = recurrences
        self.alpha = alpha
        self.beta = beta
        self._log: VectorLog | None = None

    @property
    def vectors(self) -> Vectors:
        """What is computed with the Lanczos vectors."""
        return self.recurrences[0].rows.vectors

    @property
    def width(self) -> int:
        """Vectors that a draw multiplies in a step, b."""
        return self.recurrences[0].width

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return self.recurrences[0].step

    def advance(self, operator: LinearOperator) -> None:
        """Advance every draw by one step, and make that durable in a checkpoint."""
        newest = [vector for recurrence in self.recurrences for vector in recurrence.newest]
        products, eps = self.vectors.products(operator, newest, self._place_of)
        firsts = range(0, len(newest), self.width)
        self.vectors.each(
            lambda recurrence, own: recurrence.advance(own, eps),
            self.recurrences,
            [products[first : first + self.width] for first in firsts],
        )
        self._check_symmetry(operator, eps)
        if self._log is not None:
            self._save(self._log)

    @contextmanager
    def saved_in(self, run: RunDirectory, operator: LinearOperator) -> Iterator[None]:
        """Restore the steps that a checkpoint has of these draws, and save those made meanwhile.

        Raises:
            CheckpointError: if the checkpoint is of another operator.
        """
        first = self.recurrences[0]
        # Without reorthogonalization a step needs the last two vectors, and the one that is being
        # written must not be one of them.
        slots = None if first.full else 3 * self.width * len(self.draws)
        name = f"draws-{self.draws.start}-{self.draws.stop}"
        with closing(run.log(name, self.vectors.size, first.rows.dtype, slots)) as log:
            if log.num_vectors:
                self._restore(log, operator)
            self._log = log
            yield
        self._log = None

    def _place_of(self, row: int) -> str:
        return f"at step {self.step + 1} of draw {self.draws[row // self.width]}"

    def _check_symmetry(self, operator: LinearOperator, eps: float) -> None:
        worst = max(self.recurrences, key=lambda recurrence: recurrence.asymmetry)
        share = worst.asymmetry / worst.norm if worst.norm else 0.0
        if share <= max(_ASYMMETRY, 100 * eps):
            return
        if share <= 2 * product_error(operator):
            return
        # A difference of matrices that are equal on paper is rounding, and not symmetric.
        if share > 10 * rounding_share(operator, self._on_host(worst.newest[0])):
            raise ValueError(
                f"The operator is not symmetric: u'Av and v'Au differ by {share:.1e} of ||A|| for "
                "unit vectors u and v. Pass a symmetric one, such as (A + A') / 2."
            )

    def _on_host(self, vector: Any) -> np.ndarray:
        return self.vectors.to_host(vector).astype(np.float64, copy=False)

    def _save(self, log: VectorLog) -> None:
        step, zeros = self.step, np.zeros(self.vectors.size)
        following = (vector for r in self.recurrences for vector in r.following)
        log.append(
            [zeros if vector is None else self.vectors.to_host(vector) for vector in following],
            {
                "alpha": self.alpha[:, :step].copy(),
                "beta": self.beta[:, :step].copy(),
                "norms": np.array([r.norm for r in self.recurrences]),
            },
        )

    def _restore(self, log: VectorLog, operator: LinearOperator) -> None:
        saved = log.arrays
        if not identifies(signature(operator)):
            # The entries of the matrix are not known: one product distinguishes it from another.
            first = self.recurrences[0].newest[0]
            (product,), eps = self.vectors.products(operator, [first])
            alpha = self.vectors.inner(first, product)
            expected, norm = float(saved["alpha"].flat[0]), float(saved["norms"][0])
            # A basis vector in float32 is a unit vector to its own precision.
            rounding = max(eps, precision(self.recurrences[0].rows.dtype))
            if not is_same_form(alpha, expected, norm, rounding):
                raise CheckpointError(
                    f"the checkpoint {log.path} is of another operator: the first coefficient of T "
                    f"is {alpha:.9g} and was {expected:.9g}. Use another directory."
                )
        for i, recurrence in enumerate(self.recurrences):
            recurrence.restore(
                saved["alpha"][i],
                saved["beta"][i],
                float(saved["norms"][i]),
                partial(self._read, log, i),
            )

    def _read(self, log: VectorLog, index: int, number: int) -> np.ndarray:
        """Return a vector of one of the recurrences, by its number in that one."""
        step, column = divmod(number, self.width)
        return log.read((step * len(self.recurrences) + index) * self.width + column)
