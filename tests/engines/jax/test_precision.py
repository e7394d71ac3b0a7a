"""Products at a lower precision than the full one: how far they are off, and who counts it.

No CPU multiplies in TF32, so that one is made to: factors are rounded to ten bits, by XLA in the
products tested and by NumPy in the truth.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_density import (
    GaussNewtonOperator,
    HessianOperator,
    estimate_spectrum,
    preconditioned,
    top_eigenpairs,
)
from spectral_density.curvature import SubmatrixOperator
from spectral_density.curvature.preflight.examination import Examination
from spectral_density.curvature.preflight.passes import stated_rounding
from spectral_density.engines.jax.jaxprs import equations
from spectral_density.linalg.arguments import product_error
from tests.engines.jax.rounding_chip import BITS, rounding_chip

RNG = np.random.default_rng(3)
X = RNG.normal(size=(40, 6)).astype(np.float32)
Y = RNG.normal(size=(40, 3)).astype(np.float32)
PARAMS = {
    "a": jnp.asarray(RNG.normal(size=(6, 8)) / 2, jnp.float32),
    "b": jnp.asarray(RNG.normal(size=(8, 3)) / 2, jnp.float32),
}
V = RNG.normal(size=72)


def predict(params, batch):
    return jnp.tanh(batch[0] @ params["a"]) @ params["b"]


def mean_square(outputs, batch):
    return jnp.mean(jnp.sum((outputs - batch[1]) ** 2, axis=-1))


def loss(params, batch):
    return mean_square(predict(params, batch), batch)


def new(matrix, precision=None):
    losses = {HessianOperator: loss, GaussNewtonOperator: (predict, mean_square)}
    return matrix(PARAMS, losses[matrix], [(X, Y)], matmul_precision=precision)


made = cache(new)


@pytest.fixture(autouse=True)
def _on_the_chip():
    with rounding_chip():
        yield


def product(v, bits, gauss_newton):
    """Return H v or G v of the two-layer network by hand, with factors rounded to some bits."""

    def times(left, right):
        return to_bits(left, bits) @ to_bits(right, bits)

    a, b = (np.asarray(PARAMS[name], float) for name in "ab")
    va, vb = v[:48].reshape(6, 8), v[48:].reshape(8, 3)
    h = np.tanh(times(X, a))
    slope = 1 - h**2
    dz = np.zeros_like(Y) if gauss_newton else 2 * (times(h, b) - Y) / len(X)
    rh = slope * times(X, va)
    rdz = 2 * (times(rh, b) + times(h, vb)) / len(X)
    back = times(dz, b.T)
    rda = (times(rdz, b.T) + times(dz, vb.T)) * slope - 2 * back * h * rh
    return np.concatenate([times(X.T, rda).ravel(), (times(rh.T, dz) + times(h.T, rdz)).ravel()])


def to_bits(array, bits):
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(np.ldexp(mantissa, bits + 1)), exponent - bits - 1)


@pytest.mark.parametrize("matrix", [HessianOperator, GaussNewtonOperator])
def test_the_distance_from_full_precision_is_measured_within_a_factor_of_two(matrix):
    truth = product(V, 40, matrix is GaussNewtonOperator)
    np.testing.assert_allclose(made(matrix) @ V, truth, rtol=0, atol=1e-6 * np.linalg.norm(truth))
    for precision, bits in BITS.items():
        off = product(V, bits, matrix is GaussNewtonOperator) - truth
        distance = np.linalg.norm(off) / np.linalg.norm(truth)
        assert distance / 2 < made(matrix, precision).product_error < 2 * distance


@pytest.mark.parametrize("matrix", [HessianOperator, GaussNewtonOperator])
def test_the_check_states_the_distance_and_takes_it_for_no_wrong_derivative(matrix):
    operator = made(matrix, "bfloat16")
    report = operator.check()
    assert report.verdict == "sound", report
    check = report["precision"]
    assert check.figure == operator.product_error > 2e-3  # more than "derivative" lets pass
    assert f"{check.figure:.2g} of their norm off those at full precision" in check.message
    assert report["derivative"].status == "passed"


def test_products_in_the_check_may_differ_by_twice_the_distance():
    operator = made(HessianOperator, "bfloat16")
    examination = Examination(operator, operator.sweep, seed=0)
    examination.make_passes()
    expected = stated_rounding(operator.product_dtype) + 2 * operator.product_error
    assert examination.passes.rounding == pytest.approx(expected)


def test_a_wrong_derivative_is_found_at_a_lower_precision_too():
    @jax.custom_jvp
    def square(z):
        return z**2

    square.defjvp(lambda primals, tangents: (primals[0] ** 2, 2.1 * primals[0] * tangents[0]))

    operator = HessianOperator.from_function(
        lambda w: jnp.sum(square(X @ w)), jnp.ones(6), matmul_precision="bfloat16"
    )
    with pytest.raises(ValueError, match=r"gradient is .* off the differences of the loss"):
        operator.check()


def test_products_that_are_far_off_are_a_doubt():
    far = 1000 + X

    def centred(w):
        z = far @ w
        return jnp.sum((z - jnp.mean(z)) ** 2)

    operator = HessianOperator.from_function(centred, jnp.ones(6), matmul_precision="bfloat16")
    with pytest.warns(UserWarning, match="Leave matmul_precision out"):
        report = operator.check(derivative=False)
    assert report["precision"].status == "doubtful"
    assert report["precision"].figure > 0.1


def test_full_precision_has_two_names_and_no_distance():
    for name in ("highest", "float32"):
        operator = new(HessianOperator, name)
        assert operator.matmul_precision is None
        assert operator.product_error == 0.0
        assert repr(operator) == "HessianOperator(loss, 72 parameters, 1 batch, float32)"
        assert operator.fingerprint() == made(HessianOperator).fingerprint()
    assert "precision" not in [check.name for check in made(HessianOperator).check().checks]


def test_an_operator_says_its_precision():
    operator = new(HessianOperator, "tensorfloat32")
    assert "float32, products in tensorfloat32" in repr(operator)
    assert "matrices multiplied in tensorfloat32</td>" in operator._repr_html_()
    figure = f"{operator.product_error:.2g}"
    assert f"matrices multiplied in tensorfloat32, {figure} off full" in operator._repr_html_()
    assert operator.product_dtype == np.float32
    assert operator.fingerprint() != made(HessianOperator).fingerprint()


def test_loss_and_gradient_are_those_at_full_precision_and_products_are_not():
    full, low = made(HessianOperator), made(HessianOperator, "tensorfloat32")
    assert low.loss() == full.loss()
    np.testing.assert_array_equal(low.gradient(), full.gradient())
    product, gradient = low.product_and_gradient(V)
    np.testing.assert_allclose(gradient, full.gradient(), rtol=1e-5, atol=1e-6)
    assert np.linalg.norm(product - full @ V) > 1e-4 * np.linalg.norm(product)
    # So is the product from what is kept.
    np.testing.assert_allclose(low @ V, product, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("matrix", [HessianOperator, GaussNewtonOperator])
def test_every_product_of_matrices_has_the_precision_asked_for(matrix):
    expected = {None: jax.lax.Precision.HIGHEST, "tensorfloat32": jax.lax.Precision.HIGH}
    for name, precision in expected.items():
        operator = made(matrix, name)
        products, sweep = operator.matrix, operator.sweep
        nothing_kept = products.cache(1, 0.0, linearize=False)

        def pass_over(rows, products=products, sweep=sweep, cache=nothing_kept):
            sums = products.zeros([rows], with_gradient=False)
            return products.add_all(cache, sweep.inputs(), [rows], sums)

        jaxpr = jax.make_jaxpr(pass_over)(jnp.zeros((1, 72))).jaxpr
        dots = [eqn for eqn in equations(jaxpr) if eqn.primitive.name == "dot_general"]
        assert len(dots) > 4
        assert {eqn.params["precision"] for eqn in dots} == {(precision, precision)}


def test_other_data_are_measured_anew():
    operator = made(HessianOperator, "tensorfloat32")
    before, passes = operator.product_error, operator.num_traces
    other = operator.with_dataset([(X[::-1] ** 3, 10 * Y)])
    assert other.product_error != before == operator.product_error
    assert other.num_traces == passes


def test_bounds_of_eigenvalues_count_the_distance():
    full, low = made(HessianOperator), made(HessianOperator, "bfloat16")
    true = np.linalg.eigvalsh(full.to_dense())
    spectrum = estimate_spectrum(low, order=72, num_draws=1, check=False, progress=False)
    assert spectrum.product_error == low.product_error
    ends = spectrum.extreme_eigenvalues
    errors = np.abs([ends.smallest - true[0], ends.largest - true[-1]])
    assert np.all(errors <= [ends.smallest_bound, ends.largest_bound])
    assert errors.max() > 100 * np.finfo(np.float32).eps * true[-1]  # what rounding explains
    assert "off full precision" in str(spectrum)
    pairs = top_eigenpairs(low, 3, check=False, progress=False)
    assert pairs.converged.all()
    nearest = np.abs(true[:, None] - pairs.values).min(axis=0)
    assert np.all(nearest <= pairs.residuals)
    assert np.all(pairs.residuals >= low.product_error * pairs.norm)


def test_sums_and_blocks_of_operators_have_the_distance_of_their_parts():
    full, low = made(HessianOperator), made(GaussNewtonOperator, "tensorfloat32")
    assert product_error(full - low) == product_error(2 * low) == low.product_error
    assert SubmatrixOperator(low, slice(0, 9)).product_error == low.product_error


def test_between_the_roots_of_a_preconditioner_it_is_measured_with_these():
    lower, exact = new(HessianOperator, "bfloat16"), new(HessianOperator)
    diagonal = np.exp(3 * RNG.normal(size=72))
    found = preconditioned(lower, diagonal)
    dense = preconditioned(exact, diagonal).to_dense()
    off = np.linalg.norm(found.to_dense() - dense) / np.linalg.norm(dense)
    # One random vector in place of all of them.
    assert found.product_error == pytest.approx(off, rel=1.0)
    assert found.product_error != lower.product_error
    assert preconditioned(exact, diagonal).product_error == 0.0
