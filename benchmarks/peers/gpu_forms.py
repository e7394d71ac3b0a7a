"""What `gpu.py` compares: ways to multiply with a Hessian, and steps of Lanczos, on one device."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import spectral_density as sd
from peers.jax_networks import mean_loss
from peers.problems import Problem
from spectral_density.linalg.lanczos_options import LanczosOptions

PRECISIONS = {"float32": "highest", "tensorfloat32": "tensorfloat32"}  # with JAX's names
BLOCKS = (4, 10)
STEPS = (10, 90)
OURS, BARE = "spectral_density", "JAX"


@dataclass
class Form:
    """One way to compute something."""

    who: str
    what: str
    run: Callable[[], Any]  # returns when the device is done
    exact: np.ndarray | None = None  # (n,) or (k, n), what comes out; None for a step of Lanczos
    to_numpy: Callable[[Any], np.ndarray] = np.asarray
    vectors: int = 1
    remark: Callable[[], str] | None = None
    distance: float | None = None  # from what is exact, relative
    seconds: list[float] = field(default_factory=list)  # a vector, round by round

    @property
    def name(self) -> str:
        """What the other rows call it."""
        return f"{self.who}, {self.what}"

    def compare(self) -> None:
        """Run it twice, which compiles it, and find how far it is from what is exact."""
        found = self.run()
        if self.exact is not None:
            found = self.to_numpy(found).astype(np.float64)
            self.distance = float(np.linalg.norm(found - self.exact) / np.linalg.norm(self.exact))
        self.run()

    def measure(self) -> None:
        """Time one call."""
        start = time.perf_counter()
        self.run()
        self.seconds.append((time.perf_counter() - start) / self.vectors)


@dataclass(frozen=True)
class Case:
    """A problem, ten vectors, and what is exact of it: by bare JAX at full precision."""

    problem: Problem
    weights: list[jax.Array]
    batch: tuple[jax.Array, jax.Array]
    rows: list[jax.Array]  # ten vectors, (10, ...) in the shapes of the weights
    gradient: list[np.ndarray]
    products: list[np.ndarray]  # (10, ...)

    @classmethod
    def of(cls, problem: Problem) -> Case:
        """Compute what is exact."""
        weights = [jnp.asarray(weight) for weight in problem.weights]
        (batch,) = ((jnp.asarray(x), jnp.asarray(y)) for x, y in problem.batches)
        vectors = [problem.vector(seed) for seed in range(max(BLOCKS))]
        rows = [jnp.asarray(np.stack(leaves)) for leaves in zip(*vectors, strict=True)]
        slope = jax.grad(mean_loss(problem.network))

        def exact(weights: Any, batch: Any, rows: Any) -> Any:
            def product(vector: Any) -> Any:
                return jax.jvp(lambda w: slope(w, batch), (weights,), (vector,))[1]

            return slope(weights, batch), jax.lax.map(product, rows)

        with jax.default_matmul_precision("highest"):
            found = jax.jit(exact)(weights, batch, rows)
        return cls(problem, weights, batch, rows, *jax.tree.map(np.asarray, found))

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.problem.num_parameters


def flat_rows(leaves: Any) -> np.ndarray:
    """Return arrays (k, ...) as one array (k, n)."""
    return np.concatenate([np.asarray(leaf).reshape(len(leaf), -1) for leaf in leaves], axis=1)


def flat(leaves: Any) -> np.ndarray:
    """Return arrays as one array (n,)."""
    return np.concatenate([np.asarray(leaf).ravel() for leaf in leaves])


def first(rows: list[jax.Array], count: int | None = None) -> list[jax.Array]:
    """Return the first of some vectors, or a block of as many as `count`."""
    return [leaf[0] if count is None else leaf[:count] for leaf in rows]


# JAX ---------------------------------------------------------------------------------------------


def bare_forms(case: Case, precision: str) -> Iterator[Form]:
    """Yield what `jax.grad`, `jax.jvp`, `jax.linearize` and `jax.vmap` give."""
    loss = mean_loss(case.problem.network)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        jitted = jax.jit(function)

        def run(*arguments: Any) -> Any:
            with jax.default_matmul_precision(PRECISIONS[precision]):
                return jax.block_until_ready(jitted(*arguments))

        return run

    def product(weights: Any, batch: Any, vector: Any) -> Any:
        return jax.jvp(lambda w: jax.grad(loss)(w, batch), (weights,), (vector,))[1]

    def linearize(weights: Any, batch: Any) -> Any:
        return jax.linearize(lambda w: jax.grad(loss)(w, batch), weights)[1]  # a pytree

    arguments = (case.weights, case.batch)
    linear = cache(lambda: compiled(linearize)(*arguments))
    grad, along = compiled(jax.grad(loss)), compiled(product)
    apply = compiled(lambda linear, vector: linear(vector))
    apply_rows = compiled(lambda linear, rows: jax.vmap(linear)(rows))
    one, exact = first(case.rows), flat(first(case.products))
    yield Form(BARE, "gradient", lambda: grad(*arguments), flat(case.gradient), flat)
    yield Form(BARE, "product", lambda: along(*arguments, one), exact, flat)
    yield Form(BARE, "linearized product", lambda: apply(linear(), one), exact, flat)
    for count in BLOCKS:
        block = first(case.rows, count)
        run = partial(lambda block: apply_rows(linear(), block), block)
        exact = flat_rows(first(case.products, count))
        yield Form(BARE, f"block of {count}, linearized", run, exact, flat_rows, count)


def our_forms(case: Case, precision: str, rounds: int) -> Iterator[Form]:
    """Yield this package's products and steps, with vectors where it keeps them."""
    loss = mean_loss(case.problem.network)
    # Full precision is what an operator computes in unless asked otherwise.
    options = {} if precision == "float32" else {"matmul_precision": precision}
    make = partial(sd.HessianOperator, case.weights, loss, [case.batch], **options)
    whole, kept = make(linearize=False), make()
    rows, exact = flat_rows(case.rows), flat_rows(case.products)

    def product(operator: Any, count: int) -> Callable[[], Any]:
        if operator.vectors is None:  # on a CPU they are NumPy's
            block = rows[:count].T.astype(np.float64)
            return lambda: (operator @ block).T
        placed = operator.vectors.to_engine(rows[:count])
        return lambda: jax.block_until_ready(operator.products_of(placed))

    yield Form(OURS, "product", product(whole, 1), exact[:1])

    def remark() -> str:
        held = kept.sweep.cache
        size = f"{held.nbytes / 1e9:.3g} GB"
        return f"it keeps {size}" if len(held) else f"it keeps nothing, which would be {size}"

    yield Form(OURS, "linearized product", product(kept, 1), exact[:1], remark=remark)
    for count in BLOCKS:
        run = product(kept, count)
        yield Form(OURS, f"block of {count}, linearized", run, exact[:count], vectors=count)
    yield Form(OURS, "A @ v, NumPy in and out", lambda: kept @ rows[0], exact[0])
    for step in STEPS:
        yield Form(OURS, f"Lanczos step {step}", steps_at(kept, step, rounds))


def steps_at(operator: Any, step: int, rounds: int) -> Callable[[], None]:
    """Return what makes one step of Lanczos a call, that number in the middle of the rounds."""
    # Each run is made twice before it is timed.
    before = max(step - rounds // 2 - 3, 0)
    order = before + rounds + 2

    def at(place: int) -> Any:
        options = LanczosOptions(
            operator,
            order,
            num_draws=1,
            seed=0,
            first_draw=0,
            reorthogonalize="full",
            draws_at_once=1,
            basis_dtype=None,
            basis="memory",
            keep_basis=True,
            start=None,
            checkpoint=None,
        )
        options.check_memory()
        alpha, beta = np.zeros((2, 1, order))
        group = options.group(options.groups[0], alpha, beta, options.allocate(1))
        for _ in range(place):
            group.advance(operator)
        return group

    @cache
    def group() -> Any:
        at(order)  # compiles what longer bases take
        return at(before)

    return lambda: group().advance(operator)


# PyTorch -----------------------------------------------------------------------------------------


def torch_forms(case: Case, precision: str) -> Iterator[Form]:
    """Yield PyTorch's own ways, and those of the packages on it that are installed."""
    import torch

    sys.path[:0] = [str(Path(__file__).parent)]  # as in the processes of the peers
    import torch_peers

    for backend in (torch.backends.cuda.matmul, torch.backends.cudnn):
        backend.allow_tf32 = precision == "tensorfloat32"
    cuda = torch.cuda.is_available()

    def peer(kind: Any) -> Any:
        made = kind()
        made.problem, made.matrix = case.problem, "hessian"
        made.device = "cuda" if cuda else "cpu"
        made.build()
        return made

    def to_end(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        def run() -> Any:
            found = function(*arguments)
            if cuda:
                torch.cuda.synchronize()
            return found

        return run

    plain = peer(torch_peers.PyTorch)

    def in_layout(leaves: list[Any]) -> Any:
        return plain.flat([np.asarray(leaf) for leaf in leaves])

    def rows_of(leaves: list[Any], count: int) -> Any:
        return torch.stack([in_layout([leaf[i] for leaf in leaves]) for i in range(count)])

    def joined(parts: Any, shape: tuple[int, ...] = ()) -> np.ndarray:
        flat = [part.detach().reshape(*shape, -1) for part in parts]
        return torch.cat(flat, dim=-1).cpu().numpy()

    vectors, exact = (rows_of(leaves, max(BLOCKS)) for leaves in (case.rows, case.products))
    exact, one = exact.cpu().numpy(), plain.split(vectors[0])
    kept = cache(plain.with_kept_graph)
    compiled = torch.compile(plain.forward_over_reverse)
    ways = {
        "double backward": plain.double_backward,
        "double backward, graph kept": lambda vector: kept()(vector),
        "torch.func": plain.forward_over_reverse,
        "torch.func, compiled": compiled,
    }
    slope = in_layout(case.gradient).cpu().numpy()
    yield Form("PyTorch", "gradient", to_end(plain.gradient), slope, joined)
    for name, way in ways.items():
        yield Form("PyTorch", name, to_end(way, one), exact[0], joined)
    for count in BLOCKS:
        run = to_end(torch.vmap(plain.forward_over_reverse), plain.split(vectors[:count]))
        to_numpy = partial(joined, shape=(count,))
        name = f"block of {count}, torch.func"
        yield Form("PyTorch", name, run, exact[:count], to_numpy, count)

    def as_numpy(found: Any) -> np.ndarray:
        return found.detach().cpu().numpy()

    for kind in torch_peers.PEERS.values():
        if importlib.util.find_spec(kind.module) is None:
            continue
        made = cache(partial(peer, kind))
        run = to_end(lambda made, vector: made().multiply(vector), made, vectors[0])
        yield Form(kind.package, "product", run, exact[0], as_numpy)
        if kind is torch_peers.Curvlinops:
            for count in BLOCKS:
                run = to_end(lambda made, v: made().multiply(v), made, vectors[:count].T)
                name, truth = f"block of {count}", exact[:count].T
                yield Form(kind.package, name, run, truth, as_numpy, count)
