import numpy as np
import pytest
import tensorflow as tf
from models import split

from spectral_density import HessianOperator, estimate_spectrum
from spectral_density.command import demo


@pytest.mark.parametrize("operator", [lambda v: v, 3.0, None])
def test_a_spectrum_of_no_operator_is_refused(operator):
    with pytest.raises((TypeError, ValueError), match="operator must be"):
        estimate_spectrum(operator, 1)


# A network against the eigenvalues of its dense Hessian


def dense_float64_hessian(weights, x, y):
    """Forward over reverse in float64 on a transcription of the network, column by column."""
    variables = [tf.Variable(w, dtype=tf.float64) for w in weights]
    sizes = [w.size for w in weights]
    shapes = [w.shape for w in weights]
    x, labels = tf.constant(x, tf.float64), tf.one_hot(y, 10, dtype=tf.float64)

    def loss():
        w1, b1, w2, b2, w3, b3 = variables
        logits = tf.tanh(tf.tanh(x @ w1 + b1) @ w2 + b2) @ w3 + b3
        return tf.reduce_mean(
            tf.reduce_logsumexp(logits, axis=1) - tf.reduce_sum(labels * logits, axis=1)
        )

    @tf.function
    def column(direction):
        parts = tf.split(direction, sizes)
        tangents = [tf.reshape(p, s) for p, s in zip(parts, shapes, strict=True)]
        with tf.autodiff.ForwardAccumulator(variables, tangents) as forward:
            with tf.GradientTape() as tape:
                value = loss()
            gradients = tape.gradient(value, variables)
        return tf.concat([tf.reshape(forward.jvp(g), [-1]) for g in gradients], axis=0)

    return np.stack([column(row) for row in np.eye(sum(sizes))])


@pytest.fixture(scope="session")
def digits():
    """The spectrum of the demo's network on 300 images, and its exact eigenvalues."""
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x = (x / 16.0).astype(np.float32)
    model = demo.train_digits_model(x, y)
    x, y = x[:300], y[:300]
    hessian = HessianOperator(model, None, split((x, y), (120, 120, 60)))
    spectrum = estimate_spectrum(hessian, 90, 10, seed=1)
    dense = dense_float64_hessian(model.get_weights(), x, y)
    return spectrum, np.linalg.eigvalsh((dense + dense.T) / 2)


@pytest.mark.slow
def test_the_spectrum_of_a_network_is_that_of_its_dense_hessian(digits):
    spectrum, exact = digits
    assert len(exact) >= 4000
    assert demo.wasserstein_share(spectrum, exact) <= 1e-3


@pytest.mark.slow
def test_the_ten_largest_eigenvalues_of_a_network_are_exact_to_float32(digits):
    spectrum, exact = digits
    assert demo.largest_relative_error(spectrum, exact, 10) <= 1e-5
    ends = spectrum.extreme_eigenvalues
    assert abs(ends.largest - exact[-1]) <= ends.largest_bound
    assert np.abs(exact - ends.smallest).min() <= ends.smallest_bound


@pytest.mark.slow
def test_the_trace_and_the_share_below_zero_of_a_network_are_within_their_bounds(digits):
    spectrum, exact = digits
    assert abs(spectrum.trace - exact.sum()) <= 4 * spectrum.trace_standard_error
    assert spectrum.trace_standard_error <= 0.1 * exact.sum()
    lower, upper = spectrum.negative_mass_bounds
    assert lower <= np.mean(exact < 0) <= upper


@pytest.mark.slow
def test_the_band_covers_the_smoothed_density_of_the_network(digits):
    spectrum, exact = digits
    density = spectrum.density()
    kernel = np.exp(-0.5 * ((density.grid[:, None] - exact) / density.sigma) ** 2)
    truth = kernel.mean(axis=1) / (density.sigma * np.sqrt(2 * np.pi))
    seen = truth > 1e-6 * truth.max()
    slack = 1e-3 * truth  # products are float32
    inside = (density.lower - slack <= truth) & (truth <= density.upper + slack)
    assert inside[seen].mean() >= 0.85


def test_a_model_whose_state_cannot_be_stated_raises_at_the_first_step():
    class Lost(HessianOperator):
        def model_state(self):
            raise FloatingPointError("the loss is not finite")

    operator = Lost.from_function(lambda v: tf.reduce_sum(v**4), tf.Variable([1.0, 2.0, 3.0]))
    steps = []
    with pytest.raises(FloatingPointError, match="not finite"):
        estimate_spectrum(operator, order=3, num_draws=1, callback=steps.append)
    assert steps == []
