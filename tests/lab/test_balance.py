"""Containers that start one after the other: vCPUs per node stay balanced and nobody is moved to make room."""

from __future__ import annotations

import json

import pytest

from tests.lab.lab import Lab, Seen

pytestmark = pytest.mark.lab

SIZES = {"two0": 2, "one0": 1, "one1": 1, "one2": 1, "two1": 2, "one3": 1, "one4": 1}
"""In the order of starting. Counting instances, as the server does, ends with 4 vCPUs on one node and 1 on another."""


@pytest.fixture(scope="module")
def first_seen(lab: Lab) -> dict[str, Seen]:
    """Every container as it was when it had settled, before the next one started."""
    found = {}
    for name, vcpus in SIZES.items():
        lab.launch_balanced(name, vcpus)
        found[name] = lab.settle(name, vcpus)
    return found


def test_the_first_four_are_on_four_nodes(first_seen: dict[str, Seen], lab: Lab) -> None:
    assert {str(first_seen[name].nodes) for name in list(SIZES)[:4]} == {str(node) for node in lab.layout.cpus}


def test_a_second_large_one_is_not_put_on_the_first_ones_node(first_seen: dict[str, Seen]) -> None:
    assert first_seen["two1"].nodes != first_seen["two0"].nodes


def test_vcpus_per_node_differ_by_one_at_most(first_seen: dict[str, Seen], lab: Lab) -> None:
    committed = dict.fromkeys(lab.layout.cpus, 0.0)
    for name, vcpus in SIZES.items():
        nodes = lab.see(name).nodes
        for node in nodes:
            committed[node] += vcpus / len(nodes)
    assert max(committed.values()) - min(committed.values()) <= 1, committed


def test_adding_containers_moved_none_of_the_earlier_ones(first_seen: dict[str, Seen], lab: Lab) -> None:
    assert {name: lab.settle(name, vcpus).nodes for name, vcpus in SIZES.items()} == {
        name: seen.nodes for name, seen in first_seen.items()
    }


def test_list_says_what_the_kernel_says(first_seen: dict[str, Seen], lab: Lab) -> None:
    code, out, err = lab.run_cli("list", "--format", "json")
    assert code == 0, err
    seen = {name: lab.see(name) for name in SIZES}
    assert {row["name"]: (row["nodes"], row["cpus"], row["state"]) for row in json.loads(out)["instances"]} == {
        name: (str(one.nodes), str(one.cpus), "placed") for name, one in seen.items()
    }
