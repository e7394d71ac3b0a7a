"""How near is a spectrum to the exact one, by block, draws and steps, at equal products?

    python benchmarks/choices.py [--quick] [--seeds 11] [--networks] [FILE.npy ...]

The truth is every eigenvalue of a matrix: of trained networks (that of `accuracy.py` where it has
been computed, three small ones of the tests, and files of eigenvalues), and of model spectra with
outliers, clusters and multiple eigenvalues. Start vectors are uniform on the sphere, so that a
diagonal matrix does for each; its products are float32. Distances are Wasserstein-1 with simple
eigenvalues weighed 1/n, over the range, medians of seeds.

Beside each row stands the floor that the start vectors of the budgeted run leave: the exact
eigenvalues with the random weights of as many vectors, those known to be simple excepted. That of
float32 products is some 1e-7.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import numpy as np
from peers.known_spectra import NAMES, eigenvalues_of
from peers.reference import reference
from peers.runner import CACHE, figure, progress, table
from scipy.sparse.linalg import LinearOperator
from scipy.stats import wasserstein_distance

import spectral_density as sd

PRODUCTS = (40, 80, 160, 320, 640)
SETTINGS = ((1, 1), (1, 2), (1, 10), (2, 1), (4, 1))  # vectors of a block, draws
TESTS = Path(__file__).parents[1] / "tests" / "spectrum" / "data" / "network_spectra.npz"


def model_spectra() -> dict[str, np.ndarray]:
    """Return spectra of 2,000 eigenvalues in closed form or of a fixed seed."""
    rng = np.random.default_rng(0)
    grid = np.linspace(-1, 1, 200_001)
    below = 0.5 + (grid * np.sqrt(1 - grid**2) + np.arcsin(grid)) / np.pi
    semicircle = np.interp((np.arange(1990) + 0.5) / 1990, below, grid)
    negative, positive = -(10 ** rng.uniform(-6, -1.5, 298)), 10 ** rng.uniform(-6, -0.5, 1692)
    copies = np.concatenate([np.repeat([5.0, 9.0, 20.0], 3), np.repeat([2.0, 3.0], 2)])
    clusters = np.concatenate([0.05 * rng.normal(size=1487), np.zeros(500)])
    return {
        "semicircle, 10 outliers": np.concatenate([semicircle, np.linspace(2, 10, 10)]),
        "log-uniform, 10 outliers": np.concatenate([negative, positive, np.geomspace(1, 50, 10)]),
        "clusters and copies": np.concatenate([copies, clusters]),
    }


def spectra(files: list[str]) -> dict[str, np.ndarray]:
    """Return the spectra by name: networks first, those that have been computed."""
    found = {}
    for path in [*sorted(CACHE.glob("*_eigenvalues.npy")), *map(Path, files)]:
        found[path.stem.removesuffix("_eigenvalues")] = np.load(path)
    if TESTS.exists():
        with np.load(TESTS) as small:
            found |= {name: small[name] for name in small.files}
    return {name: np.sort(values) for name, values in (found | model_spectra()).items()}


def float32_products(eigenvalues: np.ndarray) -> LinearOperator:
    """Return a diagonal matrix whose products are float32."""
    diagonal = eigenvalues.astype(np.float32)

    def matmat(block: np.ndarray) -> np.ndarray:
        return diagonal[:, np.newaxis] * block.reshape(len(diagonal), -1).astype(np.float32)

    size = len(diagonal)
    return LinearOperator(
        (size, size), matvec=lambda v: matmat(v)[:, 0], matmat=matmat, dtype=np.float32
    )


def distance(spectrum: sd.Spectrum, eigenvalues: np.ndarray) -> float:
    """Return the Wasserstein-1 distance over the range."""
    weights = spectrum.deflated_weights.ravel()
    found = wasserstein_distance(spectrum.nodes.ravel(), eigenvalues, weights)
    return float(found / np.ptp(eigenvalues))


def floor(spectrum: sd.Spectrum, eigenvalues: np.ndarray, seed: int) -> float:
    """Return the distance that the start vectors alone leave, see the module."""
    size = len(eigenvalues)
    drawn = np.random.default_rng([1, seed]).chisquare(spectrum.num_vectors, size)
    known = {int(np.argmin(np.abs(eigenvalues - one.value))) for one in spectrum.outliers}
    drawn[list(known)] = 0.0
    weights = drawn / drawn.sum() * (1 - len(known) / size)
    weights[list(known)] = 1 / size
    return float(wasserstein_distance(eigenvalues, eigenvalues, weights) / np.ptp(eigenvalues))


def rows(name: str, eigenvalues: np.ndarray, products: tuple[int, ...], seeds: int) -> list:
    """Return a row for each number of products."""
    operator = float32_products(eigenvalues)
    lines = []
    for most in products:
        progress(f"{name}, {most} products")
        cells = []
        for block, draws in SETTINGS:
            order = most // (block * draws)
            runs = (
                sd.estimate_spectrum(operator, order, draws, block=block, seed=seed)
                for seed in range(seeds)
            )
            cells.append(float(np.median([distance(run, eigenvalues) for run in runs])))
        runs = [
            sd.estimate_spectrum(operator, max_products=most, seed=seed) for seed in range(seeds)
        ]
        chosen = float(np.median([distance(run, eigenvalues) for run in runs]))
        limit = float(np.median([floor(run, eigenvalues, i) for i, run in enumerate(runs)]))
        made = f"{runs[0].block} x {runs[0].num_draws} x {runs[0].order}"
        ratio = f"{chosen / min(cells):.2f}"
        lines.append([str(most), *map(figure, cells), figure(chosen), made, ratio, figure(limit)])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE.npy", help="more eigenvalues")
    parser.add_argument("--seeds", type=int, default=11)
    parser.add_argument(
        "--networks",
        action="store_true",
        help="compute the eigenvalues of three networks of 10,000 to 15,000 parameters, once",
    )
    parser.add_argument("--quick", action="store_true", help="two seeds, few products")
    options = parser.parse_args()
    if options.networks:
        reference()
        for name in NAMES:
            eigenvalues_of(name)
    products = PRODUCTS[:2] if options.quick else PRODUCTS
    seeds = 2 if options.quick else options.seeds
    ways = [
        "1 draw" if d == 1 and b == 1 else f"{d} draws" if b == 1 else f"block of {b}"
        for b, d in SETTINGS
    ]
    headings = ["products", *ways, "chosen", "block x draws x steps", "/ best", "floor of vectors"]
    print(f"{platform.machine()}, NumPy {np.__version__}. Medians of {seeds} seeds.\n")
    for name, eigenvalues in spectra(options.files).items():
        print(f"{name}, {len(eigenvalues):,} eigenvalues:\n")
        print(table(headings, rows(name, eigenvalues, products, seeds)) + "\n")
        call = [
            sd.estimate_spectrum(float32_products(eigenvalues), seed=seed, num_draws=draws)
            for draws in (10, None)
            for seed in range(seeds)
        ]
        off = [
            float(np.median([distance(run, eigenvalues) for run in part]))
            for part in (call[:seeds], call[seeds:])
        ]
        made = call[-1].order * call[-1].num_vectors
        print(
            f"`estimate_spectrum(hessian)`: {made} products, {figure(off[1])}; with "
            f"`num_draws=10`: 900 products, {figure(off[0])}.\n"
        )


if __name__ == "__main__":
    main()
