"""HTML of objects in notebooks: a small table with a picture beside it."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

# Colours are those of the page, which may be dark or light.
_CELL = "text-align:left;padding:1px 10px 1px 0;vertical-align:top"


def card(title: str, rows: Iterable[tuple[str, str]], picture: str = "") -> str:
    """Return a table under a title, with a picture to the right of it.

    Args:
        title: plain text.
        rows: names and values, plain text.
        picture: HTML, such as `image` returns.
    """
    body = "".join(
        f'<tr><td style="{_CELL};opacity:.7">{escape(name)}</td>'
        f'<td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;align-items:flex-start;gap:16px">'
        f'<div><b>{escape(title)}</b><table style="margin:2px 0">{body}</table></div>'
        f"{picture}</div>"
    )


def image(png: bytes, width: int, alternative: str) -> str:
    """Return a picture as HTML that needs no file.

    Args:
        png: its bytes.
        width: in pixels of the page.
        alternative: what it shows, in words.
    """
    data = base64.b64encode(png).decode()
    return f'<img width="{width}" alt="{escape(alternative)}" src="data:image/png;base64,{data}">'


def block_diagram(sizes: Iterable[int], names: Iterable[str], side: int = 120) -> str:
    """Return a square with the diagonal blocks of a matrix, by layer, as SVG.

    Args:
        sizes: of the layers, in their order.
        names: of the layers, shown where the pointer rests.
        side: in pixels of the page.
    """
    pairs = list(zip(sizes, names, strict=True))
    total = sum(size for size, _ in pairs)
    parts, start = [], 0.0
    for size, name in pairs:
        edge = side * size / total
        parts.append(
            f'<rect x="{start:.2f}" y="{start:.2f}" width="{edge:.2f}" height="{edge:.2f}" '
            'fill="currentColor" fill-opacity=".35" stroke="currentColor" stroke-width=".5">'
            f"<title>{escape(name)}: {size:,} parameters</title></rect>"
        )
        start += edge
    return (
        f'<svg width="{side}" height="{side}" viewBox="0 0 {side} {side}" role="img" '
        'aria-label="the diagonal blocks of the matrix, by layer">'
        f'<rect width="{side}" height="{side}" fill="none" stroke="currentColor"/>'
        f"{''.join(parts)}</svg>"
    )
