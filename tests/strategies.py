"""Hypothesis strategies: machines of every shape that the kernel can describe, and instances for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, MemoryMode, Policy
from incus_numa.model.machine import CoreKind, Cpu, Machine, Node
from incus_numa.model.snapshot import Snapshot
from tests import builders
from tests.builders import GIB, LARGE_PAGE, SMALL_PAGE


@st.composite
def machines(draw: st.DrawFn, *, max_nodes: int = 6, known_memory: bool = False) -> Machine:
    """Regular or not: unequal, CPU-less, memory-less nodes, sparse ids, isolated CPUs, unknown sizes or distances."""
    count = draw(st.integers(1, max_nodes))
    step = draw(st.sampled_from([1, 1, 3, 37]))
    regular = draw(st.booleans())
    threads = draw(st.sampled_from([1, 2, 2]))
    cores = draw(st.integers(1, 4))
    sizes = [cores if regular else draw(st.integers(0, 4)) for _ in range(count)]
    if not any(sizes):
        sizes[0] = 1
    amounts = [0, 4 * GIB, 8 * GIB, 32 * GIB] if known_memory else [0, 4 * GIB, 8 * GIB, 32 * GIB, None]
    memory = [8 * GIB if regular else draw(st.sampled_from(amounts)) for _ in range(count)]
    has_distances = draw(st.booleans())
    per_l3 = draw(st.sampled_from([1, 2, 8]))
    cpus: list[Cpu] = []
    nodes: list[Node] = []
    for index in range(count):
        first = len(cpus)
        for place in range(sizes[index] * threads):
            core = first + place - place % threads
            l3 = first + place // threads // per_l3 * per_l3 * threads
            cpus.append(Cpu(id=first + place, node=index * step, socket=index // 2, core=core, l3=l3))
        distances = {
            other * step: 10 if other == index else 12 if other // 2 == index // 2 else draw(st.sampled_from([20, 32]))
            for other in range(count)
        }
        nodes.append(
            Node(
                id=index * step,
                cpus=CpuSet(range(first, len(cpus))),
                memory_bytes=memory[index],
                distances=distances if has_distances else {},
            )
        )
    isolated = CpuSet(draw(st.lists(st.integers(0, len(cpus) - 1), max_size=2))) if draw(st.booleans()) else CpuSet()
    if len(isolated) == len(cpus):
        isolated = CpuSet()
    return Machine(
        nodes=tuple(nodes), cpus=tuple(cpus), online=CpuSet(range(len(cpus))), isolated=isolated, name="drawn"
    )


@st.composite
def equipped(draw: st.DrawFn, host: Machine) -> Machine:
    """The machine with huge pages and reservations on some nodes, and perhaps with two kinds of cores."""
    nodes = []
    for node in host.nodes:
        room = GIB if node.memory_bytes is None else node.memory_bytes
        pages = {
            size: draw(st.sampled_from([0, 0, GIB, 4 * GIB]))
            for size in draw(st.sets(st.sampled_from([SMALL_PAGE, LARGE_PAGE])))
        }
        kept = draw(st.sampled_from([0, 0, GIB, 3 * GIB]))
        # The kernel sets huge pages aside in the node's memory, and only what is left can be kept for the host.
        pages = pages if sum(pages.values()) <= room else {}
        kept = min(kept, room - sum(pages.values()))
        nodes.append(replace(node, hugepages=pages, reserved_bytes=kept))
    kinds = draw(st.sampled_from([None, None, list(CoreKind)]))
    kind_of = {cpu.core: draw(st.sampled_from(kinds)) if kinds else None for cpu in host.cpus}
    return replace(
        host, nodes=tuple(nodes), cpus=tuple(replace(cpu, kind=kind_of[cpu.core]) for cpu in host.cpus), name="equipped"
    )


@st.composite
def instances(draw: st.DrawFn, name: str, *, plain: bool = False, device_nodes: Sequence[int] = (0,)) -> Instance:
    """A managed instance, its devices on some of the nodes.

    A plain one has no pin, policy, tie, huge pages or CPUs of its own, and memory that counts as a limit.
    """
    vcpus = draw(st.sampled_from([None, 1, 1, 2, 2, 3, 4, 5, 8, 12, 40]))
    memory = draw(st.sampled_from([None, None, GIB, 3 * GIB, 6 * GIB, 12 * GIB, 30 * GIB]))
    made = builders.instance(name, vcpus=vcpus, memory_bytes=memory)
    if plain:
        return made
    tied = draw(st.booleans())
    return replace(
        made,
        group=draw(st.sampled_from([None, "a", "b"])) if tied else None,
        avoid=tuple(sorted(draw(st.sets(st.sampled_from(["a", "b", "nobody"]), max_size=2)))) if tied else (),
        device_nodes=NodeSet(draw(st.sets(st.sampled_from(device_nodes), max_size=2))) if tied else NodeSet(),
        movable=draw(st.sampled_from([True, True, True, False])),
        managed=draw(st.sampled_from([True, True, True, False])),
        policy=draw(st.sampled_from([Policy.BALANCED] * 4 + list(Policy))),
        memory=draw(st.sampled_from(list(MemoryMode))),
        demand=replace(
            made.demand,
            weight=draw(st.sampled_from([made.demand.weight, made.demand.weight, 0.25, 0.0])),
            memory_is_usage=draw(st.booleans()) and memory is not None,
            pinned_cpus=CpuSet([0]) if draw(st.integers(0, 9)) == 0 else None,
            hugepages=draw(st.sampled_from([{}, {}, {}, {SMALL_PAGE: GIB}, {SMALL_PAGE: 3 * GIB, LARGE_PAGE: GIB}])),
            cores=draw(st.sampled_from([None, *CoreKind])),
            exclusive=draw(st.integers(0, 3)) == 0,
        ),
    )


@st.composite
def snapshots(
    draw: st.DrawFn, *, max_nodes: int = 6, max_instances: int = 8, plain: bool = False, known_memory: bool = False
) -> Snapshot:
    """A machine with fresh instances: nothing is observed yet. A plain one has neither huge pages nor reservations."""
    machine = draw(machines(max_nodes=max_nodes, known_memory=known_memory))
    if not plain:
        machine = draw(equipped(machine))
    ids = list(machine.node_by_id)
    return Snapshot(
        machine=machine,
        instances=tuple(
            draw(instances(f"i{index}", plain=plain, device_nodes=ids))
            for index in range(draw(st.integers(1, max_instances)))
        ),
    )
