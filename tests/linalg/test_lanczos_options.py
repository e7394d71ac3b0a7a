"""Options of a Lanczos run: the memory that it needs."""

import numpy as np
import psutil
import pytest
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg import lanczos
from spectral_density.linalg.lanczos_options import memory_needed


def test_what_a_run_needs_is_its_basis_and_three_vectors_a_draw():
    n, order = 1000, 90
    assert memory_needed(n, order) == {"basis": 8 * order * n, "block": 24 * n}
    assert memory_needed(n, order, basis_dtype="float32")["basis"] == 4 * order * n
    assert memory_needed(n, order, basis="disk")["basis"] == 0
    assert memory_needed(n, order, reorthogonalize="none")["basis"] == 16 * n
    several = memory_needed(n, order, num_draws=6, draws_at_once=2)
    assert several == {"basis": 6 * 8 * order * n, "block": 2 * 24 * n}
    freed = memory_needed(n, order, num_draws=6, draws_at_once=2, keep_basis=False)
    assert freed["basis"] == 2 * 8 * order * n


def test_a_run_that_would_not_fit_makes_no_product(monkeypatch):
    class Memory:
        available = 10_000

    def product(v):
        raise AssertionError("a product was made")

    operator = LinearOperator((100, 100), matvec=product, dtype=float)
    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(MemoryError, match="reorthogonalize='none'"):
        lanczos(operator, 50)
    assert lanczos(np.eye(100), 50, reorthogonalize="none").order == 50
