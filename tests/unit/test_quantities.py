"""Amounts as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.quantities import (
    check_hugepages,
    parse_bytes,
    parse_memory,
    parse_percent,
    render_both,
    render_bytes,
    render_exactly,
)


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


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("8G", 8 * 10**9),
        ("8GiB", 8 << 30),
        ("500M", 500 * 10**6),
        ("8500Mi", 8500 << 20),
        ("123", 123),
        (123, 123),
        (0, 0),
        ((1 << 63) - 1, (1 << 63) - 1),
    ],
)
def test_memory_is_text_or_a_number_of_bytes(value: object, size: int) -> None:
    assert parse_memory(value) == size


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (-1, "0 or more"),
        (1 << 63, "less than 8 EiB"),
        ("8EiB", "less than 8 EiB"),
        ("-1G", "bad amount '-1G'"),
        ("9" * 5000, "5000 characters are too long"),
        (float("nan"), "expected an amount"),
        (1.0, "expected an amount"),
        (True, "expected an amount"),
        (None, "expected an amount"),
        (["8G"], "expected an amount"),
    ],
)
def test_what_is_no_amount_of_memory_is_refused(value: object, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_memory(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1kB"),
        (1024, "1KiB"),
        (8 << 30, "8GiB"),
        (8 * 10**9, "8GB"),
        (8500 << 20, "8500MiB"),
        ((8 << 30) + 1, "8589934593"),
    ],
)
def test_exact_amount_is_short(size: int, text: str) -> None:
    assert render_exactly(size) == text


@given(st.integers(0, (1 << 63) - 1) | st.integers(0, 9999).map(lambda size: size << 30))
def test_exact_amount_is_read_back(size: int) -> None:
    assert parse_bytes(render_exactly(size)) == size


def test_amount_for_sentences_is_exact_and_readable() -> None:
    assert render_both(3 << 30) == "3221225472 bytes (3 GiB)"


@pytest.mark.parametrize(
    ("page", "size", "problem"),
    [
        (1 << 21, 1 << 30, None),
        (1 << 21, 0, None),
        (1 << 21, 1, "1 bytes are no whole number of pages of 2097152 bytes"),
        (3 << 20, 3 << 20, "3145728 is no page size: expected bytes, a power of two such as 2097152"),
        (2, 4, "2 is no page size: expected bytes, a power of two such as 2097152"),
    ],
)
def test_huge_pages_are_whole_and_of_a_real_size(page: int, size: int, problem: str | None) -> None:
    assert check_hugepages(page, size) == problem


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
