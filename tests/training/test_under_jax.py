"""What `SpectrumCallback` records in `fit` under the JAX backend, where there is no TensorFlow.

In a process of its own: Keras has one backend in a process.
"""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from engines.jax.processes import passes

pytestmark = pytest.mark.slow


def run(folder, *arguments):
    """Run Python where every import of TensorFlow fails."""
    for name in ("tensorflow", "tf_keras"):
        text = f"raise ModuleNotFoundError('No module named {name}', name='{name}')"
        (folder / f"{name}.py").write_text(text)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    of_jax = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | of_jax,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    run(folder, Path(__file__).with_name("fit_under_jax.py"), folder)
    return folder


@pytest.fixture(scope="module")
def found(folder):
    with np.load(folder / "found.npz") as file:
        return dict(file)


def test_minimizing_imports_neither_tensorflow_nor_keras(tmp_path):
    lines = (
        "import sys, spectral_density.training as t; t.minimize; sys.exit('keras' in sys.modules)"
    )
    run(tmp_path, "-c", lines)


def hessian(x, kernel, bias):
    """The Hessian of the mean cross-entropy of a softmax regression, float64, in closed form."""
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    logits = x @ np.concatenate([kernel, bias[None]]).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    at_logits = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    return np.einsum("ni,nj,nkl->ikjl", x, x, at_logits).reshape(21, 21) / len(x)


@pytest.mark.parametrize(
    ("name", "steps", "epochs"),
    [("epochs", [6, 12], [1, 2]), ("steps", [4, 8, 12], [1, 2, 2])],
)
def test_each_spectrum_is_that_of_the_weights_at_its_moment(found, name, steps, epochs):
    first = 1 if name == "epochs" else 0  # after that of the start
    assert found[f"{name}|step"][first:].tolist() == steps
    assert found[f"{name}|epoch"][first:].tolist() == epochs
    for place, step in enumerate(steps, first):
        exact = hessian(found["x"], found["kernels"][step - 1], found["biases"][step - 1])
        values = np.linalg.eigvalsh(exact)
        np.testing.assert_allclose(found[f"{name}|eigenvalues"][place], values[:-4:-1], rtol=1e-5)
        assert abs(found[f"{name}|smallest"][place] - values[0]) < 1e-6
        assert found[f"{name}|trace"][place] == pytest.approx(np.trace(exact), rel=0.3)
        assert found[f"{name}|bounds"][place].max() < 1e-5


def test_the_values_are_in_the_history(found):
    kinds = ["eigenvalue_1", "eigenvalue_2", "eigenvalue_3", "eigenvalue_min", "trace"]
    kinds.append("trace_standard_error")
    keys = [f"{name}_{kind}" for name in ("hessian", "step") for kind in kinds]
    assert sorted(found["keys"].tolist()) == sorted(["loss", *keys])
    largest, trace = found["history"]
    np.testing.assert_array_equal(largest, found["epochs|eigenvalues"][1:, 0])
    np.testing.assert_array_equal(trace, found["steps|trace"][[0, 2]])


def test_training_ends_with_the_same_variables_as_without(found):
    np.testing.assert_array_equal(found["plain losses"], found["watched losses"])
    assert found["same variables"].all()
    assert found["traces"] == 1


def test_files_are_written_without_tensorflow_and_read_with_it(folder, found):
    with (folder / "spectrum.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "2", "4", "6", "8", "10", "12"]
    largest = [float(row["eigenvalue_1"]) for row in rows]
    np.testing.assert_array_equal(largest, found["eigenvalues"][:, 0])
    (file,) = (folder / "events").iterdir()
    events = map(
        tf.compat.v1.Event.FromString, tf.data.TFRecordDataset(str(file)).as_numpy_iterator()
    )
    values = [(event.step, value) for event in events for value in event.summary.value]
    of_largest = [
        float(tf.make_ndarray(value.tensor))
        for _, value in values
        if value.tag == "spectrum/hessian_eigenvalue_1"
    ]
    np.testing.assert_allclose(of_largest, largest, rtol=1e-6)
    figures = [step for step, value in values if value.tag == "spectrum/hessian_density"]
    assert figures == [0, 2, 4, 6, 8, 10, 12]
    assert found["spectra"].all()


def test_another_matrix_within_a_budget(found):
    # With logits and a linear model the Gauss-Newton matrix is the Hessian.
    np.testing.assert_allclose(found["gauss_newton"], found["history"][0], rtol=1e-5)


@pytest.mark.parametrize("budget", [None, 0.5])
def test_what_is_known_before_the_first_step_is_raised_there(found, budget):
    assert str(found[f"no scalar|{budget}"]).startswith("ValueError: loss_fn must return a scalar")


def test_what_needs_tensorflow_says_so_in_a_sentence(found):
    message = str(found["second order"])
    assert message.startswith("ValueError: SecondOrderModel needs TensorFlow, and Keras runs on")
    assert "KERAS_BACKEND=tensorflow" in message
    assert str(found["no model"]) == message
    assert "gs://bucket/run' are written by TensorFlow, which is not in" in str(found["remote"])


def test_a_keras_model_is_minimized_in_its_variables(found):
    x, y = found["x"].astype(np.float64), found["y"]

    def loss(w):
        kernel, bias = w[:18].reshape(6, 3), w[18:]
        logits = x @ kernel + bias
        entropies = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(48), y]
        return entropies.mean() + 0.05 * np.sum(kernel**2)

    true = scipy.optimize.minimize(loss, np.zeros(21), method="BFGS", tol=1e-8)
    assert found["minimum"][0] == pytest.approx(true.fun, rel=1e-6)
    assert found["minimum"][1] <= 1e-5
    np.testing.assert_allclose(found["minimizer"].ravel(), true.x[:18], atol=1e-4)
    assert found["params"]  # None: the variables hold it


@pytest.mark.exhaustive
def test_the_stability_of_a_training_is_recorded_alike():
    some = "closed_form or without_the_callback"
    passes(Path(__file__).with_name("test_stability_probe.py"), "-k", some, KERAS_BACKEND="jax")


@pytest.mark.exhaustive
def test_all_of_the_stability_of_a_training_is_recorded_alike():
    passes(Path(__file__).with_name("test_stability_probe.py"), KERAS_BACKEND="jax")
