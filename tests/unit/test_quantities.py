"""Amounts as people write them."""

from __future__ import annotations

import pytest

from incus_numa.quantities import parse_bytes, parse_percent, render_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("512B", 512),
        ("7bytes", 7),
        ("1kB", 1000),
        ("500MB", 500_000_000),
        ("8G", 8_000_000_000),
        ("8GiB", 8 << 30),
        ("8Gi", 8 << 30),
        ("8500Mi", 8500 << 20),
        ("1.5GiB", 3 << 29),
        (" 2 TiB ", 2 << 40),
        ("1PiB", 1 << 50),
        ("1EB", 10**18),
        ("0.1GB", 100_000_000),
        ("12345678901234567890123456789012345KiB", 12345678901234567890123456789012345 * 1024),
    ],
)
def test_amount_is_exact(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e3", "8 GB B", "8XB", "1,5GiB", "50%", "0x10", ".5GiB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bad amount"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0.5", "1.0005kB", "1000000000000000000000000000000.1"])
def test_part_of_a_byte_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a whole number of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "part"), [("0%", 0.0), ("50%", 0.5), (" 12.5 % ", 0.125), ("100%", 1.0)])
def test_percentage_is_a_fraction(text: str, part: float) -> None:
    assert parse_percent(text) == part


@pytest.mark.parametrize("text", ["", "50", "101%", "-1%", "x%", "50%%"])
def test_what_is_no_percentage_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected 0% to 100%"):
        parse_percent(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (9_878_424_781, "9.2 GiB"),
        (3 << 60, "3072 PiB"),
    ],
)
def test_amount_for_people_is_short(size: int, text: str) -> None:
    assert render_bytes(size) == text
