"""Simpler rules for the same mixes, by CPUs alone: what they would put where, one instance after the other.

The peers' rules are told as far as they decide about nodes. All of them take the instances as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import combinations, islice
from math import ceil

from tests.bench.reference.ground import Ground

SETS_LIMIT = 20_000
"""Sets of one width that the kubelet's rule looks at."""


@dataclass(kw_only=True)
class Host:
    """Nodes with CPUs, their committed weight and how many instances each has."""

    ground: Ground
    nodes: list[int] = field(init=False)
    load: dict[int, float] = field(init=False)
    count: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = [index for index, cpus in enumerate(self.ground.cpus) if cpus]
        self.load = dict.fromkeys(self.nodes, 0.0)
        self.count = dict.fromkeys(self.nodes, 0)

    def cpus(self, node: int) -> int:
        """Usable CPUs."""
        return self.ground.cpus[node]

    def free(self, node: int) -> float:
        """CPUs that are not committed, none where the node is overcommitted."""
        return max(0.0, self.cpus(node) * (1 - self.load[node]))

    def put(self, nodes: Iterable[int], weight: float) -> None:
        """Count an instance on nodes."""
        chosen = list(nodes)
        part = weight / sum(map(self.cpus, chosen))
        for node in chosen:
            self.load[node] += part
            self.count[node] += 1

    def largest(self, nodes: Iterable[int], wanted: int) -> list[int]:
        """The fewest nodes of those that have the CPUs, the largest first; all where they have fewer."""
        chosen: list[int] = []
        for node in sorted(nodes, key=lambda node: (-self.cpus(node), node)):
            if sum(map(self.cpus, chosen)) >= wanted:
                break
            chosen.append(node)
        return chosen


def greedy(host: Host, vcpus: int, weight: float) -> list[int]:
    """The narrowest set on which the highest load becomes the least."""
    width = len(host.largest(host.nodes, vcpus))
    order = sorted(host.nodes, key=lambda node: (host.load[node], -host.cpus(node), node))
    best: tuple[float, list[int]] | None = None
    for count in range(width, len(order) + 1):
        chosen = host.largest(order[:count], vcpus)
        have = sum(map(host.cpus, chosen))
        if len(chosen) == width and have >= vcpus:
            found = max(host.load[node] for node in chosen) + weight / have, chosen
            best = min(best, found) if best else found
    return best[1] if best else host.nodes


def incus(host: Host, vcpus: int, weight: float) -> list[int]:
    """As many nodes as the CPUs of an average one need, those with the fewest instances; twice as heavy counts once."""
    del weight
    each = sum(map(host.cpus, host.nodes)) / len(host.nodes)
    return sorted(host.nodes, key=lambda node: (host.count[node], node))[: ceil(vcpus / each)]


def kubelet(host: Host, vcpus: int, weight: float) -> list[int]:
    """The narrowest set, lowest ids first, that has the CPUs uncommitted; where none has, that has them at all."""
    del weight
    width = len(host.largest(host.nodes, vcpus))
    for have in (host.free, host.cpus):
        for chosen in islice(combinations(host.nodes, width), SETS_LIMIT):
            if sum(map(have, chosen)) >= vcpus:
                return list(chosen)
    return host.largest(host.nodes, vcpus)


def numad(host: Host, vcpus: int, weight: float) -> list[int]:
    """The nodes with the most uncommitted CPUs, one after the other until their CPUs are enough."""
    del weight
    chosen: list[int] = []
    for node in sorted(host.nodes, key=lambda node: (-host.free(node), node)):
        if sum(map(host.cpus, chosen)) >= vcpus:
            break
        chosen.append(node)
    return chosen


Rule = Callable[[Host, int, float], list[int]]

RULES: tuple[tuple[str, Rule], ...] = (
    ("greedy", greedy),
    ("Incus' rule", incus),
    ("the kubelet's rule", kubelet),
    ("numad's rule", numad),
)


def highest(ground: Ground, demands: Iterable[tuple[int, float]], rule: Rule) -> float:
    """The highest load after placing (vCPUs, weight), one after the other."""
    host = Host(ground=ground)
    for vcpus, weight in demands:
        host.put(rule(host, vcpus, weight), weight)
    return max(host.load.values(), default=0.0)
