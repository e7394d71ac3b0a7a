"""This package, answering for itself."""

from __future__ import annotations

import platform
import statistics
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from child import Answer, NotOfferedError, serve, timed
from ours_runs import Runs

import spectral_density as sd

LOSSES = {
    "cross-entropy": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "squared-error": keras.losses.MeanSquaredError(),
}


class Positions(keras.layers.Layer):
    """Adds a learned vector for each place in the sequence."""

    def build(self, shape: tuple[int, ...]) -> None:
        """Make the vectors."""
        self.table = self.add_weight(shape=shape[-2:], name="table")

    def call(self, x: Any) -> Any:
        """Add them."""
        return x + self.table


def dense(widths: list[int], activation: str | None, bias: bool, **_: Any) -> Any:
    layers = [
        keras.layers.Dense(width, activation if i < len(widths) - 2 else None, use_bias=bias)
        for i, width in enumerate(widths[1:])
    ]
    return keras.Sequential([keras.Input((widths[0],)), *layers])


def cnn(**_: Any) -> Any:
    def conv(filters: int) -> Any:
        return keras.layers.Conv2D(filters, 3, activation="relu")

    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            *(conv(64), conv(64), keras.layers.MaxPooling2D()),
            *(conv(128), conv(128), keras.layers.MaxPooling2D()),
            keras.layers.Flatten(),
            keras.layers.Dense(1024, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def transformer(vocabulary: int, length: int, width: int, heads: int, layers: int, **_: Any) -> Any:
    def norm(x: Any) -> Any:
        return keras.layers.LayerNormalization(epsilon=1e-5)(x)

    tokens = keras.Input((length,), dtype="int32")
    x = Positions()(keras.layers.Embedding(vocabulary, width)(tokens))
    for _layer in range(layers):
        y = norm(x)
        x = x + keras.layers.MultiHeadAttention(heads, width // heads)(y, y, use_causal_mask=True)
        y = keras.layers.Dense(4 * width, keras.activations.gelu)(norm(x))
        x = x + keras.layers.Dense(width)(y)
    return keras.Model(tokens, keras.layers.Dense(vocabulary)(norm(x)))


def lstm(features: int, width: int, classes: int, **_: Any) -> Any:
    return keras.Sequential(
        [keras.Input((28, features)), keras.layers.LSTM(width), keras.layers.Dense(classes)]
    )


NETWORKS = {"dense": dense, "cnn": cnn, "transformer": transformer, "lstm": lstm}


class Ours(Runs):
    """Keras models on TensorFlow."""

    def versions(self) -> Answer:
        """Return names and versions of what computes."""
        return {
            "spectral-density": sd.__version__,
            "TensorFlow": tf.__version__,
            "Keras": keras.__version__,
            "Python": platform.python_version(),
        }

    def model(self, weights: list[np.ndarray] | None = None, dtype: str | None = None) -> Any:
        """Return the network with the weights of the problem."""
        network = dict(self.problem.network)
        keras.config.set_floatx(dtype or network["dtype"])
        keras.config.set_dtype_policy(dtype or network["dtype"])
        model = NETWORKS[network.pop("kind")](**network)
        weights = self.problem.weights if weights is None else weights
        model.set_weights([w.reshape(v.shape) for w, v in zip(weights, model.weights, strict=True)])
        return model

    def build(self) -> None:
        """Make the operator."""
        loss = LOSSES[self.problem.network["loss"]]
        kind = {"hessian": sd.HessianOperator, "ggn": sd.GaussNewtonOperator}[self.matrix]
        self.operator = kind(self.model(), loss, self.problem.batches)

    def bare(self, rounds: int) -> Answer:
        """Time products with a vector, and their compiled graphs in a bare loop, in turn."""
        operator = self.operator
        vector = np.random.default_rng(0).standard_normal(operator.shape[0])
        operator @ vector
        rows = tf.constant(vector[None], operator.parameters.dtype)
        zeros = tf.zeros(rows.shape, tf.float64)
        calls = []
        for number, at in enumerate(operator.sweep.inputs()):
            cut, kept = operator.sweep.cache.kept(number, 1)
            calls.append(partial(cut.products, kept, at, rows))

        def loop() -> np.ndarray:
            total = zeros
            for call in calls:
                (total,) = call(total)
            return total.numpy()

        loop()
        turns = [(timed(lambda: operator @ vector)[0], timed(loop)[0]) for _ in range(rounds)]
        product, bare = (statistics.median(column) for column in zip(*turns, strict=True))
        return {"product": product, "bare": bare}

    def train(self, epochs: int, output: str) -> Answer:
        """Train the network with Adam, and write the problem with the weights it ends at."""
        keras.utils.set_random_seed(0)
        model = self.model()
        model.compile(
            keras.optimizers.Adam(), LOSSES[self.problem.network["loss"]], metrics=["accuracy"]
        )
        fit = model.fit(self.problem.x, self.problem.y, batch_size=64, epochs=epochs, verbose=0)
        weights = [np.asarray(weight) for weight in model.weights]
        problem = type(self.problem)(
            self.problem.network, weights, self.problem.x, self.problem.y, self.problem.batch
        )
        problem.save(output)
        return {name: values[-1] for name, values in fit.history.items()}

    def exact(self, output: str) -> Answer:
        """Write every eigenvalue of the dense matrix, computed in float64."""
        if self.matrix != "hessian":
            raise NotOfferedError
        weights = [weight.astype("float64") for weight in self.problem.weights]
        model = self.model(weights, "float64")
        x = self.problem.x.astype("float64")
        operator = sd.HessianOperator(
            model, LOSSES[self.problem.network["loss"]], [(x, self.problem.y)]
        )
        passes, dense = timed(operator.to_dense)
        seconds, eigenvalues = timed(lambda: np.linalg.eigvalsh(dense))
        np.save(output, eigenvalues)
        return {"dense": passes, "eigenvalues": seconds}


if __name__ == "__main__":
    serve(Ours())
