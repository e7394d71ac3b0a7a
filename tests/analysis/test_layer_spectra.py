import numpy as np
import pytest
from models import CASES, compiled, truth
from scipy.sparse.linalg import LinearOperator

import spectral_density as sd
from spectral_density.analysis.joined_products import run_together
from spectral_density.curvature.submatrix import layer_indices

PARTS = {"a": range(100), "b": range(100, 280), "c": range(280, 300)}


def counted(size=300, seed=0):
    """A matrix whose blocks beside the diagonal are as large as those on it, and its calls."""
    root = np.random.default_rng(seed).standard_normal((size, size))
    dense, widths = root + root.T, []

    def matmat(block):
        widths.append(block.shape[1])
        return dense @ block

    operator = LinearOperator(dense.shape, matvec=matmat, matmat=matmat, dtype=np.float64)
    return operator, dense, widths


def test_each_spectrum_is_that_of_its_own_block_in_the_passes_of_one():
    operator, dense, widths = counted()
    found = sd.layer_spectra(operator, 40, 2, partition=PARTS)
    assert list(found) == list(PARTS)
    assert widths == [6] * 20 + [4] * 20  # the smallest has twenty steps
    for name, indices in PARTS.items():
        block = dense[np.ix_(indices, indices)]
        alone = sd.estimate_spectrum(block, min(40, len(indices)), 2)
        np.testing.assert_allclose(found[name].nodes, alone.nodes, atol=1e-10)
        np.testing.assert_allclose(found[name].weights, alone.weights, atol=1e-8)
        np.testing.assert_array_equal(found[name].simple, alone.simple)
        assert found[name].size == len(indices)
        true = np.linalg.eigvalsh(block)
        assert found[name].extreme_eigenvalues.largest == pytest.approx(true[-1], abs=1e-2)


def test_what_is_chosen_alone_is_chosen_side_by_side():
    operator, dense, _ = counted()
    halves = {"a": range(150), "b": range(150, 300)}
    found = sd.layer_spectra(operator, partition=halves, tolerance=0.1)
    for name, start in (("a", 0), ("b", 150)):
        alone = sd.estimate_spectrum(dense[start : start + 150, start : start + 150], tolerance=0.1)
        assert found[name].alpha.shape == alone.alpha.shape
        assert found[name].accuracy.total <= 0.1


@pytest.mark.parametrize("options", [{"num_draws": 3}, {"num_draws": 1, "block": 2}])
def test_draws_and_blocks_reach_every_layer(options):
    operator, _, _ = counted()
    found = sd.layer_spectra(operator, 5, partition=PARTS, **options)
    for spectrum in found.values():
        assert spectrum.num_draws == options["num_draws"]
        assert spectrum.block == options.get("block", 1)
        assert spectrum.order == 5


def test_the_layers_of_a_model_against_their_dense_blocks():
    case = CASES["mlp"]
    operator = sd.HessianOperator(compiled(case, "float64"), None, [case.data()])
    layers, dense = layer_indices(operator), truth("mlp").hessian
    operator.check()
    passes = operator.num_passes
    found = sd.layer_spectra(operator, 10_000, 1)
    assert operator.num_passes - passes == max(map(len, layers.values()))
    for name, indices in layers.items():
        true = np.linalg.eigvalsh(dense[np.ix_(indices, indices)])
        np.testing.assert_allclose(found[name].nodes[0], true, atol=1e-10)


def test_the_distance_of_jensen_and_shannon():
    left, right, narrow = (np.diag(np.linspace(a, b, 200)) for a, b in ((0, 1), (50, 51), (0, 0.5)))
    one, far, half = (sd.estimate_spectrum(m, 200, 1) for m in (left, right, narrow))
    assert one.jensen_shannon_distance(one) == 0
    assert one.jensen_shannon_distance(far, sigma=0.1) == pytest.approx(1.0, abs=1e-6)
    # Of a uniform density on [0, 1] and one on its half: JSD = 0.311 bits.
    p, q, m = np.array([0.5, 0.5]), np.array([1.0, 0.0]), np.array([0.75, 0.25])
    bits = (np.sum(p * np.log2(p / m)) + np.log2(q[0] / m[0])) / 2
    near = one.jensen_shannon_distance(half, sigma=0.02)
    assert near == half.jensen_shannon_distance(one, sigma=0.02)
    assert near == pytest.approx(np.sqrt(bits), abs=0.02)
    with pytest.raises(ValueError, match="sigma must be positive"):
        one.jensen_shannon_distance(half, sigma=0.0)


@pytest.mark.parametrize(
    ("partition", "options", "error", "message"),
    [
        (None, {}, TypeError, "does not say which parameters its rows are"),
        ({}, {}, ValueError, "the partition has no parts"),
        ({"a": [0, 1], "b": [1, 2]}, {}, ValueError, "is in the parts 'a' and 'b'"),
        (PARTS, {"order": 0}, ValueError, "order must be at least 1"),
        (PARTS, {"num_draws": 0}, ValueError, "num_draws must be at least 1"),
        (PARTS, {"reorthogonalize": "half"}, ValueError, "reorthogonalize must be"),
    ],
)
def test_what_makes_no_sense_is_an_error(partition, options, error, message):
    with pytest.raises(error, match=message):
        sd.layer_spectra(counted()[0], partition=partition, **options)


# Algorithms side by side -------------------------------------------------------------------------


def doubling(times):
    def algorithm(multiply):
        block = np.ones((2, 1))
        for _ in range(times):
            block = multiply(block)
        return float(block[0, 0])

    return algorithm


def test_algorithms_wait_for_each_other_and_end_on_their_own():
    asked = []

    def multiply(requests):
        asked.append([number for number, _ in requests])
        return [2 * block for _, block in requests]

    assert run_together([doubling(1), doubling(3), doubling(0)], multiply) == [2.0, 8.0, 1.0]
    assert asked == [[0, 1], [1], [1]]
    assert run_together([], multiply) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_one_ends_the_others(error):
    ended = []

    def wrong(multiply):
        multiply(np.ones((2, 1)))
        raise error("no")

    def watched(multiply):
        try:
            return doubling(10)(multiply)
        finally:
            ended.append(True)

    with pytest.raises(error, match="no"):
        run_together([watched, wrong, watched], lambda asked: [block for _, block in asked])
    assert ended == [True, True]


def test_an_error_of_the_products_ends_all():
    def multiply(requests):
        raise FloatingPointError("not finite")

    with pytest.raises(FloatingPointError, match="not finite"):
        run_together([doubling(3), doubling(5)], multiply)
