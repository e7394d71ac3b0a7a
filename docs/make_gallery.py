"""Run the blocks of gallery.md and write the picture that stands after each of them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt

PAGE = Path(__file__).with_name("gallery.md")
PART = re.compile(r"^```python\n(?P<code>.*?)^```$|^!\[[^\]]*\]\((?P<image>[^)]+)\)$", re.M | re.S)

# One column of a two-column page. Nothing else: the pictures are to show matplotlib's own style.
STYLE = {"figure.figsize": (3.3, 2.5), "savefig.dpi": 160}
COLOURS = 64  # of the palette, enough for lines and maps, and a third of the bytes


def main() -> int:
    """Write all pictures; say how large they are."""
    names: dict[str, Any] = {}
    total = 0
    with mpl.rc_context(STYLE):
        for part in PART.finditer(PAGE.read_text()):
            if part["code"]:
                plt.close("all")
                exec(compile(part["code"], PAGE.name, "exec"), names)
                continue
            path = PAGE.parent / part["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            save(path)
            total += path.stat().st_size
            print(f"{path.stat().st_size:8,} {part['image']}")
    print(f"{total:8,} bytes in all")
    return 0


def save(path: Path) -> None:
    """Write the figure drawn last, with a palette."""
    from PIL import Image

    if not plt.get_fignums():
        raise RuntimeError(f"the block before {path.name} has drawn nothing.")
    plt.gcf().savefig(path)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
