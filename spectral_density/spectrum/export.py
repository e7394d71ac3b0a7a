"""Spectra as pandas DataFrames and xarray Datasets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from spectral_density.spectrum.spectrum import Spectrum


def to_dataframe(spectrum: Spectrum) -> Any:
    """Return a DataFrame of one row for each node of each draw; see `Spectrum.to_dataframe`."""
    pandas = _optional("pandas", "to_dataframe")
    draw, index = np.indices(spectrum.nodes.shape)
    columns: dict[str, Any] = {"draw": draw, "index": index, **_arrays_of_nodes(spectrum)}
    return pandas.DataFrame({name: array.ravel() for name, array in columns.items()})


def to_xarray(spectrum: Spectrum) -> Any:
    """Return a Dataset over draws, nodes and steps; see `Spectrum.to_xarray`."""
    xarray = _optional("xarray", "to_xarray")
    nodes = _arrays_of_nodes(spectrum)
    variables: dict[str, Any] = {name: (("draw", "index"), array) for name, array in nodes.items()}
    steps = ("draw", "step") if spectrum.block == 1 else ("draw", "step", "row", "column")
    variables["alpha"] = (steps, spectrum.alpha)
    # The last step has the norm of its residual: one beta for each alpha.
    beta = np.concatenate([spectrum.beta, spectrum.residual_norms[:, np.newaxis]], axis=1)
    variables["beta"] = (steps, beta)
    return xarray.Dataset(
        variables,
        coords={
            "draw": np.arange(spectrum.num_draws),
            "index": np.arange(spectrum.nodes.shape[1]),
            "step": np.arange(1, spectrum.order + 1),
        },
        attrs={
            "size": spectrum.size,
            "seed": spectrum.seed,
            "description": spectrum.description,
            "precision": spectrum.precision,
            "product_error": spectrum.product_error,
        },
    )


def _arrays_of_nodes(spectrum: Spectrum) -> dict[str, np.ndarray]:
    """Return the arrays of the shape of the nodes, by the names they are exported under."""
    return {
        "node": spectrum.nodes,
        "weight": spectrum.weights,
        "deflated_weight": spectrum.deflated_weights,
        "residual": spectrum.residuals,
        "simple": spectrum.simple,
    }


def _optional(name: str, method: str) -> Any:
    """Import an optional dependency, or raise an error that says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"{method} needs {name}, which is not installed: pip install {name}. "
            "Without it, nodes and weights are arrays of the spectrum."
        ) from error
