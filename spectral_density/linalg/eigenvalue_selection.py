"""Selection of the wanted eigenvalues: which ends of the spectrum, their order and their edges."""

from __future__ import annotations

import numpy as np

WHICH = ("LM", "LA", "SA", "BE")
"""Ends of the spectrum: largest magnitude, largest, smallest, both ends."""


def result_order(values: np.ndarray, which: str) -> np.ndarray:
    """Return the order of eigenvalues in a result: see `Eigenpairs`."""
    keys = {"LM": -np.abs(values), "LA": -values, "SA": values, "BE": values}
    return np.argsort(keys[which], kind="stable")


def wanted_indices(values: np.ndarray, which: str, k: int, bonus: np.ndarray) -> np.ndarray:
    """Return the indices of up to k wanted values, ascending.

    Args:
        values: in any order, shape (m,).
        which: one of `WHICH`; of an odd k the high end gets one more with "BE".
        k: number of values.
        bonus: by how much each is preferred to equal ones, not negative, shape (m,).
    """
    highest = np.argsort(-(values + bonus), kind="stable")
    lowest = np.argsort(values - bonus, kind="stable")
    if which == "LA":
        wanted = highest[:k]
    elif which == "SA":
        wanted = lowest[:k]
    elif which == "LM":
        wanted = np.argsort(-(np.abs(values) + bonus), kind="stable")[:k]
    else:
        high = highest[: (k + 1) // 2]
        low = lowest[~np.isin(lowest, high)][: k // 2]
        wanted = np.concatenate([high, low])
    return np.sort(wanted)


def wanted_edges(values: np.ndarray, which: str, slack: float) -> tuple[float, float]:
    """Return the values beyond which any other eigenvalue would be wanted: (lower, upper).

    Args:
        values: the k wanted values.
        which: one of `WHICH`.
        slack: difference of eigenvalues that counts as none.
    """
    values, k = np.sort(values), len(values)
    lower, upper = -np.inf, np.inf
    if which == "LM":
        upper = np.abs(values).min() + slack
        lower = -upper
    if which in ("LA", "BE"):
        high = k if which == "LA" else (k + 1) // 2
        upper = values[-high] + slack
    if which == "SA" or (which == "BE" and k > 1):
        low = k if which == "SA" else k // 2
        lower = values[low - 1] - slack
    return lower, upper


def nearest_to_ends(values: np.ndarray, which: str) -> np.ndarray:
    """Return the indices of ascending values, those nearest to the wanted ends first."""
    ranks = np.arange(len(values))
    distance = {
        "LA": -ranks,
        "SA": ranks,
        "BE": np.minimum(2 * ranks + 1, 2 * ranks[::-1]),
        "LM": -np.abs(values),
    }[which]
    return np.argsort(distance, kind="stable")


def log_distances(edge: float, values: np.ndarray) -> float:
    """Return the sum of log |edge - values|; 0 for an edge at infinity."""
    if not np.isfinite(edge):
        return 0.0
    return float(np.log(np.maximum(np.abs(edge - values), np.finfo(np.float64).tiny)).sum())
