"""What a block run takes for a simple eigenvalue, against matrices whose eigenvalues are known."""

import numpy as np
import pytest
from cases import diagonal_operator, log_uniform_bulk
from linalg.multiplicities import verdicts

from spectral_density.linalg import gauss_quadrature, lanczos
from spectral_density.linalg.block_quadrature import hidden_mass, simple_block_nodes

pytestmark = pytest.mark.filterwarnings("error")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(10_000), marks=pytest.mark.exhaustive)], ids=str
)
def test_no_multiple_eigenvalue_is_taken_for_simple_after_any_step(seeds, dtype):
    found = verdicts(seeds, dtype)
    assert found.wrong == []
    assert found.converged >= 10 * len(seeds)
    assert found.recognized >= 0.9 * found.converged


def test_a_matrix_on_which_divide_and_conquer_fails_has_its_rule():
    # numpy.linalg.eigh raised LinAlgError at step 18 of this run.
    found = verdicts([7970], np.float32)
    assert found.converged > 0 and found.wrong == []


def rules_of(values, order, **options):
    run = lanczos(diagonal_operator(values), order, **options)
    pairs = zip(run.alpha, run.beta, strict=True)
    return [gauss_quadrature(*pair) for pair in pairs], run.residual_norms


@pytest.mark.parametrize("block", [2, 4])
def test_the_hidden_mass_bounds_what_the_block_has_beside_a_node(block):
    # Eigenvalue 8 has three copies: what the block has there is known from the start vectors.
    values = np.concatenate([[8.0] * 3, [5.0], np.linspace(-1, 1, 300)])
    for order in range(3, 12):
        run = lanczos(diagonal_operator(values), order, block=block)
        rule, last = gauss_quadrature(run.alpha[0], run.beta[0]), run.residual_norms[0]
        starts = run.basis[0, :block]
        for value in (8.0, 5.0):
            node = int(np.argmin(np.abs(rule.nodes - value) - rule.weights))
            near = np.abs(rule.nodes - value) <= 1e-9
            # Two copies a rounding apart are told by their number, before the bound is asked for.
            if not near[node] or near.sum() > 1:
                continue
            there = np.sum(starts[:, values == value] ** 2) - block * rule.weights[node]
            assert hidden_mass(rule, last, node) >= (1 - 1e-6) * there - 1e-12
            if value == 5.0 and order > 10:
                assert hidden_mass(rule, last, node) <= 1e-12


def test_eigenvalues_closer_than_the_resolution_are_not_taken_for_simple():
    outliers = np.geomspace(2, 50, 6)
    for split, expected in ((1e-8, 6), (1e-4, 8)):
        values = np.concatenate([outliers, [20.0, 20.0 + 50 * split], np.linspace(-1, 1, 300)])
        rules, last = rules_of(values, 40, block=2)
        simple = simple_block_nodes(rules, last, len(values))
        found = rules[0].nodes[simple[0]]
        assert len(found[found > 1.5]) == expected
        np.testing.assert_allclose(np.sort(found)[-1], 50, rtol=1e-12)


def test_all_draws_agree_on_what_is_simple():
    values = log_uniform_bulk(400)
    rules, last = rules_of(values, 30, block=2, num_draws=3)
    simple = simple_block_nodes(rules, last, len(values))
    assert (simple.sum(axis=1) >= 10).all()
    nodes = [rule.nodes[mask] for rule, mask in zip(rules, simple, strict=True)]
    np.testing.assert_allclose(nodes[1], nodes[0], atol=1e-4)
    # One that has not settled holds the others back.
    short, short_last = rules_of(values, 2, block=2)
    mixed = simple_block_nodes([rules[0], short[0]], np.stack([last[0], short_last[0]]), 400)
    assert not mixed.any()


def test_a_rule_of_one_vector_hides_nothing_and_says_so():
    rules, last = rules_of(log_uniform_bulk(50), 5)
    with pytest.raises(ValueError, match="of one vector it is zero"):
        hidden_mass(rules[0], last[:, np.newaxis], 0)


@pytest.mark.parametrize(
    ("alpha", "beta", "message"),
    [
        (np.zeros((3, 2, 2)), np.zeros((3, 2, 2)), r"\(m - 1, b, b\), got \(3, 2, 2\) and"),
        (np.zeros((3, 2, 1)), np.zeros((2, 2, 2)), r"\(m, b, b\)"),
        (np.full((1, 2, 2), np.nan), np.zeros((0, 2, 2)), "finite"),
    ],
)
def test_blocks_that_do_not_fit_are_named(alpha, beta, message):
    with pytest.raises(ValueError, match=message):
        gauss_quadrature(alpha, beta)
