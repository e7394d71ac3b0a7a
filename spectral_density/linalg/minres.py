"""Preconditioned MINRES with negative curvature and least-squares solutions."""

from __future__ import annotations

import numpy as np

from spectral_density.linalg.linear_system import (
    ROUNDING,
    Cycle,
    CycleResult,
    LinearSystem,
    positive_form,
)
from spectral_density.linalg.solution import Status
from spectral_density.linalg.threads import blas_threads

# It passes a least-squares solution where ||B r|| / (||B|| ||r||) had a minimum near rounding (see
# `LinearSystem.stationary`), then grew by this factor, and the residual fell no further than to
# this share meanwhile. A small ratio alone would do for every residual along small eigenvalues.
_STATIONARY_GROWTH = 30.0
_STATIONARY_SHARE = 0.99


def minres(cycle: Cycle) -> CycleResult:
    """Preconditioned MINRES, with its residual as a vector, and negative curvature on the way.

    With M the preconditioner, it minimizes r'M r: the Lanczos process builds T, rotations factorize
    it, and the iterate follows column by column.

    References:
        Paige, Saunders (1975), SIAM J. Numer. Anal. 12:617.
        Choi (2006), PhD thesis, Stanford, section 2 (its residuals, and ||A r||).
        Liu, Roosta (2022), SIAM J. Optim. 32:2636 (negative curvature along MINRES residuals).
    """
    system = cycle.system
    lanczos = _LanczosProcess(system, cycle.rhs)
    qr = _Rotations(lanczos.beta)
    iterate = _Iterate(cycle.rhs, lanczos.z)
    curvature = _LowestCurvature()
    flattest: _FlattestIterate | None = None
    for iteration in range(1, cycle.maxiter + 1):
        v = lanczos.step(iteration)
        with blas_threads(system.size):
            qr.add_column(lanczos.alpha, lanczos.beta)
            curvature.record(iterate, qr, -ROUNDING * system.eps * system.norm)
            # ||B M r|| over ||r||, in the norm of M: no x has a smaller residual where it is 0.
            slope = float(np.hypot(qr.gbar, qr.dbar))
            if slope <= system.eps * lanczos.norm:
                return curvature.result(iterate, Status.LEAST_SQUARES)
            lowest = np.inf if flattest is None else flattest.slope
            if slope < min(lowest, system.stationary(lanczos.norm)):
                flattest = _FlattestIterate(iterate, slope, qr.phibar)
            elif flattest is not None and flattest.is_passed(slope, qr.phibar):
                return curvature.result(flattest, Status.LEAST_SQUARES)
            qr.rotate(lanczos.beta)
            norm = iterate.update(v, qr, lanczos)
        cycle.report(norm, iterate.x)
        if norm <= cycle.goal:
            return curvature.result(iterate, Status.CONVERGED)
    return curvature.result(iterate, Status.MAX_ITERATIONS)


class _LanczosProcess:
    """Preconditioned Lanczos: the tridiagonal T, column by column, from alpha and beta."""

    def __init__(self, system: LinearSystem, rhs: np.ndarray) -> None:
        self.system = system
        self.older, self.newer = np.zeros(system.size), rhs
        self.z = system.precondition(rhs, 0)  # M times the newer vector
        self.alpha = self.oldbeta = 0.0
        self.beta = np.sqrt(positive_form(rhs, self.z, 0))
        self.norm = 0.0  # of the columns of T, the largest so far

    def step(self, iteration: int) -> np.ndarray:
        """Add a column to T; return the vector v whose product it comes from."""
        system, beta = self.system, self.beta
        v = self.z / beta
        product = system.product(v, iteration)
        with blas_threads(system.size):
            system.norm = max(system.norm, float(np.linalg.norm(product) / np.linalg.norm(v)))
            if iteration > 1:
                product -= (beta / self.oldbeta) * self.older
            self.alpha = float(v @ product)
            product -= (self.alpha / beta) * self.newer
        self.older, self.newer = self.newer, product
        self.z = system.precondition(product, iteration)
        with blas_threads(system.size):
            form = positive_form(product, self.z, iteration, or_zero=True)
        self.oldbeta, self.beta = beta, np.sqrt(form)
        column = [self.oldbeta if iteration > 1 else 0.0, self.alpha, self.beta]
        self.norm = max(self.norm, float(np.linalg.norm(column)))
        return v


class _Rotations:
    """The QR factorization of T by rotations (c, s), one column at a time.

    Names are those of Paige and Saunders: a column has epsilon, delta and gamma in its rows.
    """

    def __init__(self, beta: float) -> None:
        self.c, self.s = -1.0, 0.0
        self.phibar = beta  # ||r||, in the norm of M
        self.dbar = self.gbar = 0.0
        self.epsilon = self.next_epsilon = self.delta = self.gamma = 0.0

    def add_column(self, alpha: float, beta: float) -> None:
        """Apply the rotations so far to the next column of T."""
        self.epsilon = self.next_epsilon
        self.delta = self.c * self.dbar + self.s * alpha
        self.gbar = self.s * self.dbar - self.c * alpha
        self.next_epsilon = self.s * beta
        self.dbar = -self.c * beta

    def rotate(self, beta: float) -> None:
        """Add the rotation that makes the factor triangular in that column."""
        self.gamma = float(np.hypot(self.gbar, beta))
        self.c, self.s = self.gbar / self.gamma, beta / self.gamma


class _Iterate:
    """x, its residual r and the gradient M r, which one direction w a step changes."""

    def __init__(self, rhs: np.ndarray, gradient: np.ndarray) -> None:
        self.x = np.zeros(len(rhs))
        self.residual = rhs.copy()
        self.gradient = gradient.copy()
        self.w_older, self.w_newer = np.zeros(len(rhs)), np.zeros(len(rhs))

    def update(self, v: np.ndarray, qr: _Rotations, lanczos: _LanczosProcess) -> float:
        """Move along the next direction, and reduce phibar; return ||r||."""
        w = (v - qr.epsilon * self.w_older - qr.delta * self.w_newer) / qr.gamma
        self.w_older, self.w_newer = self.w_newer, w
        self.x += (qr.c * qr.phibar) * w
        qr.phibar *= qr.s
        self.residual *= qr.s * qr.s
        self.gradient *= qr.s * qr.s
        if lanczos.beta:
            self.residual -= (qr.phibar * qr.c / lanczos.beta) * lanczos.newer
            self.gradient -= (qr.phibar * qr.c / lanczos.beta) * lanczos.z
        return float(np.linalg.norm(self.residual))


class _FlattestIterate:
    """A copy of the iterate whose residual is nearest to stationary: B M r nearest to 0."""

    def __init__(self, iterate: _Iterate, slope: float, phibar: float) -> None:
        self.slope, self.phibar = slope, phibar
        self.x, self.residual = iterate.x.copy(), iterate.residual.copy()

    def is_passed(self, slope: float, phibar: float) -> bool:
        """Return whether what came after it has left the least-squares solution."""
        grown = slope > _STATIONARY_GROWTH * self.slope
        return grown and phibar > _STATIONARY_SHARE * self.phibar


class _LowestCurvature:
    """The residual direction of most negative curvature."""

    def __init__(self) -> None:
        self.direction: np.ndarray | None = None
        self.value: float | None = None

    def record(self, iterate: _Iterate, qr: _Rotations, threshold: float) -> None:
        """Keep the curvature of the model along M r if it is the lowest, and below a threshold."""
        length2 = float(iterate.gradient @ iterate.gradient)
        curvature = -qr.c * qr.gbar * qr.phibar**2 / length2
        if curvature < min(threshold, 0.0 if self.value is None else self.value):
            self.direction, self.value = iterate.gradient.copy(), curvature

    def result(self, iterate: _Iterate | _FlattestIterate, status: Status) -> CycleResult:
        """Return how the cycle ended, with this direction."""
        return CycleResult(iterate.x, iterate.residual, status, self.direction, self.value)
