"""Text as HTML."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape


def with_code(text: str) -> Markup:
    """Escaped text with `names` set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def glued(heading: str) -> Markup:
    """A heading that may break after a slash; its arrow stays on the line of its last word."""
    return Markup(re.sub(" (?=[↓↑])", "\u00a0", str(escape(heading))).replace("/", "/<wbr>"))


def breakable(name: str) -> Markup:
    """A name that may break after its underscores."""
    return Markup(str(escape(name)).replace("_", "_<wbr>"))


def data_uri(path: Path, kind: str) -> str:
    """A file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def paragraphs(texts: Sequence[str]) -> Markup:
    """Paragraphs of texts with `names`, the first as the lead."""
    lines = (
        Markup('<p class="{}">{}</p>').format("answer" if number else "answer lead", with_code(text))
        for number, text in enumerate(texts)
    )
    return Markup("").join(lines)
