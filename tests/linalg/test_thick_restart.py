"""Thick-restart Lanczos: its state between steps, and the probability that it misses a pair."""

import io
import warnings

import numpy as np
import pytest
from cases import diagonal_operator
from linalg.eigenproblems import bits, dense

from spectral_density.linalg import thick_restart
from spectral_density.linalg.eigen import ConvergenceWarning, top_eigenpairs
from spectral_density.linalg.thick_restart import EigenState

pytestmark = pytest.mark.filterwarnings("error")


def test_the_probability_of_a_miss_is_a_bound(monkeypatch):
    # The first Krylov space has one of two equal eigenvalues, so the second must find the other,
    # which is hardly beyond the edge of the rest. That ends as soon as it may: it misses less often
    # than it may, but not never.
    tolerance = 1e-3
    twice = 1 + 1.5 * tolerance
    operator = diagonal_operator(np.concatenate([[twice, twice], np.linspace(-1, 1, 98)]))
    missed = {}
    for probability in (0.5, 1e-4):
        monkeypatch.setattr(thick_restart, "MISS_PROBABILITY", probability)
        values = [
            top_eigenpairs(operator, 2, "LA", tolerance=tolerance, seed=seed).values[1]
            for seed in range(30)
        ]
        missed[probability] = np.mean(np.abs(np.array(values) - twice) > 0.4 * tolerance)
    assert missed[1e-4] == 0
    assert 0 < missed[0.5] <= 0.5 + 2 * np.sqrt(0.25 / 30)


def saved(state):
    """What a file would hold of it."""
    file = io.BytesIO()
    np.savez(file, **state.arrays())
    return file.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"k": 4},
        {"k": 3, "which": "BE", "block_size": 2},
        {"k": 3, "which": "LA", "tolerance": 1e-17},  # goes through every attempt to improve
        {"k": 4, "which": "SA", "max_products": 60},  # ends before it is done
    ],
)
def test_a_run_resumed_after_any_step_ends_with_the_same_bits(options):
    matrix = dense("triple")
    files = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        whole = top_eigenpairs(matrix, **options, callback=lambda s: files.append(saved(s)))
        for file in files[:: max(1, len(files) // 12)] + files[-3:]:
            # A file of numbers and text: no pickle.
            with np.load(io.BytesIO(file), allow_pickle=False) as arrays:
                state = EigenState.from_arrays(arrays)
            result = top_eigenpairs(matrix, **options, resume=state)
            assert result.num_products == whole.num_products
            for a, b in zip(bits(result), bits(whole), strict=True):
                np.testing.assert_array_equal(a, b)
    assert len(files) > 20


def test_a_run_that_ran_out_of_products_goes_on_to_the_bits_of_one_that_did_not():
    matrix = dense("semicircle")
    whole = top_eigenpairs(matrix, 5)
    files = []
    with pytest.warns(ConvergenceWarning):
        top_eigenpairs(matrix, 5, max_products=20, callback=lambda s: files.append(saved(s)))
    with np.load(io.BytesIO(files[-1])) as arrays:
        result = top_eigenpairs(matrix, 5, resume=EigenState.from_arrays(arrays))
    assert result.num_products == whole.num_products
    np.testing.assert_array_equal(result.vectors, whole.vectors)


def test_the_callback_sees_every_step():
    seen = []
    matrix = dense("semicircle")
    result = top_eigenpairs(
        matrix, 3, callback=lambda s: seen.append((s.steps, s.num_products, s.values, repr(s)))
    )
    assert [s[0] for s in seen] == list(range(1, len(seen) + 1))
    assert seen[-1][1] + 3 == result.num_products
    np.testing.assert_allclose(seen[-1][2], result.values, rtol=1e-13)
    assert "EigenState(LM, k=3, n=100" in seen[-1][3]


def test_saved_arrays_are_views_that_cannot_be_written():
    states = []
    top_eigenpairs(np.diag(np.arange(9.0)), 2, callback=states.append)
    arrays = states[0].arrays()
    assert np.shares_memory(arrays["basis"], states[0].basis)
    with pytest.raises(ValueError, match="read-only"):
        arrays["basis"][0] = 0.0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"k": 2}, "k"),
        ({"which": "LA"}, "which"),
        ({"seed": 1}, "seed"),
        ({"tolerance": 1e-3}, "tolerance"),
        ({"subspace": 25}, "subspace"),
        ({"block_size": 2}, "block_size"),
    ],
)
def test_a_state_of_another_problem_is_refused_by_name(change, name):
    states = []
    matrix = np.diag(np.arange(30.0))
    top_eigenpairs(matrix, 3, callback=states.append)
    with pytest.raises(ValueError, match=f"another problem: its {name} is"):
        top_eigenpairs(matrix, **{"k": 3, **change}, resume=states[0])
    with pytest.raises(ValueError, match="its size is 30, not 40"):
        top_eigenpairs(np.eye(40), 3, resume=states[0])


def test_arrays_that_are_no_state_are_refused():
    states = []
    top_eigenpairs(np.diag(np.arange(30.0)), 3, callback=states.append)
    arrays = states[0].arrays()
    with pytest.raises(ValueError, match="basis missing"):
        EigenState.from_arrays({k: v for k, v in arrays.items() if k != "basis"})
    with pytest.raises(ValueError, match="must have shapes"):
        EigenState.from_arrays({**arrays, "basis": arrays["basis"][:-1]})
    with pytest.raises(ValueError, match="pass start or resume"):
        top_eigenpairs(np.eye(30), 3, resume=states[0], start=np.ones(30))
    with pytest.raises(TypeError, match="resume must be an EigenState, got dict"):
        top_eigenpairs(np.eye(30), 3, resume=arrays)
