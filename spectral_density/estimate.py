"""Stochastic Lanczos quadrature: the spectrum of an operator, of given size or to a tolerance."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Literal

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._arguments import explained
from spectral_density._progress import progress_bar
from spectral_density.checkpoint import workers_of
from spectral_density.linalg.arguments import as_real_square, integer, number, product_error
from spectral_density.linalg.block_quadrature import simple_block_nodes
from spectral_density.linalg.lanczos_options import (
    basis_vectors,
    checked_basis_dtype,
    checked_block,
)
from spectral_density.linalg.lockstep import GROUP_BYTES, groups_begun, lockstep_groups
from spectral_density.linalg.quadrature import (
    gauss_quadrature,
    ritz_overlaps,
    simple_candidates,
    simple_nodes,
)
from spectral_density.linalg.start_vectors import start_vector
from spectral_density.linalg.tridiagonalization import LanczosStep, Tridiagonalization, lanczos
from spectral_density.linalg.vectors import Rows, rounding_of
from spectral_density.spectrum.accuracy import Ending
from spectral_density.spectrum.quadratures import ROUNDING
from spectral_density.spectrum.spectrum import Spectrum

ORDER = 90
"""Lanczos steps of a draw by default."""

NUM_DRAWS = 10
"""Start vectors by default."""

# Two draws, the fewest that show which eigenvalues are simple, decide how many steps there are.
_FIRST_DRAWS = 2
# With fewer steps than this nothing can be said about the effect of more.
_LEAST_STEPS = 8


@explained
def estimate_spectrum(
    operator: Any,
    /,
    order: int | None = None,
    num_draws: int | None = None,
    *,
    block: int = 1,
    tolerance: float | None = None,
    max_products: int | None = None,
    seed: int = 0,
    reorthogonalize: Literal["full", "none"] = "full",
    draws_at_once: int | None = None,
    basis_dtype: Any = None,
    basis: Literal["memory", "host", "disk"] = "memory",
    checkpoint: str | os.PathLike[str] | None = None,
    check: bool = True,
    progress: bool | None = None,
    callback: Callable[[LanczosStep], None] | None = None,
) -> Spectrum:
    """Estimate the eigenvalue density of a symmetric operator by stochastic Lanczos quadrature.

    With a `tolerance` the run makes as many steps and draws as that takes. What is held against it
    is `Spectrum.accuracy`: Wasserstein-1 distances (the area between two cumulative distributions)
    as shares of the range of the eigenvalues. The first draw or two make steps until the
    distribution at this order differs from that at half of it by no more than half the tolerance,
    or by what the width of the band leaves. Then draws of that order are added until this and the
    share of the draws are no more than the tolerance together; the true distance is then within it
    for nearly all seeds. `Spectrum.ended_by` says whether that was met or which bound came first.
    Of an operator with far outliers the range is large, so its bulk takes a small tolerance.

    Args:
        operator: symmetric, shape (n, n): any `LinearOperator`, array or sparse matrix.
        order: Lanczos steps a draw, at most n; None for 90. The extreme eigenvalues and the
            resolution of the density depend on it. With a tolerance, the most that a draw may
            make; None then for as many as keep the vectors of a draw within 1 GiB, at least 90.
        num_draws: start vectors, or blocks of them; None for 10 vectors in all. The error band
            narrows with their square root. With a tolerance, the most; None then for as many as
            `max_products` has room for.
        block: start vectors of a draw that share one Krylov space (block Lanczos), see `lanczos`.
            A step takes as many products, in one pass over the data. One block shows which
            eigenvalues are simple, where single vectors take two draws, and what it spends on the
            outliers is spent once.
        tolerance: make steps and draws until `Spectrum.accuracy.total` is at most this. With 3e-4
            the outliers of small classifiers were found; with 1e-2 a run ends after 8 steps, and
            none is known.
        max_products: products with single vectors that a run to a tolerance may take at most, those
            read from a checkpoint included; None for what it would take without: `order` times
            `num_draws`, which is 900 where neither is given.
        seed: seed of the start vectors.
        reorthogonalize: "full", or "none" for three vectors of memory a draw.
        draws_at_once: draws that share each pass over the data; None follows from the size.
        basis_dtype: "float64", or "float32" for half the memory; None for that of the vectors, see
            `lanczos`.
        basis: "memory", of the device where the operator has vectors there, "host", or "disk" for
            the basis in a temporary file, see `lanczos`.
        checkpoint: a directory in which each step is made durable, see `lanczos`: a run that was
            killed goes on where it was, and steps or draws can be added to one that ended, also
            by a smaller tolerance.
        check: let an operator that can (`CurvatureOperator.check`) first verify that it is one
            fixed, symmetric, finite matrix and the right derivative: two passes over the data and
            five gradients of a batch, once for its weights. Three passes at the first step record
            its loss, gradient norm and accuracy in `Spectrum.model_state`.
        progress: show a bar; None for only in interactive runs.
        callback: called after each step, see `lanczos`.

    Returns:
        Spectrum of the quadratures of all draws. With two draws or more, or a block of two or more
        (and reorthogonalization), the outliers that are converged and simple are known to weigh 1/n
        each.

    Raises:
        ValueError: if order < 1 or order * block > n, an argument is out of range, or the check
            fails (`PreflightError`).
        MemoryError: if the run would not fit into the free memory; the message has the figures.
        CheckpointError: if the checkpoint is of another problem, damaged, in use or unwritable.

    References:
        Ghorbani, Krishnan, Xiao (2019), arXiv 1901.10159.
        Chen, Trogdon, Ubaru (2021), arXiv 2105.06595.
    """
    linear = as_real_square(operator)
    size = linear.shape[0]
    basis_dtype = checked_basis_dtype(basis_dtype, basis_vectors(linear, basis))
    block = checked_block(block, size)
    limits = _limits(size, block, order, num_draws, tolerance=tolerance, max_products=max_products)
    if tolerance is not None and order is None:
        limits = replace(limits, order=_most_steps(size, block, reorthogonalize, basis_dtype))
    with progress_bar(limits.num_products, "Lanczos", progress) as bar:
        draws = _Draws(
            operator,
            {
                "seed": seed,
                "reorthogonalize": reorthogonalize,
                "basis_dtype": basis_dtype,
                "basis": basis,
                "checkpoint": checkpoint,
                "check": check,
                "block": block,
            },
            draws_at_once,
            bar,
            callback,
        )
        if limits.tolerance is None:
            draws.add_all(limits)
            return draws.spectrum(Ending.PLAN)
        return draws.spectrum(_add_to_tolerance(draws, limits, limits.tolerance))


def _model_state(operator: Any) -> dict[str, float]:
    """Return where the model of an operator stands; nothing for an operator without one."""
    if not hasattr(operator, "model_state"):
        return {}
    found: dict[str, float] = operator.model_state().numbers()
    return found


@dataclass(frozen=True)
class _Limits:
    """The most steps of a draw, draws, and products with single vectors, and the tolerance."""

    order: int
    num_draws: int
    num_products: int
    tolerance: float | None


def _limits(
    size: int, block: int, order: Any, num_draws: Any, *, tolerance: Any, max_products: Any
) -> _Limits:
    """Return the limits of a run, checked, with defaults for those that are None.

    Raises:
        ValueError: if one is out of range, or `max_products` is given without a tolerance.
    """
    steps = min(ORDER, size // block) if order is None else integer(order, "order", 1)
    draws = max(NUM_DRAWS // block, 1)
    draws = draws if num_draws is None else integer(num_draws, "num_draws", 1)
    if tolerance is None:
        if max_products is not None:
            raise ValueError(
                "max_products is the budget of a run to a tolerance: pass tolerance= too."
            )
        return _Limits(steps, draws, steps * draws * block, None)
    tolerance = number(tolerance, "tolerance", above=0.0)
    products = steps * draws * block if max_products is None else max_products
    products = integer(products, "max_products", 1)
    if products < block:
        raise ValueError(
            f"max_products is {products}, and the first step of a block of {block} takes {block}: "
            f"raise it, or use a smaller block."
        )
    # Where no number of draws is given, the budget alone bounds them: one more than it has.
    return _Limits(steps, products + 1 if num_draws is None else draws, products, tolerance)


class _Draws:
    """The draws made so far, and the spectrum that they give together.

    Of all Lanczos vectors only those of the first draw are used, by `find_simple`. A basis is the
    largest array by far: it is freed before that of the next draws is made.
    """

    def __init__(
        self,
        operator: Any,
        options: dict[str, Any],
        draws_at_once: int | None,
        bar: Any,
        callback: Callable[[LanczosStep], None] | None,
    ) -> None:
        self.operator = operator
        self.size = as_real_square(operator).shape[0]
        self.checkpoint = options["checkpoint"]
        self.num_draws = 0
        self.num_products = 0
        self.block: int = options["block"]
        self._options = options
        vectors = basis_vectors(as_real_square(operator), options["basis"])
        self._precision = rounding_of(operator, vectors)
        self._grouping = {
            "draws_at_once": draws_at_once,
            "reorthogonalize": options["reorthogonalize"],
            "basis_dtype": options["basis_dtype"],
            "checkpoint": options["checkpoint"],
            "workers": workers_of(operator),
            "block": self.block,
        }
        self._bar = bar
        self._callback = callback
        self._parts: list[Tridiagonalization] = []
        self._first_basis: Rows | None = None
        self._candidates, self._overlaps = np.zeros(0, int), np.zeros((0, 0))
        self._model_state: dict[str, float] | None = None

    @property
    def order(self) -> int:
        """Steps of each draw."""
        return self._parts[0].order

    def add_all(self, limits: _Limits) -> None:
        """Make all draws, in groups that follow from the size of the problem."""
        for draws in self.groups(limits.order, limits.num_draws):
            self.add(len(draws), limits.order)
            self.find_simple(limits.num_draws)

    def groups(self, order: int, num_draws: int) -> list[range]:
        """Return the next draws as they would advance together."""
        return lockstep_groups(
            self.size, order, first_draw=self.num_draws, num_draws=num_draws, **self._grouping
        )

    def next_group(self, order: int, num_draws: int) -> int:
        """Return how many of the next draws advance together; those that a checkpoint began do."""
        begun = groups_begun(self.checkpoint, self._grouping["workers"]).get(self.num_draws)
        if begun is not None:
            return begun - self.num_draws
        return len(self.groups(order, num_draws)[0]) if num_draws else 0

    def add(
        self, num_draws: int, order: int, until: Callable[[LanczosStep], bool] | None = None
    ) -> None:
        """Make the next draws in lockstep."""
        part = lanczos(
            self.operator,
            order,
            num_draws=num_draws,
            first_draw=self.num_draws,
            draws_at_once=num_draws,
            progress=False,
            callback=self._on_step,
            until=until,
            # A block shows by itself which eigenvalues are simple.
            keep_basis=self.block == 1,
            **self._options,
        )
        if not self._parts and part.bases is not None:
            self._first_basis = part.bases.parts[0]
        self._parts.append(replace(part, bases=None))
        self.num_draws += num_draws
        self.num_products += num_draws * part.order * self.block
        self._bar.update(self.num_products - self._bar.n)

    def model_state(self) -> dict[str, float]:
        """Return where the model stands, computed once; nothing where nothing is checked."""
        if self._model_state is None:
            self._model_state = _model_state(self.operator) if self._options["check"] else {}
        return self._model_state

    def _on_step(self, step: LanczosStep) -> None:
        # As early as memory and matrix are known to do: what it raises would lose a run later.
        self.model_state()
        products = step.step * len(step.draws) * self.block
        self._bar.update(self.num_products + products - self._bar.n)
        if self._callback is not None:
            self._callback(step)

    def find_simple(self, num_draws: int) -> bool:
        """Find the simple eigenvalues from the basis of the first draw, and free it.

        Args:
            num_draws: draws for whose start vectors the overlaps are computed.

        Returns:
            Whether there was a basis; without one nothing has changed.
        """
        if self._first_basis is None:
            return False
        if num_draws > 1:
            first = self._parts[0]
            quadrature = gauss_quadrature(first.alpha[0], first.beta[0])
            self._candidates = simple_candidates(quadrature, first.residual_norms[0])
            seed = self._options["seed"]
            starts = (start_vector(self.size, seed, draw) for draw in range(num_draws))
            self._overlaps = ritz_overlaps(self._first_basis, quadrature, self._candidates, starts)
        self._first_basis = None
        return True

    def spectrum(self, ended_by: Ending) -> Spectrum:
        """Return the spectrum of all draws so far."""
        alpha, beta, residual_norms = (
            np.concatenate([getattr(part, name) for part in self._parts])
            for name in ("alpha", "beta", "residual_norms")
        )
        return Spectrum(
            alpha,
            beta,
            residual_norms,
            self.size,
            self._simple(alpha, beta, residual_norms),
            seed=self._options["seed"],
            description=_describe(self.operator),
            precision=self._precision,
            ended_by=ended_by,
            product_error=product_error(self.operator),
            model_state=self.model_state(),
        )

    def _simple(
        self, alpha: np.ndarray, beta: np.ndarray, residual_norms: np.ndarray
    ) -> np.ndarray:
        """Return the mask of the nodes that are known to be simple; empty where none can be."""
        of_blocks = self.block > 1 and self._options["reorthogonalize"] == "full"
        if not (of_blocks or 1 < self.num_draws <= len(self._overlaps)):
            return np.zeros((0, 0), bool)
        rules = [gauss_quadrature(a, b) for a, b in zip(alpha, beta, strict=True)]
        if of_blocks:
            largest = max(np.abs(rule.nodes).max() for rule in rules)
            rounding = ROUNDING * self._precision * float(largest)
            return simple_block_nodes(rules, residual_norms, self.size, rounding)
        overlaps = self._overlaps[: self.num_draws]
        return simple_nodes(rules, residual_norms, overlaps, self._candidates, self.size)


def _add_to_tolerance(draws: _Draws, limits: _Limits, tolerance: float) -> Ending:
    """Make steps until the distribution has settled, then draws until the band is narrow."""
    block = draws.block
    affordable = min(limits.num_draws, limits.num_products // block)
    first = draws.next_group(limits.order, min(ceil(_FIRST_DRAWS / block), affordable))
    if first > affordable:
        raise ValueError(
            f"the checkpoint advances {first} draws together, more than num_draws or max_products "
            f"allows: raise num_draws to {first} and max_products to {first * block} at least, or "
            "use another directory."
        )
    order = min(limits.order, limits.num_products // (first * block))
    settled = False

    def has_settled(step: LanczosStep) -> bool:
        nonlocal settled
        # At intervals of an eighth of the steps: the accuracy takes longer than a step of a small
        # matrix.
        due = step.step >= _LEAST_STEPS and not step.step % (step.step // 8)
        if due or step.step == order:
            now = Spectrum(step.alpha, step.beta, step.residual_norms, draws.size).accuracy
            settled = now.order + min(now.draws, tolerance / 2) <= tolerance
        return settled

    draws.add(first, order, has_settled)
    most = min(limits.num_draws, limits.num_products // (draws.order * block))
    while True:
        accuracy = draws.spectrum(Ending.PLAN).accuracy
        room = tolerance - accuracy.order - accuracy.products
        # Where the steps were too few, a band of half the tolerance has to do.
        target = room if settled and room > 0 else max(room, tolerance / 2)
        share = min(max(accuracy.draws / target, 1.0), 1e9)
        wanted = max(ceil(draws.num_draws * share**2), draws.num_draws + 1)
        if draws.find_simple(min(2 * wanted, most)):
            continue
        if accuracy.total <= tolerance:
            return Ending.TOLERANCE
        if accuracy.products and accuracy.order + accuracy.draws <= tolerance:
            return Ending.PRECISION
        if accuracy.draws <= target:
            return Ending.ORDER if order == limits.order else Ending.BUDGET
        # Two draws, or a block, show which eigenvalues are simple, and then fewer may do.
        wanted = min(wanted, most) if draws.num_draws * block > 1 else min(2, most)
        more = draws.next_group(draws.order, wanted - draws.num_draws)
        if draws.num_draws + max(more, 1) > most:
            return Ending.DRAWS if most == limits.num_draws else Ending.BUDGET
        draws.add(more, draws.order)


def _most_steps(size: int, block: int, reorthogonalize: str, basis_dtype: Any) -> int:
    """Return the default limit of the steps of a draw, from the size of the problem alone."""
    if reorthogonalize == "none":
        return size // block
    row_bytes = np.dtype(basis_dtype).itemsize * size
    vectors = max(_FIRST_DRAWS, block)
    return min(size // block, max(ORDER, GROUP_BYTES // (vectors * row_bytes)))


def _describe(operator: Any) -> str:
    if not isinstance(operator, LinearOperator):
        return f"{type(operator).__name__} of {operator.dtype}"
    text = repr(operator)
    return text if len(text) <= 200 and "\n" not in text else type(operator).__name__
