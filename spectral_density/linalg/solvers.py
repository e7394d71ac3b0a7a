"""Linear systems from products: conjugate gradients, MINRES and GMRES, with restarts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import as_real_square, integer, number
from spectral_density.linalg.conjugate_gradients import conjugate_gradients
from spectral_density.linalg.gmres import gmres_cycle
from spectral_density.linalg.linear_system import ROUNDING, Cycle, CycleResult, LinearSystem
from spectral_density.linalg.minres import minres
from spectral_density.linalg.norms import euclidean_norm
from spectral_density.linalg.solution import Solution, SolverStep, Status

_METHODS = {"cg": conjugate_gradients, "minres": minres, "gmres": gmres_cycle}
METHODS = tuple(_METHODS)

# A restart whose claim of convergence leaves more than this share of the residual is at rounding.
_STAGNATED_SHARE = 0.5
# What a restart after a claim that rounding had made up aims at, as a share of the tolerance. One
# that aimed at the tolerance itself would have little to gain where that was missed by little, so
# that leaving nearly all of the residual would not show whether it still falls.
_AIMED_SHARE = 0.5
# A full restart of GMRES that leaves more than this share will not get anywhere.
_RESTARTED_SHARE = 0.999

_Report = Callable[[float, np.ndarray | None], None]


def solve(
    operator: Any,
    b: Any,
    /,
    *,
    method: Literal["cg", "minres", "gmres"] = "cg",
    damping: float = 0.0,
    preconditioner: Any = None,
    rtol: float = 1e-5,
    atol: float = 0.0,
    maxiter: int | None = None,
    x0: Any = None,
    radius: float | None = None,
    restart: int = 50,
    verify: bool = True,
    callback: Callable[[SolverStep], None] | None = None,
    progress: bool | None = None,
) -> Solution:
    """Solve (A + damping I) x = b with products only, and say how it ended.

    "cg", for positive definite matrices, stops at a direction of curvature zero or below and
    returns it with the iterate so far, on which the quadratic model 1/2 x'B x - b'x has fallen at
    every step. "minres" takes indefinite matrices, and finds a least-squares solution where there
    is no other. "gmres" is SciPy's, for matrices that are not quite symmetric, with `restart`
    vectors of memory.

    CG and MINRES are written here: SciPy's do not give the curvature p'Ap, and its `minres` stops
    at ||b - Ax|| <= rtol ||A|| ||x||, which an ill-conditioned matrix fulfils immediately, and does
    not say which of its rules it stopped by.

    Convergence is ||b - B x|| <= max(rtol ||b||, atol) for every method, checked by one product
    more. Where rounding had hidden that it is not met, the solver starts again from the iterate,
    for as long as each start at least halves the residual.

    Args:
        operator: A, real, shape (n, n): `LinearOperator`, array or sparse matrix; symmetric
            for "cg" and "minres". An attribute `product_dtype` states the precision of its
            products where this is lower than its `dtype`.
        b: right-hand side, shape (n,).
        method: "cg", "minres" or "gmres".
        damping: added to the diagonal, not negative.
        preconditioner: approximate inverse of A + damping I, shape (n, n), up to a factor;
            positive definite for "cg" and "minres". See `nystrom_preconditioner`.
        rtol: tolerance relative to ||b||; for an inexact Newton step, the forcing term.
        atol: absolute tolerance.
        maxiter: iterations at most, each with one product; checks of the residual come on top.
            None for 10 n. Every step within a restart of GMRES counts.
        x0: start, shape (n,); None for zero.
        radius: with "cg", stop where ||x|| would grow beyond it, at the point of that boundary;
            a direction of negative curvature is followed to the boundary. Needs ||x0|| <= radius.
        restart: with "gmres", the number of its vectors, each of n float64.
        verify: False spares the product that measures the residual; status and `residual_norm`
            are then what the recurrence says. For inexact steps, whose rtol is far from rounding.
        callback: called with a `SolverStep` after each iteration.
        progress: show a progress bar; None shows it in terminals and notebooks only.

    Returns:
        Solution with `x`, `status`, `residual_norms` and, where the matrix proves not to be
        positive definite, the direction `negative_curvature`: for "cg" with status
        NEGATIVE_CURVATURE or SINGULAR; for "minres", which goes on, the most negative one among
        the residuals it passed, whatever the status. The model descends along it from the start,
        b'd > 0 without an x0, and with "cg" from x too.

    Raises:
        TypeError: if an argument has a wrong type or is complex.
        ValueError: if an argument is out of its range, of a wrong shape or not finite, or if the
            preconditioner turns out not to be positive definite.
        FloatingPointError: if a product with the operator or preconditioner is not finite.

    References:
        Steihaug (1983), SIAM J. Numer. Anal. 20:626 (CG, negative curvature, the radius).
        Paige, Saunders (1975), SIAM J. Numer. Anal. 12:617 (MINRES).
        Choi (2006), PhD thesis, Stanford, section 2 (its residuals, and ||A r||).
        Liu, Roosta (2022), SIAM J. Optim. 32:2636 (negative curvature along MINRES residuals).
        Saad, Schultz (1986), SIAM J. Sci. Stat. Comput. 7:856 (GMRES).
    """
    problem = _Problem(
        operator,
        b,
        method=method,
        damping=damping,
        preconditioner=preconditioner,
        rtol=rtol,
        atol=atol,
        maxiter=maxiter,
        x0=x0,
        radius=radius,
        restart=restart,
        verify=verify,
    )
    state = _State(problem)
    first_residual = state.residual
    with progress_bar(problem.maxiter, method, progress) as bar:
        report = _reporter(state, bar, callback)
        while state.norm > problem.tolerance and state.status is None:
            if state.iterations == problem.maxiter:
                state.status = Status.MAX_ITERATIONS
            else:
                cycle = state.cycle(problem, report)
                state.take(_METHODS[method](cycle), problem)
    return state.solution(problem, first_residual)


class _Problem:
    """The arguments of `solve`, checked."""

    def __init__(
        self,
        operator: Any,
        b: Any,
        *,
        method: Any,
        damping: Any,
        preconditioner: Any,
        rtol: Any,
        atol: Any,
        maxiter: Any,
        x0: Any,
        radius: Any,
        restart: Any,
        verify: bool,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
        self.method: str = method
        damping = number(damping, "damping", least=0.0)
        self.system = LinearSystem(as_real_square(operator), damping, preconditioner)
        n = self.system.size
        self.b = _as_vector(b, "b", n)
        rtol = number(rtol, "rtol", least=0.0)
        atol = number(atol, "atol", least=0.0)
        self.maxiter = 10 * n if maxiter is None else integer(maxiter, "maxiter", 0)
        self.restart = integer(restart, "restart", 1)
        self.x0 = np.zeros(n) if x0 is None else _as_vector(x0, "x0", n)
        self.radius = _as_radius(radius, method, self.x0)
        self.verify = verify
        b_norm = euclidean_norm(self.b)
        self.tolerance = max(rtol * b_norm, atol)  # of ||b - B x||
        if not b_norm:
            self.x0 = np.zeros(n)  # the solution, whatever was given


class _State:
    """The iterate between two restart cycles; status None while the method goes on."""

    def __init__(self, problem: _Problem) -> None:
        self.x = problem.x0
        self.residual = problem.b.copy()
        if self.x.any():
            self.residual = problem.b - problem.system.product(self.x, 0)
        self.norm = euclidean_norm(self.residual)
        self.norms = [self.norm]
        self.aim = 1.0  # at which share of the tolerance the next cycle ends
        self.status: Status | None = None
        self.direction: np.ndarray | None = None
        self.curvature: float | None = None

    @property
    def iterations(self) -> int:
        return len(self.norms) - 1

    def cycle(self, problem: _Problem, report: _Report) -> Cycle:
        """Return the next cycle, in units of the norm of the residual."""
        radius, system = problem.radius, problem.system
        # Below the rounding of the products the recurrence goes on without meaning.
        goal = max(self.aim * problem.tolerance / self.norm, 0.125 * system.eps)
        return Cycle(
            system,
            self.residual / self.norm,
            goal=min(goal, 1 - 1e-12),
            maxiter=problem.maxiter - self.iterations,
            report=report,
            offset=None if radius is None else self.x / self.norm,
            radius=None if radius is None else radius / self.norm,
            is_first=not self.x.any(),
            restart=problem.restart,
        )

    def take(self, end: CycleResult, problem: _Problem) -> None:
        """Move to where a cycle ended, measure the residual there, and judge what was claimed."""
        system, tolerance = problem.system, problem.tolerance
        if end.curvature is not None and (self.curvature is None or end.curvature < self.curvature):
            self.direction, self.curvature = end.direction, end.curvature
        scale = self.norm
        x, residual = self.x + scale * end.x, scale * end.residual
        rounding = ROUNDING * system.eps * system.norm * euclidean_norm(x)
        claims = end.status in (Status.CONVERGED, Status.LEAST_SQUARES)
        # Also without `verify` where the claim is not enough, or rounding may have made it up.
        doubtful = claims and max(euclidean_norm(residual), rounding) > tolerance
        if (problem.verify or doubtful) and not end.measured:
            residual = problem.b - system.product(x, self.iterations)
        norm = euclidean_norm(residual)

        if end.status in (Status.NEGATIVE_CURVATURE, Status.TRUST_RADIUS):
            self.status = end.status
        elif norm > tolerance and end.status is not Status.MAX_ITERATIONS:
            if end.status is Status.CONVERGED:
                self.aim = _AIMED_SHARE
            least_squares = end.status is Status.LEAST_SQUARES and norm > rounding
            if end.status is Status.SINGULAR or (
                least_squares and system.is_stationary(residual, norm)
            ):
                self.status = end.status
            elif norm > (_RESTARTED_SHARE if end.status is None else _STAGNATED_SHARE) * scale:
                self.status = Status.STAGNATION
                if norm > scale:
                    return
        self.x, self.residual, self.norm = x, residual, norm

    def solution(self, problem: _Problem, first_residual: np.ndarray) -> Solution:
        """Return the solution, with negative curvature along which the model descends."""
        direction = self.direction
        if direction is not None:
            direction = direction / euclidean_norm(direction)
            # MINRES may have turned it around after a restart, or by rounding.
            if problem.method == "minres" and _inner(direction, first_residual) < 0:
                direction = -direction
        return Solution(
            x=self.x,
            status=Status.CONVERGED if self.status is None else self.status,
            iterations=self.iterations,
            residual_norms=np.array(self.norms),
            residual_norm=self.norm,
            tolerance=problem.tolerance,
            num_products=problem.system.num_products,
            model_value=-0.5 * _inner(self.x, problem.b + self.residual),
            negative_curvature=direction,
            curvature=self.curvature,
            method=problem.method,
            damping=problem.system.damping,
        )


def _reporter(state: _State, bar: Any, callback: Callable[[SolverStep], None] | None) -> _Report:
    """Return what a method calls after each iteration, with its own scaled norm and x."""

    def report(norm: float, x: np.ndarray | None) -> None:
        state.norms.append(state.norm * norm)
        bar.update(1)
        if callback is not None:
            iterate = None
            if x is not None:
                iterate = state.x + state.norm * x
                iterate.flags.writeable = False
            callback(SolverStep(state.iterations, state.norms[-1], iterate))

    return report


def _as_vector(vector: Any, name: str, size: int) -> np.ndarray:
    """Return a float64 copy of a real, finite vector of this size."""
    if np.iscomplexobj(vector):
        raise TypeError(f"{name} must be real, got complex numbers.")
    try:
        result = np.array(vector, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be an array of real numbers.") from None
    if result.shape != (size,):
        raise ValueError(
            f"{name} must have shape ({size},), one entry for each row of the operator, got "
            f"{result.shape}."
        )
    if not np.isfinite(result).all():
        raise ValueError(f"{name} must be finite; it holds NaN or infinity.")
    return result


def _as_radius(radius: Any, method: str, x: np.ndarray) -> float | None:
    if radius is None:
        return None
    if method != "cg":
        raise ValueError(f"radius needs method='cg', got method={method!r}.")
    radius = number(radius, "radius", above=0.0)
    if np.linalg.norm(x) > radius:
        raise ValueError(f"x0 lies outside the radius: {np.linalg.norm(x):.3g} > {radius:.3g}.")
    return radius


def _inner(left: np.ndarray, right: np.ndarray) -> float:
    """Return <left, right> whose summands neither under- nor overflow."""
    lengths = euclidean_norm(left), euclidean_norm(right)
    if not all(lengths):
        return 0.0
    return lengths[0] * lengths[1] * float((left / lengths[0]) @ (right / lengths[1]))
