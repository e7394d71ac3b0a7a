"""The block Lanczos recurrence of several start vectors, with or without reorthogonalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from spectral_density.linalg.lanczos_recurrence import Recurrence
from spectral_density.linalg.orthogonalization import KEPT_SHARE, MAX_PASSES
from spectral_density.linalg.start_vectors import new_direction


class BlockRecurrence(Recurrence):
    """A Q_j = Q_{j-1} B_{j-1}' + Q_j A_j + Q_{j+1} B_j, one block product a step.

    Q_j has b orthonormal vectors, A_j is symmetric and B_j upper triangular, both (b, b); they are
    written into `alpha` and `beta`, shape (order, b, b). Without reorthogonalization vectors are
    made orthogonal to the two blocks before them only.

    A vector of which a step leaves rounding alone, because the block has lost rank, is replaced by
    a random one that is orthogonal to all, and its row of B_j is zero.

    References:
        Golub, Underwood (1977), in Mathematical Software III, p. 361 (the method).
        Ruhe (1979), Math. Comp. 33:680 (the triangular form, and vectors that drop out of a block).
    """

    def advance(self, products: Sequence[Any], eps: float) -> None:
        """See `Recurrence`."""
        j, vectors = self.step, self.rows.vectors
        before = self.beta[j - 1] if j else np.zeros((self.width, self.width))
        along, block = self._without_neighbours(list(products), before)
        self.norm = max(self.norm, float((np.abs(before) + np.abs(along)).sum(axis=1).max()))
        following: list[Any] = []
        after = np.zeros((self.width, self.width))
        for column, w in enumerate(block):
            w, removed, after[:column, column], size = self._separated(w, following)
            along[:, column] += removed
            self.norm = max(self.norm, size)
            broken_down = size <= 10 * eps * self.norm
            after[column, column] = 0.0 if broken_down else size
            # A small one is kept, whether it is rounding or not, see `LanczosRecurrence`.
            following.append(None if broken_down else vectors.divided(w, size))
        self.asymmetry = max(self.asymmetry, float(np.abs(along - along.T).max()))
        self.alpha[j] = (along + along.T) / 2
        self.beta[j] = after
        # Every row of T: what is before it, on its block and after it.
        row_sums = (np.abs(before) + np.abs(along)).sum(axis=1) + np.abs(after).sum(axis=0)
        self.norm = max(self.norm, float(row_sums.max()))
        self.step = j + 1
        last = self.step == len(self.alpha)
        if (self.step + 1) * self.width > vectors.size or (last and not self.extendable):
            return
        self._fill(following)
        if self.extendable:
            self.following = following
        if not last:
            self.write(self.step, following)

    def _without_neighbours(
        self, block: list[Any], before: np.ndarray
    ) -> tuple[np.ndarray, list[Any]]:
        """Subtract what the three-term recurrence knows; return Q_j' A Q_j, and what is left."""
        vectors, current = self.rows.vectors, self.newest
        previous = self.vectors_of(self.step - 1) if self.step else []
        for column, w in enumerate(block):
            for row, q in enumerate(previous[column:], column):
                factor = float(before[column, row])
                # q'Aw and w'Aq, one of them from the step before: equal if A is symmetric.
                self.asymmetry = max(self.asymmetry, abs(float(vectors.inner(q, w)) - factor))
                w = vectors.subtract(w, factor, q)
            block[column] = w
        along = np.array([[float(vectors.inner(q, w)) for w in block] for q in current])
        for column, w in enumerate(block):
            for row, q in enumerate(current):
                w = vectors.subtract(w, float(along[row, column]), q)
            block[column] = w
        return along, block

    def _separated(
        self, w: Any, others: Sequence[Any], step: int | None = None
    ) -> tuple[Any, np.ndarray, np.ndarray, float]:
        """Make a vector orthogonal to the rows and to the vectors of its own block before it.

        Both together, repeated while the norm falls much, as `Rows.orthogonalize` does.

        Args:
            w: the vector, given away.
            others: vectors of its block, None where there is none.
            step: the step whose block is the newest of the rows; None for `self.step`.

        Returns:
            The vector; what was along the newest block, shape (b,); what was along the others,
            shape (len(others),); and the norm of what is left.
        """
        vectors, capacity = self.rows.vectors, self.rows.capacity
        newest = (self.step if step is None else step) * self.width
        count = min(newest + self.width, capacity)
        slots = np.arange(newest, newest + self.width) % capacity
        removed, inside = np.zeros(self.width), np.zeros(len(others))
        size = 0.0
        for _ in range(MAX_PASSES):
            w, along = self.rows.orthogonalize(w, count)
            removed += along[slots]
            size = last = vectors.norm(w)
            for index, q in enumerate(others):
                if q is not None:
                    part = float(vectors.inner(q, w))
                    inside[index] += part
                    w = vectors.subtract(w, part, q)
            if any(q is not None for q in others):
                size = vectors.norm(w)
            if size > KEPT_SHARE * last or last == size:
                break
        return w, removed, inside, size

    def _fill(self, block: list[Any]) -> None:
        """Put random vectors where a block has none, orthogonal to it and to all before it."""
        vectors = self.rows.vectors
        seed, draw = self.key
        for column, vector in enumerate(block):
            if vector is None:
                number = draw * self.width + column
                w = vectors.to_engine(new_direction(vectors.size, seed, number, self.step))
                w, _, _, size = self._separated(w, block, self.step - 1)
                block[column] = vectors.divided(w, size)
