"""The weights of the epoch with the best validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spectral_density._repr import repr_with_shapes


@dataclass(frozen=True, eq=False)
class BestWeights:
    """The weights of the epoch with the best validation."""

    monitor: str  # the metric they were chosen by, such as "val_accuracy"
    value: float
    epoch: int  # from 0
    weights: list[np.ndarray]

    __repr__ = repr_with_shapes
