"""Which layers interact: the Frobenius norm of each block of a curvature matrix, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from scipy import stats

from spectral_density._progress import progress_bar
from spectral_density._repr import repr_with_shapes
from spectral_density.curvature.submatrix import layer_indices, selected_indices
from spectral_density.linalg.arguments import as_real_square, block_product, integer, stream
from spectral_density.linalg.estimates import Estimate, with_error
from spectral_density.linalg.memory import check_memory
from spectral_density.linalg.threads import blas_threads

# Random streams: a key of this file's own.
_KEY = 7053


@dataclass(frozen=True, eq=False)
class InteractionMap:
    """The Frobenius norms ||A_ab|| of the blocks of a symmetric matrix, by the parts a and b.

    Exact where all columns were multiplied; standard errors are zero then.
    """

    names: tuple[str, ...]  # of the parts, L of them
    sizes: tuple[int, ...]  # numbers of parameters
    norms: np.ndarray  # (L, L), symmetric
    standard_errors: np.ndarray  # (L, L), of the norms, in their units
    diagonal_share: Estimate  # of the squared norm, in the diagonal blocks
    num_samples: int  # vectors for each part
    num_products: int  # with the operator
    seed: int

    __repr__ = repr_with_shapes

    @property
    def exact(self) -> bool:
        """Whether all columns were multiplied."""
        return not self.standard_errors.any()

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Return confidence limits of the norms, each (L, L), that hold block by block.

        They are as far up as down on a logarithmic scale, by the t-law of the samples.

        Args:
            level: probability that a norm is between its limits, above 0 and below 1.
        """
        freedom = max(self.num_samples - 1, 1)
        factor = stats.t.isf((1 - level) / 2, freedom)
        share = np.divide(
            self.standard_errors, self.norms, out=np.zeros_like(self.norms), where=self.norms > 0
        )
        return self.norms * np.exp(-factor * share), self.norms * np.exp(factor * share)

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain Python objects, which json and pandas take."""
        return {
            "names": list(self.names),
            "sizes": list(self.sizes),
            "norms": self.norms.tolist(),
            "standard_errors": self.standard_errors.tolist(),
            "diagonal_share": self.diagonal_share.value,
            "diagonal_share_error": self.diagonal_share.standard_error,
            "num_samples": self.num_samples,
            "num_products": self.num_products,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        """Lay the norms out as a table, with the share of the diagonal blocks below."""
        cells = [["", *self.names]]
        for name, row, errors in zip(self.names, self.norms, self.standard_errors, strict=True):
            values = zip(row.tolist(), errors.tolist(), strict=True)
            cells.append([name, *(with_error(value, error) for value, error in values)])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in cells
        ]
        share = self.diagonal_share
        percent = with_error(100 * share.value, 100 * share.standard_error)
        lines.append(f"{percent} % of the squared norm is in the diagonal blocks.")
        return "\n".join(lines)


def interaction_map(
    operator: Any,
    /,
    partition: Mapping[str, Any] | None = None,
    *,
    num_samples: int = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> InteractionMap:
    """Estimate the Frobenius norm of each block of a symmetric matrix, between all layers.

    With a Gaussian vector v_b on the parameters of layer b, and zero elsewhere,
    ||(A v_b)_a||^2 has the mean ||A_ab||_F^2 for every a. A sample takes one vector for each layer,
    in one pass over the data; both estimates of a pair of layers are averaged. Where that takes no
    fewer products than the matrix has columns, these are multiplied, and the norms are exact.

    Args:
        operator: symmetric, shape (n, n): a `CurvatureOperator`, or with a `partition` any
            `LinearOperator`, array or sparse matrix.
        partition: parts by name, each of indices, names of layers or variables, or patterns, as
            `layer_operators` takes them; no parameter is in two of them. Parameters in none are
            left out. None for the layers of the model.
        num_samples: vectors for each part, 2 at least. Errors fall with its square root.
        seed: of the vectors.
        progress: show a bar; None for only in interactive runs.

    Returns:
        InteractionMap; `plotting.plot_interactions` draws it. Of layers that share a variable the
        first one has it.

    Raises:
        TypeError: if there is no partition and the operator says nothing of layers.
        ValueError: if the partition has no parts, an empty one, or a parameter twice, or an option
            is out of range.
        MemoryError: if the vectors of one sample, n for each part and their products, do not fit.
    """
    linear = as_real_square(operator)
    size = linear.shape[0]
    num_samples = integer(num_samples, "num_samples", 2)
    seed = integer(seed, "seed", 0)
    parts = disjoint_parts(operator, linear, partition)
    count = len(parts)
    check_memory(
        {"vectors": 8 * size * count, "products": 8 * size * count},
        "Give a partition into fewer parts.",
    )
    chosen = sum(map(len, parts.values()))
    exact = chosen <= num_samples * count
    blocks = _columns(parts, size) if exact else _samples(parts, size, num_samples, seed)
    total = chosen if exact else num_samples * count
    squares = []  # of each block of vectors, (L, L): [a, b] is ||(A v_b)_a||^2
    scale = 0.0
    with progress_bar(total, "Products", progress) as bar:
        for columns, owners in blocks:
            products = block_product(linear, columns)
            if not scale:
                # A power of two, so that no square under- or overflows.
                scale = 2.0 ** np.floor(np.log2(np.abs(products).max(initial=0.0) or 1.0))
            with blas_threads(size):
                squares.append(_squares(products / scale, parts, owners))
            bar.update(columns.shape[1])
    samples = np.sum(squares, axis=0, keepdims=True) if exact else np.array(squares)
    return _estimated(parts, samples, scale, num_products=total, seed=seed)


def disjoint_parts(
    operator: Any, linear: Any, partition: Mapping[str, Any] | None
) -> dict[str, np.ndarray]:
    """Return the indices of each part, checked."""
    if partition is None:
        return layer_indices(operator, "give a partition, indices by the names of parts")
    if not partition:
        raise ValueError("the partition has no parts: give at least one, or leave it out.")
    parts = {
        str(name): selected_indices(linear, selection, f"part {name!r}")
        for name, selection in partition.items()
    }
    values, counts = np.unique(np.concatenate(list(parts.values())), return_counts=True)
    if counts.max() > 1:
        twice = values[counts > 1][0]
        first, second, *_ = (name for name, indices in parts.items() if twice in indices)
        raise ValueError(
            f"parameter {twice} is in the parts {first!r} and {second!r}: each may be in one only."
        )
    return parts


def _samples(
    parts: Mapping[str, np.ndarray], size: int, num_samples: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield for each sample a Gaussian vector of each part, (n, L), and whose each column is."""
    for sample in range(num_samples):
        columns = np.zeros((size, len(parts)), order="F")
        for part, indices in enumerate(parts.values()):
            generator = stream(seed, _KEY, part, sample)
            columns[indices, part] = generator.standard_normal(len(indices))
        yield columns, np.arange(len(parts))


def _columns(parts: Mapping[str, np.ndarray], size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield unit vectors of all parts, as many together as a sample has, and whose each is."""
    indices = np.concatenate(list(parts.values()))
    owners = np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()])
    for start in range(0, len(indices), len(parts)):
        here = indices[start : start + len(parts)]
        columns = np.zeros((size, len(here)), order="F")
        columns[here, np.arange(len(here))] = 1.0
        yield columns, owners[start : start + len(parts)]


def _squares(
    products: np.ndarray, parts: Mapping[str, np.ndarray], owners: np.ndarray
) -> np.ndarray:
    """Return the squared norms of products by the part of the rows and of the vector, (L, L)."""
    found = np.zeros((len(parts), len(parts)))
    for part, indices in enumerate(parts.values()):
        rows = products[indices]
        np.add.at(found[part], owners, np.einsum("ij,ij->j", rows, rows))
    return found


def _estimated(
    parts: Mapping[str, np.ndarray],
    samples: np.ndarray,
    scale: float,
    *,
    num_products: int,
    seed: int,
) -> InteractionMap:
    """Return means and errors of samples of squared norms, (count, L, L); exact if it is one."""
    count = len(samples)
    samples = (samples + samples.transpose(0, 2, 1)) / 2
    mean = samples.mean(axis=0)
    error = samples.std(axis=0, ddof=1) / np.sqrt(count) if count > 1 else np.zeros_like(mean)
    norms = np.sqrt(mean)
    errors = np.divide(error, 2 * norms, out=np.zeros_like(error), where=norms > 0)
    freedom = count - 1 if count > 1 else inf
    value, deviation = _diagonal_share(samples)
    return InteractionMap(
        names=tuple(parts),
        sizes=tuple(len(indices) for indices in parts.values()),
        norms=scale * norms,
        standard_errors=scale * errors,
        diagonal_share=Estimate(value, deviation, num_products, degrees_of_freedom=freedom),
        num_samples=count,
        num_products=num_products,
        seed=seed,
    )


def _diagonal_share(samples: np.ndarray) -> tuple[float, float]:
    """Return the share of the diagonal, and its error as that of a ratio of means."""
    diagonal = np.trace(samples, axis1=1, axis2=2)
    total = samples.sum(axis=(1, 2))
    if not total.any():
        return 1.0, 0.0
    share = diagonal.sum() / total.sum()
    if len(samples) == 1:
        return float(share), 0.0
    residual = diagonal - share * total
    error = np.sqrt(np.sum(residual**2) / (len(samples) * (len(samples) - 1))) / total.mean()
    return float(share), float(error)
