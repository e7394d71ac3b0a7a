"""Preconditioned conjugate gradients with negative curvature and a trust radius."""

from __future__ import annotations

import numpy as np

from spectral_density.linalg.linear_system import ROUNDING, Cycle, CycleResult, positive_form
from spectral_density.linalg.solution import Status
from spectral_density.linalg.threads import blas_threads


def conjugate_gradients(cycle: Cycle) -> CycleResult:
    """Preconditioned conjugate gradients, ended by negative curvature or at the radius.

    References:
        Steihaug (1983), SIAM J. Numer. Anal. 20:626.
    """
    system = cycle.system
    x = np.zeros(system.size)
    residual = cycle.rhs.copy()
    z = system.precondition(residual, 0)
    rz = positive_form(residual, z, 0)
    p = z.copy()
    best = (1.0, x.copy(), residual.copy())
    for iteration in range(1, cycle.maxiter + 1):
        product = system.product(p, iteration)
        with blas_threads(system.size):
            curvature = float(p @ product)
            length2 = float(p @ p)
            system.norm = max(system.norm, float(np.sqrt((product @ product) / length2)))
            rounding = ROUNDING * system.eps * system.norm * length2
            # Damping is exact, however small, and keeps x from running off.
            indefinite = curvature <= (0.0 if system.is_damped else rounding)
            alpha = 0.0 if indefinite else rz / curvature
            leaves = False
            if cycle.radius is not None:
                reach = _to_boundary(cycle.offset + x, p, length2, cycle.radius)
                leaves = indefinite or alpha >= reach
                alpha = reach if leaves else alpha
            if alpha:
                x += alpha * p
                residual -= alpha * product
            norm = float(np.linalg.norm(residual))
        if alpha or leaves:
            cycle.report(norm, x)
        if indefinite:
            status = Status.NEGATIVE_CURVATURE if curvature < -rounding else Status.SINGULAR
            if status is Status.SINGULAR and leaves:
                status = Status.TRUST_RADIUS
            elif status is Status.SINGULAR and not system.is_damped:
                _, x, residual = best  # the last ones may have run off along the null space
            return CycleResult(x, residual, status, p, curvature / length2)
        if norm <= cycle.goal:
            return CycleResult(x, residual, Status.CONVERGED)
        if leaves:
            return CycleResult(x, residual, Status.TRUST_RADIUS)
        if norm < best[0] and not system.is_damped:
            best = (norm, x.copy(), residual.copy())
        z = system.precondition(residual, iteration)
        with blas_threads(system.size):
            rz, before = positive_form(residual, z, iteration), rz
            p *= rz / before
            p += z
    return CycleResult(x, residual, Status.MAX_ITERATIONS)


def _to_boundary(x: np.ndarray, p: np.ndarray, length2: float, radius: float) -> float:
    """Return the tau >= 0 with ||x + tau p|| = radius."""
    along = float(x @ p)
    gap = max(radius**2 - float(x @ x), 0.0)
    root = float(np.sqrt(along**2 + length2 * gap))
    return gap / (along + root) if along > 0 else (root - along) / length2
