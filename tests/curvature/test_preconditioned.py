import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from device_operators import jax_operator, tensorflow_operator
from models import CASES, classification, mlp, relative_error, split, truth, vectors
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, eigsh

import spectral_density as sd
from spectral_density.curvature.preconditioned import PreconditionedOperator
from spectral_density.engines.update_rule import ConstantRule

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
N = 12


def symmetric(n=N, seed=0):
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a + a.T


def positive(n=N, seed=1):
    return np.exp(np.random.default_rng(seed).normal(size=n))


def between_roots(matrix, diagonal):
    root = np.sqrt(diagonal)
    return matrix / np.outer(root, root)


# Any matrix --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "sparse", "operator"])
def test_products_are_those_of_the_dense_matrix(kind):
    a, p = symmetric(), positive()
    operator = {
        "array": a,
        "sparse": csr_array(a),
        "operator": LinearOperator(a.shape, matvec=lambda v: a @ v, matmat=lambda v: a @ v),
    }[kind]
    found, dense = sd.preconditioned(operator, p), between_roots(a, p)
    v = vectors(N, 3)
    for product, expected in [
        (found @ v[:, 0], dense @ v[:, 0]),
        (found @ v, dense @ v),
        (found.T @ v, dense @ v),
        (found.to_dense(), dense),
        (found.matmat(np.zeros((N, 0))), np.zeros((N, 0))),
    ]:
        np.testing.assert_allclose(product, expected, rtol=1e-12, atol=1e-12)


def test_eigenvalues_are_those_of_the_generalized_problem():
    a, p = symmetric(), positive()
    generalized = np.sort(np.linalg.eigvals(a / p[:, None]).real)
    found = sd.preconditioned(a, p)
    pairs = sd.top_eigenpairs(found, 3)
    largest = generalized[np.argsort(-np.abs(generalized))[:3]]
    np.testing.assert_allclose(pairs.values, largest, rtol=1e-8)
    np.testing.assert_allclose(eigsh(found, 1)[0], largest[:1], rtol=1e-8)
    spectrum = sd.estimate_spectrum(found, N, 1)
    np.testing.assert_allclose(np.sort(spectrum.nodes[0]), generalized, rtol=1e-8)
    estimate = sd.trace(found)
    assert abs(estimate.value - generalized.sum()) <= 5 * estimate.standard_error + 1e-8


@pytest.mark.parametrize(
    ("make", "tolerance"), [(tensorflow_operator, 1e-12), (jax_operator, 1e-5)]
)
def test_vectors_of_a_device_stay_there(make, tolerance):
    a, p = symmetric(), positive()
    operator = make(a)
    found, dense = sd.preconditioned(operator, p), between_roots(a, p)
    rows = operator.vectors.to_engine(vectors(N, 3).T)
    products = found.products_of(rows)
    assert type(products) is type(rows)
    np.testing.assert_allclose(
        products, np.asarray(rows) @ dense, rtol=tolerance, atol=10 * tolerance
    )
    pairs = sd.top_eigenpairs(found, 1)
    largest = max(np.linalg.eigvalsh(dense), key=abs)
    np.testing.assert_allclose(pairs.values, [largest], rtol=max(tolerance, 1e-8))
    assert operator.num_products > 3


@pytest.mark.parametrize(
    ("diagonal", "message"),
    [
        (np.zeros(N), "P must be positive, and 12 of its 12 entries are not"),
        (np.where(np.arange(N) == 5, -2.0, 1.0), r"1 of its 12 entries.*entry 5 is -2"),
        (np.where(np.arange(N) == 3, np.nan, 1.0), "entry 3 is nan"),
        (np.full(N, np.inf), "entry 0 is inf"),
        (np.ones(N - 1), re.escape("shape (12,), one entry for each parameter, got (11,)")),
        (2.0, re.escape("got ()")),
        (np.ones(N) * 1j, "real numbers, got dtype complex128"),
        ([np.ones(4), np.ones(8)], "does not say which variables"),
    ],
)
def test_what_is_no_positive_diagonal_is_refused(diagonal, message):
    with pytest.raises(ValueError, match=message):
        sd.preconditioned(symmetric(), diagonal)


def test_a_matrix_without_names_takes_p_by_hand_alone():
    optimizer = keras.optimizers.SGD(0.1)
    with pytest.raises(TypeError, match=r"does not say which variables.*pass P by hand"):
        sd.preconditioned(symmetric(), optimizer)


def test_p_alone_has_no_threshold():
    with pytest.raises(ValueError, match="P alone has no learning rate"):
        sd.stability_threshold(positive())


# Of a model --------------------------------------------------------------------------------------


def optimizer_with_state(model, dtype):
    """Return an Adam that has made steps with gradients drawn at random, and its P.

    P by step = -eta P^-1 m, from a step off weights of zero, whose difference is not rounded.
    """
    optimizer = keras.optimizers.Adam(0.1, epsilon=1e-3)
    variables = model.trainable_variables
    rng = np.random.default_rng(5)
    before = [np.asarray(v.value) for v in variables]
    for step in range(3):
        if step == 2:
            for slot in optimizer.variables:
                if "momentum" in slot.path:
                    slot.assign(tf.zeros(slot.shape, slot.dtype))
            for variable in variables:
                variable.assign(tf.zeros(variable.shape, variable.dtype))
        gradients = [rng.normal(size=v.shape).astype(dtype) + 0.1 for v in variables]
        optimizer.apply([tf.constant(g) for g in gradients], variables)
    rate = float(np.asarray(optimizer.learning_rate.value))
    means = [(1 - optimizer.beta_1) * gradient.astype(np.float64) for gradient in gradients]
    steps = [np.asarray(v.value, np.float64) for v in variables]
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    parts = [-rate * m / s for m, s in zip(means, steps, strict=True)]
    return optimizer, np.concatenate([part.ravel() for part in parts])


SOME = ["mlp", "shared layer, two inputs", "frozen layer"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            marks=() if name in SOME and dtype == "float32" else pytest.mark.exhaustive,
        )
        for name, case in CASES.items()
        for dtype in case.dtypes
    ],
)
def test_the_operator_is_the_dense_hessian_between_the_roots_of_p(name, dtype):
    case = CASES[name]
    model = case.build(dtype)
    model.compile(loss=case.loss(), loss_weights=case.loss_weights)
    optimizer, diagonal = optimizer_with_state(model, dtype)
    operator = sd.HessianOperator(model, None, split(case.data(), case.splits))
    expected = between_roots(truth(name).hessian, diagonal)
    found = sd.preconditioned(operator, optimizer).to_dense()
    if expected.any():
        assert relative_error(found, expected) < (1e-5 if dtype == "float32" else 1e-10)
    else:
        np.testing.assert_array_equal(found, 0.0)


def small():
    x, y = classification()
    return sd.HessianOperator(mlp(), SPARSE, split((x, y)))


def test_it_has_of_the_matrix_what_algorithms_ask_for(tmp_path):
    hessian = small()
    n = hessian.shape[0]
    p = positive(n)
    found = sd.preconditioned(hessian, hessian.parameters.unflatten(p))
    np.testing.assert_allclose(found.diagonal, p)
    assert found.parameters is hessian.parameters
    assert found.product_dtype == np.float32
    assert found.product_error == 0.0
    assert found.loss() == hessian.loss()
    np.testing.assert_allclose(found.gradient(), hessian.gradient() / np.sqrt(p), rtol=1e-12)
    assert found.check().verdict == "sound"
    assert repr(found) == f"PreconditionedOperator({hessian!r}, P given by hand)"
    spectrum = sd.estimate_spectrum(found, 4, 1, checkpoint=tmp_path / "run")
    assert spectrum.model_state == hessian.model_state().numbers()
    assert "PreconditionedOperator" in spectrum.description
    again = sd.estimate_spectrum(found, 4, 1, checkpoint=tmp_path / "run")
    np.testing.assert_array_equal(again.alpha, spectrum.alpha)
    other = sd.preconditioned(hessian, 2 * p)
    with pytest.raises(sd.CheckpointError, match="preconditioner"):
        sd.estimate_spectrum(other, 4, 1, checkpoint=tmp_path / "run")
    layers = sd.layer_operators(found)
    assert list(layers) == ["hidden", "logits"]


def test_a_checkpoint_of_the_matrix_without_p_is_another(tmp_path):
    hessian = small()
    sd.estimate_spectrum(hessian, 2, 1, checkpoint=tmp_path)
    with pytest.raises(sd.CheckpointError):
        sd.estimate_spectrum(
            sd.preconditioned(hessian, np.ones(hessian.shape[0])), 2, 1, checkpoint=tmp_path
        )


def test_after_another_step_the_gradient_is_refused_as_products_are():
    hessian = small()

    class Rule(ConstantRule):
        num_steps = 3

    found = PreconditionedOperator(hessian, Rule(np.ones(hessian.shape[0])))
    found.gradient()
    Rule.num_steps = 4
    for use in (found.gradient, lambda: found @ np.ones(found.shape[0])):
        with pytest.raises(ValueError, match=r"P is that of step 3, and .* is at step 4"):
            use()


def test_parts_of_a_sum_are_preconditioned_one_by_one():
    model, data = mlp(), split(classification())
    parts = [kind(model, SPARSE, data) for kind in (sd.HessianOperator, sd.GaussNewtonOperator)]
    p = positive(parts[0].shape[0])
    first, second = (sd.preconditioned(part, p) for part in parts)
    v = vectors(len(p), 2)
    expected = (parts[0] @ (v / np.sqrt(p)[:, None]) - parts[1] @ (v / np.sqrt(p)[:, None])) / (
        np.sqrt(p)[:, None]
    )
    np.testing.assert_allclose((first - second) @ v, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(TypeError, match="precondition the parts of a sum one by one"):
        sd.preconditioned(parts[0] - parts[1], keras.optimizers.SGD(0.1))


def test_tf_keras_optimizers_are_read_too():
    tf_keras = pytest.importorskip("tf_keras")
    model = tf_keras.Sequential([tf_keras.layers.Input((3,)), tf_keras.layers.Dense(2)])
    optimizer = tf_keras.optimizers.Adam(0.5, epsilon=1.0, jit_compile=False)
    model.compile(optimizer, "mse")
    for variable in model.trainable_variables:
        variable.assign(tf.zeros_like(variable))
    gradients = [tf.ones_like(v) * (i + 0.5) for i, v in enumerate(model.trainable_variables)]
    optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
    # Of one step m = (1 - b1) g, and the step is -eta P^-1 m.
    steps = np.concatenate([v.numpy().ravel() for v in model.trainable_variables])
    means = np.concatenate([0.1 * g.numpy().ravel() for g in gradients])
    x = np.ones((4, 3), np.float32)
    operator = sd.HessianOperator(model, None, [(x, np.ones((4, 2), np.float32))])
    found = sd.preconditioned(operator, optimizer)
    np.testing.assert_allclose(found.diagonal, -0.5 * means / steps, rtol=1e-5)
    assert sd.stability_threshold(optimizer) == pytest.approx(76.0)
    with pytest.raises(TypeError, match="legacy"):
        sd.stability_threshold(tf_keras.optimizers.legacy.Adam(0.1))
