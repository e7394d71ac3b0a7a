import numpy as np
import tensorflow as tf

from spectral_density.engines.tensorflow.precision import compute_dtype


def graph_of(function, *arguments):
    return tf.function(function).get_concrete_function(*arguments).graph


def test_data_in_half_precision_do_not_make_a_computation_one():
    x, w = tf.ones([3, 2], tf.float16), tf.Variable([1.0, 2.0])
    stored = graph_of(lambda x: tf.reduce_sum(tf.cast(x, tf.float32) * w), x)
    assert compute_dtype(stored, [w]) == np.float32
    used = graph_of(lambda x: tf.reduce_sum(x * tf.cast(w, tf.float16)), x)
    assert compute_dtype(used, [w]) == np.float16
    compared = graph_of(lambda x: tf.reduce_sum(w * tf.cast(tf.cast(w > 1, x.dtype), w.dtype)), x)
    assert compute_dtype(compared, [w]) == np.float32
