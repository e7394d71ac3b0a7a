import numpy as np
import psutil
import pytest
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg import lanczos
from spectral_density.linalg.lanczos_options import memory_needed
from spectral_density.linalg.memory import check_memory, on_disk

GIB = 2**30


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


def test_too_much_is_an_error_with_every_figure(monkeypatch):
    class Memory:
        available = 3 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    check_memory({"basis": 2 * GIB, "block": GIB}, "")
    with pytest.raises(
        MemoryError, match=r"3\.5 GiB \(basis 2\.0 GiB, block 1\.5 GiB\).*3\.0 GiB are free\. Less"
    ):
        check_memory({"basis": 2 * GIB, "block": 3 * GIB // 2, "nothing": 0}, "Less.")


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


def test_an_array_on_disk_leaves_no_file(tmp_path):
    array = on_disk((3, 4), np.float32, tmp_path)
    array[:] = 2.0
    assert array.sum() == 24.0
    assert not list(tmp_path.iterdir())
