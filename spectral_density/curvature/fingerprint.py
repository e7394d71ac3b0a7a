"""What tells one matrix from another: loss, variables, weights and data, in fields and hashes."""

from __future__ import annotations

from typing import Any

from spectral_density.curvature.sweep import Sweep

FORMAT = 1
"""Number of the form of the fields."""


def identity(sweep: Sweep) -> dict[str, Any]:
    """Return what a matrix over a dataset depends on beside its kind.

    Weights and data are hashed, which takes a pass over the data without any computation.
    """
    derivatives, options = sweep.derivatives, sweep.options
    functions, parameters = derivatives.functions, derivatives.parameters
    hashed = _hashes(sweep)
    class_weight = options.class_weight
    return {
        "format": FORMAT,
        "loss": derivatives.settings(),
        # Keras numbers names as models are made: the same model made again has others.
        "shapes": [list(shape) for shape in parameters.shapes],
        "dtype": derivatives.product_dtype.name,
        "weights": derivatives.state.hash_of_weights(),
        "other variables": derivatives.state.hash_of_other_variables(),
        "graph": derivatives.state.hash_of_graph(),
        "class weights": class_weight and {str(k): v for k, v in class_weight.items()},
        "linearize": options.linearize,
        "join_batches": options.join_batches,
        "matmul_precision": sweep.matrix.matmul_precision,
        "batches": len(sweep.batches),
        "data": functions.batch_hash([data for _, data, _, _ in hashed]),
        "batch weights": functions.batch_hash([weight for _, _, weight, _ in hashed]),
        # The same in any order of the examples.
        "examples": f"{sum(examples for *_, examples in hashed) % functions.HASHES:032x}",
    }


def _hashes(sweep: Sweep) -> list[tuple[int, str, float, int]]:
    """Return number, hash, weight and examples' hash of what is computed together, in order."""
    functions = sweep.derivatives.functions

    def examples(batch: Any, weight: float) -> int:
        if sweep.options.batch_weight is None:
            return functions.examples_hash(batch)
        # A weight of the user's belongs to the batch as a whole.
        return int(functions.batch_hash((batch, weight))[:32], 16)

    def here() -> list[tuple[int, str, float, int]]:
        entries = zip(sweep.batches.parcels, sweep.batches.in_parcels(), sweep.weights, strict=True)
        return [
            (numbers.start, functions.batch_hash(batch), weight, examples(batch, weight))
            for numbers, batch, weight in entries
        ]

    if sweep.replicas is None:
        return here()
    of_workers = sweep.replicas.gather(sweep.replicas.together(here))
    return sorted(entry for entries in of_workers for entry in entries)
