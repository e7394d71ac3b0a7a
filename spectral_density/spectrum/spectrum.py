"""The spectrum of a symmetric operator as Lanczos quadrature sees it: nodes, weights, errors."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats
from scipy.integrate import trapezoid

from spectral_density.linalg.quadrature import (
    WEIGHT_FLOOR,
    Quadrature,
    deflated_weights,
    gauss_quadrature,
    ritz_residuals,
)
from spectral_density.spectrum.accuracy import (
    CONFIDENCE,
    Accuracy,
    Ending,
    chi_squared_limits,
    draws_error,
    order_error,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE_FORMAT = 1
_GRID_POINTS_PER_SIGMA = 4
_MIN_GRID, _MAX_GRID = 1_000, 200_000
_TAIL = 4.0  # the default grid ends this many sigmas beyond the extreme nodes
# Below this many eigenvalues in a kernel's window, the Gaussian interval gives way to chi-squared.
_FEW_EIGENVALUES = 10.0
_CHUNK = 4_000_000
# What a product is off by at most, in units of its precision: the recurrence, too, takes betas
# below that for rounding.
_ROUNDING_UNITS = 10


@dataclass(frozen=True)
class Density:
    """A smoothed eigenvalue density: the Gaussian kernel density of one normalized matrix.

    The integral of `values` over `grid` is 1 - lost_mass. `lower` and `upper` are pointwise 95 %
    confidence limits for the density that all eigenvalues, smoothed alike, would have.
    """

    grid: np.ndarray  # (g,), ascending, in the units of the eigenvalues
    values: np.ndarray  # (g,), probability per unit of eigenvalue
    lower: np.ndarray  # (g,)
    upper: np.ndarray  # (g,)
    lost_mass: float  # 1 minus the integral over the grid, by the trapezoid rule
    sigma: float  # standard deviation of the kernel


@dataclass(frozen=True)
class LogDensity:
    """An eigenvalue density over ln |lambda|, the negative and the positive side apart.

    Both sides together integrate to 1 - lost_mass over d ln |lambda|.
    """

    magnitudes: np.ndarray  # (g,), |lambda|, spaced evenly in the logarithm
    negative: np.ndarray  # (g,)
    positive: np.ndarray  # (g,)
    lost_mass: float
    sigma: float  # standard deviation of the kernel, in ln |lambda|


@dataclass(frozen=True)
class ExtremeEigenvalues:
    """The outermost Ritz values, each with a bound on its distance to some eigenvalue."""

    smallest: float
    largest: float
    smallest_bound: float  # ||A y - theta y|| plus rounding
    largest_bound: float


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Gauss quadratures of a symmetric operator's spectrum, one a random start vector.

    In each draw `sum_j weights[j] f(nodes[j])` estimates (1/n) tr f(A), exactly v' f(A) v for a
    polynomial f of degree below twice the order.

    Attributes:
        alpha: shape (num_draws, order), diagonals of the Lanczos matrices T.
        beta: shape (num_draws, order - 1), their off-diagonals.
        residual_norms: shape (num_draws,), the norm of the residual after the last step.
        size: number n of eigenvalues of the operator.
        simple: shape (num_draws, order), the nodes known to be converged simple eigenvalues,
            whose weight is therefore 1/n; empty for none.
        seed: seed of the start vectors.
        description: what the operator was.
        precision: relative rounding of the operator's products, the eps of their dtype.
        ended_by: what ended the run, with `ended_by.message`.

    References:
        Golub, Meurant (2010), Matrices, Moments and Quadrature, chapter 6.
        Ghorbani, Krishnan, Xiao (2019), arXiv 1901.10159.
    """

    alpha: np.ndarray = field(repr=False)
    beta: np.ndarray = field(repr=False)
    residual_norms: np.ndarray = field(repr=False)
    size: int
    simple: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), bool), repr=False)
    seed: int = 0
    description: str = ""
    precision: float = float(np.finfo(np.float64).eps)
    ended_by: Ending = Ending.PLAN

    def __post_init__(self) -> None:
        """Take whatever makes an array, and check that the arrays belong together."""
        shape = np.shape(self.alpha)
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"alpha must have shape (num_draws, order), got {shape}.")
        draws, order = shape
        expected = {
            "alpha": (draws, order),
            "beta": (draws, order - 1),
            "residual_norms": (draws,),
            "simple": (draws, order),
        }
        for name, shape in expected.items():
            dtype = bool if name == "simple" else np.float64
            array = np.asarray(getattr(self, name), dtype=dtype)
            if name == "simple" and not array.size:
                array = np.zeros(shape, dtype=bool)
            if array.shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {array.shape}.")
            object.__setattr__(self, name, array)
        if not 1 <= order <= self.size:
            raise ValueError(f"order must be between 1 and the size {self.size}, got {order}.")

    # The quadrature ------------------------------------------------------------------------------

    @property
    def num_draws(self) -> int:
        """Number of start vectors."""
        return int(np.shape(self.alpha)[0])

    @property
    def order(self) -> int:
        """Number of Lanczos steps, and of nodes in each draw."""
        return int(np.shape(self.alpha)[1])

    @cached_property
    def _quadratures(self) -> list[Quadrature]:
        return [gauss_quadrature(a, b) for a, b in zip(self.alpha, self.beta, strict=True)]

    @cached_property
    def nodes(self) -> np.ndarray:
        """Ritz values, shape (num_draws, order), ascending in each draw."""
        return np.stack([q.nodes for q in self._quadratures])

    @cached_property
    def weights(self) -> np.ndarray:
        """Quadrature weights, shape (num_draws, order); each draw sums to 1."""
        return np.stack([q.weights for q in self._quadratures])

    @cached_property
    def deflated_weights(self) -> np.ndarray:
        """Weights with those of simple eigenvalues set to 1/n, the others rescaled to sum 1."""
        return deflated_weights(self.weights, self.simple, self.size)

    @cached_property
    def residuals(self) -> np.ndarray:
        """||A y - theta y|| of each node, shape (num_draws, order): an eigenvalue is that near."""
        pairs = zip(self._quadratures, self.residual_norms, strict=True)
        return np.stack([ritz_residuals(q, norm) for q, norm in pairs])

    def _weights(self, deflate: bool) -> np.ndarray:
        return self.deflated_weights if deflate else self.weights

    # Numbers -------------------------------------------------------------------------------------

    @property
    def extreme_eigenvalues(self) -> ExtremeEigenvalues:
        """The smallest and largest Ritz value over all draws, with residual bounds.

        Nodes without weight are what rounding left after an invariant subspace, and not reported.
        """
        carries = self.weights > WEIGHT_FLOOR
        low = np.where(carries, self.nodes, np.inf)
        high = np.where(carries, self.nodes, -np.inf)
        first = np.unravel_index(np.argmin(low), low.shape)
        last = np.unravel_index(np.argmax(high), high.shape)
        return ExtremeEigenvalues(
            smallest=float(self.nodes[first]),
            largest=float(self.nodes[last]),
            smallest_bound=float(self.residuals[first]) + self.rounding,
            largest_bound=float(self.residuals[last]) + self.rounding,
        )

    def moment(self, power: int, *, deflate: bool = True) -> float:
        """Return the estimate of tr(A^power) / n.

        Args:
            power: an integer >= 0.
            deflate: use the known weight 1/n of simple eigenvalues.
        """
        return float(self._moments(power, deflate).mean())

    def moment_standard_error(self, power: int, *, deflate: bool = True) -> float:
        """Return the standard error of `moment`: between draws, or for one draw in theory.

        For one draw v on the sphere, Var(v' f(A) v) = 2/(n+2) Var f(lambda).
        """
        each = self._moments(power, deflate)
        if self.num_draws > 1:
            return float(each.std(ddof=1) / np.sqrt(self.num_draws))
        variance = self._moments(2 * power, deflate)[0] - each[0] ** 2
        return float(np.sqrt(2 / (self.size + 2) * max(variance, 0.0)))

    def _moments(self, power: int, deflate: bool) -> np.ndarray:
        if int(power) != power or power < 0:
            raise ValueError(f"power must be an integer >= 0, got {power!r}.")
        return np.sum(self._weights(deflate) * self.nodes ** int(power), axis=1)

    @property
    def trace(self) -> float:
        """Estimate of the trace of the operator."""
        return self.size * self.moment(1)

    @property
    def trace_standard_error(self) -> float:
        """Standard error of `trace`."""
        return self.size * self.moment_standard_error(1)

    def cdf(self, x: Any, *, deflate: bool = True) -> np.ndarray:
        """Return the share of eigenvalues at or below `x`, by the midpoint rule.

        In each draw `cumsum(w) - w/2` is interpolated linearly through the nodes; then the draws
        are averaged. The steps of the quadrature itself are up to twice as far from the truth.

        Args:
            x: a number or an array of any shape.
            deflate: use the known weight 1/n of simple eigenvalues.
        """
        weights = self._weights(deflate)
        x = np.asarray(x, dtype=np.float64)
        middles = np.cumsum(weights, axis=1) - weights / 2
        draws = [
            np.interp(x, nodes, middle, left=0.0, right=1.0)
            for nodes, middle in zip(self.nodes, middles, strict=True)
        ]
        return np.mean(draws, axis=0)

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
        bounds = []
        for nodes, weights, residuals in zip(
            self.nodes, self.deflated_weights, self.residuals, strict=True
        ):
            carries = weights > WEIGHT_FLOOR
            nodes, weights, residuals = nodes[carries], weights[carries], residuals[carries]
            count = int(np.sum(nodes < -self.rounding))
            unsure = residuals > np.maximum(np.abs(nodes), self.rounding)
            # Of the negative nodes only the last can be unsure, of the others only the first.
            doubtful = np.where(unsure, weights, 0.0)
            below = weights[:count].sum()
            lower = below - doubtful[max(count - 1, 0) : count].sum()
            bounds.append((lower, below + doubtful[count : count + 1].sum()))
        lower, upper = np.mean(bounds, axis=0)
        return float(lower), float(upper)

    @property
    def rounding(self) -> float:
        """What products, recurrence and eigenvalues of T are rounded by, which no residual sees."""
        units = _ROUNDING_UNITS * self.precision + self.order * np.finfo(np.float64).eps
        return float(units * np.abs(self.nodes).max())

    @cached_property
    def accuracy(self) -> Accuracy:
        """Estimated Wasserstein-1 distance from the truth, as a share of the range.

        The share of the order is the distance between the distributions at this order and at half
        of it; that of the draws is the area of half the 95 % band of the cumulative distribution,
        or the 99 % limit of the distance where that is more.
        """
        return Accuracy(
            order_error(self.alpha, self.beta, self.size),
            draws_error(self.nodes, self.deflated_weights, self.simple, self.size),
        )

    # Densities -----------------------------------------------------------------------------------

    @cached_property
    def default_sigma(self) -> float:
        """Kernel width: range / ((order - 1) sqrt(8 ln 3)), Papyan's with kappa = 3.

        References:
            Papyan (2019), arXiv 1811.07062, appendix on kernel polynomials.
        """
        low, high = self._support
        if high > low and self.order > 1:
            return (high - low) / ((self.order - 1) * np.sqrt(8 * np.log(3)))
        largest = max(abs(low), abs(high))
        return 1e-3 * (largest or np.finfo(np.float64).tiny ** 0.25)

    @cached_property
    def _support(self) -> tuple[float, float]:
        carries = self.weights > WEIGHT_FLOOR
        return float(self.nodes[carries].min()), float(self.nodes[carries].max())

    def density(
        self, grid: Any = None, sigma: float | None = None, deflate: bool = True
    ) -> Density:
        """Return the eigenvalue density smoothed by a Gaussian kernel, with its error band.

        Smoothing adds sigma^2 to the second moment. The band covers the randomness of the start
        vectors, and what a finite order adds to it: t-intervals between draws; where a kernel sees
        but a few eigenvalues, or there is one draw only, the chi-squared law of their weights.
        It does not cover what every draw misses alike.

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
        _check_sigma(sigma)
        points = self._default_grid(sigma) if grid is None else _check_grid(grid)
        weights = self._weights(deflate)
        known = self.simple if deflate else np.zeros_like(self.simple)
        noisy = np.where(known, 0.0, weights)
        each = _smooth(points, self.nodes, noisy, sigma)
        certain = _smooth(points, self.nodes, weights - noisy, sigma).mean(axis=0)
        lower, upper = self._band(points, noisy, each, sigma)
        values = certain + each.mean(axis=0)
        return Density(
            grid=points,
            values=values,
            lower=certain + lower,
            upper=certain + upper,
            lost_mass=float(1.0 - trapezoid(values, points)),
            sigma=sigma,
        )

    def _default_grid(self, sigma: float) -> np.ndarray:
        low, high = self._support
        low, high = low - _TAIL * sigma, high + _TAIL * sigma
        count = int(np.clip(_GRID_POINTS_PER_SIGMA * (high - low) / sigma, _MIN_GRID, _MAX_GRID))
        return np.linspace(low, high, count)

    def _band(
        self, points: np.ndarray, weights: np.ndarray, each: np.ndarray, sigma: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pointwise confidence limits for the mean over draws of `each`, (draws, g)."""
        mean = each.mean(axis=0)
        tail = (1 - CONFIDENCE) / 2
        # v' f(A) v is a mixture of chi-squared variables with variance 2/(n+2) Var f. Matching two
        # moments (Satterthwaite 1946) makes it `unit` times one chi-squared variable, exactly so
        # for a lone eigenvalue. The unit follows from the kernel's height there, whatever weight
        # was drawn; what is unknown is the number of degrees. The square of a Gaussian kernel is
        # another Gaussian.
        squares = _smooth(points, self.nodes, weights, sigma / np.sqrt(2)).mean(axis=0)
        squares /= 2 * sigma * np.sqrt(np.pi)
        spread = 2 / (self.size + 2) * np.maximum(squares - mean**2, 0.0)
        unit = np.divide(spread, 2 * mean, out=np.zeros_like(mean), where=mean > 0)
        lower, upper = chi_squared_limits(mean, unit / self.num_draws, tail)
        upper = np.minimum(upper, 1 / (sigma * np.sqrt(2 * np.pi)))
        if self.num_draws == 1:
            return lower, upper
        error = each.std(axis=0, ddof=1) / np.sqrt(self.num_draws)
        half = stats.t.isf(tail, self.num_draws - 1) * error
        few = mean < _FEW_EIGENVALUES * unit
        lower = np.where(few, lower, np.maximum(mean - half, 0.0))
        upper = np.where(few, upper, mean + half)
        return lower, upper

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
        _check_sigma(sigma)
        largest = float(np.abs(self.nodes).max()) or 1.0
        floor = 1e-9 * largest if floor is None else float(floor)
        if not 0 < floor <= largest:
            raise ValueError(f"floor must be positive and at most {largest}, got {floor}.")
        logs = np.log(np.maximum(np.abs(self.nodes), floor))
        low, high = np.log(floor) - _TAIL * sigma, np.log(largest) + _TAIL * sigma
        grid = np.linspace(low, high, num_points)
        weights = self._weights(deflate)
        negative = _smooth(grid, logs, np.where(self.nodes < 0, weights, 0.0), sigma).mean(axis=0)
        positive = _smooth(grid, logs, np.where(self.nodes < 0, 0.0, weights), sigma).mean(axis=0)
        lost = float(1.0 - trapezoid(negative + positive, grid))
        return LogDensity(np.exp(grid), negative, positive, lost, sigma)

    # Pictures and files --------------------------------------------------------------------------

    def plot(self, ax: Axes | None = None, *, kind: str = "density", **options: Any) -> Axes:
        """Draw the spectrum and return the axes.

        Args:
            ax: matplotlib axes; None for new ones.
            kind: "density" with its band, or "stem" for the unsmoothed nodes and weights.
            **options: see `plotting.plot_density` and `plotting.plot_stem`.
        """
        from spectral_density.plotting import plot_density, plot_stem

        kinds = {"density": plot_density, "stem": plot_stem}
        if kind not in kinds:
            raise ValueError(f"kind must be one of {sorted(kinds)}, got {kind!r}.")
        return kinds[kind](self, ax=ax, **options)

    def to_dataframe(self) -> Any:
        """Return the nodes as a pandas DataFrame, one row for each node of each draw.

        Columns: draw, index, node, weight, deflated_weight, residual, simple.

        Raises:
            ImportError: if pandas is not installed.
        """
        pandas = _optional("pandas", "to_dataframe")
        draw, index = np.indices(self.nodes.shape)
        columns: dict[str, Any] = {
            "draw": draw,
            "index": index,
            "node": self.nodes,
            "weight": self.weights,
            "deflated_weight": self.deflated_weights,
            "residual": self.residuals,
            "simple": self.simple,
        }
        return pandas.DataFrame({name: array.ravel() for name, array in columns.items()})

    def to_xarray(self) -> Any:
        """Return the quadratures as an xarray Dataset over draws and nodes.

        It has the arrays of `to_dataframe`, and the Lanczos coefficients over draws and steps; the
        size, the seed, the description and the precision are attributes.

        Raises:
            ImportError: if xarray is not installed.
        """
        xarray = _optional("xarray", "to_xarray")
        nodes = {
            "node": self.nodes,
            "weight": self.weights,
            "deflated_weight": self.deflated_weights,
            "residual": self.residuals,
            "simple": self.simple,
        }
        variables = {name: (("draw", "index"), array) for name, array in nodes.items()}
        variables["alpha"] = (("draw", "step"), self.alpha)
        # The last step has the norm of what is left: one beta for each alpha.
        beta = np.concatenate([self.beta, self.residual_norms[:, np.newaxis]], axis=1)
        variables["beta"] = (("draw", "step"), beta)
        return xarray.Dataset(
            variables,
            coords={
                "draw": np.arange(self.num_draws),
                "index": np.arange(self.order),
                "step": np.arange(1, self.order + 1),
            },
            attrs={
                "size": self.size,
                "seed": self.seed,
                "description": self.description,
                "precision": self.precision,
            },
        )

    def save(self, path: str | Path) -> Path:
        """Write the spectrum to a compressed npz file and return its path.

        The file holds plain arrays, nodes and weights among them: `numpy.load` opens it.
        """
        path = _npz_path(path)
        np.savez_compressed(
            path,
            format=FILE_FORMAT,
            nodes=self.nodes,
            weights=self.weights,
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name != "ended_by"},
            ended_by=self.ended_by.name,
        )
        return path

    @classmethod
    def load(cls, path: str | Path) -> Spectrum:
        """Read a spectrum that `save` wrote; the suffix may be left out there and here.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is something else, is damaged, or of a newer format.
        """
        path = path if Path(path).exists() else _npz_path(path)
        content = _read_arrays(path)
        version = content.get("format", np.array(""))
        if version.shape or version.dtype.kind not in "iu":
            raise ValueError(f"{path} is not a spectrum file: it states no format.")
        if version > FILE_FORMAT:
            raise ValueError(
                f"{path} has format {version}; this version reads up to {FILE_FORMAT}. "
                "Install a newer spectral-density."
            )
        # Files of before there were endings are of runs as planned.
        ended_by = str(content.setdefault("ended_by", np.array(Ending.PLAN.name)))
        missing = {f.name for f in fields(cls)} - set(content)
        if missing:
            raise ValueError(f"{path} is not a spectrum file: it lacks {sorted(missing)}.")
        try:
            return cls(
                alpha=content["alpha"],
                beta=content["beta"],
                residual_norms=content["residual_norms"],
                size=int(content["size"]),
                simple=content["simple"],
                seed=int(content["seed"]),
                description=str(content["description"]),
                precision=float(content["precision"]),
                ended_by=Ending[ended_by],
            )
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"{path} is not a spectrum file: {error}") from error

    def __repr__(self) -> str:
        """Name the size, never the arrays."""
        return f"Spectrum(n={self.size:,}, order={self.order}, num_draws={self.num_draws})"

    def __str__(self) -> str:
        """Sum up the spectrum in a few lines."""
        rows = self._summary()
        width = max(len(name) for name, _ in rows)
        return "\n".join(["Spectrum", *(f"  {name:<{width}}  {text}" for name, text in rows)])

    def _repr_html_(self) -> str:
        """Show the summary and the density in a notebook."""
        from spectral_density._html import card, image
        from spectral_density.plotting._axes import png_bytes

        png = png_bytes(self.plot, (3.6, 2.6))
        return card("Spectrum", self._summary(), image(png, 330, "eigenvalue density"))

    def _summary(self) -> list[tuple[str, str]]:
        ends = self.extreme_eigenvalues
        num_simple = int(self.simple[0].sum())
        what = "eigenvalue, weighing 1/n" if num_simple == 1 else "eigenvalues, weighing 1/n each"
        draws = f"{self.num_draws} draw{'s' if self.num_draws != 1 else ''}"
        low, high = (100 * share for share in self.negative_mass_bounds)
        negative = f"{low:.3g} %" if high - low < 0.01 else f"{low:.3g} to {high:.3g} %"
        density = self.density()
        return [
            ("operator", self.description or "(not described)"),
            ("eigenvalues", f"{self.size:,}, from {draws} of {self.order} steps"),
            ("largest", f"{ends.largest:.6g} +- {ends.largest_bound:.1e}"),
            ("smallest", f"{ends.smallest:.6g} +- {ends.smallest_bound:.1e}"),
            ("trace", f"{self.trace:.6g} +- {self.trace_standard_error:.1e} (standard error)"),
            ("mean", f"{self.moment(1):.6g}"),
            ("mean square", f"{self.moment(2):.6g}"),
            ("below zero", f"{negative} of the eigenvalues"),
            ("outliers", f"{num_simple} converged simple {what}"),
            (
                "accuracy",
                f"{self.accuracy.total:.1e} of the range (steps {self.accuracy.order:.1e}, draws "
                f"{self.accuracy.draws:.1e}) by Wasserstein-1 distance",
            ),
            ("ended", self.ended_by.message),
            ("lost mass", f"{density.lost_mass:.1e} of the density at sigma {density.sigma:.3g}"),
        ]


def _optional(name: str, method: str) -> Any:
    """Import a library that is not one of ours, or say what to install."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"{method} needs {name}, which is not installed: pip install {name}. "
            "Without it, nodes and weights are arrays of the spectrum."
        ) from error


def _npz_path(path: str | Path) -> Path:
    path = Path(path)
    return path if path.suffix == ".npz" else path.with_name(path.name + ".npz")


def _read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an npz file by name."""
    with Path(path).open("rb") as stream:
        # A damaged archive fails in a dozen ways, from zlib's own error to NotImplementedError.
        try:
            with np.load(stream, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:
            raise ValueError(f"{path} is not a spectrum file, or is damaged.") from error


def _check_sigma(sigma: float) -> None:
    if not (np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"sigma must be positive and finite, got {sigma}.")


def _check_grid(grid: Any) -> np.ndarray:
    points = np.asarray(grid, dtype=np.float64)
    if points.ndim != 1 or len(points) < 2 or not np.all(np.diff(points) > 0):
        raise ValueError(
            f"grid must be ascending, with at least two points, got shape {points.shape}."
        )
    return points


def _smooth(points: np.ndarray, nodes: np.ndarray, weights: np.ndarray, sigma: float) -> np.ndarray:
    """Return sum_j weights[d, j] N(points; nodes[d, j], sigma^2), shape (num_draws, g)."""
    result = np.empty((len(nodes), len(points)))
    step = max(1, _CHUNK // nodes.shape[1])
    for start in range(0, len(points), step):
        part = points[start : start + step]
        for draw, (centers, masses) in enumerate(zip(nodes, weights, strict=True)):
            scaled = (part[:, None] - centers) / sigma
            result[draw, start : start + step] = np.exp(-0.5 * scaled**2) @ masses
    return result / (sigma * np.sqrt(2 * np.pi))
