"""A machine written and read again is the same machine, whatever its shape."""

from __future__ import annotations

import json
from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet
from incus_numa.errors import ConfigError
from incus_numa.model.machine import CoreKind, Cpu, Machine, Node
from incus_numa.topology import document

AMOUNTS = st.none() | st.integers(0, 1 << 50)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Sparse ids, CPU-less nodes, CPUs without a node, unknown sockets, caches and numbers, huge pages, two kinds."""
    node_ids = sorted(draw(st.sets(st.integers(0, 300), max_size=5)))
    cpu_ids = sorted(draw(st.sets(st.integers(0, 5000), max_size=12)))
    homes = {cpu: draw(st.sets(st.sampled_from(node_ids), max_size=1)) if node_ids else set[int]() for cpu in cpu_ids}
    cores, caches = draw(partition(cpu_ids)), draw(partition(cpu_ids))
    sockets = {core: draw(st.none() | st.integers(0, 1 << 20)) for core in cores.values()}
    has_l3 = {cache: draw(st.booleans()) for cache in caches.values()}
    kinds = {core: draw(st.none() | st.sampled_from(CoreKind)) for core in cores.values()}
    return Machine(
        name=draw(TEXTS),
        nodes=tuple(
            Node(
                id=node,
                cpus=CpuSet(cpu for cpu in cpu_ids if node in homes[cpu]),
                memory_bytes=draw(AMOUNTS),
                free_bytes=draw(AMOUNTS),
                distances={other: 10 if other == node else draw(st.integers(1, 255)) for other in node_ids}
                if draw(st.booleans())
                else {},
            )
            for node in node_ids
        ),
        cpus=tuple(
            Cpu(
                id=cpu,
                node=min(homes[cpu], default=None),
                socket=sockets[cores[cpu]],
                core=cores[cpu],
                l3=caches[cpu] if has_l3[caches[cpu]] else None,
                kind=kinds[cores[cpu]],
            )
            for cpu in cpu_ids
        ),
        online=CpuSet(cpu_ids),
        isolated=CpuSet(draw(st.sets(st.integers(0, 5000), max_size=5))),
        warnings=tuple(draw(st.lists(TEXTS, max_size=2))),
    )


@st.composite
def partition(draw: st.DrawFn, ids: list[int]) -> dict[int, int]:
    """A group for every id, named by its lowest member."""
    lowest: dict[int, int] = {}
    return {one: lowest.setdefault(draw(st.integers(0, 4)), one) for one in ids}


@given(machines())
def test_round_trip_is_the_identity(machine: Machine) -> None:
    assert document.parse_machine(json.dumps(document.render_machine(machine))) == machine


@given(machines(), st.dictionaries(st.sampled_from([1 << 16, 1 << 21, 1 << 30]), st.integers(1, 512), max_size=3))
def test_huge_pages_survive_the_round_trip(machine: Machine, pages: dict[int, int]) -> None:
    amounts = {size: size * count for size, count in pages.items()}
    nodes = tuple(replace(node, memory_bytes=sum(amounts.values()), hugepages=amounts) for node in machine.nodes)
    machine = replace(machine, nodes=nodes)
    assert document.parse_machine(json.dumps(document.render_machine(machine))) == machine


@given(machines(), st.randoms(use_true_random=False))
def test_entries_may_come_in_any_order(machine: Machine, random: Random) -> None:
    shuffled = document.render_machine(machine)
    random.shuffle(shuffled["nodes"])
    random.shuffle(shuffled["cpus"])
    assert document.parse_machine(json.dumps(shuffled)) == machine


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=4)))
def test_any_values_are_read_or_refused_with_problems(value: object) -> None:
    text = json.dumps({"nodes": value, "cpus": value, "online": value, "name": value})
    try:
        document.parse_machine(text)
    except ConfigError as refusal:
        problems = refusal.problems
    else:
        problems = ("none",)
    assert problems
