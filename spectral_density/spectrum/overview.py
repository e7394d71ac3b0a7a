"""Overview of a spectrum in a few lines, for the terminal and for notebooks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spectral_density.linalg.estimates import with_error
from spectral_density.spectrum.accuracy import Ending
from spectral_density.spectrum.extremes import rounded_up, to_digits_of
from spectral_density.spectrum.statistics import SpectrumStatistic

if TYPE_CHECKING:
    from spectral_density.spectrum.spectrum import Spectrum

_NUM_OUTLIERS = 5
# Of the density: what is lost beyond the grid by default is far less.
_LOST_MASS = 1e-3
# Distance from the truth over the mean magnitude of the bulk.
_KNOWN, _OUTLINE = 0.1, 1.0


def overview(spectrum: Spectrum) -> list[tuple[str, str]]:
    """Return the names of the most important numbers, each with its value and error as text.

    What is as expected is left out: how the run ended, and the mass beyond the density's grid.
    """
    ends, eps, size = spectrum.extreme_eigenvalues, spectrum.resolution, spectrum.size
    draws = f"{spectrum.num_draws} draw{'s' if spectrum.num_draws != 1 else ''}"
    if spectrum.block > 1:
        draws += f" of {spectrum.block} vectors in a block,"
    rows = [
        ("operator", spectrum.description or "(not described)"),
        *_model(spectrum),
        ("eigenvalues", f"{spectrum.size:,}, from {draws} of {spectrum.order} steps"),
        *([("chosen", spectrum.choice)] if spectrum.choice else []),
        ("largest", ends.largest_text),
        ("smallest", ends.smallest_text),
        ("outliers", _outliers(spectrum)),
        ("below zero", _count(spectrum.count_below(-eps), size, f"below -{eps:.2g}")),
        ("near zero", _count(spectrum.count_between(-eps, eps), size, f"within {eps:.2g}")),
        ("above zero", _count(spectrum.count_above(eps), size, f"above {eps:.2g}")),
        ("trace", with_error(spectrum.trace, spectrum.trace_standard_error)),
        ("rank", _rank(spectrum.effective_rank)),
        ("accuracy", _accuracy(spectrum)),
    ]
    if spectrum.product_error:
        off = f"{spectrum.product_error:.2g} off full precision, in the bounds above"
        rows.append(("products", off))
    if spectrum.ended_by not in (Ending.PLAN, Ending.TOLERANCE):
        rows.append(("ended", spectrum.ended_by.message))
    density = spectrum.density()
    if abs(density.lost_mass) > _LOST_MASS:
        lost = f"{density.lost_mass:.1e} of the density at sigma {density.sigma:.3g}"
        rows.append(("lost mass", lost))
    return rows


def _model(spectrum: Spectrum) -> list[tuple[str, str]]:
    """Return the row that says where the model stood; none for what is no model."""
    state = spectrum.model_state
    if not state:
        return []
    parts = [f"loss {state['loss']:.4g}", f"gradient norm {state['gradient_norm']:.3g}"]
    if "accuracy" in state:
        parts.append(f"accuracy {100 * state['accuracy']:.1f} %")
    return [("model", f"{', '.join(parts)} on these data")]


def _outliers(spectrum: Spectrum) -> str:
    """Return the largest of the known simple eigenvalues, and how many there are."""
    known = spectrum.outliers
    if not known:
        needed = "more steps" if spectrum.num_vectors > 1 else "two draws or more"
        return f"no single eigenvalue is known: {needed}"
    first = ", ".join(to_digits_of(one.value, one.bound) for one in known[:_NUM_OUTLIERS])
    if len(known) > _NUM_OUTLIERS:
        first += ", ..."
    bound = rounded_up(max(one.bound for one in known))
    return (
        f"{len(known)} single eigenvalue{'s' if len(known) > 1 else ''} known to {bound}: {first}"
    )


def _count(count: SpectrumStatistic, size: int, where: str) -> str:
    """Return a number of eigenvalues, where they are, and their share, with its 95 % band."""
    if not count.resolved:
        low, high = (100 * limit / size for limit in (count.lower, count.upper))
        return (
            f"{count.lower:,.0f} to {count.upper:,.0f} {where} ({low:.3g} to {high:.3g} %): not "
            "resolved, more steps"
        )
    text = f"{count.value:,.0f} {where} ({100 * count.value / size:.3g} %"
    if not count.standard_error:
        return f"{text})"
    return f"{text}; 95 % band {count.lower:,.0f} to {count.upper:,.0f})"


def _rank(rank: SpectrumStatistic) -> str:
    """Return the effective rank with its error, or the bounds."""
    if rank.resolved:
        return f"{rank} (effective rank)"
    return f"{rank.lower:.3g} to {rank.upper:.3g} (effective rank): not resolved, more steps"


def _accuracy(spectrum: Spectrum) -> str:
    """Return the distance from the truth in the units of the eigenvalues, and what it means."""
    accuracy = spectrum.accuracy
    if spectrum.order == 1 and spectrum.size > 1:
        return "unknown: one step says nothing of the distribution"
    if not accuracy.total:
        return "all eigenvalues are known to rounding"
    text = (
        f"{accuracy.total:.1e} of the range: off by {accuracy.distance:.1e} on average, by "
        "Wasserstein-1 distance"
    )
    bulk = bulk_magnitude(spectrum)
    if not bulk:
        return text
    ratio = accuracy.distance / bulk
    meaning = (
        "its shape is known"
        if ratio <= _KNOWN
        else "its outline is known"
        if ratio <= _OUTLINE
        else "its shape is not known, more steps"
    )
    return f"{text}; the bulk has a mean size of {bulk:.1e}: {meaning}"


def bulk_magnitude(spectrum: Spectrum) -> float:
    """Return the mean magnitude of the eigenvalues other than the known simple ones."""
    weights = np.where(spectrum.simple, 0.0, spectrum.deflated_weights)
    total = float(weights.sum())
    return float(np.sum(weights * np.abs(spectrum.nodes)) / total) if total else 0.0
