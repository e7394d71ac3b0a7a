"""Log-determinants and effective dimensions against dense matrices, and both of their errors."""

import numpy as np
import pytest
from cases import dense_symmetric, diagonal_operator, log_uniform_bulk
from scipy.sparse.linalg import LinearOperator

from spectral_density.linalg import start_vector
from spectral_density.linalg.functions import (
    QuadratureEstimate,
    effective_dimension,
    log_determinant,
)

pytestmark = pytest.mark.filterwarnings("error")

FUNCTIONS = [log_determinant, effective_dimension]
# Positive semidefinite, half of the eigenvalues zero, as a Gauss-Newton matrix has them.
GAUSS_NEWTON = np.concatenate([np.geomspace(1e-5, 30, 200), np.zeros(200)])


def truth(function, eigenvalues, damping):
    shifted = np.asarray(eigenvalues, dtype=np.float64) + damping
    terms = np.log(shifted) if function is log_determinant else 1 - damping / shifted
    return terms.sum()


def without_quadrature(function, eigenvalues, damping, seed, num_draws):
    """n v' f(A) v for the diagonal matrix, averaged over the start vectors."""
    size = len(eigenvalues)
    squares = np.mean([start_vector(size, seed, d) ** 2 for d in range(num_draws)], axis=0)
    shifted = eigenvalues + damping
    terms = np.log(shifted) if function is log_determinant else 1 - damping / shifted
    return size * (squares @ terms)


def counted(eigenvalues):
    diagonal = np.asarray(eigenvalues)[:, np.newaxis]
    widths = []

    def matmat(block):
        widths.append(block.shape[1])
        return diagonal * block

    operator = LinearOperator(
        (len(diagonal),) * 2, lambda v: matmat(v.reshape(-1, 1)), matmat=matmat, dtype=float
    )
    return operator, widths


# Against dense ------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_damped_gauss_newton_matrix_agrees_with_dense_to_the_error_bar(function):
    true = truth(function, GAUSS_NEWTON, 1e-2)
    operator = diagonal_operator(GAUSS_NEWTON)
    found = [
        function(operator, 1e-2, order=30, num_draws=8, seed=seed, lower_bound=0)
        for seed in range(60)
    ]
    inside = [low <= true <= high for low, high in (e.interval() for e in found)]
    assert np.mean(inside) >= 0.92
    error = np.array([e.value for e in found]) - true
    stated = np.sqrt(np.mean([e.standard_error**2 for e in found]))
    assert 0.7 <= stated / np.std(error) <= 1.4


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("eigenvalues", "damping"),
    [
        (np.linspace(1, 2, 400), 0.5),
        (-np.linspace(1, 2, 400), 2.5),
        (log_uniform_bulk(400), 0.1),
        (np.ones(400), 1.0),
    ],
    ids=["positive", "negative", "indefinite", "identity"],
)
def test_the_interval_holds_the_truth(function, eigenvalues, damping):
    true = truth(function, eigenvalues, damping)
    operator = dense_symmetric(eigenvalues)
    for seed in range(5):
        found = function(operator, damping, order=20, num_draws=10, seed=seed)
        low, high = found.interval(0.9999)
        assert low <= true <= high
        assert found.num_products == 200
        assert found.degrees_of_freedom == 9


def test_a_log_determinant_needs_no_damping():
    eigenvalues = np.linspace(1, 3, 500)
    found = log_determinant(diagonal_operator(eigenvalues), 0, order=20)
    low, high = found.interval(0.9999)
    assert low <= np.log(eigenvalues).sum() <= high


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("size", [1, 2, 60])
def test_few_rows_are_exact(function, size):
    eigenvalues = np.linspace(-0.5, 3, size)
    found = function(dense_symmetric(eigenvalues), 1.0)
    assert found.value == pytest.approx(truth(function, eigenvalues, 1.0), rel=1e-12)
    assert found.num_products == size
    assert found.standard_error <= 1e-12
    assert found.quadrature_error == found.num_draws == 0


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("eigenvalue", [0.0, 2.0])
def test_one_distinct_eigenvalue_is_exact(function, eigenvalue):
    operator = diagonal_operator(np.full(300, eigenvalue))
    for bound in (None, eigenvalue):
        found = function(operator, 0.5, order=5, num_draws=3, lower_bound=bound)
        true = truth(function, np.full(300, eigenvalue), 0.5)
        assert found.value == pytest.approx(true, rel=1e-12, abs=1e-12)
        assert found.standard_error + found.quadrature_error <= 1e-11


def test_the_determinant_of_a_scaled_operator_is_scaled():
    for scale in (1e-8, 1e8):
        options = {"order": 20, "num_draws": 4, "lower_bound": 0.0}
        one = log_determinant(diagonal_operator(GAUSS_NEWTON), 1e-3, **options)
        other = log_determinant(diagonal_operator(scale * GAUSS_NEWTON), scale * 1e-3, **options)
        assert other.value - 400 * np.log(scale) == pytest.approx(one.value, rel=1e-9)
        assert other.standard_error == pytest.approx(one.standard_error, rel=1e-6)
        assert other.quadrature_error == pytest.approx(one.quadrature_error, rel=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_products_in_float32_do(function):
    exact = function(diagonal_operator(GAUSS_NEWTON), 1e-2, order=20, lower_bound=0, num_draws=4)
    rough = function(
        diagonal_operator(GAUSS_NEWTON, np.float32), 1e-2, order=20, lower_bound=0, num_draws=4
    )
    assert abs(rough.value - exact.value) <= 1e-4 * exact.standard_error + rough.standard_error
    assert rough.standard_error == pytest.approx(exact.standard_error, rel=1e-2)


# The quadrature's own error -----------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("order", [3, 10, 30])
@pytest.mark.parametrize("damping", [1e-6, 1e-3, 1.0])
def test_a_lower_bound_bounds_the_error_of_the_quadrature(function, order, damping):
    operator = diagonal_operator(GAUSS_NEWTON)
    found = function(operator, damping, order=order, num_draws=3, seed=2, lower_bound=0)
    true = without_quadrature(function, GAUSS_NEWTON, damping, 2, 3)
    slack = 1e-10 * abs(true)
    assert -slack <= found.value - true <= found.quadrature_error + slack


@pytest.mark.parametrize("function", FUNCTIONS)
def test_half_the_order_tells_of_the_error_where_the_rules_converge(function):
    operator = diagonal_operator(GAUSS_NEWTON)
    found = function(operator, 1.0, order=16, num_draws=3)
    true = without_quadrature(function, GAUSS_NEWTON, 1.0, 0, 3)
    assert 0 <= found.value - true <= found.quadrature_error <= 0.01 * true
    assert "quadrature error" in str(found)


AWKWARD = {
    "rank 140 of 200": np.r_[np.zeros(60), np.geomspace(1e-3, 5, 140)],
    "one": np.r_[np.zeros(199), 1.0],
    "log": np.geomspace(1e-12, 1, 200),
    "outlier": np.r_[np.geomspace(1e-6, 1e-3, 199), 1e3],
    "two": np.r_[np.full(150, 1e-9), np.ones(50)],
    "tail": np.r_[np.full(5, 1e-10), np.linspace(1, 3, 195)],
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", AWKWARD)
def test_the_errors_cover_where_few_draws_and_steps_see_little(name, function):
    operator = diagonal_operator(AWKWARD[name])
    inside = []
    for damping in (1e-12, 1e-6, 1e-2):
        true = truth(function, AWKWARD[name], damping)
        for order in (4, 8, 20):
            for seed in range(6):
                found = function(operator, damping, order=order, num_draws=4, seed=seed)
                low, high = found.interval()
                inside.append(low <= true <= high)
    assert np.mean(inside) >= 0.9


def wide(rows, columns, seed):
    """Return 2 X'X / rows, of rank `rows`, which is less than its size `columns`."""
    x = np.random.default_rng(seed).normal(size=(rows, columns))
    return 2 * x.T @ x / rows


@pytest.mark.parametrize("size", [15, 40, 100])
def test_a_few_zero_eigenvalues_are_within_the_errors_at_any_order(size):
    for seed in range(8):
        matrix = wide(size - 5, size, seed)
        true = np.log(np.linalg.eigvalsh(matrix)[5:]).sum() + 5 * np.log(1e-12)
        for order in (3, 8):
            found = log_determinant(matrix, 1e-12, order=order, num_draws=2, seed=seed)
            low, high = found.interval()
            assert low <= true <= high


# Growing samples ----------------------------------------------------------------------------------


def test_draws_are_added_until_the_tolerance_is_met():
    eigenvalues = np.linspace(0.1, 3, 500)
    operator, widths = counted(eigenvalues)
    found = log_determinant(operator, 0.5, order=15, num_draws=3, tolerance=0.03, lower_bound=0)
    assert found.converged is True
    assert found.relative_error <= 0.03
    assert found.num_draws > 3
    assert found.num_products == sum(widths) == 15 * found.num_draws
    assert found.value == pytest.approx(truth(log_determinant, eigenvalues, 0.5), rel=0.06)


def test_a_sample_that_grew_is_the_one_drawn_at_once():
    operator = diagonal_operator(np.linspace(0.1, 3, 500))
    grown = log_determinant(
        operator, 0.5, order=15, num_draws=4, tolerance=1e-9, lower_bound=0, max_products=140
    )
    once = log_determinant(operator, 0.5, order=15, num_draws=9, lower_bound=0)
    assert grown.converged is False
    assert (grown.num_draws, grown.num_products) == (9, 135)
    assert grown.value == pytest.approx(once.value, rel=1e-12)
    assert grown.standard_error == pytest.approx(once.standard_error, rel=1e-12)


def test_a_sample_that_would_pass_the_size_gives_way_to_the_identity():
    eigenvalues = np.linspace(0.1, 3, 300)
    operator, widths = counted(eigenvalues)
    found = log_determinant(operator, 0.5, order=20, num_draws=10, tolerance=1e-8)
    assert found.converged is True
    assert found.num_products == sum(widths) == 500
    assert found.value == pytest.approx(truth(log_determinant, eigenvalues, 0.5), rel=1e-12)


def test_no_draws_are_spent_on_the_error_of_the_quadrature():
    operator = diagonal_operator(np.geomspace(1e-8, 1, 500))
    found = log_determinant(operator, 1e-8, order=10, num_draws=4, tolerance=0.05, lower_bound=0)
    assert found.converged is False
    assert found.num_draws == 4
    assert found.quadrature_error > 0.05 * abs(found.value)


def test_the_seed_alone_decides():
    operator = diagonal_operator(GAUSS_NEWTON)
    values = [
        log_determinant(operator, 0.1, order=10, num_draws=3, seed=seed).value for seed in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


def test_the_interval_reaches_down_by_the_error_of_the_quadrature():
    found = QuadratureEstimate(5.0, 0.5, 90, quadrature_error=2.0, order=9, num_draws=10)
    low, high = found.interval(0.95)
    assert (low, high) == pytest.approx((2.0200, 5.9800), abs=1e-4)
    assert str(found) == "5.00 +- 0.50 (90 products), quadrature error 2.0e+00"


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("size", [20, 300])
def test_what_is_not_positive_definite_is_an_error_that_names_the_eigenvalue(function, size):
    operator = dense_symmetric(np.linspace(-2, 3, size))
    with pytest.raises(ValueError, match=r"positive definite.*-(2|1\.9).*damping is 1\b"):
        function(operator, 1.0, order=20, num_draws=2)


def test_a_singular_matrix_has_no_log_determinant():
    with pytest.raises(ValueError, match="positive definite"):
        log_determinant(np.zeros((3, 3)), 0)
    with pytest.raises(ValueError, match="positive definite"):
        log_determinant(np.zeros((300, 300)), 0, order=3, num_draws=2)


@pytest.mark.parametrize("seed", range(12))
def test_a_matrix_that_is_singular_to_rounding_is_refused_without_damping(seed):
    rotation = dense_symmetric(np.r_[np.zeros(3), np.linspace(1, 2, 97)])
    singular = [
        wide(14, 15, 1000 + seed),
        wide(90, 100, seed),
        wide(14, 15, seed).astype(np.float32),
        1e-9 * wide(14, 15, seed),
        1e-30 * rotation,
        np.diag([1.0, 2.0, 1e-17 * (seed - 6)]),
    ]
    for matrix in singular:
        with pytest.raises(ValueError, match=r"singular.*damping|positive definite.*damping"):
            log_determinant(matrix, 0.0)
    steps = {"order": 3, "num_draws": 2, "seed": seed}
    with pytest.raises(ValueError, match=r"zero to rounding"):
        log_determinant(np.diag(np.r_[np.zeros(50), np.ones(50)]), 0.0, **steps)


def test_an_ill_conditioned_matrix_is_not_called_singular():
    eigenvalues = np.geomspace(1e-10, 1, 50)
    found = log_determinant(dense_symmetric(eigenvalues), 0.0)
    assert abs(found.value - np.log(eigenvalues).sum()) <= 3 * found.standard_error
    assert found.standard_error <= 1e-3


def test_a_lower_bound_that_does_not_hold_is_an_error():
    operator = diagonal_operator(np.linspace(-1, 1, 300))
    with pytest.raises(ValueError, match="below lower_bound"):
        log_determinant(operator, 2.0, order=10, num_draws=2, lower_bound=0.0)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"damping": -1.0}, ValueError, "damping must be"),
        ({"damping": np.nan}, ValueError, "damping must be finite"),
        ({"damping": True}, TypeError, "damping must be a real number"),
        ({"order": 0}, ValueError, "order must be at least 1"),
        ({"order": 5.0}, TypeError, "order must be an integer"),
        ({"order": 1}, ValueError, "order is 1"),
        ({"num_draws": 1}, ValueError, "num_draws must be at least 2"),
        ({"lower_bound": -1.0}, ValueError, "lower_bound must be greater than -1"),
        ({"reorthogonalize": "some"}, ValueError, "reorthogonalize must be"),
        ({"tolerance": 0}, ValueError, "tolerance must be greater than 0"),
        ({"max_products": 500}, ValueError, "give a tolerance"),
        ({"tolerance": 0.1, "max_products": 5}, ValueError, "max_products must be at least"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_bad_options_are_errors(function, options, error, match):
    options = {"damping": 1.0, "order": 10, "num_draws": 2, **options}
    with pytest.raises(error, match=match):
        function(np.eye(300), options.pop("damping"), **options)


def test_an_effective_dimension_needs_damping():
    with pytest.raises(ValueError, match="damping must be greater than 0"):
        effective_dimension(np.eye(3), 0)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_bad_operators_are_errors(function):
    with pytest.raises(ValueError, match="square"):
        function(np.ones((3, 4)), 1.0)
    with pytest.raises(TypeError, match="real"):
        function(1j * np.eye(3), 1.0)
    for size in (3, 300):
        with pytest.raises(FloatingPointError, match="not finite"):
            function(np.full((size, size), np.nan), 1.0, order=10, num_draws=2)
