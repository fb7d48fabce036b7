"""Machines and mixes of instances, each made from a seed: random ones and those of real hosts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import Demand, Instance, InstanceKey
from incus_numa.model.machine import Cpu, Machine, Node
from tests.bench.reference.ground import Ground, survey
from tests.builders import GIB, MACHINES, load_machine

TOPOLOGIES = Path(__file__).parents[4] / "shared" / "data" / "topologies"
MOST_INSTANCES = 400
UNIT = 256 << 20
"""Memory demands are multiples of this."""

SHAPES = ("flat", "sockets", "ring", "tree", "random", "asymmetric", "unknown")
SIZES = ("small", "geometric", "mixed", "large")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A machine and the instances to place on it; `words` tell people what it is, `name` is how to make it again."""

    name: str
    seed: int
    words: str
    machine: Machine
    ground: Ground
    instances: tuple[Instance, ...]

    @property
    def with_memory(self) -> bool:
        """Whether any instance has a memory limit."""
        return any(one.demand.memory_bytes for one in self.instances)


def make_case(name: str) -> Case:
    """A case by its name: `few:SEED` (2 to 10 nodes), `many:SEED` (12 to 32) or `real:SEED` (a real machine)."""
    kind, _, text = name.partition(":")
    seed = int(text)
    chance = Random(f"{kind} {seed}")
    if kind == "real":
        machines = real_machines()
        machine = machines[seed % len(machines)]
    else:
        machine = random_machine(chance, chance.randint(2, 10) if kind == "few" else chance.randint(12, 32))
    ground = survey(machine)
    sizes, fill = chance.choice(SIZES), chance.uniform(0.3, 1.5)
    draw = Draw(chance=chance, ground=ground, sizes=sizes, memory=chance.random() < 0.4, fill=fill)
    instances = tuple(draw.until_full())
    asked = "with memory" if draw.memory else "no memory"
    words = f"{machine.name}, {len(instances)} instances, {sizes}, fill {fill:.0%}, {asked}"
    return Case(name=name, seed=seed, words=words, machine=machine, ground=ground, instances=instances)


@dataclass(kw_only=True)
class Draw:
    """Draws instances of one distribution of sizes."""

    chance: Random
    ground: Ground
    sizes: str
    memory: bool
    fill: float

    def __post_init__(self) -> None:
        have = sorted(cpus for cpus in self.ground.cpus if cpus)
        self.total = sum(have)
        self.node = have[len(have) // 2]
        self.palette = [self.chance.randint(self.node + 1, 4 * self.node) for _ in range(4)]
        self.shared = self.chance.random() < 0.2
        known = sum(size for size in self.ground.memory if size < 1 << 50)
        self.per_cpu = 0.7 * known / self.total / max(1.0, self.fill)
        self.count = 0

    def until_full(self) -> Iterator[Instance]:
        """Instances until they commit the wanted part of the machine's CPUs."""
        committed = 0.0
        while committed < self.fill * self.total and self.count < MOST_INSTANCES:
            one = self.one()
            committed += one.demand.weight
            yield one

    def one(self) -> Instance:
        """One more instance."""
        vcpus = max(1, min(self._vcpus(), self.total))
        weight = vcpus * (self.chance.choice([0.25, 0.5, 1.0]) if self.shared else 1.0)
        size = None
        if self.memory and self.per_cpu:
            size = max(1, int(self.per_cpu * vcpus * self.chance.choice([0.25, 0.75, 2.0]) / UNIT)) * UNIT
        self.count += 1
        demand = Demand(vcpus=vcpus, weight=weight, memory_bytes=size)
        return Instance(key=InstanceKey("default", f"i{self.count:05}"), managed=True, demand=demand)

    def _vcpus(self) -> int:
        if self.sizes == "small":
            return self.chance.randint(1, 4)
        if self.sizes == "geometric":
            size = 1
            while self.chance.random() < 0.5 and size < 2 * self.node:
                size *= 2
            return size
        if self.sizes == "mixed":
            return self.chance.randint(1, 2 * self.node)
        return self.chance.choice(self.palette)


def random_machine(chance: Random, count: int) -> Machine:
    """Nodes of equal or unequal CPUs and memory, some without CPUs, at distances of one of SHAPES."""
    threads = chance.choice([1, 2])
    base = chance.choice([2, 4, 8, 16]) * threads
    kinds = [base, *(chance.choice([2, 4, 6, 8, 12, 16]) * threads for _ in range(chance.choice([0, 0, 1, 2])))]
    sizes = [chance.choice(kinds) for _ in range(count)]
    if chance.random() < 0.2 and count > 2:
        for index in chance.sample(range(count), chance.randint(1, count // 3)):
            sizes[index] = 0
    memory = _memory(chance, count)
    shape = chance.choice(SHAPES)
    rows = distances(chance, shape, count)
    cpus: list[Cpu] = []
    nodes: list[Node] = []
    for index, size in enumerate(sizes):
        first = len(cpus)
        for cpu in range(first, first + size):
            cpus.append(Cpu(id=cpu, node=index, socket=index // 4, core=cpu - (cpu - first) % threads, l3=first))
        own = CpuSet(range(first, first + size))
        nodes.append(Node(id=index, cpus=own, memory_bytes=memory[index], distances=rows[index]))
    name = f"{count} nodes of {'/'.join(map(str, sorted(set(sizes))))} CPUs, {shape}"
    return Machine(name=name, nodes=tuple(nodes), cpus=tuple(cpus), online=CpuSet(range(len(cpus))))


def _memory(chance: Random, count: int) -> list[int | None]:
    kind = chance.choice(["equal", "equal", "unequal", "unknown", "holes"])
    if kind == "unknown":
        return [None] * count
    amounts: list[int | None] = [chance.choice([16, 32, 64]) * GIB]
    if kind != "equal":
        amounts += [chance.choice([8, 24, 48, 128]) * GIB, 0 if kind == "holes" else 96 * GIB]
    return [chance.choice(amounts) for _ in range(count)]


def distances(chance: Random, shape: str, count: int) -> list[dict[int, int]]:
    """Rows of kernel distances by node; empty rows where unknown."""
    if shape == "unknown":
        return [{} for _ in range(count)]
    rows = [dict.fromkeys(range(count), 10) for _ in range(count)]
    arm = chance.choice([2, 3, 4])
    for a in range(count):
        for b in range(count):
            if a != b and (a < b or shape == "asymmetric"):
                value = _distance(chance, shape, (a, b), count, arm)
                rows[a][b] = value
                if shape != "asymmetric":
                    rows[b][a] = value
    return rows


def _distance(chance: Random, shape: str, pair: tuple[int, int], count: int, arm: int) -> int:
    a, b = pair
    if shape == "flat":
        return 20
    if shape == "sockets":
        return 12 if a * 2 // count == b * 2 // count else 32
    if shape == "ring":
        return 10 + 6 * min(abs(a - b), count - abs(a - b))
    if shape == "tree":
        return 11 if a // arm == b // arm else 12 if a // arm // 2 == b // arm // 2 else 32
    return chance.choice([11, 12, 16, 20, 21, 28, 32, 40])


@cache
def real_machines() -> tuple[Machine, ...]:
    """All multi-node machines of tests/machines, and of ../shared where it is there."""
    found = [load_machine(path.stem) for path in sorted(MACHINES.glob("*.json")) if path.stem != "overlapping-nodes"]
    for expected in sorted(TOPOLOGIES.glob("*.expected.json")):
        machine = _from_facts(expected)
        if machine is not None:
            found.append(machine)
    return tuple(one for one in found if sum(bool(cpus) for cpus in survey(one).cpus) > 1)


def _from_facts(expected: Path) -> Machine | None:
    """The machine of a snapshot's established facts, which are much faster to read than its files.

    None where it has one node, or CPUs in several.
    """
    facts = json.loads(expected.read_bytes())
    if len(facts["nodes"]) < 2 or facts.get("cpus_in_several_nodes"):
        return None
    online = CpuSet.parse(facts["cpu"]["online"] or "")
    owner: dict[int, int] = {}
    nodes = []
    for ident, one in sorted(facts["nodes"].items(), key=lambda item: int(item[0])):
        cpus = CpuSet.parse(one["cpus_online"] or "") & online
        owner |= dict.fromkeys(cpus, int(ident)) | owner
        size = None if one["memory_kib"] is None else one["memory_kib"] * 1024
        far = {int(other): value for other, value in (one.get("distance_to") or {}).items()}
        nodes.append(Node(id=int(ident), cpus=cpus, memory_bytes=size, distances=far))
    core = {cpu: group.lowest() for group in map(CpuSet.parse, facts["cores"]) for cpu in group}
    threads = tuple(Cpu(id=cpu, node=owner.get(cpu), socket=None, core=core.get(cpu, cpu), l3=None) for cpu in online)
    return Machine(
        name=expected.name.removesuffix(".expected.json"),
        nodes=tuple(nodes),
        cpus=threads,
        online=online,
        isolated=CpuSet.parse(facts["cpu"]["isolated"] or ""),
    )
