import re
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import classification, mlp, split
from scipy.optimize import brentq

import spectral_density as sd
from spectral_density.analysis.crossing import CrossingStatus, Line, search_crossing

RNG = np.random.default_rng(0)
N = 5
ROOT = RNG.normal(size=(8, N))
HESSIAN = ROOT.T @ ROOT
GRADIENT = RNG.normal(size=N)


@cache
def quadratic():
    """An operator of g'w + w'Hw / 2, its variable, and where it begins: w = 0."""
    variable = tf.Variable(np.zeros(N))

    def loss(w):
        return (
            7.0
            + tf.tensordot(GRADIENT, w, 1)
            + tf.tensordot(w, tf.linalg.matvec(HESSIAN, w), 1) / 2
        )

    return sd.HessianOperator.from_function(loss, variable), variable


def closed_form(step, rate):
    """Return c and the sharpness of a step from zero."""
    multiple = -2 * GRADIENT @ step / (step @ HESSIAN @ step)
    return multiple, 2 / (multiple * rate)


# Quadratics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "multiple", [0.02, 0.3, 0.97, 1.0, 1.03, 2.0, 2.1, 7.0, 40.0, 100.0, 900.0]
)
def test_along_a_gradient_step_it_is_the_closed_form(multiple):
    operator, variable = quadratic()
    curvature = GRADIENT @ HESSIAN @ GRADIENT / (GRADIENT @ GRADIENT)
    rate = 2 / (multiple * curvature)
    step = -rate * GRADIENT
    assert closed_form(step, rate)[0] == pytest.approx(multiple)
    variable.assign(step)
    found = sd.critical_sharpness(operator, step, rate)
    variable.assign(np.zeros(N))
    assert found.status is CrossingStatus.CROSSING
    assert found.multiple == pytest.approx(multiple, rel=1e-6)
    assert found.value == pytest.approx(curvature, rel=1e-6)
    assert found.critical_learning_rate == pytest.approx(2 / curvature, rel=1e-6)
    assert found.bracket[0] <= multiple * (1 + 1e-9)
    assert found.bracket[1] >= multiple * (1 - 1e-9)
    assert len(found.losses) <= 7


def test_any_step_and_either_side_of_it():
    operator, variable = quadratic()
    step = -np.linalg.solve(HESSIAN + np.eye(N), GRADIENT) * 0.3
    multiple, value = closed_form(step, 0.1)
    before = sd.critical_sharpness(operator, step, 0.1, after_step=False)
    assert before.value == pytest.approx(value, rel=1e-6)
    variable.assign(step)
    after = sd.critical_sharpness(operator, [step], 0.1)
    variable.assign(np.zeros(N))
    assert after.multiple == pytest.approx(multiple, rel=1e-6)


def test_the_weights_are_what_they_were():
    operator, variable = quadratic()
    values = np.float64([0.1, 1 / 3, -2e5, 7e-9, 1.0])
    variable.assign(values)
    sd.critical_sharpness(operator, np.ones(N), 0.1)
    np.testing.assert_array_equal(variable.numpy(), values)
    variable.assign(np.zeros(N))


# Other losses, by brute force --------------------------------------------------------------------

# What seven losses do not settle: the bracket says so.
SLOW = {"logarithm": 0.3, "overflow": 0.2}
WIDE = ("logarithm",)

LOSSES = {
    "quartic": lambda c: (c - 1.7) ** 4 + 0.1 * c,
    "flat valley": lambda c: -np.tanh(3 * c) + 0.02 * c**2,
    "steep wall": lambda c: -c + np.exp(2 * (c - 5)),
    "cosine": lambda c: -np.sin(0.8 * c),
    "narrow valley": lambda c: -0.01 * c + 30 * c**2,
    "concave first": lambda c: np.cos(0.3 * c) - 0.5 * c + 0.02 * c**3,
    "logarithm": lambda c: -np.log1p(c) + 0.1 * c,
    "overflow": lambda c: -c if c < 11.0 else np.inf,
    "cusp": lambda c: abs(c - 2.2) - 0.1 * c,
}


class Stub:
    """A line of losses in place of a network's."""

    def __init__(self, function):
        self.function, self.tried = function, []

    def __call__(self, multiple):
        self.tried.append(multiple)
        return float(self.function(multiple))


def search(function, most=1000.0, rounding=1e-15):
    stub = Stub(function)
    line = Line(stub, rounding)
    return search_crossing(line, most), line, stub


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_first_crossing_that_a_fine_search_finds(name):
    function = LOSSES[name]
    grid = np.geomspace(1e-4, 64, 50_000)
    above = np.array([function(c) > function(0.0) for c in grid])
    first = int(np.argmax(above))
    assert above.any()
    assert first
    true = (
        grid[first]
        if name == "overflow"
        else brentq(lambda c: function(c) - function(0.0), grid[first - 1], grid[first])
    )
    status, line, stub = search(function)
    is_wide = name in WIDE
    assert status is (CrossingStatus.NOT_NARROWED if is_wide else CrossingStatus.CROSSING)
    assert (line.high > 2 * line.low) == is_wide
    assert len(stub.tried) <= 7
    assert line.low <= true <= line.high
    assert line.crossing() == pytest.approx(true, rel=SLOW.get(name, 0.06))


@pytest.mark.parametrize(
    ("function", "status"),
    [
        (lambda c: c + c**2, CrossingStatus.RISES_AT_ONCE),
        (np.sqrt, CrossingStatus.RISES_AT_ONCE),
        (lambda c: -c, CrossingStatus.NEVER_RISES),
        (lambda c: -c + c**2 / 1001, CrossingStatus.NEVER_RISES),
        (lambda c: 1.0 + 0 * c, CrossingStatus.UNRESOLVED),
        (lambda c: 1.0 + 1e-17 * c**2, CrossingStatus.UNRESOLVED),
    ],
)
def test_where_there_is_no_crossing_the_status_says_so(function, status):
    found, _, stub = search(function)
    assert found is status
    assert len(stub.tried) <= 7


SINGLE = np.finfo(np.float32).eps


def in_single_precision(multiple, fall, start=5.0):
    """A parabola in float32 that is back at its start at a multiple, and falls by a share of it."""
    scale = np.float32(4 * fall * start / multiple**2)

    def loss(c):
        c = np.float32(c)
        return np.float32(start) + scale * (c * c - np.float32(multiple) * c)

    return loss


@pytest.mark.parametrize("fall", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_the_bracket_has_the_crossing_however_small_the_fall_is(fall):
    found = set()
    for multiple in np.geomspace(0.01, 300, 150):
        status, line, stub = search(in_single_precision(multiple, fall), rounding=8 * SINGLE)
        assert len(stub.tried) <= 7
        assert line.low <= multiple * (1 + 1e-6), multiple
        assert line.high >= multiple * (1 - 1e-6), multiple
        if status is CrossingStatus.CROSSING:
            assert 0 < line.high <= 2 * line.low
            assert line.crossing() == pytest.approx(multiple, rel=max(1e-5, 1e-7 / fall))
        found.add(status)
    if fall > 1e-4:
        assert found == {CrossingStatus.CROSSING}
    if fall < 1e-5:
        assert CrossingStatus.UNRESOLVED in found


def test_what_rounding_hides_is_no_number_and_has_a_bracket():
    jnp = pytest.importorskip("jax.numpy")
    single = jnp.float32

    def loss(w):
        return single(5.0) + single(1e-5) * (w[0] ** 2 - single(1.4) * w[0])

    operator = sd.HessianOperator.from_function(loss, jnp.zeros(1, single))
    found = sd.critical_sharpness(operator, np.ones(1), 0.1, after_step=False)
    assert found.status is CrossingStatus.UNRESOLVED
    assert not found.converged
    assert np.isnan([found.value, found.multiple]).all()
    assert found.bracket[0] <= 1.4 <= found.bracket[1]
    assert "bracket 0 to" in str(found)


def test_of_some_variables_it_says_that_the_others_stay():
    x, y = classification()
    operator = sd.HessianOperator(mlp("float64"), SPARSE, split((x, y)), variables=["logits"])
    step = -0.3 * operator.gradient()
    found = sd.critical_sharpness(operator, step, 0.3, after_step=False)
    assert found.num_moved == operator.shape[0]
    assert f"{found.num_moved} parameters moved" in str(found)
    assert found.losses[0] == operator.loss()


def test_a_result_without_a_number_says_why():
    operator, _ = quadratic()
    uphill = sd.critical_sharpness(operator, 0.1 * GRADIENT, 0.1, after_step=False)
    assert uphill.status is CrossingStatus.RISES_AT_ONCE
    assert np.isnan([uphill.value, uphill.multiple]).all()
    assert uphill.bracket[0] == 0.0  # nowhere below
    assert not uphill.converged
    assert "no critical sharpness" in str(uphill)
    assert "rises from the start" in str(uphill)
    nothing = sd.critical_sharpness(operator, np.zeros(N), 0.1)
    assert nothing.status is CrossingStatus.ZERO_STEP
    assert np.isnan(nothing.value)
    assert str(nothing) == f"no critical sharpness: {CrossingStatus.ZERO_STEP.message}"
    short = sd.critical_sharpness(
        operator, -1e-3 * GRADIENT, 1e-3, after_step=False, max_multiple=3
    )
    assert short.status is CrossingStatus.NEVER_RISES
    assert short.multiples.max() == 3


def test_under_jax_it_is_the_closed_form_too():
    jnp = pytest.importorskip("jax.numpy")
    matrix, gradient = HESSIAN.astype(np.float32), GRADIENT.astype(np.float32)

    def loss(w):
        return jnp.dot(gradient, w) + w @ matrix @ w / 2

    start = jnp.zeros(N)
    operator = sd.HessianOperator.from_function(loss, start)
    curvature = GRADIENT @ HESSIAN @ GRADIENT / (GRADIENT @ GRADIENT)
    found = sd.critical_sharpness(operator, -0.01 * GRADIENT, 0.01, after_step=False)
    assert found.value == pytest.approx(curvature, rel=1e-3)
    assert operator.loss() == 0.0


# Networks ----------------------------------------------------------------------------------------

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def test_of_a_network_it_is_what_a_line_search_finds_on_the_data_named():
    x, y = classification()
    model = mlp("float64")
    operator = sd.HessianOperator(model, SPARSE, split((x, y)))
    gradient = operator.gradient()
    found = sd.critical_sharpness(operator, -0.3 * gradient, 0.3, after_step=False)
    assert found.data == "13 examples in 3 batches"
    assert "13 examples in 3 batches" in str(found)
    here = operator.loss()

    def rise(multiple):
        with operator.derivatives.state.moved() as move:
            move(-0.3 * multiple * gradient)
            return operator.loss() - here

    true = brentq(rise, found.multiple / 2, found.multiple * 2)
    assert found.multiple == pytest.approx(true, rel=5e-3)
    other = [(x[:6], y[:6])]
    elsewhere = sd.critical_sharpness(
        operator, -0.3 * gradient, 0.3, after_step=False, dataset=other
    )
    alone = sd.critical_sharpness(
        sd.HessianOperator(model, SPARSE, other), -0.3 * gradient, 0.3, after_step=False
    )
    assert elsewhere.data == "6 examples in 1 batch"
    assert elsewhere.value == pytest.approx(alone.value)
    assert elsewhere.value != pytest.approx(found.value, rel=1e-3)


@pytest.mark.parametrize(
    ("step", "options", "error", "message"),
    [
        (np.ones(3), {}, ValueError, re.escape("shape (5,), or is one array")),
        (np.full(N, np.nan), {}, ValueError, "NaN or infinity"),
        ({"w": np.ones(N)}, {}, TypeError, r"a dict of dtype object: .* jax.tree.leaves\(step\)"),
        ([{"w": np.ones(N)}], {}, TypeError, "a dict of dtype object"),
        (np.ones(N) * 1j, {}, TypeError, "a ndarray of dtype complex128"),
        ("uphill", {}, TypeError, "a str of dtype"),
        (np.ones(N), {"learning_rate": 0.0}, ValueError, "learning_rate must be greater than 0"),
        (np.ones(N), {"max_multiple": 1.0}, ValueError, "max_multiple must be greater than 1"),
    ],
)
def test_bad_input_is_refused(step, options, error, message):
    with pytest.raises(error, match=message):
        sd.critical_sharpness(quadratic()[0], step, **{"learning_rate": 0.1, **options})


def test_only_operators_with_weights_are_taken():
    with pytest.raises(TypeError, match="CurvatureOperator"):
        sd.critical_sharpness(np.eye(3), np.ones(3), 0.1)


def test_a_start_that_is_not_finite_is_refused():
    variable = tf.Variable(np.zeros(2))
    operator = sd.HessianOperator.from_function(lambda w: tf.reduce_sum(w**2), variable)
    variable.assign([np.inf, 0.0])
    with pytest.raises(FloatingPointError, match=r"where the step begins|not finite"):
        sd.critical_sharpness(operator, np.ones(2), 0.1, after_step=False)


def test_a_copy_of_the_weights_is_foreseen(monkeypatch):
    monkeypatch.setattr("spectral_density.linalg.memory.free_memory", lambda: 100)
    with pytest.raises(MemoryError, match="a copy of the weights"):
        sd.critical_sharpness(quadratic()[0], np.ones(N), 0.1)
