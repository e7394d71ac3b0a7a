"""Overview of a spectrum in a few lines, for the terminal and for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectral_density.spectrum.spectrum import Spectrum


def overview(spectrum: Spectrum) -> list[tuple[str, str]]:
    """Return the names of the most important numbers, each with its value and error as text."""
    ends = spectrum.extreme_eigenvalues
    num_simple = int(spectrum.simple[0].sum())
    what = "eigenvalue, weighing 1/n" if num_simple == 1 else "eigenvalues, weighing 1/n each"
    draws = f"{spectrum.num_draws} draw{'s' if spectrum.num_draws != 1 else ''}"
    low, high = (100 * share for share in spectrum.negative_mass_bounds)
    negative = f"{low:.3g} %" if high - low < 0.01 else f"{low:.3g} to {high:.3g} %"
    density, accuracy = spectrum.density(), spectrum.accuracy
    products = f", products {accuracy.products:.1e}" if spectrum.product_error else ""
    trace, trace_error = spectrum.trace, spectrum.trace_standard_error
    return [
        ("operator", spectrum.description or "(not described)"),
        ("eigenvalues", f"{spectrum.size:,}, from {draws} of {spectrum.order} steps"),
        ("largest", f"{ends.largest:.6g} +- {ends.largest_bound:.1e}"),
        ("smallest", f"{ends.smallest:.6g} +- {ends.smallest_bound:.1e}"),
        ("trace", f"{trace:.6g} +- {trace_error:.1e} (standard error)"),
        ("mean", f"{spectrum.moment(1):.6g}"),
        ("mean square", f"{spectrum.moment(2):.6g}"),
        ("below zero", f"{negative} of the eigenvalues"),
        ("outliers", f"{num_simple} converged simple {what}"),
        (
            "accuracy",
            f"{accuracy.total:.1e} of the range (steps {accuracy.order:.1e}, draws "
            f"{accuracy.draws:.1e}{products}) by Wasserstein-1 distance",
        ),
        *(
            [("products", f"{spectrum.product_error:.2g} off full precision, in the bounds above")]
            if spectrum.product_error
            else []
        ),
        ("ended", spectrum.ended_by.message),
        ("lost mass", f"{density.lost_mass:.1e} of the density at sigma {density.sigma:.3g}"),
    ]
