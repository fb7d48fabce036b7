"""What `explain` says about instances that keep what they have, and about what the search proved."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon.seen import Seen
from incus_numa.facts import instance as facts_of_instance
from incus_numa.facts.rows import instance_rows
from incus_numa.facts.survey import Survey
from incus_numa.model.instance import Instance, InstanceType, Policy
from incus_numa.model.plan import Placement, Proof
from incus_numa.model.snapshot import Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.settings import Settings
from tests import builders


def survey(snapshot: Snapshot) -> Survey:
    seen = tuple(
        Seen(instance=one, observed=snapshot.observed[one.key], group=None, marked=None, etag=None, turn=1)
        for one in snapshot.instances
    )
    plan = planner.plan(snapshot, Settings().placement)
    return Survey(machine=snapshot.machine, seen=seen, snapshot=snapshot, plan=plan, load_now={})


def explain(name: str, seats: dict[str, tuple[Instance, Observed]]) -> dict[str, Any]:
    instances = [one for one, _ in seats.values()]
    observed = {one.key: what for one, what in seats.values()}
    found = survey(builders.snapshot(builders.machine(), *instances, observed=observed))
    seen = found.get(seats[name][0].key)
    assert seen is not None
    return facts_of_instance.explain(found, seen, Settings())


def seat(name: str, vcpus: int, nodes: str, cpus: str, *, exclusive: bool = False) -> tuple[Instance, Observed]:
    instance = builders.instance(name, vcpus=vcpus)
    return replace(instance, demand=replace(instance.demand, exclusive=exclusive)), builders.decided(nodes, cpus)


def test_kept_instance_is_told_where_it_would_go_now() -> None:
    facts = explain("a", {"a": seat("a", 2, "0", "0,2"), "b": seat("b", 4, "0", "0-3")})
    assert facts["why"] == "kept: node 0 still holds it"
    assert (facts["decision"]["nodes"], facts["placed_anew"]["nodes"]) == ("0", "1")
    assert facts["proof"]["text"] == "best of all sets of 1 node"


def bound_vm(name: str, bound: str) -> tuple[Instance, Observed]:
    """A virtual machine that was given node 0, its memory being bound elsewhere."""
    there = replace(builders.instance(name, vcpus=2), type=InstanceType.VIRTUAL_MACHINE, memory_stays=True)
    return there, replace(builders.decided("0", "0,2"), bound=NodeSet.parse(bound))


def test_kept_machine_whose_memory_is_elsewhere_is_told_that_it_was_a_choice() -> None:
    facts = explain("a", {"a": bound_vm("a", "3"), "b": seat("b", 4, "3", "12-15"), "c": seat("c", 4, "3", "12-15")})
    assert facts["why"] == (
        "kept: node 0 still holds it; the server bound its memory to node 3, which is weighed against load when nodes "
        "are first chosen, and moves nobody later"
    )
    assert facts["placed_anew"]["nodes"] == "2"
    assert "; the server bound its memory to node 3, which would cost 16" in facts["placed_anew"]["why"]


def test_kept_machine_would_be_drawn_to_its_memory_if_it_were_new() -> None:
    assert explain("a", {"a": bound_vm("a", "3")})["placed_anew"]["nodes"] == "3"


@pytest.mark.parametrize("bound", ["", "0", "0-1", "0-3"])
def test_kept_machine_whose_memory_is_with_it_or_anywhere_is_told_nothing_of_it(bound: str) -> None:
    assert explain("a", {"a": bound_vm("a", bound)})["why"] == "kept: node 0 still holds it"


def bound(mems: str, memory: dict[int, int]) -> dict[str, tuple[Instance, Observed]]:
    """A container that was given node 0, whose memory is bound to `mems`."""
    there = replace(builders.decided("0", "0,2"), mems=NodeSet.parse(mems), memory=memory)
    return {"a": (builders.instance("a", vcpus=2), there)}


def test_memory_that_did_not_follow_is_told_with_its_amount() -> None:
    facts = explain("a", bound("0", {0: 5 << 20, 1: 100 << 10, 2: 0, 3: 8 << 10}))
    assert facts["why"] == (
        "kept: node 0 still holds it; 108 KiB on nodes 1,3 did not follow when memory was bound to node 0 (pages in "
        "use just then, or locked) and stays there until it is freed"
    )


@pytest.mark.parametrize("mems", ["0", "0-3", ""])
def test_memory_that_is_where_it_may_be_is_not_told_of(mems: str) -> None:
    elsewhere = {} if mems == "0" else {1: 1 << 20}
    assert explain("a", bound(mems, {0: 5 << 20, **elsewhere}))["why"] == "kept: node 0 still holds it"


@pytest.mark.parametrize(("mems", "has"), [("0", "0"), ("0-1", "0-1"), ("0-3", None), ("", None)])
def test_memory_that_may_be_on_all_nodes_is_told_as_not_bound(mems: str, has: str | None) -> None:
    instances = bound(mems, {})
    assert explain("a", instances)["has_mems"] == has
    snapshot = builders.snapshot(
        builders.machine(),
        *(one for one, _ in instances.values()),
        observed={one.key: at for one, at in instances.values()},
    )
    assert [row["mems"] for row in instance_rows(survey(snapshot))] == [has]


def test_instance_that_is_new_is_not_placed_twice() -> None:
    facts = explain("a", {"a": (builders.instance("a", vcpus=2), Observed())})
    assert facts["placed_anew"] is None
    assert facts["proof"]["complete"]


def test_kept_instance_that_would_be_refused_now_is_told_so() -> None:
    big = builders.instance("big", vcpus=1, memory_bytes=20 << 30, policy=Policy.SINGLE_NUMA_NODE)
    # What others use without a limit drives nobody out, but leaves no room for one that is new.
    loose = {
        f"c{node}": (
            builders.instance(f"c{node}", vcpus=1, memory_bytes=15 << 30, memory_is_usage=True),
            builders.decided(str(node), str(4 * node)),
        )
        for node in range(4)
    }
    facts = explain("big", {"big": (big, builders.decided("0", "1")), **loose})
    assert facts["why"].startswith("kept")
    assert facts["placed_anew"]["nodes"] is None
    assert facts["placed_anew"]["why"].startswith("it would be refused (n")


def test_cpus_of_a_refused_owner_are_not_its_own() -> None:
    own = seat("own", 16, "1-3", "4-15", exclusive=True)
    facts = explain("a", {name: seat(name, 4, "0", "0-3") for name in ("a", "b", "c")} | {"own": own})
    assert (facts["decision"]["nodes"], facts["placed_anew"]["nodes"]) == ("0", "1")


@pytest.mark.parametrize(
    ("proof", "width", "text"),
    [
        (Proof(cost=1, bound=1, least_width=1), 1, "best of all sets of 1 node"),
        (Proof(cost=1, bound=1, least_width=3), 3, "best of all sets of 3 nodes; fewer nodes do not hold it"),
        (
            Proof(cost=1.25, bound=0.5, least_width=3),
            3,
            "the search was cut: this set costs 1.25, none of the sets of 3 nodes less than 0.5; "
            "fewer nodes do not hold it",
        ),
        (
            Proof(cost=1, bound=1, least_width=2),
            3,
            "best of all sets of 3 nodes; the search was cut: fewer than 2 nodes do not hold it, so many may",
        ),
    ],
)
def test_proof_says_what_was_not_searched(proof: Proof, width: int, text: str) -> None:
    one = builders.instance("a", vcpus=1)
    found = survey(builders.snapshot(builders.machine(), one, observed={one.key: Observed()}))
    placement = Placement(key=one.key, nodes=NodeSet(range(width)), cpus=CpuSet([0]), proof=proof)
    plan = replace(found.plan, placements=(placement,))
    facts = facts_of_instance.explain(replace(found, plan=plan), found.seen[0], Settings())
    assert facts["proof"]["text"] == text
