"""Low-rank saddle-free Newton: |H| from a few eigenpairs, and damping on their complement."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from spectral_density.analysis.quadratic import gradient_step
from spectral_density.linalg.arguments import integer, number, product_precision
from spectral_density.linalg.dominant_eigenpairs import (
    LowRank,
    adaptive_eigenpairs,
    lanczos_eigenpairs,
    randomized_eigenpairs,
    significant,
    tracked_eigenpairs,
)
from spectral_density.linalg.norms import inner
from spectral_density.linalg.threads import blas_threads
from spectral_density.training.globalization import FixedStep, Globalization
from spectral_density.training.methods import Direction, SecondOrderMethod
from spectral_density.training.options import one_of
from spectral_density.training.problem import Problem

RANGE_FINDERS = ("fixed", "adaptive")
FACTORIZATIONS = ("randomized", "lanczos")
DAMPING_SCALES = ("largest", "smallest", "absolute")

# Steps between the first two refreshes: curvature changes fastest at the start of training.
_FIRST_REFRESH = 10
# Share of the largest |eigenvalue| that damping relative to the smallest never falls below.
_LEAST_DAMPING = 1e-12


class LowRankSaddleFreeNewton(SecondOrderMethod):
    r"""Saddle-free Newton with the eigenpairs of largest magnitude.

    .. math:: p = -(|H_r| + \gamma I)^{-1} g, \qquad
        H_r = U \Lambda U', \qquad
        p = -\frac{1}{\gamma} \Big( g - U \, \frac{|\Lambda|}{|\Lambda| + \gamma} \, U'g \Big)

    The step descends along directions of negative curvature as along those of positive curvature,
    so that saddle points repel. On the complement of the eigenvectors the step is the gradient's
    over gamma: an absolute gamma that is small beside the eigenvalues left out makes it too long,
    so gamma is by default a share of the largest |eigenvalue|.

    The eigenpairs are refreshed every `refresh` steps, and sooner at the start: after 10 steps, 20,
    40 and so on. A refresh after the first tracks the last eigenvectors by one pass of subspace
    iteration and Rayleigh-Ritz, rank products (`warm_start`), where a new factorization takes
    2 (rank + oversampling) from random vectors, or rank + oversampling by Lanczos.

    References:
        Dauphin et al. (2014), NeurIPS 27, arXiv 1406.2572.
        O'Leary-Roseberry, Alger, Ghattas (2020), arXiv 2002.02881.
    """

    def __init__(
        self,
        rank: int = 40,
        *,
        damping: float = 0.02,
        damping_relative_to: Literal["largest", "smallest", "absolute"] = "largest",
        learning_rate: float = 0.3,
        refresh: int = 100,
        range_finder: Literal["fixed", "adaptive"] = "fixed",
        range_tolerance: float = 0.1,
        signal_to_noise: float | None = None,
        factorization: Literal["randomized", "lanczos"] = "randomized",
        oversampling: int = 10,
        warm_start: bool = True,
        globalization: str | Globalization | None = None,
        curvature: Literal["hessian", "gauss_newton"] = "hessian",
        hessian_data: Any = None,
        hessian_batch_size: int | None = None,
        seed: int = 0,
    ):
        """Take the options.

        Args:
            rank: number of eigenpairs, at most with `range_finder="adaptive"`.
            damping: gamma, in the units of `damping_relative_to`. Levenberg-Marquardt adapts its
                own instead.
            damping_relative_to: "largest" for the largest |eigenvalue|, "smallest" for the
                smallest one in use, "absolute" for the units of the matrix.
            learning_rate: step length, or the first one that is tried.
            refresh: steps for which eigenpairs are used.
            range_finder: "fixed" for `rank` eigenpairs; "adaptive" for a block Krylov space, begun
                at the gradient, that grows until what the matrix maps the step p to outside of it
                is within `range_tolerance` of the gradient. Adaptive leaves out eigenpairs whose
                curvature is noise, see `signal_to_noise`.
            range_tolerance: largest ||(I - QQ') H p|| / ||g||.
            signal_to_noise: eigenpairs are used where the magnitude of the mean of their Rayleigh
                quotients over four parts of the Hessian's data is more than this times their
                standard deviation. It takes one product of each part with each eigenvector. None
                for 1 with "adaptive", and for using all of them with "fixed"; 0 uses all.
            factorization: "randomized" or "lanczos", of a fixed rank. Lanczos starts at the
                gradient.
            oversampling: vectors beyond `rank`.
            warm_start: whether a refresh starts from the last eigenvectors (with "fixed").
            globalization: how far to step, see `SecondOrderMethod`; None for steps of the learning
                rate that are at most a hundredth as long as the weights,
                `FixedStep(max_relative_step=0.01)`.
            curvature: see `SecondOrderMethod`.
            hessian_data: see `SecondOrderMethod`; each refresh takes one batch.
            hessian_batch_size: see `SecondOrderMethod`.
            seed: seed of the random vectors.
        """
        self.rank = integer(rank, "rank", 1)
        self.damping = number(damping, "damping", above=0.0)
        self.damping_relative_to = one_of(
            damping_relative_to, "damping_relative_to", DAMPING_SCALES
        )
        self.refresh = integer(refresh, "refresh", 1)
        self.range_finder = one_of(range_finder, "range_finder", RANGE_FINDERS)
        self.range_tolerance = number(range_tolerance, "range_tolerance", above=0.0)
        if signal_to_noise is None:
            signal_to_noise = 1.0 if range_finder == "adaptive" else 0.0
        self.signal_to_noise = number(signal_to_noise, "signal_to_noise", least=0.0)
        self.factorization = one_of(factorization, "factorization", FACTORIZATIONS)
        self.oversampling = integer(oversampling, "oversampling", 0)
        self.warm_start = bool(warm_start)
        self.seed = integer(seed, "seed", 0)
        super().__init__(
            learning_rate=learning_rate,
            globalization=FixedStep(0.01) if globalization is None else globalization,
            curvature=curvature,
            hessian_data=hessian_data,
            hessian_batch_size=hessian_batch_size,
        )

    def reset(self) -> None:
        """See `SecondOrderMethod`."""
        super().reset()
        self._pairs: LowRank | None = None
        self._refreshed_at = 0
        self._num_refreshes = 0

    def _direction(self, problem: Problem, loss: float, gradient: np.ndarray) -> Direction:
        if self._is_stale():
            self._pairs = self._eigenpairs(problem, gradient)
            self._refreshed_at = self._num_steps
            self._num_refreshes += 1
        pairs = self._pairs
        if pairs is None:
            raise ValueError("the method has no eigenpairs.")
        adapted = self.globalization.damping(
            lambda: gradient_step(problem.curvature(), gradient=gradient).curvature
        )
        gamma = self._gamma(pairs) if adapted is None else adapted
        with blas_threads(len(gradient)):
            vector = pairs.saddle_free_step(gradient, gamma)
        return Direction(
            vector,
            # |H_r| + gamma I maps the step to -g.
            curvature=-inner(gradient, vector),
            damping=gamma,
            rank=len(pairs.values),
            smallest_eigenvalue=float(pairs.values.min()) if len(pairs.values) else np.nan,
            largest_eigenvalue=float(pairs.values.max()) if len(pairs.values) else np.nan,
        )

    def _is_stale(self) -> bool:
        if self._pairs is None:
            return True
        # After 10, 20, 40, ... steps, and then every `refresh`.
        age = self._num_steps - self._refreshed_at
        return age >= min(self.refresh, max(_FIRST_REFRESH, self._refreshed_at - 1))

    def _eigenpairs(self, problem: Problem, gradient: np.ndarray) -> LowRank:
        operator = problem.curvature()
        size = operator.shape[0]
        rank = min(self.rank, size)
        seed = self.seed + self._num_refreshes
        if self.range_finder == "adaptive":
            pairs = adaptive_eigenpairs(
                operator,
                gradient,
                self._gamma,
                max_rank=rank,
                tolerance=self.range_tolerance,
                seed=seed,
            )
        elif self._pairs is not None and self.warm_start and self._pairs.images is not None:
            pairs = tracked_eigenpairs(operator, self._pairs.images)
        elif self.factorization == "lanczos":
            pairs = lanczos_eigenpairs(operator, gradient, rank, self.oversampling, seed)
        else:
            pairs = randomized_eigenpairs(operator, rank, self.oversampling, seed)
        if self.signal_to_noise and len(pairs.values):
            parts = problem.parts()
            if parts:
                pairs = significant(pairs, parts, self.signal_to_noise)
        # To float32 at least: a step in half precision would be too coarse.
        is_coarse = product_precision(operator) >= np.finfo(np.float32).eps
        return pairs.rounded() if is_coarse else pairs

    def _gamma(self, pairs: LowRank) -> float:
        if self.damping_relative_to == "absolute":
            return self.damping
        scale = pairs.norm
        if self.damping_relative_to == "smallest" and len(pairs.values):
            scale = max(float(np.abs(pairs.values).min()), _LEAST_DAMPING * pairs.norm)
        # With a zero matrix the step is the gradient's.
        return self.damping * scale if scale else 1.0
