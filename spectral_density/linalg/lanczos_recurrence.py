"""The Lanczos three-term recurrence of one start vector, with or without reorthogonalization."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from spectral_density.linalg.start_vectors import new_direction
from spectral_density.linalg.vectors import Rows


class Recurrence(ABC):
    """The state of a recurrence of one start vector or several, which a subclass advances.

    With `full`, `rows` has `width` rows for every step, those of the first one filled. Without, it
    has those of two steps, used in turn. Vectors stay where the rows are.

    Attributes:
        alpha: coefficients along the vectors of a step, written into: (order,), or (order, b, b).
        beta: the same to the next step.
        width: vectors that are multiplied in a step, b.
        step: number of finished steps.
        norm: of T so far, its largest absolute row sum.
        asymmetry: largest |u'Av - v'Au| so far, u and v neighbours in the basis.
        following: the vectors of the step after this, where they are wanted.
    """

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
        """Begin before the first step.

        Args:
            rows: of the vectors.
            alpha: zeros.
            beta: zeros.
            key: seed and number of the draw.
            full: whether vectors are made orthogonal to all before them.
            extendable: whether the vectors after the last step are wanted.
        """
        self.rows = rows
        self.alpha = alpha
        self.beta = beta
        self.key = key
        self.full = full
        self.extendable = extendable
        self.width = 1 if alpha.ndim == 1 else alpha.shape[-1]
        self.step = 0
        self.norm = 0.0
        self.asymmetry = 0.0
        self.following: list[Any] = [None] * self.width

    @abstractmethod
    def advance(self, products: Sequence[Any], eps: float) -> None:
        """Make a step, given the products of the operator and the newest vectors; takes them away.

        Args:
            products: as many vectors as the width.
            eps: relative rounding of the products.
        """

    @property
    def newest(self) -> list[Any]:
        """The vectors of the newest step."""
        return self.vectors_of(self.step)

    def vectors_of(self, step: int) -> list[Any]:
        """Return the vectors of a step that the rows still have."""
        first = step * self.width
        return [self.rows.read((first + i) % self.rows.capacity) for i in range(self.width)]

    def write(self, step: int, vectors: Sequence[Any]) -> None:
        """Put the vectors of a step into the rows."""
        for index, vector in enumerate(vectors, step * self.width):
            self.rows.write(index % self.rows.capacity, vector)

    def restore(
        self, alpha: np.ndarray, beta: np.ndarray, norm: float, read: Callable[[int], np.ndarray]
    ) -> None:
        """Restore the state after steps of a former run.

        Args:
            alpha: of those steps.
            beta: the same.
            norm: of T after them.
            read: returns a vector of NumPy, of those after the first step's, by its number.
        """
        done = min(len(alpha), len(self.alpha))
        self.alpha[:done], self.beta[:done], self.norm = alpha[:done], beta[:done], norm
        self.step = done
        if not self.full and done == len(self.alpha):
            return
        first = 1 if self.full else max(1, done - 1)
        for step in range(first, min(done, len(self.alpha) - 1) + 1):
            numbers = range((step - 1) * self.width, step * self.width)
            self.write(step, [self.rows.vectors.to_engine(read(number)) for number in numbers])


class LanczosRecurrence(Recurrence):
    """A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}, one product a step.

    Without reorthogonalization vectors are made orthogonal to their two predecessors only.
    `BlockRecurrence` does the same with several vectors together.

    References:
        Paige (1976), J. Inst. Maths Applics 18:341 (the order of the subtractions).
    """

    def advance(self, products: Sequence[Any], eps: float) -> None:
        """See `Recurrence`."""
        vectors = self.rows.vectors
        j = self.step
        (q,), (w,) = self.newest, products
        before = self.beta[j - 1] if j else 0.0
        if before:
            (previous,) = self.vectors_of(j - 1)
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
            self.write(self.step, [w])

    def _random_continuation(self) -> Any:
        vectors = self.rows.vectors
        w = vectors.to_engine(new_direction(vectors.size, *self.key, self.step))
        w, _ = self.rows.orthogonalize(w, min(self.step, self.rows.capacity))
        return vectors.divided(w, vectors.norm(w))
