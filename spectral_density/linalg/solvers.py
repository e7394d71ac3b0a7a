"""Linear systems with a symmetric operator: CG that notices negative curvature, MINRES, GMRES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator, gmres

from spectral_density._progress import progress_bar
from spectral_density.linalg.arguments import (
    as_real_square,
    block_product,
    integer,
    number,
    precision,
    product_precision,
)
from spectral_density.linalg.norms import euclidean_norm
from spectral_density.linalg.threads import blas_threads

METHODS = ("cg", "minres", "gmres")

# A restart whose claim of convergence leaves more than this share of the residual met rounding.
_STAGNATED_SHARE = 0.5
# What a restart after a claim that rounding had made up aims at, as a share of the tolerance. One
# that aimed at the tolerance itself would have next to nothing to gain where that was missed by a
# hair, so that to leave nearly all of the residual would say nothing of whether it still falls.
_AIMED_SHARE = 0.5
# A full restart of GMRES that leaves more than this share will not get anywhere.
_RESTARTED_SHARE = 0.999
# MINRES passes a least-squares solution where ||B r|| / (||B|| ||r||) had a minimum below this many
# square roots of eps (it cannot get below one), then grew by this factor, and the residual did not
# fall meanwhile. A small ratio alone would do for every residual along small eigenvalues.
_STATIONARY_ROOTS = 2.0
_STATIONARY_GROWTH = 30.0
_STATIONARY_SHARE = 0.99
# Curvature below this many eps ||A|| is zero.
_ROUNDING = 10.0


class Status(Enum):
    """How a solver ended; the value is a message that says what to do."""

    CONVERGED = "The residual is within the tolerance."
    MAX_ITERATIONS = (
        "maxiter iterations were made and the residual is above the tolerance. x is the last "
        "iterate: go on from it with x0=x, allow more iterations, or use a preconditioner or "
        "damping. A residual above that of the start means a singular or very ill-conditioned "
        "matrix: damp it."
    )
    NEGATIVE_CURVATURE = (
        "The matrix plus damping is not positive definite: its curvature along negative_curvature "
        "is below zero. x is the iterate before it, or, with a radius, the end of that direction "
        "on the boundary. Step along it, raise the damping by more than -curvature, or use "
        "method='minres'."
    )
    SINGULAR = (
        "The matrix plus damping is singular to the precision of its products, and x, the iterate "
        "of the smallest residual, is no solution. Raise the damping, or use method='minres', "
        "which finds a least-squares solution."
    )
    LEAST_SQUARES = (
        "The system has no solution to the precision of its products: the matrix plus damping is "
        "singular, and x minimizes the residual (in the norm of the preconditioner, if there is "
        "one). Raise the damping for a unique solution."
    )
    TRUST_RADIUS = (
        "The path of the iterates left the ball of the given radius; x is the point on its "
        "boundary. The residual is above the tolerance, which only a larger radius can change."
    )
    STAGNATION = (
        "The residual does not fall any further, and it is above the tolerance: rounding in the "
        "products, a matrix that is nearly singular or not symmetric, or, for 'gmres', too short a "
        "restart. Raise rtol or the damping, use method='gmres', or a higher precision."
    )

    @property
    def message(self) -> str:
        """What it means, and what to do."""
        return self.value


@dataclass(frozen=True)
class SolverStep:
    """What the callback sees after an iteration."""

    iteration: int  # from 1
    residual_norm: float  # as in Solution.residual_norms
    x: np.ndarray | None = field(repr=False)  # (n,), read-only; None with method="gmres"


@dataclass(frozen=True, repr=False, eq=False)
class Solution:
    """What was found of x in B x = b, with B = A + damping I, and how the solver ended.

    The history of residual norms is what the recurrence of the method carries along (GMRES: its
    estimate), ||b - B x|| whatever the preconditioner, at no product. Rounding can part it from
    the truth, which is `residual_norm`.
    """

    x: np.ndarray  # (n,), float64
    status: Status
    iterations: int
    residual_norms: np.ndarray  # (iterations + 1,), of the start and after each iteration
    residual_norm: float  # ||b - B x||, by a product of its own unless verify=False
    tolerance: float  # max(rtol ||b||, atol), which residual_norm is held against
    num_products: int  # with the operator, those for residuals included
    model_value: float  # 1/2 x'B x - b'x, the quadratic model of a step
    negative_curvature: np.ndarray | None  # (n,), unit d with b'd > 0 and d'B d <= 0 to rounding
    curvature: float | None  # d'B d
    method: str
    damping: float

    @property
    def converged(self) -> bool:
        """Whether the residual is within the tolerance, measured."""
        return self.status is Status.CONVERGED

    def __repr__(self) -> str:
        """Say how it ended, never the arrays."""
        found = "" if self.curvature is None else f", curvature={self.curvature:.3g}"
        return (
            f"Solution({self.status.name}, {self.method}, n={len(self.x):,}, "
            f"{self.iterations:,} iterations, {self.num_products:,} products, "
            f"residual_norm={self.residual_norm:.3g}, tolerance={self.tolerance:.3g}{found})"
        )


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
    at ||b - Ax|| <= rtol ||A|| ||x||, which an ill-conditioned matrix meets at once, and does not
    say which of its rules it stopped by.

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
        Solution with `x`, `status`, `residual_norms` and, where the matrix is found not to be
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
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    damping = number(damping, "damping", least=0.0)
    system = _System(as_real_square(operator), damping, preconditioner)
    n = system.size
    b = _as_vector(b, "b", n)
    rtol = number(rtol, "rtol", least=0.0)
    atol = number(atol, "atol", least=0.0)
    maxiter = 10 * n if maxiter is None else integer(maxiter, "maxiter", 0)
    restart = integer(restart, "restart", 1)
    x = np.zeros(n) if x0 is None else _as_vector(x0, "x0", n)
    radius = _as_radius(radius, method, x)

    b_norm = euclidean_norm(b)
    tolerance = max(rtol * b_norm, atol)
    if not b_norm:
        x = np.zeros(n)  # the solution, whatever x0 was
    residual = b - system.product(x, 0) if x.any() else b.copy()
    state = _State(x, residual, euclidean_norm(residual))
    with progress_bar(maxiter, method, progress) as bar:
        while state.norm > tolerance and state.status is None:
            left = maxiter - state.iterations
            if not left:
                state.status = Status.MAX_ITERATIONS
                break
            run = _Run(
                system,
                state.residual / state.norm,
                # Below the rounding of the products the recurrence goes on, but means nothing.
                goal=min(max(state.aim * tolerance / state.norm, 0.125 * system.eps), 1 - 1e-12),
                maxiter=left,
                report=_reporter(state, bar, callback),
                offset=None if radius is None else state.x / state.norm,
                is_first=not state.x.any(),
                radius=None if radius is None else radius / state.norm,
                restart=restart,
            )
            end = {"cg": _cg, "minres": _minres, "gmres": _gmres}[method](run)
            state.take(end, system, b, tolerance, verify)
    d = state.direction
    if d is not None:
        d = d / euclidean_norm(d)
        if method == "minres" and _inner(d, residual) < 0:  # after a restart, or rounding
            d = -d
    return Solution(
        x=state.x,
        status=Status.CONVERGED if state.status is None else state.status,
        iterations=state.iterations,
        residual_norms=np.array(state.norms),
        residual_norm=state.norm,
        tolerance=tolerance,
        num_products=system.num_products,
        model_value=-0.5 * _inner(state.x, b + state.residual),
        negative_curvature=d,
        curvature=state.curvature,
        method=method,
        damping=damping,
    )


class _System:
    """B = A + damping I and the preconditioner M, with checked products that are counted."""

    def __init__(self, operator: LinearOperator, damping: float, preconditioner: Any):
        self.operator = operator
        self.size = operator.shape[0]
        self.damping = damping
        self.preconditioner = _as_preconditioner(preconditioner, self.size)
        self.eps = product_precision(operator)
        self.norm = 0.0  # of B, the largest ||B v|| / ||v|| that a method saw
        self.num_products = 0

    def product(self, vector: np.ndarray, iteration: int) -> np.ndarray:
        """Return B @ vector, a new array."""
        product = block_product(self.operator, vector, f"at iteration {iteration}")
        self.eps = max(self.eps, precision(product.dtype))
        self.num_products += 1
        return product + self.damping * vector if self.damping else product.copy()

    def precondition(self, vector: np.ndarray, iteration: int) -> np.ndarray:
        """Return M @ vector, or the vector itself where there is no preconditioner."""
        if self.preconditioner is None:
            return vector
        where = f"(it is the preconditioner's, at iteration {iteration})"
        return block_product(self.preconditioner, vector, where)

    def is_stationary(self, residual: np.ndarray, norm: float) -> bool:
        """Measure whether B M r = 0 to rounding, so that no x has a smaller r'M r."""
        z = self.precondition(residual / norm, 0)
        slope = float(np.linalg.norm(self.product(z, 0)) / np.linalg.norm(z))
        return slope <= 10 * self.stationary(self.norm)

    @property
    def is_damped(self) -> bool:
        """Whether the damping is more than nothing in float64."""
        return self.damping > _ROUNDING * precision(None) * self.norm

    def stationary(self, norm: float) -> float:
        """Return the ||B r|| / ||r|| below which B r may be zero, for ||B|| = norm.

        With damping, that takes an eigenvalue of A of -damping, which no semidefinite A has.
        """
        limit = _STATIONARY_ROOTS * float(np.sqrt(self.eps)) * norm
        if not self.is_damped:
            return limit
        return min(limit, 0.5 * self.damping) if self.preconditioner is None else 0.0


@dataclass
class _Run:
    """One start of a method: B x = rhs from x = 0, with rhs of length 1."""

    system: _System
    rhs: np.ndarray
    goal: float
    maxiter: int
    report: Callable[[float, np.ndarray | None], None]
    offset: np.ndarray | None  # what is added to x before its length is held against the radius
    radius: float | None
    is_first: bool  # nothing is added to x
    restart: int


@dataclass
class _End:
    """How a start ended; status CONVERGED says that the goal was met, None that it was not."""

    x: np.ndarray
    residual: np.ndarray
    status: Status | None
    direction: np.ndarray | None = None
    curvature: float | None = None  # d'B d / d'd
    measured: bool = False  # whether the residual comes from a product, not from a recurrence


class _State:
    """Where the solver is between two starts of its method; status None for under way."""

    def __init__(self, x: np.ndarray, residual: np.ndarray, norm: float):
        self.x = x
        self.residual = residual
        self.norm = norm  # of the residual
        self.norms = [norm]
        self.aim = 1.0  # at which share of the tolerance the next start ends
        self.status: Status | None = None
        self.direction: np.ndarray | None = None
        self.curvature: float | None = None

    @property
    def iterations(self) -> int:
        return len(self.norms) - 1

    def take(
        self, end: _End, system: _System, b: np.ndarray, tolerance: float, verify: bool
    ) -> None:
        """Move to where a start ended, measure the residual there, and judge what was claimed."""
        if end.curvature is not None and (self.curvature is None or end.curvature < self.curvature):
            self.direction, self.curvature = end.direction, end.curvature
        scale = self.norm
        x, residual = self.x + scale * end.x, scale * end.residual
        rounding = _ROUNDING * system.eps * system.norm * euclidean_norm(x)
        claims = end.status in (Status.CONVERGED, Status.LEAST_SQUARES)
        # Unasked where the claim is not enough, or rounding may have made it up.
        doubtful = claims and max(euclidean_norm(residual), rounding) > tolerance
        if (verify or doubtful) and not end.measured:
            residual = b - system.product(x, self.iterations)
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


def _cg(run: _Run) -> _End:
    """Preconditioned conjugate gradients, as Steihaug has them."""
    system = run.system
    x = np.zeros(system.size)
    residual = run.rhs.copy()
    z = system.precondition(residual, 0)
    rz = _positive(residual, z, 0)
    p = z.copy()
    best = (1.0, x.copy(), residual.copy())
    for iteration in range(1, run.maxiter + 1):
        product = system.product(p, iteration)
        with blas_threads(system.size):
            curvature = float(p @ product)
            length2 = float(p @ p)
            system.norm = max(system.norm, float(np.sqrt((product @ product) / length2)))
            rounding = _ROUNDING * system.eps * system.norm * length2
            # Damping is exact, however small, and keeps x from running off.
            indefinite = curvature <= (0.0 if system.is_damped else rounding)
            alpha = 0.0 if indefinite else rz / curvature
            leaves = False
            if run.radius is not None:
                reach = _to_boundary(run.offset + x, p, length2, run.radius)
                leaves = indefinite or alpha >= reach
                alpha = reach if leaves else alpha
            if alpha:
                x += alpha * p
                residual -= alpha * product
            norm = float(np.linalg.norm(residual))
        if alpha or leaves:
            run.report(norm, x)
        if indefinite:
            status = Status.NEGATIVE_CURVATURE if curvature < -rounding else Status.SINGULAR
            if status is Status.SINGULAR and leaves:
                status = Status.TRUST_RADIUS
            elif status is Status.SINGULAR and not system.is_damped:
                _, x, residual = best  # the last ones may have run off along the null space
            return _End(x, residual, status, p, curvature / length2)
        if norm <= run.goal:
            return _End(x, residual, Status.CONVERGED)
        if leaves:
            return _End(x, residual, Status.TRUST_RADIUS)
        if norm < best[0] and not system.is_damped:
            best = (norm, x.copy(), residual.copy())
        z = system.precondition(residual, iteration)
        with blas_threads(system.size):
            rz, before = _positive(residual, z, iteration), rz
            p *= rz / before
            p += z
    return _End(x, residual, Status.MAX_ITERATIONS)


def _minres(run: _Run) -> _End:
    """Preconditioned MINRES, with its residual as a vector, and negative curvature on the way.

    Names are those of Paige and Saunders: Lanczos with alpha and beta, the QR factorization of T
    by rotations (c, s). With M the preconditioner, it minimizes r'M r.
    """
    system = run.system
    x = np.zeros(system.size)
    residual = run.rhs.copy()
    older = np.zeros(system.size)
    newer = run.rhs
    z = system.precondition(newer, 0)
    beta = np.sqrt(_positive(newer, z, 0))
    gradient = z.copy()  # M r
    oldbeta = dbar = epsilon = t_norm = 0.0
    c, s, phibar = -1.0, 0.0, beta
    w_older, w_newer = np.zeros(system.size), np.zeros(system.size)
    best, lowest = None, None
    flat, flattest = (x, residual, phibar), np.inf
    for iteration in range(1, run.maxiter + 1):
        v = z / beta
        product = system.product(v, iteration)
        with blas_threads(system.size):
            system.norm = max(system.norm, float(np.linalg.norm(product) / np.linalg.norm(v)))
            if iteration > 1:
                product -= (beta / oldbeta) * older
            alpha = float(v @ product)
            product -= (alpha / beta) * newer
        older, newer = newer, product
        z = system.precondition(newer, iteration)
        with blas_threads(system.size):
            oldbeta, beta = beta, np.sqrt(_positive(newer, z, iteration, or_zero=True))
            t_norm = max(
                t_norm, float(np.linalg.norm([oldbeta if iteration > 1 else 0.0, alpha, beta]))
            )
            oldepsilon = epsilon
            delta = c * dbar + s * alpha
            gbar = s * dbar - c * alpha
            epsilon = s * beta
            dbar = -c * beta

            # The curvature of the model along M r, before this step.
            length2 = float(gradient @ gradient)
            curvature = -c * gbar * phibar**2 / length2
            if curvature < min(
                -_ROUNDING * system.eps * system.norm, 0.0 if lowest is None else lowest
            ):
                best, lowest = gradient.copy(), curvature
            # ||B M r|| over ||r||, in the norm of M: nothing is left to gain where it is 0.
            slope = float(np.hypot(gbar, dbar))
            if slope <= system.eps * t_norm:
                return _End(x, residual, Status.LEAST_SQUARES, best, lowest)
            if slope < min(flattest, system.stationary(t_norm)):
                flattest, flat = slope, (x.copy(), residual.copy(), phibar)
            elif slope > _STATIONARY_GROWTH * flattest and phibar > _STATIONARY_SHARE * flat[2]:
                return _End(flat[0], flat[1], Status.LEAST_SQUARES, best, lowest)

            gamma = float(np.hypot(gbar, beta))
            c, s = gbar / gamma, beta / gamma
            w_older, w_newer = w_newer, (v - oldepsilon * w_older - delta * w_newer) / gamma
            x += (c * phibar) * w_newer
            phibar *= s
            residual *= s * s
            gradient *= s * s
            if beta:
                residual -= (phibar * c / beta) * newer
                gradient -= (phibar * c / beta) * z
            norm = float(np.linalg.norm(residual))
        run.report(norm, x)
        if norm <= run.goal:
            return _End(x, residual, Status.CONVERGED, best, lowest)
    return _End(x, residual, Status.MAX_ITERATIONS, best, lowest)


def _gmres(run: _Run) -> _End:
    """One restart of SciPy's GMRES, preconditioned from the right.

    From the right, B M u = rhs and x = M u, it minimizes, estimates and tests the residual itself;
    from the left, as SciPy has it, that of the preconditioned system.
    """
    system = run.system
    steps = min(run.restart, run.maxiter, system.size)
    norms: list[float] = []
    last: list[np.ndarray] = []

    def product(u: np.ndarray) -> np.ndarray:
        v = system.precondition(u, len(norms) + 1)
        last[:] = u.copy(), v, system.product(v, len(norms) + 1)
        return last[2]

    def note(norm: float) -> None:
        norms.append(float(norm))
        run.report(norms[-1], None)

    u, _ = gmres(
        LinearOperator((system.size, system.size), matvec=product, dtype=np.float64),
        run.rhs,
        rtol=0.0,
        atol=run.goal,
        restart=steps,
        maxiter=1,
        callback=note,
        callback_type="pr_norm",
    )
    # SciPy's last product is the one of its result, to measure the residual: it is not repeated.
    if not np.array_equal(u, last[0]):
        product(u)
    _, x, product_of_x = last
    residual = run.rhs - product_of_x
    worse = np.linalg.norm(residual) > 1 - 1e-9
    status: Status | None
    if worse and norms[-1] <= 0.5:
        status = Status.SINGULAR  # x blew up, and its rounding hides what was gained
    elif norms[-1] <= run.goal:
        status = Status.CONVERGED
    elif len(norms) < steps:
        status = Status.SINGULAR  # the Krylov space is exhausted, and holds no solution
    else:
        status = None
    if worse:
        x, residual = np.zeros(system.size), run.rhs
    # The sum of several starts has rounding of its own.
    return _End(x, residual, status, measured=run.is_first)


def _to_boundary(x: np.ndarray, p: np.ndarray, length2: float, radius: float) -> float:
    """Return the tau >= 0 with ||x + tau p|| = radius."""
    along = float(x @ p)
    room = max(radius**2 - float(x @ x), 0.0)
    root = float(np.sqrt(along**2 + length2 * room))
    return room / (along + root) if along > 0 else (root - along) / length2


def _positive(
    vector: np.ndarray, image: np.ndarray, iteration: int, or_zero: bool = False
) -> float:
    """Return v'Mv, which a positive definite preconditioner makes positive.

    With `or_zero`, v may be nothing but rounding, and so may v'Mv.
    """
    product = float(vector @ image)
    if product > 0:
        return product
    size = float(np.linalg.norm(vector) * np.linalg.norm(image))
    if or_zero and abs(product) <= 10 * precision(None) * size:
        return 0.0
    share = product / size if size else 0.0
    raise ValueError(
        f"The preconditioner is not positive definite: r'M r is {share:.3g} of ||r|| ||M r|| at "
        f"iteration {iteration}. Use its absolute value, method='gmres', or none."
    )


def _reporter(
    state: _State, bar: Any, callback: Callable[[SolverStep], None] | None
) -> Callable[[float, np.ndarray | None], None]:
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


def _as_preconditioner(preconditioner: Any, size: int) -> LinearOperator | None:
    if preconditioner is None:
        return None
    shape = getattr(preconditioner, "shape", None)
    if shape is not None and tuple(shape) != (size, size):
        raise ValueError(
            f"The preconditioner must have the operator's shape ({size}, {size}), got "
            f"{tuple(shape)}."
        )
    try:
        return as_real_square(preconditioner)
    except TypeError as error:
        raise TypeError(f"preconditioner: {error}") from None


def _inner(left: np.ndarray, right: np.ndarray) -> float:
    """Return <left, right> whose summands neither under- nor overflow."""
    lengths = euclidean_norm(left), euclidean_norm(right)
    if not all(lengths):
        return 0.0
    return lengths[0] * lengths[1] * float((left / lengths[0]) @ (right / lengths[1]))
