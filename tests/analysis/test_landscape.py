import keras
import numpy as np
import pytest
import tensorflow as tf
from models import CASES, compiled, truth

from spectral_density.analysis import landscape as landscape_module
from spectral_density.analysis.directions import normalized, random_directions
from spectral_density.analysis.landscape import loss_landscape
from spectral_density.curvature.hessian import HessianOperator
from spectral_density.linalg.eigen import top_eigenpairs

MATRIX = np.array([[4.0, 1.0, 0.0], [1.0, 3.0, 0.5], [0.0, 0.5, -2.0]])
LINEAR = np.array([0.3, -0.2, 0.1])


@pytest.fixture
def quadratic():
    """1/2 w'Aw + b'w + 7 at a known point."""
    w = tf.Variable([0.5, -1.0, 0.25], dtype=tf.float64)

    def loss(w):
        return (
            0.5 * tf.tensordot(w, tf.linalg.matvec(MATRIX, w), 1)
            + tf.tensordot(tf.constant(LINEAR), w, 1)
            + 7.0
        )

    return HessianOperator.from_function(loss, w), w


def exact(point):
    return 0.5 * point @ MATRIX @ point + LINEAR @ point + 7.0


def test_a_line_has_the_losses_themselves(quadratic):
    operator, w = quadratic
    start = w.numpy()
    direction = np.array([3.0, 0.0, 4.0]) / 5
    line = loss_landscape(operator, direction, radius=2.0, num_points=9)
    (distances,) = line.coordinates
    np.testing.assert_array_equal(distances, np.linspace(-2, 2, 9))
    true = [exact(start + t * direction) for t in distances]
    np.testing.assert_allclose(line.losses, true, rtol=1e-14)
    assert line.loss == pytest.approx(exact(start), rel=1e-14)
    assert line.num_passes == 9 + 3


def test_a_plane_has_its_first_direction_along_the_first_axis(quadratic):
    operator, w = quadratic
    start = w.numpy()
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 2)))[0]
    plane = loss_landscape(operator, basis, radius=(1.0, 0.5), num_points=5)
    assert plane.losses.shape == (5, 5)
    first, second = plane.coordinates
    assert (first[-1], second[-1]) == (1.0, 0.5)
    for i, s in enumerate(first):
        for j, t in enumerate(second):
            assert plane.losses[i, j] == pytest.approx(exact(start + basis @ [s, t]), rel=1e-14)


def test_of_a_quadratic_loss_the_model_is_the_loss(quadratic):
    operator, _ = quadratic
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 2)))[0]
    for directions in (basis[:, 0], basis):
        landscape = loss_landscape(operator, directions, radius=3.0, num_points=7)
        np.testing.assert_allclose(landscape.quadratic_model(), landscape.losses, rtol=1e-13)


def test_slope_and_curvature_are_those_of_the_dense_truth():
    case, true = CASES["mlp"], truth("mlp")
    operator = HessianOperator(compiled(case, "float64"), None, [case.data()])
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(operator.shape[0], 2)))[0]
    plane = loss_landscape(operator, basis, num_points=3)
    np.testing.assert_allclose(plane.slopes, basis.T @ true.gradient, atol=1e-12)
    np.testing.assert_allclose(plane.curvature, basis.T @ true.hessian @ basis, atol=1e-12)
    assert plane.loss == pytest.approx(true.loss)


def test_the_default_radius_is_where_the_model_has_risen_by_the_loss(quadratic):
    operator, w = quadratic
    w.assign(np.linalg.solve(MATRIX, -LINEAR))  # no slope
    pair = top_eigenpairs(operator, 1, which="LA", progress=False)
    line = loss_landscape(operator, pair.vectors, num_points=3)
    assert line.losses[-1] == pytest.approx(2 * line.loss, rel=1e-10)
    both = loss_landscape(operator, np.eye(3)[:, :2], num_points=2)
    risen = both.coordinates[0][-1] ** 2 / 2 * MATRIX[1, 1]
    assert risen == pytest.approx(both.loss)  # the flatter of the two has the larger radius


def test_where_all_is_flat_the_radius_is_one():
    w = tf.Variable([1.0, 2.0])
    operator = HessianOperator.from_function(lambda w: 0.0 * tf.reduce_sum(w**2), w)
    line = loss_landscape(operator, np.array([1.0, 0.0]), num_points=2)
    np.testing.assert_array_equal(line.coordinates[0], [-1.0, 1.0])


def test_by_default_the_plane_is_that_of_the_top_two_eigenvectors(quadratic):
    operator, w = quadratic
    start = w.numpy()
    values, vectors = np.linalg.eigh(MATRIX)
    first, second = np.argsort(-np.abs(values))[:2]
    plane = loss_landscape(operator, radius=1.0, num_points=3, progress=False)
    np.testing.assert_allclose(plane.curvature, np.diag(values[[first, second]]), atol=1e-10)
    ends = [exact(start + sign * vectors[:, first]) for sign in (1, -1)]
    np.testing.assert_allclose(sorted(plane.losses[[0, 2], 1]), sorted(ends), rtol=1e-10)
    line = loss_landscape(operator, num_directions=1, num_points=3, progress=False)
    assert line.losses.shape == (3,)
    assert line.directions == "top"


def test_random_directions_are_orthonormal_and_follow_the_seed(quadratic):
    operator, _ = quadratic
    planes = [loss_landscape(operator, "random", seed=s, num_points=3) for s in (0, 0, 1)]
    np.testing.assert_allclose(planes[0].gram, np.eye(2), atol=1e-12)
    np.testing.assert_array_equal(planes[0].losses, planes[1].losses)
    assert not np.array_equal(planes[0].losses, planes[2].losses)


def conv_model():
    keras.utils.set_random_seed(3)
    inputs = keras.Input((6, 6, 2))
    h = keras.layers.Conv2D(4, 3, activation="tanh", name="conv")(inputs)
    h = keras.layers.BatchNormalization(name="norm")(h)
    h = keras.layers.DepthwiseConv2D(2, depth_multiplier=2, name="depthwise")(h)
    h = keras.layers.SeparableConv2D(3, 2, name="separable")(h)
    h = keras.layers.Conv2DTranspose(5, 2, name="transposed")(h)
    h = keras.layers.Reshape((9, 5))(h)
    h = keras.layers.MultiHeadAttention(2, 3, name="attention")(h, h)
    h = keras.layers.GRU(4, name="gru")(h)
    model = keras.Model(inputs, keras.layers.Dense(3, name="dense")(h))
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(8, 6, 6, 2)).astype("f"), rng.normal(size=(8, 3)).astype("f"))]
    # Zeros would stay where they are, whatever the direction.
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model, HessianOperator(model, "mse", data)


# Axes that are summed over within a filter, by the place of the variable; None: it does not move.
FILTERS = {
    "conv/kernel": (0, 1, 2),
    "conv/bias": None,
    "norm/gamma": None,
    "depthwise/kernel": (0, 1),
    "separable/depthwise_kernel": (0, 1),
    "separable/pointwise_kernel": (0, 1, 2),
    "transposed/kernel": (0, 1, 3),
    "attention/query/kernel": (0,),
    "attention/query/bias": None,
    "attention/attention_output/kernel": (0, 1),
    "gru/gru_cell/kernel": (0,),
    "gru/gru_cell/recurrent_kernel": (0,),
    "gru/gru_cell/bias": None,
    "dense/kernel": (0,),
}


@pytest.mark.parametrize("normalize", ["filter", "layer"])
def test_each_filter_moves_by_its_own_norm(normalize, monkeypatch):
    model, operator = conv_model()
    before = [v.numpy().astype(float) for v in model.trainable_variables]
    moves = []

    def moved():
        now = [v.numpy().astype(float) for v in model.trainable_variables]
        moves.append([b - a for a, b in zip(before, now, strict=True)])
        return 1.0

    monkeypatch.setattr(operator, "loss", moved)
    line = loss_landscape(
        operator, "random", num_directions=1, normalize=normalize, num_points=3, progress=False
    )
    np.testing.assert_array_equal(line.coordinates[0], [-1.0, 0.0, 1.0])
    by_path = {
        v.path: (w, m) for v, w, m in zip(model.trainable_variables, before, moves[-1], strict=True)
    }
    for path, axes in FILTERS.items():
        weights, move = by_path[path]
        if axes is None:
            assert not move.any(), path
            continue
        of_filter = [np.sqrt(np.sum(a**2, axis=axes)) for a in (move, weights)]
        if normalize == "filter":
            np.testing.assert_allclose(*of_filter, rtol=1e-4, err_msg=path)
        else:
            assert np.linalg.norm(move) == pytest.approx(np.linalg.norm(weights), rel=1e-4), path
            assert not np.allclose(*of_filter, rtol=1e-2), path
    total = sum(np.sum(move**2) for move in moves[-1])
    assert line.gram[0, 0] == pytest.approx(total, rel=1e-4)


def test_the_rows_of_an_embedding_are_its_filters():
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Embedding(5, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((4,), dtype="int32"), *layers])
    operator = HessianOperator(model, "mse", [(np.arange(8).reshape(2, 4) % 5, np.ones((2, 2)))])
    basis = normalized(operator, np.ones((operator.shape[0], 1)), "filter")
    rows = operator.parameters.unflatten(basis[:, 0])[0]
    table = model.trainable_variables[0].numpy()
    np.testing.assert_allclose(
        np.linalg.norm(rows, axis=1), np.linalg.norm(table, axis=1), rtol=1e-6
    )


def test_random_directions_are_not_the_numbers_of_the_users_data():
    data = np.random.default_rng(0).standard_normal(1000)
    (direction,) = random_directions(1000, 1, 0).T
    assert abs(direction @ data) < 4.5


def test_the_seed_reaches_the_eigenvectors(quadratic, monkeypatch):
    seen = []

    def watched(operator, count, **options):
        seen.append(options["seed"])
        return top_eigenpairs(operator, count, **options)

    monkeypatch.setattr(landscape_module, "top_eigenpairs", watched)
    loss_landscape(quadratic[0], radius=1.0, num_points=2, seed=7)
    assert seen == [7]


def test_of_one_parameter_there_is_a_line():
    w = tf.Variable([2.0])
    operator = HessianOperator.from_function(lambda w: tf.reduce_sum(w**2), w)
    assert loss_landscape(operator, num_points=3, progress=False).losses.shape == (3,)


def test_the_model_of_directions_that_are_not_orthonormal_is_right(quadratic):
    w = tf.Variable([[0.5, -1.0], [0.25, 2.0]], dtype=tf.float64)
    operator = HessianOperator.from_function(
        lambda w: tf.reduce_sum(w[0] ** 2) + 3 * w[1, 0] * w[1, 1] + tf.reduce_sum(w), w
    )
    plane = loss_landscape(operator, "random", normalize="filter", num_points=5, progress=False)
    assert abs(plane.gram[0, 1]) > 1e-3
    np.testing.assert_allclose(plane.quadratic_model(), plane.losses, rtol=1e-12, atol=1e-12)
    given = loss_landscape(operator, np.ones((4, 1)), normalize="filter", num_points=3)
    assert given.gram[0, 0] == pytest.approx(np.sum(w.numpy() ** 2))


@pytest.mark.parametrize(
    ("directions", "options", "error", "message"),
    [
        ("bottom", {}, ValueError, 'must be "top", "random" or an array, got .bottom'),
        ("random", {"normalize": "unit"}, ValueError, 'must be "filter", "layer" or None'),
        ("random", {"num_directions": 3}, ValueError, "num_directions must be at most 2"),
        ("random", {"num_directions": 1.5}, TypeError, "num_directions must be an integer"),
        ("random", {"seed": -1}, ValueError, "seed must be at least 0"),
        ("random", {"normalize": "filter"}, ValueError, "needs filters, weights with two axes"),
        (np.eye(3)[0], {"num_directions": 2}, ValueError, "the array has 1: leave it out"),
        (np.eye(3)[0], {"seed": -1}, ValueError, "seed must be at least 0"),
        (["a", "b"], {}, ValueError, "directions must have shape"),
        (None, {}, ValueError, "directions must have shape .*, got None"),
    ],
)
def test_options_of_directions_that_make_no_sense_are_errors(
    quadratic, directions, options, error, message
):
    with pytest.raises(error, match=message):
        loss_landscape(quadratic[0], directions, **options)


@pytest.mark.parametrize(
    ("directions", "message"),
    [(np.zeros(4), "a direction is zero"), (np.ones((4, 2)), "directions are the same")],
)
def test_normalized_directions_that_span_nothing_are_errors(directions, message):
    w = tf.Variable([[0.5, -1.0], [0.25, 2.0]])
    operator = HessianOperator.from_function(lambda w: tf.reduce_sum(w**2), w)
    with pytest.raises(ValueError, match=message):
        loss_landscape(operator, directions, normalize="filter")


@pytest.mark.parametrize("name", ["batch norm", "regularizers and add_loss"])
def test_weights_and_state_are_put_back_bit_for_bit(name):
    case = CASES[name]
    model = compiled(case)
    operator = HessianOperator(model, None, [case.data()], training=True)
    before = [v.numpy().copy() for v in model.variables]
    loss_landscape(operator, np.eye(operator.shape[0], 2), radius=0.3, num_points=3)
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable.numpy())


def test_weights_are_put_back_after_an_exception(quadratic, monkeypatch):
    operator, w = quadratic
    before, calls = w.numpy().copy(), []

    def interrupted():
        calls.append(w.numpy().copy())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return 1.0

    monkeypatch.setattr(operator, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loss_landscape(operator, np.array([1.0, 0.0, 0.0]), radius=1.0, num_points=5)
    assert not np.array_equal(calls[-1], before)
    np.testing.assert_array_equal(w.numpy(), before)


def test_losses_that_overflow_are_kept_as_they_are():
    w = tf.Variable([1.0, 2.0])
    operator = HessianOperator.from_function(lambda w: tf.exp(tf.reduce_sum(w**2)), w)
    line = loss_landscape(operator, np.array([1.0, 0.0]), radius=100.0, num_points=3)
    assert np.isinf(line.losses[[0, 2]]).all()
    assert np.isfinite(line.losses[1])


def test_a_shared_model_of_keras_moves_along_its_own_eigenvector():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(loss="mse")
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(8, 3)).astype("f"), rng.normal(size=(8, 2)).astype("f"))]
    operator = HessianOperator(model, None, data)
    pairs = top_eigenpairs(operator, 2, progress=False)
    # The loss of a linear model is quadratic: its curvature along the eigenvector is exact.
    plane = loss_landscape(operator, pairs.vectors, num_points=5)
    np.testing.assert_allclose(plane.losses, plane.quadratic_model(), rtol=2e-5)
    np.testing.assert_allclose(plane.curvature, np.diag(pairs.values), atol=1e-5)
    assert "5 x 5 points" in repr(plane)


@pytest.mark.parametrize(
    ("directions", "options", "message"),
    [
        (np.ones(3), {}, "must be orthonormal, and are off by 2"),
        (np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]), {}, "must be orthonormal"),
        (np.ones(4) / 2, {}, r"shape \(3,\), \(3, 1\) or \(3, 2\), got \(4,\)"),
        (np.eye(3), {}, r"got \(3, 3\)"),
        (np.array([np.nan, 0.0, 1.0]), {}, "NaN or infinity"),
        (np.eye(3)[0], {"radius": 0.0}, "radius must be greater than 0"),
        (np.eye(3)[:, :2], {"radius": (1.0, 2.0, 3.0)}, "3 values for 2 directions"),
        (np.eye(3)[0], {"num_points": 1}, "num_points must be at least 2"),
    ],
)
def test_what_makes_no_sense_is_an_error(quadratic, directions, options, message):
    with pytest.raises(ValueError, match=message):
        loss_landscape(quadratic[0], directions, **options)


def test_what_cannot_be_moved_is_an_error():
    with pytest.raises(TypeError, match="must be a CurvatureOperator"):
        loss_landscape(np.eye(3), np.eye(3)[0])
