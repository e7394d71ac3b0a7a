import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from models import (
    CASES,
    NUM_EXAMPLES,
    SPLIT,
    affine_loss,
    classes,
    classification,
    compiled,
    floatx,
    mlp,
    normals,
    regression,
    relative_error,
    sequential,
    split,
    tf_variables,
    vectors,
    weights_of_examples,
)
from scipy.special import softmax

from spectral_density.curvature.fisher import FisherOperator
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.linalg.arguments import stream

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)
BITS = np.random.default_rng(9).integers(0, 2, (NUM_EXAMPLES, 3))
X = normals(NUM_EXAMPLES, 3)
REAL = normals(NUM_EXAMPLES, 3, seed=2)
LOSSES = {
    "softmax": (SPARSE, classes(NUM_EXAMPLES), 1),
    "sigmoid": (BINARY, BITS, 3),
    "squared error": ("mse", REAL, 3),
}


# Compared on random vectors, where one wrong entry shows too: a graph for each column of the dense
# matrix takes ten times as long to trace.
BLOCK = vectors(31)


def fisher_of(kind, loss=SPARSE, data=None, *, sizes=SPLIT, dtype="float64", **options):
    data = classification() if data is None else data
    return FisherOperator(mlp(dtype), loss, split(data, sizes), kind=kind, **options)


def gradients_of_values(model, loss, x, y):
    """Per-value gradients of a loss, stacked: shape (*values.shape, num_params), float64."""
    loss = keras.losses.get(loss)
    function = loss.call if isinstance(loss, keras.losses.Loss) else loss
    with floatx("float64"), tf.GradientTape(persistent=True) as tape:
        values = function(tf.constant(y), model(x, training=False))
        flat = tf.reshape(values, [-1])
    variables = tf_variables(model)
    blocks = tape.jacobian(flat, variables, experimental_use_pfor=False)
    rows = [np.reshape(tf.convert_to_tensor(b), (flat.shape[0], -1)) for b in blocks]
    return np.concatenate(rows, axis=1).reshape(*values.shape, -1)


def weighted(gradients, weights):
    """The sum of weights times outer products, shape (num_params, num_params)."""
    return np.einsum("i,ij,ik->jk", weights, gradients, gradients)


def shares_of(weights):
    """The weight of each example in a mean over the examples, float64."""
    given = np.ones(NUM_EXAMPLES) if weights is None else weights
    return np.asarray(given, np.float64) / NUM_EXAMPLES


# Type 2 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, weights_of_examples()])
@pytest.mark.parametrize("name", LOSSES)
def test_type_2_is_the_expectation_over_the_models_own_labels_and_equals_g(name, weights):
    loss, y, averaged = LOSSES[name]
    data = (X, y) if weights is None else (X, y, weights)
    model = mlp("float64")
    product = FisherOperator(model, loss, split(data)) @ BLOCK
    assert relative_error(product, GaussNewtonOperator(model, loss, split(data)) @ BLOCK) <= 1e-14
    expected = np.zeros((31, 31))
    shares = shares_of(weights)
    for labels, probability in all_labels(name, model(X).numpy()):
        gradients = gradients_of_values(model, loss, X, labels)
        expected += averaged * weighted(gradients, shares * probability)
    assert relative_error(product, expected @ BLOCK) <= 1e-10


def all_labels(name, z):
    """Every label with its probability; for the normal distribution a quadrature that is exact."""
    if name == "softmax":
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        return [(np.full(NUM_EXAMPLES, c), p[:, c]) for c in range(3)]
    signs = np.array(np.meshgrid([0, 1], [0, 1], [0, 1])).reshape(3, -1).T
    if name == "sigmoid":
        p = 1 / (1 + np.exp(-z))
        pairs = [(s, np.where(s, p, 1 - p).prod(axis=1)) for s in signs]
        return [(np.tile(s, (NUM_EXAMPLES, 1)), p) for s, p in pairs]
    # Variance 1/2: labels one standard deviation to either side have its second moments.
    return [(z + (2 * s - 1) / np.sqrt(2), np.full(NUM_EXAMPLES, 1 / 8)) for s in signs]


@pytest.mark.parametrize(
    "name",
    [
        "two outputs, weights by name",
        "masked sequence, weights of steps",
        "mean with sample weights",
        "ignored class",
    ],
)
@pytest.mark.parametrize("kind", ["type2", "monte_carlo"])
def test_g_is_met_or_approached_with_weights_masks_and_several_outputs(name, kind):
    case = CASES[name]
    model, data = compiled(case, "float64"), split(case.data(), case.splits)
    ggn = GaussNewtonOperator(model, None, data)
    v = vectors(ggn.shape[0])[:, 0]
    # The error of 4,000 samples is about 1 / sqrt(4000) = 1.6 %.
    options, tolerance = ({}, 1e-14) if kind == "type2" else ({"num_samples": 4000}, 0.06)
    fisher = FisherOperator(model, None, data, kind=kind, **options)
    assert relative_error(fisher @ v, ggn @ v) <= tolerance


# Empirical ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-10)])
@pytest.mark.parametrize("weights", [None, weights_of_examples()])
@pytest.mark.parametrize("name", LOSSES)
def test_empirical_is_the_mean_of_per_example_outer_products(name, weights, dtype, tolerance):
    loss, y, averaged = LOSSES[name]
    data = (X, y) if weights is None else (X, y, weights)
    gradients = gradients_of_values(mlp("float64"), loss, X, y)
    shares = shares_of(weights)
    block = vectors(31)
    expected = averaged * weighted(gradients, shares) @ block
    for sizes in (SPLIT, (NUM_EXAMPLES,)):
        fisher = fisher_of("empirical", loss, data, sizes=sizes, dtype=dtype)
        assert relative_error(fisher @ block, expected) <= tolerance
    # ... and not the outer product of the batch's mean gradient.
    mean = (shares[:, None] * gradients).sum(axis=0)
    assert relative_error(np.outer(mean, mean) @ block, expected) > 0.1


@pytest.mark.parametrize(
    ("reduction", "total"),
    [("sum", 1), ("mean_with_sample_weight", weights_of_examples().sum(dtype=np.float64))],
)
def test_empirical_with_the_denominator_of_the_loss(reduction, total):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    data = (*classification(), weights_of_examples())
    gradients = gradients_of_values(mlp("float64"), SPARSE, *classification())
    expected = weighted(gradients, weights_of_examples().astype(np.float64) / total)
    assert relative_error(fisher_of("empirical", loss, data) @ BLOCK, expected @ BLOCK) <= 1e-10


def test_empirical_of_masked_sequences_adds_the_steps_of_an_example():
    case = CASES["masked sequence, weights of steps"]
    x, y, weights = case.data()
    model = compiled(case, "float64")
    gradients = gradients_of_values(model, SPARSE, x, y)
    assert gradients.shape[:2] == weights.shape
    mask = x != 0
    shares = weights.astype(np.float64) * mask / mask.sum()
    sums = (np.sqrt(shares)[..., None] * gradients).sum(axis=1)
    fisher = FisherOperator(model, SPARSE, split((x, y, weights)), kind="empirical")
    v = vectors(fisher.shape[0])[:, 0]
    assert relative_error(fisher @ v, sums.T @ (sums @ v)) <= 1e-10


def test_empirical_of_several_outputs_adds_them_for_each_example():
    case = CASES["two outputs, lists"]
    x, y = case.data()
    model = compiled(case, "float64")
    parts = [
        np.sqrt(weight * averaged / NUM_EXAMPLES) * gradients_of_output(model, i, loss, x, y[i])
        for i, (loss, weight, averaged) in enumerate([("mse", 0.3, 2), (SPARSE, 1.7, 1)])
    ]
    sums = sum(parts)
    fisher = FisherOperator(model, None, split((x, y)), kind="empirical")
    v = vectors(fisher.shape[0])[:, 0]
    assert relative_error(fisher @ v, sums.T @ (sums @ v)) <= 1e-10


def gradients_of_output(model, i, loss, x, y):
    one = keras.Model(model.inputs[0], model.outputs[i])
    loss = keras.losses.get(loss)
    function = loss.call if isinstance(loss, keras.losses.Loss) else loss
    variables = tf_variables(model)
    with floatx("float64"), tf.GradientTape(persistent=True) as tape:
        values = function(tf.constant(y), one(x))
    rows = []
    for j in range(NUM_EXAMPLES):
        with tape:
            value = values[j]
        parts = tape.gradient(value, variables, unconnected_gradients="zero")
        rows.append(np.concatenate([np.ravel(p) for p in parts]))
    return np.array(rows)


def test_empirical_takes_any_loss_of_one_value_per_example():
    def own(y_true, y_pred):
        return tf.reduce_sum(tf.math.cosh(y_true - y_pred), axis=-1)

    gradients = gradients_of_values(mlp("float64"), own, X, REAL.astype(np.float64))
    expected = weighted(gradients, np.full(NUM_EXAMPLES, 1 / NUM_EXAMPLES)) @ BLOCK
    of_values = fisher_of("empirical", own, (X, REAL))
    assert relative_error(of_values @ BLOCK, expected) <= 1e-10
    pair = (
        lambda model, batch: model(batch["x"]),
        lambda z, batch: own(tf.cast(batch["y"], z.dtype), z),
    )
    data = {"x": X, "y": REAL}
    fisher = fisher_of("empirical", pair, data)
    assert relative_error(fisher @ BLOCK, expected) <= 1e-10
    assert fisher.loss() == pytest.approx(of_values.loss())
    summed = fisher_of("empirical", pair, data, reduction="sum") @ BLOCK
    assert relative_error(summed, NUM_EXAMPLES * expected) <= 1e-10


def test_empirical_is_the_same_with_the_softmax_in_the_model():
    model = sequential(
        layers.Dense(4, activation="tanh", dtype="float64"),
        layers.Dense(3, activation="softmax", dtype="float64"),
        layers.Reshape(
            (3,), dtype="float64"
        ),  # cannot be moved into the loss, which does not matter here
    )
    data = split(classification())
    fisher = FisherOperator(model, "sparse_categorical_crossentropy", data, kind="empirical")
    assert relative_error(fisher @ BLOCK, fisher_of("empirical") @ BLOCK) <= 1e-6


# Monte Carlo -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, weights_of_examples()])
@pytest.mark.parametrize("name", LOSSES)
def test_monte_carlo_is_the_mean_over_its_own_sampled_labels(name, weights):
    loss, y, averaged = LOSSES[name]
    data = (X, y) if weights is None else (X, y, weights)
    model = mlp("float64")
    fisher = FisherOperator(model, loss, split(data), kind="monte_carlo", num_samples=3, seed=5)
    shares = shares_of(weights)
    labels = np.concatenate([batch[0] for batch in fisher.sampled_labels()], axis=1)
    assert labels.shape == (3, *y.shape)
    expected = sum(
        averaged / 3 * weighted(gradients_of_values(model, loss, X, sample), shares)
        for sample in labels
    )
    assert relative_error(fisher @ BLOCK, expected @ BLOCK) <= 1e-10


@pytest.mark.parametrize("name", LOSSES)
def test_monte_carlo_does_not_depend_on_the_cut_into_batches(name):
    loss, y, _ = LOSSES[name]
    one, three = (
        fisher_of("monte_carlo", loss, (X, y), sizes=sizes, num_samples=2)
        for sizes in ((NUM_EXAMPLES,), SPLIT)
    )
    labels = np.concatenate([batch[0] for batch in three.sampled_labels()], axis=1)
    np.testing.assert_allclose(one.sampled_labels()[0][0], labels, rtol=1e-14)
    block = vectors(31)
    assert relative_error(three @ block, one @ block) <= 1e-12


def philox(key, low, high):
    """The four uniform numbers of Philox4x32-10 at a key and a counter (Salmon et al., 2011)."""
    mask = 2**32 - 1
    keys, words = [key & mask, key >> 32], [low & mask, low >> 32, high & mask, high >> 32]
    for _ in range(10):
        first, second = 0xD2511F53 * words[0], 0xCD9E8D57 * words[2]
        words = [
            second >> 32 ^ words[1] ^ keys[0],
            second & mask,
            first >> 32 ^ words[3] ^ keys[1],
            first & mask,
        ]
        keys = [(keys[0] + 0x9E3779B9) & mask, (keys[1] + 0xBB67AE85) & mask]
    # The last 23 bits are the fraction of a float32 between 1 and 2.
    return (np.array(words) & 0x7FFFFF) / 2.0**23


def test_example_i_is_drawn_by_the_random_numbers_at_counter_i():
    seed = 3
    fisher = fisher_of("monte_carlo", num_samples=2, seed=seed)
    labels = np.concatenate([batch[0] for batch in fisher.sampled_labels()], axis=1)
    key = int(stream(seed, 7049, 0).integers(2**64, size=1, dtype=np.uint64)[0])
    numbers = [[philox(key, i, sample)[0] for i in range(NUM_EXAMPLES)] for sample in range(2)]
    shares = np.cumsum(softmax(np.asarray(mlp("float64")(X)), axis=-1), axis=-1)
    np.testing.assert_array_equal(labels, np.sum(shares <= np.array(numbers)[..., None], axis=-1))


def test_monte_carlo_is_one_fixed_matrix_for_each_seed():
    v = vectors(31)
    first = fisher_of("monte_carlo")
    np.testing.assert_array_equal(first @ v, first @ v)
    np.testing.assert_array_equal(first @ v, fisher_of("monte_carlo") @ v)
    singles = np.stack([first @ column for column in v.T], axis=1)
    assert relative_error(first @ v, singles) <= 1e-14
    assert relative_error(fisher_of("monte_carlo", seed=1) @ v, first @ v) > 1e-2
    streamed = fisher_of("monte_carlo", memory_share=0)
    np.testing.assert_array_equal(streamed @ v, first @ v)


@pytest.mark.parametrize("name", LOSSES)
def test_monte_carlo_approaches_type_2_with_the_root_of_the_samples(name):
    loss, y, _ = LOSSES[name]
    block = vectors(31, 4)
    exact = fisher_of("type2", loss, (X, y), sizes=(NUM_EXAMPLES,)) @ block
    errors = [
        relative_error(
            fisher_of("monte_carlo", loss, (X, y), sizes=(NUM_EXAMPLES,), num_samples=samples)
            @ block,
            exact,
        )
        for samples in (20, 2000)
    ]
    assert errors[1] <= 0.05
    assert 3 <= errors[0] / errors[1] <= 30  # 10 but for chance


# Behaviour ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["type2", "monte_carlo", "empirical"])
def test_regularization_adds_its_hessian_and_the_rest_is_positive_semidefinite(kind):
    def build(regularizer):
        return sequential(
            layers.Dense(3, activation="tanh", dtype="float64", kernel_regularizer=regularizer),
            layers.Dense(2, dtype="float64"),
        )

    data = split(regression())
    plain, penalized = (
        FisherOperator(build(regularizer), "mse", data, kind=kind)
        for regularizer in (None, keras.regularizers.L2(0.05))
    )
    matrix = plain.to_dense()
    added = np.diag(np.r_[np.full(9, 0.1), np.zeros(11)])
    block = vectors(20)
    np.testing.assert_allclose((penalized @ block) - matrix @ block, added @ block, atol=1e-7)
    values = np.linalg.eigvalsh(matrix)
    assert np.abs(matrix - matrix.T).max() <= 1e-14 * values[-1]
    assert values[0] >= -1e-14 * values[-1]


@pytest.mark.parametrize("kind", ["type2", "monte_carlo", "empirical"])
def test_gradient_and_loss_are_the_objectives(kind):
    fisher = fisher_of(kind)
    ggn = GaussNewtonOperator(mlp("float64"), SPARSE, split(classification()))
    product, gradient = fisher.product_and_gradient(np.ones(31))
    assert relative_error(gradient, ggn.gradient()) <= 1e-14
    assert relative_error(fisher.gradient(), ggn.gradient()) <= 1e-14
    assert fisher.loss() == pytest.approx(ggn.loss(), rel=1e-14)
    assert relative_error(fisher @ np.ones(31), product) <= 1e-14
    assert fisher.num_traces == 4  # two signatures, with the gradient and without
    words = "monte_carlo, 1 sample, seed 0" if kind == "monte_carlo" else kind
    assert repr(fisher) == (
        f"FisherOperator({words}, SparseCategoricalCrossentropy, 31 parameters, 3 batches, float64)"
    )


def test_a_nan_names_the_batch():
    x = np.where(np.arange(NUM_EXAMPLES)[:, None] == 7, np.nan, X)
    with pytest.raises(FloatingPointError, match="in batch 1 of 3"):
        fisher_of("empirical", "mse", (x, REAL)) @ np.ones(31)


PAIR = (lambda model, batch: model(batch[0]), lambda z, batch: tf.reduce_mean(z))
BAD_INPUT = {
    "unknown kind": ("type1", "mse", (X, REAL), {}, "'type2', 'monte_carlo', 'empirical'"),
    "no samples": ("monte_carlo", "mse", (X, REAL), {"num_samples": 0}, "at least 1"),
    "negative seed": ("monte_carlo", "mse", (X, REAL), {"seed": -1}, "at least 0"),
    "a function": ("empirical", lambda m, b: m(b[0]), (X, REAL), {}, "cannot be separated"),
    "no distribution": ("type2", "mae", (X, REAL), {}, "mean squared error"),
    "no distribution to sample": ("monte_carlo", "huber", (X, REAL), {}, "mean squared error"),
    "a pair": ("type2", PAIR, (X, REAL), {}, "needs the distribution"),
    "a pair's mean": ("empirical", PAIR, (X, REAL), {}, "one value for each example"),
    "at probabilities": ("type2", "categorical_crossentropy", (X, REAL), {}, "at logits"),
    "a mean over the batch": (
        "empirical",
        lambda y_true, y_pred: tf.reduce_mean(y_true - y_pred),
        (X, REAL),
        {},
        "one value",
    ),
    "a negative weight": (
        "empirical",
        "mse",
        (X, REAL, -weights_of_examples()),
        {},
        "sample weight is negative",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input(name):
    kind, loss, data, options, message = BAD_INPUT[name]
    with pytest.raises(ValueError, match=message):
        fisher_of(kind, loss, data, **options)


def test_negative_loss_weights_are_an_error():
    case = CASES["two outputs, lists"]
    model = case.build("float64")
    model.compile(loss=case.loss(), loss_weights=[1.0, -1.0])
    with pytest.raises(ValueError, match="loss weight is negative"):
        FisherOperator(model, None, split(case.data()), kind="empirical")


def test_labels_are_drawn_for_monte_carlo_only():
    with pytest.raises(ValueError, match="not for 'type2'"):
        fisher_of("type2").sampled_labels()


def test_an_affine_loss_has_an_empirical_fisher_matrix_where_g_is_zero():
    data = (X, REAL)
    fisher = fisher_of("empirical", affine_loss, data)
    ggn = GaussNewtonOperator(mlp("float64"), affine_loss, split(data))
    assert np.linalg.norm(fisher @ np.ones(31)) > 0.1
    np.testing.assert_array_equal(ggn @ np.ones(31), 0.0)
