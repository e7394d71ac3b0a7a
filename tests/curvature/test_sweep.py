"""The passes over a dataset: what is computed together, and what is kept between products."""

import keras
import numpy as np
import pytest
from models import normals, relative_error, set_random_weights, split, vectors

from spectral_density.curvature import FisherOperator, GaussNewtonOperator, HessianOperator

SIZES = (25,) * 12  # enough for batches to be joined, and for what is kept of them to be worth it
MATRICES = {
    "hessian": HessianOperator,
    "gauss-newton": GaussNewtonOperator,
    "type2": lambda *problem, **options: FisherOperator(*problem, kind="type2", **options),
    "monte carlo": lambda *problem, **options: FisherOperator(
        *problem, kind="monte_carlo", num_samples=2, seed=3, **options
    ),
    "empirical": lambda *problem, **options: FisherOperator(*problem, kind="empirical", **options),
}


def network():
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="float64"),
            keras.layers.Dense(40, activation="tanh", dtype="float64", kernel_regularizer="l2"),
            keras.layers.Dense(3, dtype="float64"),
        ]
    )
    return set_random_weights(model)


def problem():
    count = sum(SIZES)
    x, y = normals(count, 4).astype("float64"), np.arange(count) % 3
    weights = np.linspace(0.2, 2.0, count)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype="float64")
    return network(), loss, split((x, y, weights), SIZES)


@pytest.mark.parametrize("name", MATRICES)
def test_what_saves_time_can_be_switched_off_and_changes_no_product(name):
    make, (model, loss, data) = MATRICES[name], problem()
    plain = make(model, loss, data, linearize=False, join_batches=False)
    assert plain.sweep.cache is None
    assert len(plain.batches.parcels) == len(SIZES)
    block = vectors(plain.shape[0], 3)
    expected, gradient = plain @ block, plain.gradient()
    for linearize, join in ((True, True), (False, True), (True, False)):
        operator = make(model, loss, data, linearize=linearize, join_batches=join)
        # Fisher matrices are made of single examples, which keep their batches.
        joined = join and name in ("hessian", "gauss-newton")
        assert (len(operator.batches.parcels) < len(SIZES)) is joined
        for _ in range(2):  # the second time from what the first left behind
            assert relative_error(operator @ block, expected) <= 1e-12
            assert relative_error(operator @ block[:, 0], expected[:, 0]) <= 1e-12
        assert relative_error(operator.gradient(), gradient) <= 1e-12
        assert operator.loss() == pytest.approx(plain.loss(), rel=1e-12)
        kept = operator.sweep.cache
        assert (kept is not None) is linearize
        if linearize and joined:
            assert len(kept) == len(operator.batches.parcels)
