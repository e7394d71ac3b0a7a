"""Keras models under the JAX backend: every case against the dense matrix of a float64 tape.

Keras rounds float64 to float32 in most of its operations on JAX (tanh, means), whatever JAX is set
to. Where it does, `product_dtype` is float32, and the tolerance that of float32.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from engines.jax.processes import environment
from models import CASES, compiled, relative_error, split, truth

from spectral_density import FisherOperator, GaussNewtonOperator

TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
MATRICES = {"ggn": GaussNewtonOperator, "fisher": FisherOperator}

# Compiling takes seconds for each: the others are run with -m exhaustive.
SOME = ("two outputs, weights by name",)
IN_FLOAT64 = ("relu mlp",)


def run(names, dtype, file):
    """Return the results of cases in a process of their own, where Keras runs on JAX."""
    script = Path(__file__).with_name("case_results.py")
    settings = environment(in_float64=dtype == "float64", KERAS_BACKEND="jax")
    command = [sys.executable, str(script), str(file), dtype, *names]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(file)


def check(found, name):
    """Compare loss, gradient and Hessian with a tape, and the rest with the other engine."""
    true, case = truth(name), CASES[name]
    tolerance = TOLERANCES[str(found[f"{name}|dtype"])]
    assert float(found[f"{name}|loss"]) == pytest.approx(true.loss, rel=tolerance)
    assert relative_error(found[f"{name}|gradient"], true.gradient) <= tolerance
    assert relative_error(found[f"{name}|hessian"], true.hessian) <= tolerance
    assert relative_error(found[f"{name}|whole"], true.hessian) <= tolerance
    batches = split(case.data(), case.splits)
    for matrix, kind in MATRICES.items():
        values = found[f"{name}|{matrix}"]
        try:
            operator = kind(compiled(case, "float64"), None, batches)
        except ValueError as error:
            assert str(values) == str(error)
            continue
        assert relative_error(values, operator.to_dense()) <= tolerance


WARNINGS = pytest.mark.filterwarnings("ignore:the model's layers add losses")


@WARNINGS
@pytest.mark.slow
def test_matrices_of_keras_models_are_those_of_the_objective_of_fit(tmp_path):
    found = run(SOME, "float32", tmp_path / "float32.npz")
    for name in SOME:
        check(found, name)


@pytest.mark.exhaustive
def test_matrices_in_float64_where_keras_computes_in_it(tmp_path):
    found = run(IN_FLOAT64, "float64", tmp_path / "float64.npz")
    for name in IN_FLOAT64:
        assert str(found[f"{name}|dtype"]) == "float64"
        check(found, name)


@WARNINGS
@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_matrices_of_every_case(dtype, tmp_path):
    found = run(CASES, dtype, tmp_path / "all.npz")
    for name in CASES:
        check(found, name)
