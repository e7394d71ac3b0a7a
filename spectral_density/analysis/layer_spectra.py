"""The spectra of all layers' own blocks from the same passes over the data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from spectral_density._progress import progress_bar
from spectral_density.analysis.interactions import disjoint_parts
from spectral_density.analysis.joined_products import Multiply, run_together
from spectral_density.curvature.submatrix import SubmatrixOperator
from spectral_density.estimate import estimate_spectrum
from spectral_density.linalg.arguments import as_real_square, block_product, check_operator
from spectral_density.linalg.memory import check_memory
from spectral_density.spectrum.spectrum import Spectrum

# Vectors of each layer that are multiplied together, unless more draws are asked for.
_TOGETHER = 2


class _JoinedBlock(SubmatrixOperator):
    """A diagonal block whose products are made together with those of others."""

    def __init__(self, operator: Any, indices: np.ndarray, multiply: Multiply):
        super().__init__(operator, indices)
        self._multiply = multiply

    def _matmat(self, X: np.ndarray) -> np.ndarray:
        return self._multiply(X)

    def _matvec(self, x: np.ndarray) -> np.ndarray:
        return self._multiply(x.reshape(-1, 1))[:, 0]


def layer_spectra(
    operator: Any,
    /,
    order: int | None = None,
    num_draws: int | None = None,
    *,
    partition: Mapping[str, Any] | None = None,
    block: int | None = None,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    reorthogonalize: Literal["full", "none"] = "full",
    check: bool = True,
    progress: bool | None = None,
) -> dict[str, Spectrum]:
    """Estimate the spectrum of the diagonal block of each layer, A_bb, all of them side by side.

    A step multiplies a vector of each layer, zero elsewhere, in one pass over the data, so that it
    takes as many passes as the spectrum of one layer. (One vector that carries all layers would
    not do: its product has A_bb v_b and what the other layers add to it.) Every layer has its own
    start vectors and ends on its own.

    Args:
        operator: symmetric, shape (n, n): a `CurvatureOperator`, or with a `partition` any
            `LinearOperator`, array or sparse matrix.
        order: Lanczos steps, see `estimate_spectrum`; of a part with fewer parameters as many as it
            has.
        num_draws: see `estimate_spectrum`, as are all options but the next.
        partition: parts by name, see `interaction_map`; None for the layers of the model.
        block: start vectors that share a Krylov space.
        tolerance: make steps and draws until each spectrum is as accurate as this.
        max_products: products with single vectors that each spectrum may take.
        seed: of the start vectors.
        reorthogonalize: "full" or "none".
        check: let the operator first verify what it is, once.
        progress: show a bar; None for only in interactive runs.

    Returns:
        The spectrum of each part by its name: `plotting.plot_layers` and `plotting.plot_ridge` draw
        them, `Spectrum.jensen_shannon_distance` compares them.

    Raises:
        TypeError: if there is no partition and the operator says nothing of layers.
        ValueError: as `interaction_map` and `estimate_spectrum` do.
        MemoryError: if the vectors of a step, n for each part and their products, do not fit.

    References:
        Zhang et al. (2024), arXiv 2402.16788 (spectra of layers, and their distances).
    """
    linear = as_real_square(operator)
    size = linear.shape[0]
    parts = disjoint_parts(operator, linear, partition)
    together = len(parts) * max(_TOGETHER, num_draws or 0, block or 0)
    check_memory(
        {"vectors": 8 * size * together, "products": 8 * size * together},
        "Give a partition into fewer parts, or fewer draws.",
    )
    check_operator(linear, check)

    def estimated(indices: np.ndarray, multiply: Multiply) -> Spectrum:
        own = order
        if order is not None:
            own = min(order, len(indices) // min(block or 1, len(indices)))
        return estimate_spectrum(
            _JoinedBlock(linear, indices, multiply),
            own,
            num_draws,
            block=None if block is None else min(block, len(indices)),
            tolerance=tolerance,
            max_products=max_products,
            seed=seed,
            reorthogonalize=reorthogonalize,
            check=False,
            progress=False,
        )

    where = list(parts.values())
    with progress_bar(0, "Passes", progress) as bar:

        def multiply(asked: list[tuple[int, np.ndarray]]) -> list[np.ndarray]:
            columns = np.zeros((size, sum(block.shape[1] for _, block in asked)), order="F")
            ends = np.cumsum([0, *(block.shape[1] for _, block in asked)])
            for (number, own), first in zip(asked, ends, strict=False):
                columns[where[number], first : first + own.shape[1]] = own
            products = block_product(linear, columns)
            bar.update(1)
            return [
                products[where[number], first : first + own.shape[1]]
                for (number, own), first in zip(asked, ends, strict=False)
            ]

        algorithms = [partial(estimated, indices) for indices in where]
        found = run_together(algorithms, multiply)
    return dict(zip(parts, found, strict=True))
