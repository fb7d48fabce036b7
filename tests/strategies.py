"""Hypothesis strategies: machines of every shape that the kernel can describe, and instances for them."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import Instance, MemoryMode, Policy
from incus_numa.model.machine import Cpu, Machine, Node
from incus_numa.model.snapshot import Snapshot
from tests import builders
from tests.builders import GIB


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
def instances(draw: st.DrawFn, name: str, *, plain: bool = False) -> Instance:
    """A managed instance; a plain one has no pin, no special policy, and memory that counts as a limit."""
    vcpus = draw(st.sampled_from([None, 1, 1, 2, 2, 3, 4, 5, 8, 12, 40]))
    memory = draw(st.sampled_from([None, None, GIB, 3 * GIB, 6 * GIB, 12 * GIB, 30 * GIB]))
    made = builders.instance(name, vcpus=vcpus, memory_bytes=memory)
    if plain:
        return made
    return replace(
        made,
        managed=draw(st.sampled_from([True, True, True, False])),
        policy=draw(st.sampled_from([Policy.BALANCED] * 4 + list(Policy))),
        memory=draw(st.sampled_from(list(MemoryMode))),
        demand=replace(
            made.demand,
            weight=draw(st.sampled_from([made.demand.weight, made.demand.weight, 0.25, 0.0])),
            memory_is_usage=draw(st.booleans()) and memory is not None,
            pinned_cpus=CpuSet([0]) if draw(st.integers(0, 9)) == 0 else None,
        ),
    )


@st.composite
def snapshots(
    draw: st.DrawFn, *, max_nodes: int = 6, max_instances: int = 8, plain: bool = False, known_memory: bool = False
) -> Snapshot:
    """A machine with fresh instances: nothing is observed yet."""
    machine = draw(machines(max_nodes=max_nodes, known_memory=known_memory))
    count = draw(st.integers(1, max_instances))
    return Snapshot(
        machine=machine, instances=tuple(draw(instances(f"i{index}", plain=plain)) for index in range(count))
    )
