"""Follow spectra in `fit` under the JAX backend, and save what was recorded.

    KERAS_BACKEND=jax python fit_under_jax.py FOLDER

Run by test_under_jax.py: Keras has one backend in a process.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from spectral_density import GaussNewtonOperator, HessianOperator, SpectrumCallback, training

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(48, 6)).astype("float32"), RNG.integers(0, 3, 48)
PROBE = [(X[:24], Y[:24]), (X[24:], Y[24:])]


def regression(**options):
    """A softmax regression, whose Hessian has a closed form."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, **options)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), loss)
    return model


def network():
    """BatchNorm and dropout: state that a measurement must not change."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    stack = [layers.Dense(5, activation="tanh"), layers.BatchNormalization(), layers.Dropout(0.4)]
    model = keras.Sequential([layers.Input((6,)), *stack, layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    return model


def fit(model, *callbacks, **options):
    options = {"batch_size": 8, "epochs": 2, "verbose": 0, **options}
    return model.fit(X, Y, callbacks=list(callbacks), **options).history


class Weights(keras.callbacks.Callback):
    """Copies of the weights after every step; it comes last, so as to do nobody's work."""

    def __init__(self):
        super().__init__()
        self.kept = []

    def on_train_batch_end(self, batch, logs=None):
        self.kept.append([np.asarray(v.value) for v in self.model.trainable_variables])


def by_hand(found, folder):
    """Spectra at ends of epochs and within them, and the weights of every step."""
    size = {"num_eigenvalues": 3, "order": 21, "num_draws": 2, "seed": 1}
    epochs = SpectrumCallback(PROBE, **size, at_start=True)
    steps = SpectrumCallback(PROBE, **size, every_steps=4, name="step")
    weights = Weights()
    history = fit(regression(), epochs, steps, weights)
    for name, callback in (("epochs", epochs), ("steps", steps)):
        for key in ("epoch", "step", "eigenvalues", "bounds", "smallest", "trace"):
            found[f"{name}|{key}"] = np.array([getattr(r, key) for r in callback.records])
    found["kernels"] = np.array([kernel for kernel, _ in weights.kept])
    found["biases"] = np.array([bias for _, bias in weights.kept])
    found["x"], found["y"] = X, Y
    found["keys"] = np.array(list(history))
    found["history"] = np.array([history["hessian_eigenvalue_1"], history["step_trace"]])


def everything(model):
    return [np.asarray(v.value) for v in [*model.variables, *model.optimizer.variables]]


def undisturbed(found, folder):
    """Losses, and whether all variables are those of a training that nobody watches."""
    plain = network()
    found["plain losses"] = np.array(fit(plain)["loss"])
    callback = SpectrumCallback(
        PROBE,
        num_eigenvalues=2,
        order=8,
        num_draws=2,
        every_steps=2,
        at_start=True,
        density=True,
        csv_path=folder / "spectrum.csv",
        tensorboard_dir=folder / "events",
    )
    watched = network()
    found["watched losses"] = np.array(fit(watched, callback)["loss"])
    pairs = zip(everything(plain), everything(watched), strict=True)
    found["same variables"] = np.array([np.array_equal(old, new) for old, new in pairs])
    found["traces"] = np.array(callback.operator.num_traces)
    found["eigenvalues"] = np.array([r.eigenvalues for r in callback.records])
    found["spectra"] = np.array([r.spectrum is not None for r in callback.records])


def words(found, folder):
    """Messages: of what is refused, and of what needs TensorFlow."""
    del folder

    def refused(action):
        try:
            action()
        except (ValueError, ModuleNotFoundError) as error:
            return np.array(f"{type(error).__name__}: {error}")
        return np.array("")

    for budget in (None, 0.5):
        of_batch = {"loss": lambda model, batch: model(batch[0]), "budget": budget}
        found[f"no scalar|{budget}"] = refused(
            lambda options=of_batch: fit(regression(), SpectrumCallback(PROBE, **options))
        )
    found["second order"] = refused(lambda: training.SecondOrderModel(regression()))
    found["no model"] = refused(lambda: training.SecondOrderModel(None))
    frugal = SpectrumCallback(PROBE, operator=GaussNewtonOperator, budget=1.0, num_eigenvalues=2)
    history = fit(regression(), frugal)
    found["gauss_newton"] = np.array(history["gauss_newton_eigenvalue_1"])
    found["remote"] = refused(lambda: SpectrumCallback(PROBE, tensorboard_dir="gs://bucket/run"))


def minimized(found, folder):
    """The variables of a Keras model, moved to the minimum."""
    del folder
    model = regression(kernel_regularizer=keras.regularizers.L2(0.05))
    operator = HessianOperator(model, None, PROBE)
    result = training.minimize(operator, training.NewtonCG(), gradient_tolerance=1e-5)
    found["minimum"] = np.array([result.loss, result.gradient_norm])
    found["minimizer"] = np.asarray(model.layers[0].kernel.value)
    found["params"] = np.array(result.params is None)


def main():
    folder = Path(sys.argv[1])
    found = {}
    for part in (by_hand, undisturbed, words, minimized):
        part(found, folder)
    np.savez(folder / "found.npz", **found)


if __name__ == "__main__":
    main()
