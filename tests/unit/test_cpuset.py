"""Sets of ids: the kernel's text formats, the operations, and what is refused."""

from __future__ import annotations

import pytest

from incus_numa.cpuset import MAX_ID, CpuSet, NodeSet


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", []),
        ("\n", []),
        ("0", [0]),
        ("0-3,8\n", [0, 1, 2, 3, 8]),
        ("8,0-3", [0, 1, 2, 3, 8]),
        ("1-3,2-4", [1, 2, 3, 4]),
        (",,0 , ,2,", [0, 2]),
        ("0-0", [0]),
        ("007", [7]),
        (f"{MAX_ID - 1}", [MAX_ID - 1]),
    ],
)
def test_list_text_is_read(text: str, ids: list[int]) -> None:
    assert list(CpuSet.parse(text)) == ids


@pytest.mark.parametrize(
    ("text", "element"),
    [
        ("x", "'x'"),
        ("0-x", "'0-x'"),
        ("0,-1", "'-1'"),
        ("1-", "'1-'"),
        ("0-3-5", "'0-3-5'"),
        ("3-1", "'3-1'"),
        ("0-8:2/4", "'0-8:2/4'"),
        ("1 - 3", "'1 - 3'"),
        ("^1", "'^1'"),
        ("0x3", "'0x3'"),
        ("٣", "'٣'"),
        (f"{MAX_ID}", f"'{MAX_ID}'"),
        (f"0-{MAX_ID}", f"'0-{MAX_ID}'"),
        ("9" * 5000, "bad cpuset element"),
    ],
)
def test_bad_list_text_is_refused_naming_the_element(text: str, element: str) -> None:
    with pytest.raises(ValueError, match="bad cpuset") as caught:
        CpuSet.parse(text)
    assert element in str(caught.value)


def test_refusal_says_what_kind_of_set() -> None:
    with pytest.raises(ValueError, match="bad nodeset element 'x' in '0,x'"):
        NodeSet.parse("0,x")


@pytest.mark.parametrize(
    ("text", "listed"),
    [
        ("0", ""),
        ("f", "0-3"),
        ("00000001,00000000", "32"),
        ("1,80000000", "31-32"),
        ("FF", "0-7"),
        ("000,00000005\n", "0,2"),
    ],
)
def test_mask_text_is_read(text: str, listed: str) -> None:
    assert str(CpuSet.parse_mask(text)) == listed


@pytest.mark.parametrize("text", ["", "0x1", "g", "1,,1", "123456789", "-1", "1 1", ",".join(["f" * 8] * 2049)])
def test_bad_mask_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mask"):
        CpuSet.parse_mask(text)


def test_text_is_the_shortest_ascending_list() -> None:
    assert str(CpuSet((9, 1, 2, 3, 5, 6))) == "1-3,5-6,9"
    assert str(CpuSet()) == ""
    assert repr(NodeSet((0, 1))) == "NodeSet('0-1')"


@pytest.mark.parametrize("one", [-1, MAX_ID])
def test_ids_out_of_range_are_refused(one: int) -> None:
    with pytest.raises(ValueError, match=f"bad cpuset {one}"):
        CpuSet([one])


def test_lowest_of_the_empty_set_is_refused() -> None:
    assert CpuSet((70, 3)).lowest() == 3
    with pytest.raises(ValueError, match="empty cpuset"):
        CpuSet().lowest()


def test_sets_of_cpus_and_nodes_are_never_equal() -> None:
    cpus: object = CpuSet((1,))
    assert cpus != NodeSet((1,))
    assert hash(CpuSet((1,))) != hash(NodeSet((1,)))


def test_membership_of_strange_values_is_false() -> None:
    cpus = CpuSet((0, 1))
    assert -1 not in cpus
    assert "0" not in cpus
    assert 1 in cpus


def test_operations_keep_the_kind() -> None:
    one, two = NodeSet((0, 1)), NodeSet((1, 2))
    assert (one | two, one & two, one - two) == (NodeSet((0, 1, 2)), NodeSet((1,)), NodeSet((0,)))
    assert NodeSet((1,)) <= one
    assert not one <= two
    assert bool(one - one) is False
