import pytest
import tensorflow as tf
from models import (
    NUM_EXAMPLES,
    attention,
    cnn,
    embedding,
    mlp,
    normals,
    relative_error,
    tf_variables,
    tokens,
)

from spectral_density.engines.tensorflow.reverse_mode import jacobian_products


@pytest.mark.parametrize(
    ("build", "shape"), [(mlp, (3,)), (cnn, (8, 8, 1)), (attention, (3, 2)), (embedding, (3,))]
)
def test_jacobian_products_are_those_of_forward_mode(build, shape):
    model = build("float64")
    variables = tf_variables(model)
    x = tokens() if build is embedding else normals(NUM_EXAMPLES, *shape)
    tangents = [tf.constant(normals(*v.shape, seed=5), v.dtype) for v in variables]
    with tf.GradientTape(persistent=True) as tape:
        z = model(x)
    ((found,),) = jacobian_products(tape, [z], variables, [tangents])
    with tf.autodiff.ForwardAccumulator(variables, tangents) as forward:
        z = model(x)
    assert relative_error(found.numpy(), forward.jvp(z).numpy()) <= 1e-14
