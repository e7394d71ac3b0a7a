"""Vectors of JAX: what moves between host and device, and float64 where it is set."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import log_uniform_bulk, semicircle_with_outliers
from device_operators import jax_operator

import spectral_density as sd
from spectral_density.engines.jax.vectors import JaxVectors
from spectral_density.linalg import lanczos, power_iteration, top_eigenpairs
from spectral_density.linalg.lanczos_options import memory_needed

N = 3000


@pytest.fixture
def moved(monkeypatch):
    """Sizes of all arrays that go to the device and to the host; what goes unseen is an error."""
    sizes = {"device": [], "host": []}

    def counting(function, name):
        def counted(value, *arguments):
            sizes[name] += [np.size(leaf) for leaf in jax.tree.leaves(value)]
            return function(value, *arguments)

        return counted

    monkeypatch.setattr(jax, "device_put", counting(jax.device_put, "device"))
    monkeypatch.setattr(jax, "device_get", counting(jax.device_get, "host"))
    with jax.transfer_guard("disallow"):
        yield sizes


def vectors_moved(sizes):
    """Numbers of vectors that went to the device and to the host; all else must be small."""
    counts = []
    for moved in sizes.values():
        large = [size for size in moved if size > 200]
        assert all(size % N == 0 for size in large)
        counts.append(sum(large) // N)
        moved.clear()
    return tuple(counts)


@pytest.fixture(scope="module")
def operator():
    return jax_operator(semicircle_with_outliers(N))


@pytest.mark.parametrize("reorthogonalize", ["full", "none"])
@pytest.mark.parametrize("num_draws", [1, 3])
def test_lanczos_moves_its_start_vectors_alone(operator, moved, num_draws, reorthogonalize):
    found = lanczos(operator, 30, num_draws=num_draws, reorthogonalize=reorthogonalize)
    assert vectors_moved(moved) == (num_draws, 0)
    if reorthogonalize == "full":
        assert found.basis is found.basis
        assert vectors_moved(moved) == (0, 30 * num_draws)


def test_a_checkpoint_takes_a_vector_a_step(operator, moved, tmp_path):
    lanczos(operator, 10, checkpoint=tmp_path)
    assert vectors_moved(moved) == (1, 10)
    lanczos(operator, 14, checkpoint=tmp_path)
    # The start vector and those after it come back.
    assert vectors_moved(moved) == (11, 4)


def test_a_breakdown_moves_a_random_vector(moved):
    rank_two = np.zeros(N)
    rank_two[:2] = 3, 5
    lanczos(jax_operator(rank_two), 6)
    to_device, to_host = vectors_moved(moved)
    assert to_device == 1 + 1 + 1 + 3  # the operator's and the first; each after the third step
    assert to_host == 0


def test_a_spectrum_moves_start_vectors_alone(operator, moved):
    sd.estimate_spectrum(operator, 20, 4)
    # Those of all draws a second time, for what the Ritz vectors share with them.
    assert vectors_moved(moved) == (8, 0)


def test_eigenpairs_move_start_vectors_and_the_result(operator, moved, tmp_path):
    found = top_eigenpairs(operator, 4, subspace=12)
    assert found.num_products > 20  # there was a restart
    to_device, to_host = vectors_moved(moved)
    assert (to_device, to_host) == (2, 4)  # a random start, and one that shows no other
    states = []
    top_eigenpairs(operator, 4, subspace=12, checkpoint=tmp_path, callback=states.append)
    to_device, to_host = vectors_moved(moved)
    assert to_device == 2
    # A new row a step, and after a restart all of them.
    assert to_host <= len(states) + 4 + 14 * (states[-1].restarts + states[-1].rounds)


def test_the_power_method_moves_a_start_vector_and_the_result(operator, moved):
    power_iteration(operator, tolerance=1e-3)
    assert vectors_moved(moved) == (1, 1)


@pytest.mark.parametrize("estimate", [sd.trace, sd.frobenius_norm])
def test_estimates_move_their_probes_alone(operator, moved, estimate):
    estimate(operator, method="hutchinson", num_products=20)
    assert vectors_moved(moved) == (20, 0)
    estimate(operator, num_products=20)
    # Ten probes, twice: they are drawn again for what they share with the basis.
    assert vectors_moved(moved) == (20, 0)


def test_the_diagonal_comes_to_the_host_with_its_errors(operator, moved):
    sd.diagonal(operator, method="hutchinson", num_products=20)
    assert vectors_moved(moved) == (20 + 3, 3)  # three sums, which begin with zeros
    sd.diagonal(operator, num_products=30)
    # Ten probes of the range, ten others twice, and five sums that begin with zeros.
    assert vectors_moved(moved) == (10 + 2 * 10 + 5, 5)


def test_float64_needs_the_setting_of_jax_and_nothing_changes_it():
    assert JaxVectors(3).dtype == np.float32
    with pytest.raises(ValueError, match="float64 vectors need jax_enable_x64"):
        JaxVectors(3, dtype=np.float64)
    with pytest.raises(ValueError, match="float32 or float64, got float16"):
        JaxVectors(3, dtype=np.float16)
    lanczos(jax_operator(log_uniform_bulk(50)), 5)
    assert not jax.config.jax_enable_x64


FLOAT64 = """
import numpy as np
from cases import dense_symmetric, diagonal_operator, log_uniform_bulk, orthogonality_error
from device_operators import jax_operator
from spectral_density.linalg import lanczos, power_iteration, top_eigenpairs, trace

operator = jax_operator(log_uniform_bulk(500))
found = lanczos(operator, 60, num_draws=2)
expected = lanczos(diagonal_operator(operator.entries), 60, num_draws=2)
assert found.basis.dtype == np.float64
np.testing.assert_allclose(found.alpha, expected.alpha, atol=1e-12)
np.testing.assert_array_equal(found.basis[:, 0], expected.basis[:, 0])
assert orthogonality_error(found.basis[0]) <= 1e-14
half = lanczos(operator, 60, basis_dtype="float32")
assert half.basis.dtype == np.float32 and orthogonality_error(half.basis[0]) <= 1e-6
pairs = top_eigenpairs(operator, 3)
np.testing.assert_allclose(pairs.values, np.sort(operator.entries)[-3:][::-1], rtol=1e-13)
np.testing.assert_allclose(power_iteration(operator).value, 50, rtol=1e-12)
single = jax_operator(dense_symmetric(log_uniform_bulk(60)), dtype=np.float32)
values = np.linalg.eigvalsh(lanczos(single, 60).tridiagonal())
np.testing.assert_allclose(values, np.linalg.eigvalsh(single.entries), atol=1e-4)
"""


TWO_DEVICES = """
import jax, numpy as np
from cases import orthogonality_error, semicircle_with_outliers
from device_operators import DeviceOperator
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from spectral_density.engines.jax.vectors import JaxVectors
from spectral_density.linalg import lanczos, top_eigenpairs

devices = jax.devices()
assert len(devices) == 2
split = NamedSharding(Mesh(np.array(devices), "x"), PartitionSpec("x"))
for sharding in (devices[1], split):
    vectors = JaxVectors(1000, sharding=sharding)
    operator = DeviceOperator(semicircle_with_outliers(1000), vectors, jax.jit(lambda a, b: a * b))
    with jax.transfer_guard("disallow"):
        found = lanczos(operator, 20)
        pairs = top_eigenpairs(operator, 2)
    row = found.bases.parts[0].read(3)
    assert row.devices() == ({devices[1]} if sharding is devices[1] else set(devices))
    assert row.addressable_shards[0].data.size == 1000 // len(row.devices())
    assert orthogonality_error(found.basis[0]) <= 1e-6
    np.testing.assert_allclose(pairs.values, [10, 10 - 8 / 9], rtol=1e-5)
"""


def run_code(code, **environment):
    tests = Path(__file__).parents[2]
    paths = [str(tests), str(tests.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | environment | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_with_x64_vectors_are_float64():
    run_code(FLOAT64, JAX_ENABLE_X64="1")


def test_vectors_are_on_another_device_or_on_several():
    run_code(TWO_DEVICES, XLA_FLAGS="--xla_force_host_platform_device_count=2")


def test_what_is_on_the_device_was_estimated_before(operator):
    held = []

    def count(step):
        held.append(sum(array.nbytes for array in jax.live_arrays()))

    before = sum(array.nbytes for array in jax.live_arrays())
    for options in ({}, {"num_draws": 3, "reorthogonalize": "none"}):
        held.clear()
        lanczos(operator, 40, callback=count, **options)
        draws = options.get("num_draws", 1)
        kept = options | {"draws_at_once": draws, "vectors": operator.vectors}
        needed = memory_needed(N, 40, basis_dtype="float32", **kept)
        assert needed["basis"] <= max(held) - before <= sum(needed.values())
