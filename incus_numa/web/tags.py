"""Entity tags (RFC 9110): what a client read is named by one, so that it changes that and nothing newer. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable

TAG, ONLY_IF = "ETag", "If-Match"

_TAG = re.compile(r'(W/)?"([^"]*)"')


def render_tag(tag: str) -> str:
    """A tag as the header has it."""
    return f'"{tag}"'


def parse_match(headers: Iterable[str]) -> frozenset[str] | None:
    """The tags of all If-Match headers, None where any will do. Weak ones, and what is no tag, match nothing."""
    lines = [line.strip() for line in headers]
    if not lines or "*" in lines:
        return None
    return frozenset(tag for line in lines for weak, tag in _TAG.findall(line) if not weak)
