"""A CPU that rounds the factors of matrix products as chips do where a lower precision is asked."""

from contextlib import contextmanager

from jax import lax
from jax._src.interpreters.mlir import _platform_specific_lowerings
from jax.interpreters import mlir

# Bits of the mantissa by what JAX calls the precision: TF32 has 10, bfloat16 has 7.
BITS = {"tensorfloat32": 10, "bfloat16": 7}
_BITS = {lax.Precision.HIGH: BITS["tensorfloat32"], lax.Precision.DEFAULT: BITS["bfloat16"]}


@contextmanager
def rounding_chip():
    """Round both factors of `dot_general` to the precision asked for, wherever it was traced."""
    table = _platform_specific_lowerings["cpu"]
    before = table[lax.dot_general_p]
    exact = getattr(before, "rule", before)

    def lowered(context, left, right, **options):
        asked = options["precision"]
        bits = None if asked is None else _BITS.get(asked[0])
        if bits is None:
            return exact(context, left, right, **options)

        def rounded(*factors):
            full = options | {"precision": (lax.Precision.HIGHEST,) * 2}
            factors = (lax.reduce_precision(factor, 8, bits) for factor in factors)
            return lax.dot_general_p.bind(*factors, **full)

        return mlir.lower_fun(rounded, multiple_results=False)(context, left, right)

    mlir.register_lowering(lax.dot_general_p, lowered, platform="cpu")
    try:
        yield
    finally:
        table[lax.dot_general_p] = before
