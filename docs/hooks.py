"""What the site needs done to its pages before they are set."""

from __future__ import annotations

import re
from typing import Any


def on_page_markdown(markdown: str, **options: Any) -> str:
    """Take off `no-run`, which is for the tests: to Markdown it is no language."""
    return re.sub(r"^( *```python) no-run$", r"\1", markdown, flags=re.MULTILINE)
