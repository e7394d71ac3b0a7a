"""What pictures are drawn of, and on, without TensorFlow."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np

COLUMN = (3.3, 2.5)  # inches


def column_axes():
    return plt.subplots(figsize=COLUMN, layout="constrained")[1]


def landscape(num_directions):
    """A paraboloid and what is known of it, without TensorFlow."""
    t = np.linspace(-1, 1, 9)
    curvature = np.diag([2.0, 6.0])[:num_directions, :num_directions]
    grids = np.meshgrid(*[t] * num_directions, indexing="ij")
    losses = 1.0 + sum(curvature[k, k] / 2 * grid**2 for k, grid in enumerate(grids))
    return SimpleNamespace(
        coordinates=(t,) * num_directions,
        losses=losses,
        loss=1.0,
        slopes=np.zeros(num_directions),
        curvature=curvature,
        gram=np.eye(num_directions),
        directions="top",
        normalize=None,
        quadratic_model=lambda: losses,
    )


def finite_differences():
    steps = 10.0 ** -np.arange(1, 8)
    return SimpleNamespace(
        steps=steps,
        gradient_errors=steps**2 + 1e-15 / steps,
        product_errors=0.3 * steps**2 + 1e-12 / steps,
    )


def stability_records(ratios, threshold=20.0):
    """Records of a callback, as far as a plot reads them."""
    return [
        SimpleNamespace(
            step=10 * number,
            epoch=number,
            threshold=threshold,
            ratio=ratio,
            bounds=np.array([0.5]),
        )
        for number, ratio in enumerate(ratios)
    ]
