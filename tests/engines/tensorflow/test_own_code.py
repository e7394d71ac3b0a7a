"""The function that `fit` minimizes, or a refusal that names class and method."""

import types

import keras
import numpy as np
import pytest
import tf_keras

import spectral_density as sd
from spectral_density.training import NewtonCG, SecondOrderModel

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(12, 1)).astype("float32")


class OwnStep(keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


class OwnFunction(keras.Sequential):
    def make_train_function(self, force=False):
        return super().make_train_function(force)


class OwnObjective(keras.Sequential):
    def compute_loss(self, *args, **options):
        return 2 * super().compute_loss(*args, **options)


class Mixin:
    def train_step(self, data):
        return super().train_step(data)


class Mixed(Mixin, keras.Sequential):
    pass


class OwnStepOfKeras2(tf_keras.Sequential):
    def train_step(self, data):
        return super().train_step(data)


class OwnObjectiveOfKeras2(tf_keras.Sequential):
    def compute_loss(self, *args, **options):
        return super().compute_loss(*args, **options)


def built(kind, loss="mse"):
    package = tf_keras if issubclass(kind, tf_keras.Model) else keras
    package.utils.set_random_seed(0)
    model = kind([package.Input((3,)), package.layers.Dense(1)])
    model.compile("sgd", loss)
    return model


OWN = {
    OwnStep: "train_step",
    OwnFunction: "make_train_function",
    OwnObjective: "compute_loss",
    Mixed: "train_step",
    OwnStepOfKeras2: "train_step",
    OwnObjectiveOfKeras2: "compute_loss",
}


@pytest.mark.parametrize("kind", OWN, ids=lambda kind: kind.__name__)
def test_a_training_of_its_own_is_refused_by_class_and_method(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__} has a {OWN[kind]}.*loss_fn\(model, b"):
        sd.HessianOperator(built(kind), None, [(X, Y)])


def test_a_step_put_on_the_model_itself_is_one_of_its_own():
    model = built(keras.Sequential)
    model.train_step = types.MethodType(lambda self, data: {}, model)
    with pytest.raises(ValueError, match="Sequential has a train_step"):
        sd.GaussNewtonOperator(model, None, [(X, Y)])


@pytest.mark.parametrize("kind", [OwnStep, OwnObjective, OwnStepOfKeras2])
def test_an_explicit_loss_stays_allowed(kind):
    hessian = sd.HessianOperator(built(kind), "mse", [(X, Y)])
    v = np.arange(4.0)
    design = np.hstack([X.astype(float), np.ones((12, 1))])
    np.testing.assert_allclose(hessian @ v, design.T @ design @ v / 6, rtol=1e-5)


def test_a_second_order_model_is_exempt_and_its_l2_counts():
    model = built(keras.Sequential)
    trainer = SecondOrderModel(model, l2=0.25)
    trainer.compile(NewtonCG(), loss="mse")
    hessian = sd.HessianOperator(trainer, None, [(X, Y)])
    design = np.hstack([X.astype(float), np.ones((12, 1))])
    v = np.arange(4.0)
    np.testing.assert_allclose(hessian @ v, design.T @ design @ v / 6 + 0.5 * v, rtol=1e-5)
    assert hessian.loss() == pytest.approx(trainer.evaluate(X, Y, verbose=0), rel=1e-5)


@pytest.mark.parametrize("kind", [OwnStep, OwnFunction, OwnObjective])
def test_what_a_second_order_model_wraps_is_not_exempt(kind):
    with pytest.raises(ValueError, match=rf"{kind.__name__} has a {OWN[kind]}"):
        SecondOrderModel(built(kind)).compile(NewtonCG(), loss="mse")


# Losses ------------------------------------------------------------------------------------------


class Quartic(keras.losses.MeanSquaredError):
    def __call__(self, y_true, y_pred, sample_weight=None):
        value = super().__call__(y_true, y_pred, sample_weight)
        return value + 0.1 * keras.ops.mean(y_pred**4)


class Inherited(Quartic):
    pass


class QuarticOfKeras2(tf_keras.losses.MeanSquaredError):
    def __call__(self, y_true, y_pred, sample_weight=None):
        return 2 * super().__call__(y_true, y_pred, sample_weight)


class InCall(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return keras.ops.mean((y_true - y_pred) ** 2, -1) + 0.1 * keras.ops.mean(y_pred**4, -1)


@pytest.mark.parametrize(
    "loss", [Quartic(), Inherited(), [Quartic()]], ids=["own", "inherited", "list"]
)
@pytest.mark.parametrize("explicit", [False, True])
def test_a_loss_with_a_call_of_its_own_is_refused(loss, explicit):
    model = built(keras.Sequential, loss)
    with pytest.raises(ValueError, match=r"(Quartic|Inherited) has a __call__.*loss_fn\(model"):
        sd.HessianOperator(model, loss if explicit else None, [(X, Y)])


def test_so_is_one_of_keras_2_and_one_that_a_second_order_model_takes():
    with pytest.raises(ValueError, match="QuarticOfKeras2 has a __call__"):
        sd.HessianOperator(built(tf_keras.Sequential, QuarticOfKeras2()), None, [(X, Y)])
    with pytest.raises(ValueError, match="Quartic has a __call__"):
        SecondOrderModel(built(keras.Sequential)).compile(NewtonCG(), loss=Quartic())


def test_the_same_loss_in_call_or_in_a_function_is_evaluates():
    model = built(keras.Sequential, InCall())
    expected = model.evaluate(X, Y, verbose=0)
    quartic = Quartic()

    def loss_fn(model, batch):
        return quartic(batch[1], model(batch[0]))

    for loss in (None, loss_fn):
        hessian = sd.HessianOperator(model, loss, [(X, Y)])
        assert hessian.loss() == pytest.approx(expected, rel=1e-6)
