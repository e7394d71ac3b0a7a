"""The first batch of a dataset, cut in two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from spectral_density.curvature.fisher import FisherOperator
from spectral_density.curvature.operator import CurvatureOperator


class Halves(NamedTuple):
    """The first batch in two parts."""

    products: list[np.ndarray]  # of each part with u, shape (n,)
    shares: list[float]  # of the examples


def in_two(
    operator: CurvatureOperator, entry: Any, weight: tf.Tensor
) -> tuple[list[tuple[Any, tf.Tensor]], list[float]] | None:
    """Return two parts of a batch with their weights, and their shares of the examples."""
    batch = plain(operator, entry)
    leaves = [leaf for leaf in tf.nest.flatten(batch) if leaf is not None]
    sizes = {leaf.shape[0] for leaf in leaves if leaf.shape.rank}
    sparse = any(isinstance(leaf, tf.SparseTensor) for leaf in leaves)
    if sparse or len(sizes) != 1 or None in sizes or min(sizes) < 2:
        return None
    size = sizes.pop()
    middle = size // 2
    bounds = [(0, middle), (middle, size)]

    def part(start: int, stop: int) -> Any:
        def cut(leaf: Any) -> Any:
            return leaf if leaf is None or not leaf.shape.rank else leaf[start:stop]

        return tf.nest.map_structure(cut, batch)

    parts = [part(*bound) for bound in bounds]
    shares = [(stop - start) / size for start, stop in bounds]
    # Weights that a user gives need not add up: one for each batch, say.
    weights = [operator.batches._weight(half) for half in parts]
    if not np.isclose(sum(weights), float(weight), rtol=1e-6):
        weights = [float(weight) * share for share in shares]
    entries = parts
    if isinstance(operator, FisherOperator):
        entries = [(half, entry[1] + start) for half, (start, _) in zip(parts, bounds, strict=True)]
    tensors = [tf.constant(w, tf.float64) for w in weights]
    return list(zip(entries, tensors, strict=True)), shares


def weights_add_up(operator: CurvatureOperator, parts: Sequence[Any], weight: tf.Tensor) -> bool:
    """Tell whether the weight of a batch is the sum of those of its parts, as `in_two` has them."""
    weights = [operator.batches._weight(plain(operator, part)) for part, _ in parts]
    return bool(np.isclose(sum(weights), float(weight), rtol=1e-6))


def plain(operator: CurvatureOperator, entry: Any) -> Any:
    """Return what the dataset gave: a Fisher operator adds the number of the first example."""
    return entry[0] if isinstance(operator, FisherOperator) else entry
