from itertools import pairwise

import numpy as np
import pytest
from models import CASES, compiled, truth

import spectral_density as sd
from spectral_density.curvature.submatrix import layer_indices
from spectral_density.linalg import memory


def symmetric(size, seed=0):
    root = np.random.default_rng(seed).standard_normal((size, size))
    scale = np.geomspace(1, 0.05, size)
    return (root + root.T) * np.sqrt(np.outer(scale, scale))


def thirds(size):
    edges = np.linspace(0, size, 4).astype(int)
    return {f"part {k}": np.arange(a, b) for k, (a, b) in enumerate(pairwise(edges))}


def block_norms(dense, partition):
    return np.array(
        [
            [np.linalg.norm(dense[np.ix_(a, b)]) for b in partition.values()]
            for a in partition.values()
        ]
    )


def share_on_diagonal(norms):
    return np.trace(norms**2) / np.sum(norms**2)


def test_of_few_columns_the_norms_are_exact():
    dense, parts = symmetric(20), thirds(20)
    found = sd.interaction_map(dense, parts)
    true = block_norms(dense, parts)
    np.testing.assert_allclose(found.norms, true, rtol=1e-13)
    assert found.exact
    assert found.num_products == 20
    assert found.diagonal_share.value == pytest.approx(share_on_diagonal(true), rel=1e-13)
    assert found.diagonal_share.standard_error == 0
    assert found.interval()[0] == pytest.approx(found.norms)


def test_estimates_are_within_their_errors():
    dense, parts = symmetric(300), thirds(300)
    found = sd.interaction_map(dense, parts, num_samples=40, seed=1)
    true = block_norms(dense, parts)
    assert not found.exact
    assert found.num_products == 120
    assert np.all(np.abs(found.norms - true) <= 4 * found.standard_errors)
    assert np.all(found.standard_errors <= 0.15 * true)
    np.testing.assert_array_equal(found.norms, found.norms.T)
    share = found.diagonal_share
    assert abs(share.value - share_on_diagonal(true)) <= 4 * share.standard_error


@pytest.mark.exhaustive
def test_intervals_cover_the_truth_as_often_as_they_say():
    dense, parts = symmetric(120), thirds(120)
    true, hits, shares = block_norms(dense, parts), [], []
    for seed in range(200):
        found = sd.interaction_map(dense, parts, num_samples=10, seed=seed)
        lower, upper = found.interval()
        hits.append((lower <= true) & (true <= upper))
        low, high = found.diagonal_share.interval()
        shares.append(low <= share_on_diagonal(true) <= high)
    print("blocks", np.mean(hits), np.mean(hits, axis=0), "share", np.mean(shares))
    assert 0.92 <= np.mean(hits) <= 0.98
    assert 0.92 <= np.mean(shares) <= 0.98


def test_the_diagonal_blocks_of_a_block_diagonal_matrix_have_all_of_the_norm():
    dense, parts = symmetric(90), thirds(90)
    mask = np.zeros_like(dense)
    for indices in parts.values():
        mask[np.ix_(indices, indices)] = 1
    found = sd.interaction_map(dense * mask, parts, num_samples=5)
    assert found.diagonal_share.value == 1
    assert found.diagonal_share.standard_error == 0
    assert found.norms[0, 1] == found.standard_errors[0, 1] == 0


def test_the_zero_matrix_has_no_interactions():
    found = sd.interaction_map(np.zeros((30, 30)), thirds(30), num_samples=3)
    assert not found.norms.any()
    assert found.diagonal_share.value == 1


@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_squares_neither_vanish_nor_overflow(scale):
    dense, parts = symmetric(90), thirds(90)
    plain, scaled = (sd.interaction_map(f * dense, parts, num_samples=4) for f in (1.0, scale))
    np.testing.assert_allclose(scaled.norms, scale * plain.norms, rtol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "shared layer, two inputs"])
def test_the_layers_of_a_model_against_its_dense_hessian(name):
    case = CASES[name]
    operator = sd.HessianOperator(compiled(case, "float64"), None, [case.data()])
    layers = layer_indices(operator)
    true = block_norms(truth(name).hessian, layers)
    exact = sd.interaction_map(operator, num_samples=operator.shape[0])
    assert exact.names == tuple(layers)
    assert sum(exact.sizes) == operator.shape[0]
    np.testing.assert_allclose(exact.norms, true, rtol=1e-9, atol=1e-12)
    passes = operator.num_passes
    found = sd.interaction_map(operator, num_samples=3, seed=2)
    assert operator.num_passes == passes + 3
    assert np.all(np.abs(found.norms - true) <= 8 * found.standard_errors + 1e-12)


def test_a_partition_may_name_layers_and_leave_some_out():
    case = CASES["mlp"]
    operator = sd.HessianOperator(compiled(case, "float64"), None, [case.data()])
    layers = layer_indices(operator)
    first, *_, last = layers
    parts = {"in": first, "out": [last]}
    found = sd.interaction_map(operator, parts, num_samples=operator.shape[0])
    true = block_norms(truth("mlp").hessian, {"in": layers[first], "out": layers[last]})
    np.testing.assert_allclose(found.norms, true, rtol=1e-9)


def test_it_prints_a_table_and_becomes_a_dict():
    found = sd.interaction_map(symmetric(300), thirds(300), num_samples=4)
    lines = str(found).splitlines()
    assert lines[0].split()[-2:] == ["part", "2"]
    assert lines[-1].endswith("% of the squared norm is in the diagonal blocks.")
    assert "array(3, 3)" in repr(found)
    assert found.to_dict()["names"] == ["part 0", "part 1", "part 2"]


@pytest.mark.parametrize(
    ("partition", "options", "error", "message"),
    [
        (None, {}, TypeError, "which parameters its rows are.*, or give a partition"),
        ({}, {}, ValueError, "the partition has no parts"),
        ({"a": []}, {}, ValueError, "part 'a' is empty"),
        ({"a": [0, 1], "b": [1, 2]}, {}, ValueError, "parameter 1 is in the parts 'a' and 'b'"),
        ({"a": [0, 40]}, {}, ValueError, "part 'a' has the index 40, out of range"),
        ({"a": [0, 1]}, {"num_samples": 1}, ValueError, "num_samples must be at least 2"),
        ({"a": [0, 1]}, {"seed": -1}, ValueError, "seed must be at least 0"),
    ],
)
def test_what_makes_no_sense_is_an_error(partition, options, error, message):
    with pytest.raises(error, match=message):
        sd.interaction_map(symmetric(30), partition, **options)


def test_memory_is_foreseen(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    with pytest.raises(MemoryError, match="Give a partition into fewer parts"):
        sd.interaction_map(symmetric(30), thirds(30))
