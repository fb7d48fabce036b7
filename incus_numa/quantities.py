"""Amounts as people write them: bytes, percentages, durations in seconds.

Byte suffixes are those of Incus (`kB`, `MB`, `GiB`, ...: units.ParseByteSizeString) and of Kubernetes and systemd
(`8G`, `8500Mi`). Results are exact integers.
"""

from __future__ import annotations

import re
from fractions import Fraction

MAX_BYTES = (1 << 63) - 1
"""The largest amount of memory that is taken for one: what the kernel's signed 64-bit counters hold."""

_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")
_MAX_TEXT = 64
_SMALLEST_PAGE = 4096
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15, "e": 10**18}
_BINARY = {prefix: 1024 ** (power + 1) for power, prefix in enumerate("kmgtpe")}
_UNITS = (
    {"": 1, "b": 1, "bytes": 1}
    | {f"{prefix}{end}": size for prefix, size in _DECIMAL.items() for end in ("", "b")}
    | {f"{prefix}{end}": size for prefix, size in _BINARY.items() for end in ("i", "ib")}
)


def parse_bytes(text: str) -> int:
    """`8GiB`, `8G`, `500MB`, `8500Mi` or plain bytes, as an exact number of bytes.

    Raises ValueError if it is no amount, has an unknown suffix, or is not a whole number of bytes.
    """
    match = _AMOUNT.match(text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ValueError(f"bad amount {text!r}: expected for example 8GiB, 500MB or plain bytes")
    exact = Fraction(match[1]) * unit
    if exact.denominator != 1:
        raise ValueError(f"bad amount {text!r}: not a whole number of bytes")
    return int(exact)


def parse_memory(value: object) -> int:
    """An amount of memory in a configuration: text as `parse_bytes` takes it, or a whole number of bytes.

    Raises ValueError for anything else, below 0 or above MAX_BYTES, saying what is expected.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("expected an amount such as 8GiB, 500M, 8500Mi or a whole number of bytes")
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        raise ValueError(f"{len(value)} characters are too long: expected an amount such as 8GiB")
    size = parse_bytes(value) if isinstance(value, str) else value
    if not 0 <= size <= MAX_BYTES:
        raise ValueError("expected 0 or more and less than 8 EiB")
    return size


def check_hugepages(page_bytes: int, size_bytes: int) -> str | None:
    """What is wrong with so many bytes of huge pages of this size, None if nothing."""
    if page_bytes < _SMALLEST_PAGE or page_bytes.bit_count() != 1:
        return f"{page_bytes} is no page size: expected bytes, a power of two such as 2097152"
    if size_bytes % page_bytes:
        return f"{size_bytes} bytes are no whole number of pages of {page_bytes} bytes"
    return None


def parse_percent(text: str) -> float:
    """`50%` as 0.5. Raises ValueError outside 0 to 100 percent."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", text)
    if match is None or not 0 <= float(match[1]) <= 100:
        raise ValueError(f"bad percentage {text!r}: expected 0% to 100%")
    return float(match[1]) / 100


def render_exactly(size: int) -> str:
    """The shortest amount that `parse_bytes` reads as just so many bytes: `8GiB`, `8GB`, `1234`. 0 or more bytes."""
    units = [(f"{prefix.upper()}iB", factor) for prefix, factor in _BINARY.items()]
    units += [(f"{prefix.upper().replace('K', 'k')}B", factor) for prefix, factor in _DECIMAL.items()]
    whole = [f"{size // factor}{unit}" for unit, factor in units if size and size % factor == 0]
    return min([*whole, str(size)], key=len)


def render_both(size: int) -> str:
    """An amount for sentences that must be exact and readable: `3221225472 bytes (3 GiB)`."""
    return f"{size} bytes ({render_bytes(size)})"


def render_bytes(size: int) -> str:
    """A short binary amount for people: `9.2 GiB`, `512 B`."""
    amount, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(amount) >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.1f} {units[0]}".replace(".0 ", " ")
