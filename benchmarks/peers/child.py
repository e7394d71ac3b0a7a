"""What every implementation answers, and the loop in which a process of its own answers it.

Requests and answers are lines of JSON on standard input and output. Runs in the environments of
the peers: only the standard library and NumPy.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from problems import Problem

Answer = dict[str, Any]


def peak_bytes() -> int:
    """Return the peak resident size of this process (Linux counts in KiB)."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


class NotOfferedError(Exception):
    """The implementation has no documented way to do this."""


class Implementation:
    """One way to compute a spectrum. Every time is in seconds, and of the computation alone."""

    block_lanczos = False  # several start vectors share a pass over the data

    def __init__(self) -> None:
        self.imported = peak_bytes()

    def versions(self) -> Answer:
        """Return names and versions of what computes."""
        raise NotImplementedError

    def load(self, problem: str, matrix: str) -> Answer:
        """Take a problem; `matrix` is "hessian" or "ggn"."""
        self.problem = Problem.load(problem)
        self.matrix = matrix
        seconds, _ = timed(self.build)
        return {"seconds": seconds, "parameters": self.problem.num_parameters}

    def build(self) -> None:
        """Make the operator of `self.problem` and `self.matrix`."""
        raise NotImplementedError

    def form(self) -> Answer:
        """Return u'Av of two fixed vectors, by which all can be seen to multiply the same A."""
        u, v = (self.flat(self.problem.vector(seed)) for seed in (1, 2))
        return {"value": float(np.asarray(u, np.float64) @ np.asarray(self.product(v), np.float64))}

    def flat(self, arrays: list[np.ndarray]) -> Any:
        """Return a vector in the shapes of the weights as this implementation lays it out."""
        return np.concatenate([array.ravel() for array in arrays])

    def product(self, vector: Any) -> Any:
        """Return A v."""
        raise NotImplementedError

    def warm(self, order: int, draws: int) -> Answer:
        """Do whatever is done once before such a run: trace, compile, check."""
        raise NotImplementedError

    def use(self, draws: int, ways: str) -> Answer:
        """Take these ways instead of trying which are the fastest."""
        return {}

    def lanczos(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run Lanczos; return seconds, and nodes and weights of each draw."""
        raise NotImplementedError

    def density(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Return what the documented function for a spectral density gives, on its own grid."""
        raise NotOfferedError

    def block(self, draws: int) -> Answer:
        """Return the seconds of one product with a block of that many vectors."""
        raise NotOfferedError

    def eigenvalues(self, k: int, effort: float, seed: int = 0) -> Answer:
        """Return the k eigenvalues of largest magnitude, and seconds; effort is the way's own."""
        raise NotImplementedError

    def peak(self) -> Answer:
        """Return the bytes at the peak, and those at the peak of the imports."""
        return {"peak": peak_bytes(), "imported": self.imported}


def quadrature(alpha: np.ndarray, beta: np.ndarray) -> tuple[list[float], list[float]]:
    """Return nodes and weights of a tridiagonal matrix, in float64."""
    alpha, beta = np.asarray(alpha, np.float64), np.asarray(beta, np.float64)
    values, vectors = np.linalg.eigh(np.diag(alpha) + np.diag(beta, 1) + np.diag(beta, -1))
    return values.tolist(), (vectors[0] ** 2).tolist()


def nodes_of(pairs: list[tuple[list[float], list[float]]]) -> Answer:
    return {"nodes": [nodes for nodes, _ in pairs], "weights": [weights for _, weights in pairs]}


def serve(implementation: Implementation) -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        request = json.loads(line)
        method = getattr(implementation, request.pop("do"))
        # Whatever a peer raises is its answer, and part of what is compared.
        try:
            answer = method(**request)
        except NotOfferedError:
            answer = {"not offered": True}
        except Exception as error:
            text = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
        print(json.dumps(answer), file=answers, flush=True)
