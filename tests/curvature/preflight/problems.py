"""Small operators that several tests of the preflight check share."""

import keras
import numpy as np
import tensorflow as tf
from models import classification, split

from spectral_density.curvature import HessianOperator

SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
SIZES = (6, 3, 3)  # halves of the first are of the size of the others: fewer graphs


def hessian(model, loss=SPARSE, data=None, sizes=SIZES, **options):
    return HessianOperator(model, loss, split(data or classification(), sizes), **options)


def squared_error(model, batch):
    return tf.reduce_mean(tf.square(model(batch[0]) - batch[1]))


def contrastive(model, batch):
    z = model(batch[0])
    logits = tf.matmul(z, z, transpose_b=True)
    labels = tf.range(tf.shape(z)[0])
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))


def examples():
    x, y = classification()
    return tf.data.Dataset.from_tensor_slices((np.tile(x, (4, 1)), np.tile(y, 4)))


NOISE = np.random.default_rng(0)


def noise_added(x, y):
    # tf.random begins anew with each iterator once a test has set its global seed.
    noise = tf.numpy_function(
        lambda n: NOISE.normal(size=n).astype("float32"), [tf.shape(x)], tf.float32
    )
    return x + tf.ensure_shape(noise, x.shape), y
