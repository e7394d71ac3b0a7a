import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import spectral_density as sd


def modules_after(statement, *names):
    """Which of these modules a fresh interpreter has loaded after the statement."""
    code = f"import sys; {statement}; print(*[n for n in {names!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.split()


HEAVY = ("tensorflow", "keras", "tf_keras", "matplotlib", "matplotlib.pyplot", "scipy.stats")


def test_importing_the_package_loads_nothing_heavy():
    assert modules_after("import spectral_density", *HEAVY) == []


@pytest.mark.parametrize(
    "statement",
    [
        "import spectral_density.linalg",
        "from spectral_density import Spectrum, Density",
        "from spectral_density import lanczos, tridiag_to_density, eigv_to_density",
        "from spectral_density import approximate_hessian, estimate_spectrum, lanczos_algorithm",
        "import numpy, spectral_density as s; s.estimate_spectrum(numpy.eye(5), 2, 2).density()",
        "import numpy, spectral_density as s; str(s.estimate_spectrum(numpy.eye(5), 2, 2))",
    ],
)
def test_what_needs_no_tensorflow_does_not_load_it(statement):
    assert modules_after(statement, "tensorflow", "keras", "matplotlib") == []


@pytest.mark.parametrize("name", sd.__all__)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(sd, name)
    assert name in dir(sd)
    if name != "__version__":
        assert value.__doc__
        assert value.__name__ == name


def test_the_list_of_names_and_the_table_of_their_homes_agree():
    assert set(sd.__all__) == set(sd._HOMES) | {"__version__"}
    assert len(set(sd.__all__)) == len(sd.__all__)


def test_a_star_import_gives_the_public_names():
    names = {}
    exec("from spectral_density import *", names)
    assert set(sd.__all__) <= set(names)


@pytest.mark.parametrize("room", ["plotting", "training"])
def test_rooms_are_loaded_when_asked_for(room):
    statement = f"import spectral_density as s; s.{room}"
    assert modules_after(statement, f"spectral_density.{room}") == [f"spectral_density.{room}"]
    assert room in dir(sd)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'spectral_density' has no attribute 'hessain'"):
        _ = sd.hessain
    assert not hasattr(sd, "hessain")


def test_submodules_can_be_imported_as_usual():
    statement = "import spectral_density.spectrum.density, spectral_density.spectrum.spectrum"
    assert modules_after(statement, "spectral_density.spectrum.spectrum") == [
        "spectral_density.spectrum.spectrum"
    ]


def test_the_function_lanczos_is_the_same_whatever_was_imported_first():
    code = (
        "import spectral_density.linalg.lanczos, spectral_density as s; print(callable(s.lanczos))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "True"


ROOT = Path(__file__).parents[1]
REQUIREMENTS = ROOT / "requirements-jax.txt"

_ESTIMATE = """
import importlib.util
import jax.numpy as jnp, keras, numpy as np
import spectral_density as sd

print(importlib.util.find_spec("tensorflow"), keras.config.backend())
x = np.random.default_rng(0).normal(size=(30, 4)).astype("float32")
exact = np.linalg.eigvalsh(2 * x.T.astype(float) @ x.astype(float) / 30)
params = {"w": jnp.ones((4, 1))}
def loss(params, batch):
    return jnp.mean((batch @ params["w"]) ** 2)
hessian = sd.HessianOperator(params, loss, [x[:20], x[20:]])
print(bool(np.allclose(sd.estimate_spectrum(hessian, 4, 2).nodes, exact, rtol=1e-5)))
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
model.compile("sgd", "mse")
model.save("m.keras")
np.savez("d.npz", x=x, y=x[:, :1])
hessian = sd.HessianOperator(model, None, [(x, x[:, :1])])
print(bool(np.allclose(sd.estimate_spectrum(hessian, 4, 2).nodes, exact, rtol=1e-5)))
"""


def test_the_requirements_of_jax_are_those_of_the_package_without_tensorflow():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = config["options"]["install_requires"].split()
    jax = config["options.extras_require"]["jax"].split()
    listed = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert sorted(listed) == sorted({*needed, *jax} - {"tensorflow>=2.16"})


@pytest.mark.exhaustive
def test_the_wheel_works_in_an_environment_without_tensorflow(tmp_path):
    def run(*command):
        environment = {**os.environ, "KERAS_BACKEND": "jax", "MPLBACKEND": "Agg"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            [*map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout.split("\n")

    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / "python"
    run(sys.executable, "-m", "venv", "venv")
    run(python, "-m", "pip", "install", "-r", REQUIREMENTS)
    # Of a copy: a build leaves its files in the directory.
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "spectral_density", checkout / "spectral_density")
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    run(python, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, checkout)
    (wheel,) = tmp_path.glob("spectral_density-*.whl")
    run(python, "-m", "pip", "install", "--no-deps", wheel)
    assert run(python, "-c", _ESTIMATE)[:3] == ["None jax", "True", "True"]
    run(scripts / "spectral-density", "run", "m.keras", "--data", "d.npz", "--out", "out")
    assert (tmp_path / "out" / "spectrum.png").exists()
