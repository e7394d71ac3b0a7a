"""The benchmark for GPUs runs in small on a CPU, and compares before it measures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PRODUCTS = ["product", "linearized product", "block of 4, linearized", "block of 10, linearized"]
OURS = [*PRODUCTS, "A @ v, NumPy in and out", "Lanczos step 10", "Lanczos step 90"]


@pytest.mark.parametrize("network", ["resnet", pytest.param("gpt", marks=pytest.mark.exhaustive)])
def test_the_benchmark_for_gpus_runs_small(network):
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), network, "--small"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[1:]]
    rows = {(by, what): rest for by, what, *rest in cells}
    assert [what for by, what in rows if by == "JAX"] == ["gradient", *PRODUCTS]
    assert [what for by, what in rows if by == "spectral_density"] == OURS
    for (_, what), (milliseconds, _, off) in rows.items():
        middle, low, high = map(float, re.findall(r"[\d.e+-]*\d", milliseconds))
        assert 0 < low <= middle <= high
        assert what.startswith("Lanczos") or float(off) < 1e-5
    assert "Lanczos step 90 / spectral_density, linearized product" in done.stdout
    assert "it keeps" in done.stdout


def test_a_product_with_another_matrix_ends_the_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    exact = np.array([3.0, 4.0])
    right = gpu.Form("someone", "product", lambda: exact + 1e-6, exact)
    wrong = gpu.Form("someone", "block", lambda: exact + 0.1, exact)
    raising = gpu.Form("someone", "compiled", lambda: 1 / 0, exact)
    running, notes = gpu.compared(iter([right, raising]), "float32")
    assert [form.what for form in running] == ["product"]
    assert notes == ["someone, compiled: ZeroDivisionError: division by zero"]
    with pytest.raises(SystemExit, match=r"someone, block is .* off"):
        gpu.compared(iter([wrong]), "float32")
