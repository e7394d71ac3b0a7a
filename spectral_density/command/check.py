"""`check`: what preflight says of a model on its data."""

from __future__ import annotations

from collections.abc import Callable

from spectral_density.command.options import in_options
from spectral_density.command.problem import Request, look_for_files, open_problem
from spectral_density.command.quiet import import_tensorflow


def check(request: Request, show: Callable[[str], None]) -> bool:
    """Show whether the operator is one fixed, symmetric, finite matrix, a right one, and return it.

    Raises:
        ValueError: see `open_problem`.
    """
    look_for_files(request)
    import_tensorflow()
    problem = open_problem(request)
    from spectral_density.curvature.preflight import preflight

    report = preflight(problem.operator, seed=request.seed)
    show(str(problem))
    for found in report.checks:
        show(f"  {in_options(str(found), request)}")
    show(f"{report.verdict}, after {report.num_products:.3g} products with one vector")
    return not report.failed
