"""matfree on JAX, used as its documentation says.

The documentation leaves products with curvature matrices to the user, and shows two ways: a
derivative along each vector, and one linearization whose residuals are kept (`jax.linearize`, its
tutorial on vector calculus). It vectorizes over start vectors (`jax.vmap`), or takes one after
another (`jax.lax.map`) where memory is short. Both of each are tried, and the faster one is timed.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from child import Answer, Implementation, nodes_of, quadrature, serve, timed
from jax.flatten_util import ravel_pytree
from jax_networks import LOSSES, NETWORKS
from matfree import decomp, eig


class Matfree(Implementation):
    """`decomp.tridiag_sym` with full reorthogonalization, `eig.eigh_partial`."""

    block_lanczos = True

    def versions(self) -> Answer:
        """Return names and versions of what computes."""
        return {
            "matfree": version("matfree"),
            "JAX": jax.__version__,
            "Python": platform.python_version(),
        }

    def build(self) -> None:
        """Put weights and data in place; equal batches in one array, a smaller one apart."""
        network = dict(self.problem.network)
        forward = NETWORKS[network.pop("kind")]
        loss = LOSSES[network["loss"]]
        self.forward = partial(forward, **network)
        count = len(self.problem.x)

        def mean_loss(outputs: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
            return jnp.sum(loss(outputs, y) * weight) / count

        self.loss_of_outputs = mean_loss
        weights = self.problem.sample_weight
        if weights is None:
            weights = np.ones(count, np.float32)
        whole = count // self.problem.batch * self.problem.batch
        arrays = (self.problem.x, self.problem.y, weights)
        stacked = tuple(
            jnp.asarray(a[:whole].reshape(-1, self.problem.batch, *a.shape[1:])) for a in arrays
        )
        rest = tuple(jnp.asarray(a[whole:]) for a in arrays) if whole < count else None
        self.data = (stacked, rest)
        self.weights = [jnp.asarray(weight) for weight in self.problem.weights]
        flat, self.unravel = ravel_pytree(self.weights)
        self.size = flat.size
        self.compiled: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self.ways: dict[bool, tuple[str, str]] = {}  # by whether there are several draws

    # Products ------------------------------------------------------------------------------------

    def operator(self, way: str, weights: Any, data: Any) -> Callable[[jax.Array], jax.Array]:
        """Return the product with a flat vector, to be used inside a compiled function."""
        of_lists = (self.hessian if self.matrix == "hessian" else self.ggn)(way, weights, data)

        def product(vector: jax.Array) -> jax.Array:
            return ravel_pytree(of_lists(self.unravel(vector)))[0]

        return product

    def hessian(self, way: str, weights: Any, data: Any) -> Callable[[Any], Any]:
        """Forward over reverse, along each vector or linearized once."""
        stacked, rest = data

        def batch_gradient(weights: Any, batch: Any) -> Any:
            x, y, w = batch
            return jax.grad(lambda p: self.loss_of_outputs(self.forward(p, x), y, w))(weights)

        def gradient(weights: Any) -> Any:
            def add(total: Any, batch: Any) -> Any:
                return jax.tree.map(jnp.add, total, batch_gradient(weights, batch)), None

            total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), stacked)
            return total if rest is None else add(total, rest)[0]

        if way == "linearize":
            return jax.linearize(gradient, weights)[1]
        return lambda vector: jax.jvp(gradient, (weights,), (vector,))[1]

    def ggn(self, way: str, weights: Any, data: Any) -> Callable[[Any], Any]:
        """J' H J v batch by batch, or with J linearized once over all batches."""
        stacked, rest = data

        def curved(outputs: Any, batch: Any, direction: Any) -> Any:
            slope = jax.grad(lambda z: self.loss_of_outputs(z, *batch[1:]))
            return jax.jvp(slope, (outputs,), (direction,))[1]

        if way == "linearize":

            def outputs(weights: Any) -> Any:
                run = jax.lax.map(lambda x: self.forward(weights, x), stacked[0])
                return run, None if rest is None else self.forward(weights, rest[0])

            (of_stacked, of_rest), push = jax.linearize(outputs, weights)
            _, pull = jax.vjp(outputs, weights)

            def product(vector: Any) -> Any:
                along, along_rest = push(vector)
                bent = jax.lax.map(lambda t: curved(t[0], t[1], t[2]), (of_stacked, stacked, along))
                bent_rest = None if rest is None else curved(of_rest, rest, along_rest)
                return pull((bent, bent_rest))[0]

            return product

        def of_batch(vector: Any, batch: Any) -> Any:
            def run(weights: Any) -> Any:
                return self.forward(weights, batch[0])

            outputs, along = jax.jvp(run, (weights,), (vector,))
            return jax.vjp(run, weights)[1](curved(outputs, batch, along))[0]

        def product_by_batches(vector: Any) -> Any:
            def add(total: Any, batch: Any) -> Any:
                return jax.tree.map(jnp.add, total, of_batch(vector, batch)), None

            total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, weights), stacked)
            return total if rest is None else add(total, rest)[0]

        return product_by_batches

    def product(self, vector: Any) -> Any:
        """Return A v."""
        run = jax.jit(lambda v, *arguments: self.operator("along", *arguments)(v))
        return run(jnp.asarray(vector), self.weights, self.data)

    # Runs ----------------------------------------------------------------------------------------

    def compile(self, order: int, draws: int, way: str, many: str, data: Any) -> Callable[..., Any]:
        """Return the compiled run from start vectors, shape (draws, size)."""
        key = (order, draws, way, many, len(data[0][0]), data[1] is None)
        if key not in self.compiled:
            tridiagonalize = decomp.tridiag_sym(order, reortho="full", materialize=False)

            def run(starts: jax.Array, weights: Any, data: Any) -> Any:
                product = self.operator(way, weights, data)

                def of_one(start: jax.Array) -> Any:
                    return tridiagonalize(product, start).J_small

                if many == "vmap":
                    return jax.vmap(of_one)(starts)
                return jax.lax.map(of_one, starts)

            arguments = (self.starts(draws, 0), self.weights, data)
            self.compiled[key] = jax.jit(run).lower(*arguments).compile()
        return self.compiled[key]

    def starts(self, draws: int, seed: int) -> jax.Array:
        """Return signs at random, as the documentation recommends."""
        key = jax.random.PRNGKey(seed)
        return jax.random.rademacher(key, (draws, self.size)).astype(self.weights[0].dtype)

    def execute(
        self, order: int, draws: int, way: str, many: str, seed: int = 0, data: Any = None
    ) -> Any:
        """Run what was compiled, to the end."""
        data = self.data if data is None else data
        run = self.compile(order, draws, way, many, data)
        starts = jax.block_until_ready(self.starts(draws, seed))
        return timed(lambda: jax.block_until_ready(run(starts, self.weights, data)))

    def fastest(self, draws: int) -> tuple[str, str]:
        """Return the faster way to multiply, and to take several vectors, on two batches."""
        data = (tuple(array[:2] for array in self.data[0]), None)

        def measure(draws: int, way: str, many: str) -> float:
            self.execute(6, draws, way, many, data=data)
            return self.execute(6, draws, way, many, data=data)[0] / draws

        if draws > 1 and True in self.ways:
            return self.ways[True]
        if False not in self.ways:
            times = {way: measure(1, way, "map") for way in ("along", "linearize")}
            way = min(times, key=lambda name: times[name])
            self.ways[False] = (way, "map")
            self.one_at_a_time = times[way]
        if draws > 1:
            times = {way: measure(draws, way, "vmap") for way in ("along", "linearize")}
            way = min(times, key=lambda name: times[name])
            together = times[way] < self.one_at_a_time
            self.ways[True] = (way, "vmap") if together else self.ways[False]
        return self.ways[draws > 1]

    def warm(self, order: int, draws: int) -> Answer:
        """Choose the faster ways, and time the compilation of the run by them."""
        ways = self.fastest(draws)
        seconds, _ = timed(lambda: self.compile(order, draws, *ways, self.data))
        return {"seconds": seconds, "ways": ", ".join(ways[: 1 + (draws > 1)])}

    def use(self, draws: int, ways: str) -> Answer:
        """Take these ways instead of trying which are the fastest."""
        way, *many = ways.split(", ")
        self.ways[draws > 1] = (way, *many) if many else (way, "map")
        return {}

    def lanczos(self, order: int, draws: int, seed: int = 0) -> Answer:
        """Run `tridiag_sym` with full reorthogonalization."""
        seconds, (alpha, beta) = self.execute(order, draws, *self.fastest(draws), seed=seed)
        pairs = [quadrature(a, b) for a, b in zip(alpha, beta, strict=True)]
        return {"seconds": seconds, **nodes_of(pairs)}

    def eigenvalues(self, k: int, effort: float, seed: int = 0) -> Answer:
        """Run `eigh_partial`; effort is its number of steps."""
        way, _ = self.fastest(1)
        key = ("eigh", int(effort), way)
        start = self.starts(1, seed)[0]
        arguments = (start, self.weights, self.data)
        if key not in self.compiled:
            decompose = eig.eigh_partial(decomp.tridiag_sym(int(effort), reortho="full"))

            def run(start: jax.Array, weights: Any, data: Any) -> Any:
                return decompose(self.operator(way, weights, data), start)

            self.compiled[key] = jax.jit(run).lower(*arguments).compile()
        run = self.compiled[key]
        seconds, (values, _) = timed(lambda: jax.block_until_ready(run(*arguments)))
        values = sorted(np.asarray(values).tolist(), key=abs, reverse=True)
        return {"seconds": seconds, "values": values[:k], "products": int(effort)}


if __name__ == "__main__":
    serve(Matfree())
