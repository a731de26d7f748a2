"""The parts that the page "Extend" shows, as files that Python can import. Not a test."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs/how-to/extend.md"
KINDS = ("models", "tokenizers", "layouts", "schemes", "losses", "measures", "samplers")


def write_extension(folder: Path) -> Path:
    """Every titled block of the page as the file of its title; returns the space file."""
    for title, text in re.findall(r'```\w+ title="([^"]+)"\n(.*?)```', PAGE.read_text(), re.DOTALL):
        path = folder / title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "mine" / "__init__.py").touch()
    return folder / "own_parts.yaml"
