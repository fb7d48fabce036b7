"""CpuSet behaves as a set of integers, and its text formats lose nothing."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet

IDS = st.frozensets(st.integers(0, 4200), max_size=60)


@given(IDS)
def test_list_text_round_trip_is_the_identity(ids: frozenset[int]) -> None:
    assert CpuSet.parse(str(CpuSet(ids))) == CpuSet(ids)


@given(IDS)
def test_text_is_canonical(ids: frozenset[int]) -> None:
    """Elements ascend and never touch, so equal sets have equal text and it is the shortest."""
    ranges = [[int(end) for end in element.split("-")] for element in str(CpuSet(ids)).split(",") if element]
    assert all(one[-1] + 1 < two[0] for one, two in pairwise(ranges))
    assert all(len(one) == 1 or one[0] < one[1] for one in ranges)


@given(IDS)
def test_mask_text_is_read_back(ids: frozenset[int]) -> None:
    digits = f"{CpuSet(ids).mask:0{8 * 132}x}"
    words = ",".join(digits[start : start + 8] for start in range(0, len(digits), 8))
    assert CpuSet.parse_mask(words) == CpuSet(ids)


@given(IDS, IDS)
def test_operations_are_those_of_sets(one: frozenset[int], two: frozenset[int]) -> None:
    left, right = CpuSet(one), CpuSet(two)
    assert set(left | right) == one | two
    assert set(left & right) == one & two
    assert set(left - right) == one - two
    assert (left <= right) == (one <= two)
    assert (left == right) == (one == two)


@given(IDS)
def test_iteration_ascends_and_counts(ids: frozenset[int]) -> None:
    cpus = CpuSet(ids)
    assert list(cpus) == sorted(ids)
    assert (len(cpus), bool(cpus)) == (len(ids), bool(ids))
    assert all(one in cpus for one in ids)
    assert not ids or cpus.lowest() == min(ids)


@given(st.text(alphabet="0123456789-,^ x:/\n", max_size=20))
def test_any_text_is_a_set_or_a_refusal(text: str) -> None:
    try:
        cpus = CpuSet.parse(text)
    except ValueError:
        return
    assert CpuSet.parse(str(cpus)) == cpus
