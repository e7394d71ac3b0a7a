"""Hessian, Gauss-Newton part and residual of each layer: norms, traces, and their ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from scipy.sparse.linalg import LinearOperator

from spectral_density._arguments import explained
from spectral_density._progress import progress_bar
from spectral_density.analysis.layer_samples import (
    HessianParts,
    LayerSamples,
    dense_parts,
    mean_estimate,
    meets,
    ratio_estimate,
    sample,
    sums,
)
from spectral_density.curvature.gauss_newton import GaussNewtonOperator
from spectral_density.curvature.hessian import HessianOperator
from spectral_density.curvature.submatrix import SubmatrixOperator, layer_indices
from spectral_density.linalg.arguments import integer, number, product_error, product_precision
from spectral_density.linalg.eigen import top_eigenpairs
from spectral_density.linalg.estimates import Estimate
from spectral_density.linalg.sampling import DEFAULT_LIMIT, Plan

# A difference H - G within this many roundings of H and G is nothing but rounding; its trace within
# a tenth of that, `_TRACE_SHARE`.
_ROUNDINGS = 100

_ZERO = "0 (rounding)"
_TRACE_SHARE = 10

_MATRICES = ("hessian", "gauss_newton", "residual")
_SYMBOLS = ("H", "G", "R")


@dataclass(frozen=True)
class MatrixNorms:
    """The size of a symmetric matrix; exact values have standard error 0.

    Of a matrix that is zero to rounding the spectral norm is bounded by the Frobenius norm, which
    then stands for it, and for its residual.
    """

    frobenius_norm: Estimate
    trace: Estimate
    spectral_norm: float
    spectral_residual: float  # some eigenvalue is this near to the norm or its negative; 0 if exact
    spectral_converged: bool  # whether that is within the tolerance
    rounding: float = 0.0  # a Frobenius norm up to here is that of rounding, as R's may be

    @property
    def is_rounding(self) -> bool:
        """Whether the matrix is zero as far as the precision of the products tells."""
        return self.frobenius_norm.value <= self.rounding


@dataclass(frozen=True)
class BlockCurvature:
    """Hessian H, Gauss-Newton part G and residual R = H - G of the same parameters."""

    name: str
    num_params: int
    exact: bool  # norms and traces from all columns, to the rounding of the products
    hessian: MatrixNorms
    gauss_newton: MatrixNorms
    residual: MatrixNorms
    ratio: Estimate  # ||R||_F / ||G||_F; NaN or infinite where G is zero

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers by name, such as `hessian_trace` and `hessian_trace_error`."""
        row: dict[str, Any] = {
            "name": self.name,
            "num_params": self.num_params,
            "exact": self.exact,
        }
        for matrix in _MATRICES:
            norms: MatrixNorms = getattr(self, matrix)
            row[f"{matrix}_frobenius_norm"] = norms.frobenius_norm.value
            row[f"{matrix}_frobenius_norm_error"] = norms.frobenius_norm.standard_error
            row[f"{matrix}_spectral_norm"] = norms.spectral_norm
            row[f"{matrix}_spectral_norm_error"] = norms.spectral_residual
            row[f"{matrix}_spectral_norm_converged"] = norms.spectral_converged
            row[f"{matrix}_trace"] = norms.trace.value
            row[f"{matrix}_trace_error"] = norms.trace.standard_error
        row["ratio"] = self.ratio.value
        row["ratio_error"] = self.ratio.standard_error
        return row


@dataclass(frozen=True)
class CurvatureDecomposition:
    """The parts of the Hessian H = G + R of each layer, and of all variables together."""

    layers: tuple[BlockCurvature, ...]  # diagonal blocks, in the model's order
    total: BlockCurvature  # of all chosen variables, what couples layers included
    num_products: int  # with H, and as many with G, for norms and traces
    num_spectral_products: int  # with H and with G together, for the spectral norms on top
    converged: bool | None  # whether a tolerance was met everywhere; None where none was asked for
    seed: int
    rows: tuple[BlockCurvature, ...] = field(init=False, repr=False)  # layers, then the total

    def __post_init__(self) -> None:
        """Put the rows together."""
        object.__setattr__(self, "rows", (*self.layers, self.total))

    def __getitem__(self, name: str) -> BlockCurvature:
        """Return the row of a layer."""
        for row in self.layers:
            if row.name == name:
                return row
        raise KeyError(f"no layer {name!r}; there are {', '.join(r.name for r in self.layers)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return all numbers as plain Python objects, which json and pandas take."""
        return {
            "layers": [row.to_dict() for row in self.layers],
            "total": self.total.to_dict(),
            "num_products": self.num_products,
            "num_spectral_products": self.num_spectral_products,
            "converged": self.converged,
            "seed": self.seed,
        }

    def __str__(self) -> str:
        """Lay it out as a table: three lines a layer, standard errors behind +-."""
        head = ("layer", "parameters", "", "Frobenius norm", "spectral norm", "trace", "R / G")
        lines: list[tuple[str, ...]] = [head]
        for row in self.rows:
            for symbol, matrix in zip(_SYMBOLS, _MATRICES, strict=True):
                lines.append(_line(row, symbol, getattr(row, matrix)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = [
            "  ".join(
                cell.rjust(width) if column == 1 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join(
            [
                "H = G + R: the Hessian, its Gauss-Newton part G (the curvature of the loss), and",
                "the residual R (the curvature of the network).",
                *table,
                f"{self.num_products:,} products with each of H and G, and "
                f"{self.num_spectral_products:,} more for spectral norms.",
            ]
        )


@explained
def curvature_decomposition(
    model: Any,
    loss: Any = None,
    dataset: Any = None,
    *,
    variables: Any = None,
    num_products: int = 90,
    tolerance: float | None = None,
    max_products: int | None = None,
    spectral_tolerance: float = 1e-3,
    seed: int = 0,
    progress: bool | None = None,
    reduction: str | None = None,
    training: bool = False,
    batch_weight: Callable[[Any], float] | None = None,
    memory_share: float = 0.25,
) -> CurvatureDecomposition:
    r"""Measure the two parts of the Hessian, H = G + R, for each layer and all together.

    .. math:: H = J' (\nabla^2_z \ell) J + \sum_c \partial_c \ell \; \nabla^2_w z_c = G + R

    G comes from the curvature of the loss, R from that of the network. Under piecewise linear
    activations the R of a single layer is zero, and all of it couples layers.

    A layer with at most `num_products` parameters is measured exactly, from the columns of its
    block. Of a larger one, Hutchinson's estimates are averaged over probes w that live on the layer
    alone, uniform on its sphere, so that ||(A w)_layer||^2 estimates the squared Frobenius norm of
    its diagonal block, ||A w||^2 that of its columns, which add up to the whole matrix, and w'Aw
    its trace. H and G see the same probes, and R w = H w - G w costs nothing: the traces of G and
    R add up to that of H, and what the probes have in common leaves the ratio. Its standard error
    is the jackknife's.

    **Cost.** With m = `num_products` and layers of n_l parameters, sum_l min(n_l, m) products with
    H and as many with G, 16 in each pass over the data whatever layers they belong to. Then the
    spectral norms of H, G and R by `top_eigenpairs` for each layer that is not exact and for the
    whole (which is exact where all layers are, up to 2,048 parameters): some 20 to 60 products for
    each, one in a pass, of which those with R are one with H and one with G.

    Args:
        model: Keras 3 or tf_keras model, or a `tf.Module`.
        loss: one that `GaussNewtonOperator` takes.
        dataset: re-iterable batches.
        variables: which trainable variables, as in `HessianOperator`; layers have the chosen ones.
        num_products: products with H for each layer, at least 2.
        tolerance: if given, larger layers are sampled until half the width of the 95 % interval of
            the Frobenius norms of H and of G is at most `tolerance` times the norm in each row.
        max_products: products for each layer to give up after, with a tolerance only;
            10 times `num_products` if not given.
        spectral_tolerance: residual at which a spectral norm has converged, relative to it. The
            error is about the residual's square over the gap to the next eigenvalue.
        seed: seed of the probes.
        progress: show progress bars; None shows them in terminals and notebooks only.
        reduction: as in `HessianOperator`.
        training: as in `HessianOperator`.
        batch_weight: as in `HessianOperator`.
        memory_share: as in `HessianOperator`, for each of the two operators.

    Returns:
        CurvatureDecomposition: print it, or use its `rows`.

    Raises:
        ValueError: if outputs and loss cannot be separated (the message says what to pass), or an
            argument is out of its range, and all that the operators raise.
        TypeError: if model, loss or dataset is no such thing, or an argument has a wrong type.

    Warns:
        ConvergenceWarning: if a spectral norm has not converged; the row says which.

    References:
        Sagun et al. (2018), arXiv 1706.04454, section 2. Papyan (2019), arXiv 1901.08244.
        Hutchinson (1990), Commun. Stat. Simul. Comput. 19:433.
    """
    plan = _plan(num_products, tolerance, max_products)
    spectral_tolerance = number(spectral_tolerance, "spectral_tolerance", above=0.0)
    seed = integer(seed, "seed", 0)
    options: dict[str, Any] = {
        "variables": variables,
        "reduction": reduction,
        "training": training,
        "batch_weight": batch_weight,
        "memory_share": memory_share,
    }
    # The matrix with more conditions on the loss first: its errors say what to pass instead.
    gauss_newton = GaussNewtonOperator(model, loss, dataset, **options)
    hessian = HessianOperator(model, loss, dataset, **options)
    parts = HessianParts(hessian, gauss_newton, seed)
    layers = [
        LayerSamples(position, name, indices, exact=len(indices) <= plan.first)
        for position, (name, indices) in enumerate(layer_indices(hessian).items())
    ]
    num_columns, converged = sample(parts, layers, plan, progress)
    rows, num_spectral = [], 0
    with progress_bar(3 * (len(layers) + 1), "Spectral norms", progress) as bar:
        for name, group in [*((layer.name, [layer]) for layer in layers), (None, layers)]:
            row, count = _row(parts, group, name, spectral_tolerance)
            rows.append(_with_convergence(row, plan))
            num_spectral += count
            bar.update(3)
    return CurvatureDecomposition(
        layers=tuple(rows[:-1]),
        total=rows[-1],
        num_products=num_columns,
        num_spectral_products=num_spectral,
        converged=converged,
        seed=seed,
    )


def _plan(num_products: Any, tolerance: Any, max_products: Any) -> Plan:
    first = integer(num_products, "num_products", 2)
    if tolerance is None:
        if max_products is not None:
            raise ValueError("max_products is where a tolerance gives up: pass tolerance= too.")
        return Plan(first, None, first)
    limit = DEFAULT_LIMIT * first if max_products is None else max_products
    return Plan(
        first, number(tolerance, "tolerance", above=0.0), integer(limit, "max_products", first)
    )


def _row(
    parts: HessianParts, layers: list[LayerSamples], name: str | None, tolerance: float
) -> tuple[BlockCurvature, int]:
    """Return the row of a layer, or of the whole, and the products its spectral norms took.

    Args:
        parts: the matrices.
        layers: one, or all of them.
        name: of the layer, None for the whole.
        tolerance: of the spectral norms.
    """
    whole = name is None
    squares, traces = sums(layers, whole)
    num_products = sum(len(layer.samples) for layer in layers)
    frobenius = [mean_estimate(squares[:, matrix], num_products, root=True) for matrix in range(3)]
    count = 0
    dense = dense_parts(layers, parts.size, whole)
    if dense is not None:
        spectral = [_spectral_of_dense(matrix) for matrix in dense]
    else:
        indices = slice(None) if whole else layers[0].indices
        h, g = parts.hessian, parts.gauss_newton
        spectral = []
        for matrix, operator in enumerate((h, g, h - g)):
            part = SubmatrixOperator(operator, indices)
            precision = _relative_error(part) * (frobenius[0].value + frobenius[1].value)
            norm, products = _spectral(
                part, frobenius[matrix].value, precision, tolerance, parts.seed
            )
            spectral.append(norm)
            count += products * (2 if matrix == 2 else 1)
    sizes = frobenius[0].value + frobenius[1].value
    rounding = (0.0, 0.0, _ROUNDINGS * _relative_error(parts.hessian) * sizes)
    h_norms, g_norms, r_norms = (
        MatrixNorms(
            frobenius[matrix],
            mean_estimate(traces[:, matrix], num_products),
            *norm,
            rounding=rounding[matrix],
        )
        for matrix, norm in enumerate(spectral)
    )
    row = BlockCurvature(
        "all" if name is None else name,
        sum(layer.size for layer in layers),
        all(layer.exact for layer in layers),
        h_norms,
        g_norms,
        r_norms,
        ratio=ratio_estimate(squares, num_products),
    )
    return row, count


def _relative_error(operator: LinearOperator) -> float:
    """Return the error of products of an operator, relative to its size."""
    return max(product_precision(operator), product_error(operator))


def _spectral_of_dense(matrix: np.ndarray) -> tuple[float, float, bool]:
    return float(np.abs(np.linalg.eigvalsh(matrix)).max()), 0.0, True


def _spectral(
    operator: LinearOperator, frobenius: float, rounding: float, tolerance: float, seed: int
) -> tuple[tuple[float, float, bool], int]:
    """Return the spectral norm, its residual, whether it has converged; and the products taken."""
    if frobenius <= _ROUNDINGS * rounding:
        # Rounding is no symmetric matrix, and has no eigenvalue to converge to: the Frobenius
        # norm is a bound.
        return (frobenius, frobenius, True), 0
    pairs = top_eigenpairs(
        operator, 1, tolerance=max(tolerance, 10 * rounding / frobenius), seed=seed, progress=False
    )
    norm = float(abs(pairs.values[0])), float(pairs.residuals[0]), bool(pairs.converged[0])
    return norm, pairs.num_products


def _with_convergence(row: BlockCurvature, plan: Plan) -> BlockCurvature:
    """Record with the Frobenius norms of H and G whether the tolerance was met."""
    if plan.tolerance is None:
        return row
    parts = []
    for part in (row.hessian, row.gauss_newton):
        norm = part.frobenius_norm
        met = replace(norm, converged=meets(norm, plan.tolerance))
        parts.append(replace(part, frobenius_norm=met))
    return replace(row, hessian=parts[0], gauss_newton=parts[1])


def _line(row: BlockCurvature, symbol: str, norms: MatrixNorms) -> tuple[str, ...]:
    """Return a line of the table: one of the matrices of a layer."""
    first, last = symbol == "H", symbol == "R"
    spectral = _pair(norms.spectral_norm, norms.spectral_residual)
    if not norms.spectral_converged:
        spectral += " (not converged)"
    trace = _pair(norms.trace.value, norms.trace.standard_error)
    ratio = _pair(row.ratio.value, row.ratio.standard_error) if last else ""
    frobenius = _pair(norms.frobenius_norm.value, norms.frobenius_norm.standard_error)
    if norms.rounding and norms.is_rounding:
        frobenius = spectral = ratio = _ZERO
    # The trace of a matrix that is not zero is more precise than its norm.
    if norms.rounding and abs(norms.trace.value) <= norms.rounding / _TRACE_SHARE:
        trace = _ZERO
    return (
        row.name if first else "",
        f"{row.num_params:,}" if first else "",
        symbol,
        frobenius,
        spectral,
        trace,
        ratio,
    )


def _pair(value: float, error: float) -> str:
    return f"{value:.4g} +- {error:.1g}" if error else f"{value:.4g}"
