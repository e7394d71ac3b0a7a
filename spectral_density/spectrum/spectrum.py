"""The spectrum of a symmetric operator by Lanczos quadrature: nodes, weights, and their errors."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.distance import jensenshannon

from spectral_density.linalg.quadrature import deflated_weights
from spectral_density.spectrum import export, extremes
from spectral_density.spectrum.accuracy import (
    Accuracy,
    draws_error,
    order_error,
    products_error,
    support,
    wasserstein,
)
from spectral_density.spectrum.extremes import ExtremeEigenvalues, Outlier
from spectral_density.spectrum.files import read_file, write_file
from spectral_density.spectrum.kernel_density import (
    Density,
    LogDensity,
    check_kernel_width,
    checked_grid,
    default_grid,
    default_kernel_width,
    kernel_density,
    log_kernel_density,
)
from spectral_density.spectrum.overview import overview
from spectral_density.spectrum.quadratures import Quadratures
from spectral_density.spectrum.statistics import (
    SpectrumStatistic,
    count_between,
    effective_rank,
    negative_mass_bounds,
    tail_exponent,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum(Quadratures):
    """Gauss quadratures of a symmetric operator's spectrum, one for each random start vector.

    In each draw `sum_j weights[j] f(nodes[j])` estimates (1/n) tr f(A), exactly v' f(A) v for a
    polynomial f of degree below twice the order; of a block it is the mean over its vectors v.

    Attributes:
        alpha: shape (num_draws, order), diagonals of the Lanczos matrices T. Of draws of b > 1
            start vectors, whose T is block tridiagonal, an entry of this and of the next two is a
            matrix: alpha has shape (num_draws, order, b, b), see `linalg.Tridiagonalization`.
        beta: shape (num_draws, order - 1), their off-diagonals.
        residual_norms: shape (num_draws,), the norm of the residual after the last step.
        size: number n of eigenvalues of the operator.
        simple: shape (num_draws, order * b), the nodes known to be converged simple eigenvalues,
            whose weight is therefore 1/n; empty for none.
        seed: seed of the start vectors.
        description: what the operator was.
        precision: relative rounding of the operator's products, the eps of their dtype.
        product_error: how far products were from those at full precision, relative and by norm,
            where they were made at a lower one.
        ended_by: what ended the run, with `ended_by.message`.
        model_state: where the model stood, by name: loss, gradient_norm and, of a classifier,
            accuracy; empty for what is no model, or where nothing was computed.
        eigenpairs: the Ritz pairs of largest magnitude, where they were asked for; not in files.
        choice: what of block, steps and draws the run chose by itself, and why; empty for nothing.

    References:
        Golub, Meurant (2010), Matrices, Moments and Quadrature, chapter 6.
        Ghorbani, Krishnan, Xiao (2019), arXiv 1901.10159.
    """

    # Numbers -------------------------------------------------------------------------------------

    @cached_property
    def extreme_eigenvalues(self) -> ExtremeEigenvalues:
        """The smallest and largest Ritz value over all draws, and whether they have converged.

        Nodes without weight, which rounding adds after an invariant subspace, are left out.
        """
        return extremes.extreme_eigenvalues(self)

    @property
    def outliers(self) -> tuple[Outlier, ...]:
        """Eigenvalues known to be converged and simple, largest magnitude first.

        It takes two draws or a block to know (and reorthogonalization): with one start vector
        there is none.
        """
        return extremes.outliers(self)

    @property
    def negative_mass_bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the share of eigenvalues below zero, averaged over the draws.

        The quadrature of a start vector puts the mass below zero between the weights of its
        negative nodes without, and with, the two nodes on either side of zero. Those two count on
        their own side where their residual does not reach across. What is within rounding of zero
        is zero. Networks have most of their eigenvalues there, so the bounds can be far apart.

        References:
            Karlin, Shapley (1953), Mem. AMS 12 (Chebyshev-Markov-Stieltjes inequalities).
        """
        return negative_mass_bounds(self)

    @cached_property
    def accuracy(self) -> Accuracy:
        """Estimated Wasserstein-1 distance from the truth, as a share of the range.

        The share of the order is the distance between the distributions at this order and at half
        of it; that of the draws is the area of half the 95 % band of the cumulative distribution,
        or the 99 % limit of the distance where that is more. Products below full precision have
        a share of their own.
        """
        low, high = support(self.nodes, self.weights)
        weights = self.deflated_weights
        return Accuracy(
            order_error(self.alpha, self.beta, self.size),
            draws_error(self.nodes, weights, self.simple, self.size, self.block),
            products_error(self.nodes, weights, self.product_error),
            spread=high - low,
        )

    def distance(self, other: Spectrum, *, deflate: bool = True) -> float:
        """Return the Wasserstein-1 distance to another spectrum, in the units of the eigenvalues.

        It is the area between the two cumulative distributions: how far eigenvalues are apart on
        average, each paired with that of the same rank. Sizes may differ. What is below the sum of
        both `accuracy.distance` may come from the estimates alone.

        Args:
            other: the other spectrum.
            deflate: use the known weight 1/n of simple eigenvalues.
        """
        return wasserstein(self.nodes, self._weights(deflate), other.nodes, other._weights(deflate))

    def jensen_shannon_distance(
        self, other: Spectrum, *, sigma: float | None = None, deflate: bool = True
    ) -> float:
        """Return the Jensen-Shannon distance between the densities of two spectra, 0 to 1.

        It is the root of the divergence in bits: 0 for the same shape, 1 for densities that have
        nothing in common. Unlike `distance` it depends on the kernel: state the width with it.

        Args:
            other: the other spectrum.
            sigma: width of the kernel, the same for both; None for the larger `default_sigma`.
            deflate: use the known weight 1/n of simple eigenvalues.

        References:
            Endres, Schindelin (2003), IEEE Trans. Inf. Theory 49:1858 (that it is a distance).
            Zhang et al. (2024), arXiv 2402.16788 (between the spectra of layers).
        """
        sigma = max(self.default_sigma, other.default_sigma) if sigma is None else float(sigma)
        check_kernel_width(sigma)
        lows, highs = zip(*(support(s.nodes, s.weights) for s in (self, other)), strict=True)
        grid = default_grid(min(lows), max(highs), sigma)
        left, right = (s.density(grid, sigma, deflate).values for s in (self, other))
        return float(jensenshannon(left, right, base=2))

    # Counts --------------------------------------------------------------------------------------

    @property
    def resolution(self) -> float:
        """Distance that this run tells apart in the bulk: `default_sigma`, or rounding if more."""
        return max(self.default_sigma, self.rounding)

    def count_above(self, x: float) -> SpectrumStatistic:
        """Estimate the number of eigenvalues above `x`, which should be a `resolution` from zero.

        Within a cluster that the run does not resolve, such as that at zero of most networks,
        `resolved` is false, and the limits are bounds.
        """
        return count_between(self, float(x), np.inf)

    def count_below(self, x: float) -> SpectrumStatistic:
        """Estimate the number of eigenvalues at or below `x`; see `count_above`."""
        return count_between(self, -np.inf, float(x))

    def count_between(self, low: float, high: float) -> SpectrumStatistic:
        """Estimate the number of eigenvalues above `low` and up to `high`; see `count_above`.

        Raises:
            ValueError: if `low` is above `high`.
        """
        if not low <= high:
            raise ValueError(f"low must be at most high, got {low} and {high}.")
        return count_between(self, float(low), float(high))

    @cached_property
    def effective_rank(self) -> SpectrumStatistic:
        """Exponential of the entropy of |lambda| / sum |lambda|: how many eigenvalues matter.

        References:
            Roy, Vetterli (2007), EUSIPCO, "The effective rank".
        """
        return effective_rank(self)

    @property
    def tail_exponent(self) -> SpectrumStatistic:
        """Exponent a of a density ~ lambda^-a above the `resolution`; see `tail_exponent_above`."""
        return tail_exponent(self, self.resolution)

    def tail_exponent_above(self, threshold: float) -> SpectrumStatistic:
        """Estimate the exponent a of a density in proportion to lambda^-a above a threshold x > 0.

        It is a = 1 + N / sum ln(lambda_i / x) over the N eigenvalues above x. Whether they follow a
        power law at all, neither the exponent nor its error says.

        Raises:
            ValueError: if the threshold is not positive or no eigenvalue is above it.

        References:
            Hill (1975), Ann. Statist. 3:1163.
            Clauset, Shalizi, Newman (2009), SIAM Review 51:661, equation 3.1.
        """
        return tail_exponent(self, float(threshold))

    # Densities -----------------------------------------------------------------------------------

    @cached_property
    def default_sigma(self) -> float:
        """Kernel width: range / ((order - 1) sqrt(8 ln 3)), Papyan's with kappa = 3.

        References:
            Papyan (2019), arXiv 1811.07062, appendix on kernel polynomials.
        """
        return default_kernel_width(*support(self.nodes, self.weights), self.order)

    def density(
        self, grid: Any = None, sigma: float | None = None, deflate: bool = True
    ) -> Density:
        """Return the eigenvalue density smoothed by a Gaussian kernel, with its error band.

        Smoothing adds sigma^2 to the second moment. The band covers the randomness of the start
        vectors: t-intervals, by the variance between draws and that of the law of the weights;
        where a kernel sees but a few eigenvalues, or there is one draw only, the chi-squared law of
        their weights. It does not cover errors of the steps that all draws have in common, such as
        ripples in a bulk without outliers; `accuracy` does.

        Args:
            grid: points to evaluate at, shape (g,), ascending; None for the whole spectrum with
                4 sigma at each end.
            sigma: standard deviation of the kernel, in the units of the eigenvalues; None for
                `default_sigma`.
            deflate: use the known weight 1/n of simple eigenvalues.

        Raises:
            ValueError: if `sigma` is not positive or the grid not ascending.
        """
        sigma = self.default_sigma if sigma is None else float(sigma)
        check_kernel_width(sigma)
        if grid is None:
            points = default_grid(*support(self.nodes, self.weights), sigma)
        else:
            points = checked_grid(grid)
        weights, known = self._vector_weights, self._of_vectors(self.simple & deflate)
        return kernel_density(
            self._of_vectors(self.nodes),
            deflated_weights(weights, known, self.size) if deflate else weights,
            known,
            size=self.size,
            points=points,
            sigma=sigma,
        )

    def log_density(
        self,
        *,
        sigma: float = 0.25,
        floor: float | None = None,
        num_points: int = 500,
        deflate: bool = True,
    ) -> LogDensity:
        """Return the density over ln |lambda|, with the sign kept.

        Args:
            sigma: standard deviation of the kernel in ln |lambda|.
            floor: magnitudes below it, zero included, count as this one; default 1e-9 times the
                largest.
            num_points: number of grid points.
            deflate: use the known weight 1/n of simple eigenvalues.
        """
        weights = self._weights(deflate)
        return log_kernel_density(
            self.nodes, weights, sigma=sigma, floor=floor, num_points=num_points
        )

    # Pictures and files --------------------------------------------------------------------------

    def plot(self, ax: Axes | None = None, *, kind: str = "density", **options: Any) -> Axes:
        """Draw the spectrum and return the axes.

        Args:
            ax: matplotlib axes; None for new ones.
            kind: "density" with its band, or "stem" for the unsmoothed nodes and weights.
            **options: see `plotting.plot_density` and `plotting.plot_stem`.

        New axes of a run that chose its steps and draws say so above.
        """
        from spectral_density.plotting import plot_density, plot_stem

        kinds = {"density": plot_density, "stem": plot_stem}
        if kind not in kinds:
            raise ValueError(f"kind must be one of {sorted(kinds)}, got {kind!r}.")
        drawn = kinds[kind](self, ax=ax, **options)
        if ax is None and self.choice:
            drawn.set_title(f"chosen: {self.choice.partition(':')[0]}", fontsize="x-small")
        return drawn

    def to_dataframe(self) -> Any:
        """Return the nodes as a pandas DataFrame, one row for each node of each draw.

        Columns: draw, index, node, weight, deflated_weight, residual, simple.

        Raises:
            ImportError: if pandas is not installed.
        """
        return export.to_dataframe(self)

    def to_xarray(self) -> Any:
        """Return the quadratures as an xarray Dataset over draws and nodes.

        It has the arrays of `to_dataframe`, and the Lanczos coefficients over draws and steps; the
        size, the seed, the description and the precision are attributes.

        Raises:
            ImportError: if xarray is not installed.
        """
        return export.to_xarray(self)

    def save(self, path: str | Path) -> Path:
        """Write the spectrum to a compressed npz file and return its path.

        The file holds plain arrays, nodes and weights among them: `numpy.load` opens it. Eigenpairs
        are not in it: their vectors are as long as the matrix is.
        """
        own = {name: getattr(self, name) for name in _saved_names()}
        own["ended_by"] = self.ended_by.name
        own["model_state"] = json.dumps(dict(self.model_state))
        return write_file(path, {"nodes": self.nodes, "weights": self.weights, **own})

    @classmethod
    def load(cls, path: str | Path) -> Spectrum:
        """Read a spectrum that `save` wrote; the suffix may be left out there and here.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is something else, is damaged, or of a newer format.
        """
        return read_file(path, _saved_names(), cls)

    def __repr__(self) -> str:
        """Name the size, never the arrays."""
        block = f", block={self.block}" if self.block > 1 else ""
        return f"Spectrum(n={self.size:,}, order={self.order}, num_draws={self.num_draws}{block})"

    def __str__(self) -> str:
        """Return the most important numbers in a few lines."""
        rows = overview(self)
        width = max(len(name) for name, _ in rows)
        return "\n".join(["Spectrum", *(f"  {name:<{width}}  {text}" for name, text in rows)])

    def _repr_html_(self) -> str:
        """Return the most important numbers and a picture of the density, for a notebook."""
        from spectral_density._html import card, image
        from spectral_density.plotting.axes import png_bytes

        png = png_bytes(self.plot, (3.6, 2.6))
        return card("Spectrum", overview(self), image(png, 330, "eigenvalue density"))


def _saved_names() -> list[str]:
    """Return the names of the fields that a file has."""
    return [item.name for item in fields(Spectrum) if item.name != "eigenpairs"]
