"""How derivatives of one loss on one batch are computed: one folder for each framework."""

from __future__ import annotations

from typing import Any


def engine_of(model: Any) -> Any:
    """Return the engine that takes a model, or variables; loaded when it is first needed."""
    from spectral_density.engines.tensorflow import TensorFlowEngine

    engine = TensorFlowEngine()
    if not engine.claims(model):
        raise TypeError(f"no engine takes a {type(model).__name__}.")
    return engine
