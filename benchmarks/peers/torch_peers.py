"""The PyTorch peers, each used as its documentation says.

torch_peers.py curvlinops | hessian-eigenthings | PyHessian
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from importlib.metadata import version
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
from torch_networks import NETWORKS, in_torch_layout


class TorchPeer(Implementation):
    """The network, its weights and batches, in PyTorch."""

    package = ""
    module = ""  # by which it is imported
    device = "cpu"

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
        # Evaluation mode: batch normalization by its statistics.
        self.model = NETWORKS[kind](**network).to(self.device, dtype).eval()
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
        return tuple(torch.from_numpy(array).to(self.device) for array in (x, y, *rest))

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
        flat = np.concatenate([array.ravel() for array in turned])
        return torch.from_numpy(flat).to(self.device)

    def product(self, vector: torch.Tensor) -> Any:
        """Return A v."""
        return self.multiply(vector).detach().cpu().numpy()

    def multiply(self, vector: torch.Tensor) -> torch.Tensor:
        """Return A v where the vector is."""
        raise NotImplementedError

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
    module = "curvlinops"

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

    def multiply(self, vector: torch.Tensor) -> torch.Tensor:
        """Return A v."""
        return self.operator @ vector

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
    module = "hessian_eigenthings"

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

    def multiply(self, vector: torch.Tensor) -> torch.Tensor:
        """Return A v."""
        return self.operator.matvec(vector)

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
    module = "pyhessian"

    def make(self) -> None:
        """Make the operator."""
        import pyhessian

        if self.matrix == "ggn":
            raise NotOfferedError
        self.unweighted()
        torch.eig = _eig
        self.operator = pyhessian.hessian(
            self.model, self.criterion, dataloader=self.batches, cuda=self.device != "cpu"
        )

    def multiply(self, vector: torch.Tensor) -> torch.Tensor:
        """Return A v."""
        sizes = [p.numel() for p in self.operator.params]
        parts = zip(vector.split(sizes), self.operator.params, strict=True)
        _, product = self.operator.dataloader_hv_product([v.reshape(p.shape) for v, p in parts])
        return torch.cat([part.reshape(-1) for part in product])

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


class PyTorch(TorchPeer):
    """PyTorch itself: the ways to multiply that its own documentation shows, and their blocks."""

    package = "torch"
    module = "torch"

    def make(self) -> None:
        """Name the loss as a function of the parameters, by name."""
        self.names = [name for name, p in self.model.named_parameters() if p.requires_grad]
        self.values = {
            name: p.detach() for name, p in zip(self.names, self.parameters, strict=True)
        }
        (self.only_batch,) = self.batches

    def loss(self) -> torch.Tensor:
        """Return the loss of the model."""
        x, y = self.only_batch
        return self.criterion(self.model(x), y)

    def loss_at(self, values: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss at other values of the parameters."""
        x, y = self.only_batch
        return self.criterion(torch.func.functional_call(self.model, values, (x,)), y)

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Return a vector (n,), or rows (k, n), in the shapes of the parameters."""
        parts = vector.split([p.numel() for p in self.parameters], dim=-1)
        return [
            part.reshape(vector.shape[:-1] + p.shape)
            for part, p in zip(parts, self.parameters, strict=True)
        ]

    def gradient(self) -> Any:
        """Return the gradient."""
        return torch.autograd.grad(self.loss(), self.parameters)

    def double_backward(self, vector: list[torch.Tensor]) -> Any:
        """Return H v by a gradient of the gradient."""
        gradient = torch.autograd.grad(self.loss(), self.parameters, create_graph=True)
        return torch.autograd.grad(gradient, self.parameters, vector)

    def with_kept_graph(self) -> Callable[[list[torch.Tensor]], Any]:
        """Return H v of which the graph of the gradient is kept from one product to the next."""
        gradient = torch.autograd.grad(self.loss(), self.parameters, create_graph=True)
        return lambda vector: torch.autograd.grad(
            gradient, self.parameters, vector, retain_graph=True
        )

    def forward_over_reverse(self, vector: list[torch.Tensor]) -> Any:
        """Return H v by `torch.func.jvp` of `torch.func.grad`."""
        tangent = dict(zip(self.names, vector, strict=True))
        found = torch.func.jvp(torch.func.grad(self.loss_at), (self.values,), (tangent,))[1]
        return [found[name] for name in self.names]


PEERS = {peer.package: peer for peer in (Curvlinops, Eigenthings, PyHessian)}

if __name__ == "__main__":
    serve(PEERS[sys.argv[1]]())
