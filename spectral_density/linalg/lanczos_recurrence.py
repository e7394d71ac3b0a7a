"""The Lanczos three-term recurrence of one start vector, with or without reorthogonalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spectral_density.linalg.start_vectors import new_direction
from spectral_density.linalg.vectors import Rows


class LanczosRecurrence:
    """A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}, one product a step.

    Coefficients are written into `alpha` and `beta`, shape (order,). With `full`, `rows` has a row
    for every step, the first one filled. Without, it has two that are used in turn, and vectors are
    made orthogonal to their two predecessors only. Vectors stay where the rows are.
    `BlockRecurrence` does the same with several vectors together.

    Attributes:
        width: vectors that are multiplied in a step, one.

    References:
        Paige (1976), J. Inst. Maths Applics 18:341 (the order of the subtractions).
    """

    width = 1

    def __init__(
        self,
        rows: Rows,
        alpha: np.ndarray,
        beta: np.ndarray,
        *,
        key: tuple[int, int],
        full: bool,
        extendable: bool,
    ) -> None:
        self.rows = rows
        self.alpha = alpha
        self.beta = beta
        self.key = key  # seed and number of the draw
        self.full = full
        self.extendable = extendable  # whether the vector after the last step is wanted
        self.step = 0
        self.norm = 0.0  # of T so far, its largest absolute row sum
        self.asymmetry = 0.0  # largest |u'Av - v'Au| so far, u and v neighbours in the basis
        self.following: list[Any] = [None]  # the vector of the step after this

    @property
    def newest(self) -> list[Any]:
        """The newest Lanczos vector, alone in a list."""
        return [self._row(self.step)]

    def _row(self, step: int) -> Any:
        return self.rows.read(step % self.rows.capacity)

    def advance(self, products: Sequence[Any], eps: float) -> None:
        """Make a step, given the product of the operator and the newest vector; takes it away.

        Args:
            products: one vector.
            eps: relative rounding of the product.
        """
        vectors = self.rows.vectors
        j = self.step
        (q,), (w,) = self.newest, products
        before = self.beta[j - 1] if j else 0.0
        if before:
            previous = self._row(j - 1)
            # q'Aw and w'Aq, one of them from the step before: equal if A is symmetric.
            self.asymmetry = max(self.asymmetry, abs(float(vectors.inner(previous, w)) - before))
            w = vectors.subtract(w, before, previous)
        alpha = vectors.inner(q, w)
        w = vectors.subtract(w, alpha, q)
        # Without reorthogonalization these are the last two vectors. The recurrence alone does not
        # free a small w of them, and the comparison of the next step is that of A only for
        # neighbours that are orthogonal.
        w, along = self.rows.orthogonalize(w, min(j + 1, self.rows.capacity))
        alpha += along[j % self.rows.capacity]
        beta = vectors.norm(w)
        self.norm = max(self.norm, before + abs(alpha) + beta)
        broken_down = beta <= 10 * eps * self.norm
        self.alpha[j] = alpha
        self.beta[j] = 0.0 if broken_down else beta
        self.step = j + 1
        last = self.step == len(self.alpha)
        if self.step == vectors.size or (last and not self.extendable):
            return
        # A small beta is kept, whether it is rounding or not: what follows a true breakdown then
        # carries no weight. A random vector replaces only one that is rounding alone.
        w = self._random_continuation() if broken_down else vectors.divided(w, beta)
        if self.extendable:
            self.following = [w]
        if not last:
            self.rows.write(self.step % self.rows.capacity, w)

    def restore(
        self, alpha: np.ndarray, beta: np.ndarray, norm: float, read: Callable[[int], np.ndarray]
    ) -> None:
        """Restore the state after steps of a former run; `read(j)` is the vector after step j.

        It is one of NumPy.
        """
        done = min(len(alpha), len(self.alpha))
        self.alpha[:done], self.beta[:done], self.norm = alpha[:done], beta[:done], norm
        self.step = done
        capacity = self.rows.capacity
        wanted = range(1, capacity) if self.full else range(max(1, done - 1), done + 1)
        if self.full or done < len(self.alpha):
            for step in wanted:
                if step <= done:
                    vector = self.rows.vectors.to_engine(read(step - 1))
                    self.rows.write(step % capacity, vector)

    def _random_continuation(self) -> Any:
        vectors = self.rows.vectors
        w = vectors.to_engine(new_direction(vectors.size, *self.key, self.step))
        w, _ = self.rows.orthogonalize(w, min(self.step, self.rows.capacity))
        return vectors.divided(w, vectors.norm(w))
