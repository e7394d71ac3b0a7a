"""Summary of a run as JSON: numbers of the spectrum, versions, file hashes; no NaN."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from spectral_density._version import __version__
from spectral_density.spectrum.spectrum import Spectrum

FORMAT = 1
"""Version of the keys."""

_PACKAGES = ("tensorflow", "jax", "keras", "numpy", "scipy")


def spectrum_numbers(spectrum: Spectrum) -> dict[str, Any]:
    """Return the numbers of a spectrum, by their keys."""
    ends = spectrum.extreme_eigenvalues
    lower, upper = spectrum.negative_mass_bounds
    norm, norm_error = frobenius_norm(spectrum)
    density, accuracy = spectrum.density(), spectrum.accuracy
    return {
        "operator": spectrum.description,
        "model_state": dict(spectrum.model_state),
        "num_eigenvalues": spectrum.size,
        "order": spectrum.order,
        "draws": spectrum.num_draws,
        "block": spectrum.block,
        "choice": spectrum.choice,
        "seed": spectrum.seed,
        "ended_by": spectrum.ended_by.name.lower(),
        "largest_eigenvalue": {
            "value": ends.largest,
            "bound": ends.largest_bound,
            "converged": ends.largest_converged,
        },
        "smallest_eigenvalue": {
            "value": ends.smallest,
            "bound": ends.smallest_bound,
            "converged": ends.smallest_converged,
        },
        "outliers": [asdict(outlier) for outlier in spectrum.outliers],
        "counts": counts(spectrum),
        "effective_rank": asdict(spectrum.effective_rank),
        "trace": {"value": spectrum.trace, "standard_error": spectrum.trace_standard_error},
        "frobenius_norm": {"value": norm, "standard_error": norm_error},
        "negative_mass": {"lower": lower, "upper": upper},
        "density": {"sigma": density.sigma, "lost_mass": density.lost_mass},
        "accuracy": {
            "distance": accuracy.distance,
            "total": accuracy.total,
            "order": accuracy.order,
            "draws": accuracy.draws,
        },
    }


def frobenius_norm(spectrum: Spectrum) -> tuple[float, float]:
    """Return the estimate of sqrt(sum of squared eigenvalues), and its standard error.

    The error is that of the square, to first order.
    """
    norm = math.sqrt(spectrum.size * max(spectrum.moment(2), 0.0))
    error = spectrum.size * spectrum.moment_standard_error(2)
    return norm, error / (2 * norm) if norm else 0.0


def counts(spectrum: Spectrum) -> dict[str, Any]:
    """Return the numbers of eigenvalues below, within and above the resolution around zero."""
    eps = spectrum.resolution
    parts = {
        "below": spectrum.count_below(-eps),
        "within": spectrum.count_between(-eps, eps),
        "above": spectrum.count_above(eps),
    }
    return {"resolution": eps, **{name: asdict(part) for name, part in parts.items()}}


def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers depend on."""
    installed = {"spectral_density": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a build under another name, such as tensorflow-cpu
            continue
    return installed


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def to_json(content: Mapping[str, Any]) -> str:
    """Return standard JSON: numbers that are not finite become null."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
