"""What the parts of a picture have in common: its size, and how text gets into it. Called by those that draw one."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape

WIDTH, EDGE, CELL = 960, 16, 11
"""Of the sheet, its empty edge, and a small square, in pixels."""

_UNSEEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def cut(told: str, letters: int) -> str:
    """So many letters of it at most."""
    return told if len(told) <= letters else told[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"


def text(told: str) -> str:
    """Text as XML takes it, also in attributes; what XML has no letters for is left out."""
    return escape(_UNSEEN.sub("", told), {'"': "&quot;"})
