"""Representations of results: shapes of arrays, never their entries."""

import dataclasses
import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import spectral_density as sd
from spectral_density._repr import repr_with_shapes
from spectral_density.spectrum import Density

# Not results: a batch's sums inside a compiled function, operations of a graph, working state.
WITHOUT = {"PairSum", "Node", "SpectrumProbe", "DampedFunction"}


def dataclasses_of_the_package():
    found = set()
    for module in pkgutil.walk_packages(sd.__path__, "spectral_density."):
        if module.name.endswith("__main__"):
            continue
        members = vars(importlib.import_module(module.name)).values()
        found |= {
            c for c in members if inspect.isclass(c) and c.__module__.startswith("spectral_density")
        }
    return sorted((c for c in found if dataclasses.is_dataclass(c)), key=lambda c: c.__name__)


def test_no_result_prints_its_arrays():
    pytest.importorskip("jax")
    pytest.importorskip("tensorflow")
    classes = dataclasses_of_the_package()
    assert len(classes) > 60
    printing = []
    for cls in classes:
        generated = cls.__dataclass_params__.repr and cls.__repr__ is not repr_with_shapes
        own = generated and not inspect.getsource(cls).count("def __repr__")
        arrays = [f.name for f in dataclasses.fields(cls) if f.repr and "ndarray" in str(f.type)]
        if own and arrays and cls.__name__ not in WITHOUT and not cls.__name__.startswith("_"):
            printing.append(f"{cls.__name__}: {', '.join(arrays)}")
    assert printing == []


def test_a_result_names_the_shapes_of_its_arrays():
    density = sd.estimate_spectrum(np.diag(np.arange(9.0)), 4, 2).density(np.linspace(-1, 9, 50))
    text = repr(density)
    assert text.startswith("Density(grid=array(50), values=array(50), lower=array(50), ")
    assert f"sigma={density.sigma!r}" in text
    assert isinstance(density, Density)


def test_lists_of_arrays_and_numbers_of_numpy_are_told_apart():
    @dataclasses.dataclass
    class Result:
        parts: list
        value: np.float64
        name: str

        __repr__ = repr_with_shapes

    text = repr(Result([np.zeros((2, 3)), np.zeros(4)], np.float64(0.5), "x"))
    assert text == "Result(parts=[array(2, 3), array(4)], value=np.float64(0.5), name='x')"
