import numpy as np
import psutil
import pytest

from spectral_density.linalg.memory import check_memory, on_disk

GIB = 2**30


def test_too_much_is_an_error_with_every_figure(monkeypatch):
    class Memory:
        available = 3 * GIB

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    check_memory({"basis": 2 * GIB, "block": GIB}, "")
    with pytest.raises(
        MemoryError, match=r"3\.5 GiB \(basis 2\.0 GiB, block 1\.5 GiB\).*3\.0 GiB are free\. Less"
    ):
        check_memory({"basis": 2 * GIB, "block": 3 * GIB // 2, "nothing": 0}, "Less.")


def test_an_array_on_disk_leaves_no_file(tmp_path):
    array = on_disk((3, 4), np.float32, tmp_path)
    array[:] = 2.0
    assert array.sum() == 24.0
    assert not list(tmp_path.iterdir())
