import numpy as np
import pytest

from spectral_density.spectrum.density import eigv_to_density, tridiag_to_density, tridiag_to_eigv


def tridiagonal(order, seed, scale=1.0):
    rng = np.random.default_rng(seed)
    beta = rng.uniform(0.1, 1.0, order - 1)
    return scale * (np.diag(rng.normal(size=order)) + np.diag(beta, 1) + np.diag(beta, -1))


def quadrature_of(matrix):
    nodes, vectors = np.linalg.eigh(matrix)
    return nodes, vectors[0] ** 2


def transcribed_density(draws, sigma_squared=1e-5, grid_len=10000, grid_expand=1e-2, grid=None):
    """The formulas as written, a point and a draw at a time; draws: [(nodes, weights)]."""
    lower = sum(min(nodes) for nodes, _ in draws) / len(draws) - grid_expand
    upper = sum(max(nodes) for nodes, _ in draws) / len(draws) + grid_expand
    variance = sigma_squared * max(1, upper - lower)
    if grid is None:
        grid = np.linspace(lower, upper, grid_len)
    density = np.zeros(len(grid))
    for j, x in enumerate(grid):
        for nodes, weights in draws:
            kernel = np.exp(-((x - nodes) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)
            density[j] += np.sum(weights * kernel) / len(draws)
    return density / (np.sum(density) * (grid[1] - grid[0])), grid


def assert_same_density(actual, expected):
    density, grid = actual
    expected_density, expected_grid = expected
    assert density.dtype == grid.dtype == np.float64
    assert density.shape == grid.shape
    np.testing.assert_allclose(grid, expected_grid, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(density, expected_density, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("orders", [[12], [12, 12, 12], [3, 12, 7], [1], [1, 5]])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("sigma_squared", [1e-5, 1e-3, 1.0])
def test_density_agrees_with_the_formulas_as_written(orders, scale, sigma_squared):
    matrices = [tridiagonal(order, seed, scale) for seed, order in enumerate(orders)]
    actual = tridiag_to_density(matrices, sigma_squared=sigma_squared, grid_len=2000)
    draws = [quadrature_of(matrix) for matrix in matrices]
    assert_same_density(actual, transcribed_density(draws, sigma_squared, grid_len=2000))


def test_defaults_are_variance_factor_1e_5_and_ten_thousand_points():
    matrix = tridiagonal(8, 0)
    expected = transcribed_density([quadrature_of(matrix)])
    assert_same_density(tridiag_to_density([matrix]), expected)
    assert_same_density(eigv_to_density(*tridiag_to_eigv([matrix])), expected)
    assert_same_density(tridiag_to_density([matrix], sigma_squared=None), expected)


def test_a_narrow_kernel_on_a_wide_range_keeps_far_nodes_at_exactly_zero():
    nodes = np.array([0.0, 1.0, 1e4])
    density, grid = eigv_to_density(nodes[None, :], sigma_squared=1e-6)
    expected, _ = transcribed_density([(nodes, np.full(3, 1 / 3))], 1e-6)
    np.testing.assert_array_equal(density == 0, expected == 0)
    assert_same_density((density, grid), (expected, grid))
    assert (density == 0).mean() > 0.9


def test_blocks_of_the_grid_leave_no_seam_with_many_nodes():
    rng = np.random.default_rng(0)
    nodes, weights = rng.normal(size=(3, 40000)), rng.uniform(size=(3, 40000))
    actual = eigv_to_density(nodes, weights, grid_len=50, sigma_squared=1e-3)
    draws = list(zip(nodes, weights, strict=True))
    assert_same_density(actual, transcribed_density(draws, 1e-3, grid_len=50))


def test_without_weights_every_node_counts_the_same():
    nodes = np.array([[2.0, -1.0, 0.5], [1.5, -2.0, 0.0]])
    expected = transcribed_density([(row, np.full(3, 1 / 3)) for row in nodes], 1e-2)
    assert_same_density(eigv_to_density(nodes, sigma_squared=1e-2), expected)


def test_a_given_grid_is_used_and_the_variance_still_follows_the_nodes():
    nodes, weights = quadrature_of(tridiagonal(6, 1, scale=10.0))
    grid = np.linspace(-5.0, 4.0, 333)
    actual = eigv_to_density(nodes[None], weights[None], grids=grid, sigma_squared=1e-2)
    assert_same_density(actual, transcribed_density([(nodes, weights)], 1e-2, grid=grid))
    np.testing.assert_array_equal(actual[1], grid)


def test_grid_expand_widens_the_grid_and_the_variance():
    nodes = np.array([0.0, 3.0])
    actual = eigv_to_density(nodes[None], sigma_squared=1e-3, grid_len=500, grid_expand=2.0)
    draws = [(nodes, np.full(2, 0.5))]
    assert_same_density(actual, transcribed_density(draws, 1e-3, 500, grid_expand=2.0))
    assert actual[1][0] == -2.0 and actual[1][-1] == 5.0


def test_density_sums_to_one_over_the_grid():
    density, grid = tridiag_to_density([tridiagonal(20, 3)], grid_len=777)
    assert np.sum(density) * (grid[1] - grid[0]) == pytest.approx(1.0, abs=1e-14)


def test_weights_are_the_quadrature_of_the_first_unit_vector():
    matrix = tridiagonal(9, 4)
    eig_vals, all_weights = tridiag_to_eigv([matrix])
    assert eig_vals.shape == all_weights.shape == (1, 9)
    assert (np.diff(eig_vals) > 0).all()
    for power in range(6):
        exact = np.linalg.matrix_power(matrix, power)[0, 0]
        assert np.sum(all_weights * eig_vals**power) == pytest.approx(exact, rel=1e-12)


def test_a_shorter_draw_is_filled_with_its_last_node_at_weight_zero():
    short, long = tridiagonal(3, 0), tridiagonal(5, 1)
    eig_vals, all_weights = tridiag_to_eigv([short, long])
    nodes, weights = quadrature_of(short)
    np.testing.assert_allclose(eig_vals[0], [*nodes, nodes[-1], nodes[-1]], rtol=1e-14)
    np.testing.assert_allclose(all_weights[0], [*weights, 0.0, 0.0], rtol=1e-12)
    np.testing.assert_allclose(all_weights.sum(axis=1), 1.0, rtol=1e-14)


def test_a_matrix_of_order_one_is_a_single_kernel():
    eig_vals, all_weights = tridiag_to_eigv([[[2.5]]])
    assert eig_vals.tolist() == [[2.5]] and all_weights.tolist() == [[1.0]]
    density, grid = tridiag_to_density([[[2.5]]], grid_len=1001)
    assert grid[density.argmax()] == pytest.approx(2.5, abs=1e-12)


class TensorLike:
    """What NumPy sees of a tensor: `__array__`."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.array(self.array, dtype=dtype)


def test_lists_stacks_and_tensors_of_any_precision_are_the_same_input():
    stack = np.stack([tridiagonal(6, seed) for seed in range(3)]).astype(np.float32)
    expected, _ = tridiag_to_density(stack.astype(np.float64), grid_len=300)
    for same in (stack, list(stack), stack.tolist(), [TensorLike(matrix) for matrix in stack]):
        np.testing.assert_array_equal(tridiag_to_density(same, grid_len=300)[0], expected)


def test_the_arguments_are_left_as_they_were():
    nodes, weights = np.array([[2.0, 0.0, 1.0]]), np.array([[0.2, 0.3, 0.5]])
    grid = np.linspace(0, 2, 50)
    copies = nodes.copy(), weights.copy(), grid.copy()
    eigv_to_density(nodes, weights, grids=grid, sigma_squared=1e-1)
    for array, copy in zip((nodes, weights, grid), copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("tridiag_list", "message"),
    [
        ([], "tridiag_list is empty"),
        (np.zeros((0, 3, 3)), "tridiag_list is empty"),
        ([np.eye(2), np.zeros((2, 3))], r"tridiag_list\[1\] must be a square matrix.*\(2, 3\)"),
        ([np.zeros((0, 0))], r"tridiag_list\[0\] must be a square matrix"),
        (np.eye(3), r"A single matrix goes into a list"),
        ([np.full((2, 2), np.nan)], r"tridiag_list\[0\] has NaN or infinite"),
        ([np.diag([1.0, np.inf])], r"tridiag_list\[0\] has NaN or infinite"),
        ([np.eye(2) * 1j], "complex"),
        ([[[1.0, 0.0], [0.0]]], "array of real numbers"),
        ([[["a"]]], "array of real numbers"),
        ([np.array([[1.0, 2.0], [0.0, 1.0]])], "fill both triangles"),
    ],
)
def test_tridiagonal_input_without_sense_is_refused(tridiag_list, message):
    with pytest.raises(ValueError, match=message):
        tridiag_to_density(tridiag_list)


NODES = np.array([[0.0, 1.0, 2.0]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eig_vals": [0.0, 1.0]}, r"eig_vals\[None, :\]"),
        ({"eig_vals": np.zeros((0, 3))}, "both at least 1"),
        ({"eig_vals": np.zeros((3, 0))}, "both at least 1"),
        ({"eig_vals": [[0.0, np.nan]]}, "eig_vals has NaN"),
        ({"eig_vals": [[0.0, -np.inf]]}, "eig_vals has NaN or infinite"),
        ({"all_weights": [[1.0, 1.0]]}, r"shape of eig_vals, \(1, 3\), got \(1, 2\)"),
        ({"all_weights": [1.0, 1.0, 1.0]}, r"got \(3,\)"),
        ({"all_weights": [[1.0, np.nan, 1.0]]}, "all_weights has NaN"),
        ({"all_weights": [[1.0, -1.0, 1.0]]}, "must not be negative"),
        ({"all_weights": [[0.0, 0.0, 0.0]]}, "one at least must be positive"),
        ({"grid_len": 1}, "grid_len must be at least 2, got 1"),
        ({"grid_len": None}, "grid_len must be at least 2, got None"),
        ({"grids": [0.0]}, "at least 2 points"),
        ({"grids": np.zeros((2, 2))}, "1-D"),
        ({"grids": [0.0, np.nan]}, "grids has NaN"),
        ({"grids": [1.0, 0.0]}, "strictly increasing"),
        ({"grids": [0.0, 1.0, 1.0]}, "strictly increasing"),
        ({"sigma_squared": 0.0}, "sigma_squared must be positive and finite, got 0.0"),
        ({"sigma_squared": -1e-5}, "sigma_squared must be positive"),
        ({"sigma_squared": np.nan}, "sigma_squared must be positive"),
        ({"sigma_squared": np.inf}, "sigma_squared must be positive"),
        ({"grid_expand": np.nan}, "grid_expand must be finite"),
        ({"eig_vals": [[-1e300, 1e300]], "sigma_squared": 1e10}, "leaves float64"),
        ({"eig_vals": [[1e20]]}, "do not increase in float64"),
        ({"eig_vals": [[1.0]], "grid_expand": 0.0}, "do not increase in float64"),
    ],
)
def test_node_input_without_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        eigv_to_density(**{"eig_vals": NODES, **arguments})


def test_a_grid_that_no_kernel_reaches_is_an_error_and_not_nan():
    with pytest.raises(ValueError, match=r"No kernel has mass on the grid.*\[50, 60\]"):
        eigv_to_density(NODES, grids=np.linspace(50, 60, 100))


def test_nodes_of_any_magnitude_give_a_density_without_a_warning():
    for magnitude in (1e-150, 1e150):
        density, grid = eigv_to_density(magnitude * NODES, sigma_squared=1e-3)
        assert np.isfinite(density).all()
        assert np.sum(density * (grid[1] - grid[0])) == pytest.approx(1.0)
