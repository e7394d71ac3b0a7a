"""Minimization of functions of pytrees, in the precision that JAX is set to.

The last test runs this file again in a process where JAX has float64.
"""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from minimization import L2, METHODS, logistic_regression, saddle_free

from spectral_density import HessianOperator
from spectral_density.engines.jax import batches as functions
from spectral_density.training import NewtonCG, TrainingStatus, minimize
from spectral_density.training.problem import counted_parts, problem_of, rows_in_parts
from spectral_density.training.steps import Work

IN_FLOAT64 = jnp.zeros(()).dtype == np.float64
DTYPE = np.float64 if IN_FLOAT64 else np.float32


def rosenbrock(params):
    x, y = params["x"], params["more"][0]
    return (1 - x) ** 2 + 100 * jnp.sum((y - x**2) ** 2)


def start():
    return {"more": [jnp.asarray([1.0], DTYPE)], "x": jnp.asarray(-1.2, DTYPE)}


@pytest.fixture(scope="module")
def valley():
    """One operator, compiled once, for all methods."""
    return HessianOperator.from_function(rosenbrock, start())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_finds_the_minimum_of_rosenbrock(valley, name):
    tolerance, distance = (1e-8, 1e-7) if IN_FLOAT64 else (1e-3, 3e-3)
    with valley.derivatives.state.moved():
        result = minimize(valley, METHODS[name](), max_steps=400, gradient_tolerance=tolerance)
    assert result.converged
    assert jax.tree.structure(result.params) == jax.tree.structure(start())
    for leaf in jax.tree.leaves(result.params):
        assert leaf.dtype == DTYPE
        np.testing.assert_allclose(leaf, 1.0, atol=distance)


@pytest.fixture(scope="module")
def saddle():
    """A saddle point between minima of -0.25, where the loss has fewer digits than the gradient."""
    point = jnp.asarray([0.1, 0.2], DTYPE)
    return HessianOperator.from_function(lambda x: (x[0] * x[1]) ** 2 + x[0] * x[1], point)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_converges_where_rounding_hides_what_a_step_gains(saddle, name):
    tolerance = 1e-8 if IN_FLOAT64 else 1e-5
    with saddle.derivatives.state.moved():
        result = minimize(saddle, METHODS[name](), max_steps=60, gradient_tolerance=tolerance)
    assert result.converged
    assert result.loss == pytest.approx(-0.25, rel=1e-6)
    assert float(jnp.prod(result.params)) == pytest.approx(-0.5, abs=10 * tolerance)


@pytest.fixture(scope="module")
def regression():
    """Logistic regression in batches of two sizes, and its optimum from SciPy."""
    x, signs, best, at = logistic_regression()

    def loss(params, batch):
        features, labels = batch
        margins = labels * (features @ params["slopes"] + params["offset"])
        penalty = jnp.sum(params["slopes"] ** 2) + params["offset"] ** 2
        return jnp.mean(jax.nn.softplus(-margins)) + L2 * penalty

    params = {"offset": jnp.zeros((), DTYPE), "slopes": jnp.zeros(30, DTYPE)}
    parts = (slice(i, i + 150) for i in range(0, 569, 150))
    data = [(x[part, :30].astype(DTYPE), signs[part].astype(DTYPE)) for part in parts]
    return HessianOperator.from_function(loss, params, data), best, at


@pytest.mark.parametrize("name", METHODS)
def test_every_method_meets_scipys_optimum_of_a_logistic_regression(regression, name):
    operator, best, at = regression
    # Rounding alone is a gradient of 1e-7 in float32, and the least curvature is 2 L2.
    tolerance, of_loss, distance = (1e-8, 1e-8, 1e-5) if IN_FLOAT64 else (1e-4, 1e-5, 5e-2)
    with operator.derivatives.state.moved():
        result = minimize(operator, METHODS[name](), max_steps=300, gradient_tolerance=tolerance)
    assert result.converged
    assert abs(result.loss - best) < of_loss
    np.testing.assert_allclose(result.params["slopes"], at[:30], atol=distance)
    np.testing.assert_allclose(result.params["offset"], at[30], atol=distance)


def test_the_pytree_stays_as_it_is_and_the_operator_is_at_the_minimizer():
    params = start()
    operator = HessianOperator.from_function(rosenbrock, params)
    result = minimize(operator, NewtonCG(), gradient_tolerance=1e-3)
    np.testing.assert_array_equal(params["x"], DTYPE(-1.2))
    true = float(rosenbrock(result.params))
    assert operator.loss() == result.loss == pytest.approx(true, rel=1e-2)
    # The Hessian at (1, 1), to what the minimizer is off.
    np.testing.assert_allclose(operator.to_dense(), [[200, -400], [-400, 802]], rtol=2e-2)
    again = minimize(operator, NewtonCG(), gradient_tolerance=1e-3)
    assert again.steps == ()
    for leaf, before in zip(*map(jax.tree.leaves, (again.params, result.params)), strict=True):
        np.testing.assert_array_equal(leaf, before)


def test_leaves_that_are_held_constant_come_back_as_they_were():
    def loss(params, batch):
        return jnp.mean((batch @ params["w"] - params["target"]) ** 2) + 0 * params["steps"]

    params = {"steps": 3, "target": jnp.asarray(2.0, DTYPE), "w": jnp.zeros(2, DTYPE)}
    operator = HessianOperator(params, loss, [np.eye(2, dtype=DTYPE)], variables="w")
    result = minimize(operator, NewtonCG(), gradient_tolerance=1e-5)
    np.testing.assert_allclose(result.params["w"], 2.0, rtol=1e-4)
    assert (int(result.params["steps"]), float(result.params["target"])) == (3, 2.0)


def test_an_interrupted_step_leaves_the_operator_at_the_last_accepted_one():
    operator = HessianOperator.from_function(rosenbrock, start())
    read, accepted = operator.derivatives.state.read, []

    def interrupt(step):
        accepted.append(read())
        if len(accepted) == 3:
            # The next trial of the line search is interrupted, with the weights on their way.
            operator.loss = interrupted

    def interrupted():
        if not np.array_equal(read(), accepted[-1]):
            raise KeyboardInterrupt
        return HessianOperator.loss(operator)

    with pytest.raises(KeyboardInterrupt):
        minimize(operator, NewtonCG(globalization="armijo"), callback=interrupt)
    np.testing.assert_array_equal(read(), accepted[-1])


def test_a_rejected_step_leaves_every_bit_of_the_weights():
    first = jnp.asarray([0.1, 0.3], DTYPE)

    def loss(x):
        # Whatever the model foretells, the loss is higher everywhere else.
        return x[0] + x[1] ** 2 + jnp.where(jnp.all(x == first), 0.0, 1e6)

    operator = HessianOperator.from_function(loss, first)
    result = minimize(operator, saddle_free(globalization="trust_region"), max_steps=1)
    assert result.steps[0].status is TrainingStatus.REJECTED
    assert np.asarray(result.params).tobytes() == np.asarray(first).tobytes()


def test_weights_move_from_what_was_held_by_a_sum_that_is_rounded_once():
    params = [jnp.asarray([1.5, 0.0078125], jnp.bfloat16), jnp.asarray([1.0, 1e8], jnp.float32)]
    operator = HessianOperator.from_function(lambda p: sum(jnp.sum(q**2.0) for q in p), params)
    weights = problem_of(operator).weights
    held = weights.hold()
    weights.move(held, np.ones(4))
    weights.move(held, np.array([0.0, 1.0, 0.25, 7.0]))
    half, single = operator.parameters.current()
    assert (half.dtype, single.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(half.astype(np.float32), [1.5, 1.0078125])
    np.testing.assert_array_equal(single, np.array([1.25, 1e8 + 7], np.float32))
    weights.restore(held)
    np.testing.assert_array_equal(operator.parameters.current()[1], params[1])


def test_the_parts_of_a_matrix_have_the_matrix_as_their_mean():
    x = np.random.default_rng(0).normal(size=(24, 3)).astype(DTYPE)

    def loss(w, batch):
        return jnp.mean((batch["x"] @ w) ** 4)

    for batches in ([{"x": x}], [{"x": x[i : i + 6]} for i in range(0, 24, 6)]):
        operator = HessianOperator.from_function(loss, jnp.ones(3, DTYPE), batches)
        parts = counted_parts(operator, Work(24.0), 0.1)
        assert [part.num_examples for part in parts] == [6.0] * 4
        mean = np.mean([part @ np.eye(3) for part in parts], axis=0)
        # d^2/dw^2 of the mean of (x'w)^4.
        true = 12 * x.T @ (x * ((x.sum(axis=1)) ** 2)[:, None]) / 24 + 0.1 * np.eye(3)
        np.testing.assert_allclose(mean, true, rtol=1e-12 if IN_FLOAT64 else 1e-5)
    assert len(rows_in_parts(functions, {"x": jnp.ones(3)}, 4)) == 1


@pytest.mark.skipif(IN_FLOAT64, reason="this is that process")
@pytest.mark.exhaustive
def test_so_it_is_in_float64():
    environment = os.environ | {"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"}
    options = ["-q", "-p", "no:xdist", "-p", "no:cacheprovider", "-o", "addopts="]
    command = [sys.executable, "-m", "pytest", *options, "--import-mode=importlib"]
    done = subprocess.run(
        [*command, str(Path(__file__))],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
