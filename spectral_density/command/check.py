"""The command `check`: the preflight check of a model on its data."""

from __future__ import annotations

from collections.abc import Callable

from spectral_density.command.matrix import MatrixRequest, check_files, open_matrix
from spectral_density.command.messages import in_options
from spectral_density.command.quiet import import_keras


def check(request: MatrixRequest, show: Callable[[str], None]) -> bool:
    """Show and return whether the operator is a fixed, symmetric, finite matrix, and a right one.

    Raises:
        ValueError: see `open_matrix`.
    """
    check_files(request)
    import_keras()
    matrix = open_matrix(request)
    from spectral_density.curvature.preflight import preflight

    report = preflight(matrix.operator, seed=request.seed)
    show(str(matrix))
    if not report.failed:
        show(f"state     {matrix.operator.model_state()} on these data")
    for line in report.lines():
        show(f"  {in_options(line, request)}")
    show(f"{report.verdict}, after {report.num_products:.3g} products with one vector")
    return not report.failed
