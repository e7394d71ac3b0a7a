"""Networks of Flax and Equinox as functions of pytrees, where these are installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from spectral_density import GaussNewtonOperator, HessianOperator

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 4)).astype(np.float32), RNG.integers(0, 3, 12)
BATCHES = [(X[:5], Y[:5]), (X[5:10], Y[5:10]), (X[10:], Y[10:])]


def cross_entropy(logits, batch):
    chosen = jnp.take_along_axis(logits, batch[1][:, None], axis=-1)[:, 0]
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def dense(loss, params):
    """The Hessian of the loss of all data, row by row from JAX."""
    flat, back = ravel_pytree(params)
    return jax.hessian(lambda vector: loss(back(vector), (X, Y)))(flat)


def test_flax_linen_with_statistics_and_a_key_held_constant():
    nn = pytest.importorskip("flax.linen")

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.tanh(nn.BatchNorm(use_running_average=True)(nn.Dense(5)(x)))
            return nn.Dense(3)(nn.Dropout(0.3, deterministic=not train)(x))

    network = Network()
    variables = network.init(jax.random.key(0), X[:1], train=False)

    def predict(variables, batch):
        return network.apply(variables, batch[0], train=False)

    def loss(variables, batch):
        return cross_entropy(predict(variables, batch), batch)

    operator = HessianOperator(variables, loss, BATCHES, variables="params")
    true = dense(lambda p, b: loss(variables | {"params": p}, b), variables["params"])
    np.testing.assert_allclose(operator.to_dense(), true, atol=2e-6)
    assert operator.check().verdict == "sound"
    pair = (predict, cross_entropy)
    assert GaussNewtonOperator(variables, pair, BATCHES, variables="params").check()

    def with_dropout(variables, batch):
        rngs = {"dropout": variables["key"]}
        logits = network.apply(
            {name: variables[name] for name in ("params", "batch_stats")},
            *(batch[0], True),
            rngs=rngs,
        )
        return cross_entropy(logits, batch)

    with_key = variables | {"key": jax.random.key(1)}
    dropped = HessianOperator(with_key, with_dropout, [(X, Y)], variables="params")
    np.testing.assert_array_equal(dropped @ np.ones(53), dropped @ np.ones(53))
    assert dropped.fingerprint()["weights"] != operator.fingerprint()["weights"]


def test_flax_nnx():
    nnx = pytest.importorskip("flax.nnx")
    network = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(network, nnx.Param, ...)

    def loss(params, batch):
        return cross_entropy(nnx.merge(graph, params, rest)(batch[0]), batch)

    operator = HessianOperator(params, loss, BATCHES)
    np.testing.assert_allclose(operator.to_dense(), dense(loss, params), atol=2e-6)


def test_equinox():
    eqx = pytest.importorskip("equinox")
    params, static = eqx.partition(
        eqx.nn.MLP(4, 3, 5, 1, key=jax.random.key(0)), eqx.is_inexact_array
    )

    def loss(params, batch):
        return cross_entropy(jax.vmap(eqx.combine(params, static))(batch[0]), batch)

    operator = HessianOperator(params, loss, BATCHES)
    np.testing.assert_allclose(operator.to_dense(), dense(loss, params), atol=2e-6)
    with pytest.raises(TypeError, match=r"leaf 'activation'.*equinox\.partition"):
        HessianOperator(eqx.combine(params, static), loss, BATCHES)
