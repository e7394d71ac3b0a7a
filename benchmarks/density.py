"""How much faster is the vectorized density than a Python loop over the grid?

Run as `python benchmarks/density.py`. Medians of alternating runs, on one process.
"""

import statistics
import time

import numpy as np

from spectral_density.spectrum.density import eigv_to_density

REPEATS = 5
GRID_LEN = 10000
# (draws, order, spectral range, sigma_squared)
CASES = [
    (1, 90, 1.0, 1e-5),
    (10, 90, 1.0, 1e-5),
    (10, 90, 1.0, 1e-3),
    (10, 90, 100.0, 1e-5),
    (10, 90, 100.0, 1e-3),
]


def looped_density(nodes, weights, sigma_squared):
    """The same density, one draw and one grid point at a time."""
    lower = nodes.min(axis=1).mean() - 1e-2
    upper = nodes.max(axis=1).mean() + 1e-2
    variance = sigma_squared * max(1.0, upper - lower)
    grid = np.linspace(lower, upper, GRID_LEN)
    draws = np.zeros((len(nodes), GRID_LEN))
    for i in range(len(nodes)):
        for j in range(GRID_LEN):
            kernel = np.exp(-((grid[j] - nodes[i]) ** 2) / (2 * variance))
            draws[i, j] = np.sum(weights[i] * kernel) / np.sqrt(2 * np.pi * variance)
    density = draws.mean(axis=0)
    return density / (density.sum() * (grid[1] - grid[0]))


def main():
    rng = np.random.default_rng(0)
    print(f"{GRID_LEN} grid points, medians of {REPEATS} alternating runs")
    print(
        f"{'draws':>5} {'order':>5} {'range':>6} {'sigma^2':>8} "
        f"{'loop s':>8} {'vector s':>9} {'ratio':>6} {'difference':>10}"
    )
    for draws, order, width, sigma_squared in CASES:
        nodes = np.sort(rng.uniform(0.0, width, (draws, order)), axis=1)
        weights = rng.dirichlet(np.ones(order), draws)
        seconds = {"loop": [], "vector": []}
        for _ in range(REPEATS):
            start = time.perf_counter()
            expected = looped_density(nodes, weights, sigma_squared)
            middle = time.perf_counter()
            density, _ = eigv_to_density(
                nodes, weights, grid_len=GRID_LEN, sigma_squared=sigma_squared
            )
            seconds["loop"].append(middle - start)
            seconds["vector"].append(time.perf_counter() - middle)
        loop, vector = (statistics.median(seconds[way]) for way in ("loop", "vector"))
        difference = np.abs(density - expected).max() / expected.max()
        print(
            f"{draws:5d} {order:5d} {width:6g} {sigma_squared:8.0e} "
            f"{loop:8.4f} {vector:9.4f} {loop / vector:6.1f} {difference:10.1e}"
        )


if __name__ == "__main__":
    main()
