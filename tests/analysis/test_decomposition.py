import json
import re
from functools import cache
from itertools import pairwise

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import (
    floatx,
    keras_truth,
    normals,
    regularized,
    sequential,
    split,
    tf_variables,
)
from scipy.sparse.linalg import aslinearoperator

from spectral_density import HessianOperator
from spectral_density.analysis.decomposition import curvature_decomposition
from spectral_density.analysis.layer_samples import (
    HessianParts,
    LayerSamples,
    mean_estimate,
    ratio_estimate,
    sample,
    sums,
)
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.linalg.sampling import Plan

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
MATRICES = ("hessian", "gauss_newton", "residual")
SIZES = {"first": 63, "second": 40, "logits": 18}  # parameters of the layers of `network`
ENDS = np.cumsum([0, *SIZES.values()])


def network(activation, dtype="float64"):
    return sequential(
        layers.Dense(7, activation, dtype=dtype, name="first"),
        layers.Dense(5, activation, dtype=dtype, name="second"),
        layers.Dense(3, dtype=dtype, name="logits"),
        shape=(8,),
    )


def data():
    return normals(20, 8), np.random.default_rng(2).integers(0, 3, size=20)


def batches():
    return split(data(), (10, 10))


def gauss_newton_truth(model):
    """J' (diag p - p p') J / N from the Jacobian of the logits."""
    x, _ = data()
    variables = tf_variables(model)
    with tf.GradientTape(persistent=True) as tape:
        logits = model(x, training=False)
    blocks = tape.jacobian(logits, variables, experimental_use_pfor=False)
    jacobian = np.concatenate([np.reshape(b, (20, 3, -1)) for b in blocks], axis=2)
    p = np.asarray(tf.nn.softmax(logits))
    middle = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    return np.einsum("nai,nab,nbj->ij", jacobian, middle, jacobian) / 20


def hessian_truth(model):
    with floatx("float64"):  # to which the loss casts, if it is made here
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return keras_truth(model, loss, data()).hessian


@cache
def decomposed(activation, dtype="float64", num_products=39, seed=0):
    """A decomposition that several tests look at."""
    model = network(activation, dtype)
    return curvature_decomposition(model, SPARSE, batches(), num_products=num_products, seed=seed)


@pytest.fixture(scope="module", params=["tanh", "relu"])
def truth(request):
    """Activation, and H, G and R by rows: of each layer, and of the whole."""
    model = network(request.param)
    h, g = hessian_truth(model), gauss_newton_truth(model)
    cuts = [slice(a, b) for a, b in pairwise(ENDS)] + [slice(None)]
    return request.param, [[m[c, c] for m in (h, g, h - g)] for c in cuts]


def norms(row):
    return [getattr(row, matrix) for matrix in MATRICES]


# Exact -------------------------------------------------------------------------------------------


def test_small_layers_are_exact(truth):
    activation, dense = truth
    found = decomposed(activation, num_products=63)
    assert [row.name for row in found.layers] == list(SIZES)
    assert [row.num_params for row in found.rows] == [*SIZES.values(), 121]
    assert found.num_products == 121
    assert found.num_spectral_products == 0
    scale = np.linalg.norm(dense[-1][0])
    for row, true in zip(found.rows, dense, strict=True):
        assert row.exact
        for part, matrix in zip(norms(row), true, strict=True):
            close = {"rel": 1e-9, "abs": 1e-12 * scale}
            assert part.frobenius_norm.value == pytest.approx(np.linalg.norm(matrix), **close)
            assert part.spectral_norm == pytest.approx(np.linalg.norm(matrix, 2), **close)
            assert part.trace.value == pytest.approx(np.trace(matrix), **close)
            assert part.frobenius_norm.standard_error == part.trace.standard_error == 0
            assert part.spectral_residual == 0
            assert part.spectral_converged
        ratio = np.linalg.norm(true[2]) / np.linalg.norm(true[1])
        assert row.ratio.value == pytest.approx(ratio, rel=1e-9, abs=1e-12)
        assert row.ratio.standard_error == 0


@pytest.mark.parametrize(("dtype", "zero"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("num_products", [pytest.param(63, marks=pytest.mark.exhaustive), 39])
def test_one_relu_layer_alone_has_no_curvature_of_the_network(dtype, zero, num_products):
    found = decomposed("relu", dtype, num_products)
    for row in found.layers:
        assert row.ratio.value <= zero
        assert row.residual.spectral_norm <= zero * row.gauss_newton.spectral_norm * row.num_params
        assert row.residual.spectral_converged
    assert found.total.ratio.value > 0.01  # what couples layers is not zero


@pytest.mark.exhaustive
def test_kernels_alone_under_relu_and_tanh():
    for activation, vanishes in (("relu", True), ("tanh", False)):
        found = curvature_decomposition(
            network(activation, "float32"), SPARSE, batches(), variables=re.compile("kernel")
        )
        assert [row.num_params for row in found.layers] == [56, 35, 15]
        hidden = [row.ratio.value for row in found.layers[:2]]
        assert all(ratio <= 1e-6 for ratio in hidden) if vanishes else min(hidden) > 0.01
        assert found["logits"].ratio.value <= 1e-6  # linear, whatever comes before


# Estimated ---------------------------------------------------------------------------------------


@pytest.mark.exhaustive
def test_products_for_the_spectral_norms_are_counted_with_both_matrices(monkeypatch):
    counts = []
    products = CurvatureOperator._products

    def counted(operator, block):
        # Those for norms and traces are of blocks.
        counts.append(block.shape[1] == 1)
        return products(operator, block)

    monkeypatch.setattr(CurvatureOperator, "_products", counted)
    found = curvature_decomposition(network("tanh"), SPARSE, batches(), num_products=2)
    assert found.num_spectral_products == sum(counts) > 0


def test_estimates_are_within_four_standard_errors(truth):
    activation, dense = truth
    found = decomposed(activation, num_products=39)
    assert [row.exact for row in found.rows] == [False, False, True, False]
    assert found.num_products == 39 + 39 + 18
    assert found.num_spectral_products > 0
    scale = np.linalg.norm(dense[-1][0])
    for row, true in zip(found.rows, dense, strict=True):
        for part, matrix in zip(norms(row), true, strict=True):
            for estimate, value in (
                (part.frobenius_norm, np.linalg.norm(matrix)),
                (part.trace, np.trace(matrix)),
            ):
                error = abs(estimate.value - value)
                assert error <= 4 * estimate.standard_error + 1e-12 * scale
                assert estimate.standard_error <= 0.4 * np.linalg.norm(matrix) + 1e-12
                assert (estimate.standard_error == 0) == row.exact or value <= 1e-12 * scale
            spectral = np.linalg.norm(matrix, 2)
            bound = part.spectral_residual + 1e-12 * scale
            assert abs(part.spectral_norm - spectral) <= bound
        ratio = np.linalg.norm(true[2]) / np.linalg.norm(true[1])
        assert abs(row.ratio.value - ratio) <= 4 * row.ratio.standard_error + 1e-12


def test_standard_errors_are_the_spread_over_seeds():
    model = network("tanh")
    h, g = hessian_truth(model), gauss_newton_truth(model)
    values, errors = [], []
    for seed in range(200):
        blocks = [
            LayerSamples(i, name, np.arange(a, b), exact=name == "logits")
            for i, (name, a, b) in enumerate(zip(SIZES, ENDS[:-1], ENDS[1:], strict=True))
        ]
        parts = HessianParts(aslinearoperator(h), aslinearoperator(g), seed)
        sample(parts, blocks, Plan(39, None, 39), False)
        squares, traces = sums(blocks, whole=True)
        found = [
            mean_estimate(squares[:, 0], 0, root=True),
            mean_estimate(traces[:, 0], 0),
            mean_estimate(traces[:, 2], 0),
            ratio_estimate(squares, 0),
        ]
        values.append([estimate.value for estimate in found])
        errors.append([estimate.standard_error for estimate in found])
    true = [np.linalg.norm(h), np.trace(h), np.trace(h - g)]
    true.append(np.linalg.norm(h - g) / np.linalg.norm(g))
    spread = np.std(values, axis=0)
    # The roots and the ratio are biased by a share of their error that falls with the number.
    assert np.all(np.abs(np.mean(values, axis=0) - true) <= 0.4 * spread)
    np.testing.assert_allclose(np.mean(errors, axis=0), spread, rtol=0.2)


def test_the_parts_add_up_in_the_numbers(truth):
    activation, _ = truth
    found = decomposed(activation, num_products=39)
    for row in found.rows:
        h, g, r = (part.trace.value for part in norms(row))
        assert g + r == pytest.approx(h, rel=1e-10)
        h, g, r = (part.frobenius_norm.value for part in norms(row))
        assert abs(g - r) <= h <= g + r
    assert found.total.hessian.trace.value == pytest.approx(
        sum(row.hessian.trace.value for row in found.layers)
    )


@pytest.mark.exhaustive
def test_the_same_seed_gives_the_same_numbers_and_another_others():
    first, other = decomposed("tanh"), decomposed("tanh", seed=6)
    again = curvature_decomposition(network("tanh"), SPARSE, batches(), num_products=39)
    # Products of blocks repeat to rounding only.
    for a, b in zip(
        first.to_dict()["total"].values(), again.to_dict()["total"].values(), strict=True
    ):
        assert a == b if isinstance(a, (str, bool)) else a == pytest.approx(b, rel=1e-9)
    assert other.total.hessian.trace.value != pytest.approx(first.total.hessian.trace.value)


@pytest.mark.exhaustive
def test_a_tolerance_is_met_or_said_not_to_be():
    model = network("tanh")
    met = curvature_decomposition(model, SPARSE, batches(), num_products=10, tolerance=0.2)
    assert met.converged is True
    for row in met.rows:
        for part in (row.hessian, row.gauss_newton):
            assert part.frobenius_norm.converged is True
            assert part.frobenius_norm.relative_error <= 0.2
    unmet = curvature_decomposition(
        model, SPARSE, batches(), num_products=10, tolerance=0.01, max_products=12
    )
    assert unmet.converged is False
    assert unmet.num_products == 36
    assert unmet.total.hessian.frobenius_norm.converged is False


# Operators of every kind -------------------------------------------------------------------------


def test_weight_decay_belongs_to_the_gauss_newton_part():
    case = (normals(13, 3), normals(13, 2, seed=2))
    model = regularized("float64")
    with pytest.warns(UserWarning, match="layers"):
        found = curvature_decomposition(model, "mse", [case])
        ggn = GaussNewtonOperator(model, "mse", [case]).to_dense()
    h = HessianOperator(model, "mse", [case]).to_dense()
    assert found.total.ratio.value == pytest.approx(np.linalg.norm(h - ggn) / np.linalg.norm(ggn))


def test_one_layer_and_one_parameter():
    model = sequential(layers.Dense(1, use_bias=False, name="only"), shape=(1,))
    found = curvature_decomposition(model, "mse", [(normals(5, 1), normals(5, 1))])
    assert [row.name for row in found.rows] == ["only", "all"]
    assert found.total.hessian.trace.value == pytest.approx(found.total.hessian.spectral_norm)


def test_a_gauss_newton_part_of_zero_has_no_ratio():
    model = sequential(layers.Dense(2, name="only"))
    x = np.zeros((4, 3), np.float32)
    found = curvature_decomposition(model, "mse", [(x, np.zeros((4, 2)))], variables="only/kernel")
    assert np.isnan(found.total.ratio.value)
    assert found.total.hessian.frobenius_norm.value == 0
    assert "nan" in str(found)


def test_a_function_of_model_and_batch_cannot_be_taken_apart():
    with pytest.raises(ValueError, match="predict"):
        curvature_decomposition(
            network("tanh"), lambda model, batch: tf.reduce_mean(model(batch[0])), batches()
        )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_products": 1}, ValueError, "num_products must be at least 2"),
        ({"num_products": 2.5}, TypeError, "num_products must be an integer"),
        ({"tolerance": 0}, ValueError, "tolerance must be greater than 0"),
        ({"max_products": 100}, ValueError, "pass tolerance="),
        ({"tolerance": 0.1, "max_products": 3}, ValueError, "max_products must be at least 90"),
        ({"spectral_tolerance": -1.0}, ValueError, "spectral_tolerance must be greater"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"variables": "none"}, ValueError, "There are: "),
    ],
)
def test_arguments_that_make_no_sense_are_errors(options, error, message):
    with pytest.raises(error, match=message):
        curvature_decomposition(network("tanh"), SPARSE, batches(), **options)


# What it looks like ------------------------------------------------------------------------------


def test_the_table_and_the_dictionary_hold_every_number():
    found = decomposed("tanh")
    *legend, last = str(found).splitlines()
    legend, lines = legend[:2], legend[2:]
    assert "G (the curvature of the loss)" in legend[0]
    assert f"{found.num_products:,} products with each of H and G" in last
    assert lines[0].split()[:2] == ["layer", "parameters"]
    assert len(lines) == 1 + 3 * 4
    assert all(len(line) <= 110 for line in lines)
    assert [line.split()[0] for line in lines[1::3]] == ["first", "second", "logits", "all"]
    again = json.loads(json.dumps(found.to_dict()))
    assert again == found.to_dict()
    assert [row["name"] for row in again["layers"]] == list(SIZES)
    assert again["total"]["residual_trace_error"] == found.total.residual.trace.standard_error
    assert found["second"] is found.layers[1]
    with pytest.raises(KeyError, match="there are first, second, logits"):
        found["third"]


def test_what_is_rounding_is_said_to_be_zero():
    found = decomposed("relu")
    lines = str(found).splitlines()
    of_residuals = [line for line in lines if line.split()[:1] == ["R"]]
    # Piecewise linear: R is zero in each layer, and is not between layers, where its trace is none.
    for line in of_residuals[:-1]:
        assert line.count("0 (rounding)") == 4
    assert of_residuals[-1].count("0 (rounding)") == 1
    assert not found.total.residual.is_rounding
    assert "0 (rounding)" not in "".join(set(lines) - set(of_residuals))
    # Of the others the last layer alone is linear in its weights.
    smooth = decomposed("tanh")
    assert [row.residual.is_rounding for row in smooth.rows] == [False, False, True, False]
    assert str(smooth).count("0 (rounding)") == 4


def test_nothing_of_the_model_changes_and_the_data_are_passed_in_blocks():
    model = network("tanh")
    before = [v.numpy() for v in model.variables]
    seen = []

    def dataset():
        seen.append(1)
        return iter(batches())

    found = curvature_decomposition(model, SPARSE, dataset, num_products=63, memory_share=0)
    # Two surveys with a check each, and 8 blocks of 16 columns for H and for G.
    assert found.num_products == 121
    assert len(seen) == 4 + 2 * 8
    for now, then in zip(model.variables, before, strict=True):
        assert now.numpy().tobytes() == then.tobytes()


@pytest.mark.exhaustive
def test_all_is_the_whole_matrix_with_variables_from_outside_the_model():
    model = sequential(layers.Dense(2, "tanh", name="net"), shape=(2,))
    scale, shift = tf.Variable(0.7, name="scale"), tf.Variable([0.1, 0.2], name="shift")
    inputs = [normals(4, 2)]
    chosen = [*model.trainable_variables, scale, shift]
    pair = (
        lambda model, batch: scale * model(batch) + shift,
        lambda outputs, batch: tf.reduce_mean(outputs**2),
    )
    found = curvature_decomposition(model, pair, inputs, variables=chosen, progress=False)
    whole = HessianOperator(
        model, lambda model, batch: pair[1](pair[0](model, batch), batch), inputs, variables=chosen
    ).to_dense()
    assert [row.name for row in found.layers] == ["net", "scale", "shift"]
    assert found.total.num_params == sum(row.num_params for row in found.layers) == len(whole)
    assert found.total.hessian.trace.value == pytest.approx(np.trace(whole), rel=1e-5)
    norm = np.linalg.norm(whole)
    assert found.total.hessian.frobenius_norm.value == pytest.approx(norm, rel=1e-5)
