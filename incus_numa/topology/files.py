"""Small kernel files under one directory, read leniently.

What is missing or wrong is noted as a sentence and returned as None, so that a reader of the machine never fails
and never guesses. Used by the modules of this package that read sysfs and procfs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from incus_numa.cpuset import MAX_ID, CpuSet, IdSet, NodeSet

_MAX_BYTES = 1 << 20


class Notes:
    """Warnings in the order they were first noted; the same warning about many ids becomes one sentence."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def add(self, sentence: str, ident: int | None = None) -> None:
        """Note a sentence; `{}` in it stands for the ids it is noted about."""
        self._ids[sentence] = self._ids.get(sentence, 0) | (0 if ident is None else 1 << ident)

    def sentences(self) -> tuple[str, ...]:
        """The warnings for people."""
        return tuple(_fill(sentence, IdSet.from_mask(mask)) for sentence, mask in self._ids.items())


def _fill(sentence: str, ids: IdSet) -> str:
    return sentence.replace("{}", str(ids) if len(ids) == 1 else f"[{ids}]") if ids else sentence


class KernelFiles:
    """The files below `root`, shown to people as below `shown`; nothing outside is read."""

    def __init__(self, root: Path, shown: str) -> None:
        self._root = os.fspath(root)
        self.shown = shown
        self.notes = Notes()

    def text(self, name: str) -> str | None:
        """The content without surrounding white space, None if it cannot be read."""
        try:
            with open(f"{self._root}/{name}", "rb", buffering=0) as file:
                content = file.read(_MAX_BYTES)
        except OSError:
            return None
        return content.decode(errors="replace").strip()

    def numbered(self, folder: str, prefix: str) -> IdSet | None:
        """The numbers of the entries `PREFIXn` of a folder, None if it cannot be listed."""
        try:
            names = os.listdir(f"{self._root}/{folder}")
        except OSError:
            return None
        matches = (re.fullmatch(rf"{prefix}([0-9]{{1,5}})", name) for name in names)
        return IdSet(number for match in matches if match and (number := int(match[1])) < MAX_ID)

    def cpus(self, folder: str, names: Iterable[str], ident: int) -> CpuSet | None:
        """The CPUs in the first usable of the named files; a name ending in `list` has the list format.

        `{}` in the folder stands for `ident`. A malformed file is noted, a missing one is not.
        """
        for name in names:
            text = self.text(f"{folder.replace('{}', str(ident))}/{name}")
            if text is None:
                continue
            try:
                return CpuSet.parse(text) if name.endswith("list") else CpuSet.parse_mask(text)
            except ValueError:
                kind = "list such as 0-3,8" if name.endswith("list") else "hexadecimal mask"
                self.notes.add(f"{self.shown}/{folder}/{name} is malformed: expected a CPU {kind}", ident)
        return None

    def cpu_list(self, name: str) -> CpuSet | None:
        """The CPUs in a list file, None if missing or, noted, malformed."""
        text = self.text(name)
        try:
            return None if text is None else CpuSet.parse(text)
        except ValueError:
            self.notes.add(f"{self.shown}/{name} is malformed: expected a CPU list such as 0-3,8")
            return None

    def node_list(self, name: str) -> NodeSet | None:
        """The nodes in a list file, None if missing or, noted, malformed."""
        text = self.text(name)
        try:
            return None if text is None else NodeSet.parse(text)
        except ValueError:
            self.notes.add(f"{self.shown}/{name} is malformed: expected a node list such as 0-3,8")
            return None

    def number(self, name: str) -> int | None:
        """The integer in a file, None if it is missing or no integer."""
        text = self.text(name)
        return int(text) if text and re.fullmatch(r"-?[0-9]{1,18}", text) else None
