"""The Lanczos three-term recurrence of one start vector, with or without reorthogonalization."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spectral_density.linalg.orthogonalization import orthogonalize
from spectral_density.linalg.start_vectors import new_direction


class LanczosRecurrence:
    """A q_j = beta_{j-1} q_{j-1} + alpha_j q_j + beta_j q_{j+1}, one product a step.

    Coefficients are written into `alpha` and `beta`. With `full`, `rows` has a row for every step,
    the first one filled. Without, it has two that are used in turn, and vectors are made orthogonal
    to their two predecessors only.

    References:
        Paige (1976), J. Inst. Maths Applics 18:341 (the order of the subtractions).
    """

    def __init__(
        self,
        rows: np.ndarray,
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
        self.following: np.ndarray | None = None  # the vector of the step after this

    @property
    def current(self) -> np.ndarray:
        """The newest Lanczos vector, float64."""
        return self._row(self.step)

    def _row(self, step: int) -> np.ndarray:
        return self.rows[step % len(self.rows)].astype(np.float64, copy=False)

    def advance(self, w: np.ndarray, eps: float) -> None:
        """Make a step, given the product `w` of the operator and the newest vector; overwrites it.

        Args:
            w: shape (n,), float64.
            eps: relative rounding of the product.
        """
        j = self.step
        q = self.current
        before = self.beta[j - 1] if j else 0.0
        if before:
            previous = self._row(j - 1)
            # q'Aw and w'Aq, one of them from the step before: equal if A is symmetric.
            self.asymmetry = max(self.asymmetry, abs(float(previous @ w) - before))
            w -= before * previous
        alpha = q @ w
        w -= alpha * q
        # Without reorthogonalization these are the last two vectors. The recurrence alone does not
        # free a small w of them, and the comparison of the next step is that of A only for
        # neighbours that are orthogonal.
        alpha += orthogonalize(w, self.rows[: j + 1])[j % len(self.rows)]
        beta = np.linalg.norm(w)
        self.norm = max(self.norm, before + abs(alpha) + beta)
        broken_down = beta <= 10 * eps * self.norm
        self.alpha[j] = alpha
        self.beta[j] = 0.0 if broken_down else beta
        self.step = j + 1
        last = self.step == len(self.alpha)
        if self.step == len(w) or (last and not self.extendable):
            return
        # A small beta is kept, whether it is rounding or not: what follows a true breakdown then
        # carries no weight. A random vector replaces only one that is rounding alone.
        if broken_down:
            w = self._random_continuation()
        else:
            w /= beta
        if self.extendable:
            self.following = w
        if not last:
            self.rows[self.step % len(self.rows)] = w

    def restore(
        self, alpha: np.ndarray, beta: np.ndarray, norm: float, read: Callable[[int], np.ndarray]
    ) -> None:
        """Restore the state after steps of a former run; `read(j)` is the vector after step j."""
        done = min(len(alpha), len(self.alpha))
        self.alpha[:done], self.beta[:done], self.norm = alpha[:done], beta[:done], norm
        self.step = done
        wanted = range(1, len(self.rows)) if self.full else range(max(1, done - 1), done + 1)
        if self.full or done < len(self.alpha):
            for step in wanted:
                if step <= done:
                    self.rows[step % len(self.rows)] = read(step - 1)

    def _random_continuation(self) -> np.ndarray:
        w = new_direction(len(self.rows[0]), *self.key, self.step)
        orthogonalize(w, self.rows[: self.step])
        w /= np.linalg.norm(w)
        return w
