"""What this package runs with an operator, on whichever framework."""

from __future__ import annotations

from typing import Any

import numpy as np
from child import Answer, Implementation, nodes_of, quadrature, timed

import spectral_density as sd


class Runs(Implementation):
    """`sd.lanczos`, `sd.estimate_spectrum` and `sd.top_eigenpairs` with their defaults.

    Attributes:
        operator: made by `build`.
    """

    block_lanczos = True
    operator: Any

    def product(self, vector: Any) -> Any:
        """Return A v."""
        return self.operator @ vector

    def warm(self, order: int, draws: int) -> Answer:
        """Make the operator again, and run a step: a check, and products of the right width."""

        def run() -> None:
            self.build()
            sd.lanczos(self.operator, 1, num_draws=draws, keep_basis=False)

        return {"seconds": timed(run)[0], "ways": ""}

    def lanczos(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run `sd.lanczos`."""
        seconds, result = timed(
            lambda: sd.lanczos(self.operator, order, num_draws=draws, seed=seed, keep_basis=False)
        )
        pairs = [quadrature(a, b) for a, b in zip(result.alpha, result.beta, strict=True)]
        return {"seconds": seconds, **nodes_of(pairs)}

    def spectrum(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run `sd.estimate_spectrum`; also return the weights of simple eigenvalues as 1/n."""
        seconds, spectrum = timed(
            lambda: sd.estimate_spectrum(self.operator, order, draws, seed=seed)
        )
        return {
            "seconds": seconds,
            "nodes": spectrum.nodes.tolist(),
            "weights": spectrum.weights.tolist(),
            "deflated": spectrum.deflated_weights.tolist(),
        }

    def to_tolerance(self, tolerance: float, seed: int = 0) -> Answer:
        """Run `sd.estimate_spectrum` until its own estimate of the error is met."""
        seconds, spectrum = timed(
            lambda: sd.estimate_spectrum(self.operator, tolerance=tolerance, seed=seed)
        )
        return {
            "seconds": seconds,
            "order": spectrum.order,
            "draws": spectrum.num_draws,
            "ended": spectrum.ended_by.name,
            "nodes": spectrum.nodes.tolist(),
            "weights": spectrum.deflated_weights.tolist(),
        }

    def density(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Return `Spectrum.density` with its default kernel."""
        density = sd.estimate_spectrum(self.operator, order, draws, seed=seed).density()
        products = order * draws
        return {
            "grid": density.grid.tolist(),
            "values": density.values.tolist(),
            "products": products,
        }

    def block(self, draws: int) -> Answer:
        """Time a product with a block of vectors."""
        rng = np.random.default_rng(0)
        block = rng.standard_normal((self.operator.shape[0], draws))
        self.operator @ block
        return {"seconds": timed(lambda: self.operator @ block)[0]}

    def eigenvalues(self, k: int, effort: float, seed: int = 0) -> Answer:
        """Run `sd.top_eigenpairs`; effort is the tolerance, 0 its default."""
        seconds, pairs = timed(
            lambda: sd.top_eigenpairs(self.operator, k, tolerance=effort or None, seed=seed)
        )
        return {
            "seconds": seconds,
            "values": pairs.values.tolist(),
            "products": pairs.num_products,
        }

    def ritz_values(self, k: int, effort: float, seed: int = 0) -> Answer:
        """Return the k largest Ritz values of one Lanczos run of `effort` steps."""
        seconds, result = timed(
            lambda: sd.lanczos(self.operator, int(effort), seed=seed, keep_basis=False)
        )
        values = np.linalg.eigvalsh(result.tridiagonal())
        largest = values[np.argsort(-np.abs(values))][:k]
        return {"seconds": seconds, "values": largest.tolist(), "products": int(effort)}
