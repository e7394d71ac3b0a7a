"""Matrices with multiple eigenvalues and close pairs, and what a block run takes for simple."""

from dataclasses import dataclass, field

import numpy as np
from cases import diagonal_operator

from spectral_density.linalg import gauss_quadrature, lanczos, ritz_residuals
from spectral_density.linalg.block_quadrature import simple_block_nodes
from spectral_density.linalg.quadrature import CONVERGED, only_node_near, spread_of


def eigenvalues_with_copies(rng, block):
    """300 eigenvalues or more: a bulk, and outliers that are simple, multiple or close pairs.

    Multiplicities are 1 to block + 1, pairs are split by 1e-12 to 1e-3 of their value.
    """
    count = int(rng.integers(3, 9))
    outliers = []
    for value in rng.choice([-1, 1], count, p=[0.3, 0.7]) * 10 ** rng.uniform(0.2, 1.5, count):
        kind = rng.integers(3)
        if kind == 2:
            outliers += [value, value * (1 + 10 ** rng.uniform(-12, -3))]
        else:
            outliers += [value] * (1 if kind == 0 else int(rng.integers(2, block + 2)))
    size = int(rng.integers(300, 400)) - len(outliers)
    bulk = (
        np.cos(rng.uniform(0, np.pi, size)),
        rng.choice([-0.2, 1], size) * 10 ** rng.uniform(-6, -0.5, size),
        rng.choice(0.3 * rng.normal(size=4), size),
    )[rng.integers(3)]
    return np.concatenate([outliers, bulk])


@dataclass
class Verdicts:
    """What was taken for simple, step by step, against the eigenvalues."""

    wrong: list = field(default_factory=list)  # what was, and is not alone within the resolution
    converged: int = 0  # simple ones that have converged in all draws
    recognized: int = 0  # of those

    def judge(self, values, rules, residuals, rounding, label):
        simple = simple_block_nodes(rules, residuals, len(values), rounding)
        resolution = max(CONVERGED * spread_of(rules), rounding)

        distances = np.abs(values[:, np.newaxis] - rules[0].nodes[simple[0]])
        alone = np.sum(distances <= 2 * resolution, axis=0) == 1
        self.wrong += [(label, x) for x in rules[0].nodes[simple[0]][~alone]]
        settled = rules[0].nodes[ritz_residuals(rules[0], residuals[0]) <= resolution]
        alone = simple_ones(values, 4 * resolution)
        near = np.abs(alone[:, np.newaxis] - settled) <= 2 * resolution
        for value in alone[near.any(axis=1)]:
            nodes = [only_node_near(rule, value, 2 * resolution) for rule in rules]
            each = zip(rules, residuals, nodes, strict=True)
            if None not in nodes and all(
                ritz_residuals(*one)[node] <= resolution for *one, node in each
            ):
                self.converged += 1
                self.recognized += bool(simple[0, nodes[0]])


def simple_ones(values, distance):
    """Return the eigenvalues that have no other within a distance."""
    ascending = np.sort(values)
    gaps = np.diff(ascending, prepend=-np.inf, append=np.inf)
    return ascending[np.minimum(gaps[:-1], gaps[1:]) > distance]


def verdicts(seeds, dtype):
    """Return the verdicts after every step of block runs on random matrices, one a seed."""
    result = Verdicts()
    for seed in seeds:
        rng = np.random.default_rng([77, seed])
        block, num_draws = int(rng.choice([2, 2, 3, 4])), int(rng.choice([1, 1, 2]))
        values = eigenvalues_with_copies(rng, block).astype(dtype).astype(np.float64)
        order = int(rng.integers(10, 22))
        run = lanczos(
            diagonal_operator(values, dtype),
            order,
            block=block,
            num_draws=num_draws,
            seed=seed,
            keep_basis=False,
        )
        rounding = 10 * float(np.finfo(dtype).eps) * np.abs(values).max()
        for step in range(1, order + 1):
            pairs = zip(run.alpha[:, :step], run.beta[:, : step - 1], strict=True)
            rules = [gauss_quadrature(*pair) for pair in pairs]
            last = run.residual_norms if step == order else run.beta[:, step - 1]
            result.judge(values, rules, last, rounding, (seed, block, num_draws, step))
    return result
