"""Make the virtual environments in which the peers run, from the package index.

    python benchmarks/environments.py [torch] [jax] [--folder benchmarks/.environments]

The scripts look in `benchmarks/.environments`, or in the folder that the environment variable
SPECTRAL_DENSITY_PEERS names. On Linux the index gives PyTorch with libraries for GPUs, some
gigabytes; an index of its CPU builds can be named with pip's own PIP_EXTRA_INDEX_URL.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from peers.runner import environments

PACKAGES = {
    "torch": [
        "torch==2.13.0",
        "curvlinops-for-pytorch==3.0.1",
        "hessian-eigenthings==1.0.0a5",
        "PyHessian==0.1",
    ],
    "jax": ["jax[cpu]==0.10.2", "matfree==0.6.3"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(PACKAGES), metavar="NAME")
    parser.add_argument("--folder", type=Path, default=environments())
    options = parser.parse_args()
    for name in options.names:
        if name not in PACKAGES:
            parser.error(f"no environment is called {name!r}: {', '.join(PACKAGES)}")
        folder = options.folder / name
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install"]
        subprocess.run([*pip, *PACKAGES[name]], check=True)


if __name__ == "__main__":
    main()
