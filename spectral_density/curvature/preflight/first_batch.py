"""The first batch of an operator against differences: what is computed of it, and along what."""

from __future__ import annotations

from typing import Any

import numpy as np

from spectral_density.curvature.operator import CurvatureOperator
from spectral_density.curvature.preflight.derivative import DifferenceAccuracy, Finding
from spectral_density.curvature.preflight.differences import (
    compare_gradient,
    compare_hessian,
    compare_through_outputs,
    direction_of,
)
from spectral_density.curvature.preflight.passes import Passes, line
from spectral_density.engines.layout import place_of
from spectral_density.linalg.arguments import stream

# Key of the random share of the direction of differences.
_KEY = 7050


def compare_with_differences(
    operator: CurvatureOperator, passes: Passes, seed: int
) -> dict[str, Finding]:
    """Compare product, gradient and loss of the first batch; the weights are moved and back."""
    try:
        return _compare(operator, passes, seed)
    except operator.derivatives.inspection.computing_errors as error:
        why = f"not judged: the batch cannot be computed beside its weights ({line(error)})."
        return dict.fromkeys(("derivative", "gradient"), Finding("skipped", None, why))


def _compare(operator: CurvatureOperator, passes: Passes, seed: int) -> dict[str, Finding]:
    derivatives = passes.sweep.derivatives
    parameters = derivatives.parameters
    positions = derivatives.inspection.layers()
    layers = {name: place_of(parameters, at) for name, at in positions.items()}
    n, dtype = parameters.size, parameters.dtype

    def rows(vector: np.ndarray) -> Any:
        return derivatives.tensors.to_rows(vector[None], dtype)

    with derivatives.state.unchanged(), derivatives.state.moved() as move:
        batch = derivatives.inspection.beside_weights(
            passes.sweep.matrix, passes.at, rows(passes.u[0]), move
        )
        gradient = batch.at(np.zeros(n))[0][:n]
        summed = not derivatives.averaged.all()
        precision = batch.precision(float(passes.at.weight) if summed else 1.0)
        if precision is None:
            skipped = Finding("skipped", None, "not judged: computed in half precision.")
            return {"derivative": skipped, "gradient": skipped}
        accuracy = DifferenceAccuracy(*precision)
        noise = stream(seed, _KEY).normal(size=n)
        first = np.asarray(passes.first, np.float64)
        direction = direction_of(derivatives.state.read(), gradient, first, noise, layers)
        # A vector that products take as it is.
        direction = direction.astype(dtype).astype(np.float64)
        if operator.definition is None:
            return compare_gradient(batch, direction, accuracy)
        if operator.definition == "outputs":
            passes.num_products += 1 / len(passes.sweep.batches.parcels)
            return compare_through_outputs(batch, rows, direction, layers, accuracy)

        def product(vector: np.ndarray) -> np.ndarray:
            # What a lower precision adds is a question of its own.
            found = passes.product(passes.at, vector[None].astype(dtype), exact=True)
            return np.asarray(found, np.float64)

        return compare_hessian(batch, product, rows, direction, layers=layers, accuracy=accuracy)
