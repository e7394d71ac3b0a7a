import numpy as np
import pytest
from plotting.pictures import column_axes

import spectral_density as sd
from spectral_density.plotting import plot_interactions


def interactions(count, scale=1.0):
    root = np.random.default_rng(0).standard_normal((20 * count, 20 * count))
    parts = {f"layer_{k}": range(20 * k, 20 * k + 20) for k in range(count)}
    return sd.interaction_map(scale * (root + root.T), parts, num_samples=5)


def test_the_map_has_the_norms_the_names_and_the_share():
    found = interactions(3)
    ax = plot_interactions(found, column_axes())
    np.testing.assert_allclose(ax.images[0].get_array(), found.norms)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(found.names)
    written = [text.get_text() for text in ax.texts]
    assert written == [f"{value:.2g}" for value in found.norms.ravel()]
    assert ax.get_title().startswith(f"{100 * found.diagonal_share.value:.3g}")


def test_of_many_layers_norms_are_not_written():
    assert not plot_interactions(interactions(8)).texts


@pytest.mark.parametrize("scale", [0.0, 1e-200, 1e200])
def test_every_map_can_be_drawn(scale):
    plot_interactions(interactions(2, scale)).figure.canvas.draw()
