"""The package where TensorFlow cannot be imported: functions of JAX, Keras under JAX, commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from spectral_density import Spectrum

# Keras saves weights by an interface that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TENSORFLOW = ("tensorflow", "tf_keras")
PNG = b"\x89PNG\r\n\x1a\n"

X = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
Y = np.random.default_rng(1).normal(size=(30, 1)).astype(np.float32)
EXACT = np.linalg.eigvalsh(2 * X.T.astype(float) @ X.astype(float) / len(X))
"""Eigenvalues of the Hessian of the mean of squares of a linear model."""

_BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocked())
"""
_COMMAND = "from spectral_density.command.cli import main\nsys.exit(main())\n"


def run(code, *arguments, blocked=TENSORFLOW, folder=None, **environment):
    """Run code in a fresh interpreter in which some packages cannot be imported."""
    environment = {"MPLBACKEND": "Agg", "TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    return subprocess.run(
        [sys.executable, "-c", _BLOCK.format(blocked=blocked) + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
        cwd=folder,
        env=os.environ | environment,
    )


def lines(done):
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A linear model compiled with the mean of squares, and its data."""
    folder = tmp_path_factory.mktemp("files")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    model.compile("sgd", "mse")
    model.save(folder / "m.keras")
    model.compile("sgd", keras.losses.MeanSquaredError())
    model.save(folder / "m.h5")
    np.savez(folder / "d.npz", x=X, y=Y)
    (folder / "mine.py").write_text(
        "import keras, numpy as np\n"
        "def loss(model, batch):\n"
        "    return keras.ops.mean((model(batch[0]) - batch[1]) ** 2)\n"
        "def data():\n"
        "    file = np.load('d.npz')\n"
        "    return [(file['x'][:20], file['y'][:20]), (file['x'][20:], file['y'][20:])]\n"
    )
    return folder


_JAX_FUNCTIONS = """
import jax, jax.numpy as jnp, numpy as np
import spectral_density as sd

rng = np.random.default_rng(0)
x, y = rng.normal(size=(40, 3)).astype("float32"), rng.normal(size=(40, 1)).astype("float32")
batches = [(x[:25], y[:25]), (x[25:], y[25:])]
params = {"w": jnp.ones((3, 1))}
def predict(params, batch):
    return batch[0] @ params["w"]
def of_outputs(outputs, batch):
    return jnp.mean((outputs - batch[1]) ** 2)
def loss(params, batch):
    return of_outputs(predict(params, batch), batch)
exact = 2 * x.T.astype(float) @ x.astype(float) / 40
def agrees(found, expected):
    return bool(np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected))

hessian = sd.HessianOperator(params, loss, batches)
print(agrees(hessian.to_dense(), exact))
print(agrees(sd.GaussNewtonOperator(params, (predict, of_outputs), batches).to_dense(), exact))
losses = lambda outputs, batch: jnp.sum((outputs - batch[1]) ** 2, axis=-1)
fisher = sd.FisherOperator(params, (predict, losses), batches, kind="empirical").to_dense()
residuals = 2 * (x.astype(float).sum(axis=1, keepdims=True) - y) * x
print(agrees(fisher, residuals.T @ residuals / 40))
spectrum = sd.estimate_spectrum(hessian, 3, 2, seed=1)
print(agrees(spectrum.nodes[0], np.linalg.eigvalsh(exact)))
spectrum.plot().figure.savefig(sys.argv[1])
sd.plotting.plot_spectra({"one": spectrum}).figure.savefig(sys.argv[1])
v, t = sd.approximate_hessian(params, loss, batches, 3)
print(agrees(v @ t @ v.T, exact))
print(agrees(sd.full_hessian(lambda p: loss(p, (x, y)), params), exact))
print(hessian.check().verdict)
print(agrees(sd.top_eigenpairs(hessian, 1).values, np.linalg.eigvalsh(exact)[-1:]))
print(agrees(hessian @ sd.solve(hessian, np.ones(3)).x, np.ones(3)))
print([name for name in ("tensorflow", "keras", "tf_keras") if name in sys.modules])
"""


@pytest.mark.parametrize(
    "blocked",
    [pytest.param(TENSORFLOW, marks=pytest.mark.exhaustive), (*TENSORFLOW, "keras")],
)
def test_functions_of_jax_need_neither_tensorflow_nor_keras(blocked, tmp_path):
    picture = tmp_path / "spectrum.png"
    found = lines(run(_JAX_FUNCTIONS, picture, blocked=blocked))
    assert found == [*["True"] * 6, "sound", "True", "True", "[]"]
    assert picture.read_bytes()[:8] == PNG


def test_algorithms_spectra_and_pictures_need_no_framework(tmp_path):
    code = (
        "import numpy as np, spectral_density as sd\n"
        "spectrum = sd.estimate_spectrum(np.diag(np.arange(50.0)), 50, 2)\n"
        "spectrum.plot().figure.savefig(sys.argv[1])\n"
        "print(bool(np.allclose(spectrum.nodes[0], np.arange(50), atol=1e-8)))\n"
        "print(round(sd.trace(np.diag(np.arange(50.0))).value))\n"
    )
    blocked = (*TENSORFLOW, "keras", "jax")
    assert lines(run(code, tmp_path / "s.png", blocked=blocked)) == ["True", "1225"]
    assert (tmp_path / "s.png").read_bytes()[:8] == PNG


def test_parameters_without_an_array_of_jax_say_what_is_missing():
    code = (
        "import jax, spectral_density as sd\n"
        "try:\n"
        "    sd.HessianOperator.from_function(lambda p: p['w'] ** 2, {'w': 3.0})\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    (message,) = lines(run(code))
    assert "tensorflow is blocked" in message
    assert "jax.tree.map(jax.numpy.asarray, params)" in message


# The command line


@pytest.mark.parametrize("model", ["m.keras", pytest.param("m.h5", marks=pytest.mark.exhaustive)])
def test_run_show_plot_and_check_work_on_a_model_of_keras_under_jax(files, tmp_path, model):
    out = tmp_path / "out"
    arguments = ("run", files / model, "--data", files / "d.npz", "--draws", 2, "--out", out)
    text = "\n".join(lines(run(_COMMAND, *arguments, KERAS_BACKEND="jax")))
    assert "check     sound" in text
    assert "4 trainable parameters" in text
    assert (out / "spectrum.png").read_bytes()[:8] == PNG
    np.testing.assert_allclose(Spectrum.load(out / "spectrum.npz").nodes[0], EXACT, rtol=1e-5)
    if model == "m.h5":
        return
    # The spectrum of a run needs no Keras.
    blocked = (*TENSORFLOW, "keras", "jax")
    shown = "\n".join(lines(run(_COMMAND, "show", out, blocked=blocked)))
    assert re.search("eigenvalues +4,", shown)
    picture = tmp_path / "p.svg"
    lines(run(_COMMAND, "plot", out, "--out", picture, blocked=blocked))
    assert b"<svg" in picture.read_bytes()
    text = lines(
        run(_COMMAND, *("check", files / model, "--data", files / "d.npz"), KERAS_BACKEND="jax")
    )
    assert text[-1].startswith("sound, after")


def test_losses_data_and_operators_of_the_command_are_those_of_jax(files, tmp_path):
    for operator in ("hessian", "ggn"):
        arguments = ("m.keras", "--data", "mine:data", "--operator", operator)
        out = tmp_path / operator
        loss = ("--loss", "mine:loss") if operator == "hessian" else ()
        command = ("run", *arguments, *loss, "--out", out, "--no-check")
        lines(run(_COMMAND, *command, folder=files, KERAS_BACKEND="jax"))
        np.testing.assert_allclose(Spectrum.load(out / "spectrum.npz").nodes[0], EXACT, rtol=1e-5)


@pytest.mark.exhaustive
def test_with_tensorflow_installed_the_backend_of_keras_decides_all_the_same(files, tmp_path):
    nodes = {}
    for backend in ("jax", "tensorflow"):
        out = tmp_path / backend
        command = ("run", files / "m.keras", "--data", files / "d.npz", "--seed", 3, "--out", out)
        engine = f"spectral_density.engines.{backend}"
        code = (
            f"import atexit\natexit.register(lambda: print({engine!r} in sys.modules))\n" + _COMMAND
        )
        text = lines(run(code, *command, blocked=(), KERAS_BACKEND=backend))
        assert text[-1] == "True"
        assert "HessianOperator(mse, 4 parameters, 1 batch, float32)" in "\n".join(text)
        nodes[backend] = Spectrum.load(out / "spectrum.npz").nodes
    np.testing.assert_allclose(nodes["jax"], nodes["tensorflow"], rtol=1e-5)
    np.testing.assert_allclose(nodes["jax"][0], EXACT, rtol=1e-5)


@pytest.mark.parametrize(
    ("data", "backend", "message"),
    [
        ("tfds:mnist[train]", "jax", "needs tensorflow_datasets, and TensorFlow to read its files"),
        ("d.npz", "tensorflow", "or, with KERAS_BACKEND=jax in the environment, on JAX."),
        ("labels.npz", "jax", "labels of shape (3,) and outputs of shape (1,)"),
    ],
)
def test_what_is_missing_or_mismatched_is_told_in_a_sentence(files, data, backend, message):
    np.savez(files / "labels.npz", x=X, y=np.ones((30, 3), np.float32))
    (files / "own.py").write_text(
        "def loss(y_true, y_pred):\n    return (y_true[:, :2] - y_pred.T)[0]\n"
    )
    command = ("check", "m.keras", "--data", data)
    loss = ("--loss", "own:loss") if data == "labels.npz" else ()
    done = run(_COMMAND, *command, *loss, folder=files, KERAS_BACKEND=backend)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.exhaustive
def test_the_demo_runs_under_jax(tmp_path):
    pytest.importorskip("sklearn")
    text = "\n".join(lines(run(_COMMAND, "demo", "--out", tmp_path, KERAS_BACKEND="jax")))
    assert "4,480 parameters" in text
    assert (tmp_path / "spectrum.png").read_bytes()[:8] == PNG


@pytest.mark.exhaustive
def test_every_test_of_the_commands_passes_under_jax():
    folder = Path(__file__).parent
    # An int8 layer is found to be unsound, and not named as one that rounds straight through.
    command = ("-q", "-k", "not without_second_derivatives", "--numprocesses=0", folder / "command")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        cwd=folder.parent,
        env=os.environ | {"KERAS_BACKEND": "jax"},
    )
    assert done.returncode == 0, done.stdout[-3000:]
