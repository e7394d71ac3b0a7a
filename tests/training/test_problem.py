import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse.linalg import LinearOperator

from spectral_density.curvature.hessian import HessianOperator
from spectral_density.engines.tensorflow import batches as functions
from spectral_density.engines.tensorflow.variables import Variables
from spectral_density.engines.tensorflow.weights import Weights
from spectral_density.training.problem import (
    BLOCK_WIDTH,
    CountedOperator,
    counted_parts,
    problem_of,
    rows_in_parts,
)
from spectral_density.training.steps import Work


def variables():
    return [
        tf.Variable(np.array([1e-40, 2.0, np.nan], "float32")),
        tf.Variable(np.array([[1e-310, 3.0]])),
        tf.Variable(tf.constant([1.5, 6e-8], tf.bfloat16)),
        tf.Variable(tf.constant(2.0, tf.float16)),
    ]


def bits(found):
    return [variable.numpy().tobytes() for variable in found]


# Weights -----------------------------------------------------------------------------------------


def test_weights_are_put_back_bit_for_bit_whatever_their_dtypes():
    found = variables()
    weights = Weights(Variables(found))
    before, held = bits(found), weights.hold()
    for displacement in (np.ones(8), -3.0 * np.arange(8)):
        weights.move(held, displacement)
        assert bits(found) != before
        weights.restore(held)
        assert bits(found) == before


def test_what_is_held_does_not_change_when_the_variables_do():
    variable = tf.Variable(tf.ones([3]))
    weights = Weights(Variables([variable]))
    held = weights.hold()
    variable.assign_add(tf.ones([3]))
    variable.scatter_nd_add([[0]], [5.0])

    @tf.function
    def halve():
        variable.assign(0.5 * variable)

    halve()
    np.testing.assert_array_equal(held.vector, 1.0)
    weights.restore(held)
    # Nor by what moves the variables after they were put back.
    variable.assign_add(tf.ones([3]))
    weights.restore(held)
    np.testing.assert_array_equal(variable, 1.0)


def test_weights_move_from_what_was_held_by_a_sum_that_is_rounded_once():
    variable = tf.Variable(np.array([1.0, 1e8], "float32"))
    weights = Weights(Variables([variable]))
    held = weights.hold()
    weights.move(held, np.array([1.0, 1.0]))
    weights.move(held, np.array([0.25, 7.0]))
    np.testing.assert_array_equal(variable, np.array([1.25, 1e8 + 7], "float32"))
    np.testing.assert_array_equal(held.vector, [1.0, 1e8])


def test_mirrored_weights_move_on_every_replica():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        variable = tf.Variable([1.0, 2.0])
    weights = Weights(Variables([variable]))
    held = weights.hold()
    weights.move(held, np.ones(2))
    np.testing.assert_array_equal(variable.values[0], [2.0, 3.0])
    weights.restore(held)
    np.testing.assert_array_equal(variable.values[0], [1.0, 2.0])


# Work --------------------------------------------------------------------------------------------


def test_a_pass_is_a_gradient_of_every_example_two_losses_or_half_a_product():
    assert Work(200.0, gradient_examples=200.0).data_passes == 1.0
    assert Work(200.0, loss_examples=200.0).data_passes == 0.5
    assert Work(200.0, product_examples=200.0).data_passes == 2.0
    assert Work(100.0, 50.0, 30.0, 20.0).data_passes == (50 + 2 * 30 + 0.5 * 20) / 100


def test_products_are_counted_by_vectors_and_their_examples_and_are_those_of_the_shifted_matrix():
    a = np.diag(np.arange(1.0, 31.0))
    for width in (1, BLOCK_WIDTH - 3, BLOCK_WIDTH, 2 * BLOCK_WIDTH + 5):
        for in_blocks in (False, True):
            work, widths = Work(100.0), []

            class Seen(LinearOperator):
                def __init__(self, widths=widths):
                    super().__init__(a.dtype, a.shape)
                    self.widths = widths

                def _matmat(self, X):
                    self.widths.append(X.shape[1])
                    return a @ X

            operator = CountedOperator(Seen(), work, 10.0, 0.5, in_blocks)
            x = np.random.default_rng(0).normal(size=(30, width))
            np.testing.assert_allclose(operator.matmat(x), a @ x + 0.5 * x, rtol=1e-13)
            assert work.num_products == width
            assert work.product_examples == 10.0 * width
            if in_blocks:
                assert set(widths) <= {1, BLOCK_WIDTH}
            else:
                assert widths == [width]
    assert operator.T is operator


def test_a_loss_a_gradient_and_a_product_are_counted_over_all_examples():
    x = tf.Variable([0.5, 2.0], dtype=tf.float64)
    problem = problem_of(HessianOperator.from_function(lambda x: tf.reduce_sum(x**3), x))
    loss, gradient = problem.loss_and_gradient()
    assert loss == pytest.approx(8.125)
    np.testing.assert_allclose(gradient, [0.75, 12.0])
    assert problem.loss() == loss
    product = problem.curvature() @ np.array([1.0, 1.0])
    np.testing.assert_allclose(product, [3.0, 12.0])
    work = problem.work
    assert (work.gradient_examples, work.loss_examples, work.product_examples) == (1, 1, 1)
    assert problem.parts() == []  # a function has no data to part


# Parts -------------------------------------------------------------------------------------------


def test_a_batch_is_cut_into_parts_of_one_size_and_left_whole_where_it_has_no_rows():
    batch = (tf.range(10), None, tf.ones([10, 2]))
    parts = rows_in_parts(functions, batch, 4)
    assert [part[0].numpy().tolist() for part in parts] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert all(part[1] is None and part[2].shape == (2, 2) for part in parts)
    assert len(rows_in_parts(functions, (tf.range(3),), 4)) == 1
    ragged = (tf.ragged.constant([[1], [2, 3]]),)
    assert rows_in_parts(functions, ragged, 2) == [ragged]
    assert len(rows_in_parts(functions, (tf.range(4), tf.range(8)), 2)) == 1


def test_the_parts_of_a_matrix_have_the_matrix_as_their_mean():
    x = np.random.default_rng(0).normal(size=(24, 3))
    w = tf.Variable(np.ones(3))

    class Model(tf.Module):
        def __init__(self):
            self.w = w

    def loss(model, batch):
        return tf.reduce_mean(tf.linalg.matvec(batch, model.w) ** 4)

    for batches in ([tf.constant(x)], [tf.constant(x[i : i + 6]) for i in range(0, 24, 6)]):
        operator = HessianOperator(Model(), loss, batches)
        parts = counted_parts(operator, Work(24.0), 0.1)
        assert [part.num_examples for part in parts] == [6.0] * 4
        mean = np.mean([part @ np.eye(3) for part in parts], axis=0)
        np.testing.assert_allclose(mean, operator.to_dense() + 0.1 * np.eye(3), rtol=1e-12)
