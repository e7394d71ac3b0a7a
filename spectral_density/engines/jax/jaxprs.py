"""What a jaxpr says of the function that it was traced from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

# Where files of these packages stop a gradient, that is how they compute a derivative.
_LIBRARIES = ("jax", "keras", "flax", "optax", "equinox", "haiku", "distrax", "chex")

# Files whose frames stand between a function of JAX and its caller.
_WRAPPERS = ("traceback_util.py", "tree_util.py", "contextlib.py")


def equations(jaxpr: Any) -> Iterator[Any]:
    """Yield the equations of an open jaxpr, those of jaxprs within it included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_jaxprs(eqn):
            yield from equations(inner)


def inner_jaxprs(eqn: Any) -> list[Any]:
    """Return the open jaxprs among the parameters of an equation: of calls, loops, branches."""
    found = []
    for value in eqn.params.values():
        for part in value if isinstance(value, (tuple, list)) else [value]:
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


def has_loop(jaxpr: Any) -> bool:
    """Tell whether something in an open jaxpr is computed step by step."""
    return any(eqn.primitive.name in ("scan", "while") for eqn in equations(jaxpr))


def reached_forward(jaxpr: Any, inputs: Sequence[bool]) -> list[Any]:
    """Return the equations of an open jaxpr that depend on some of its inputs."""
    known = {id(v) for v, is_one in zip(jaxpr.invars, inputs, strict=True) if is_one}
    found = []
    for eqn in jaxpr.eqns:
        if any(id(var) in known for var in eqn.invars):
            found.append(eqn)
            known |= {id(var) for var in eqn.outvars}
    return found


def reached_backward(jaxpr: Any) -> tuple[list[Any], list[bool]]:
    """Return the equations that the outputs depend on, and whether each input is depended on.

    A gradient that is stopped is no dependence.
    """
    used = {id(var) for var in jaxpr.outvars}
    found = []
    for eqn in reversed(jaxpr.eqns):
        if not any(id(var) in used for var in eqn.outvars):
            continue
        found.append(eqn)
        if eqn.primitive.name != "stop_gradient":
            used |= {id(var) for var in eqn.invars}
    return found[::-1], [id(var) in used for var in jaxpr.invars]


def coarsest_dtype(jaxpr: Any, inputs: Sequence[bool], dtype: np.dtype) -> np.dtype:
    """Return the floating dtype of least precision that what depends on some inputs is computed in.

    Args:
        jaxpr: open.
        inputs: for each input, whether it is one of those.
        dtype: of these inputs.
    """
    dtypes = {np.dtype(dtype)}
    for eqn in reached_forward(jaxpr, inputs):
        dtypes |= {var.aval.dtype for e in _with(eqn) for var in e.outvars}
    floating = [d for d in dtypes if jnp.issubdtype(d, jnp.floating)]
    return np.dtype(max(floating, key=lambda d: float(jnp.finfo(d).eps)))


def random_draws(jaxpr: Any) -> list[str]:
    """Return the places where random numbers are drawn."""
    names = ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform")
    found = [
        place_of(eqn) for eqn in jaxpr.eqns if any(e.primitive.name in names for e in _with(eqn))
    ]
    return list(dict.fromkeys(found))


def deliberate_stops(jaxpr: Any, inputs: Sequence[bool]) -> list[Any]:
    """Return the equations by which a user's code stops gradients between inputs and outputs."""
    behind, _ = reached_backward(jaxpr)
    between = {id(eqn) for eqn in behind}
    found = []
    for eqn in reached_forward(jaxpr, inputs):
        if id(eqn) not in between:
            continue
        stops = [e for e in _with(eqn) if e.primitive.name == "stop_gradient"]
        found += [stop for stop in stops if not _is_of_library(stop)]
    return found


def line_of(eqn: Any) -> tuple[str, int] | None:
    """Return file and line of the source of an equation, the innermost outside of JAX."""
    frame = _frame(eqn)
    return None if frame is None else (frame.file_name, frame.line_num)


def _with(eqn: Any) -> list[Any]:
    """Return an equation and those within it."""
    return [eqn, *(e for inner in inner_jaxprs(eqn) for e in equations(inner))]


def place_of(eqn: Any) -> str:
    """Return where an equation comes from: the layer that Keras names, or file and line.

    The line is the innermost outside of JAX.
    """
    scope, line = str(eqn.source_info.name_stack), line_of(eqn)
    if scope:
        return scope
    return "unknown source" if line is None else f"{line[0]}:{line[1]}"


def _is_of_library(stop: Any) -> bool:
    """Tell whether a gradient is stopped by a function of a library: a largest entry, say."""
    frames = _frames(stop)
    inside = [at for at, frame in enumerate(frames) if "stop_gradient" in frame.function_name]
    callers = frames[inside[-1] + 1 :] if inside else frames
    return not callers or _package(callers[0].file_name) in _LIBRARIES


def _frame(eqn: Any) -> Any:
    """Return the innermost frame of an equation outside of JAX."""
    frames = _frames(eqn)
    return next((f for f in frames if _package(f.file_name) not in ("jax", "jaxlib")), None)


def _frames(eqn: Any) -> list[Any]:
    """Return the frames in which an equation was made, innermost first, but for mere wrappers."""
    traceback = eqn.source_info.traceback
    frames = traceback.frames if traceback is not None else ()
    return [frame for frame in frames if not frame.file_name.endswith(_WRAPPERS)]


def _package(file_name: str) -> str:
    """Return the package that a file is installed in, "" where it is in none."""
    _, is_installed, path = file_name.replace("\\", "/").rpartition("site-packages/")
    return path.split("/")[0] if is_installed else ""
