"""XTrace against the estimates that leave out one probe, and two."""

import numpy as np
import pytest
from cases import dense_symmetric
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg.traces import frobenius_norm, trace

pytestmark = pytest.mark.filterwarnings("error")


def recording(matrix):
    """The matrix as an operator, and the list of blocks that it was multiplied with."""
    blocks = []
    operator = LinearOperator(
        matrix.shape,
        matvec=lambda v: matrix @ v,
        matmat=lambda b: blocks.append(b) or matrix @ b,
        dtype=float,
    )
    return operator, blocks


def test_xtrace_is_the_average_of_leave_one_out_estimates():
    matrix = dense_symmetric(np.linspace(-1, 2, 40))
    operator, probes = recording(matrix)
    found = trace(operator, num_products=12, seed=5)
    w = probes[0]
    samples = []
    for i in range(6):
        q = np.linalg.qr(np.delete(matrix @ w, i, axis=1))[0]
        u = w[:, i] - q @ (q.T @ w[:, i])
        samples.append(np.trace(q.T @ matrix @ q) + 35 * (u @ matrix @ u) / (u @ u))
    assert found.value == pytest.approx(np.mean(samples), rel=1e-12)


def test_the_covariances_of_xtrace_are_those_of_the_leave_two_out_estimates():
    matrix = dense_symmetric(np.linspace(1, 2, 40) ** 3)
    matrix[:4] *= 3
    matrix[:, :4] *= 3
    operator, probes = recording(matrix)
    for function, form in ((trace, matrix), (frobenius_norm, matrix @ matrix)):
        probes.clear()
        found = function(operator, num_products=12, method="xtrace", seed=7)
        w = probes[0]

        def sample(i, *others, w=w, form=form):
            q = np.linalg.qr(np.delete(matrix @ w, [i, *others], axis=1))[0]
            u = w[:, i] - q @ (q.T @ w[:, i])
            return np.trace(q.T @ form @ q) + (40 - q.shape[1]) * (u @ form @ u) / (u @ u)

        d = np.array([sample(i) for i in range(6)])
        change = np.array(
            [[d[i] - sample(i, j) if i != j else 0 for j in range(6)] for i in range(6)]
        )
        spread = np.sum((d - d.mean()) ** 2)
        variance = max(spread + np.sum(change * change.T), spread / 2) / 30
        expected = np.sqrt(variance) / (1 if function is trace else 2 * found.value)
        assert found.standard_error == pytest.approx(expected, rel=1e-9)


pytestmark = pytest.mark.filterwarnings("error")
