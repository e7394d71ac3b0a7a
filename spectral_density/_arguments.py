"""Arguments that a function does not take: what to write instead, in the error."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])

_BATCHES = (
    "the data is one argument of batches: dataset=[(x, y)] for a single one, or "
    "dataset=tf.data.Dataset.from_tensor_slices((x, y)).batch(n)"
)
_ONE_DATASET = "curvature is that of one dataset: make another operator of the validation data"
_NO_TRAINING = "nothing is trained here, and a product is one pass over the dataset: leave it out"
_ALL_OF_IT = "curvature is that of all examples, in whatever order: leave it out"
_FEWER = "bound the dataset itself: dataset.take(n)"
_COMPILED = "it belongs to model.compile, whose loss is taken where none is given"
_COMPILED_ANYWAY = "products are compiled anyway: leave it out"
_FOLLOW = "call the function again, or watch a training with SpectrumCallback"

INSTEAD = {
    # Keras's fit
    "x": _BATCHES,
    "y": _BATCHES,
    "batch_size": f"batches are made before: {_BATCHES}",
    "sample_weight": "weights are part of the batches: dataset=[(x, y, sample_weight)]",
    "class_weight": "it belongs to the operator: HessianOperator(..., class_weight=...)",
    "epochs": _NO_TRAINING,
    "initial_epoch": _NO_TRAINING,
    "verbose": "bars are shown by progress=True, where products are many (estimate_spectrum)",
    "callbacks": _FOLLOW,
    "validation_data": _ONE_DATASET,
    "validation_split": _ONE_DATASET,
    "validation_steps": _ONE_DATASET,
    "validation_batch_size": _ONE_DATASET,
    "validation_freq": _ONE_DATASET,
    "shuffle": _ALL_OF_IT,
    "steps_per_epoch": _FEWER,
    # Keras's compile
    "optimizer": _NO_TRAINING,
    "metrics": _NO_TRAINING,
    "weighted_metrics": _NO_TRAINING,
    "loss_weights": _COMPILED,
    "jit_compile": _COMPILED_ANYWAY,
    "steps_per_execution": _COMPILED_ANYWAY,
    "auto_scale_loss": "what products are scaled by is chosen here: leave it out",
    "run_eagerly": _COMPILED_ANYWAY,
    # other libraries of curvature
    "data": "the data is called dataset=",
    "dataloader": "the data is called dataset=",
    "loss_fn": "it is called loss=",
    "params": "parameters are chosen by variables=",
}
"""What to write in place of an argument that other functions take."""


# Of these the sentence is the same where there is no dataset.
_GENERAL = (_NO_TRAINING, _FOLLOW, _COMPILED_ANYWAY, INSTEAD["verbose"])
_OF_OPERATORS = {"model", "loss", "dataset", "variables"} | {
    name for name, sentence in INSTEAD.items() if sentence not in _GENERAL
}


def explained(function: _Function) -> _Function:
    """Raise for an argument that a function does not take with what to write instead.

    Keywords of Keras's `fit` and `compile` have a sentence each (`INSTEAD`).
    """
    signature = inspect.signature(function)
    keywords = {
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind is not parameter.POSITIONAL_ONLY
    }
    places = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind is not parameter.KEYWORD_ONLY
    ]

    @functools.wraps(function)
    def checked(*arguments: Any, **options: Any) -> Any:
        unknown = [name for name in options if name not in keywords]
        if unknown:
            raise TypeError(_of_keyword(_name_of(function), unknown[0], keywords))
        if len(arguments) > len(places):
            raise TypeError(_of_number(_name_of(function), places, len(arguments)))
        return function(*arguments, **options)

    return checked  # type: ignore[return-value]


def _name_of(function: Callable[..., Any]) -> str:
    return function.__qualname__.removesuffix(".__init__")


def _of_keyword(name: str, keyword: str, keywords: Iterable[str]) -> str:
    """Return the message for a keyword that a function does not take."""
    known = sorted(set(keywords) - {"self", "cls"})
    start = f"{name} has no argument {keyword!r}"
    if "dataset" not in known and keyword in _OF_OPERATORS:
        return f"{start}: model, loss and data belong to the operator that it is given."
    if keyword in INSTEAD:
        return f"{start}: {INSTEAD[keyword]}."
    near = difflib.get_close_matches(keyword, known, n=1)
    if near:
        return f"{start}: is {near[0]} meant?"
    return f"{start}; it has {', '.join(known)}."


def _of_number(name: str, places: list[str], given: int) -> str:
    """Return the message for more arguments by position than a function takes."""
    own = [place for place in places if place not in ("self", "cls")]
    given -= len(places) - len(own)
    if "dataset" in own:
        call = ", ".join("[(x, y)]" if place == "dataset" else place for place in own)
        return (
            f"{name} takes {', '.join(own)}, and {given} arguments were given by position: inputs "
            f"and labels are one argument, {name}({call}), and options are given by name."
        )
    return (
        f"{name} takes {', '.join(own)} by position, and {given} were given: name the options, "
        "as in seed=0."
    )
