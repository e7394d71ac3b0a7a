import numpy as np
import pytest
from plotting.pictures import column_axes

from spectral_density.plotting import plot_matrix


def test_a_matrix_is_drawn_by_magnitude_with_layers_in_their_order():
    matrix = np.diag([1.0, -10.0, 1e-3, 100.0])
    ax = plot_matrix(matrix, column_axes(), layers={"b": [2, 3], "a": np.array([0, 1])})
    (image,) = ax.images
    drawn = np.asarray(image.get_array())
    np.testing.assert_allclose(np.diag(drawn), [1e-3, 100.0, 1.0, 10.0])
    assert drawn.min() == pytest.approx(1e-4)  # six decades below the largest
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "a"]
    assert [line.get_xdata()[0] for line in ax.lines[1::2]] == [2]
    ax.figure.canvas.draw()


def test_a_large_matrix_is_drawn_in_cells_of_equal_energy():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(1500, 1500))
    ax = plot_matrix(matrix, decades=12)
    drawn = np.asarray(ax.images[0].get_array())
    assert drawn.shape == (600, 600)
    edges = np.unique(np.linspace(0, 1500, 601).astype(int))
    sizes = np.outer(np.diff(edges), np.diff(edges))
    assert np.sum(drawn**2 * sizes) == pytest.approx(np.sum(matrix**2))


@pytest.mark.parametrize(
    ("matrix", "options", "message"),
    [
        (np.ones((2, 3)), {}, "must be square"),
        (np.zeros((2, 2)), {}, "is zero"),
        (np.array([[1.0, np.nan], [0.0, 1.0]]), {}, "NaN or infinity"),
        (np.eye(3), {"layers": {"a": [0, 1]}}, "each of the 3 indices once"),
        (np.eye(3), {"layers": {"a": [0, 1], "b": [1]}}, "each of the 3 indices once"),
    ],
)
def test_a_matrix_that_cannot_be_drawn_is_an_error(matrix, options, message):
    with pytest.raises(ValueError, match=message):
        plot_matrix(matrix, **options)
