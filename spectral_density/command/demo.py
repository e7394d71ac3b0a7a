"""The command `demo`: the spectrum of a small network, compared with its exact eigenvalues."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spectral_density._repr import repr_with_shapes
from spectral_density.command.quiet import import_keras
from spectral_density.command.results import SUMMARY
from spectral_density.spectrum.spectrum import Spectrum

ORDER, DRAWS = 90, 10


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured against exact eigenvalues."""

    spectrum: Spectrum
    exact: np.ndarray  # (num_params,), ascending
    wasserstein: float  # distance to the exact spectrum, as a share of its range
    top_error: float  # largest relative error of the ten largest eigenvalues
    regression_error: float  # ||V T V' - 2 X'X|| / ||2 X'X||

    __repr__ = repr_with_shapes


def run_demo(folder: Path, show: Callable[[str], None], progress: bool | None = True) -> DemoResult:
    """Train, estimate, compare, and write `spectrum.npz` and `spectrum.png` to a folder.

    Args:
        folder: where the files go; made if it is not there.
        show: called with each line of the report.
        progress: show bars; None for only in interactive runs.

    Raises:
        FileExistsError: if the folder holds a run of the user's own.
        ModuleNotFoundError: if scikit-learn is not installed.
    """
    if (folder / SUMMARY).exists():
        raise FileExistsError(f"{folder} holds a run of your own: choose another --out.")
    x, y = _digits()
    folder.mkdir(parents=True, exist_ok=True)
    import_keras()
    show("1. Linear regression with the sum of squares: V T V' must be 2 X'X.")
    regression_error = check_linear_regression()
    show(f"   relative error {regression_error:.1e}")

    show("2. A network for scikit-learn's digits.")
    model = train_digits_model(x, y)
    accuracy = float(np.mean(np.argmax(model.predict(x, verbose=0), axis=1) == y))
    show(f"   {model.count_params():,} parameters, training accuracy {100 * accuracy:.1f} %")

    import spectral_density as sd

    dataset = [(x[i : i + 300], y[i : i + 300]) for i in range(0, len(x), 300)]
    hessian = sd.HessianOperator(model, dataset=dataset)
    show(f"3. Spectrum of its Hessian: {DRAWS} draws of {ORDER} Lanczos steps.")
    start = time.perf_counter()
    spectrum = sd.estimate_spectrum(hessian, ORDER, DRAWS, seed=1, progress=progress)
    show(f"   {time.perf_counter() - start:.1f} s")
    show(f"4. The exact eigenvalues, from {hessian.shape[0]:,} products.")
    start = time.perf_counter()
    dense = hessian.to_dense(progress=progress)
    exact = np.linalg.eigvalsh((dense + dense.T) / 2)
    show(f"   {time.perf_counter() - start:.1f} s")

    result = DemoResult(
        spectrum,
        exact,
        wasserstein_share(spectrum, exact),
        largest_relative_error(spectrum, exact, 10),
        regression_error,
    )
    show("")
    show(str(spectrum))
    show("")
    show(f"distance to the exact spectrum (Wasserstein-1): {result.wasserstein:.1e} of its range")
    show(f"ten largest eigenvalues: relative error at most {result.top_error:.1e}")
    show(f"wrote {spectrum.save(folder / 'spectrum.npz')}")
    show(f"wrote {draw(spectrum, exact, folder / 'spectrum.png')}")
    return result


def check_linear_regression(num_samples: int = 50, num_features: int = 16) -> float:
    """Return ||V T V' - 2 X'X|| / ||2 X'X|| for a linear model with one loss per example."""
    import keras

    import spectral_density as sd

    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_samples, num_features)).astype(np.float32)
    y = rng.normal(size=num_samples).astype(np.float32)
    model = keras.Sequential([keras.Input((num_features,)), keras.layers.Dense(1, use_bias=False)])

    def loss_fn(model: Any, batch: Any) -> Any:
        inputs, targets = batch
        return keras.losses.mean_squared_error(targets, model(inputs))

    with warnings.catch_warnings():
        # One loss per example is what this example is about.
        warnings.filterwarnings("ignore", message="loss_fn returned one loss per example")
        v, t = sd.approximate_hessian(model, loss_fn, [(x, y)], order=num_features, progress=False)
    exact = 2 * x.T.astype(np.float64) @ x.astype(np.float64)
    approximation = np.asarray(v) @ np.asarray(t) @ np.asarray(v).T
    return float(np.linalg.norm(approximation - exact) / np.linalg.norm(exact))


def train_digits_model(x: np.ndarray, y: np.ndarray, epochs: int = 15) -> Any:
    """Train a 64-50-20-10 tanh network (4,480 parameters) with Adam, seeded."""
    import keras

    initializer = [keras.initializers.GlorotUniform(seed=seed) for seed in range(3)]
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(50, activation="tanh", kernel_initializer=initializer[0]),
            keras.layers.Dense(20, activation="tanh", kernel_initializer=initializer[1]),
            keras.layers.Dense(10, kernel_initializer=initializer[2]),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    model.fit(x, y, batch_size=64, epochs=epochs, shuffle=False, verbose=0)
    return model


def wasserstein_share(spectrum: Spectrum, exact: np.ndarray) -> float:
    """Return the Wasserstein-1 distance to exact eigenvalues over their range."""
    from scipy.stats import wasserstein_distance

    distance = wasserstein_distance(
        spectrum.nodes.ravel(), exact, spectrum.deflated_weights.ravel()
    )
    return float(distance / (exact.max() - exact.min()))


def largest_relative_error(spectrum: Spectrum, exact: np.ndarray, count: int) -> float:
    """Return the largest relative error among the `count` largest eigenvalues of one draw."""
    estimated = spectrum.nodes[0][-count:]
    true = np.sort(exact)[-count:]
    return float(np.max(np.abs(estimated - true) / np.abs(true)))


def draw(spectrum: Spectrum, exact: np.ndarray, path: Path) -> Path:
    """Draw the density with its band, and the exact eigenvalues as ticks below it.

    To the left as a whole; to the right about zero, on a signed logarithmic axis.
    """
    import matplotlib.pyplot as plt

    fig, (whole, near_zero) = plt.subplots(
        1, 2, figsize=(9, 3.8), sharey=True, layout="constrained"
    )
    spectrum.plot(whole, label="estimate, with its 95 % band")
    spectrum.plot(near_zero, xscale="symlog")
    height = 2 * whole.get_ylim()[0]
    for ax in (whole, near_zero):
        ax.plot(exact, np.full(len(exact), height), "|k", alpha=0.4, label="exact eigenvalues")
    whole.legend(loc="upper right")
    whole.set_title("Hessian of a network trained on digits", fontsize="medium")
    near_zero.set_title("the same over a signed logarithmic axis", fontsize="medium")
    near_zero.set_ylabel("")
    fig.savefig(path, dpi=150)
    plt.close(fig)
    return path


def _digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the demo needs scikit-learn, whose digits it trains on: "
            'pip install scikit-learn (it is in the extra "examples").'
        ) from error
    x, y = load_digits(return_X_y=True)
    return (x / 16.0).astype(np.float32), y.astype(np.int64)
