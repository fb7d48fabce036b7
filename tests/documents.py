"""Reads the documents of the repository: their blocks, links and headings, and what they name.

A ```console block is run: lines with `$ ` are commands (one that ends with a backslash goes on in the next line), the
others what they print, `…` standing for any text inside a line and, alone in a line, for any lines. A ```json or
```toml block below a line that ends with "`NAME`:" is the file NAME.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
ANY, ANY_TEXT = "…", ".*"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"`([\w.-]+)`:$")
_LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_SPAN = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block, and the line of text before it."""

    kind: str
    text: str
    above: str

    @property
    def file(self) -> str | None:
        """The name of the file that it is; None where it is none."""
        found = _FILE.search(self.above)
        return found[1] if found and self.kind in ("json", "toml") else None


@dataclass(frozen=True, kw_only=True)
class Command:
    """A line for a shell, and what is shown of its output."""

    line: str
    shown: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One Markdown file."""

    path: Path
    text: str

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Its fenced blocks, in their order."""
        return tuple(
            Block(kind=found[1], text=found[2], above=self.text[: found.start()].rstrip().rpartition("\n")[2])
            for found in _FENCE.finditer(self.text)
        )

    @property
    def prose(self) -> str:
        """The text without fenced blocks."""
        return _FENCE.sub("", self.text)

    @property
    def commands(self) -> tuple[Command, ...]:
        """What is run, in its order."""
        return tuple(one for block in self.blocks if block.kind == "console" for one in _commands(block.text))

    @property
    def links(self) -> tuple[tuple[str, str], ...]:
        """Text and target of every link and picture."""
        return tuple((found[1], found[2]) for found in _LINK.finditer(self.prose))

    @property
    def anchors(self) -> frozenset[str]:
        """What links to headings end with, as forges make them."""
        return frozenset(_anchor(found[1]) for found in _HEADING.finditer(self.prose))

    @property
    def spans(self) -> tuple[str, ...]:
        """What is written as code inside the text."""
        return tuple(found[1] for found in _SPAN.finditer(self.prose))

    @property
    def code_lines(self) -> tuple[str, ...]:
        """What is written as code anywhere: spans, and the lines of blocks for a shell."""
        lines = [
            line for block in self.blocks if block.kind in ("sh", "console", "") for line in block.text.splitlines()
        ]
        return (*self.spans, *lines)


def documents() -> list[Document]:
    """README and everything in docs/."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [Document(path=path, text=path.read_text()) for path in paths]


def is_shown(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether this output is what a document shows. Spaces at the ends of lines do not count."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == ANY else f"{ANY_TEXT.join(map(re.escape, line.rstrip().split(ANY)))} *\n"
        for line in shown
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def _commands(text: str) -> Iterator[Command]:
    joined = text.replace("\\\n", "\\\0").splitlines()
    starts = [number for number, line in enumerate(joined) if line.startswith("$ ")]
    for start, end in pairwise([*starts, len(joined)]):
        yield Command(line=joined[start][2:].replace("\\\0", "\\\n"), shown=tuple(joined[start + 1 : end]))


def _anchor(heading: str) -> str:
    words = re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", ""))
    return words.replace(" ", "-")
