"""Matrices of known spectrum, and distances to it, shared by the tests."""

import numpy as np
from scipy.sparse.linalg import LinearOperator


def semicircle_with_outliers(n=2000):
    """Case A: n - 10 quantiles of the semicircle law on [-1, 1], outliers at 2 to 10."""
    grid = np.linspace(-1, 1, 200_001)
    cdf = 0.5 + (grid * np.sqrt(1 - grid**2) + np.arcsin(grid)) / np.pi
    bulk = np.interp((np.arange(n - 10) + 0.5) / (n - 10), cdf, grid)
    return np.concatenate([bulk, np.linspace(2, 10, 10)])


def log_uniform_bulk(n=2000, seed=0):
    """Case B, as networks have: magnitudes over 6 decades, 15 % negative, outliers 1 to 50."""
    rng = np.random.default_rng(seed)
    num_negative = round(0.15 * (n - 10))
    negative = -(10 ** rng.uniform(-6, -1.5, num_negative))
    positive = 10 ** rng.uniform(-6, -0.5, n - 10 - num_negative)
    return np.sort(np.concatenate([negative, positive, np.geomspace(1, 50, 10)]))


def distinct_eigenvalues(count, n=200):
    """n eigenvalues of which `count` are distinct, evenly spaced in [-1, 1]."""
    return np.resize(np.linspace(-1, 1, count), n)


def rank_two(n=200):
    """Eigenvalues 3, 5, and 0 for all others."""
    return np.concatenate([[3.0, 5.0], np.zeros(n - 2)])


def diagonal_operator(eigenvalues, dtype=np.float64):
    """The diagonal matrix; with float32, products that are computed and returned in float32.

    A diagonal does for every spectrum: start vectors are uniform on the sphere.
    """
    diagonal = np.asarray(eigenvalues).astype(dtype)

    def matmat(block):
        return diagonal[:, np.newaxis] * block.astype(dtype)

    return LinearOperator(
        (len(diagonal), len(diagonal)),
        matvec=lambda v: diagonal * np.ravel(v).astype(dtype),
        matmat=matmat,
        dtype=dtype,
    )


def dense_symmetric(eigenvalues, seed=0):
    """A dense symmetric matrix with these eigenvalues and random eigenvectors."""
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    a = (q * eigenvalues) @ q.T
    return (a + a.T) / 2


def spread(eigenvalues):
    """Range of the eigenvalues."""
    return np.max(eigenvalues) - np.min(eigenvalues)


def orthogonality_error(rows):
    """max|V'V - I| of rows that should be orthonormal, in float64."""
    rows = np.asarray(rows, dtype=np.float64)
    return np.abs(rows @ rows.T - np.eye(len(rows))).max()


def ks_distance(nodes, weights, eigenvalues):
    """Largest difference between the step CDFs of a pooled quadrature and of the eigenvalues."""
    order = np.argsort(nodes, axis=None)
    points, masses = np.ravel(nodes)[order], np.ravel(weights)[order] / np.sum(weights)
    values = np.sort(eigenvalues)
    everywhere = np.union1d(points, values)
    cumulative = np.concatenate([[0.0], np.cumsum(masses)])
    gap = 0.0
    for side in ("left", "right"):
        ours = cumulative[np.searchsorted(points, everywhere, side)]
        true = np.searchsorted(values, everywhere, side) / len(values)
        gap = max(gap, np.abs(ours - true).max())
    return gap


def midpoint_ks_distance(nodes, weights, eigenvalues):
    """The same for the CDF through (node, cumsum(w) - w/2): per draw, then averaged."""
    values = np.sort(eigenvalues)
    n = len(values)
    cdf = np.mean(
        [
            np.interp(values, theta, np.cumsum(w) - w / 2, left=0.0, right=1.0)
            for theta, w in zip(nodes, weights, strict=True)
        ],
        axis=0,
    )
    return max(np.abs(cdf - np.arange(n) / n).max(), np.abs(cdf - np.arange(1, n + 1) / n).max())


def html_of(result):
    """What a notebook shows of an object: the name of the method is IPython's."""
    return result._repr_html_()
