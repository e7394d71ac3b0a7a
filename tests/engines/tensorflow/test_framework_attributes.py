"""Each private name of Keras, tf_keras and TensorFlow that the package uses, and what it gives.

A test that fails here names what a new version removed or changed, the version that had it, and the
function of `keras_internals` (or `keras_shared.attributes`) that has to be mended. The patches are
tested for being in place and restored; what they are for is in test_keras_internals.py.
"""

import ast
import re
from collections.abc import Callable
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from keras import layers

import spectral_density
from spectral_density.engines.jax import keras_internals as jax_internals
from spectral_density.engines.keras_shared import attributes as shared
from spectral_density.engines.tensorflow import keras_internals as internals
from spectral_density.engines.tensorflow.exact_gradients import EXACT, exact_second_derivatives
from spectral_density.engines.tensorflow.keras_internals import patches

SEEN = {"keras": "3.15.1", "tf_keras": "2.21.0", "tensorflow": "2.21.0"}
"""The versions that all of these names were seen in."""


class Private(NamedTuple):
    """A private name: whose it is, and which function of `keras_internals` needs it."""

    package: str
    name: str
    owner: Callable[[], Any]  # something that has it
    used_by: str


def keras_source(name):
    return lambda: import_module(f"keras.src.{name}")


def tf_source(name):
    return lambda: import_module(f"tensorflow.python.{name}")


# Models -------------------------------------------------------------------------------------------


def functional(package=keras):
    """A model with an inner model, a sum and a regularizer, compiled."""
    x = package.Input((3,), name="x")
    regularizer = package.regularizers.L2(0.5)
    inner = package.Sequential(
        [package.layers.Dense(3, name="deep", kernel_regularizer=regularizer)], name="inner"
    )
    total = package.layers.Add(name="sum")([inner(x), x])
    model = package.Model(x, package.layers.Dense(2, name="last")(total))
    model.compile(loss=package.losses.MeanSquaredError(), loss_weights=[3.0])
    return model


def attention():
    return layers.MultiHeadAttention(1, 2, attention_axes=(2,))


def softmax_output(package=keras):
    return package.activations.softmax(tf.constant([[1.0, 2.0]]))


def masked_output(package=keras):
    return package.layers.Embedding(4, 2, mask_zero=True)(tf.constant([[1, 0]]))


def cross_entropy(package=keras):
    return package.losses.BinaryCrossentropy(from_logits=True)


def shuffled():
    return tf.data.Dataset.range(4).shuffle(4)


def unordered():
    return shuffled().map(lambda v: v + 1, num_parallel_calls=2, deterministic=False)


def strategy(timeout=7.0):
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=timeout)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


def graph_of(function, *arguments):
    return tf.function(function, autograph=False).get_concrete_function(*arguments).graph


def operation_of(kind, function, *arguments):
    graph = graph_of(function, *arguments)
    return next(operation for operation in graph.get_operations() if operation.type == kind)


@tf.custom_gradient
def own_square(x):
    return x**2, lambda upstream: 3 * upstream


def custom_attributes():
    return operation_of("IdentityN", own_square, tf.constant(1.0)).node_def.attr


def colocated_attributes():
    def colocated(x):
        with tf.compat.v1.colocate_with(x):
            return tf.sin(x)

    return operation_of("Sin", colocated, tf.constant(1.0)).node_def.attr


def optimizer(package, name="Adam", **options):
    """An optimizer that has state for a variable."""
    found = getattr(package.optimizers, name)(0.1, **options)
    found.build([keras.Variable(1.0) if package is keras else tf.Variable(1.0)])
    return found


# Names --------------------------------------------------------------------------------------------

of_keras, of_tf_keras, of_tf = (partial(Private, package) for package in SEEN)


def of_optimizers(private, **options):
    """A private name of an optimizer of Keras 3, and of one of tf_keras."""
    return [
        of("_" + private, partial(optimizer, package, **options), "optimizer_state")
        for of, package in ((of_keras, keras), (of_tf_keras, tf_keras))
    ]


NAMES = [
    of_keras("_flatten_layers", functional, "all_layers"),
    of_tf_keras("_flatten_layers", lambda: functional(tf_keras), "all_layers"),
    of_keras("_nodes_by_depth", functional, "graph_calls"),
    of_tf_keras("_nodes_by_depth", lambda: functional(tf_keras), "graph_calls"),
    of_keras("_inbound_nodes", lambda: layers.Dense(1), "inbound_calls"),
    of_keras("_functional", lambda: functional().get_layer("inner"), "operations_of"),
    of_keras("_attention_axes", attention, "attention_axes"),
    of_keras("_compute_loss", functional, "training_methods"),
    of_keras("_keras_mask", masked_output, "mask_of"),
    of_tf_keras("_keras_mask", lambda: masked_output(tf_keras), "mask_of"),
    of_keras("_keras_logits", softmax_output, "marked_logits"),
    of_tf_keras("_keras_logits", lambda: softmax_output(tf_keras), "marked_logits"),
    of_keras("_fn_kwargs", cross_entropy, "loss_arguments"),
    of_tf_keras("_fn_kwargs", lambda: cross_entropy(tf_keras), "loss_arguments"),
    of_keras("_compile_loss", functional, "compiled_loss"),
    of_tf_keras("compiled_loss", lambda: functional(tf_keras), "compiled_loss"),
    of_keras(
        "_user_loss_weights", lambda: shared.compiled_loss(functional()), "compiled_loss_weights"
    ),
    of_tf_keras(
        "_user_loss_weights",
        lambda: shared.compiled_loss(functional(tf_keras)),
        "compiled_loss_weights",
    ),
    of_keras("_loss_tracker", functional, "loss_tracker"),
    of_tf_keras("_callable_losses", tf_keras.layers.Layer, "penalty_functions"),
    of_keras("_losses", layers.Layer, "losses_held"),
    of_keras("_loss_ids", layers.Layer, "losses_held"),
    of_tf_keras("_eager_losses", tf_keras.layers.Layer, "losses_held"),
    of_keras("_clear_losses", layers.Layer, "CLEARED_LOSSES"),
    of_tf_keras("_clear_losses", tf_keras.layers.Layer, "CLEARED_LOSSES"),
    *of_optimizers("velocities"),
    *of_optimizers("velocity_hats", amsgrad=True),
    *of_optimizers("average_gradients", name="RMSprop", centered=True),
    *of_optimizers("accumulators", name="Adagrad"),
    of_keras("_trainable_variables", lambda: optimizer(keras), "optimizer_state"),
    of_tf_keras("_index_dict", lambda: optimizer(tf_keras), "optimizer_state"),
    of_tf_keras("_var_key", lambda: optimizer(tf_keras), "optimizer_state"),
    of_tf_keras("_learning_rate", lambda: optimizer(tf_keras), "learning_rate_schedule"),
    of_keras("get_keras_mask", keras_source("backend"), "mask_of"),
    of_keras("set_keras_mask", keras_source("backend"), "set_mask"),
    of_keras("print_msg", keras_source("utils.io_utils"), "print_message"),
    of_keras("tf", keras_source("backend.tensorflow.numpy"), "known_conditions_decided"),
    of_keras("_flash_attention", attention, "twice_differentiable_kernels"),
    of_keras("use_cudnn", lambda: layers.LSTM(1), "no_cudnn_recurrences"),
    of_keras("use_cudnn", lambda: layers.GRU(1), "no_cudnn_recurrences"),
    of_tf_keras("_could_use_gpu_kernel", lambda: tf_keras.layers.LSTM(1), "no_cudnn_recurrences"),
    of_tf_keras("_could_use_gpu_kernel", lambda: tf_keras.layers.GRU(1), "no_cudnn_recurrences"),
    of_keras("_int8_call", lambda: layers.Dense(1), "is_straight_through"),
    of_keras("_int4_call", lambda: layers.Dense(1), "is_straight_through"),
    of_keras("_float8_call", lambda: layers.Dense(1), "is_straight_through"),
    of_tf("_reshuffle_each_iteration", shuffled, "reshuffles"),
    of_tf("_deterministic", unordered, "is_unordered"),
    of_tf("_inputs", shuffled, "stages_before"),
    of_tf("_communication_options", lambda: strategy().extended, "communication_timeout"),
    of_tf("_get_function", tf.Graph, "body_of"),
    of_tf("_gradient_op_type", custom_attributes, "has_custom_gradient"),
    of_tf("_class", colocated_attributes, "clear_colocation"),
    of_tf(
        "_registry", lambda: tf_source("framework.ops")().gradient_registry, "registered_gradients"
    ),
    of_tf("gradient_registry", tf_source("framework.ops"), "registered_gradient"),
    of_tf("get_registered_kernels_for_op", tf_source("framework.kernels"), "runs_with"),
    of_tf("_create_op_internal", lambda: tf.Graph, "made_again"),
    of_tf(
        "function_call_options", lambda: tf_source("eager.context")().Context, "graphs_as_traced"
    ),
    of_tf("FunctionCallOptions", tf_source("eager.context"), "graphs_as_traced"),
    of_tf("stop_recording", tf_source("eager.record"), "linear"),
    of_tf("record_operation", tf_source("eager.record"), "linear"),
    of_tf("StagingError", tf_source("autograph.impl.api"), "AUTOGRAPH_ERROR"),
    of_tf("smart_constant_value", tf_source("framework.smart_cond"), "known_conditions_decided"),
    of_tf("array_ops", tf_source("ops.nn_impl"), "differentiable_moments"),
    of_tf("array_ops", tf_source("ops.nn_fused_batch_norm_grad"), "differentiable_moments"),
    of_tf("_graph_mode_decorator", tf_source("ops.custom_gradient"), "no_recomputation"),
    of_tf("_eager_mode_decorator", tf_source("ops.custom_gradient"), "no_recomputation"),
]


def has(owner, name):
    return name in owner if hasattr(owner, "keys") else hasattr(owner, name)


@pytest.mark.parametrize("private", NAMES, ids=lambda p: f"{p.package}.{p.name}")
def test_the_frameworks_have_each_private_name(private):
    package, name, owner, used_by = private
    try:
        there = has(owner(), name)
    except (ImportError, AttributeError):
        there = False
    assert there, (
        f"{package} {metadata.version(package)} has no {name}, which keras_internals.{used_by} "
        f"uses; {package} {SEEN[package]} had it."
    )


PACKAGE = Path(spectral_density.__file__).parent
INTERNALS = {
    *Path(internals.__file__).parent.glob("*.py"),
    Path(shared.__file__),
    Path(jax_internals.__file__),
}
A_PRIVATE_NAME = re.compile(r"_[a-zA-Z]\w*")


def private_names(tree):
    """The private attributes in a module but those of `self`, and strings that are such names."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            names += [] if of_self else [node.attr]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.append(node.value)
    return {name for name in names if A_PRIVATE_NAME.fullmatch(name)}


def reached_by_string(tree):
    """The private names that `getattr` and the like are given."""
    access = ("getattr", "hasattr", "setattr", "delattr")
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) > 1)
    names = (ast.unparse(call.args[1]) for call in calls if ast.unparse(call.func) in access)
    return {name for name in names if A_PRIVATE_NAME.fullmatch(name.strip("'"))}


def private_imports(tree):
    """The modules that a module imports from within the sources of the frameworks."""
    for node in ast.walk(tree):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            if name.startswith(("tensorflow.python", "keras.src", "tf_keras.src")):
                yield name


def test_every_private_name_in_keras_internals_is_tested_here():
    tested = {private.name for private in NAMES}
    sources = [path.read_text(encoding="utf-8") for path in INTERNALS]
    used = set().union(*(private_names(ast.parse(source)) for source in sources))
    assert used - tested == set(), "say in NAMES which version has it, and who uses it"


@pytest.mark.parametrize(
    "path",
    sorted(set(PACKAGE.rglob("*.py")) - INTERNALS),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_no_other_module_names_what_is_private_to_a_framework(path):
    # Ruff's SLF001 sees attributes alone, and PLC2701 takes these modules for public.
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    framework = {private.name for private in NAMES if private.name.startswith("_")}
    assert strings & framework == set()
    assert reached_by_string(tree) == set()
    assert {text for text in strings if text.startswith(("keras.src", "tf_keras.src"))} == set()
    assert set(private_imports(tree)) == set()


# Models and layers --------------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])


@BOTH
def test_layers_are_given_however_deep(package):
    model = functional(package)
    names = [layer.name for layer in shared.all_layers(model)]
    assert names[0] == model.name
    assert {"inner", "deep", "sum", "last"} <= set(names)
    assert model.name not in [layer.name for layer in shared.all_layers(model, include_self=False)]


@BOTH
def test_the_graph_of_a_functional_model_is_a_list_of_calls(package):
    model = functional(package)
    calls = {call.operation.name: call for call in internals.graph_calls(model)}
    assert list(calls) == ["last", "sum", "inner", "x"]
    assert [tensor is model.inputs[0] for tensor in calls["sum"].inputs] == [False, True]
    assert calls["last"].inputs[0] is calls["sum"].outputs[0]
    assert calls["x"].inputs == []
    assert calls["last"].args[0] is calls["sum"].outputs[0]
    assert calls["last"].kwargs == {}


def test_a_model_with_a_call_of_its_own_has_no_graph():
    class Own(keras.Model):
        def call(self, x):
            return x

    assert internals.graph_calls(Own()) is None
    assert internals.operations_of(Own()) is None


def test_calls_of_a_layer_are_known_with_their_arguments():
    dropout = layers.Dropout(0.5)
    first, second = keras.Input((3,)), keras.Input((4,))
    dropout(first)
    dropout(second, training=True)
    calls = internals.inbound_calls(dropout)
    assert [call.inputs[0].shape[-1] for call in calls] == [3, 4]
    assert [call.kwargs.get("training") for call in calls] == [False, True]


def test_operations_that_are_no_layers_are_among_those_of_a_model():
    x = keras.Input((3,))
    kinds = [type(part).__name__ for part in internals.operations_of(keras.Model(x, -x + 1))]
    assert kinds == ["InputLayer", "Negative", "Add"]
    sequential = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    assert type(internals.operations_of(sequential)[-1]).__name__ == "Dense"
    assert internals.operations_of(keras.Sequential([layers.Dense(1)])) is None


def test_the_axes_of_attention_are_known():
    layer = attention()
    layer(tf.zeros([1, 2, 3, 4]), tf.zeros([1, 2, 3, 4]))
    assert tuple(internals.attention_axes(layer)) == (2,)
    assert internals.attention_axes(layers.Dense(1)) is None


@BOTH
def test_methods_that_decide_what_fit_minimizes_are_known(package):
    methods = shared.training_methods(functional(package))
    assert {"train_step", "make_train_function", "compute_loss"} <= set(methods)
    assert all(map(callable, methods.values()))


def test_what_keras_defines_is_told_by_the_part_of_its_source():
    assert shared.is_of_keras(layers.Dense)
    assert shared.is_of_keras(keras.losses.mean_squared_error, "losses")
    assert shared.is_of_keras(keras.activations.relu, "activations")
    assert shared.is_of_keras(type(-keras.Input((1,))).__mro__[0], "backend")
    assert not shared.is_of_keras(layers.Dense, "losses")
    assert not shared.is_of_keras(tf_keras.layers.Dense)
    assert shared.is_of_tf_keras(tf_keras.losses.mean_squared_error, "losses")
    assert shared.is_of_tf_keras(tf_keras.losses.MeanSquaredError, "losses")
    assert not shared.is_of_tf_keras(layers.Dense)
    assert not shared.is_of_keras(functional)


# Tensors ------------------------------------------------------------------------------------------


@BOTH
def test_the_mask_of_an_embedding_is_read_and_set(package):
    output = masked_output(package)
    np.testing.assert_array_equal(internals.mask_of(output), [[True, False]])
    plain = tf.constant([[1.0], [2.0]])
    assert internals.mask_of(plain) is None
    internals.set_mask(plain, tf.constant([True, False]))
    assert float(package.losses.MeanSquaredError()(tf.zeros([2, 1]), plain)) == 1.0


@BOTH
def test_logits_that_an_activation_leaves_are_read_and_set(package):
    np.testing.assert_array_equal(internals.marked_logits(softmax_output(package)), [[1.0, 2.0]])
    output = tf.constant([[0.5, 0.5]])
    assert internals.marked_logits(output) is None
    internals.mark_logits(output, tf.constant([[0.0, 100.0]]))
    loss = package.losses.CategoricalCrossentropy()
    assert float(loss(tf.constant([[1.0, 0.0]]), output)) == pytest.approx(100.0)


# Losses -------------------------------------------------------------------------------------------


@BOTH
def test_a_loss_tells_the_arguments_of_its_function(package):
    assert shared.loss_arguments(cross_entropy(package))["from_logits"] is True
    assert shared.loss_arguments(package.losses.mean_squared_error) == {}
    assert shared.loss_arguments(None) == {}


@BOTH
def test_a_compiled_model_tells_its_loss_and_weights(package):
    model = functional(package)
    assert shared.compiled_loss_weights(model) == [3.0]
    labels, outputs = tf.zeros([2, 2]), tf.ones([2, 2])
    model.train_on_batch(tf.zeros([2, 3]), labels)  # which builds the loss
    assert float(shared.compiled_loss(model)(labels, outputs)) == pytest.approx(3.0)
    plain = package.Sequential([package.layers.Dense(1)])
    assert shared.compiled_loss_weights(plain) is None
    assert shared.compiled_loss_weights(None) is None
    plain.compile(optimizer="sgd")
    assert shared.compiled_loss_weights(plain) is None


def test_a_model_of_keras_that_is_compiled_without_a_loss_has_none():
    model = keras.Sequential([layers.Dense(1)])
    assert shared.compiled_loss(model) is None
    model.compile(optimizer="sgd")
    assert shared.compiled_loss(model) is None


def test_the_tracked_loss_is_among_the_metrics():
    model = functional()
    shared.loss_tracker(model).update_state(2.0, sample_weight=3)
    assert float(model.get_metrics_result()["loss"]) == 2.0


def test_the_penalties_of_a_layer_of_tf_keras_are_functions():
    model = functional(tf_keras)
    penalties = [
        float(penalty())
        for layer in shared.all_layers(model)
        for penalty in internals.penalty_functions(layer)
    ]
    kernel = model.get_layer("inner").get_layer("deep").kernel
    assert penalties == pytest.approx([0.5 * float(tf.reduce_sum(kernel**2))])


@BOTH
def test_losses_that_a_layer_holds_are_restored(package):
    layer = package.layers.ActivityRegularization(l2=1.0)
    layer(tf.constant([[2.0]]))
    before = [float(loss) for loss in layer.losses]
    held = internals.losses_held(layer)
    layer(tf.constant([[3.0]]))
    assert [float(loss) for loss in layer.losses] != before
    internals.set_losses_held(layer, held)
    assert [float(loss) for loss in layer.losses] == before


# Data, strategies and the console -----------------------------------------------------------------


@BOTH
def test_the_state_of_an_optimizer_is_known_by_variable(package):
    first, second, strange = (
        [keras.Variable(float(i)) for i in range(3)]
        if package is keras
        else [tf.Variable(float(i)) for i in range(3)]
    )
    found = package.optimizers.Adagrad(0.1)
    found.build([first, second])
    accumulators = found._accumulators
    kept = shared.optimizer_state(found, "accumulators", [second, strange, first])
    assert kept[0] is accumulators[1]
    assert kept[1] is None
    assert kept[2] is accumulators[0]
    assert shared.optimizer_state(found, "velocities", [first]) == [None]
    if package is keras:
        # Operators of TensorFlow have the variable within.
        assert shared.optimizer_state(found, "accumulators", [second.value])[0] is accumulators[1]
        (owner,) = shared.optimizer_state(found, "trainable_variables", [second.value])
        assert owner is second


def test_stages_of_a_pipeline_tell_their_order():
    mapped = unordered()
    (stage,) = internals.stages_before(mapped)
    assert internals.is_unordered(mapped)
    assert not internals.is_unordered(stage)
    assert internals.reshuffles(stage)
    assert not internals.reshuffles(mapped)
    fixed = tf.data.Dataset.range(4).shuffle(4, seed=1, reshuffle_each_iteration=False)
    assert not internals.reshuffles(fixed)
    zipped = tf.data.Dataset.zip((mapped, fixed))
    assert len(internals.stages_before(zipped)) == 2


def test_a_strategy_tells_how_long_its_workers_wait():
    assert internals.communication_timeout(strategy()) == 7.0
    assert internals.communication_timeout(tf.distribute.get_strategy()) is None


def test_messages_are_printed_as_keras_prints_its_own(capsys):
    before = keras.config.is_interactive_logging_enabled()
    try:
        keras.config.enable_interactive_logging()
        shared.print_message("shown")
        keras.config.disable_interactive_logging()
        shared.print_message("logged")
    finally:
        (
            keras.config.enable_interactive_logging
            if before
            else keras.config.disable_interactive_logging
        )()
    assert capsys.readouterr().out == "shown\n"


# Graphs -------------------------------------------------------------------------------------------


def test_the_bodies_of_functions_are_graphs():
    def branches(x):
        return tf.cond(x > 0, lambda: tf.sin(x), lambda: x)

    operation = operation_of("StatelessIf", branches, tf.constant(1.0))
    body = internals.body_of(operation, operation.get_attr("then_branch"))
    assert "Sin" in [inner.type for inner in body.get_operations()]


def test_a_variable_is_captured_by_its_handle():
    variable = tf.Variable(1.0)
    graph = graph_of(lambda: 2 * variable)
    handles = internals.handles_of(variable)
    assert len(handles) == 1
    (inside,) = internals.captured(graph, handles)
    assert inside.dtype == tf.resource
    assert inside.graph is graph


def test_the_registry_tells_of_gradients():
    assert callable(internals.registered_gradient("MatMul"))
    assert internals.registered_gradient("ZerosLike") is None
    with pytest.raises(LookupError):
        internals.registered_gradient("NoSuchOperation")
    kinds = "MatMul", "ZerosLike", "NoSuchOperation"
    found = [internals.derivative_of(kind).name for kind in kinds]
    assert found == ["REGISTERED", "NONE", "MISSING"]


def test_a_custom_gradient_is_registered_under_a_name_of_its_own():
    operation = operation_of("IdentityN", own_square, tf.constant(1.0))
    assert internals.has_custom_gradient(operation)
    assert callable(internals.registered_gradient(internals.gradient_type(operation)))
    plain = operation_of("Sin", tf.sin, tf.constant(1.0))
    assert not internals.has_custom_gradient(plain)
    assert internals.gradient_type(plain) == "Sin"


def test_a_linear_function_is_recorded_with_the_adjoint_given():
    x = tf.constant(2.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = internals.linear(lambda: 3 * x, [x], lambda again: [5 * again], "Tripled")
    assert float(y) == 6.0
    assert float(tape.gradient(y, x)) == 5.0


def test_errors_that_autograph_cannot_make_anew_have_a_type():
    def fails():
        return [1][5]

    with pytest.raises(internals.AUTOGRAPH_ERROR) as caught:
        tf.function(fails)()
    assert isinstance(caught.value.__context__, IndexError)


def test_an_error_passes_autograph_as_it_is():
    def fails():
        raise internals.unchanged_by_autograph(ValueError("as it is"))

    with pytest.raises(ValueError, match=r"^as it is$"):
        tf.function(fails)()


def test_an_operation_is_made_again_without_its_colocation():
    def colocated(x):
        with tf.compat.v1.colocate_with(x):
            return tf.nn.leaky_relu(x, 0.5)

    operation = operation_of("LeakyRelu", colocated, tf.constant(1.0))
    assert internals.attributes_of(operation, "alpha") == {"alpha": 0.5}
    made = []

    def again(x):
        made.extend(internals.made_again(operation, [x]))
        return made[0]

    assert float(tf.function(again, autograph=False)(tf.constant(-2.0))) == -1.0
    assert "_class" not in made[0].op.node_def.attr
    node = operation.node_def
    assert "_class" in node.attr
    internals.clear_colocation(node)
    assert "_class" not in node.attr


def test_kernels_tell_in_which_dtypes_a_type_of_operations_runs():
    assert internals.runs_with("MatMul", {"T": tf.float64.as_datatype_enum})
    assert not internals.runs_with("MatMul", {"T": tf.string.as_datatype_enum})


def call_options():
    """How this thread calls graphs."""
    return tf_source("eager.context")().context().function_call_options


def is_rewritten():
    """Whether TensorFlow rewrites a graph that this thread calls first now."""
    options = call_options()
    config = tf.compat.v1.ConfigProto.FromString(options.config_proto_serialized)
    return not config.graph_options.rewrite_options.disable_meta_optimizer


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="rewritten on a GPU")
def test_graphs_run_as_traced_in_one_thread_and_until_the_context_ends():
    in_another = []
    with pytest.raises(KeyError), internals.graphs_as_traced():
        assert not is_rewritten()
        other = Thread(target=lambda: in_another.append(is_rewritten()))
        other.start()
        other.join()
        raise KeyError
    assert in_another == [True]
    assert is_rewritten()


def test_graphs_run_as_traced_keep_what_a_user_configured():
    before = tf.config.optimizer.get_jit()
    tf.config.optimizer.set_jit("autoclustering")
    try:
        with internals.graphs_as_traced():
            options = call_options()
    finally:
        tf.config.optimizer.set_jit(before)
    config = tf.compat.v1.ConfigProto.FromString(options.config_proto_serialized)
    assert config.graph_options.optimizer_options.global_jit_level != 0


# Call sites ---------------------------------------------------------------------------------------


def test_a_gradient_is_stopped_by_a_user_or_by_a_library():
    def by_user(x):
        return tf.stop_gradient(x)

    by_users = operation_of("StopGradient", by_user, tf.constant([1.0, 2.0]))
    assert internals.user_stopped_gradient(by_users)
    assert any(function == "by_user" for _, function in internals.calls(by_users))
    moments = operation_of("StopGradient", lambda x: tf.nn.moments(x, [0])[1], tf.ones([2]))
    assert not internals.user_stopped_gradient(moments)


def test_the_dense_ctc_loss_is_known():
    def ctc(logits):
        return tf.nn.ctc_loss(tf.constant([[1]]), logits, [1], [3], logits_time_major=False)

    graph = graph_of(ctc, tf.zeros([1, 3, 4]))
    known = [internals.is_custom_gradient_of_ctc(part) for part in graph.get_operations()]
    assert any(known)
    assert not internals.is_custom_gradient_of_ctc(
        operation_of("IdentityN", own_square, tf.constant(1.0))
    )


@pytest.mark.filterwarnings("ignore:Layer InputLayer does not have a `quantize`")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_straight_through_gradients_are_known():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    model.quantize("int8")
    graphs = [
        graph_of(lambda x: tf.grad_pass_through(tf.round)(x), tf.constant([1.0])),
        graph_of(lambda x: model(x, training=False), tf.zeros([1, 3])),
    ]
    for graph in graphs:
        assert any(internals.is_straight_through(part) for part in graph.get_operations())
    assert not internals.is_straight_through(
        operation_of("IdentityN", own_square, tf.constant(1.0))
    )


def test_an_error_of_a_gradient_function_is_told_from_others():
    x = tf.constant(1.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.debugging.check_numerics(x, "")
        # No gradient of a value that is said to have none.
        y = tf.raw_ops.PreventGradient(input=y, message="none")
    with pytest.raises(LookupError) as caught:
        tape.gradient(y, x)
    assert internals.raised_in_gradient_function(caught.value)
    assert not internals.raised_in_gradient_function(ValueError())


# Patches ------------------------------------------------------------------------------------------


def replaced():
    """Everything that is replaced for the whole process while a graph is traced."""
    ops, custom, batch_norm, nn = (
        tf_source(name)()
        for name in (
            "framework.ops",
            "ops.custom_gradient",
            "ops.nn_fused_batch_norm_grad",
            "ops.nn_impl",
        )
    )
    numpy = keras_source("backend.tensorflow.numpy")()
    recurrent = [layers.LSTM, layers.GRU, tf_keras.layers.LSTM, tf_keras.layers.GRU]
    return {
        "gradients": {kind: ops.gradient_registry._registry.get(kind) for kind in EXACT},
        "stops": [batch_norm.array_ops, nn.array_ops],
        "conditions": numpy.tf,
        "recomputation": [custom._graph_mode_decorator, custom._eager_mode_decorator],
        "cudnn": [dict(vars(layer)) for layer in recurrent],
    }


def test_what_is_replaced_while_tracing_is_restored_after_an_error_too():
    recurrent = layers.SimpleRNN(2)
    model = keras.Sequential([keras.Input((4, 1)), recurrent])
    before = replaced()
    with pytest.raises(RuntimeError, match="user's"), exact_second_derivatives(model):
        inside = replaced()
        assert recurrent.unroll
        assert not layers.LSTM(1).use_cudnn
        assert not tf_keras.layers.GRU(1)._could_use_gpu_kernel
        raise RuntimeError("the user's")
    assert [key for key in before if inside[key] == before[key]] == []
    assert replaced() == before
    assert not recurrent.unroll


def test_contexts_within_each_other_restore_what_was_there():
    before = replaced()
    with exact_second_derivatives():
        outer = replaced()
        with exact_second_derivatives():
            pass
        assert replaced() == outer
    assert replaced() == before


def test_one_thread_is_in_the_patches_at_a_time():
    entered = []

    def enter():
        with exact_second_derivatives():
            entered.append(True)

    with exact_second_derivatives():
        thread = Thread(target=enter)
        thread.start()
        thread.join(0.2)
        assert not entered
    thread.join()
    assert entered


def test_few_steps_are_unrolled_and_many_are_not():
    few, many = layers.LSTM(2), layers.LSTM(2)
    for layer, steps in ((few, 5), (many, 65)):
        keras.Sequential([keras.Input((steps, 1)), layer])
    unknown = layers.LSTM(2)
    model = keras.Sequential([keras.Input((None, 1)), unknown])
    for layer, unrolled in ((few, True), (many, False), (unknown, False)):
        with patches.unrolled_recurrences(layer):
            assert layer.unroll == unrolled
    with patches.unrolled_recurrences(model):
        assert not unknown.unroll


@BOTH
def test_listeners_hear_of_layers_called_in_their_thread(package):
    layer = package.layers.Dense(1)
    original = package.layers.Layer._clear_losses
    heard = []
    internals.CLEARED_LOSSES.add(heard.append)
    try:
        assert package.layers.Layer._clear_losses is not original
        layer(tf.zeros([1, 2]))
        count = len(heard)
        assert any(part is layer for part in heard)
        thread = Thread(target=lambda: layer(tf.zeros([1, 2])))
        thread.start()
        thread.join()
        assert len(heard) == count
    finally:
        internals.CLEARED_LOSSES.remove(heard.append)
    assert package.layers.Layer._clear_losses is original
