"""Which spectra and data break an implementation: right, refused, or silently wrong?

    python benchmarks/robustness.py [density] [largest] [product] [--quick]

Linear models with squared error, of 100 parameters, whose Hessians have the stated eigenvalues
exactly. "Density" is the quadrature of 40 steps and 10 draws: right where its Wasserstein-1
distance from the eigenvalues is at most three times the worst of twenty seeds of the same
quadrature in exact arithmetic, or 1e-4 of the norm. "Largest" are the eigenvalues of largest
magnitude, with their multiplicities: right to 1e-2 of the norm, by default tolerances, and where an
implementation asks for a number of steps with twice as many as values, or with 40: if only one of
these is right, the other is named. "Product" compares u'Av. An exception counts as refused; a dash
means that the documentation has no way to ask for it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from accuracy import is_sound, steps
from peers.problems import Problem, quadratic
from peers.runner import (
    EVERYBODY,
    AnswerError,
    Child,
    NotOfferedError,
    at_work,
    machine,
    progress,
    table,
    written,
)
from peers.scores import Distribution, wasserstein

SIZE, ORDER, DRAWS = 100, 40, 10
SEEDS = 20
QUESTIONS = ("density", "largest", "product")


def efforts(name: str, k: int) -> tuple[float, ...]:
    """Return what to try: default tolerances, and twice k steps, one's default, and many."""
    tolerances = {"spectral_density": 0.0, "curvlinops": 0.0, "PyHessian": 1e-3}
    return (tolerances[name],) if name in tolerances else (2 * k, ORDER)


@dataclass(frozen=True)
class Case:
    """A question about a spectrum."""

    title: str
    eigenvalues: np.ndarray
    question: str  # "density", "largest" or "product"
    k: int = 0
    batch: int | None = None
    weighted: bool = False

    @property
    def problem(self) -> Problem:
        """The linear model."""
        weight = np.geomspace(0.1, 10, SIZE) if self.weighted else None
        return quadratic(self.eigenvalues, batch=self.batch, sample_weight=weight)


def spectra() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    bulk = np.concatenate([rng.uniform(0, 1, SIZE - 3), [4.0, 7.0, 10.0]])
    multiple = np.concatenate([np.zeros(SIZE - 7), [1.0, 2.0, 2.0, 4.0, 5.0, 5.0, 5.0]])
    rank_two = np.zeros(SIZE)
    rank_two[:2] = 3.0, 5.0
    return {
        "rank 2": rank_two,
        "zero matrix": np.zeros(SIZE),
        "identity": np.ones(SIZE),
        "multiples": multiple,
        "bulk and outliers": bulk,
        "the same, times 1e-8": 1e-8 * bulk,
        "the same, times 1e8": 1e8 * bulk,
    }


def cases() -> list[Case]:
    found = [Case(name, values, "density") for name, values in spectra().items()]
    for name, k in (("rank 2", 2), ("zero matrix", 2), ("identity", 3), ("multiples", 6)):
        found.append(Case(name, spectra()[name], "largest", k=k))
    for name in ("the same, times 1e-8", "the same, times 1e8"):
        found.append(Case(name.replace("the same", "outliers"), spectra()[name], "largest", k=3))
    bulk = spectra()["bulk and outliers"]
    found.append(Case("ragged batches, 48 + 48 + 4", bulk, "product", batch=48))
    found.append(Case("sample weights 0.1 to 10", bulk, "product", batch=50, weighted=True))
    return found


def exact_quadrature(eigenvalues: np.ndarray, seed: int) -> Distribution:
    """Return what `ORDER` steps and `DRAWS` draws give in exact arithmetic, nearly.

    The distinct eigenvalues with the squared components of the start vector are compressed by
    Lanczos with full reorthogonalization in float64 on the diagonal matrix of both.
    """
    rng = np.random.default_rng(seed)
    values, inverse = np.unique(eigenvalues, return_inverse=True)
    points, masses = [], []
    for _ in range(DRAWS):
        start = rng.standard_normal(len(eigenvalues))
        weights = np.bincount(inverse, (start / np.linalg.norm(start)) ** 2)
        order = min(ORDER, len(values))
        basis = np.zeros((order, len(values)))
        vector = np.sqrt(weights)
        alpha, beta = np.zeros(order), np.zeros(order)
        for j in range(order):
            basis[j] = vector
            product = values * vector
            alpha[j] = vector @ product
            for _pass in range(2):
                product = product - basis[: j + 1].T @ (basis[: j + 1] @ product)
            beta[j] = np.linalg.norm(product)
            if j + 1 < order:
                vector = product / beta[j]
        matrix = np.diag(alpha) + np.diag(beta[:-1], 1) + np.diag(beta[:-1], -1)
        nodes, vectors = np.linalg.eigh(matrix)
        points.append(nodes.tolist())
        masses.append((vectors[0] ** 2).tolist())
    return Distribution.of_draws(points, masses)


def verdict(child: Child, case: Case, path: str) -> str:
    try:
        child.ask("load", problem=path, matrix="hessian")
        is_right, how, caveat = judge(child, case)
    except NotOfferedError:
        return "-"
    except AnswerError as error:
        progress(f"  {child.name}: {error}")
        return "refused"
    progress(f"  {child.name}: {how}{caveat}")
    return f"right{caveat}" if is_right else f"**wrong** ({how})"


def largest(child: Child, case: Case, effort: float, norm: float) -> tuple[bool, str]:
    """Return whether the largest eigenvalues are right, and how far they are off."""
    answer = child.ask("eigenvalues", k=case.k, effort=effort)
    found = np.sort(np.abs(answer["values"]))
    expected = np.sort(np.abs(case.eigenvalues))[-case.k :]
    if len(found) < case.k or not np.isfinite(found).all():
        return False, "not finite" if len(found) == case.k else f"{len(found)} values"
    error = float(np.abs(found - expected).max()) / norm
    return error <= 1e-2, f"off by {error:.1e}"


def judge(child: Child, case: Case) -> tuple[bool, str, str]:
    """Return whether the answer is right, how far it is off, and with what it is not right."""
    norm = float(np.abs(case.eigenvalues).max()) or 1.0
    if case.question == "product":
        problem = case.problem
        x, v = problem.x.astype(np.float64), problem.vector(2)[0].astype(np.float64)
        u = problem.vector(1)[0].astype(np.float64)
        weight = np.ones(SIZE) if problem.sample_weight is None else problem.sample_weight
        expected = float(u[:, 0] @ (2 / SIZE * x.T @ (weight[:, None] * (x @ v)))[:, 0])
        error = abs(child.ask("form")["value"] - expected) / norm
        return error <= 1e-3, f"off by {error:.1e}", ""
    if case.question == "largest":
        tried = {e: largest(child, case, e, norm) for e in efforts(child.name, case.k)}
        wrong = [f", {e:g} steps {how}" for e, (is_right, how) in tried.items() if not is_right]
        return *max(tried.values()), "".join(wrong)
    answer = child.ask("lanczos", order=ORDER, draws=DRAWS)
    if not is_sound(answer):
        return False, "not finite", ""
    truth = Distribution.of_masses(case.eigenvalues, np.full(SIZE, 1 / SIZE))
    worst = max(
        wasserstein(exact_quadrature(case.eigenvalues, seed), truth) for seed in range(SEEDS)
    )
    error = wasserstein(steps(answer), truth) / norm
    return error <= max(3 * worst / norm, 1e-4), f"W1 {error:.1e}, exact {worst / norm:.1e}", ""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("questions", nargs="*", default=list(QUESTIONS), metavar="QUESTION")
    parser.add_argument("--quick", action="store_true", help="every third case")
    options = parser.parse_args()
    rows = []
    with at_work() as children:
        about = machine(children)
        asked = [case for case in cases() if case.question in options.questions]
        for case in asked[:: 3 if options.quick else 1]:
            progress(f"{case.title}, {case.question}")
            with written(case.problem) as path:
                verdicts = [verdict(child, case, path) for child in children]
            rows.append([case.title, case.question, *verdicts])
    names = [implementation.name for implementation in EVERYBODY]
    print(f"{about}\n")
    print(table(["spectrum or data", "question", *names], rows))


if __name__ == "__main__":
    main()
