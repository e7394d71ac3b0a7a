"""Inexact Newton methods: the Newton system solved by a Krylov method to a forcing term."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np

from spectral_density.analysis.quadratic import gradient_step
from spectral_density.linalg.arguments import integer, number
from spectral_density.linalg.norms import euclidean_norm, inner
from spectral_density.linalg.solvers import Solution, Status, solve
from spectral_density.training.globalization import Globalization, StepChoice
from spectral_density.training.methods import Direction, SecondOrderMethod
from spectral_density.training.problem import Problem
from spectral_density.training.steps import TrainingStatus

# Choice 2 of Eisenstat and Walker, with their safeguard.
_FORCING_FACTOR = 0.9
_FORCING_POWER = (1 + 5**0.5) / 2
_SAFEGUARDED_ABOVE = 0.1
# Share of the trust radius within which a warm start has to lie.
_INSIDE = 0.9


class NewtonKrylov(SecondOrderMethod):
    """Base class of the inexact Newton methods: damping, forcing term, and the solver's options.

    The system is (A + damping I) d = -g, solved to ||residual|| <= eta ||g|| or in
    `max_iterations`, whichever is first. eta is Eisenstat's and Walker's second choice,
    0.9 (||g|| / ||g before||)^1.618, safeguarded and at most `max_forcing`: far from the minimum,
    where the model is poor, few products are made.

    References:
        Eisenstat, Walker (1996), SIAM J. Sci. Comput. 17:16.
    """

    _solver: Literal["cg", "minres", "gmres"]

    def __init__(
        self,
        *,
        damping: float,
        max_iterations: int,
        max_forcing: float,
        **shared: Any,
    ):
        """Check the options; the shared ones are those of `SecondOrderMethod`."""
        self.damping = number(damping, "damping", least=0.0)
        self.max_iterations = integer(max_iterations, "max_iterations", 1)
        self.max_forcing = number(max_forcing, "max_forcing", above=0.0)
        if self.max_forcing >= 1:
            raise ValueError(f"max_forcing must be less than 1, got {max_forcing!r}.")
        super().__init__(**shared)

    def reset(self) -> None:
        """See `SecondOrderMethod`."""
        super().reset()
        self._gradient_norm: float | None = None
        self._forcing = self.max_forcing

    def _next_forcing(self, norm: float) -> float:
        if self._gradient_norm is not None:
            forcing = _FORCING_FACTOR * (norm / self._gradient_norm) ** _FORCING_POWER
            safeguard = _FORCING_FACTOR * self._forcing**_FORCING_POWER
            if safeguard > _SAFEGUARDED_ABOVE:
                forcing = max(forcing, safeguard)
            self._forcing = min(forcing, self.max_forcing)
        self._gradient_norm = norm
        return self._forcing

    def _solve(
        self, problem: Problem, gradient: np.ndarray, forcing: float, **options: Any
    ) -> Solution:
        operator = problem.curvature()
        adapted = self.globalization.damping(
            lambda: gradient_step(operator, gradient=gradient).curvature
        )
        return solve(
            operator,
            -gradient,
            method=self._solver,
            damping=self.damping + (adapted or 0.0),
            rtol=forcing,
            maxiter=self.max_iterations,
            verify=False,
            progress=False,
            **options,
        )

    def _along_solution(self, solution: Solution, gradient: np.ndarray) -> Direction:
        """Return the direction of the system's solution."""
        x = solution.x
        return Direction(
            x,
            curvature=2 * (solution.model_value - inner(gradient, x)),
            damping=solution.damping,
            solver_status=solution.status,
        )

    def _along_negative_curvature(
        self, solution: Solution, gradient: np.ndarray, base: np.ndarray
    ) -> Direction:
        """Return `base` plus a descent step along the solver's direction of negative curvature.

        Its length is the slope over the magnitude of the curvature, as in saddle-free Newton: both
        parts decrease the model. `base` is conjugate to it, so that their curvatures add up.
        """
        d, curvature = solution.negative_curvature, solution.curvature
        if d is None or curvature is None:
            raise ValueError(f"{solution} has no direction of negative curvature.")
        length = abs(inner(gradient, d)) / abs(curvature)
        within = 2 * (solution.model_value - inner(gradient, base)) if base.any() else 0.0
        return Direction(
            base + length * d,
            curvature=within + length**2 * curvature,
            status=TrainingStatus.NEGATIVE_CURVATURE,
            damping=solution.damping,
            solver_status=solution.status,
        )


class NewtonCG(NewtonKrylov):
    """Inexact Newton by conjugate gradients, with Steihaug's exit at negative curvature.

    Where CG encounters a direction of negative curvature the step descends along it: to the
    boundary of the trust region, or, without one, by the slope over the magnitude of the curvature
    beyond the iterate so far. Within a trust region the path of the iterates ends at its boundary.

    CG starts from a part of the last direction, so that several steps, of few iterations each,
    approach the solution together (Martens, section 4.8).

    References:
        Steihaug (1983), SIAM J. Numer. Anal. 20:626.
        Martens (2010), Deep learning via Hessian-free optimization, ICML.
        O'Leary-Roseberry, Alger, Ghattas (2019), arXiv 1905.06738.
    """

    _solver = "cg"

    def __init__(
        self,
        *,
        damping: float = 0.0,
        max_iterations: int = 6,
        max_forcing: float = 0.1,
        warm_start: float = 0.95,
        learning_rate: float = 0.5,
        globalization: str | Globalization = "levenberg_marquardt",
        curvature: Literal["hessian", "gauss_newton"] = "gauss_newton",
        hessian_data: Any = None,
        hessian_batch_size: int | None = None,
    ):
        """Take the options.

        Args:
            damping: added to the diagonal, beside what Levenberg-Marquardt adapts.
            max_iterations: of CG for each step; each takes one product.
            max_forcing: largest residual relative to that of a zero step.
            warm_start: factor of the last direction that CG starts from, 0 to start from zero.
            learning_rate: step length, or the first one that is tried.
            globalization: how far to step, see `SecondOrderMethod`.
            curvature: see `SecondOrderMethod`. The Gauss-Newton matrix has no negative curvature,
                and needs fewer examples.
            hessian_data: see `SecondOrderMethod`.
            hessian_batch_size: see `SecondOrderMethod`.
        """
        self.warm_start = number(warm_start, "warm_start", least=0.0)
        super().__init__(
            damping=damping,
            max_iterations=max_iterations,
            max_forcing=max_forcing,
            learning_rate=learning_rate,
            globalization=globalization,
            curvature=curvature,
            hessian_data=hessian_data,
            hessian_batch_size=hessian_batch_size,
        )

    def reset(self) -> None:
        """See `SecondOrderMethod`."""
        super().reset()
        self._last: np.ndarray | None = None

    def _direction(self, problem: Problem, loss: float, gradient: np.ndarray) -> Direction:
        radius = self.globalization.radius
        start = self._start(radius)
        forcing = self._next_forcing(euclidean_norm(gradient))
        solution = self._solve(problem, gradient, forcing, radius=radius, x0=start)
        if start is not None and not self._is_descent(solution, gradient):
            # Too few iterations from the last direction for a descent direction of this gradient.
            solution = self._solve(problem, gradient, forcing, radius=radius)
        if solution.status is Status.SINGULAR and not solution.x.any():
            # No curvature along the gradient, and so no step length from the model.
            return Direction(
                -gradient, 0.0, solver_status=solution.status, damping=solution.damping
            )
        if solution.status is not Status.NEGATIVE_CURVATURE:
            return self._along_solution(solution, gradient)
        if radius is None:
            return self._along_negative_curvature(solution, gradient, solution.x)
        direction = self._along_solution(solution, gradient)
        return replace(direction, status=TrainingStatus.NEGATIVE_CURVATURE)

    def _is_descent(self, solution: Solution, gradient: np.ndarray) -> bool:
        """Tell whether a solution is a descent direction, as one from a zero start always is."""
        if solution.status is Status.NEGATIVE_CURVATURE or solution.model_value >= 0:
            return False
        return inner(gradient, solution.x) < 0

    def _start(self, radius: float | None) -> np.ndarray | None:
        if self._last is None or not self.warm_start:
            return None
        start = self.warm_start * self._last
        if radius is not None:
            # The path of CG moves away from the origin, and must not begin at the boundary.
            start *= min(1.0, _INSIDE * radius / euclidean_norm(start))
        return start

    def _taken(self, direction: Direction, choice: StepChoice) -> None:
        self._last = direction.vector if choice.length else None


class NewtonMINRES(NewtonKrylov):
    """Inexact Newton by MINRES, for indefinite matrices.

    The solution of an indefinite system may be an ascent direction, or lead to a saddle point.
    MINRES detects directions of negative curvature among its residuals at no cost; where there is
    one, the step descends along it (`follow_negative_curvature`).

    References:
        Liu, Roosta (2022), SIAM J. Optim. 32:2636; arXiv 2208.07095 (Newton-MR).
    """

    _solver = "minres"

    def __init__(
        self,
        *,
        damping: float = 0.0,
        max_iterations: int = 10,
        max_forcing: float = 0.1,
        follow_negative_curvature: bool = True,
        learning_rate: float = 1.0,
        globalization: str | Globalization = "levenberg_marquardt",
        curvature: Literal["hessian", "gauss_newton"] = "hessian",
        hessian_data: Any = None,
        hessian_batch_size: int | None = None,
    ):
        """Take the options.

        Args:
            damping: added to the diagonal, beside what Levenberg-Marquardt adapts.
            max_iterations: of MINRES for each step; each takes one product.
            max_forcing: largest residual relative to that of a zero step.
            follow_negative_curvature: False always takes the solution: plain Newton, which
                converges to saddle points, too.
            learning_rate: step length, or the first one that is tried.
            globalization: how far to step, see `SecondOrderMethod`.
            curvature: see `SecondOrderMethod`.
            hessian_data: see `SecondOrderMethod`.
            hessian_batch_size: see `SecondOrderMethod`.
        """
        self.follow_negative_curvature = bool(follow_negative_curvature)
        super().__init__(
            damping=damping,
            max_iterations=max_iterations,
            max_forcing=max_forcing,
            learning_rate=learning_rate,
            globalization=globalization,
            curvature=curvature,
            hessian_data=hessian_data,
            hessian_batch_size=hessian_batch_size,
        )

    def _direction(self, problem: Problem, loss: float, gradient: np.ndarray) -> Direction:
        solution = self._solve(problem, gradient, self._next_forcing(euclidean_norm(gradient)))
        if solution.negative_curvature is not None and self.follow_negative_curvature:
            return self._along_negative_curvature(solution, gradient, np.zeros_like(gradient))
        return self._along_solution(solution, gradient)


class NewtonGMRES(NewtonKrylov):
    """Inexact Newton by GMRES: the plain Newton step, for matrices that are not quite symmetric.

    It does not detect negative curvature, and converges to saddle points, too; a direction that is
    not a descent direction is refused.

    References:
        Saad, Schultz (1986), SIAM J. Sci. Stat. Comput. 7:856.
    """

    _solver = "gmres"

    def __init__(
        self,
        *,
        damping: float = 0.0,
        max_iterations: int = 10,
        max_forcing: float = 0.1,
        learning_rate: float = 1.0,
        globalization: str | Globalization = "levenberg_marquardt",
        curvature: Literal["hessian", "gauss_newton"] = "gauss_newton",
        hessian_data: Any = None,
        hessian_batch_size: int | None = None,
    ):
        """Take the options.

        Args:
            damping: added to the diagonal, beside what Levenberg-Marquardt adapts.
            max_iterations: of GMRES for each step; each takes one product and keeps one vector.
            max_forcing: largest residual relative to that of a zero step.
            learning_rate: step length, or the first one that is tried.
            globalization: how far to step, see `SecondOrderMethod`.
            curvature: see `SecondOrderMethod`.
            hessian_data: see `SecondOrderMethod`.
            hessian_batch_size: see `SecondOrderMethod`.
        """
        super().__init__(
            damping=damping,
            max_iterations=max_iterations,
            max_forcing=max_forcing,
            learning_rate=learning_rate,
            globalization=globalization,
            curvature=curvature,
            hessian_data=hessian_data,
            hessian_batch_size=hessian_batch_size,
        )

    def _direction(self, problem: Problem, loss: float, gradient: np.ndarray) -> Direction:
        forcing = self._next_forcing(euclidean_norm(gradient))
        return self._along_solution(self._solve(problem, gradient, forcing), gradient)
