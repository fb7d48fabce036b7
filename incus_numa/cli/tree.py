"""The machine as a tree of text, as `lstopo` shows it: sockets, nodes with their memory, L3 caches with their CPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from incus_numa.cli.output import fold_list
from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.facts.picture import list_caches, list_packages
from incus_numa.facts.words import count, show_nodes
from incus_numa.model.machine import Core, Machine, Node
from incus_numa.quantities import render_bytes

WIDTH = 80


@dataclass(frozen=True, kw_only=True, slots=True)
class _Branch:
    """A line with those below it. `cpus` are at its end and may be folded."""

    text: str
    cpus: str = ""
    below: tuple[_Branch, ...] = field(default=())


def render_tree(machine: Machine) -> str:
    """The tree, no wider than 80 columns where names allow that."""
    numbers = [count(len(machine.nodes), "node"), count(len(machine.online), "CPU")]
    if machine.memory_bytes:
        numbers.append(render_bytes(machine.memory_bytes))
    below = [
        _Branch(text=package.heading, below=tuple(_node(machine, node) for node in package.nodes))
        for package in list_packages(machine)
    ]
    lost = CpuSet(cpu.id for cpu in machine.cpus if cpu.node is None)
    if lost:
        below.append(_Branch(text="in no node: CPUs", cpus=str(lost)))
    top = f"{machine.name or 'machine'}: {', '.join(numbers)}"
    return "\n".join([top, *_lines(below, "")])


def _lines(branches: Sequence[_Branch], indent: str) -> Iterator[str]:
    for place, branch in enumerate(branches):
        is_last = place == len(branches) - 1
        mark, under = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        line, under = indent + mark + branch.text, indent + under
        if len(line) + 1 + len(branch.cpus) <= WIDTH:
            yield f"{line} {branch.cpus}".rstrip()
        else:
            yield line
            more = under + ("│" if branch.below else " ").ljust(4)
            yield from (more + part for part in fold_list(branch.cpus, WIDTH - len(more)).split("\n"))
        yield from _lines(branch.below, under)


def _node(machine: Machine, node: Node) -> _Branch:
    facts = ["memory unknown" if node.memory_bytes is None else render_bytes(node.memory_bytes)]
    if node.memory_bytes and node.free_bytes is not None:
        facts.append(f"{render_bytes(node.free_bytes)} free")
    facts += [f"{render_bytes(size)} in pages of {render_bytes(page)}" for page, size in sorted(node.hugepages.items())]
    if not node.cpus:
        return _Branch(text=f"node {node.id}: {', '.join(facts)}")
    below = [
        _cache(machine, node, l3, own)
        for l3, cores in list_caches(machine.cores_by_node[node.id])
        for own in _by_kind(cores)
    ]
    isolated = node.cpus & machine.isolated
    if isolated:
        below.append(_Branch(text="isolated: CPUs", cpus=str(isolated)))
    return _Branch(text=f"node {node.id}: {', '.join(facts)}", below=tuple(below))


def _by_kind(cores: Sequence[Core]) -> list[tuple[Core, ...]]:
    """The same cores, apart by kind, in the order of the lowest of each."""
    kinds = dict.fromkeys(core.kind for core in cores)
    return [tuple(core for core in cores if core.kind is kind) for kind in kinds]


def _cache(machine: Machine, node: Node, l3: int | None, cores: Sequence[Core]) -> _Branch:
    """An L3 with what of it is in a node and of one kind, and where the rest is."""
    owners = NodeSet(cpu.node for cpu in machine.cpus if l3 is not None and cpu.l3 == l3 and cpu.node is not None)
    others = owners - NodeSet((node.id,))
    shared = f", shared with {show_nodes(others)}" if others else ""
    name = "L3 unknown" if l3 is None else f"L3 #{_number(machine, l3)}"
    cpus = CpuSet(cpu for core in cores for cpu in core.threads)
    return _Branch(text=f"{name}: {_sizes(cores)}{shared}, CPUs", cpus=str(cpus))


def _number(machine: Machine, l3: int) -> int:
    """The L3s counted through the machine from 0, as by `lstopo`: its lowest CPU would look as if some were missing."""
    return sorted({cpu.l3 for cpu in machine.cpus if cpu.l3 is not None}).index(l3)


def _sizes(cores: Sequence[Core]) -> str:
    """`2 cores of 2 threads`, by number of threads; cores are of one kind."""
    kind = f"{cores[0].kind.value} " if cores[0].kind else ""
    found = Counter(len(core.threads) for core in cores)
    return ", ".join(
        f"{count(number, f'{kind}core')} of {count(threads, 'thread')}"
        for threads, number in sorted(found.items(), reverse=True)
    )
