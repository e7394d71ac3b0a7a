"""Catalogue of the differentiable operations of TensorFlow and Keras, each at a generic point."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

# The modules whose every public function is in the catalogue or among what is left out.
MODULES = {
    "tf.math": tf.math,
    "tf.math.special": tf.math.special,
    "tf.nn": tf.nn,
    "tf.image": tf.image,
    "tf.linalg": tf.linalg,
    "tf.signal": tf.signal,
    "tf.sparse": tf.sparse,
    "tf.ragged": tf.ragged,
    "keras.ops": ops,
    "keras.ops.image": ops.image,
}


@dataclass(frozen=True)
class Operation:
    """A function of tensors, and the point at which its derivatives are compared."""

    name: str  # as a user writes it, with a variant after a colon
    function: Callable[..., Any]  # of one tensor for each array of the point
    point: tuple[np.ndarray, ...]  # float64
    tolerance: float = 1e-6  # relative; more for operations that compute in float32

    @property
    def is_single(self) -> bool:
        """Whether it computes in float32."""
        return self.tolerance > 1e-4

    def value(self, *tensors: tf.Tensor) -> tf.Tensor:
        """Return a generic smooth scalar of everything that the operation returns."""
        parts = []
        for output in tf.nest.flatten(self.function(*tensors), expand_composites=True):
            output = tf.convert_to_tensor(output)
            if output.dtype.is_complex:
                parts += [tf.math.real(output), tf.math.imag(output)]
            elif output.dtype.is_floating:
                parts.append(output)
        flat = tf.concat([tf.reshape(tf.cast(part, tf.float64), [-1]) for part in parts], 0)
        weights = tf.cast(tf.range(tf.size(flat)), tf.float64)
        return tf.reduce_sum((1 + 0.3 * tf.sin(1 + weights)) * (flat + flat**2 / 2))


CATALOGUE: dict[str, Operation] = {}


def find(name: str) -> Any:
    """Return what a qualified name stands for; what follows a colon is a variant."""
    found: Any = {"tf": tf, "keras": keras}[name.split(".")[0]]
    for part in name.split(":")[0].split(".")[1:]:
        found = getattr(found, part)
    return found


def missing() -> list[str]:
    """Return the public functions that are neither in the catalogue nor left out."""
    known = {id(find(name)) for name in CATALOGUE}
    left_out = {name for names in LEFT_OUT.values() for name in names.split()}
    return [
        f"{prefix}.{name}"
        for prefix, module in MODULES.items()
        for name, value in inspect.getmembers(module, callable)
        if not name.startswith("_")
        and id(value) not in known
        and name not in left_out
        and f"{prefix}.{name}" not in LEFT_OUT_HERE
    ]


# Points ------------------------------------------------------------------------------------------


def real(*shape: int) -> np.ndarray:
    """Return numbers of either sign, none near zero, no two equal."""
    size = int(np.prod(shape))
    rng = np.random.default_rng(size)
    values = np.linspace(0.25, 1.35, size) * rng.choice([-1.0, 1.0], size)
    return rng.permutation(values).reshape(shape)


def within(low: float, high: float, *shape: int) -> np.ndarray:
    """Return numbers between two bounds, no two equal."""
    size = int(np.prod(shape))
    values = np.linspace(low, high, 2 * size + 1)[1::2]
    return np.random.default_rng(size).permutation(values).reshape(shape)


def add(names: str, function: Callable[..., Any] | None, *point: np.ndarray, **options: Any):
    """Put operations into the catalogue; without a function, they are called with the point."""
    for name in names.split():
        chosen = find(name) if function is None else partial(function, find(name))
        CATALOGUE[name] = Operation(name, chosen, point, **options)


def add_all(prefix: str, names: str, function: Callable[..., Any] | None, *point: np.ndarray):
    """Put several operations of a module into the catalogue."""
    add(" ".join(f"{prefix}.{name}" for name in names.split()), function, *point)


def positive_definite(v: tf.Tensor) -> tf.Tensor:
    """Return a well-conditioned symmetric matrix that depends on a square one."""
    return tf.matmul(v, v, transpose_b=True) + tf.eye(int(v.shape[-1]), dtype=v.dtype)


def single(v: tf.Tensor) -> tf.Tensor:
    """Return float32, for operations that know nothing else."""
    return tf.cast(v, tf.float32)


def symmetric(v: tf.Tensor) -> tf.Tensor:
    """Return a symmetric matrix of distinct eigenvalues that depends on a square one."""
    spread = tf.constant(np.diag(np.arange(1.0, 1 + int(v.shape[-1]))), v.dtype)
    return (v + tf.linalg.matrix_transpose(v)) / 2 + spread


def as_complex(v: tf.Tensor) -> tf.Tensor:
    """Return complex numbers from their real and imaginary parts, along the first axis."""
    return tf.complex(v[0], v[1])


SINGLE: dict[str, Any] = {"tolerance": 1e-2}  # of operations that compute in float32
SEGMENTS = [0, 0, 1, 2]
SQUARE = real(3, 3)

# tf.math and what tf.nn and keras.ops call the same ----------------------------------------------

add_all(
    "tf.math",
    "abs asinh atan cos cosh erf erfc exp expm1 log_sigmoid log_softmax negative sigmoid sin sinh "
    "softmax softplus softsign square tan tanh l2_normalize reduce_euclidean_norm "
    "reduce_logsumexp reduce_max reduce_mean reduce_min reduce_prod reduce_std reduce_sum "
    "reduce_variance cumprod cumsum cumulative_logsumexp real conj bessel_i0 bessel_i0e bessel_i1 "
    "bessel_i1e",
    None,
    real(4),
)
add_all("tf.math", "acos asin atanh erfinv", None, within(-0.8, 0.8, 4))
add_all(
    "tf.math",
    "digamma lgamma log log1p reciprocal reciprocal_no_nan rsqrt sqrt lbeta",
    None,
    within(0.4, 1.9, 4),
)
add_all("tf.math", "erfcinv ndtri", None, within(0.1, 0.9, 4))
add("tf.math.acosh", None, within(1.2, 3, 4))
add_all(
    "tf.math",
    "add subtract multiply divide truediv divide_no_nan multiply_no_nan squared_difference maximum "
    "minimum atan2 floormod mod pow xdivy xlogy xlog1py nextafter scalar_mul",
    lambda f, v: f(v[0], v[1]),
    within(0.4, 1.7, 2, 2),
)
CATALOGUE["tf.math.scalar_mul"] = Operation(
    "tf.math.scalar_mul", lambda v: tf.math.scalar_mul(v[0], v), (real(3),)
)
add("tf.math.igamma tf.math.igammac", lambda f, x: f(np.array([0.7, 1.3]), x), within(0.5, 1.9, 2))
add(
    "tf.math.igamma:shape tf.math.igammac:shape",
    lambda f, a: f(a, np.array([0.7, 1.3])),
    within(0.5, 1.9, 2),
)
add("tf.math.zeta", lambda f, q: f(np.array([2.5, 3.5]), q), within(0.5, 1.9, 2))
add("tf.math.zeta:exponent", lambda f, x: f(x, np.array([0.8, 1.3])), within(2.5, 3.9, 2))
add("tf.math.polygamma", lambda f, x: f(np.array([1.0, 2.0]), x), within(0.5, 1.9, 2))
add(
    "tf.math.betainc",
    lambda f, x: f(np.array([0.7, 2.0]), np.array([1.3, 0.8]), x),
    within(0.2, 0.8, 2),
)
add(
    "tf.math.betainc:shape",
    lambda f, a: f(a, np.array([1.3, 0.8]), np.array([0.3, 0.6])),
    within(0.5, 1.9, 2),
)
add("tf.math.accumulate_n tf.math.add_n", lambda f, v: f([v[0], v[1] ** 2]), real(2, 2))
add("tf.math.angle tf.math.imag", lambda f, v: f(as_complex(v)), real(2, 2))
add(
    "tf.math.abs:complex tf.math.exp:complex tf.math.log:complex tf.math.sqrt:complex "
    "tf.math.square:complex tf.math.reciprocal:complex tf.math.tanh:complex tf.math.conj:complex",
    lambda f, v: f(as_complex(v)),
    real(2, 2),
)
add("tf.math.polyval", lambda f, v: f([v[0], v[1], v[2]], v[3]), real(4))
add("tf.math.top_k", lambda f, v: f(v, 2)[0], real(4))
add("tf.math.approx_max_k", lambda f, v: f(single(v), 2)[0], real(4), **SINGLE)
add("tf.math.bincount", lambda f, v: f([0, 1, 1], weights=v, dtype=tf.float64), real(3))
add(
    "tf.math.confusion_matrix",
    lambda f, v: f([0, 1, 1], [0, 1, 0], weights=v, dtype=tf.float64),
    real(3),
)
add_all(
    "tf.math",
    "segment_max segment_mean segment_min segment_prod segment_sum",
    lambda f, v: f(v, SEGMENTS),
    real(4, 2),
)
add_all(
    "tf.math",
    "unsorted_segment_max unsorted_segment_mean unsorted_segment_min unsorted_segment_prod "
    "unsorted_segment_sqrt_n unsorted_segment_sum",
    lambda f, v: f(v, [0, 2, 0, 1], 3),
    real(4, 2),
)
add_all(
    "tf.math.special",
    "bessel_j0 bessel_j1 bessel_k0 bessel_k0e bessel_k1 bessel_k1e bessel_y0 bessel_y1 dawsn "
    "expint fresnel_cos fresnel_sin spence",
    None,
    within(0.4, 1.9, 3),
)

# tf.nn -------------------------------------------------------------------------------------------

add_all("tf.nn", "crelu elu gelu leaky_relu relu relu6 selu silu l2_loss", None, real(4))
add("tf.nn.gelu:approximate", lambda f, v: f(v, approximate=True), real(4))
add("tf.nn.silu:beta", lambda f, v, beta: f(v, beta[0]), real(3), real(1))
add("tf.nn.compute_average_loss", None, real(4))
add("tf.nn.scale_regularization_loss", lambda f, v: f(tf.reduce_sum(v**2)), real(2))

IMAGE, FILTER = real(1, 3, 3, 1), real(2, 2, 1, 1)
add("tf.nn.conv1d", lambda f, x, k: f(x, k, 1, "VALID"), real(1, 4, 1), real(2, 1, 2))
add(
    "tf.nn.conv1d_transpose",
    lambda f, x, k: f(x, k, [1, 4, 1], 1, "VALID"),
    real(1, 3, 1),
    real(2, 1, 1),
)
add("tf.nn.conv2d", lambda f, x, k: f(x, k, 1, "VALID"), IMAGE, FILTER)
add("tf.nn.conv2d:strides", lambda f, x, k: f(x, k, 2, "SAME"), IMAGE, FILTER)
add("tf.nn.conv2d:dilations", lambda f, x, k: f(x, k, 1, "VALID", dilations=2), IMAGE, FILTER)
add(
    "tf.nn.conv2d:dilations-and-strides",
    lambda f, x, k: f(x, k, 2, "SAME", dilations=[1, 2]),
    real(1, 5, 4, 2),
    real(2, 3, 2, 1),
)
add(
    "tf.nn.conv2d:dilations-and-paddings",
    lambda f, x, k: f(x, k, 1, [[0, 0], [1, 2], [0, 1], [0, 0]], dilations=[2, 1]),
    IMAGE,
    FILTER,
)
add(
    "tf.nn.conv1d:dilations",
    lambda f, x, k: f(x, k, 1, "SAME", dilations=2),
    real(1, 5, 1),
    real(2, 1, 1),
)
add("tf.nn.convolution", lambda f, x, k: f(x, k, padding="VALID"), IMAGE, FILTER)
add("tf.nn.atrous_conv2d", lambda f, x, k: f(x, k, 2, "SAME"), IMAGE, FILTER)
add(
    "tf.nn.atrous_conv2d_transpose",
    lambda f, x, k: f(x, k, [1, 5, 5, 1], 2, "VALID"),
    IMAGE,
    FILTER,
)
add(
    "tf.nn.conv2d_transpose tf.nn.conv_transpose",
    lambda f, x, k: f(x, k, [1, 3, 3, 1], 1, "VALID"),
    real(1, 2, 2, 1),
    FILTER,
)
VOLUME, KERNEL_3D = real(1, 2, 2, 3, 1), real(1, 2, 2, 1, 1)
add("tf.nn.conv3d", lambda f, x, k: f(x, k, [1] * 5, "VALID"), VOLUME, KERNEL_3D)
add(
    "tf.nn.conv3d_transpose",
    lambda f, x, k: f(x, k, [1, 2, 2, 2, 1], [1] * 5, "VALID"),
    real(1, 2, 1, 1, 1),
    KERNEL_3D,
)
add(
    "tf.nn.depthwise_conv2d",
    lambda f, x, k: f(x, k, [1] * 4, "VALID"),
    real(1, 2, 3, 2),
    real(2, 2, 2, 1),
)
add(
    "tf.nn.depthwise_conv2d_backprop_filter",
    lambda f, x, g: f(x, (2, 2, 1, 1), g, [1] * 4, "VALID"),
    IMAGE,
    real(1, 2, 2, 1),
)
add(
    "tf.nn.depthwise_conv2d_backprop_input",
    lambda f, k, g: f((1, 3, 3, 1), k, g, [1] * 4, "VALID"),
    FILTER,
    real(1, 2, 2, 1),
)
add(
    "tf.nn.separable_conv2d",
    lambda f, x, k, p: f(x, k, p, [1] * 4, "VALID"),
    IMAGE,
    FILTER,
    real(1, 1, 1, 2),
)
add(
    "tf.nn.dilation2d tf.nn.erosion2d",
    lambda f, x, k: f(x, k, [1] * 4, "VALID", "NHWC", [1] * 4),
    IMAGE,
    real(2, 2, 1),
)
add(
    "tf.nn.with_space_to_batch",
    lambda f, x: f(x, [2], "SAME", lambda t, _, __: t**2, [1], [1]),
    IMAGE,
)
add(
    "tf.nn.avg_pool tf.nn.avg_pool2d tf.nn.max_pool tf.nn.max_pool2d",
    lambda f, x: f(x, 2, 1, "VALID"),
    IMAGE,
)
add("tf.nn.avg_pool2d:same tf.nn.max_pool2d:same", lambda f, x: f(x, 3, 1, "SAME"), IMAGE)
add("tf.nn.avg_pool1d tf.nn.max_pool1d", lambda f, x: f(x, 2, 1, "VALID"), real(1, 4, 2))
add("tf.nn.max_pool1d:same", lambda f, x: f(x, 2, 1, "SAME"), real(1, 4, 2))
add("tf.nn.avg_pool3d tf.nn.max_pool3d", lambda f, x: f(single(x), 2, 1, "VALID"), VOLUME, **SINGLE)
add("tf.nn.max_pool3d:same", lambda f, x: f(single(x), 2, 1, "SAME"), VOLUME, **SINGLE)
add("tf.nn.max_pool_with_argmax", lambda f, x: f(x, 2, 1, "VALID")[0], IMAGE)
add("tf.nn.max_pool_with_argmax:same", lambda f, x: f(x, 2, 1, "SAME")[0], IMAGE)
add("tf.nn.pool", lambda f, x: f(x, [2, 2], "AVG"), IMAGE)
add("tf.nn.pool:max", lambda f, x: f(x, [2, 2], "MAX"), IMAGE)
add(
    "tf.nn.fractional_avg_pool tf.nn.fractional_max_pool",
    lambda f, x: f(x, [1, 1.4, 1.4, 1], seed=1)[0],
    real(1, 4, 4, 1),
)
add("tf.nn.local_response_normalization", lambda f, x: f(single(x)), real(1, 1, 2, 3), **SINGLE)
add("tf.nn.bias_add", lambda f, x, b: f(x, b), real(2, 2), real(2))
add(
    "tf.nn.batch_normalization",
    lambda f, x, m, v, o, s: f(x, m, v, o, s, 1e-3),
    real(2, 2),
    real(2),
    within(0.5, 1.5, 2),
    real(2),
    real(2),
)
add(
    "tf.nn.batch_norm_with_global_normalization",
    lambda f, x, m, v, b, g: f(x, m, v, b, g, 1e-3, True),
    real(1, 1, 2, 2),
    real(2),
    within(0.5, 1.5, 2),
    real(2),
    real(2),
)
add("tf.nn.moments", lambda f, x: f(x, [0]), real(3, 2))
add("tf.nn.weighted_moments", lambda f, x, w: f(x, [0], w), real(3, 2), within(0.5, 1.5, 3, 2))
add(
    "tf.nn.normalize_moments",
    lambda f, m, v: f(tf.constant(3.0, tf.float64), m, v, tf.constant(0.1, tf.float64)),
    real(2),
    real(2),
)
add("tf.nn.sufficient_statistics", lambda f, x: f(x, [0])[1:3], real(3, 2))
add("tf.nn.depth_to_space", lambda f, x: f(x, 2), real(1, 1, 1, 4))
add("tf.nn.space_to_depth", lambda f, x: f(x, 2), real(1, 2, 2, 1))
add("tf.nn.space_to_batch", lambda f, x: f(x, [2, 2], [[0, 0], [0, 0]]), real(1, 2, 2, 1))
add("tf.nn.embedding_lookup", lambda f, t: f(t, [0, 2, 2]), real(3, 2))
RAGGED_IDS = tf.sparse.SparseTensor(
    [[0, 0], [0, 1], [1, 0]], tf.constant([0, 2, 2], tf.int64), [2, 2]
)
for combiner in ("sum", "mean", "sqrtn"):
    add(
        f"tf.nn.embedding_lookup_sparse:{combiner} tf.nn.safe_embedding_lookup_sparse:{combiner}",
        lambda f, t, c=combiner: f(t, RAGGED_IDS, None, combiner=c),
        real(3, 2),
    )
ISOTONIC = np.array([1.1, 0.3, 0.9, -0.5, -0.2, -0.9])
add("tf.nn.isotonic_regression", lambda f, v: f(v)[0], ISOTONIC)
add("tf.nn.isotonic_regression:matrix", lambda f, v: f(v)[0], ISOTONIC.reshape(2, 3))
add("tf.nn.isotonic_regression:rank-three", lambda f, v: f(v, axis=1)[0], ISOTONIC.reshape(1, 3, 2))
add(
    "tf.nn.log_poisson_loss",
    lambda f, v: f(tf.constant([1.0, 2.0], v.dtype), v, compute_full_loss=True),
    real(2),
)
add("tf.nn.sigmoid_cross_entropy_with_logits", lambda f, v: f(np.array([0.3, 1.0]), v), real(2))
add("tf.nn.sigmoid_cross_entropy_with_logits:labels", lambda f, y, v: f(y, v), real(2), real(2))
add("tf.nn.softmax_cross_entropy_with_logits", lambda f, v: f([[0.3, 0.7, 0.0]], v), real(1, 3))
add(
    "tf.nn.softmax_cross_entropy_with_logits:labels",
    lambda f, y, v: f(tf.nn.softmax(y), v),
    within(0.1, 0.9, 1, 3),
    real(1, 3),
)
# TensorFlow's first derivative takes labels for probabilities.
add(
    "tf.nn.softmax_cross_entropy_with_logits:weights",
    lambda f, y, v: f(y, v),
    within(0.1, 0.9, 1, 3),
    real(1, 3),
)
add("tf.nn.sparse_softmax_cross_entropy_with_logits", lambda f, v: f([1], v), real(1, 3))
add(
    "tf.nn.weighted_cross_entropy_with_logits",
    lambda f, v: f(tf.constant([0.3, 1.0], v.dtype), v, tf.constant([2.0, 1.5], v.dtype)),
    real(2),
)
SAMPLED = (
    tf.constant([0, 2], tf.int64),
    tf.constant([[0.3]], tf.float64),
    tf.constant([0.4, 0.5], tf.float64),
)
add(
    "tf.nn.nce_loss tf.nn.sampled_softmax_loss",
    lambda f, w, b, x: f(w, b, tf.constant([[1]], tf.int64), x, 2, 3, sampled_values=SAMPLED),
    real(3, 2),
    real(3),
    real(1, 2),
)
add(
    "tf.nn.ctc_loss",
    lambda f, v: f(tf.constant([[1, 2]]), single(v), [2], [4], False, blank_index=0),
    real(1, 4, 3),
    **SINGLE,
)

# tf.image ----------------------------------------------------------------------------------------

COLOUR = within(0.15, 0.85, 1, 2, 2, 3)
PICTURE = within(0.15, 0.85, 1, 3, 3, 1)
add_all(
    "tf.image",
    "flip_left_right flip_up_down image_gradients rot90 sobel_edges "
    "total_variation transpose grayscale_to_rgb",
    None,
    PICTURE,
)
add_all(
    "tf.image", "hsv_to_rgb rgb_to_hsv rgb_to_yiq rgb_to_yuv yiq_to_rgb yuv_to_rgb", None, COLOUR
)
add(
    "tf.image.adjust_brightness tf.image.adjust_contrast tf.image.adjust_gamma",
    lambda f, x: f(x, 0.7),
    PICTURE,
    **SINGLE,
)
add("tf.image.adjust_hue tf.image.adjust_saturation", lambda f, x: f(x, 0.7), COLOUR, **SINGLE)
add("tf.image.rgb_to_grayscale", None, COLOUR, **SINGLE)
add("tf.image.per_image_standardization", None, PICTURE, **SINGLE)
add("tf.image.central_crop", lambda f, x: f(x, 0.4), PICTURE)
add("tf.image.convert_image_dtype", lambda f, x: f(x, tf.float32), PICTURE, **SINGLE)
add(
    "tf.image.crop_and_resize",
    lambda f, x: f(x, [[0.1, 0.1, 0.8, 0.9]], [0], [2, 2]),
    PICTURE,
    **SINGLE,
)
add(
    "tf.image.crop_and_resize:boxes",
    lambda f, x, b: f(x, single(b), [0], [2, 2]),
    PICTURE,
    within(0.1, 0.9, 1, 4),
    **SINGLE,
)
add("tf.image.crop_to_bounding_box", lambda f, x: f(x, 1, 0, 2, 2), PICTURE)
add("tf.image.pad_to_bounding_box", lambda f, x: f(x, 1, 0, 4, 4), PICTURE)
add(
    "tf.image.draw_bounding_boxes",
    lambda f, x: f(single(x), [[[0.1, 0.1, 0.8, 0.9]]], [[1.0]]),
    PICTURE,
    **SINGLE,
)
add(
    "tf.image.extract_glimpse",
    lambda f, x: f(single(x), [2, 2], [[0.0, 0.0]], noise="zero"),
    PICTURE,
    **SINGLE,
)
add("tf.image.extract_patches", lambda f, x: f(x, [1, 2, 2, 1], [1] * 4, [1] * 4, "VALID"), PICTURE)
add("tf.image.psnr", lambda f, x: f(x, PICTURE[..., ::-1, :] / 2, 1.0), PICTURE, **SINGLE)
for method in (
    "area",
    "bicubic",
    "bilinear",
    "gaussian",
    "lanczos3",
    "lanczos5",
    "mitchellcubic",
    "nearest",
):
    add(
        f"tf.image.resize:{method}",
        lambda f, x, m=method: f(single(x), [4, 5], m),
        PICTURE,
        **SINGLE,
    )
    add(
        f"tf.image.resize:{method}-smaller",
        lambda f, x, m=method: f(single(x), [2, 2], m, antialias=True),
        PICTURE,
        **SINGLE,
    )
add(
    "tf.image.resize_with_crop_or_pad tf.image.resize_with_pad",
    lambda f, x: f(x, 2, 4),
    PICTURE,
    **SINGLE,
)
add("tf.image.ssim", lambda f, x: f(x, PICTURE[:, ::-1] / 2, 1.0, filter_size=2), PICTURE, **SINGLE)
add(
    "tf.image.ssim_multiscale",
    lambda f, x: f(x, x**2 * 0.9 + 0.05, 1.0, power_factors=(0.4, 0.6), filter_size=2),
    within(0.15, 0.85, 1, 4, 4, 1),
    **SINGLE,
)
add("tf.image.stateless_random_brightness", lambda f, x: f(x, 0.2, (1, 2)), PICTURE, **SINGLE)
add("tf.image.stateless_random_contrast", lambda f, x: f(x, 0.2, 0.7, (1, 2)), PICTURE, **SINGLE)
add("tf.image.stateless_random_hue", lambda f, x: f(x, 0.2, (1, 2)), COLOUR, **SINGLE)
add("tf.image.stateless_random_saturation", lambda f, x: f(x, 0.2, 0.7, (1, 2)), COLOUR, **SINGLE)
add("tf.image.stateless_random_crop", lambda f, x: f(x, (1, 2, 2, 1), (1, 2)), PICTURE)
add(
    "tf.image.stateless_random_flip_left_right tf.image.stateless_random_flip_up_down",
    lambda f, x: f(x, (1, 2)),
    PICTURE,
)

# tf.linalg ---------------------------------------------------------------------------------------

add_all(
    "tf.linalg",
    "adjoint det diag diag_part expm global_norm inv logdet matrix_transpose norm normalize "
    "pinv slogdet tensor_diag_part trace qr",
    None,
    real(2, 2) + np.eye(2) * 2,
)
add("tf.linalg.logdet", lambda f, v: f(positive_definite(v)), real(2, 2))
add("tf.linalg.global_norm", lambda f, v: f([v[0], v[1] ** 2]), real(2, 2))
add("tf.linalg.norm:1 tf.linalg.norm:inf", None, real(4))
CATALOGUE["tf.linalg.norm:1"] = Operation(
    "tf.linalg.norm:1", partial(tf.linalg.norm, ord=1), (real(4),)
)
CATALOGUE["tf.linalg.norm:inf"] = Operation(
    "tf.linalg.norm:inf", partial(tf.linalg.norm, ord=np.inf), (real(4),)
)
add("tf.linalg.tensor_diag", None, real(3))
add("tf.linalg.band_part", lambda f, v: f(v, 1, 0), SQUARE)
add("tf.linalg.banded_triangular_solve", lambda f, b, r: f(b, r), real(2, 3) + 2, real(3, 1))
add("tf.linalg.cholesky tf.linalg.sqrtm", lambda f, v: f(positive_definite(v)), SQUARE)
add(
    "tf.linalg.cholesky_solve",
    lambda f, v, b: f(tf.linalg.band_part(v, -1, 0), b),
    real(2, 2) + 2 * np.eye(2),
    real(2, 1),
)
add("tf.linalg.cross tf.linalg.matmul:vectors", lambda f, v: f(v[0], v[1]), real(2, 3))
CATALOGUE["tf.linalg.matmul:vectors"] = Operation(
    "tf.linalg.matmul:vectors", lambda v: tf.linalg.matmul(v, v, transpose_b=True), (real(2, 3),)
)
add("tf.linalg.matmul", None, real(2, 2), real(2, 2))
add("tf.linalg.matvec", None, real(2, 2), real(2))
add("tf.linalg.einsum", lambda f, a, b: f("ij,kj->ik", a, b), real(2, 2), real(2, 2))
add("tf.linalg.tensordot", lambda f, a, b: f(a, b, 1), real(2, 2), real(2, 2))
add("tf.linalg.eig", lambda f, v: (lambda e, q: (e, tf.abs(q)))(*f(symmetric(v) + v / 3)), SQUARE)
add("tf.linalg.eigvals", lambda f, v: f(symmetric(v) + v / 3), SQUARE)
add("tf.linalg.eigh tf.linalg.eigvalsh", lambda f, v: f(symmetric(v)), SQUARE)
add("tf.linalg.eigh_tridiagonal", lambda f, a, b: f(a, b), real(3) + np.arange(0.0, 6, 2), real(2))
add("tf.linalg.logm", lambda f, v: f(tf.cast(positive_definite(v), tf.complex128)), real(2, 2))
add("tf.linalg.lstsq", lambda f, a, b: f(a, b), real(3, 2), real(3, 1))
add(
    "tf.linalg.lstsq:regularized",
    lambda f, a, b: f(a, b, l2_regularizer=0.3),
    real(3, 2),
    real(3, 1),
)
add("tf.linalg.lstsq:orthogonal", lambda f, a, b: f(a, b, fast=False), real(3, 2), real(3, 1))
add("tf.linalg.lu", lambda f, v: f(v)[0], real(2, 2) + 2 * np.eye(2))
add(
    "tf.linalg.lu_matrix_inverse tf.linalg.lu_reconstruct",
    lambda f, v: f(*tf.linalg.lu(v)),
    real(2, 2) + 2 * np.eye(2),
)
add(
    "tf.linalg.lu_solve",
    lambda f, v, b: f(*tf.linalg.lu(v), b),
    real(2, 2) + 2 * np.eye(2),
    real(2, 1),
)
add("tf.linalg.set_diag", lambda f, v, d: f(v, d), real(2, 2), real(2))
add("tf.linalg.solve", lambda f, v, b: f(v, b), real(2, 2) + 2 * np.eye(2), real(2, 1))
add("tf.linalg.triangular_solve", lambda f, v, b: f(v, b), real(2, 2) + 2 * np.eye(2), real(2, 1))
add("tf.linalg.svd", lambda f, v: f(v, compute_uv=False), real(2, 2) + np.diag([1, 3]))
add("tf.linalg.svd:vectors", lambda f, v: f(v), real(2, 2) + np.diag([1, 3]))
add("tf.linalg.pinv:tall", None, real(3, 2) + np.eye(3, 2))
add("tf.linalg.qr:tall", None, real(3, 2) + np.eye(3, 2))
add(
    "tf.linalg.tridiagonal_matmul tf.linalg.tridiagonal_solve",
    lambda f, d, b: f(d, b, diagonals_format="compact"),
    real(3, 3) + np.array([[0], [3], [0]]),
    real(3, 1),
)


TALL = real(3, 2) + np.array([[0, 0], [2, 0], [0, 2]])


def solved(build: Callable[[type, tf.Tensor], Any], linear: type, v: tf.Tensor) -> Any:
    """Return the matrix of a `LinearOperator` and its solution of a system."""
    operator = build(linear, v)
    size = int(operator.shape[-1])
    right = tf.constant(np.linspace(1, 2, size)[:, np.newaxis], operator.dtype)
    return operator.to_dense(), operator.solve(right)


for kind, build, point in (
    ("Adjoint", lambda L, v: L(tf.linalg.LinearOperatorFullMatrix(v)), real(2, 2) + 2 * np.eye(2)),
    (
        "BlockDiag",
        lambda L, v: L(
            [tf.linalg.LinearOperatorDiag(v[0]), tf.linalg.LinearOperatorFullMatrix(v[1:])]
        ),
        TALL,
    ),
    (
        "BlockLowerTriangular",
        lambda L, v: L(
            [
                [tf.linalg.LinearOperatorDiag(v[0])],
                [
                    tf.linalg.LinearOperatorFullMatrix(v[1:]),
                    tf.linalg.LinearOperatorDiag(v[0] ** 2),
                ],
            ]
        ),
        real(3, 2),
    ),
    (
        "Circulant",
        lambda L, v: L(tf.complex(v[0], v[1]), input_output_dtype=tf.complex128),
        real(2, 3),
    ),
    (
        "Circulant2D",
        lambda L, v: L(tf.complex(v[0], v[1]), input_output_dtype=tf.complex128),
        real(2, 2, 2),
    ),
    (
        "Circulant3D",
        lambda L, v: L(tf.complex(v[0], v[1]), input_output_dtype=tf.complex128),
        real(2, 1, 2, 2),
    ),
    (
        "Composition",
        lambda L, v: L(
            [tf.linalg.LinearOperatorDiag(v[0]), tf.linalg.LinearOperatorFullMatrix(v[1:])]
        ),
        TALL,
    ),
    ("Diag", lambda L, v: L(v), real(3)),
    ("FullMatrix", lambda L, v: L(v), real(2, 2) + 2 * np.eye(2)),
    ("Householder", lambda L, v: L(v), real(3)),
    (
        "Inversion",
        lambda L, v: L(tf.linalg.LinearOperatorFullMatrix(v)),
        real(2, 2) + 2 * np.eye(2),
    ),
    (
        "Kronecker",
        lambda L, v: L(
            [tf.linalg.LinearOperatorDiag(v[0]), tf.linalg.LinearOperatorFullMatrix(v[1:])]
        ),
        TALL,
    ),
    (
        "LowRankUpdate",
        lambda L, v: L(
            tf.linalg.LinearOperatorDiag(v[0] ** 2),
            v[1][:, None],
            is_positive_definite=True,
            is_self_adjoint=True,
        ),
        real(2, 3),
    ),
    ("LowerTriangular", lambda L, v: L(v), real(2, 2) + 2 * np.eye(2)),
    ("ScaledIdentity", lambda L, v: L(2, v[0]), real(1)),
    ("Toeplitz", lambda L, v: L(v, tf.concat([v[:1], v[1:] ** 2], 0)), np.array([3.2, 0.6, -0.9])),
    (
        "Tridiag",
        lambda L, v: L(v, diagonals_format="compact"),
        real(3, 3) + np.array([[0], [3], [0]]),
    ),
):
    add(f"tf.linalg.LinearOperator{kind}", partial(solved, build), point)

# tf.signal ---------------------------------------------------------------------------------------

add("tf.signal.dct:1 tf.signal.dct:2 tf.signal.dct:3 tf.signal.dct:4", None, real(4))
add("tf.signal.idct:1 tf.signal.idct:2 tf.signal.idct:3 tf.signal.idct:4", None, real(4))
for kind in (1, 2, 3, 4):
    for name in ("dct", "idct"):
        CATALOGUE[f"tf.signal.{name}:{kind}"] = Operation(
            f"tf.signal.{name}:{kind}", partial(getattr(tf.signal, name), type=kind), (real(4),)
        )
add(
    "tf.signal.fft tf.signal.ifft tf.signal.fftshift tf.signal.ifftshift",
    lambda f, v: f(as_complex(v)),
    real(2, 4),
)
add("tf.signal.fft2d tf.signal.ifft2d", lambda f, v: f(as_complex(v)), real(2, 2, 2))
add("tf.signal.fft3d tf.signal.ifft3d", lambda f, v: f(as_complex(v)), real(2, 1, 2, 2))
add("tf.signal.rfft", None, real(4))
add("tf.signal.rfft2d", None, real(2, 4))
add("tf.signal.rfft3d", None, real(1, 2, 4))
add("tf.signal.irfft", lambda f, v: f(as_complex(v)), real(2, 3))
add("tf.signal.irfft2d", lambda f, v: f(as_complex(v)), real(2, 2, 3))
add("tf.signal.irfft3d", lambda f, v: f(as_complex(v)), real(2, 1, 2, 3))
add("tf.signal.frame", lambda f, v: f(v, 3, 2), real(7))
add("tf.signal.overlap_and_add", lambda f, v: f(v, 2), real(2, 3))
add("tf.signal.mdct", lambda f, v: f(v, 4), real(8))
add("tf.signal.inverse_mdct", lambda f, v: f(v), real(2, 4))
add("tf.signal.stft", lambda f, v: f(v, 4, 2), real(8))
add("tf.signal.inverse_stft", lambda f, v: f(as_complex(v), 4, 2), real(2, 2, 3))
add("tf.signal.mfccs_from_log_mel_spectrograms", None, real(2, 4))
add(
    "tf.signal.kaiser_window tf.signal.kaiser_bessel_derived_window",
    lambda f, b: f(4, b[0], tf.float64),
    within(1, 4, 1),
)

# tf.sparse and tf.ragged -------------------------------------------------------------------------

PLACES = [[0, 0], [0, 2], [1, 1]]


def sparse(v: tf.Tensor) -> tf.sparse.SparseTensor:
    """Return a sparse (2, 3) matrix with three given values."""
    return tf.sparse.SparseTensor(PLACES, v, [2, 3])


def shifted(v: tf.Tensor) -> tf.sparse.SparseTensor:
    """Return a sparse (2, 3) matrix that shares two of three places with `sparse`."""
    return tf.sparse.SparseTensor([[0, 1], [0, 2], [1, 1]], v**2 - v / 2, [2, 3])


def ragged(v: tf.Tensor) -> tf.RaggedTensor:
    """Return four values as rows of one and three."""
    return tf.RaggedTensor.from_row_lengths(v, [1, 3])


add_all(
    "tf.sparse",
    "reduce_sum reduce_max reorder softmax to_dense transpose",
    lambda f, v: f(sparse(v)),
    real(3),
)
add("tf.sparse.SparseTensor", lambda f, v: tf.sparse.to_dense(f(PLACES, v, [2, 3])), real(3))
add("tf.sparse.add", lambda f, v: f(sparse(v), sparse(v**2)), real(3))
add("tf.sparse.add:dense", lambda f, v, w: f(sparse(v), w), real(3), real(2, 3))
add("tf.sparse.concat", lambda f, v: f(0, [sparse(v), sparse(v**2)]), real(3))
add("tf.sparse.expand_dims", lambda f, v: f(sparse(v), 0), real(3))
add("tf.sparse.fill_empty_rows", lambda f, v, d: f(sparse(v), d[0])[0], real(3), real(1))
add("tf.sparse.from_dense", None, real(2, 3))
add("tf.sparse.map_values", lambda f, v: f(tf.exp, sparse(v)), real(3))
add("tf.sparse.mask", lambda f, v: f(tf.IndexedSlices(v, [0, 1, 3]), [1]).values, real(3))
add("tf.sparse.maximum tf.sparse.minimum", lambda f, v: f(sparse(v), sparse(v**2)), real(3))
add(
    "tf.sparse.maximum:other-places tf.sparse.minimum:other-places",
    lambda f, v: f(sparse(v), shifted(v)),
    real(3),
)
add("tf.sparse.reset_shape", lambda f, v: f(sparse(v), [3, 3]), real(3))
add("tf.sparse.reshape", lambda f, v: f(sparse(v), [3, 2]), real(3))
add("tf.sparse.retain", lambda f, v: f(sparse(v), [True, False, True]), real(3))
add("tf.sparse.slice", lambda f, v: f(sparse(v), [0, 0], [2, 2]), real(3))
add("tf.sparse.split", lambda f, v: f(sparse(v), 3, 1), real(3))
add("tf.sparse.bincount", lambda f, v: f(tf.constant([0, 1, 1]), weights=v).values, real(3))
add(
    "tf.sparse.sampled_addmm",
    lambda f, v, a, b: f(PLACES, v, [2, 3], a, b, output_type=tf.float64)[1],
    real(3),
    real(2, 2),
    real(2, 3),
)
add("tf.sparse.sparse_dense_matmul", lambda f, v, b: f(sparse(v), b), real(3), real(3, 2))
add(
    "tf.sparse.segment_mean tf.sparse.segment_sqrt_n tf.sparse.segment_sum",
    lambda f, v: f(v, [0, 2, 2], [0, 0, 1]),
    real(3, 2),
)
add("tf.ragged.boolean_mask", lambda f, v: f(ragged(v), [True, False]), real(4))
add("tf.ragged.map_flat_values", lambda f, v: f(tf.exp, ragged(v)), real(4))
add("tf.ragged.stack", lambda f, v: f([v, v[:2] ** 2]), real(3))
add("tf.ragged.stack_dynamic_partitions", lambda f, v: f(v, [0, 1, 0], 2), real(3))
add(
    "tf.math.reduce_sum:ragged tf.math.reduce_mean:ragged tf.math.reduce_max:ragged",
    lambda f, v: f(ragged(v), axis=1),
    real(4),
)
add(
    "tf.math.reduce_prod:ragged tf.math.reduce_variance:ragged tf.nn.softmax:ragged",
    lambda f, v: f(ragged(v), -1),
    real(4),
)

# What has no module of its own -------------------------------------------------------------------

add("tf.clip_by_value", lambda f, v: f(v, -0.6, 0.6), real(4))
add("tf.clip_by_norm", lambda f, v: f(v, 0.7), real(4))
add("tf.clip_by_global_norm", lambda f, v: f([v[0], v[1] ** 2], 0.7)[0], real(2, 2))
add("tf.gather", lambda f, v: f(v, [2, 0, 2]), real(3, 2))
add("tf.gather_nd", lambda f, v: f(v, [[0, 1], [1, 0], [0, 1]]), real(2, 2))
add("tf.scatter_nd", lambda f, v: f([[0], [2], [0]], v, [3]), real(3))
add_all(
    "tf",
    "tensor_scatter_nd_add tensor_scatter_nd_max tensor_scatter_nd_min tensor_scatter_nd_sub "
    "tensor_scatter_nd_update",
    lambda f, v, u: f(v, [[0], [2]], u),
    real(3),
    0.9 * real(2),
)
add("tf.sort tf.identity tf.transpose tf.guarantee_const", None, real(4))
add("tf.cumsum:reverse", None, real(4))
add("tf.where", lambda f, v: f(v > 0, v**2, tf.exp(v)), real(4))
add("tf.cond", lambda f, v: f(v[0] > 0, lambda: v**2, lambda: tf.exp(v)), real(3))
add("tf.switch_case", lambda f, v: f(tf.constant(1), [lambda: v**2, lambda: tf.exp(v)]), real(3))
add(
    "tf.while_loop",
    lambda f, v: f(lambda i, x: i < 3, lambda i, x: (i + 1, tf.sin(x) * x), (0, v))[1],
    real(3),
)
add(
    "tf.map_fn tf.vectorized_map",
    lambda f, v: f(lambda row: tf.reduce_sum(row) ** 3, v),
    real(2, 2),
)
add("tf.scan tf.foldl tf.foldr", lambda f, v: f(lambda a, x: a * tf.sin(x), v), real(4))
add("tf.recompute_grad", lambda f, v: f(tf.sin)(v), real(3))
add(
    "tf.custom_gradient", lambda f, v: f(lambda x: (tf.sin(x), lambda g: g * tf.cos(x)))(v), real(3)
)
add("tf.strided_slice", lambda f, v: f(v, [0], [4], [2]), real(4))
add("tf.reverse_sequence", lambda f, v: f(v, [1, 2], 1, 0), real(2, 2))
add("tf.batch_to_space", lambda f, v: f(v, [2, 2], [[0, 0], [0, 0]]), real(4, 1, 1, 1))
add("tf.extract_volume_patches", lambda f, v: f(v, [1, 1, 2, 2, 1], [1] * 5, "VALID"), VOLUME)
add("tf.dynamic_partition", lambda f, v: f(v, [0, 1, 0], 2), real(3))
add("tf.dynamic_stitch", lambda f, v: f([[0, 2], [1]], [v[:2], v[2:] ** 2]), real(3))
add("tf.numpy_function", lambda f, v: f(lambda t: t**3, [v], tf.float64) + v, real(2))
add("tf.py_function", lambda f, v: f(lambda t: t**3, [v], tf.float64), real(2))
add(
    "tf.quantization.fake_quant_with_min_max_args",
    lambda f, v: f(single(v), -2.0, 2.0, 4),
    real(3),
    **SINGLE,
)
add(
    "tf.quantization.fake_quant_with_min_max_vars",
    lambda f, v: f(single(v), -2.0, 2.0, 4),
    real(3),
    **SINGLE,
)
add(
    "tf.quantization.quantize_and_dequantize_v2",
    lambda f, v: f(v, -2.0, 2.0, range_given=True),
    real(3),
)

# keras.ops ---------------------------------------------------------------------------------------

add_all(
    "keras.ops",
    "abs absolute amax amin arcsinh arctan array average cbrt celu copy cos cosh cumprod cumsum "
    "deg2rad rad2deg diag diagflat diff elu erf exp expm1 fabs flip gelu glu hard_shrink "
    "hard_sigmoid hard_silu hard_tanh i0 layer_normalization leaky_relu log_sigmoid "
    "log_softmax logsumexp max mean median min nan_to_num nancumprod nancumsum nanmax "
    "nanmean nanmedian nanmin nanprod nanstd nansum nanvar negative norm normalize prod ptp ravel "
    "real relu relu6 reciprocal rms_normalization selu sigmoid silu sin sinc sinh "
    "soft_shrink softmax softplus softsign sort sparse_plus sparse_sigmoid sparsemax square "
    "squareplus std sum tan tanh tanh_shrink trapezoid unstack vander var conj conjugate "
    "convert_to_tensor squeeze transpose",
    None,
    real(4),
)
add_all("keras.ops", "arccos arcsin arctanh erfinv", None, within(-0.8, 0.8, 4))
add_all("keras.ops", "log log10 log1p log2 rsqrt sqrt", None, within(0.4, 1.9, 4))
add("keras.ops.arccosh", None, within(1.2, 3, 4))
add("keras.ops.exp2", lambda f, v: f(single(v)), real(4), **SINGLE)
add_all(
    "keras.ops",
    "add arctan2 cross divide divide_no_nan dot fmax fmin fmod hypot logaddexp "
    "logaddexp2 maximum minimum mod multiply nextafter outer power subtract true_divide vdot "
    "correlate",
    lambda f, v: f(v[0], v[1]),
    within(0.4, 1.7, 2, 3),
)
add_all(
    "keras.ops",
    "cholesky_inverse det diagonal fliplr flipud inv lu_factor pinv qr rot90 slogdet svd "
    "trace tril triu",
    None,
    real(2, 2) + np.diag([2.0, 3.0]),
)
add("keras.ops.logdet keras.ops.cholesky", lambda f, v: f(positive_definite(v)), SQUARE)
add("keras.ops.eigh", lambda f, v: f(symmetric(v)), SQUARE)
add("keras.ops.eig", lambda f, v: (lambda e, q: (e, tf.abs(q)))(*f(symmetric(v) + v / 3)), SQUARE)
for arguments, names in (
    ((2,), "array_split hsplit repeat split tile top_k"),
    ((1,), "get_item roll"),
    ((0.4,), "nanquantile quantile"),
    ((40,), "nanpercentile percentile"),
    (([2, 0, 2],), "take take_along_axis"),
    ((-0.6, 0.6), "clip"),
    ((0.3, 0.1), "threshold"),
    (([2, 2],), "reshape"),
    (([2, 4],), "broadcast_to"),
    (([[1, 2]],), "pad"),
    (([1], [2]), "slice"),
    (("float64",), "cast saturate_cast"),
    ((0,), "expand_dims moments"),
):
    add_all("keras.ops", names, lambda f, v, a=arguments: f(v, *a), real(4))
add("keras.ops.stft", lambda f, v: f(v, 4, 2, 4, window=None), real(8))
add("keras.ops.istft", lambda f, v: f((v[0], v[1]), 4, 2, 4, window=None), real(2, 3, 3))
add("keras.ops.rearrange", lambda f, v: f(v, "a b -> b a"), real(2, 2))
add("keras.ops.extract_sequences", lambda f, v: f(v, 3, 2), real(7))
add("keras.ops.fft", lambda f, v: f((v[0], v[1])), real(2, 4))
add("keras.ops.fft2 keras.ops.ifft2", lambda f, v: f((v[0], v[1])), real(2, 2, 2))
add("keras.ops.rfft", None, real(4))
add("keras.ops.irfft", lambda f, v: f((v[0], v[1])), real(2, 3))
add(
    "keras.ops.angle keras.ops.imag keras.ops.view_as_real",
    lambda f, v: f(as_complex(v)),
    real(2, 2),
    **SINGLE,
)
add("keras.ops.view_as_complex", None, real(2, 2), **SINGLE)
add("keras.ops.polar", lambda f, v: f(v[0], v[1]), within(0.4, 1.7, 2, 2))
add("keras.ops.adaptive_average_pool keras.ops.adaptive_max_pool", lambda f, x: f(x, 2), IMAGE)
add("keras.ops.average_pool keras.ops.max_pool", lambda f, x: f(x, 2, 1), IMAGE)
add("keras.ops.max_pool:same", lambda f, x: f(x, 3, 1, "same"), IMAGE)
add("keras.ops.append keras.ops.tensordot", lambda f, a, b: f(a, b, 1), real(2, 2), real(2, 2))
add("keras.ops.matmul keras.ops.cdist", None, real(2, 2), within(-2, 2, 3, 2).T.copy())
CATALOGUE["keras.ops.cdist"] = Operation("keras.ops.cdist", ops.cdist, (real(2, 2), real(3, 2)))
add("keras.ops.einsum", lambda f, a, b: f("ij,kj->ik", a, b), real(2, 2), real(2, 2))
add("keras.ops.solve keras.ops.lstsq", None, real(2, 2) + 2 * np.eye(2), real(2, 1))
add("keras.ops.solve_triangular", None, real(2, 2) + 2 * np.eye(2), real(2, 1))
add("keras.ops.lstsq:tall", None, real(3, 2), real(3, 1))
add("keras.ops.associative_scan", lambda f, v: f(lambda a, b: a * b, v), real(4))
add(
    "keras.ops.batch_normalization",
    lambda f, x, m, v: f(x, m, v, -1),
    real(2, 2),
    real(2),
    within(0.5, 1.5, 2),
)
add("keras.ops.bincount", lambda f, w: f(tf.constant([0, 1, 1]), weights=w), real(3))
add("keras.ops.binary_crossentropy", lambda f, v: f(np.array([0.3, 1.0]), v), within(0.2, 0.8, 2))
add(
    "keras.ops.binary_crossentropy:labels",
    lambda f, y, v: f(y, v, from_logits=True),
    within(0.2, 0.8, 2),
    real(2),
)
add(
    "keras.ops.categorical_crossentropy",
    lambda f, v: f(np.array([[0.3, 0.7]]), v),
    within(0.2, 0.8, 1, 2),
)
add(
    "keras.ops.categorical_crossentropy:labels",
    lambda f, y, v: f(ops.softmax(y), v, from_logits=True),
    within(0.2, 0.8, 1, 2),
    real(1, 2),
)
add(
    "keras.ops.categorical_crossentropy:weights",
    lambda f, y, v: f(y, v, from_logits=True),
    within(0.2, 0.8, 1, 2),
    real(1, 2),
)
add("keras.ops.sparse_categorical_crossentropy", lambda f, v: f([1], v), within(0.2, 0.8, 1, 3))
add("keras.ops.ctc_loss", lambda f, v: f([[1, 2]], v, [2], [4]), real(1, 4, 3), **SINGLE)
add(
    "keras.ops.concatenate keras.ops.stack keras.ops.hstack keras.ops.vstack keras.ops.dstack",
    lambda f, v: f([v, v**2]),
    real(3),
)
add("keras.ops.meshgrid", lambda f, v: f(v[0], v[1]), real(2, 2))
add("keras.ops.dsplit keras.ops.vsplit", lambda f, v: f(v, 2), real(2, 1, 2))
add("keras.ops.moveaxis keras.ops.swapaxes", lambda f, v: f(v, 0, 1), real(2, 2))
add("keras.ops.inner", lambda f, v: f(v[0], v[1]), real(2, 3))
add("keras.ops.inner:matrices", None, real(2, 2), real(2, 2))
add("keras.ops.ldexp", lambda f, v: f(v, [1, 2]), real(2))
add("keras.ops.erfc", None, real(4))
add("keras.ops.psnr", lambda f, v: f(v, v**2, 1.0), within(0.2, 0.8, 4))
add("keras.ops.cond", lambda f, v: f(v[0] > 0, lambda: v**2, lambda: ops.exp(v)), real(3))
add("keras.ops.switch", lambda f, v: f(1, [lambda x: x**2, ops.exp], v), real(3))
add("keras.ops.fori_loop", lambda f, v: f(0, 3, lambda i, x: ops.sin(x) * x, v), real(3))
add(
    "keras.ops.while_loop",
    lambda f, v: f(lambda i, x: i < 3, lambda i, x: (i + 1, ops.sin(x) * x), (0, v))[1],
    real(3),
)
add(
    "keras.ops.map keras.ops.vectorized_map",
    lambda f, v: f(lambda row: ops.sum(row) ** 3, v),
    real(2, 2),
)
CATALOGUE["keras.ops.vectorized_map"] = Operation(
    "keras.ops.vectorized_map",
    lambda v: ops.vectorized_map(lambda row: ops.sum(row) ** 3, v),
    (real(2, 2),),
)
add("keras.ops.scan", lambda f, v: f(lambda c, x: (c * ops.sin(x), c + x), v[0], v), real(4))
add(
    "keras.ops.custom_gradient",
    lambda f, v: f(lambda x: (ops.sin(x), lambda g, upstream=None: g * ops.cos(x)))(v),
    real(3),
)
add("keras.ops.jvp", lambda f, v: f(ops.sin, (v,), (v**2,)), real(3))
add("keras.ops.conv", lambda f, x, k: f(x, k), IMAGE, FILTER)
add(
    "keras.ops.conv:dilation",
    lambda f, x, k: f(x, k, dilation_rate=2, padding="same"),
    IMAGE,
    FILTER,
)
add("keras.ops.conv_transpose", lambda f, x, k: f(x, k), real(1, 2, 2, 1), FILTER)
add("keras.ops.depthwise_conv", lambda f, x, k: f(x, k), IMAGE, FILTER)
add("keras.ops.separable_conv", lambda f, x, k, p: f(x, k, p), IMAGE, FILTER, real(1, 1, 1, 2))
add("keras.ops.depth_to_space", lambda f, x: f(x, 2), real(1, 1, 1, 4))
add("keras.ops.space_to_depth", lambda f, x: f(x, 2), real(1, 2, 2, 1))
add("keras.ops.fold", lambda f, x: f(x, [3, 3], [2, 2]), real(1, 4, 4))
add("keras.ops.unfold", lambda f, x: f(x, 2), real(1, 1, 3, 3))
add(
    "keras.ops.dot_product_attention",
    lambda f, q, k, v: f(q, k, v),
    real(1, 2, 1, 2),
    real(1, 2, 1, 2),
    real(1, 2, 1, 2),
)
add("keras.ops.linspace keras.ops.logspace", lambda f, v: f(v[0], v[1], 4), real(2))
add("keras.ops.geomspace", lambda f, v: f(v[0], v[1], 4), within(0.5, 2, 2))
add("keras.ops.scatter", lambda f, v: f([[0], [2], [0]], v, [3]), real(3))
add("keras.ops.scatter_update", lambda f, v, u: f(v, [[0], [2]], u), real(3), real(2))
for reduction in ("add", "max", "min", "mul"):
    add(
        f"keras.ops.scatter_update:{reduction}",
        lambda f, v, u, r=reduction: f(v, tf.constant([[0], [2]]), u, r),
        real(3),
        0.9 * real(2),
    )
add("keras.ops.slice_update", lambda f, v, u: f(v, [1], u), real(3), real(2))
add_all(
    "keras.ops",
    "segment_max segment_min segment_prod segment_sum",
    lambda f, v: f(v, tf.constant(SEGMENTS), 3),
    real(4, 2),
)
add("keras.ops.select", lambda f, v: f([v > 0.5, v < -0.5], [v**2, ops.exp(v)], v**3), real(4))
add("keras.ops.where", lambda f, v: f(v > 0, v**2, ops.exp(v)), real(4))

add_all("keras.ops.image", "hsv_to_rgb rgb_to_hsv rgb_to_grayscale", None, COLOUR)
add("keras.ops.image.sobel_edges keras.ops.image.gaussian_blur", None, PICTURE)
add(
    "keras.ops.image.affine_transform",
    lambda f, x: f(x, np.array([[1, 0.1, 0.2, 0.1, 0.9, 0.1, 0, 0]])),
    PICTURE,
    **SINGLE,
)
add(
    "keras.ops.image.affine_transform:transform",
    lambda f, x, t: f(x, t),
    PICTURE,
    np.array([[1, 0.1, 0.2, 0.1, 0.9, 0.1, 0, 0]]),
    **SINGLE,
)
CORNERS = np.array([[[0.0, 0], [0, 2], [2, 0], [2, 2]]])
add(
    "keras.ops.image.perspective_transform",
    lambda f, x: f(x, CORNERS, CORNERS * 0.9 + 0.13),
    PICTURE,
    **SINGLE,
)
add("keras.ops.image.elastic_transform", lambda f, x: f(x, seed=1), PICTURE, **SINGLE)
add("keras.ops.image.crop_images", lambda f, x: f(x, 1, 0, 0, 1), PICTURE)
add("keras.ops.image.pad_images", lambda f, x: f(x, 1, 0, 0, 1), PICTURE)
add("keras.ops.image.extract_patches", lambda f, x: f(x, 2), PICTURE)
add("keras.ops.image.extract_patches_3d", lambda f, x: f(x, 2), VOLUME)
add(
    "keras.ops.image.map_coordinates",
    lambda f, x, c: f(x, c, 1),
    real(3, 3),
    within(0.2, 1.8, 2, 3),
)
for interpolation in ("nearest", "bilinear", "bicubic", "lanczos3", "lanczos5"):
    add(
        f"keras.ops.image.resize:{interpolation}",
        lambda f, x, m=interpolation: f(single(x), [4, 5], m),
        PICTURE,
        **SINGLE,
    )
add(
    "keras.ops.image.scale_and_translate",
    lambda f, x, s: f(single(x), (1, 4, 4, 1), single(s), single(s) * 0.1, (1, 2), "linear"),
    PICTURE,
    within(1.1, 1.7, 2),
    **SINGLE,
)
add("keras.ops.image.ssim", lambda f, x: f(x, x**2 * 0.9 + 0.05, filter_size=2), PICTURE)

# Left out ----------------------------------------------------------------------------------------

LEFT_OUT = {
    "returns no numbers that move: integers, truth values, shapes, or a piecewise constant": """
        argmax argmin ceil count_nonzero equal floor floordiv floor_divide greater greater_equal
        heaviside in_top_k invert_permutation is_finite is_inf is_nan is_non_decreasing
        is_strictly_increasing less less_equal logical_and logical_not logical_or logical_xor
        not_equal reduce_all reduce_any rint round sign signbit trunc zero_fraction all allclose any
        argpartition argsort digitize dtype histogram is_tensor isclose isfinite isin isinf isnan
        isneginf isposinf isreal matrix_rank nanargmax nanargmin ndim nonzero searchsorted shape
        size stop_gradient unique unravel_index to_indicator non_max_suppression
        non_max_suppression_overlaps non_max_suppression_padded non_max_suppression_with_scores
        combined_non_max_suppression generate_bounding_box_proposals""",
    "takes no floating-point tensor": """
        arange bartlett bitwise_and bitwise_invert bitwise_left_shift bitwise_not bitwise_or
        bitwise_right_shift bitwise_xor blackman collapse_repeated compute_accidental_hits
        convert_to_numpy cross_hashed ctc_beam_search_decoder ctc_decode
        ctc_greedy_decoder ctc_unique_labels empty empty_like eye full full_like gcd hamming
        hamming_window hann_window hanning identity inverse_stft_window_fn kaiser lcm left_shift
        linear_to_mel_weight_matrix multi_hot one_hot ones ones_like range right_shift
        row_splits_to_segment_ids segment_ids_to_row_splits sobol_sample tri view vorbis_window
        zeros zeros_like LinearOperatorIdentity LinearOperatorPermutation LinearOperatorZeros
        ResizeMethod constant decode_and_crop_jpeg decode_bmp decode_gif decode_image decode_jpeg
        decode_jxl decode_png decode_webp encode_jpeg encode_png extract_jpeg_shape is_jpeg""",
    "draws random numbers anew at every call": """
        all_candidate_sampler dropout fixed_unigram_candidate_sampler
        learned_unigram_candidate_sampler random_brightness random_contrast random_crop
        random_flip_left_right random_flip_up_down random_hue random_jpeg_quality random_saturation
        sample_distorted_bounding_box""",
    "rounds to the bytes of a file": "adjust_jpeg_quality stateless_random_jpeg_quality",
    "returns boxes, not what is in them": "stateless_sample_distorted_bounding_box",
    "an abstract class, or a wrapper of a cell of tf_keras": """
        LinearOperator RNNCellDeviceWrapper RNNCellDropoutWrapper RNNCellResidualWrapper""",
    "has no kernel for a CPU": "approx_min_k fftnd ifftnd rfftnd irfftnd",
    "cannot be traced into a graph, by Keras itself": "corrcoef kron vectorize",
}
# Of names that mean one thing here and another there.
LEFT_OUT_HERE = {"tf.sparse.cross": "strings", "tf.ragged.cross": "strings"}

# Refused, or found to be wrong by the preflight: tried alone, while others are in company.
_NOT_RIGHT = """
    tf.math.bincount tf.math.igamma:shape tf.math.igammac:shape tf.math.betainc:shape
    tf.math.zeta:exponent tf.nn.softmax_cross_entropy_with_logits:weights
    tf.image.hsv_to_rgb tf.linalg.eigh_tridiagonal tf.linalg.logm tf.linalg.lu
    tf.linalg.lu_matrix_inverse tf.linalg.lu_reconstruct tf.linalg.lu_solve
    tf.linalg.lstsq:orthogonal tf.signal.rfft3d tf.signal.irfft3d tf.sparse.reduce_max
    tf.sparse.bincount tf.sparse.concat tf.sparse.split tf.sparse.maximum tf.sparse.minimum
    tf.sparse.maximum:other-places tf.sparse.minimum:other-places tf.guarantee_const
    tf.numpy_function tf.py_function tf.quantization.quantize_and_dequantize_v2
    keras.ops.bincount keras.ops.categorical_crossentropy:weights keras.ops.lu_factor
    keras.ops.slice_update keras.ops.image.hsv_to_rgb
"""
NOT_RIGHT = frozenset(_NOT_RIGHT.split())
