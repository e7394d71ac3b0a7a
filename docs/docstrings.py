"""Docstrings as the reference needs them: formulas, and what the fields of a record are.

An extension of griffe, which reads the package without importing it.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

_FORMULA = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 {3,}\S.*)*)", re.MULTILINE)
_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)  # griffe knows the plural
_COMMENT = re.compile(r"^[^#]*\S *# +(?P<text>.*)$")
_NOTHING = "\u200b"  # a description that is not there: the name and its type say it


class Docstrings(griffe.Extension):
    """Set formulas as such, list what records hold, and leave out the type `Any`."""

    def on_object(self, *, obj: griffe.Object, **options: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = _FORMULA.sub(_set_formula, obj.docstring.value)
            obj.docstring.value = _EXAMPLE.sub(r"\1Examples:", text)

    def on_function(self, *, func: griffe.Function, **options: Any) -> None:
        """Leave out the type `Any`, which says nothing."""
        for parameter in func.parameters:
            if str(parameter.annotation) == "Any":
                parameter.annotation = None

    def on_class(self, *, cls: griffe.Class, **options: Any) -> None:
        """List fields with the comments beside them, and members of an enumeration."""
        if cls.docstring is None or "\nAttributes:" in cls.docstring.value:
            return
        fields = [member for member in cls.members.values() if member.is_attribute]
        texts = [_comment_of(field) or _message_of(field) for field in fields]
        lines = [
            f"    {field.name}: {text or _NOTHING}"
            for field, text in zip(fields, texts, strict=True)
            if text or ("instance-attribute" in field.labels and field.name[0] != "_")
        ]
        if any(texts):
            cls.docstring.value += "\n\n" + "\n".join(["Attributes:", *lines])


def _set_formula(found: re.Match[str]) -> str:
    indent, formula = found.groups()
    return f"{indent}$$\n{indent}{' '.join(formula.split())}\n{indent}$$"


def _comment_of(field: griffe.Object) -> str | None:
    """Return the comment beside the declaration of a field, its shape set as code."""
    lines = (field.source or "").splitlines()
    found = _COMMENT.match(lines[-1]) if lines else None
    return re.sub(r"^\([^)]*\)", r"`\g<0>`", found["text"]) if found else None


def _message_of(member: griffe.Object) -> str | None:
    """Return the message that a member of an enumeration stands for."""
    bases = getattr(member.parent, "bases", ())
    if not any(str(base).endswith("Enum") for base in bases):
        return None
    value = ast.literal_eval(str(member.value))
    return value if isinstance(value, str) else None
