"""A trained network whose Hessian has 10,062 eigenvalues, all of them known.

The images are those of scikit-learn's digits. Training takes seconds; the dense Hessian in float64
and its eigenvalues take some minutes and 2 GB, once: they are kept in `benchmarks/.cache`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from peers.problems import Problem, dense
from peers.runner import CACHE, OURS, Child, progress, written

WIDTHS = [64, 100, 32, 10]
EXAMPLES, BATCH = 1792, 256  # batches of equal size: unequal ones are a question of robustness
EPOCHS = 20


def reference() -> tuple[Problem, np.ndarray]:
    """Return the network and the eigenvalues of its Hessian, ascending."""
    weights = CACHE / "reference.npz"
    eigenvalues = CACHE / "reference_eigenvalues.npy"
    if not eigenvalues.exists():
        make(weights, eigenvalues)
    return Problem.load(weights), np.load(eigenvalues)


def make(weights: Path, eigenvalues: Path) -> None:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    problem = dense(WIDTHS, EXAMPLES, BATCH, activation="tanh")
    x = (images[:EXAMPLES] / 16).astype("float32")
    problem = Problem(problem.network, problem.weights, x, labels[:EXAMPLES], BATCH)
    CACHE.mkdir(exist_ok=True)
    child = Child(OURS)
    try:
        with written(problem) as path:
            child.ask("load", problem=path, matrix="hessian")
            fit = child.ask("train", epochs=EPOCHS, output=str(weights))
        progress(f"trained: {fit}")
        child.ask("load", problem=str(weights), matrix="hessian")
        progress("computing all eigenvalues, some minutes, once")
        progress(str(child.ask("exact", limit=7200.0, output=str(eigenvalues))))
    finally:
        child.close()


def summary(problem: Problem, eigenvalues: np.ndarray) -> str:
    """Return a sentence on the network and its spectrum."""
    negative = np.mean(eigenvalues < 0)
    return (
        f"A trained network {'-'.join(map(str, problem.network['widths']))} with tanh on "
        f"{len(problem.x):,} images of digits, {problem.num_parameters:,} parameters: eigenvalues "
        f"from {eigenvalues[0]:.3g} to {eigenvalues[-1]:.3g}, {negative:.0%} of them below zero."
    )
