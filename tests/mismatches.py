"""Models, losses and datasets that do not go together: what docs/errors.md says of each.

Both backends of Keras run them: tests/test_errors.py on TensorFlow, and on JAX
tests/engines/jax/keras_models.py.
"""

import keras
import numpy as np
from keras import layers

from spectral_density import HessianOperator, estimate_spectrum

X = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
Y = np.arange(12) % 3
HOT = np.eye(3, dtype="float32")[Y]
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
DENSE = keras.losses.CategoricalCrossentropy(from_logits=True)
BINARY = keras.losses.BinaryCrossentropy(from_logits=True)


def network(units=3, **options):
    return keras.Sequential([keras.Input((6,)), layers.Dense(units, name="head", **options)])


def compiled():
    model = network()
    model.compile("sgd", SPARSE)
    return model


def of_two_inputs():
    first, second = keras.Input((6,), name="first"), keras.Input((6,), name="second")
    outputs = layers.Dense(3)(layers.Add()([first, second]))
    return keras.Model({"first": first, "second": second}, outputs)


def of_two_outputs():
    inputs = keras.Input((6,))
    return keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(1)(inputs)])


def of_frozen_base(variables):
    base = keras.Sequential([keras.Input((6,)), layers.Dense(4)], name="base")
    base.trainable = False
    model = keras.Sequential([keras.Input((6,)), base, layers.Dense(3)])
    chosen = base.trainable_weights if variables == "weights" else variables
    return HessianOperator(model, SPARSE, [(X, Y)], variables=chosen)


def of(loss, y, units=3, x=X, *weights):
    return HessianOperator(network(units), loss, [(x, y, *weights)])


def squares(model, batch):
    return keras.ops.mean(model(batch[0]) ** 2)


CASES = {
    # labels
    "one-hot labels, with a sparse loss": lambda: of(SPARSE, HOT),
    "class numbers, with a dense loss": lambda: of(DENSE, Y),
    "class numbers in a column, with a dense loss": lambda: of(
        "categorical_crossentropy", Y[:, None]
    ),
    "one-hot labels of another number of classes": lambda: of(DENSE, np.eye(5)[Y]),
    "labels numbered from 1": lambda: of(SPARSE, Y + 1),
    "labels of -1": lambda: of(SPARSE, Y - 1),
    "more classes than outputs": lambda: of(SPARSE, 2 * Y),
    "class numbers, and a model with one output": lambda: of(SPARSE, Y, 1),
    "class numbers that are not whole": lambda: of(SPARSE, Y + 0.25),
    "class numbers, with a loss of values": lambda: of("mse", Y),
    "class numbers, with a binary loss": lambda: of(BINARY, Y),
    "values of another width than the outputs": lambda: of("mse", np.zeros((12, 5))),
    "one value for several outputs": lambda: of("mse", Y[:, None].astype("float32")),
    "labels -1 and 1, with a binary loss": lambda: of(BINARY, 2.0 * (Y > 0)[:, None] - 1, 1),
    "sample weights of another number": lambda: of(SPARSE, Y, 3, X, np.ones(5)),
    "one array of labels for two outputs": lambda: HessianOperator(
        of_two_outputs(), "mse", [(X, HOT)]
    ),
    # datasets
    "an unbatched dataset": lambda: HessianOperator(
        network(), SPARSE, list(zip(X, Y, strict=True))
    ),
    "an unbatched dataset, with a function": lambda: HessianOperator(
        network(), squares, list(zip(X, Y, strict=True))
    ),
    "an unbatched dataset of one-hot labels": lambda: HessianOperator(
        network(), DENSE, list(zip(X, HOT, strict=True))
    ),
    "inputs of another shape": lambda: of(SPARSE, Y, 3, X[:, :5]),
    "labels for inputs": lambda: of(SPARSE, X, 3, Y),
    "`(x, y)` of a dict of inputs": lambda: HessianOperator(
        of_two_inputs(), SPARSE, ({"first": X, "second": X}, Y)
    ),
    "`[x, y]`": lambda: HessianOperator(network(), SPARSE, [X, Y]),
    "Python lists of numbers": lambda: HessianOperator(network(), SPARSE, (X.tolist(), Y.tolist())),
    # arguments
    "dataset and loss, the other way round": lambda: HessianOperator(network(), [(X, Y)], SPARSE),
    "the loss before the model": lambda: HessianOperator(SPARSE, network(), [(X, Y)]),
    "the data before the model": lambda: HessianOperator([(X, Y)], network(), SPARSE),
    "`HessianOperator(model, None, x, y)`": lambda: HessianOperator(compiled(), None, X, Y),
    "`HessianOperator(model, x, y)`": lambda: HessianOperator(compiled(), X, Y),
    "`HessianOperator(model, dataset)`": lambda: HessianOperator(compiled(), [(X, Y)]),
    "no dataset": lambda: HessianOperator(compiled()),
    "a function for a model": lambda: HessianOperator(lambda x: x, SPARSE, [(X, Y)]),
    "a model for an operator": lambda: estimate_spectrum(compiled()),
    "`x=` and `y=`": lambda: HessianOperator(compiled(), x=X, y=Y),
    "`epochs=`": lambda: HessianOperator(compiled(), dataset=[(X, Y)], epochs=3),
    "`validation_data=`": lambda: HessianOperator(compiled(), dataset=[(X, Y)], validation_data=X),
    "`batch_size=` of an algorithm": lambda: estimate_spectrum(np.eye(3), batch_size=4),
    "`sample_weight=`": lambda: HessianOperator(compiled(), dataset=[(X, Y)], sample_weight=Y),
    "`data=`": lambda: HessianOperator(compiled(), data=[(X, Y)]),
    "an argument that is misspelled": lambda: estimate_spectrum(np.eye(3), num_draw=4),
    "a loss by a name that Keras has not": lambda: of("crossentropy", Y),
    "a metric for a loss": lambda: of(keras.metrics.MeanSquaredError(), HOT),
    "the weights of a frozen base": lambda: of_frozen_base("weights"),
    "a frozen layer by its name": lambda: of_frozen_base("base"),
}
