"""The networks of the problems in PyTorch, and arrays in Keras's layout as theirs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn


class Transformer(nn.Module):
    """Causal layers with the norm first; query, key and value in one product."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int, **_: Any):
        super().__init__()
        self.heads = heads
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList()
        for _layer in range(layers):
            self.layers.append(
                nn.ModuleDict(
                    {
                        "norm1": nn.LayerNorm(width),
                        "qkv": nn.Linear(width, 3 * width),
                        "out": nn.Linear(width, width),
                        "norm2": nn.LayerNorm(width),
                        "up": nn.Linear(width, 4 * width),
                        "down": nn.Linear(4 * width, width),
                    }
                )
            )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        self.register_buffer("mask", torch.full((length, length), -torch.inf).triu(1))

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Return causal softmax attention of (batch, length, 3 width)."""
        batch, length, width = qkv.shape
        heads = qkv.reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = heads[0], heads[1], heads[2]
        scores = q @ k.transpose(-1, -2) / np.sqrt(q.shape[-1]) + self.mask
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width // 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of all tokens, one a row."""
        x = self.tokens(tokens) + self.positions
        for layer in self.layers:
            x = x + layer["out"](self.attend(layer["qkv"](layer["norm1"](x))))
            x = x + layer["down"](nn.functional.gelu(layer["up"](layer["norm2"](x))))
        return self.head(self.norm(x)).flatten(0, 1)


class LastOfLSTM(nn.Module):
    """A dense layer on the last output of an LSTM, whose second bias is left out."""

    def __init__(self, features: int, width: int, classes: int, **_: Any):
        super().__init__()
        self.lstm = nn.LSTM(features, width, batch_first=True)
        nn.init.zeros_(self.lstm.bias_hh_l0).requires_grad_(False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return self.head(self.lstm(x)[0][:, -1])


class Block(nn.Module):
    """Two convolutions, with a convolution of size one beside them where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.inner = nn.Sequential(
            *normalized(inputs, outputs, 3, stride), nn.ReLU(), *normalized(outputs, outputs, 3, 1)
        )
        changed = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*normalized(inputs, outputs, 1, stride) * changed)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rectified sum."""
        return (self.inner(x) + self.shortcut(x)).relu()


def normalized(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def resnet(widths: list[int], blocks: int, classes: int, **_: Any) -> nn.Module:
    layers: list[nn.Module] = [*normalized(3, widths[0], 3, 1), nn.ReLU()]
    before = widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Block(before, width, 2 if stage and not block else 1))
            before = width
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *pooled, nn.Linear(before, classes))


def dense(widths: list[int], activation: str | None, bias: bool, **_: Any) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs, bias=bias))
        if i < len(widths) - 2:
            layers.append({"relu": nn.ReLU, "tanh": nn.Tanh}[str(activation)]())
    return nn.Sequential(*layers)


def cnn(**_: Any) -> nn.Module:
    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3), nn.ReLU()]

    return nn.Sequential(
        *(*conv(3, 64), *conv(64, 64), nn.MaxPool2d(2)),
        *(*conv(64, 128), *conv(128, 128), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(5 * 5 * 128, 1024), nn.ReLU(), nn.Linear(1024, 10)),
    )


NETWORKS = {
    "dense": dense,
    "cnn": cnn,
    "transformer": Transformer,
    "lstm": LastOfLSTM,
    "resnet": resnet,
}


def in_torch_layout(kind: str, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """Return arrays in the shapes and order of Keras's weights as those of the PyTorch network."""
    if kind == "cnn":
        # Keras flattens (5, 5, 128), PyTorch (128, 5, 5).
        first = arrays[8].reshape(5, 5, 128, -1).transpose(2, 0, 1, 3)
        arrays = [*arrays[:8], first.reshape(5 * 5 * 128, -1), *arrays[9:]]
    if kind == "transformer":
        joined = list(arrays[:2])
        layers = arrays[2:-4]
        for start in range(0, len(layers), 16):
            layer = layers[start : start + 16]
            kernel = np.concatenate([layer[2], layer[4], layer[6]], axis=1)
            bias = np.concatenate([layer[3], layer[5], layer[7]])
            joined += [*layer[:2], kernel, bias, *layer[8:]]
        arrays = [*joined, *arrays[-4:]]
    turned = []
    for i, array in enumerate(arrays):
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif array.ndim == 2 and not (kind == "transformer" and i < 2):
            array = array.T
        turned.append(np.ascontiguousarray(array))
    if kind == "transformer":
        turned[:2] = [turned[1], turned[0]]  # a module's own parameters precede its children's
    return turned
