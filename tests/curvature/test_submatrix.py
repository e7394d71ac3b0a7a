import re
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import html_of
from keras import layers
from models import (
    classification,
    mlp,
    normals,
    relative_error,
    sequential,
    set_random_weights,
    shared_layer,
    split,
    truth,
    vectors,
    weight_tied,
)
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, eigsh

from spectral_density.curvature import HessianOperator
from spectral_density.curvature.submatrix import SubmatrixOperator, layer_operators

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
N = 12


def symmetric(n=N, seed=0):
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a + a.T


def small(dtype="float64", **options):
    return HessianOperator(mlp(dtype), SPARSE, split(classification()), **options)


@cache
def unchanged():
    """An operator for tests that change nothing of it: its graphs are traced once."""
    return small()


def assert_is_the_block(block, dense):
    """Compare every product of the operator with the dense block's."""
    right, left = vectors(dense.shape[1], 3), vectors(dense.shape[0], 3)
    assert block.shape == dense.shape
    assert block.dtype == np.float64
    for found, expected in [
        (block @ right[:, 0], dense @ right[:, 0]),
        (block.matvec(right[:, :1]), dense @ right[:, :1]),
        (block @ right, dense @ right),
        (block.rmatvec(left[:, 0]), dense.T @ left[:, 0]),
        (block.rmatmat(left), dense.T @ left),
        (block.H @ left, dense.T @ left),
        (block.T @ left[:, 0], dense.T @ left[:, 0]),
        (block.to_dense(), dense),
    ]:
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


# Any matrix --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["array", "sparse", "operator"])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(2, 7), None),
        (slice(None, None, 3), slice(4, 6)),
        ([5, 1, 3], None),
        (np.array([0, 11]), np.arange(N)),
        ([-1, 0], np.arange(N) % 2 == 0),
        (np.arange(N) > 8, [7]),
        (range(3), np.array([4, 5], np.uint8)),
        (slice(None, None, -1), None),
        (slice(0, 3), [8, 4, 6]),  # square, and not symmetric
    ],
)
def test_a_block_is_what_numpy_cuts_out(kind, rows, columns):
    a = symmetric()
    operator = {
        "array": a,
        "sparse": csr_array(a),
        "operator": LinearOperator(a.shape, matvec=lambda v: a @ v, matmat=lambda v: a @ v),
    }[kind]
    number = np.arange(N)
    dense = a[np.ix_(number[rows], number[rows if columns is None else columns])]
    assert_is_the_block(SubmatrixOperator(operator, rows, columns), dense)


def test_an_array_that_is_not_symmetric_has_its_own_transpose():
    a = np.arange(16.0).reshape(4, 4)
    for matrix in (a, csr_array(a)):
        assert_is_the_block(SubmatrixOperator(matrix, [0, 1], [3]), a[:2, 3:])


def test_a_block_of_a_block_is_a_block():
    a = symmetric()
    block = SubmatrixOperator(SubmatrixOperator(a, slice(2, 9)), [1, 3])
    assert_is_the_block(block, a[np.ix_([3, 5], [3, 5])])


def test_integers_and_float32_give_float64():
    block = SubmatrixOperator(np.diag(np.arange(5, dtype=np.float32)), [1, 4])
    assert (block @ np.array([1, 1])).dtype == np.float64
    assert block.product_dtype == np.float32


def test_an_empty_block_of_vectors_has_an_empty_product():
    block = SubmatrixOperator(symmetric(), [1, 2], [3, 4, 5])
    assert block.matmat(np.zeros((3, 0))).shape == (2, 0)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([], ValueError, "rows is empty: choose at least one of the 12"),
        (slice(3, 3), ValueError, "empty"),
        (np.zeros(N, bool), ValueError, "empty"),
        ([0, N], ValueError, "rows has the index 12, out of range for 12"),
        ([-N - 1], ValueError, "index -13, out of range"),
        ([2**63], ValueError, "out of range"),
        ([3, 4, 3], ValueError, "index 3 more than once"),
        ([11, -1], ValueError, "index 11 more than once"),
        (np.ones(N - 1, bool), ValueError, r"mask rows has shape \(11,\), expected \(12,\)"),
        ([0.0, 1.0], TypeError, "rows must be a slice"),
        (3, TypeError, "rows must be a slice"),
        ([[1, 2]], TypeError, "rows must be a slice"),
        (None, TypeError, "rows must be a slice"),
        ("dense", TypeError, "rows has names, and a MatrixLinearOperator does not say"),
        (["dense", 3], TypeError, "rows has names"),
    ],
)
def test_a_selection_that_makes_no_sense_is_an_error(rows, error, message):
    with pytest.raises(error, match=message):
        SubmatrixOperator(symmetric(), rows)
    if rows is not None:  # which says of columns that they are those of the rows
        with pytest.raises(error, match=message.replace("rows", "columns")):
            SubmatrixOperator(symmetric(), [0], rows)


def test_a_matrix_that_is_not_square_is_an_error():
    with pytest.raises(ValueError, match="square"):
        SubmatrixOperator(np.zeros((3, 4)), [0])


def test_vectors_of_another_length_complex_or_not_finite_are_errors():
    block = SubmatrixOperator(symmetric(), [1, 2])
    with pytest.raises(ValueError, match="dimension mismatch"):
        block @ np.ones(N)
    with pytest.raises(ValueError, match="complex"):
        block @ np.array([1j, 0])
    with pytest.raises(ValueError, match="NaN"):
        block @ np.array([np.nan, 0])


def test_a_product_that_is_not_finite_is_an_error():
    with pytest.raises(FloatingPointError, match="not finite"):
        SubmatrixOperator(np.full((3, 3), np.nan), [0]) @ np.ones(1)


# Curvature operators -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "where"),
    [
        ("hidden", slice(0, 16)),
        ("logits", slice(16, 31)),
        ("logits/kernel", slice(16, 28)),
        (re.compile("bias"), np.r_[12:16, 28:31]),
        (["logits/bias", "hidden/kernel"], np.r_[0:12, 28:31]),
        (["logits", re.compile("logits/kernel")], slice(16, 31)),
    ],
)
def test_names_choose_what_they_choose_in_variables(rows, where):
    hessian = unchanged()
    number = np.arange(31)[where]
    block = SubmatrixOperator(hessian, rows)
    np.testing.assert_array_equal(block.rows, number)
    assert relative_error(block.to_dense(), truth("mlp").hessian[np.ix_(number, number)]) < 1e-10
    chosen = HessianOperator(
        hessian.derivatives.objective.model, SPARSE, split(classification()), variables=rows
    )
    assert chosen.shape == block.shape


def test_layers_and_variables_themselves_choose_their_rows():
    hessian = unchanged()
    model = hessian.derivatives.objective.model
    for rows in (model.layers[1], list(model.layers[1].trainable_variables)):
        np.testing.assert_array_equal(SubmatrixOperator(hessian, rows).rows, np.arange(16, 31))
    kernel = model.layers[0].kernel
    np.testing.assert_array_equal(SubmatrixOperator(hessian, kernel).rows, np.arange(12))
    np.testing.assert_array_equal(SubmatrixOperator(hessian, kernel.value).rows, np.arange(12))


def test_the_block_between_two_layers_is_that_of_the_dense_matrix():
    dense = truth("mlp").hessian[:16, 16:]
    assert_is_the_block(SubmatrixOperator(unchanged(), "hidden", "logits"), dense)


def test_a_block_of_vectors_takes_one_pass_over_the_data():
    hessian = small()
    block = SubmatrixOperator(hessian, "logits", "hidden")
    before = hessian.num_passes
    block @ vectors(16, 5)
    assert hessian.num_passes == before + 1
    block.rmatmat(vectors(15, 5))
    assert hessian.num_passes == before + 2


def test_sums_and_multiples_of_operators_have_layers_too():
    hessian = unchanged()
    dense = 3 * truth("mlp").hessian[16:, 16:]
    assert_is_the_block(SubmatrixOperator(hessian + 2 * hessian, "logits"), dense)
    assert list(layer_operators(hessian - hessian)) == ["hidden", "logits"]
    assert SubmatrixOperator(small("float32") + 2 * hessian, [0]).product_dtype == np.float32


def test_sums_over_different_variables_have_no_names():
    first, second = small(), small()
    with pytest.raises(ValueError, match="different variables"):
        SubmatrixOperator(first + second, "logits")


def test_an_unknown_name_lists_those_there_are():
    hessian = small(variables="logits")
    with pytest.raises(ValueError, match=r"'dense'. There are: .*logits/kernel, .*logits/bias"):
        SubmatrixOperator(hessian, "dense")
    with pytest.raises(ValueError, match=r"no variable matches 'gamma'. There are"):
        SubmatrixOperator(hessian, re.compile("gamma"))
    with pytest.raises(ValueError, match=r"hidden has none of the operator's variables. There"):
        SubmatrixOperator(hessian, hessian.derivatives.objective.model.layers[0])
    with pytest.raises(ValueError, match="none of the operator's variables"):
        SubmatrixOperator(hessian, "hidden")
    with pytest.raises(ValueError, match="none of the operator's variables"):
        SubmatrixOperator(hessian, tf.Variable([1.0], name="stranger"))
    with pytest.raises(TypeError, match="mixes names and indices: 3"):
        SubmatrixOperator(hessian, ["logits", 3])


def test_blocks_follow_the_weights():
    hessian = small()
    block = SubmatrixOperator(hessian, "logits")
    before = block.to_dense()
    hessian.derivatives.objective.model.layers[1].bias.assign([1.0, -2.0, 0.5])
    assert relative_error(block.to_dense(), before) > 1e-2


def test_a_block_works_with_scipy():
    block = SubmatrixOperator(unchanged(), "hidden")
    values = np.linalg.eigvalsh(truth("mlp").hessian[:16, :16])
    found = eigsh(block, k=2, which="LA", return_eigenvectors=False, v0=np.ones(16))
    np.testing.assert_allclose(found, values[-2:], rtol=1e-8)


def test_its_name_says_what_it_is_a_block_of():
    assert repr(SubmatrixOperator(unchanged(), "logits")).startswith(
        "SubmatrixOperator(15 x 15 of HessianOperator("
    )


# Layers ------------------------------------------------------------------------------------------


def layer_names_and_sizes(model, x, y, **options):
    model(x)
    operator = HessianOperator(model, "mse", [(x, y)], **options)
    blocks = layer_operators(operator)
    assert sum(len(b.rows) for b in blocks.values()) == operator.shape[0]
    return {name: block.shape[0] for name, block in blocks.items()}


def test_layer_operators_are_the_diagonal_blocks_in_order():
    blocks = layer_operators(unchanged())
    assert list(blocks) == ["hidden", "logits"]
    true = truth("mlp").hessian
    assert relative_error(blocks["hidden"].to_dense(), true[:16, :16]) < 1e-10
    assert relative_error(blocks["logits"].to_dense(), true[16:, 16:]) < 1e-10


def test_layers_have_only_the_variables_chosen():
    blocks = layer_operators(small(variables=["hidden/bias", "logits/kernel"]))
    assert {name: b.shape[0] for name, b in blocks.items()} == {"hidden": 4, "logits": 12}
    assert list(layer_operators(small(variables="logits"))) == ["logits"]


def test_nested_models_are_taken_apart_and_names_made_unique():
    inner = sequential(layers.Dense(2, name="dense"), layers.BatchNormalization(name="norm"))
    inner.name = "inner"
    model = sequential(inner, layers.Dense(4, name="dense"), layers.Dropout(0.5))
    found = layer_names_and_sizes(model, normals(5, 3), normals(5, 4))
    assert found == {"inner/dense": 8, "norm": 4, "dense": 12}


def test_recurrent_and_attention_layers_are_one_block_each():
    inputs = keras.Input((3, 2))
    mixed = layers.MultiHeadAttention(2, 2, name="attention")(inputs, inputs)
    outputs = layers.SimpleRNN(2, unroll=True, name="recurrent")(mixed)
    model = keras.Model(inputs, outputs)
    found = layer_names_and_sizes(model, normals(5, 3, 2), normals(5, 2))
    assert found == {"attention": 46, "recurrent": 10}


def test_shared_layers_stand_once_and_weights_of_the_model_are_its_own():
    model = shared_layer()
    x = [normals(5, 3), normals(5, 3)]
    found = layer_names_and_sizes(model, x, normals(5, 2))
    assert list(found.values()) == [12, 14]
    tied = weight_tied()
    found = layer_names_and_sizes(tied, normals(5, 3), normals(5, 3))
    assert found == {tied.encoder.name: 8, tied.name: 2}


def test_tf_keras_models_have_layers_too():
    tf_keras = pytest.importorskip("tf_keras")
    inner = tf_keras.Sequential([tf_keras.layers.Dense(2, name="first", input_shape=(3,))])
    model = tf_keras.Sequential([inner, tf_keras.layers.Dense(1, name="second")])
    found = layer_names_and_sizes(model, normals(5, 3), normals(5, 1))
    assert found == {"first": 8, "second": 3}


def test_functions_and_modules_go_by_the_path_of_the_names():
    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.a = [tf.Variable([1.0, 2.0], name=f"encoder/{n}") for n in "wb"]
            self.c = [tf.Variable([3.0], name="scale"), tf.Variable([4.0], name="scale")]

    def loss(module, batch):
        return tf.add_n([tf.reduce_sum(v**4) for v in module.trainable_variables])

    blocks = layer_operators(HessianOperator(Module(), loss, [(np.ones(1),)]))
    assert {name: b.shape[0] for name, b in blocks.items()} == {
        "encoder": 4,
        "scale": 1,
        "scale_2": 1,
    }
    x = tf.Variable([1.0, 1.0], name="x")
    function = HessianOperator.from_function(lambda x: 2 * x[0] ** 3 * x[1] ** 3, x)
    blocks = layer_operators(function)
    np.testing.assert_allclose(blocks["x"].to_dense(), [[12, 18], [18, 12]], rtol=1e-6)


def test_layers_of_what_has_none_are_an_error():
    with pytest.raises(TypeError, match="a ndarray does not say which parameters"):
        layer_operators(symmetric())


def test_frozen_layers_have_no_block():
    model = set_random_weights(mlp())
    model.layers[0].trainable = False
    assert layer_names_and_sizes(model, normals(5, 3), normals(5, 3)) == {"logits": 15}


# Variables from outside the model ----------------------------------------------------------------


class Scales(tf.Module):
    def __init__(self):
        super().__init__()
        self.inner = tf.Variable([0.5, 1.5], name="inner")
        self.outer = tf.Variable(0.3, name="outer")


def of_another_model():
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1, name="head")], name="other")
    return list(set_random_weights(model).trainable_variables)


def frozen_layer():
    layer = layers.Dense(1, name="frozen")
    layer.build((None, 2))
    layer.trainable = False
    return [layer.kernel]


OUTSIDE = {
    "a variable": (lambda: [tf.Variable(0.7, name="scale")], ["scale"]),
    "two of one name": (lambda: [tf.Variable(0.7), tf.Variable([0.2])], ["Variable", "Variable_2"]),
    "another model's": (of_another_model, ["other/head/kernel", "other/head/bias"]),
    "a module's": (lambda: list(Scales().variables), ["inner", "outer"]),
    "of a layer outside that is frozen": (frozen_layer, ["frozen/kernel"]),
    "a Keras variable": (lambda: [keras.Variable(0.7, name="alpha")], ["alpha"]),
}


def with_outside(outside, model=None):
    """The loss mixes the model with all variables, so that no block is zero."""
    model = model or sequential(layers.Dense(2, activation="tanh", name="net"), shape=(2,))

    def loss(model, batch):
        total = tf.add_n([tf.reduce_sum(tf.convert_to_tensor(v)) for v in outside])
        return tf.reduce_mean((total * model(batch)) ** 2)

    chosen = [*model.trainable_variables, *outside]
    return HessianOperator(model, loss, [normals(4, 2)], variables=chosen)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_variable_from_outside_the_model_is_a_block_of_its_own(name):
    make, names = OUTSIDE[name]
    operator = with_outside(make())
    blocks = layer_operators(operator)
    assert list(blocks) == ["net", *names]
    assert sum(block.shape[0] for block in blocks.values()) == operator.shape[0]
    order = np.concatenate([block.rows for block in blocks.values()])
    np.testing.assert_array_equal(np.sort(order), np.arange(operator.shape[0]))
    html = html_of(operator)
    assert all(shown in html for shown in names)


def test_a_variable_outside_can_be_selected_by_its_name():
    operator = with_outside([tf.Variable(0.7, name="scale")])
    block = SubmatrixOperator(operator, "scale")
    np.testing.assert_array_equal(block.rows, [6])
    # The loss is (s m(x))^2 on average, in s: 2 mean m^2.
    outputs = np.asarray(operator.derivatives.objective.model(normals(4, 2)))
    assert block.to_dense()[0, 0] == pytest.approx(2 * np.mean(outputs**2), rel=1e-5)


def test_a_frozen_layer_of_the_model_keeps_its_name():
    model = sequential(layers.Dense(2, name="body"), layers.Dense(1, name="head"), shape=(2,))
    model.get_layer("body").trainable = False
    chosen = [model.get_layer("body").kernel, *model.trainable_variables]
    operator = HessianOperator(
        model,
        lambda model, batch: tf.reduce_mean(model(batch) ** 2),
        [normals(4, 2)],
        variables=chosen,
    )
    sizes = {name: block.shape[0] for name, block in layer_operators(operator).items()}
    assert sizes == {"body": 4, "head": 3}


def test_a_layer_that_two_models_share_is_inside():
    shared = layers.Dense(2, name="shared")
    one = keras.Sequential([keras.Input((2,)), shared], name="one")
    two = keras.Sequential([keras.Input((2,)), shared, layers.Dense(1, name="own")], name="two")
    operator = with_outside(list(two.layers[1].trainable_variables), set_random_weights(one))
    assert list(layer_operators(operator)) == ["shared", "two/own/kernel", "two/own/bias"]


def test_variables_of_a_nested_structure_are_all_in_blocks():
    variables = {
        "a": [tf.Variable([1.0, 2.0], name="enc/w"), tf.Variable(0.5, name="enc/b")],
        "c": (tf.Variable(0.3), tf.Variable(0.4)),
    }

    def value(v):
        parts = tf.concat([tf.reshape(part, [-1]) for part in tf.nest.flatten(v)], axis=0)
        return tf.reduce_sum(parts) ** 2

    operator = HessianOperator.from_function(value, variables)
    sizes = {name: block.shape[0] for name, block in layer_operators(operator).items()}
    assert sum(sizes.values()) == operator.shape[0] == 5
    assert sizes["enc"] == 3
