"""Sets of CPU and node ids in the kernel's list and mask formats.

Formats: Documentation/admin-guide/cputopology.rst and lib/bitmap.c of the kernel. A set is one integer, so union,
intersection and difference of 4096 CPUs cost the same as of four.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Self

MAX_ID = 1 << 16
"""Ids at or above this are refused: no kernel has that many CPUs or nodes, so the text is wrong."""

_ELEMENT = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?\Z")


class IdSet:
    """An immutable, ordered set of small non-negative ids. Use CpuSet or NodeSet: the two never mix."""

    __slots__ = ("_mask",)
    _noun = "id"

    def __init__(self, ids: Iterable[int] = ()) -> None:
        mask = 0
        for one in ids:
            if not 0 <= one < MAX_ID:
                raise ValueError(f"bad {self._noun} {one}: expected 0 to {MAX_ID - 1}")
            mask |= 1 << one
        self._mask = mask

    @classmethod
    def from_mask(cls, mask: int) -> Self:
        """The set whose ids are the bits set in a non-negative integer."""
        new = cls.__new__(cls)
        new._mask = mask
        return new

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the kernel's list format: `0-3,8`. Empty fields and white space are accepted, as by the kernel.

        Raises ValueError, naming the element, for anything else.
        """
        mask = 0
        for field in text.split(","):
            element = field.strip()
            if not element:
                continue
            match = _ELEMENT.match(element)
            if match is None:
                raise ValueError(f"bad {cls._noun} element {element!r} in {text.strip()!r}")
            first = int(match[1])
            last = int(match[2]) if match[2] is not None else first
            if last < first or last >= MAX_ID:
                raise ValueError(f"bad {cls._noun} range {element!r} in {text.strip()!r}")
            mask |= ((1 << (last - first + 1)) - 1) << first
        return cls.from_mask(mask)

    @classmethod
    def parse_mask(cls, text: str) -> Self:
        """Read the kernel's mask format: comma-separated 32-bit hexadecimal words, highest first."""
        mask = 0
        for word in text.strip().split(","):
            if not re.fullmatch(r"[0-9a-fA-F]{1,8}", word):
                raise ValueError(f"bad mask word {word!r} in {text.strip()!r}")
            mask = mask << 32 | int(word, 16)
        if mask.bit_length() > MAX_ID:
            raise ValueError(f"mask too long: {text.strip()[:40]!r}")
        return cls.from_mask(mask)

    @property
    def mask(self) -> int:
        """The set as an integer with one bit per id."""
        return self._mask

    def __str__(self) -> str:
        """The kernel's list format, shortest form, ascending: `0-3,8`; empty text for the empty set."""
        parts = []
        mask, base = self._mask, 0
        while mask:
            zeros = (mask & -mask).bit_length() - 1
            mask >>= zeros
            ones = (~mask & (mask + 1)).bit_length() - 1
            first = base + zeros
            parts.append(str(first) if ones == 1 else f"{first}-{first + ones - 1}")
            mask >>= ones
            base = first + ones
        return ",".join(parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __iter__(self) -> Iterator[int]:
        mask = self._mask
        while mask:
            low = mask & -mask
            yield low.bit_length() - 1
            mask ^= low

    def __len__(self) -> int:
        return self._mask.bit_count()

    def __bool__(self) -> bool:
        return self._mask != 0

    def __contains__(self, one: object) -> bool:
        return isinstance(one, int) and one >= 0 and bool(self._mask >> one & 1)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IdSet) and type(self) is type(other) and self._mask == other._mask

    def __hash__(self) -> int:
        return hash((type(self), self._mask))

    def __or__(self, other: Self) -> Self:
        return self.from_mask(self._mask | other._mask)

    def __and__(self, other: Self) -> Self:
        return self.from_mask(self._mask & other._mask)

    def __sub__(self, other: Self) -> Self:
        return self.from_mask(self._mask & ~other._mask)

    def __le__(self, other: Self) -> bool:
        return self._mask & ~other._mask == 0

    def lowest(self) -> int:
        """The lowest id. Raises ValueError for the empty set."""
        if not self._mask:
            raise ValueError(f"the empty {self._noun} set has no lowest id")
        return (self._mask & -self._mask).bit_length() - 1


class CpuSet(IdSet):
    """Kernel ids of CPUs (hardware threads)."""

    __slots__ = ()
    _noun = "cpuset"


class NodeSet(IdSet):
    """Kernel ids of NUMA nodes."""

    __slots__ = ()
    _noun = "nodeset"
