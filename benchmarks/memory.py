"""How much memory does a run take above the peak of its first product?

    python benchmarks/memory.py [estimate_spectrum] [approximate_hessian]

The CIFAR CNN on 28 x 28 x 1 inputs (2,367,434 parameters), 90 steps, one draw. Each line is a
process of its own; figures are shares of order x parameters x 8 bytes, the float64 basis.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ORDER = 90


def peak() -> int:
    """Return the peak resident size of this process in bytes (Linux counts in KiB)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def run(driver: str) -> None:
    import numpy as np
    import psutil
    from lanczos_step import LOSS, cnn, make_operator

    import spectral_density as sd

    network = cnn((28, 28, 1))
    hessian = make_operator(network[0], network[1], 128, 64)
    hessian @ np.ones(hessian.shape[0])
    first, now = peak(), psutil.Process().memory_info().rss
    basis = 8 * ORDER * hessian.shape[0]
    if driver == "estimate_spectrum":
        result = sd.estimate_spectrum(hessian, ORDER, 1)
    else:
        result = sd.approximate_hessian(network[0], LOSS, list(hessian.batches), ORDER)
    after = psutil.Process().memory_info().rss
    print(
        f"{driver}: basis {basis / 2**30:.2f} GiB; peak of the first product "
        f"{first / 2**30:.2f} GiB; peak above it {(peak() - first) / basis:.2f} x; "
        f"held at the end {(after - now) / basis:.2f} x"
    )
    del result


if __name__ == "__main__":
    if os.environ.get("SPECTRAL_DENSITY_DRIVER"):
        run(os.environ["SPECTRAL_DENSITY_DRIVER"])
    else:
        for name in sys.argv[1:] or ["estimate_spectrum", "approximate_hessian"]:
            environment = {**os.environ, "SPECTRAL_DENSITY_DRIVER": name}
            subprocess.run([sys.executable, __file__], env=environment, check=True)
