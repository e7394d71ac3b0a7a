"""The first batch of an operator against differences: what is computed, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from spectral_density.curvature.preflight.derivative import (
    DifferenceAccuracy,
    Evaluate,
    Finding,
    Pair,
    Quotients,
    Slopes,
    judge_gradient,
    judge_product,
    last_wrong_layer,
    pairs_at,
    settled,
    shorter_step,
    slopes_along,
)
from spectral_density.engines.engine import BesideWeights

# A share of a random vector: what no gradient points to is looked at as well.
_RANDOM_SHARE = 0.25


# A product that is this share of its norm off, by rounding alone, says nothing.
_ROUNDED = 0.3


def compare_hessian(
    batch: BesideWeights,
    product: Callable[[np.ndarray], np.ndarray],
    rows: Callable[[np.ndarray], Any],
    direction: np.ndarray,
    *,
    layers: Mapping[str, Any],
    accuracy: DifferenceAccuracy,
) -> dict[str, Finding]:
    """Compare the product with differences of the gradient, and this with those of the loss."""
    slopes = slopes_along(batch.at, direction, accuracy)
    quotients = slopes.quotients(accuracy)
    along = product(direction)
    found = judge_product(along, quotients, layers, accuracy)
    if found.status != "passed" and accuracy.differences and accuracy.precision == "float32":
        # Is it rounding? The same graph in float64 says.
        def product(vector: np.ndarray) -> np.ndarray:
            return batch.product(rows(vector))[0]

        accuracy = accuracy.of_differences()
        exact = product(direction)
        found = judge_product(exact, quotients, layers, accuracy)
        found = _within_rounding(found, along, exact)
    of_loss = judge_gradient(slopes, direction, accuracy)
    if "failed" in (found.status, of_loss.status):
        where = layers[found.message] if found.status == "failed" else slice(None)
        if not _settled(batch.at, slopes, direction, where, accuracy):
            return _unsettled(found, of_loss)
    if found.status == "failed":
        layer = _layer_before(batch, slopes, direction, product, layers=layers, accuracy=accuracy)
        found = _wrong(found, layer, "gradient")
    return {"derivative": found, "gradient": of_loss}


def compare_through_outputs(
    batch: BesideWeights,
    rows: Callable[[np.ndarray], Any],
    direction: np.ndarray,
    layers: Mapping[str, Any],
    accuracy: DifferenceAccuracy,
) -> dict[str, Finding]:
    """Compare each part of a product J' B J u with differences: J u, B J u, and u' of the whole."""
    n = len(direction)
    at_loss = accuracy._replace(differences="")
    accuracy = accuracy.of_differences()
    slopes = slopes_along(batch.at, direction, accuracy)
    quotients = slopes.quotients(accuracy)
    product, tangents, cotangents = batch.product(rows(direction))
    tangent, cotangent = _joined(tangents), _joined(cotangents)
    at_outputs = slice(n, None)
    everything = {"the outputs": slice(None)}
    found = judge_product(tangent, quotients.of_part(at_outputs), everything, accuracy)
    of_loss = judge_gradient(_of_weights(slopes, n), direction, accuracy)
    if "failed" in (found.status, of_loss.status):
        where = at_outputs if found.status == "failed" else slice(n)
        if not _settled(batch.at, slopes, direction, where, accuracy):
            return _unsettled(found, of_loss)
    if found.status == "failed":

        def tangent_of(part: np.ndarray) -> np.ndarray:
            return np.concatenate([np.zeros(n), _joined(batch.product(rows(part))[1])])

        layer = _layer_before(
            batch,
            slopes,
            direction,
            tangent_of,
            layers=layers,
            accuracy=accuracy,
            where=at_outputs,
        )
        found = _wrong(found, layer, "outputs")
    elif found.status == "passed":
        outputs = slopes.gradient[n:]
        shapes = [part.shape for part in tangents]
        found = _worse(
            found,
            _matrix_at_outputs(batch, outputs, tangent, cotangent, shapes=shapes, accuracy=at_loss),
        )
        found = _worse(found, _quadratic_form(direction @ product, tangent, cotangent, at_loss))
    return {"derivative": found, "gradient": of_loss}


def compare_gradient(
    batch: BesideWeights, direction: np.ndarray, accuracy: DifferenceAccuracy
) -> dict[str, Finding]:
    """Compare the gradient alone with differences of the loss."""
    slopes = slopes_along(batch.at, direction, accuracy)
    of_loss = judge_gradient(_of_weights(slopes, len(direction)), direction, accuracy)
    why = "not judged: the matrix does not say what it is the derivative of."
    return {"derivative": Finding("skipped", None, why), "gradient": of_loss}


def _within_rounding(found: Finding, product: np.ndarray, exact: np.ndarray) -> Finding:
    """Say of a product that is right in float64 whether it is as it was computed."""
    if found.status != "passed":
        return found
    gap = float(np.linalg.norm(product - exact)) / float(np.linalg.norm(exact))
    if gap <= _ROUNDED:
        return found._replace(figure=max(gap, found.figure or 0.0))
    message = "not judged: rounding outweighs the product; computed in float64 it is right."
    return Finding("skipped", gap, message)


def _layer_before(
    batch: BesideWeights,
    slopes: Slopes,
    direction: np.ndarray,
    product: Callable[[np.ndarray], np.ndarray],
    *,
    layers: Mapping[str, Any],
    accuracy: DifferenceAccuracy,
    where: slice | None = None,
) -> str:
    """Return the layer before what is wrong, from the blocks of layers that follow each other.

    Args:
        batch: what is compared.
        slopes: along the direction.
        direction: in all layers.
        product: with the part of the direction in some layers.
        layers: the indices of each, by its name.
        accuracy: of products and differences.
        where: products are compared, None for these layers themselves.
    """

    def is_wrong(names: Sequence[str]) -> bool:
        part = np.zeros(len(direction))
        for name in names:
            part[layers[name]] = direction[layers[name]]
        own = slopes_along(batch.at, part, accuracy, known=slopes).quotients(accuracy)
        compared = {name: layers[name] for name in names} if where is None else {"": where}
        return judge_product(product(part), own, compared, accuracy).status == "failed"

    return last_wrong_layer(list(layers), is_wrong)


def _of_weights(slopes: Slopes, n: int) -> Slopes:
    """Return slopes without those of the outputs, which are listed behind the gradient."""
    of_gradient = [pair.of_part(slice(n)) for pair in slopes.of_gradient]
    return slopes._replace(gradient=slopes.gradient[:n], of_gradient=of_gradient)


def _settled(
    evaluate: Evaluate,
    slopes: Slopes,
    direction: np.ndarray,
    where: Any,
    accuracy: DifferenceAccuracy,
) -> bool:
    """Tell whether differences at a shorter step are those at the others: two gradients more."""
    eps = accuracy.eps()
    if not settled(slopes.quotients(accuracy).of_all()):
        return False
    of_gradient, of_loss = pairs_at(evaluate, direction, shorter_step(slopes.of_gradient))
    near = min(slopes.of_gradient, key=lambda pair: pair.step)
    near_loss = min(slopes.of_loss, key=lambda pair: pair.step)
    gradients = Quotients.of(slopes.gradient, [of_gradient, near], eps)
    losses = Quotients.of(np.array([slopes.loss]), [of_loss, near_loss], eps)
    return settled(gradients.of_part(where)) and settled(losses)


def _unsettled(*findings: Finding) -> dict[str, Finding]:
    """Take back what failed."""
    why = "not judged: differences do not settle, the function varies within the shortest step."
    skipped = Finding("skipped", None, why)
    kept = [skipped if found.status == "failed" else found for found in findings]
    return dict(zip(("derivative", "gradient"), kept, strict=True))


def _matrix_at_outputs(
    batch: BesideWeights,
    outputs: np.ndarray,
    tangent: np.ndarray,
    cotangent: np.ndarray,
    *,
    shapes: list[Any],
    accuracy: DifferenceAccuracy,
) -> Finding:
    """Compare B t with differences of the loss, or of each example's, in the outputs along t."""
    of_examples = batch.knows("example losses")
    function = batch.at_outputs("example losses" if of_examples else "output gradients")
    length = float(np.linalg.norm(outputs)) or 1.0
    size = float(np.linalg.norm(tangent))
    if not size:
        return Finding("skipped", None, "not judged: the outputs do not change.")
    unit = length / size

    def value(step: float) -> np.ndarray:
        return function(_cut(outputs + step * unit * tangent, shapes))

    here = value(0.0)
    first = Pair(accuracy.step(), value(accuracy.step()), value(-accuracy.step()))
    step = first.second_step(here, accuracy)
    second = Pair(step, value(step), value(-step))
    quotients = Quotients.of(here, [first, second], accuracy.eps())
    if not of_examples:
        found = judge_product(unit * cotangent, quotients, {"the outputs": slice(None)}, accuracy)
    else:
        # The sum over examples (a mean over samples) of squares of their slopes is t'Bt.
        form = unit * np.sqrt(max(float(tangent @ cotangent), 0.0))
        norms = [np.array([np.linalg.norm(part)]) for part in quotients]
        found = judge_product(
            np.array([form]), Quotients(*norms), {"the outputs": slice(None)}, accuracy
        )
    if found.status != "failed":
        return found
    return found._replace(
        message=f"the matrix at the outputs is {found.figure:.2g} off the differences of the loss "
        "in the outputs. Look for a custom gradient or a Python function in the loss."
    )


def _quadratic_form(
    form: float, tangent: np.ndarray, cotangent: np.ndarray, accuracy: DifferenceAccuracy
) -> Finding:
    """Compare u'Au with (J u)'B(J u)."""
    scale = float(np.linalg.norm(tangent) * np.linalg.norm(cotangent))
    figure = abs(form - float(tangent @ cotangent)) / scale if scale else 0.0
    if figure <= accuracy.tolerance():
        return Finding("passed", figure, "the product is the derivative of the outputs.")
    return Finding(
        "failed",
        figure,
        f"u'Au is {figure:.2g} off (J u)'B(J u): the outputs' derivative has another transpose. "
        "Look for a custom gradient or a Python function in the model.",
    )


def direction_of(
    weights: np.ndarray,
    gradient: np.ndarray,
    product: np.ndarray,
    noise: np.ndarray,
    layers: Mapping[str, Any],
) -> np.ndarray:
    """Return a vector that the matrix acts on in every layer, of the length of its weights.

    A random vector alone does not do: in a trained network the matrix takes hardly anything of it,
    and rounding of the gradient outweighs the product. The gradient, and a product, are in the
    range of the matrix.

    Args:
        weights: (n,).
        gradient: of the loss, (n,).
        product: of the matrix with a random vector, (n,).
        noise: random, (n,).
        layers: the indices of each layer, by its name.
    """
    found = np.zeros(len(weights))
    for where in layers.values():
        parts = [_unit(gradient[where]), _unit(product[where]), _RANDOM_SHARE * _unit(noise[where])]
        length = float(np.linalg.norm(weights[where])) or 1.0
        found[where] = length * _unit(np.sum(parts, axis=0))
    return found


def _wrong(found: Finding, layer: str, what: str) -> Finding:
    """Say which layer a wrong operation is behind."""
    return found._replace(
        message=f"the product is {found.figure:.2g} off the differences of the {what}: in layer "
        f"{layer!r}, or between it and the next, an operation has a second derivative that is "
        "wrong or missing. Look for a custom gradient, a Python function, interpolation of images, "
        "or normalization that is not Keras's."
    )


def _worse(first: Finding, second: Finding) -> Finding:
    """Return what fails, or else is skipped, or else has the larger figure."""
    order = ("passed", "skipped", "failed")
    if first.status != second.status:
        return max(first, second, key=lambda finding: order.index(finding.status))
    return max(first, second, key=lambda finding: finding.figure or 0.0)


def _unit(vector: np.ndarray) -> np.ndarray:
    norm = float(np.linalg.norm(vector))
    return vector / norm if np.isfinite(norm) and norm > 0 else np.zeros(len(vector))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.reshape(-1) for part in parts])


def _cut(vector: np.ndarray, shapes: list[Any]) -> list[np.ndarray]:
    sizes = [int(np.prod(shape)) for shape in shapes]
    pieces = np.split(vector, np.cumsum(sizes)[:-1])
    return [piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True)]
