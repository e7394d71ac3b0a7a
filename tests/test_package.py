import subprocess
import sys

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
