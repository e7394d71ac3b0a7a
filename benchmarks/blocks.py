"""One draw, two, ten, or blocks: how far is the spectrum off, at equal numbers of products?

    python benchmarks/blocks.py [--seeds 11] [--only cnn reference] [--quick]

The spectra are those of three trained networks (`peers/reference.py`, `peers/known_spectra.py`) and
of models with clusters and multiple eigenvalues. Start vectors are uniform on the sphere, so that a
diagonal matrix of the same eigenvalues gives the same distances as the matrix itself; its products
are rounded to float32, as those of a network are. Distances are Wasserstein-1 over the range,
medians over seeds. Two floors stand beside them: what the random weights of the start vectors leave
with all steps made (of the chosen way, with the eigenvalues that it knows at their exact weight),
and the rounding of float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
from peers.known_spectra import eigenvalues_of
from peers.reference import reference
from peers.runner import figure, progress, table
from scipy.sparse.linalg import LinearOperator
from scipy.stats import wasserstein_distance

from spectral_density import Spectrum, estimate_spectrum

PRODUCTS = (40, 80, 160, 320, 640)
WAYS: Mapping[str, dict[str, int]] = {
    "one draw": {"num_draws": 1, "block": 1},
    "two draws": {"num_draws": 2, "block": 1},
    "ten draws": {"num_draws": 10, "block": 1},
    "block of 2": {"num_draws": 1, "block": 2},
    "block of 4": {"num_draws": 1, "block": 4},
}
CHOSEN = "chosen"
FLOAT32 = float(np.finfo(np.float32).eps) / 2
_FLOOR_SAMPLES = 5


def spectra() -> dict[str, np.ndarray]:
    """Return known spectra by name, ascending."""
    rng = np.random.default_rng(0)
    bulk = np.concatenate([-(10 ** rng.uniform(-6, -1.5, 1500)), 10 ** rng.uniform(-6, -0.5, 8500)])
    outliers = np.geomspace(1, 50, 10)
    semicircle = np.sin(np.pi * (rng.beta(1.5, 1.5, 9990) - 0.5))
    clusters = np.concatenate([rng.normal(center, 1e-3, 2000) for center in (0.0, 0.1, 0.5, 1.0)])
    return {
        "log-uniform bulk": np.concatenate([bulk, outliers]),
        "semicircle": np.concatenate([semicircle, np.linspace(2, 10, 10)]),
        "clusters": np.concatenate([clusters, [3.0, 5.0]]),
        "doubled outliers": np.concatenate([bulk, np.repeat(outliers, 2)]),
        "rank 200": np.concatenate([np.zeros(9800), 10 ** rng.uniform(-3, 1, 200)]),
    }


def networks() -> dict[str, Any]:
    """Return functions that give the spectra of networks, which may take minutes, by name."""
    return {
        "reference": lambda: reference()[1],
        "cnn": lambda: eigenvalues_of("cnn"),
        "transformer": lambda: eigenvalues_of("transformer"),
    }


def operator(eigenvalues: np.ndarray) -> LinearOperator:
    """Return a diagonal matrix whose products are rounded to float32."""
    column = eigenvalues.astype(np.float32)[:, None]
    n = len(eigenvalues)

    def multiply(block: np.ndarray) -> np.ndarray:
        rounded = column * block.reshape(n, -1).astype(np.float32)
        return rounded.astype(np.float64).reshape(block.shape)

    found = LinearOperator((n, n), matvec=multiply, matmat=multiply, dtype=np.float64)
    found.product_dtype = np.dtype(np.float32)
    return found


def estimated(matrix: LinearOperator, way: Mapping[str, int], products: int, seed: int) -> Spectrum:
    """Return the spectrum of a way from a number of products."""
    order = products // (way.get("num_draws", 1) * way.get("block", 2))
    return estimate_spectrum(matrix, order, **way, seed=seed, progress=False)


def distance(spectrum: Spectrum, eigenvalues: np.ndarray) -> float:
    """Return the Wasserstein-1 distance over the range."""
    weights = spectrum.deflated_weights.ravel()
    found = wasserstein_distance(spectrum.nodes.ravel(), eigenvalues, weights)
    return float(found / np.ptp(eigenvalues))


def floor(spectrum: Spectrum, vectors: int, eigenvalues: np.ndarray, seed: int) -> float:
    """Return what the weights of random vectors leave where the known eigenvalues are exact."""
    rng = np.random.default_rng(seed)
    known = np.zeros(len(eigenvalues), dtype=bool)
    simple = spectrum.nodes[0][spectrum.simple[0]] if spectrum.simple.size else np.array([])
    for value in simple:
        known[np.argmin(np.abs(eigenvalues - value))] = True
    squares = rng.normal(size=(vectors, len(eigenvalues))) ** 2
    squares[:, known] = 0.0
    weights = (squares / squares.sum(axis=1, keepdims=True)).mean(axis=0)
    weights *= 1 - known.mean()
    weights[known] = 1 / len(eigenvalues)
    found = wasserstein_distance(eigenvalues, eigenvalues, weights)
    return float(found / np.ptp(eigenvalues))


def measure(name: str, eigenvalues: np.ndarray, seeds: int, counts: tuple[int, ...]) -> None:
    """Print the distances of one spectrum, and where the choice loses."""
    matrix = operator(eigenvalues)
    rows: dict[str, list[float]] = {way: [] for way in (*WAYS, CHOSEN)}
    floors: list[float] = []
    for products in counts:
        for title, way in {**WAYS, CHOSEN: {}}.items():
            progress(f"{name}: {title}, {products} products")
            found = [estimated(matrix, way, products, seed) for seed in range(seeds)]
            rows[title].append(float(np.median([distance(s, eigenvalues) for s in found])))
        vectors = found[0].num_draws * max(1, 2)
        floors.append(
            float(
                np.median([floor(found[0], vectors, eigenvalues, k) for k in range(_FLOOR_SAMPLES)])
            )
        )
    best = [min(rows[title][k] for title in WAYS) for k in range(len(counts))]
    ratios = [f"{rows[CHOSEN][k] / best[k]:.2f}" for k in range(len(counts))]
    lines = [[title, *map(figure, values)] for title, values in rows.items()]
    lines.append(["chosen / best (1.05)", *ratios])
    lines.append(["floor of the start vectors", *map(figure, floors)])
    lines.append(["floor of float32", *[figure(FLOAT32)] * len(counts)])
    n = len(eigenvalues)
    print(f"\n{name}, {n:,} eigenvalues from {eigenvalues.min():.3g} to {eigenvalues.max():.3g}:\n")
    print(table(["products", *map(str, counts)], lines), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=11)
    parser.add_argument("--only", nargs="*", help="names of spectra")
    parser.add_argument("--quick", action="store_true", help="three seeds, few products")
    options = parser.parse_args()
    known = {**networks(), **{name: lambda e=e: e for name, e in spectra().items()}}
    unknown = set(options.only or ()) - set(known)
    if unknown:
        parser.error(f"no spectrum is called {sorted(unknown)}; there are {sorted(known)}.")
    seeds, counts = (3, PRODUCTS[:2]) if options.quick else (options.seeds, PRODUCTS)
    for name in options.only or known:
        measure(name, np.sort(known[name]()), seeds, counts)


if __name__ == "__main__":
    main()
