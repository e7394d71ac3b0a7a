"""Restart cycles of SciPy's GMRES, preconditioned from the right."""

from __future__ import annotations

import numpy as np
from scipy.sparse.linalg import LinearOperator, gmres

from spectral_density.linalg.linear_system import Cycle, CycleResult
from spectral_density.linalg.solution import Status


def gmres_cycle(cycle: Cycle) -> CycleResult:
    """One restart of SciPy's GMRES, preconditioned from the right.

    From the right, B M u = rhs and x = M u, it minimizes, estimates and tests the residual itself;
    from the left, as SciPy has it, that of the preconditioned system.
    """
    system = cycle.system
    steps = min(cycle.restart, cycle.maxiter, system.size)
    norms: list[float] = []
    last: list[np.ndarray] = []

    def product(u: np.ndarray) -> np.ndarray:
        v = system.precondition(u, len(norms) + 1)
        last[:] = u.copy(), v, system.product(v, len(norms) + 1)
        return last[2]

    def note(norm: float) -> None:
        norms.append(float(norm))
        cycle.report(norms[-1], None)

    u, _ = gmres(
        LinearOperator((system.size, system.size), matvec=product, dtype=np.float64),
        cycle.rhs,
        rtol=0.0,
        atol=cycle.goal,
        restart=steps,
        maxiter=1,
        callback=note,
        callback_type="pr_norm",
    )
    # SciPy's last product is the one of its result, to measure the residual: it is not repeated.
    if not np.array_equal(u, last[0]):
        product(u)
    _, x, product_of_x = last
    residual = cycle.rhs - product_of_x
    worse = np.linalg.norm(residual) > 1 - 1e-9
    status: Status | None
    if worse and norms[-1] <= 0.5:
        status = Status.SINGULAR  # x blew up, and its rounding hides what was gained
    elif norms[-1] <= cycle.goal:
        status = Status.CONVERGED
    elif len(norms) < steps:
        status = Status.SINGULAR  # the Krylov space is exhausted, and holds no solution
    else:
        status = None
    if worse:
        x, residual = np.zeros(system.size), cycle.rhs
    # The sum of several starts has rounding of its own.
    return CycleResult(x, residual, status, measured=cycle.is_first)
