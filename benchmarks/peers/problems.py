"""The networks, weights and data that every implementation gets, as one file each.

Weights are in the layout of Keras: kernels (inputs, outputs), convolutions (height, width,
inputs, outputs), one bias a gate. NumPy only: this file is read in the environments of the peers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Problem:
    """A network, its weights, its loss and its data, cut into batches."""

    network: dict[str, Any]  # kind, sizes, "loss" and "dtype"
    weights: list[np.ndarray]
    x: np.ndarray
    y: np.ndarray
    batch: int  # examples a batch; the last one may be smaller
    sample_weight: np.ndarray | None = None

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(weight.size for weight in self.weights)

    @property
    def batches(self) -> list[tuple[np.ndarray, ...]]:
        """The data as (x, y) or (x, y, sample_weight), batch by batch."""
        arrays = [self.x, self.y]
        if self.sample_weight is not None:
            arrays.append(self.sample_weight)
        return [
            tuple(array[start : start + self.batch] for array in arrays)
            for start in range(0, len(self.x), self.batch)
        ]

    def vector(self, seed: int) -> list[np.ndarray]:
        """Return a standard normal vector, in the shapes of the weights."""
        rng = np.random.default_rng(seed)
        return [rng.standard_normal(w.shape).astype(w.dtype) for w in self.weights]

    def save(self, path: Path) -> Path:
        """Write the problem to a file."""
        arrays = {f"weight_{i}": weight for i, weight in enumerate(self.weights)}
        if self.sample_weight is not None:
            arrays["sample_weight"] = self.sample_weight
        spec = json.dumps({"network": self.network, "batch": self.batch})
        np.savez(path, x=self.x, y=self.y, spec=np.array(spec), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Problem:
        """Read what `save` wrote."""
        with np.load(path) as file:
            spec = json.loads(str(file["spec"]))
            count = sum(name.startswith("weight_") for name in file.files)
            weight = file["sample_weight"] if "sample_weight" in file.files else None
            weights = [file[f"weight_{i}"] for i in range(count)]
            return cls(spec["network"], weights, file["x"], file["y"], spec["batch"], weight)


def weight_shapes(network: dict[str, Any]) -> list[tuple[int, ...]]:
    kind = network["kind"]
    if kind == "dense":
        widths = network["widths"]
        shapes: list[tuple[int, ...]] = []
        for inputs, outputs in pairwise(widths):
            shapes += [(inputs, outputs)] + [(outputs,)] * network["bias"]
        return shapes
    if kind == "cnn":
        shapes = []
        for inputs, outputs in ((3, 64), (64, 64), (64, 128), (128, 128)):
            shapes += [(3, 3, inputs, outputs), (outputs,)]
        return [*shapes, (5 * 5 * 128, 1024), (1024,), (1024, 10), (10,)]
    if kind == "resnet":
        return resnet_shapes(network["widths"], network["blocks"], network["classes"])
    width = network["width"]
    if kind == "lstm":
        gates = 4 * width
        return [
            (network["features"], gates),
            (width, gates),
            (gates,),
            (width, network["classes"]),
            (network["classes"],),
        ]
    if kind != "transformer":
        raise ValueError(f"No network is called {kind!r}.")
    vocabulary = network["vocabulary"]
    norm = [(width,), (width,)]
    attention = [(width, width), (width,)] * 4  # query, key, value, output
    expansion = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    layer = [*norm, *attention, *norm, *expansion]
    embeddings = [(vocabulary, width), (network["length"], width)]
    return [*embeddings, *layer * network["layers"], *norm, (width, vocabulary), (vocabulary,)]


def resnet_shapes(widths: list[int], blocks: int, classes: int) -> list[tuple[int, ...]]:
    def conv(size: int, inputs: int, outputs: int) -> list[tuple[int, ...]]:
        return [(size, size, inputs, outputs), (outputs,), (outputs,)]  # kernel, scale, shift

    shapes = conv(3, 3, widths[0])
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            shapes += conv(3, before, width) + conv(3, width, width)
            if before != width or (stage and not block):
                shapes += conv(1, before, width)
            before = width
    return [*shapes, (before, classes), (classes,)]


def random_weights(network: dict[str, Any], seed: int = 0) -> list[np.ndarray]:
    """Return Glorot-normal kernels, small biases, and scales of layer norms near 1."""
    rng = np.random.default_rng(seed)
    weights = []
    shapes = weight_shapes(network)
    for shape, following in zip(shapes, [*shapes[1:], ()], strict=True):
        if len(shape) == 1:
            # Of two vectors in a row the first is the scale of a layer norm.
            is_scale = following == shape and len(following) == 1
            weights.append(float(is_scale) + 0.05 * rng.standard_normal(shape))
        else:
            fan = np.prod(shape[:-2]) * (shape[-2] + shape[-1])
            weights.append(rng.standard_normal(shape) * np.sqrt(2 / fan))
    return [weight.astype(network["dtype"]) for weight in weights]


def _labelled(
    network: dict[str, Any], x: np.ndarray, classes: int, batch: int, label_shape: tuple[int, ...]
) -> Problem:
    labels = np.random.default_rng(1).integers(0, classes, label_shape)
    return Problem(network, random_weights(network), x, labels, batch)


def dense(
    widths: list[int], examples: int, batch: int, activation: str = "relu", dtype: str = "float32"
) -> Problem:
    """A classifier of dense layers with normal inputs."""
    network = {
        "kind": "dense",
        "widths": widths,
        "activation": activation,
        "bias": True,
        "loss": "cross-entropy",
        "dtype": dtype,
    }
    x = np.random.default_rng(0).standard_normal((examples, widths[0])).astype(dtype)
    return _labelled(network, x, widths[-1], batch, (examples,))


def mlp(examples: int = 10_000) -> Problem:
    """784-128-64-10, 109,386 parameters, 10,000 examples in batches of 512."""
    return dense([784, 128, 64, 10], examples, 512)


def cnn(examples: int = 512) -> Problem:
    """The CIFAR network of four convolutions, 3,548,810 parameters, batches of 64."""
    network = {"kind": "cnn", "loss": "cross-entropy", "dtype": "float32"}
    x = np.random.default_rng(0).standard_normal((examples, 32, 32, 3)).astype("float32")
    return _labelled(network, x, 10, 64, (examples,))


def transformer(examples: int = 64) -> Problem:
    """Four causal layers of width 128 on 64 tokens of 1000, 1,058,536 parameters, batches of 16."""
    sizes = {"vocabulary": 1000, "length": 64, "width": 128, "heads": 4, "layers": 4}
    return _sequences(sizes, examples, 16)


def gpt(examples: int = 32, **sizes: int) -> Problem:
    """Six causal layers of width 512 on 256 tokens of 1000, 20,071,400 parameters, one batch."""
    whole = {"vocabulary": 1000, "length": 256, "width": 512, "heads": 8, "layers": 6}
    return _sequences(whole | sizes, examples, examples)


def _sequences(sizes: dict[str, int], examples: int, batch: int) -> Problem:
    network = {"kind": "transformer", **sizes, "loss": "cross-entropy", "dtype": "float32"}
    shape = (examples, sizes["length"])
    tokens = np.random.default_rng(0).integers(0, sizes["vocabulary"], shape).astype("int32")
    return _labelled(network, tokens, sizes["vocabulary"], batch, shape)


def resnet(
    examples: int = 512,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    blocks: int = 2,
    size: int = 32,
) -> Problem:
    """ResNet-18 for CIFAR, 11,173,962 parameters, one batch.

    Batch normalization in inference form, its statistics those at the start, 0 and 1: the Hessian
    of a network as it is used, which `training=False` gives.
    """
    network = {
        "kind": "resnet",
        **{"widths": list(widths), "blocks": blocks, "classes": 10},
        **{"loss": "cross-entropy", "dtype": "float32"},
    }
    x = np.random.default_rng(0).standard_normal((examples, size, size, 3)).astype("float32")
    return _labelled(network, x, 10, examples, (examples,))


def lstm(examples: int = 512) -> Problem:
    """An LSTM of 128 units over 28 steps of 28 features, 81,674 parameters, batches of 64."""
    network = {
        "kind": "lstm",
        **{"features": 28, "width": 128, "classes": 10},
        **{"loss": "cross-entropy", "dtype": "float32"},
    }
    x = np.random.default_rng(0).standard_normal((examples, 28, 28)).astype("float32")
    return _labelled(network, x, 10, 64, (examples,))


def quadratic(
    eigenvalues: np.ndarray,
    batch: int | None = None,
    sample_weight: np.ndarray | None = None,
    seed: int = 0,
) -> Problem:
    """A linear model with squared error whose Hessian has exactly these eigenvalues, none < 0.

    The Hessian of the mean of w (x'v - y)^2 over n examples is 2/n X' diag(w) X: rows of X are
    sqrt(n / (2 w)) times the square root of the matrix, turned so that its rows are of equal
    kind. With weights they vary a hundredfold, and leaving them out gives another spectrum.
    """
    n = len(eigenvalues)
    rng = np.random.default_rng(seed)
    left, _ = np.linalg.qr(rng.standard_normal((n, n)))
    right, _ = np.linalg.qr(rng.standard_normal((n, n)))
    x = np.sqrt(n / 2) * left * np.sqrt(eigenvalues) @ right.T
    if sample_weight is not None:
        x /= np.sqrt(sample_weight)[:, None]
        sample_weight = sample_weight.astype("float32")
    network = {
        "kind": "dense",
        **{"widths": [n, 1], "activation": None, "bias": False},
        **{"loss": "squared-error", "dtype": "float32"},
    }
    weights = [rng.standard_normal((n, 1)).astype("float32")]
    y = rng.standard_normal((n, 1)).astype("float32")
    return Problem(network, weights, x.astype("float32"), y, batch or n, sample_weight)
