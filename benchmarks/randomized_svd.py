"""How close are the singular values of `randomized_svd` to those of the dense Hessian?

    python benchmarks/randomized_svd.py [--cache FILE] [--epochs 21]

An MNIST network, 784-15-10 with sigmoid (11,935 parameters), trained twice from the same weights:
with SGD 1e-3, which leaves it poorly trained, and with Adam 1e-2. Its Hessian is over all training
images. The reference is the dense matrix in float64, in closed form rather than from this package,
and its eigenvalues by ARPACK to rounding; `--cache` keeps them, with the weights they belong to.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import scipy.sparse.linalg
import tensorflow as tf
import tensorflow_datasets as tfds
from scipy.special import expit, softmax

import spectral_density as sd

RANK, OVERSAMPLING = 50, 10
DEPTHS = [1, 2, 3]
CROSS_ENTROPY = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def optimizers() -> dict[str, tf.keras.optimizers.Optimizer]:
    return {
        "SGD 1e-3": tf.keras.optimizers.SGD(1e-3),
        "Adam 1e-2": tf.keras.optimizers.Adam(1e-2),
    }


def network(dtype: str) -> tf.keras.Sequential:
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            tf.keras.Input([784], dtype=dtype),
            layers.Dense(15, activation="sigmoid", dtype=dtype),
            layers.Dense(10, dtype=dtype),  # logits
        ]
    )


def load_images() -> tuple[np.ndarray, np.ndarray]:
    data = tfds.load("mnist", split="train", as_supervised=True).batch(100_000)
    images, labels = next(iter(tfds.as_numpy(data)))
    return (images.reshape(-1, 784) / 255).astype(np.float32), labels


def make_operator(
    weights: list[np.ndarray], images: np.ndarray, labels: np.ndarray, dtype: str
) -> sd.HessianOperator:
    model = network(dtype)
    model.set_weights(weights)
    batches = tf.data.Dataset.from_tensor_slices((images.astype(dtype), labels)).batch(4000)
    return sd.HessianOperator(model, CROSS_ENTROPY, batches)


def trained_weights(name: str, images: np.ndarray, labels: np.ndarray, epochs: int) -> list:
    model = network("float32")
    model.compile(optimizers()[name], CROSS_ENTROPY)
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    return model.get_weights()


def dense_hessian(weights: list[np.ndarray], images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the Hessian of the mean cross-entropy, in the order in which Keras has the weights.

    With u = x W1, s = sigmoid(u) and z = s W2, biases as weights of an input of one, the mean over
    the images of: x x' (x) M in the first layer, s s' (x) Z in the second, and x s' (x) K between
    them, where the gradient of W2 depends on W1 through s as well.
    """
    kernel1, bias1, kernel2, bias2 = (np.asarray(weight, np.float64) for weight in weights)
    count, hidden, classes = len(images), len(bias1), len(bias2)
    x = np.hstack([images.astype(np.float64), np.ones((count, 1))])
    s = expit(x[:, :-1] @ kernel1 + bias1)
    slope, bend = s * (1 - s), s * (1 - s) * (1 - 2 * s)  # first and second derivative
    p = softmax(s @ kernel2 + bias2, axis=1)
    residual = p - np.eye(classes)[labels]  # gradient at the logits
    z = p[:, :, None] * np.eye(classes) - p[:, :, None] * p[:, None, :]
    k = slope[:, :, None] * (kernel2 @ z)
    m = (k @ kernel2.T) * slope[:, None, :]
    m += (bend * (residual @ kernel2.T))[:, :, None] * np.eye(hidden)
    s = np.hstack([s, np.ones((count, 1))])
    between = s[:, None, :, None] * k[:, :, None, :]  # (count, unit of u, row of W2, class)
    between[:, np.arange(hidden), np.arange(hidden)] += slope[:, :, None] * residual[:, None]

    first, second = x.shape[1] * hidden, s.shape[1] * classes
    dense = np.empty((first + second, first + second))
    corner = dense[:first, :first].reshape(x.shape[1], hidden, x.shape[1], hidden)  # a view
    for i in range(hidden):
        for j in range(i + 1):
            gram = x.T @ (x * m[:, i, j, None])
            corner[:, i, :, j] = corner[:, j, :, i] = gram
    dense[:first, first:] = (x.T @ between.reshape(count, -1)).reshape(first, second)
    dense[first:, :first] = dense[:first, first:].T
    last = np.einsum("nl,nm,ncd->lcmd", s, s, z, optimize=True)
    dense[first:, first:] = last.reshape(second, second)
    dense /= count
    return dense


def largest_singular_values(dense: np.ndarray) -> np.ndarray:
    """Return the RANK largest; rows of zeros, of pixels black in all images, are left out."""
    used = dense.any(axis=0)
    dense = dense[np.ix_(used, used)]
    start = np.ones(len(dense))
    values = scipy.sparse.linalg.eigsh(dense, RANK, v0=start, return_eigenvectors=False)
    return np.sort(np.abs(values))[::-1]


def reference(
    name: str, images: np.ndarray, labels: np.ndarray, epochs: int, cache: Path | None
) -> tuple[list[np.ndarray], np.ndarray]:
    """Return weights and true singular values of a network, from the cache if it has them."""
    key = f"{name}, {epochs} epochs, {len(images)} images"
    kept = {}
    if cache is not None and cache.exists():
        with np.load(cache) as file:
            kept = dict(file)
    if f"{key}: values" not in kept:
        start = time.perf_counter()
        weights = trained_weights(name, images, labels, epochs)
        dense = dense_hessian(weights, images, labels)
        vector = np.random.default_rng(0).standard_normal(len(dense))
        expected = dense @ vector
        product = make_operator(weights, images, labels, "float64") @ vector
        difference = np.linalg.norm(product - expected) / np.linalg.norm(expected)
        kept[f"{key}: values"] = largest_singular_values(dense)
        kept.update({f"{key}: weights {i}": value for i, value in enumerate(weights)})
        if cache is not None:
            with cache.open("wb") as file:
                np.savez(file, **kept)
        print(
            f"dense reference, {name}: {time.perf_counter() - start:.0f} s; "
            f"a float64 product differs by {difference:.1e}",
            flush=True,
        )
    return [kept[f"{key}: weights {i}"] for i in range(4)], kept[f"{key}: values"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, help="a file outside the repository")
    parser.add_argument("--epochs", type=int, default=21)
    arguments = parser.parse_args()
    images, labels = load_images()
    references = {
        name: reference(name, images, labels, arguments.epochs, arguments.cache)
        for name in optimizers()
    }
    print(
        f"MNIST, {len(images):,} training images; randomized_svd(rank={RANK}, "
        f"oversampling={OVERSAMPLING}); largest relative error of the singular values"
    )
    print(
        f"{'network':>9} {'accuracy':>8} {'dtype':>8} {'depth':>5} {'products':>8} {'seconds':>7} "
        f"{'top 20':>8} {'top 50':>8} {'sigma_1':>8} {'sigma_20':>8} {'sigma_50':>8}"
    )
    for name, (weights, truth) in references.items():
        model = network("float32")
        model.set_weights(weights)
        accuracy = np.mean(np.argmax(model(images), axis=1) == labels)
        for dtype in ["float32", "float64"]:
            hessian = make_operator(weights, images, labels, dtype)
            hessian @ np.zeros((hessian.shape[0], 17))  # compiled before the clock starts
            for depth in DEPTHS:
                start = time.perf_counter()
                svd = sd.randomized_svd(
                    hessian, RANK, oversampling=OVERSAMPLING, krylov_depth=depth, progress=False
                )
                seconds = time.perf_counter() - start
                errors = np.abs(svd.singular_values - truth) / truth
                print(
                    f"{name:>9} {accuracy:8.1%} {dtype:>8} {depth:5d} {svd.num_products:8d} "
                    f"{seconds:7.1f} {errors[:20].max():8.1e} {errors.max():8.1e} "
                    f"{truth[0]:8.1e} {truth[19]:8.1e} {truth[-1]:8.1e}"
                )


if __name__ == "__main__":
    main()
