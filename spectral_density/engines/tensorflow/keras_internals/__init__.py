"""Private names of Keras, tf_keras and TensorFlow, each behind a function, and their patches.

The one package that uses them: `attributes` (of models, tensors, losses, datasets), `graphs` (what
a traced graph and TensorFlow's registries hold), `call_sites` (who made an operation) and `patches`
(what is replaced). A test for each says in which versions it was seen.

How a thread calls graphs is an option of its own (`graphs_as_traced`), restored when the context
ends.

What is replaced is replaced for the whole process, and restored when the context ends:

While a graph is traced or differentiated here (`patched_frameworks`; one thread is in it at a time,
others wait):

- TensorFlow's registry of gradients: the types of operations in `exact_gradients.EXACT`;
- `stop_gradient`, for the code of `tf.nn.moments` and of the fused batch normalization's gradient;
- `tf.cond`, for the code of `keras.ops` that stands in Keras's `numpy.py`;
- how TensorFlow calls what `tf.custom_gradient` wraps, for functions of `tf.recompute_grad`;
- `use_cudnn` of Keras's LSTM and GRU, and `_could_use_gpu_kernel` of tf_keras's: false;
- `unroll` of the recurrent layers of the model at hand, where their steps are few.

While layers' losses are kept (`CLEARED_LOSSES`): `_clear_losses` of Keras's and tf_keras's layers,
which calls the original.

Another thread that trains or traces at that time runs through the same replacements. Values stay
the framework's own; first derivatives are the same, or to rounding; a recurrent layer is slower on
a GPU; what is traced then stays as it was traced. Listeners of `CLEARED_LOSSES` hear of the layers
that are called in their own thread alone.
"""

from spectral_density.engines.tensorflow.keras_internals.attributes import (
    LayerCall,
    attention_axes,
    communication_timeout,
    graph_calls,
    inbound_calls,
    is_unordered,
    losses_held,
    mark_logits,
    marked_logits,
    mask_of,
    operations_of,
    penalty_functions,
    reshuffles,
    set_losses_held,
    set_mask,
    stages_before,
)
from spectral_density.engines.tensorflow.keras_internals.call_sites import (
    calls,
    is_custom_gradient_of_ctc,
    is_straight_through,
    raised_in_gradient_function,
    user_stopped_gradient,
)
from spectral_density.engines.tensorflow.keras_internals.graphs import (
    AUTOGRAPH_ERROR,
    Derivative,
    attributes_of,
    body_of,
    captured,
    clear_colocation,
    derivative_of,
    gradient_type,
    graphs_as_traced,
    handles_of,
    has_custom_gradient,
    linear,
    made_again,
    registered_gradient,
    runs_with,
    unchanged_by_autograph,
)
from spectral_density.engines.tensorflow.keras_internals.patches import (
    CLEARED_LOSSES,
    patched_frameworks,
)

__all__ = [
    "AUTOGRAPH_ERROR",
    "CLEARED_LOSSES",
    "Derivative",
    "LayerCall",
    "attention_axes",
    "attributes_of",
    "body_of",
    "calls",
    "captured",
    "clear_colocation",
    "communication_timeout",
    "derivative_of",
    "gradient_type",
    "graph_calls",
    "graphs_as_traced",
    "handles_of",
    "has_custom_gradient",
    "inbound_calls",
    "is_custom_gradient_of_ctc",
    "is_straight_through",
    "is_unordered",
    "linear",
    "losses_held",
    "made_again",
    "mark_logits",
    "marked_logits",
    "mask_of",
    "operations_of",
    "patched_frameworks",
    "penalty_functions",
    "raised_in_gradient_function",
    "registered_gradient",
    "reshuffles",
    "runs_with",
    "set_losses_held",
    "set_mask",
    "stages_before",
    "unchanged_by_autograph",
    "user_stopped_gradient",
]
