"""How far is the estimated spectrum from the exact one, for a given number of products?

    python benchmarks/accuracy.py [--quick] [--seeds 5]

The truth is every eigenvalue of a trained network, see `peers/reference.py`. Distances are medians
over seeds, of what each implementation says about the distribution: the steps of its quadratures;
for ours also with simple eigenvalues weighed 1/n (deflated), and that by the midpoint rule, which
`Spectrum.cdf` uses; and the smoothed densities as their functions return them by default.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from peers.reference import reference, summary
from peers.runner import (
    AnswerError,
    Child,
    NotOfferedError,
    at_work,
    figure,
    machine,
    progress,
    table,
    written,
)
from peers.scores import Distribution, kolmogorov, wasserstein

SETTINGS = [(20, 1), (40, 1), (80, 1), (20, 10), (80, 10)]


def steps(answer: dict[str, Any]) -> Distribution:
    return Distribution.of_draws(answer["nodes"], answer["weights"])


def deflated(answer: dict[str, Any]) -> Distribution:
    return Distribution.of_draws(answer["nodes"], answer["deflated"])


def midpoints(answer: dict[str, Any]) -> Distribution:
    return Distribution.of_midpoints(answer["nodes"], answer["deflated"])


def smooth(answer: dict[str, Any]) -> Distribution:
    return Distribution.of_density(np.asarray(answer["grid"]), np.asarray(answer["values"]))


@dataclass(frozen=True)
class Way:
    """A request, and the distributions that its answer can be read as."""

    name: str
    do: str
    readings: dict[str, Callable[[dict[str, Any]], Distribution]]


WAYS = [
    Way("spectral_density", "spectrum", {"plain": steps, "deflated": deflated, "cdf": midpoints}),
    Way("curvlinops", "lanczos", {"quadrature": steps}),
    Way("hessian-eigenthings", "lanczos", {"quadrature": steps}),
    Way("PyHessian", "lanczos", {"quadrature": steps}),
    Way("matfree", "lanczos", {"quadrature": steps}),
    Way("spectral_density", "density", {"density": smooth}),
    Way("curvlinops", "density", {"density": smooth}),
    Way("hessian-eigenthings", "density", {"density": smooth}),
]


def is_sound(answer: dict[str, Any]) -> bool:
    numbers = [answer[name] for name in ("nodes", "weights", "values") if name in answer]
    return all(np.isfinite(np.concatenate([np.ravel(row) for row in n])).all() for n in numbers)


def distances(
    child: Child, way: Way, order: int, draws: int, seeds: int, truth: Distribution
) -> tuple[dict[str, tuple[float, float]], int]:
    """Return median distances by reading, and the most products that a run took."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in way.readings}
    products = order * draws
    for seed in range(seeds):
        try:
            answer = child.ask(way.do, order=order, draws=draws, seed=seed)
        except (AnswerError, NotOfferedError) as error:
            progress(f"{way.name}, {way.do}: {error!r}")
            break
        products = max(products, answer.get("products", 0))
        for name, reading in way.readings.items():
            if is_sound(answer):
                estimate = reading(answer)
                pair = (wasserstein(estimate, truth), kolmogorov(estimate, truth))
            else:
                pair = (np.inf, np.inf)
            found[name].append(pair)
    medians = {name: np.median(pairs, axis=0) for name, pairs in found.items() if pairs}
    return {name: (float(w), float(k)) for name, (w, k) in medians.items()}, products


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one seed, few products")
    options = parser.parse_args()
    settings = SETTINGS[:2] if options.quick else SETTINGS
    seeds = 1 if options.quick else options.seeds
    problem, eigenvalues = reference()
    spread = eigenvalues[-1] - eigenvalues[0]
    masses = np.full(len(eigenvalues), 1 / len(eigenvalues))
    truth = Distribution.of_masses(eigenvalues, masses)
    rows: dict[str, dict[str, list[str]]] = {}
    with at_work() as children, written(problem) as path:
        by_name = {child.name: child for child in children}
        for child in children:
            child.ask("load", problem=path, matrix="hessian")
        about = machine(children)
        for way in WAYS:
            for order, draws in settings:
                progress(f"{way.name}, {way.do}, {order} steps, {draws} draws")
                child = by_name[way.name]
                found, products = distances(child, way, order, draws, seeds, truth)
                more = f" ({products} products)" if products > order * draws else ""
                for reading in way.readings:
                    title = f"{way.name}, {reading}"
                    row = rows.setdefault(title, {"W1": [], "KS": []})
                    pair = found.get(reading)
                    row["W1"].append("-" if pair is None else figure(pair[0] / spread) + more)
                    row["KS"].append("-" if pair is None else figure(pair[1]))
    headings = [f"{order} x {draws} = {order * draws}" for order, draws in settings]
    print(f"{about}\n\n{summary(problem, eigenvalues)} Medians of {seeds} seeds.\n")
    print("Wasserstein-1 distance over the range, by steps x draws = products:\n")
    print(table(["way", *headings], [[name, *row["W1"]] for name, row in rows.items()]))
    print("\nKolmogorov distance:\n")
    print(table(["way", *headings], [[name, *row["KS"]] for name, row in rows.items()]))


if __name__ == "__main__":
    main()
