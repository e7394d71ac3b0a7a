"""The curvature of a Keras or TensorFlow loss: spectra, eigenvalues, and what they are good for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from spectral_density._version import __version__

if TYPE_CHECKING:
    from spectral_density.approximate import (
        approximate_hessian,
        estimate_spectrum,
        lanczos_algorithm,
    )
    from spectral_density.curvature import CurvatureOperator, HessianOperator
    from spectral_density.density import eigv_to_density, tridiag_to_density, tridiag_to_eigv
    from spectral_density.linalg import Tridiagonalization, lanczos
    from spectral_density.spectrum import Density, Spectrum

# Each public name and the module it comes from, loaded on first use (PEP 562): TensorFlow takes
# seconds to import, and a density or a saved spectrum does not need it.
_HOMES = {
    "CurvatureOperator": "curvature",
    "Density": "spectrum",
    "HessianOperator": "curvature",
    "Spectrum": "spectrum",
    "Tridiagonalization": "linalg",
    "approximate_hessian": "approximate",
    "eigv_to_density": "density",
    "estimate_spectrum": "approximate",
    "lanczos": "linalg",
    "lanczos_algorithm": "approximate",
    "tridiag_to_density": "density",
    "tridiag_to_eigv": "density",
}

__all__ = [
    "CurvatureOperator",
    "Density",
    "HessianOperator",
    "Spectrum",
    "Tridiagonalization",
    "__version__",
    "approximate_hessian",
    "eigv_to_density",
    "estimate_spectrum",
    "lanczos",
    "lanczos_algorithm",
    "tridiag_to_density",
    "tridiag_to_eigv",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted(__all__)
