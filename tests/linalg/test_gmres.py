"""GMRES: systems that are not symmetric, and restarts without progress."""

import numpy as np
import pytest
from linalg.systems import normal, relative_error

from spectral_density.linalg.solvers import Status, solve

pytestmark = pytest.mark.filterwarnings("error")


def test_gmres_solves_a_system_that_is_not_symmetric():
    matrix = np.eye(50) + 0.1 * np.random.default_rng(0).standard_normal((50, 50))
    b = normal(50)
    for restart in (50, 10):
        solution = solve(matrix, b, method="gmres", rtol=1e-10, restart=restart)
        assert solution.converged
        assert relative_error(solution.x, np.linalg.solve(matrix, b)) <= 1e-8


def test_gmres_that_cannot_progress_stops():
    shift = np.roll(np.eye(20), 1, axis=0)  # no progress before step n
    solution = solve(shift, np.eye(20)[0], method="gmres", restart=5)
    assert solution.status is Status.STAGNATION
    assert solution.iterations == 5
    assert solve(shift, np.eye(20)[0], method="gmres", restart=20).converged
