"""The shipped search spaces and analysis scripts: inside the wheel, or beside the package in a checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def bundled(folder: Literal["search_spaces", "analysis"]) -> Path:
    """Folder of the shipped files."""
    package = Path(__file__).resolve().parent
    inside = package / "_bundled" / folder
    return inside if inside.is_dir() else package.parent / folder
