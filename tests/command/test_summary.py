import json
import math

import numpy as np
import pytest
from cases import diagonal_operator, semicircle_with_outliers

from spectral_density import estimate_spectrum
from spectral_density.command.summary import (
    file_hash,
    frobenius_norm,
    spectrum_numbers,
    to_json,
    versions,
)

EIGENVALUES = semicircle_with_outliers(300)


@pytest.fixture(scope="module")
def spectrum():
    return estimate_spectrum(diagonal_operator(EIGENVALUES), 60, 10, seed=3)


def test_the_numbers_are_those_of_the_matrix(spectrum):
    numbers = spectrum_numbers(spectrum)
    for end, true in (("largest", EIGENVALUES.max()), ("smallest", EIGENVALUES.min())):
        found = numbers[f"{end}_eigenvalue"]
        assert abs(found["value"] - true) <= found["bound"]
    for name, true in (
        ("trace", EIGENVALUES.sum()),
        ("frobenius_norm", np.linalg.norm(EIGENVALUES)),
    ):
        found = numbers[name]
        assert abs(found["value"] - true) <= 4 * found["standard_error"]
    negative = np.mean(EIGENVALUES < 0)
    mass = numbers["negative_mass"]
    assert mass["lower"] - 0.05 <= negative <= mass["upper"] + 0.05
    assert numbers["num_eigenvalues"] == 300
    assert (numbers["order"], numbers["draws"], numbers["seed"]) == (60, 10, 3)


def test_the_error_of_the_norm_is_that_of_repeated_runs():
    found = [
        frobenius_norm(estimate_spectrum(diagonal_operator(EIGENVALUES), 20, 4, seed=seed))
        for seed in range(40)
    ]
    norms, errors = np.array(found).T
    assert 0.6 < norms.std() / np.sqrt(np.mean(errors**2)) < 1.6


def test_each_outlier_is_an_eigenvalue_within_its_bound_largest_first(spectrum):
    found = spectrum_numbers(spectrum)["outliers"]
    assert found
    magnitudes = [abs(entry["value"]) for entry in found]
    assert magnitudes == sorted(magnitudes, reverse=True)
    for entry in found:
        assert np.abs(EIGENVALUES - entry["value"]).min() <= entry["bound"]


def test_a_zero_matrix_has_numbers_and_no_nan():
    spectrum = estimate_spectrum(np.zeros((5, 5)), 2, 2)
    numbers = json.loads(to_json(spectrum_numbers(spectrum)))
    assert numbers["frobenius_norm"] == {"value": 0.0, "standard_error": 0.0}
    assert "NaN" not in to_json(numbers)


def test_what_is_not_finite_becomes_null():
    text = to_json({"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": (1, "x", None, True)})

    def refuse(name):
        raise AssertionError(name)

    content = json.loads(text, parse_constant=refuse)
    assert content == {"a": None, "b": [None, {"c": None}], "d": [1, "x", None, True]}


def test_the_versions_are_those_installed():
    found = versions()
    assert found["numpy"] == np.__version__
    assert {"spectral_density", "python", "tensorflow", "keras", "scipy"} <= set(found)


def test_the_hash_is_of_the_contents(tmp_path):
    for name, content in (("a", b"same"), ("b", b"same"), ("c", b"other")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (file_hash(tmp_path / name) for name in "abc")
    assert a == b != c
    assert a == "0967115f2813a3541eaef77de9d9d5773f1c0c04314b0bbfe4ff3b3b1c55b5d5"
