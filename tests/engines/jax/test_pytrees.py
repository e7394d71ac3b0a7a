"""Functions of pytrees: matrices against closed forms in NumPy, bad input, and what the check says.

Run in the precision that JAX is set to; test_in_float64.py runs this file again with float64.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_density import (
    FisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    PreflightError,
    estimate_spectrum,
    top_eigenpairs,
)

IN_FLOAT64 = jnp.zeros(()).dtype == np.float64
DTYPE = np.float64 if IN_FLOAT64 else np.float32
TOLERANCE = 1e-12 if IN_FLOAT64 else 1e-5
ENDS = ((0, 4), (4, 8), (8, 12), (12, 15))  # three equal batches, and a ragged last
RNG = np.random.default_rng(0)
X = RNG.normal(size=(15, 4)).astype(np.float32)
Y = RNG.integers(0, 2, 15)
WEIGHTS = RNG.normal(size=(4, 1)).astype(np.float32)
BIAS = np.float32(0.3)
PARAMS = {"layer": {"bias": BIAS, "kernel": WEIGHTS}, "steps": np.int32(3)}


def params(with_steps=False):
    """Parameters of a logistic regression as arrays of JAX, in two leaves."""
    layer = {name: jnp.asarray(value, DTYPE) for name, value in PARAMS["layer"].items()}
    return {"layer": layer} | ({"steps": jnp.asarray(3)} if with_steps else {})


def batches(ends=ENDS):
    return [{"x": X[a:b].astype(DTYPE), "y": Y[a:b]} for a, b in ends]


def predict(params, batch):
    layer = params["layer"]
    return batch["x"] @ layer["kernel"] + layer["bias"]


def losses(outputs, batch):
    z = outputs[:, 0]
    return jax.nn.softplus(z) - batch["y"] * z


def mean_loss(outputs, batch):
    return jnp.mean(losses(outputs, batch))


def loss(params, batch):
    return mean_loss(predict(params, batch), batch)


def design():
    """Rows of derivatives of the logits, float64: first the bias, then the kernel."""
    return np.concatenate([np.ones((15, 1)), X.astype(np.float64)], axis=1)


def probabilities():
    z = design() @ np.concatenate([[BIAS], WEIGHTS[:, 0]]).astype(np.float64)
    return 1 / (1 + np.exp(-z))


def hessian():
    p = probabilities()
    return design().T @ (design() * (p * (1 - p))[:, None]) / 15


def gradients():
    return design() * (probabilities() - Y)[:, None]


def close(found, true):
    return np.linalg.norm(found - true) <= TOLERANCE * np.linalg.norm(true)


# Matrices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"linearize": False}, {"memory_share": 0.0}])
def test_the_hessian_is_the_closed_form(options):
    operator = HessianOperator(params(), loss, batches(), **options)
    assert close(operator.to_dense(), hessian())
    assert close(operator.gradient(), gradients().mean(axis=0))
    p = probabilities()
    true = -np.mean(np.where(Y, np.log(p), np.log(1 - p)))
    assert operator.loss() == pytest.approx(true, rel=TOLERANCE)
    product, gradient = operator.product_and_gradient(np.arange(5.0))
    assert close(product, hessian() @ np.arange(5.0))
    assert close(gradient, gradients().mean(axis=0))


def test_equal_batches_are_taken_together_and_the_ragged_last_apart():
    operator = HessianOperator(params(), loss, batches())
    operator @ np.ones(5)
    assert len(operator.sweep.cache) == 2
    assert operator.num_traces == 2
    operator @ np.arange(5.0)
    assert operator.num_traces == 2


def test_gauss_newton_and_fisher_matrices():
    ggn = GaussNewtonOperator(params(), (predict, mean_loss), batches())
    assert close(ggn.to_dense(), hessian())
    fisher = FisherOperator(params(), (predict, losses), batches(), kind="empirical")
    assert close(fisher.to_dense(), gradients().T @ gradients() / 15)


def test_a_sum_is_not_divided():
    def summed(params, batch):
        return jnp.sum(losses(predict(params, batch), batch))

    operator = HessianOperator(params(), summed, batches(), reduction="sum")
    assert close(operator.to_dense(), 15 * hessian())


def test_from_function_with_and_without_data():
    cubic = HessianOperator.from_function(lambda x: 2 * x[0] ** 3 * x[1] ** 3, jnp.ones(2, DTYPE))
    assert close(cubic.to_dense(), np.array([[12.0, 18.0], [18.0, 12.0]]))
    of_data = HessianOperator.from_function(loss, params(), batches())
    assert close(of_data.to_dense(), hessian())
    with pytest.raises(ValueError, match="reduction must be"):
        HessianOperator.from_function(loss, params(), batches(), reduction="average")


def test_a_block_is_its_vectors():
    operator = HessianOperator(params(), loss, batches())
    block = RNG.normal(size=(5, 20))  # in two chunks
    assert close(operator @ block, hessian() @ block)


def test_algorithms_take_it():
    operator = HessianOperator(params(), loss, batches())
    values = np.linalg.eigvalsh(hessian())
    largest = top_eigenpairs(operator, 2).values
    np.testing.assert_allclose(np.sort(largest), values[-2:], rtol=10 * TOLERANCE)
    spectrum = estimate_spectrum(operator, order=5, num_draws=1, seed=0)
    assert spectrum.nodes.max() == pytest.approx(values[-1], rel=10 * TOLERANCE)


# Parameters --------------------------------------------------------------------------------------


def test_names_are_paths_and_choose_leaves():
    operator = HessianOperator(params(), loss, batches())
    assert operator.parameters.names == ("layer/bias", "layer/kernel")
    kernel = HessianOperator(params(), loss, batches(), variables="kernel")
    assert close(kernel.to_dense(), hessian()[1:, 1:])
    bias = HessianOperator(params(), loss, batches(), variables=re.compile("bias$"))
    assert close(bias.to_dense(), hessian()[:1, :1])
    with pytest.raises(ValueError, match=r"no layer or trainable variable is named 'head'.*kernel"):
        HessianOperator(params(), loss, batches(), variables="head")


def test_integers_are_held_constant_where_leaves_are_chosen():
    with pytest.raises(ValueError, match=r"steps \(int32\)|steps \(int64\)"):
        HessianOperator(params(with_steps=True), loss, batches())
    operator = HessianOperator(params(with_steps=True), loss, batches(), variables="layer")
    assert close(operator.to_dense(), hessian())


def bad_params():
    kernel = jnp.asarray(WEIGHTS, DTYPE)
    yield {"steps": jnp.asarray(3)}, ValueError, "no floating-point leaf.*steps"
    yield {"kernel": kernel, "act": jax.nn.relu}, TypeError, "leaf 'act' of params is a"
    if not IN_FLOAT64:
        wide = {"kernel": kernel, "wide": np.zeros(3)}
        yield wide, ValueError, "'wide' is float64.*jax_enable_x64"


@pytest.mark.parametrize(("tree", "error", "message"), list(bad_params()))
def test_bad_params(tree, error, message):
    with pytest.raises(error, match=message):
        HessianOperator(tree, lambda params, batch: 0.0, batches())


def bad_losses():
    yield lambda p, b: losses(predict(p, b), b), ValueError, "must return a scalar, got shape"
    yield lambda p, b: (loss(p, b), {}), TypeError, "floating-point tensor, got tuple"
    yield lambda p, b: jnp.asarray(3), TypeError, "floating-point tensor, got int"
    yield "mse", TypeError, "the loss of a pytree of parameters must be a function"


@pytest.mark.parametrize(("function", "error", "message"), list(bad_losses()))
def test_bad_losses(function, error, message):
    with pytest.raises(error, match=message):
        HessianOperator(params(), function, batches())


def test_a_loss_that_does_not_depend_on_the_leaves():
    operator = HessianOperator(params(), lambda p, b: jnp.mean(b["x"]), batches())
    with pytest.raises(ValueError, match="does not depend on the variables chosen"):
        operator @ np.ones(5)


def test_outputs_and_loss_have_to_be_apart():
    with pytest.raises(ValueError, match="cannot be separated from its loss"):
        GaussNewtonOperator(params(), loss, batches())
    with pytest.raises(ValueError, match="one value for each example"):
        FisherOperator(params(), (predict, mean_loss), batches(), kind="empirical")
    with pytest.raises(ValueError, match="needs the distribution of the labels"):
        FisherOperator(params(), (predict, mean_loss), batches(), kind="type2")


def test_a_loss_that_reads_leaves_itself_is_told_of():
    def reads(outputs, batch):
        return mean_loss(outputs, batch) + 0.0 * closed["layer"]["bias"]

    closed = params()
    GaussNewtonOperator(closed, (predict, reads), batches())  # of constants nothing is said

    def of_both(params, batch):
        return predict(params, batch), params["layer"]["kernel"]

    ggn = GaussNewtonOperator(
        params(), (of_both, lambda z, b: mean_loss(z[0], b) + jnp.sum(z[1] ** 2)), batches()
    )
    penalty = np.diag([0.0, 2, 2, 2, 2])
    assert close(ggn.to_dense(), hessian() + penalty)


# Data --------------------------------------------------------------------------------------------


def test_data_of_other_forms():
    pairs = [(batch["x"], batch["y"]) for batch in batches()]

    def of_pair(params, batch):
        return loss(params, {"x": batch[0], "y": batch[1]})

    for dataset in (pairs, lambda: iter(pairs), [*pairs, (X[:0].astype(DTYPE), Y[:0])]):
        assert close(HessianOperator(params(), of_pair, dataset).to_dense(), hessian())


def bad_data():
    yield iter(batches()), ValueError, "used up after one pass"
    yield [], ValueError, "empty"
    yield batches()[0], TypeError, "got a single dict"
    yield [{"x": X, "y": Y[:3]}], ValueError, "examples of a batch cannot be counted"
    yield [{"x": X, "y": np.array(["a"] * 15)}], TypeError, "no array of numbers"


@pytest.mark.parametrize(("dataset", "error", "message"), list(bad_data()))
def test_bad_data(dataset, error, message):
    with pytest.raises(error, match=message):
        HessianOperator(params(), loss, dataset)


def test_nan_names_its_batch():
    data = batches()
    data[2]["x"] = data[2]["x"].copy()
    data[2]["x"][1, 1] = np.nan
    operator = HessianOperator(params(), loss, data)
    with pytest.raises(FloatingPointError, match=r"product is not finite in batch 2.*'x'"):
        operator @ np.ones(5)


def test_sums_over_batches_are_those_of_float64():
    """Products of a thousand batches that cancel: a plain float32 sum is off by more."""
    scales = np.concatenate([RNG.normal(size=999), [1e-3]]).astype(DTYPE)
    scales = np.concatenate([scales, -scales[:-1]])
    RNG.shuffle(scales)
    operator = HessianOperator.from_function(
        lambda p, s: 0.5 * jnp.sum(s * p**2),
        jnp.ones(1, DTYPE),
        list(scales[:, None]),
        reduction="sum",
    )
    product = (operator @ np.ones(1))[0]
    true = np.sum(scales.astype(np.float64))
    assert product == pytest.approx(true, rel=1e-6)
    if not IN_FLOAT64:
        plain = jnp.float32(0)
        for scale in scales:
            plain = plain + scale
        assert abs(float(plain) - true) > 1e-6 * abs(true)


# The check ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [HessianOperator, GaussNewtonOperator, FisherOperator])
def test_what_is_right_is_sound(kind):
    options = {"kind": "empirical"} if kind is FisherOperator else {}
    pair = (predict, losses if kind is FisherOperator else mean_loss)
    function = loss if kind is HessianOperator else pair
    report = kind(params(), function, batches(), **options).check()
    assert report.verdict == "sound", report
    assert {check.name: check.status for check in report.checks}["linearized"] == "passed"


def test_a_gradient_that_is_stopped_on_purpose_is_a_doubt():
    def stopped(params, batch):
        z = predict(params, batch)
        return mean_loss(z, batch) + jnp.mean(jax.lax.stop_gradient(z) * z)

    with pytest.warns(UserWarning, match="stops gradients itself"):
        report = HessianOperator(params(), stopped, batches()).check()
    checks = {check.name: check for check in report.checks}
    assert checks["surrogate"].status == "doubtful"
    assert "test_pytrees.py" in checks["surrogate"].message
    assert checks["derivative"].status == "passed"


def test_a_largest_entry_that_a_library_stops_is_none():
    def of_logits(params, batch):
        return jnp.mean(jax.nn.logsumexp(predict(params, batch) * jnp.arange(3.0), axis=-1))

    report = HessianOperator(params(), of_logits, batches()).check()
    assert report.verdict == "sound", report


def test_a_second_derivative_that_is_missing_fails():
    @jax.custom_jvp
    def square(x):
        return x**2

    # The slope is held constant where it is differentiated again.
    square.defjvp(lambda x, t: (x[0] ** 2, jax.lax.stop_gradient(2 * x[0]) * t[0]))

    def missing(params, batch):
        return jnp.mean(square(predict(params, batch)) ** 2)

    with pytest.raises(PreflightError, match="second derivative that is wrong or missing"):
        HessianOperator(params(), missing, batches()).check()


def test_a_loss_that_couples_examples_fails():
    def coupled(params, batch):
        z = predict(params, batch)
        return jnp.var(z) ** 2

    with pytest.raises(PreflightError, match="halves changes its product"):
        HessianOperator(params(), coupled, batches()).check()


def test_kinks_are_no_fault():
    def kinked(params, batch):
        z = predict(params, batch)
        h = jax.nn.relu(jnp.concatenate([z, -z, 0.01 * z], axis=1))
        return jnp.mean(jnp.max(h, axis=1) ** 3 + jnp.abs(z[:, 0]) ** 3)

    report = HessianOperator(params(), kinked, batches()).check()
    assert report.verdict == "sound", report


# Identity ----------------------------------------------------------------------------------------


def test_a_fingerprint_is_that_of_the_matrix():
    first = HessianOperator(params(), loss, batches()).fingerprint()
    assert HessianOperator(params(), loss, batches()).fingerprint() == first
    moved = jax.tree.map(lambda leaf: leaf + 1, params())
    assert HessianOperator(moved, loss, batches()).fingerprint() != first
    other = batches()[:3]
    assert HessianOperator(params(), loss, other).fingerprint() != first

    def another(params, batch):
        return 2 * loss(params, batch)

    assert HessianOperator(params(), another, batches()).fingerprint()["graph"] != first["graph"]


def test_what_a_checkpoint_has_is_gone_on_with(tmp_path):
    def spectrum(order):
        operator = HessianOperator(params(), loss, batches())
        return estimate_spectrum(operator, order=order, num_draws=1, checkpoint=tmp_path)

    spectrum(2)
    gone_on = spectrum(4)
    whole = estimate_spectrum(HessianOperator(params(), loss, batches()), order=4, num_draws=1)
    np.testing.assert_array_equal(gone_on.nodes, whole.nodes)


def test_products_are_at_full_precision_whatever_the_default_is():
    operator = HessianOperator(params(), loss, batches())
    with jax.default_matmul_precision("bfloat16"):
        functions = operator.derivatives.functions_of_loss
        jaxpr = functions.jaxpr(operator.derivatives.functions.to_tensors(batches()[0]), 4.0).jaxpr
    dots = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    assert dots
    highest = jax.lax.Precision.HIGHEST
    assert all(eqn.params["precision"] == (highest, highest) for eqn in dots)


@pytest.mark.parametrize(
    "kinked",
    [
        jax.nn.relu,
        jax.nn.relu6,
        jax.nn.leaky_relu,
        jnp.abs,
        lambda x: jnp.maximum(x, 0.0),
        lambda x: jnp.maximum(0.0, x),
        lambda x: jnp.minimum(0.5 * x, x),
        lambda x: jnp.maximum(x, x),
    ],
    ids=["relu", "relu6", "leaky", "abs", "max", "max of zero", "min", "max of itself"],
)
def test_weights_that_are_on_a_kink_are_sound(kinked):
    """Layers behind dead units have zeros before their rectifiers."""
    network = {"kernel": jnp.ones((4, 3), DTYPE), "bias": jnp.zeros(3, DTYPE)}

    def of_dead_units(params, batch):
        hidden = kinked(jnp.zeros((len(batch["x"]), 4), DTYPE) @ params["kernel"] + params["bias"])
        alive = kinked(batch["x"] @ params["kernel"] + params["bias"] + 3)
        return jnp.mean((hidden.sum(1) + alive.sum(1) - batch["y"]) ** 2)

    report = HessianOperator(network, of_dead_units, batches()).check()
    assert report.verdict == "sound"
