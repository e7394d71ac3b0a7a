"""Messages of the library with command-line options in place of Python arguments."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spectral_density.command.matrix import MatrixRequest

_WORDS = (
    (r"\braise order\b", "raise --order"),
    (r"\braise num_draws\b", "raise --draws"),
    (r"\braise max_products\b", "raise --max-products"),
    (r"""\bkind=['"](\w+)['"]""", r"--fisher-kind \1"),
    (r"\bgive logits, with from_logits=True", "give logits, with --from-logits"),
    # Only a function of the user's declares its reduction: the user can change the function.
    (r'declared as a mean: pass reduction="sum"', "and a mean is expected: let it return a mean"),
)


def in_options(text: str, request: MatrixRequest | None = None) -> str:
    """Return a message of the library with the options of the command in place of arguments.

    Args:
        text: a message of the library.
        request: which matrix: where its loss is one of Keras's, logits are an option.
    """
    for words, option in _WORDS:
        text = re.sub(words, option, text)
    if request is None or ":" in (request.loss or ""):
        return text
    compiled = (
        request.loss is None
    )  # from_logits is then in the model's file, unless a loss is named
    with_logits = r"pass --loss \1 --from-logits" if compiled else "pass --from-logits"
    without = r"pass --loss \1" if compiled else "leave --from-logits out"
    for advice, option in (("pass", with_logits), ("drop", without)):
        pattern = rf"\b(\w+)( expects [^?]*\? Then ){advice} from_logits=True"
        text = re.sub(pattern, rf"\1\2{option}", text)
    return text
