"""What a jaxpr and a model say of layers, causes and mistakes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_density.engines.data import BatchInput
from spectral_density.engines.engine import BesideWeights, Inspection
from spectral_density.engines.finite import cause
from spectral_density.engines.jax.beside_weights import JaxBesideWeights
from spectral_density.engines.jax.jaxprs import place_of, random_draws
from spectral_density.engines.jax.loss_functions import reached
from spectral_density.engines.jax.models import TRACING_ERRORS
from spectral_density.engines.layout import last_axis

if TYPE_CHECKING:
    from spectral_density.engines.jax.derivatives import JaxDerivatives
    from spectral_density.engines.jax.products import JaxProducts


class JaxInspection(Inspection):
    """See `Inspection`."""

    tracing_errors = TRACING_ERRORS
    computing_errors = (jax.errors.JAXTypeError, NotImplementedError)

    def __init__(self, derivatives: JaxDerivatives):
        """Look into nothing yet."""
        self._derivatives = derivatives

    def layers(self) -> dict[str, list[int]]:
        """See `Inspection`."""
        return self._derivatives.objective.model.groups()

    def positions(self, item: Any) -> set[int]:
        """See `Inspection`."""
        return self._derivatives.objective.model.positions(item)

    def filter_axes(self) -> list[tuple[int, ...]]:
        """See `Inspection`."""
        known = self._derivatives.objective.model.filter_axes()
        return known or [last_axis(shape) for shape in self._derivatives.parameters.shapes]

    def why_not_finite(self, what: str, at: BatchInput, local: int = 0) -> str:
        """See `Inspection`."""
        derivatives = self._derivatives
        steps = {"loss": lambda: derivatives.loss(at), "gradient": lambda: derivatives.gradient(at)}
        weights = derivatives.objective.model.everything()
        return cause(what, at.batch, weights, steps, is_finite)

    def nonfinite_variables(self) -> list[str]:
        """See `Inspection`."""
        parameters = self._derivatives.parameters
        pairs = zip(parameters.names, parameters.current(), strict=True)
        return [name for name, array in pairs if not is_finite(array)]

    def random_and_writing(self, batch: Any) -> tuple[list[str], list[str]]:
        """See `Inspection`: random numbers follow from a key, which is held constant."""
        return random_draws(self._jaxpr(batch)), []

    def stopped_gradients(self, batch: Any) -> list[tuple[str, str]]:
        """See `Inspection`."""
        stops = self._derivatives.functions_of_loss.deliberate_stops(batch)
        return list(dict.fromkeys(("stop_gradient", place_of(stop)) for stop in stops))

    def batch_normalizations(self) -> list[str]:
        """See `Inspection`."""
        return self._derivatives.objective.model.batch_normalizations()

    def mistaken_outputs(self, batch: Any) -> tuple[list[str], float | None] | None:
        """See `Inspection`."""
        return self._derivatives.objective.mistaken_outputs(batch)

    def correctly_classified(self, batch: Any) -> tuple[int, int] | None:
        """See `Inspection`."""
        return self._derivatives.objective.correctly_classified(batch)

    def reaches(self, at: BatchInput, positions: Sequence[int]) -> list[bool]:
        """See `Inspection`."""
        found = reached(self._derivatives.functions_of_loss, at)
        return [found[position] for position in positions]

    def beside_weights(
        self,
        products: JaxProducts,
        at: BatchInput,
        rows: Any,
        move: Callable[[np.ndarray], None],
    ) -> BesideWeights:
        """See `Inspection`."""
        return JaxBesideWeights(self._derivatives.functions_of_loss, products.composition, at)

    def _jaxpr(self, batch: Any) -> Any:
        return self._derivatives.functions_of_loss.jaxpr(batch, 1.0).jaxpr


def is_finite(structure: Any) -> bool:
    """Tell whether all floating-point arrays of a structure hold numbers only."""
    return all(
        bool(jnp.isfinite(leaf).all())
        for leaf in map(jnp.asarray, jax.tree.leaves(structure))
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    )
