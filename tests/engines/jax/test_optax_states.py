"""Update rules read from states of Optax: by its own updates where it is installed."""

import re
from collections import namedtuple
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_density as sd

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 3)).astype(np.float32)
SHAPES = {"bias": (2,), "kernel": (3, 2)}
HESSIAN = np.kron(X.T.astype(np.float64) @ X, np.eye(2)) * 2 / 32  # of the kernel


def params(seed=1):
    rng = np.random.default_rng(seed)
    layer = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}
    return {"layer": layer}


def loss(params, x):
    layer = params["layer"]
    return jnp.mean((x @ layer["kernel"] + layer["bias"]) ** 2)


def operator(**options):
    return sd.HessianOperator(params(), loss, [X], **options)


def gradients(seed):
    return jax.tree.map(lambda p: p + 0.1, params(seed))


def flat(tree):
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


# Optax's own updates -----------------------------------------------------------------------------

# eps is large: where it stands matters.
METHODS = {
    "sgd": ("sgd", {}),
    "heavy ball": ("sgd", {"momentum": 0.9}),
    "nesterov": ("sgd", {"momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"b1": 0.9, "b2": 0.99, "eps": 0.3}),
    "adam with eps_root": ("adam", {"b1": 0.8, "b2": 0.99, "eps": 0.3, "eps_root": 0.5}),
    "adamw": ("adamw", {"b1": 0.9, "b2": 0.99, "eps": 0.3, "weight_decay": 0.2}),
    "amsgrad": ("amsgrad", {"b1": 0.9, "b2": 0.99, "eps": 0.3}),
    "rmsprop": ("rmsprop", {"eps": 0.3}),
    "rmsprop, eps outside": ("rmsprop", {"eps": 0.3, "eps_in_sqrt": False}),
    "rmsprop with momentum": ("rmsprop", {"eps": 0.3, "momentum": 0.9}),
    "rmsprop with nesterov": ("rmsprop", {"eps": 0.3, "momentum": 0.9, "nesterov": True}),
    "rmsprop, corrected": ("rmsprop", {"eps": 0.3, "decay": 0.95, "bias_correction": True}),
    "centered rmsprop": ("rmsprop", {"eps": 0.3, "centered": True}),
    "centered rmsprop, corrected": (
        "rmsprop",
        {"eps": 0.3, "decay": 0.9, "centered": True, "bias_correction": True},
    ),
    "adagrad": ("adagrad", {"eps": 0.3}),
}
# What makes another state says so itself.
BY_STATE = ("centered", "bias_correction")


def made(name, rate=0.5):
    """Return a transformation, its state after some steps, and what is passed with the state."""
    optax = pytest.importorskip("optax")
    method, options = METHODS[name]
    transformation = getattr(optax, method)(rate, **options)
    state = transformation.init(params())
    for seed in range(2, 6):
        _, state = transformation.update(gradients(seed), state, params())
    passed = {k: v for k, v in options.items() if k not in BY_STATE}
    if "momentum" in passed:
        passed.setdefault("nesterov", False)
    return transformation, state, passed | {"learning_rate": rate}


def without_momentum(state):
    """Return a state whose averages of gradients are zero."""
    if not hasattr(state, "_fields"):
        return tuple(map(without_momentum, state))
    zero = {"trace"} | ({"mu"} if "Adam" in type(state).__name__ else set())
    zero |= {"mu"} if "Ams" in type(state).__name__ else set()
    parts = {f: jax.tree.map(jnp.zeros_like, getattr(state, f)) for f in zero & {*state._fields}}
    return state._replace(**parts)


def diagonal_by_a_step(name, transformation, state, passed):
    """Return P by step = -eta P^-1 m, from a step that Optax makes, and the state after it."""
    gradient = gradients(9)
    nothing = jax.tree.map(jnp.zeros_like, gradient)  # of weights, which would decay
    step, state = transformation.update(gradient, without_momentum(state), nothing)
    mean = 1.0
    if name.startswith(("ad", "ams")) and name != "adagrad":
        mean = 1 - passed["b1"]
    elif passed.get("nesterov"):
        mean = 1 + passed["momentum"]
    return -passed["learning_rate"] * mean * flat(gradient) / flat(step), state


@pytest.mark.parametrize("name", METHODS)
def test_the_operator_is_that_of_the_step_which_optax_makes(name):
    transformation, state, passed = made(name)
    diagonal, state = diagonal_by_a_step(name, transformation, state, passed)
    passed.pop("learning_rate")
    whole = operator()
    found = sd.preconditioned(whole, state, **passed)
    np.testing.assert_allclose(found.diagonal, diagonal, rtol=1e-5)
    kernel = sd.preconditioned(operator(variables="layer/kernel"), state, **passed)
    root = np.sqrt(diagonal[2:])
    np.testing.assert_allclose(
        kernel.to_dense(), HESSIAN / np.outer(root, root), atol=1e-5 * HESSIAN.max()
    )


def tree_of(vector):
    return jax.tree.unflatten(
        jax.tree.structure(params()), [vector[:2], vector[2:].reshape(SHAPES["kernel"])]
    )


def restored(state, start):
    """Put back what P is made of; `mu` of a centered method is a part of it."""
    if not hasattr(state, "_fields"):
        return tuple(map(restored, state, start))
    fields = {"count", "nu", "nu_max", "sum_of_squares"}
    fields |= {"mu"} if "StdDev" in type(state).__name__ else set()
    return state._replace(**{f: getattr(start, f) for f in fields & {*state._fields}})


@pytest.mark.parametrize("name", METHODS)
def test_steps_are_stable_below_the_threshold_and_unstable_above(name):
    transformation, state, passed = made(name)
    frozen = without_momentum(state)
    # P of a step whose gradient is all but zero, as those below are.
    _, after = transformation.update(tree_of(jnp.full(8, 1e-6)), frozen, tree_of(jnp.zeros(8)))
    threshold = sd.stability_threshold(after, **passed)
    passed.pop("learning_rate")
    scales = jnp.asarray(sd.preconditioned(operator(), after, **passed).diagonal, jnp.float32)

    @jax.jit
    def growth(curvature):
        """Each weight of a quadratic that has one curvature in the coordinates of the method."""

        def advance(_, carry):
            weights, state = carry
            gradient = tree_of(curvature * scales * weights)
            step, state = transformation.update(gradient, state, tree_of(weights))
            moved = weights + jnp.concatenate([part.ravel() for part in jax.tree.leaves(step)])
            return moved, restored(state, frozen)

        start = jnp.full(8, 1e-6)
        end, _ = jax.lax.fori_loop(0, 60, advance, (start, frozen))
        return jnp.linalg.norm(end) / jnp.linalg.norm(start)

    assert growth(0.99 * threshold) < 0.6
    assert growth(1.01 * threshold) > 1.6


def after_updates(transformation):
    state = transformation.init(params())
    for seed in range(2, 6):
        _, state = transformation.update(gradients(seed), state, params())
    return state


def test_injected_numbers_need_not_be_passed():
    optax = pytest.importorskip("optax")
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.5})
    transformation = optax.inject_hyperparams(optax.adam)(schedule, b1=0.8, eps=0.1)
    state = after_updates(transformation)
    assert sd.stability_threshold(state, nesterov=False) == pytest.approx(3.6 / 0.2 / 0.25)
    found = sd.preconditioned(operator(), state, nesterov=False)
    inner = sd.preconditioned(operator(), state.inner_state, b1=0.8, b2=0.999, eps=0.1)
    np.testing.assert_allclose(found.diagonal, inner.diagonal, rtol=1e-5)
    found = sd.stability_threshold(state, learning_rate=1.0, nesterov=False)
    assert found == pytest.approx(18.0)


def test_injected_switches_have_to_be_passed():
    optax = pytest.importorskip("optax")
    momentum = optax.inject_hyperparams(optax.sgd)(0.1, momentum=0.9, nesterov=True)
    state = after_updates(momentum)
    with pytest.raises(ValueError, match=r"not tell Nesterov's .*: pass nesterov=True or nesterov"):
        sd.stability_threshold(state)
    assert sd.stability_threshold(state, nesterov=True) == pytest.approx(38 / 2.8)
    state = after_updates(optax.inject_hyperparams(optax.adam)(0.1))
    for call in (sd.stability_threshold, lambda s: sd.preconditioned(operator(), s)):
        with pytest.raises(ValueError, match=r"not tell nadam from adam.* pass nesterov=True"):
            call(state)
    with pytest.raises(ValueError, match="adam with momentum of its own, or nesterov=True"):
        sd.stability_threshold(state, nesterov=True)
    for centered in (True, False):
        method = optax.inject_hyperparams(optax.rmsprop, static_args=("centered",))
        state = after_updates(method(0.1, eps=0.3, centered=centered, eps_in_sqrt=False))
        with pytest.raises(ValueError, match="pass eps_in_sqrt=True or eps_in_sqrt=False"):
            sd.preconditioned(operator(), state)
        found = sd.preconditioned(operator(), state, eps_in_sqrt=False).diagonal
        inner = sd.preconditioned(operator(), state.inner_state, eps=0.3, eps_in_sqrt=False)
        np.testing.assert_allclose(found, inner.diagonal, rtol=1e-6)
    # What has neither switch needs neither.
    state = after_updates(optax.inject_hyperparams(optax.amsgrad)(0.1))
    assert sd.stability_threshold(state) == pytest.approx(380)
    state = after_updates(optax.inject_hyperparams(optax.sgd)(0.1))
    assert sd.stability_threshold(state) == pytest.approx(20)


def test_states_that_have_made_no_step_are_refused_where_updates_are_counted():
    optax = pytest.importorskip("optax")
    schedule = optax.piecewise_constant_schedule(0.5, {2: 0.5})
    for transformation in (
        optax.inject_hyperparams(optax.adagrad)(0.1),
        optax.adagrad(schedule),
        optax.MultiSteps(optax.adagrad(0.1), 2),
        optax.adam(0.1),
        optax.rmsprop(0.1),
    ):
        state = transformation.init(params())
        with pytest.raises(ValueError, match="has seen no gradient"):
            sd.preconditioned(operator(), state, eps=0.1, b1=0.9, b2=0.9, eps_in_sqrt=True)


def test_a_named_chain_is_a_chain():
    optax = pytest.importorskip("optax")
    chain = optax.named_chain(("method", optax.adagrad(0.1)), ("scale", optax.scale(1.0)))
    state = after_updates(chain)
    assert sd.stability_threshold(state, learning_rate=0.1) == pytest.approx(20)
    assert sd.preconditioned(operator(), state, eps=0.1).diagonal.shape == (8,)


def test_several_steps_together_are_the_inner_optimizer():
    optax = pytest.importorskip("optax")
    transformation = optax.MultiSteps(optax.adagrad(0.5, eps=0.1), 2)
    state = transformation.init(params())
    for seed in (2, 2, 3):
        _, state = transformation.update(gradients(seed), state, params())
    found = sd.preconditioned(operator(), state, eps=0.1)
    np.testing.assert_allclose(
        found.diagonal, np.sqrt(0.1 + flat(gradients(2)) ** 2 + 0.1), rtol=1e-5
    )


@pytest.mark.parametrize("name", ["lion", "adafactor", "novograd", "adadelta"])
def test_methods_without_such_a_step_are_refused_by_name(name):
    optax = pytest.importorskip("optax")
    state = getattr(optax, name)(0.1).init(params())
    with pytest.raises(ValueError, match=r"the state has a part \w+State, of a step that is not"):
        sd.stability_threshold(state, learning_rate=0.1)


def test_a_transformation_is_no_state():
    optax = pytest.importorskip("optax")
    with pytest.raises(TypeError, match="makes updates and holds no state: pass the state"):
        sd.preconditioned(operator(), optax.adam(0.1))


# Without Optax -----------------------------------------------------------------------------------


def fake(name, **fields):
    """Return a state as Optax has it: a named tuple of its package."""
    kind = namedtuple(name, fields)
    kind.__module__ = "optax.transforms"
    return kind(**fields)


def adam_state(count=3, tree=None):
    tree = jax.tree.map(jnp.square, params(7)) if tree is None else tree
    return (
        fake("ScaleByAdamState", count=jnp.asarray(count), mu=tree, nu=tree),
        fake("EmptyState"),
    )


def half_zero():
    return {"layer": {"bias": jnp.zeros(2), "kernel": jnp.ones((3, 2))}}


def test_paths_that_are_the_same_are_refused():
    tree = {"a": {"b": jnp.ones(2)}, "a/b": 2 * jnp.ones(2), "c": jnp.ones(1)}

    def total(p):
        return jnp.sum(p["a"]["b"] ** 2) + jnp.sum(p["a/b"] ** 2) + jnp.sum(p["c"] ** 2)

    whole = sd.HessianOperator.from_function(total, tree)
    with pytest.raises(ValueError, match=r"2 leaves of the state of adam have the path 'a/b'"):
        sd.preconditioned(whole, adam_state(tree=tree), b1=0.9, b2=0.99, eps=0.1)


def test_p_in_half_precision_is_taken():
    found = sd.preconditioned(operator(), jnp.full(8, 1.5, jnp.bfloat16))
    np.testing.assert_array_equal(found.diagonal, 1.5)


def test_the_state_of_adam_gives_the_formula():
    found = sd.preconditioned(operator(), adam_state(), b1=0.9, b2=0.99, eps=0.1)
    second = flat(params(7)) ** 2 / (1 - 0.99**3)
    expected = (1 - 0.9**3) * (np.sqrt(second) + 0.1)
    np.testing.assert_allclose(found.diagonal, expected, rtol=1e-5)
    assert sd.stability_threshold(adam_state(), learning_rate=0.5, b1=0.9) == pytest.approx(76.0)


@pytest.mark.parametrize(
    ("state", "passed", "error", "message"),
    [
        (adam_state(), {"b1": 0.9, "b2": 0.99}, ValueError, "does not hold eps: pass eps="),
        (adam_state(), {"beta": 0.9}, TypeError, "no hyperparameter 'beta'"),
        (
            adam_state(),
            {"b1": lambda step: 0.9, "b2": 0.99, "eps": 0.1},
            TypeError,
            "b1 is a schedule",
        ),
        (adam_state(0), {}, ValueError, "adam has seen no gradient"),
        (adam_state(), {"nesterov": True}, ValueError, "adam with momentum of its own"),
        (
            (*adam_state(), fake("TraceState", trace=params())),
            {},
            ValueError,
            "adam with momentum of its own",
        ),
        ((*adam_state(), *adam_state()), {}, ValueError, "several methods in a chain"),
        ((fake("MuonState", count=1),), {}, ValueError, "a part MuonState"),
        (
            adam_state(tree={"other": jnp.ones(3)}),
            {"b1": 0.9, "b2": 0.99, "eps": 0.1},
            ValueError,
            re.escape("adam has nothing for 'layer/bias' of shape (2,): it is of another model"),
        ),
        (
            adam_state(tree={"layer": {"bias": jnp.ones(5), "kernel": jnp.ones((3, 2))}}),
            {"b1": 0.9, "b2": 0.99, "eps": 0.1},
            ValueError,
            re.escape("has an array of shape (5,) for 'layer/bias'"),
        ),
        (
            (fake("ScaleByRmsState", nu=jax.tree.map(jnp.zeros_like, params())),),
            {"eps": 0.1},
            ValueError,
            "rmsprop has seen no gradient",
        ),
        (
            (fake("ScaleByRssState", sum_of_squares=half_zero()), fake("EmptyState")),
            {"eps": 0.1},
            ValueError,
            "sums of squares of adagrad have 2 zeros, where Optax makes no step",
        ),
        (
            fake("InjectHyperparamsState", count=2, hyperparams={}, inner_state=adam_state()),
            {"b1": 0.9, "b2": 0.99, "eps": 0.1},
            ValueError,
            "pass nesterov=True or nesterov=False",
        ),
        (
            fake("InjectHyperparamsState", count=0, hyperparams={}, inner_state=adam_state()),
            {"b1": 0.9, "b2": 0.99, "eps": 0.1, "nesterov": False},
            ValueError,
            "adam has seen no gradient",
        ),
        (adam_state(), {"b1": 1.0, "b2": 0.9, "eps": 0.1}, ValueError, "b1 must be .* less than 1"),
        (adam_state(), {"b1": 0.9, "b2": 2.0, "eps": 0.1}, ValueError, "b2 must be .* got 2"),
        (adam_state(), {"b1": "0.9", "b2": 0.9, "eps": 1}, TypeError, "b1 must be a real number"),
        (SimpleNamespace(opt_state=adam_state()), {}, TypeError, "as opt_state: pass that"),
    ],
)
def test_what_is_no_state_of_the_parameters_is_refused(state, passed, error, message):
    with pytest.raises(error, match=message):
        sd.preconditioned(operator(), state, **passed)


def test_a_threshold_needs_learning_rate_and_momentum():
    with pytest.raises(ValueError, match="does not hold b1"):
        sd.stability_threshold(adam_state(), learning_rate=0.1)
    momentum = (fake("TraceState", trace=params()), fake("EmptyState"))
    with pytest.raises(ValueError, match="does not hold momentum"):
        sd.stability_threshold(momentum, learning_rate=0.1, nesterov=False)
    passed = {"learning_rate": 0.1, "momentum": 0.5}
    with pytest.raises(ValueError, match=r"not tell Nesterov's momentum.* pass nesterov=True or"):
        sd.stability_threshold(momentum, **passed)
    assert sd.stability_threshold(momentum, **passed, nesterov=False) == pytest.approx(30)
    assert sd.stability_threshold(momentum, **passed, nesterov=True) == pytest.approx(15)
    for rate in (-1.0, np.nan):
        with pytest.raises(ValueError, match="learning_rate must be finite and not negative"):
            sd.stability_threshold(momentum, **passed | {"learning_rate": rate}, nesterov=True)
