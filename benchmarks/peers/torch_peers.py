"""The PyTorch peers, each used as its documentation says.

torch_peers.py curvlinops | hessian-eigenthings | PyHessian
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import version
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from child import (
    Answer,
    Implementation,
    NotOfferedError,
    nodes_of,
    quadrature,
    serve,
    timed,
)
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


NETWORKS = {"dense": dense, "cnn": cnn, "transformer": Transformer, "lstm": LastOfLSTM}


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


class TorchPeer(Implementation):
    """The network, its weights and batches, in PyTorch."""

    package = ""

    def versions(self) -> Answer:
        """Return names and versions of what computes."""
        return {
            self.package: version(self.package),
            "PyTorch": torch.__version__,
            "Python": platform.python_version(),
        }

    def build(self) -> None:
        """Copy the weights, and make the operator."""
        network = dict(self.problem.network)
        kind = network.pop("kind")
        dtype = getattr(torch, network["dtype"])
        self.model = NETWORKS[kind](**network).to(dtype)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        weights = in_torch_layout(kind, self.problem.weights)
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(torch.from_numpy(weight))
        self.batches = [self.batch(arrays) for arrays in self.problem.batches]
        self.criterion = {"cross-entropy": nn.CrossEntropyLoss, "squared-error": nn.MSELoss}[
            network["loss"]
        ]()
        self.make()

    def batch(self, arrays: tuple[np.ndarray, ...]) -> tuple[torch.Tensor, ...]:
        """Return a batch as tensors; images with their channels first, a label a row of logits."""
        x, y, *rest = arrays
        if x.ndim == 4:
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        if np.issubdtype(y.dtype, np.integer):
            y = y.ravel().astype(np.int64)
        return tuple(torch.from_numpy(array) for array in (x, y, *rest))

    def unweighted(self) -> None:
        """Refuse sample weights: there is no documented way to pass them."""
        if self.problem.sample_weight is not None:
            raise NotOfferedError

    def allow_forward_mode(self) -> None:
        """Use PyTorch's plain LSTM: the faster one has no forward mode, and raises."""
        torch.backends.mkldnn.enabled = self.problem.network["kind"] != "lstm"

    def flat(self, arrays: list[np.ndarray]) -> torch.Tensor:
        """Return a vector in the order of the PyTorch parameters."""
        turned = in_torch_layout(self.problem.network["kind"], arrays)
        return torch.from_numpy(np.concatenate([array.ravel() for array in turned]))

    def make(self) -> None:
        """Make the operator."""
        raise NotImplementedError

    def warm(self, order: int, draws: int) -> Answer:
        """Make the operator again, with its checks if it has any, and run a step."""

        def run() -> None:
            self.make()
            self.lanczos(1, 1)

        seconds, _ = timed(run)
        return {"seconds": seconds, "ways": ""}


class Curvlinops(TorchPeer):
    """`HessianLinearOperator`, `fast_lanczos`, `lanczos_approximate_spectrum`, SciPy's `eigsh`."""

    package = "curvlinops-for-pytorch"

    def make(self) -> None:
        """Make the operator with its own checks on, as is its default."""
        from curvlinops import GGNLinearOperator, HessianLinearOperator

        self.unweighted()
        self.allow_forward_mode()
        kind = {"hessian": HessianLinearOperator, "ggn": GGNLinearOperator}[self.matrix]
        self.operator = kind(self.model, self.criterion, self.parameters, self.batches)
        self.products = 0
        inner = self.operator._matmat

        def counted(block: list[torch.Tensor]) -> list[torch.Tensor]:
            self.products += block[0].shape[-1]
            return inner(block)

        self.operator._matmat = counted

    def product(self, vector: torch.Tensor) -> Any:
        """Return A v."""
        return (self.operator @ vector).numpy()

    def lanczos(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run `fast_lanczos`, without reorthogonalization, one draw after another."""
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        torch.manual_seed(seed)
        seconds, pairs = timed(lambda: [fast_lanczos(self.operator, order) for _ in range(draws)])
        found = [(values.tolist(), (vectors[0] ** 2).tolist()) for values, vectors in pairs]
        return {"seconds": seconds, **nodes_of(found)}

    def density(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run `lanczos_approximate_spectrum`, which first finds the ends of the spectrum."""
        from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum

        torch.manual_seed(seed)
        before = self.products
        grid, values = lanczos_approximate_spectrum(self.operator, order, num_repeats=draws)
        return {
            "grid": grid.tolist(),
            "values": values.tolist(),
            "products": self.products - before,
        }

    def block(self, draws: int) -> Answer:
        """Time a product with a block of vectors."""
        generator = torch.Generator().manual_seed(0)
        block = torch.randn(self.operator.shape[0], draws, generator=generator)
        self.operator @ block[:, :draws]
        return {"seconds": timed(lambda: self.operator @ block)[0]}

    def eigenvalues(self, k: int, effort: float, seed: int = 0) -> Answer:
        """Run `eigsh` on `to_scipy()`; effort is its tolerance."""
        from scipy.sparse.linalg import eigsh

        operator = self.operator.to_scipy()
        start = np.random.default_rng(seed).standard_normal(operator.shape[0])
        before = self.products
        seconds, (values, _) = timed(lambda: eigsh(operator, k, which="LM", tol=effort, v0=start))
        return {
            "seconds": seconds,
            "values": sorted(values.tolist(), key=abs, reverse=True),
            "products": self.products - before,
        }


class Eigenthings(TorchPeer):
    """`HessianOperator`, `lanczos_tridiagonal`, `spectral_density`, `lanczos`."""

    package = "hessian-eigenthings"

    def make(self) -> None:
        """Make the operator from a loss of model and batch, which may use sample weights."""
        import hessian_eigenthings as he

        def weighted(model: Any, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
            x, y, weight = batch
            losses = type(self.criterion)(reduction="none")(model(x), y)
            return (losses.reshape(len(x), -1).mean(1) * weight).mean()

        if self.matrix == "ggn":
            self.unweighted()
            self.allow_forward_mode()
            self.operator: Any = he.GGNOperator(
                self.model,
                self.batches,
                he.supervised_forward,
                he.supervised_loss_of_output(self.criterion),
            )
        else:
            plain = self.problem.sample_weight is None
            loss = he.supervised_loss(self.criterion) if plain else weighted
            self.operator = he.HessianOperator(self.model, self.batches, loss)

    def product(self, vector: torch.Tensor) -> Any:
        """Return A v."""
        return self.operator.matvec(vector).detach().numpy()

    def lanczos(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run `lanczos_tridiagonal` with reorthogonalization, one draw after another."""
        from hessian_eigenthings import lanczos_tridiagonal
        from hessian_eigenthings.linalg import SingleDeviceBackend

        backend = SingleDeviceBackend()

        def run() -> list[Any]:
            results = []
            for draw in range(draws):
                generator = torch.Generator().manual_seed(1000 * seed + draw)
                probe = torch.empty(self.operator.size, dtype=self.operator.dtype)
                start = backend.rademacher_like(probe, generator=generator)
                results.append(lanczos_tridiagonal(self.operator, start, order))
            return results

        seconds, results = timed(run)
        # Where it stopped early there are as many off-diagonals as diagonals.
        pairs = [
            quadrature(t.alphas.numpy(), t.betas.numpy()[: len(t.alphas) - 1]) for t in results
        ]
        return {"seconds": seconds, **nodes_of(pairs)}

    def density(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run `spectral_density`."""
        from hessian_eigenthings import spectral_density

        result = spectral_density(
            self.operator, num_runs=draws, lanczos_steps=order, seed=1000 * seed
        )
        return {
            "grid": result.grid.tolist(),
            "values": result.density.tolist(),
            "products": order * draws,
        }

    def eigenvalues(self, k: int, effort: float, seed: int = 0) -> Answer:
        """Run `lanczos`; effort is its number of steps, 0 its default of 2 k."""
        from hessian_eigenthings import lanczos

        steps = int(effort) or None
        seconds, result = timed(lambda: lanczos(self.operator, k=k, max_iter=steps, seed=seed))
        return {
            "seconds": seconds,
            "values": result.eigenvalues.tolist(),
            "products": result.iterations,
        }


class PyHessian(TorchPeer):
    """`hessian(...).density` and `.eigenvalues`.

    The released version calls `torch.eig`, which PyTorch has no longer: without the stand-in
    given here `density` ends in a RuntimeError after all its products.
    """

    package = "PyHessian"

    def make(self) -> None:
        """Make the operator."""
        import pyhessian

        if self.matrix == "ggn":
            raise NotOfferedError
        self.unweighted()
        torch.eig = _eig
        self.operator = pyhessian.hessian(
            self.model, self.criterion, dataloader=self.batches, cuda=False
        )

    def product(self, vector: torch.Tensor) -> Any:
        """Return A v."""
        sizes = [p.numel() for p in self.operator.params]
        parts = zip(vector.split(sizes), self.operator.params, strict=True)
        _, product = self.operator.dataloader_hv_product([v.reshape(p.shape) for v, p in parts])
        return torch.cat([part.reshape(-1) for part in product]).detach().numpy()

    def lanczos(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run `density`, one draw after another."""
        torch.manual_seed(seed)
        seconds, (nodes, weights) = timed(lambda: self.operator.density(iter=order, n_v=draws))
        return {
            "seconds": seconds,
            "nodes": np.asarray(nodes, np.float64).tolist(),
            "weights": np.asarray(weights, np.float64).tolist(),
        }

    def eigenvalues(self, k: int, effort: float, seed: int = 0) -> Answer:
        """Run `eigenvalues`, power iteration; effort is its tolerance."""
        torch.manual_seed(seed)
        count = 0
        inner = type(self.operator).dataloader_hv_product

        def counted(v: list[torch.Tensor]) -> Any:
            nonlocal count
            count += 1
            return inner(self.operator, v)

        self.operator.dataloader_hv_product = counted
        seconds, (values, _) = timed(
            lambda: self.operator.eigenvalues(top_n=k, tol=effort, maxIter=1000)
        )
        return {"seconds": seconds, "values": [float(v) for v in values], "products": count}


def _eig(matrix: torch.Tensor, eigenvectors: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `torch.eig` returned for a matrix of real eigenvalues."""
    values, vectors = torch.linalg.eig(matrix)
    return torch.stack([values.real, values.imag], dim=1), vectors.real


PEERS = {peer.package: peer for peer in (Curvlinops, Eigenthings, PyHessian)}

if __name__ == "__main__":
    serve(PEERS[sys.argv[1]]())
