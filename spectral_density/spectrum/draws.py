"""The draws of a spectrum as they are made, and the spectrum that they give together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density.checkpoint import workers_of
from spectral_density.linalg.arguments import as_real_square, product_error
from spectral_density.linalg.block_quadrature import simple_block_nodes
from spectral_density.linalg.eigen import Eigenpairs
from spectral_density.linalg.lanczos_options import basis_vectors
from spectral_density.linalg.lockstep import groups_begun, lockstep_groups
from spectral_density.linalg.quadrature import (
    CONVERGED,
    WEIGHT_FLOOR,
    gauss_quadrature,
    ritz_overlaps,
    ritz_residuals,
    simple_candidates,
    simple_nodes,
)
from spectral_density.linalg.start_vectors import start_vector
from spectral_density.linalg.tridiagonalization import LanczosStep, Tridiagonalization, lanczos
from spectral_density.linalg.vectors import Rows, rounding_of
from spectral_density.spectrum.accuracy import Ending
from spectral_density.spectrum.quadratures import ROUNDING
from spectral_density.spectrum.spectrum import Spectrum


class Draws:
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
        *,
        num_eigenpairs: int = 0,
    ) -> None:
        self.operator = operator
        self.size = as_real_square(operator).shape[0]
        self.checkpoint = options["checkpoint"]
        self.num_draws = 0
        self.num_products = 0
        self.block: int = options["block"]
        self._options = options
        vectors = basis_vectors(as_real_square(operator), options["basis"])
        # Of Ritz values: that of the products, or of the basis where it is less precise.
        of_basis = float(np.finfo(options["basis_dtype"]).eps)
        self._precision = max(rounding_of(operator, vectors), of_basis)
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
        self._num_eigenpairs = num_eigenpairs
        self._eigenpairs: Eigenpairs | None = None
        self._parts: list[Tridiagonalization] = []
        self._first_basis: Rows | None = None
        self._candidates, self._overlaps = np.zeros(0, int), np.zeros((0, 0))
        self._model_state: dict[str, float] | None = None

    @property
    def order(self) -> int:
        """Steps of each draw."""
        return self._parts[0].order

    def add_all(self, num_draws: int, order: int) -> None:
        """Make all draws, in groups that follow from the size of the problem."""
        for draws in self.groups(order, num_draws):
            self.add(len(draws), order)
            self.find_simple(num_draws)

    def expect(self, num_products: int) -> None:
        """Tell the progress bar how many products there will be."""
        self._bar.total = num_products
        self._bar.refresh()

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
        wanted = self._num_eigenpairs if not self._parts else 0
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
            keep_basis=self.block == 1 or wanted > 0,
            **self._options,
        )
        if not self._parts and part.bases is not None:
            self._first_basis = part.bases.parts[0] if self.block == 1 else None
            if wanted:
                self._eigenpairs = self._ritz_pairs(part, part.bases.parts[0], wanted)
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
            eigenpairs=self._pairs(),
        )

    def _pairs(self) -> Eigenpairs | None:
        """Return the Ritz pairs, with all products of the run."""
        pairs = self._eigenpairs
        return None if pairs is None else replace(pairs, num_products=self.num_products)

    def _ritz_pairs(self, part: Tridiagonalization, basis: Rows, count: int) -> Eigenpairs:
        """Return the Ritz pairs of largest magnitude of the first draw, from its basis."""
        rule = gauss_quadrature(part.alpha[0], part.beta[0])
        carrying = np.flatnonzero(rule.weights > WEIGHT_FLOOR)
        chosen = carrying[np.argsort(-np.abs(rule.nodes[carrying]), kind="stable")][:count]
        norm = float(np.abs(rule.nodes).max())
        rounding = (ROUNDING * self._precision + product_error(self.operator)) * norm
        residuals = ritz_residuals(rule, part.residual_norms[0])[chosen]
        weights = () if rule.vectors is None else rule.vectors[:, chosen].T
        vectors = [basis.vectors.to_host(basis.combine(one)) for one in weights]
        return Eigenpairs(
            values=rule.nodes[chosen],
            vectors=np.array(vectors, dtype=np.float64).T,
            residuals=residuals + rounding,
            converged=residuals <= CONVERGED * norm + rounding,
            complete=False,
            num_products=part.order * part.num_draws * self.block,
            which="LM",
            tolerance=CONVERGED,
            norm=norm,
        )

    def after(self, step: LanczosStep) -> Spectrum:
        """Return the spectrum of the draws of a group after a step; simple ones for blocks only."""
        arrays = step.alpha, step.beta, step.residual_norms
        simple = self._simple(*arrays) if self.block > 1 else np.zeros((0, 0), bool)
        return Spectrum(*arrays, self.size, simple)

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


def _model_state(operator: Any) -> dict[str, float]:
    """Return where the model of an operator stands; nothing for an operator without one."""
    if not hasattr(operator, "model_state"):
        return {}
    found: dict[str, float] = operator.model_state().numbers()
    return found


def _describe(operator: Any) -> str:
    if not isinstance(operator, LinearOperator):
        return f"{type(operator).__name__} of {operator.dtype}"
    text = repr(operator)
    return text if len(text) <= 200 and "\n" not in text else type(operator).__name__
