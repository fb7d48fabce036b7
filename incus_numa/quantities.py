"""Amounts as people write them: bytes, percentages, durations in seconds.

Byte suffixes are those of Incus (`kB`, `MB`, `GiB`, ...: units.ParseByteSizeString) and of Kubernetes and systemd
(`8G`, `8500Mi`). Results are exact integers.
"""

from __future__ import annotations

import re
from fractions import Fraction

_AMOUNT = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*\Z")
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


def parse_percent(text: str) -> float:
    """`50%` as 0.5. Raises ValueError outside 0 to 100 percent."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", text)
    if match is None or not 0 <= float(match[1]) <= 100:
        raise ValueError(f"bad percentage {text!r}: expected 0% to 100%")
    return float(match[1]) / 100


def render_bytes(size: int) -> str:
    """A short binary amount for people: `9.2 GiB`, `512 B`."""
    amount, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while abs(amount) >= 1024 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.1f} {units[0]}".replace(".0 ", " ")
