"""Reading traces: what is taken, and what is told about what is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.errors import ConfigError
from incus_numa.replay.stays import MOST_PROBLEMS, Stay, parse_trace

HEADER = "id,arrival_s,departure_s,vcpus,memory_bytes\n"


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_trace(text)
    return caught.value.problems


def test_rows_are_read_in_the_order_of_arrival() -> None:
    found = parse_trace(f"{HEADER}b,7,9,2,1024\na,3.5,,1,\n")
    assert found == (
        Stay(name="a", arrival_s=3.5, departure_s=None, vcpus=1, memory_bytes=None),
        Stay(name="b", arrival_s=7.0, departure_s=9.0, vcpus=2, memory_bytes=1024),
    )


def test_columns_may_be_in_any_order_with_others_between() -> None:
    found = parse_trace("\ufeffkind,vcpus,id, arrival_s ,memory_bytes,departure_s\r\nvm,4,x,1,0,2\r\n\r\n")
    assert found == (Stay(name="x", arrival_s=1.0, departure_s=2.0, vcpus=4, memory_bytes=0),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: empty: expected a header with the columns id,arrival_s,departure_s,vcpus,memory_bytes"),
        (HEADER, "no instance in it, only a header"),
        ("id,arrival_s,departure_s,memory_bytes\n", "line 1: no column vcpus in the header"),
        (f"id,{HEADER}", "line 1: column id is there twice"),
        (f"{HEADER}a,0,1,0,0\n", "line 2, column vcpus: '0': expected a whole number from 1 to 1048576"),
        (f"{HEADER}a,0,1,1.5,0\n", "line 2, column vcpus: '1.5': expected a whole number from 1 to 1048576"),
        (f"{HEADER}a,0,1,,0\n", "line 2, column vcpus: '': expected a whole number from 1 to 1048576"),
        (f"{HEADER}a,0,1,1,-5\n", f"line 2, column memory_bytes: '-5': expected a whole number from 0 to {1 << 62}"),
        (
            f"{HEADER}a,nan,1,1,0\n",
            "line 2, column arrival_s: 'nan': expected a number of seconds from 0 to 1000000000000",
        ),
        (f"{HEADER}a,,1,1,0\n", "line 2, column arrival_s: '': expected a number of seconds from 0 to 1000000000000"),
        (
            f"{HEADER}a,0,1e3,1,0\n",
            "line 2, column departure_s: '1e3': expected a number of seconds from 0 to 1000000000000",
        ),
        (f"{HEADER}a,5,4,1,0\n", "line 2, column departure_s: 4 is before the arrival at 5"),
        (f"{HEADER},5,6,1,0\n", "line 2, column id: empty: expected a name"),
        (f"{HEADER}a,5,6,1\n", "line 2, column memory_bytes: missing: the row has 4 columns"),
        (f"{HEADER}a,0,1,1,0\n\na,2,3,1,0\n", "line 4, column id: 'a' is on line 2, too"),
        (f'{HEADER}"a,0,1,1,0\n', "line 2: unexpected end of data"),
        (
            f"{HEADER}a,0,1,{'9' * 5000},0\n",
            f"line 2, column vcpus: '{'9' * 40}…': expected a whole number from 1 to 1048576",
        ),
    ],
)
def test_what_is_wrong_is_told_with_line_and_column(text: str, said: str) -> None:
    assert problems(text) == (said,)


def test_every_wrong_row_is_told_up_to_a_limit() -> None:
    found = problems(HEADER + "a,0,1,0,0\n" * (MOST_PROBLEMS + 5))
    assert len(found) == MOST_PROBLEMS + 1
    assert found[0].startswith("line 2, column vcpus")
    assert found[-1] == "and 5 more problems"


@given(st.text(max_size=200), st.booleans())
def test_any_text_is_a_trace_or_a_configuration_error(text: str, headed: bool) -> None:
    try:
        told = bool(parse_trace(HEADER + text if headed else text))
    except ConfigError as error:
        told = bool(error.problems)
    assert told


@given(st.permutations([f"i{at},{at},{at + 9},1,0\n" for at in range(9)]))
def test_the_order_of_rows_does_not_matter(lines: list[str]) -> None:
    assert [stay.name for stay in parse_trace(HEADER + "".join(lines))] == [f"i{at}" for at in range(9)]
