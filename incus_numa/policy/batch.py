"""Nodes for many instances at once: better than one after the other. Called by the planner."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey, Policy
from incus_numa.policy import candidates, reasons
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import SEARCH_LIMIT, Need
from incus_numa.policy.layout import Layout, Piece
from incus_numa.policy.levelling import Levelling

FEW = 4
"""Up to so many instances are searched for as if each were alone."""

LEAST_LIMIT = 1_500
"""The least work that choosing the nodes of one of many may take."""

NEARER_ROUNDS = 4
"""How often all are looked at for nearer nodes."""

Rank = tuple[int, float, int, InstanceKey]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Nodes that were chosen for an instance, which is counted there; `found` is what the search had found."""

    instance: Instance
    need: Need
    nodes: NodeSet
    why: str
    found: Candidate


def order(desk: Desk, instances: Iterable[Instance]) -> list[Instance]:
    """The largest first; members of a group one after the other, with the largest of them."""
    widths: dict[tuple[int, int, tuple[tuple[int, int], ...]], int] = {}
    ranks: dict[InstanceKey, Rank] = {}
    leaders: dict[str, Rank] = {}
    several = list(instances)
    for instance in several:
        need = desk.firm_need(instance)
        shape = (need.cpus, need.memory_bytes, need.hugepages)
        if shape not in widths:
            widths[shape] = candidates.minimum_width(desk.empty, need)
        ranks[instance.key] = rank = -widths[shape], -need.weight, -need.memory_bytes, instance.key
        if instance.group is not None:
            leaders[instance.group] = min(rank, leaders.get(instance.group, rank))
    return sorted(
        several, key=lambda one: (leaders[one.group] if one.group is not None else ranks[one.key], ranks[one.key])
    )


def search_limit(count: int) -> int:
    """The work that choosing nodes may take for each of so many instances: all of them together have a limit, too."""
    return SEARCH_LIMIT if count <= FEW else max(LEAST_LIMIT, SEARCH_LIMIT * FEW // count)


def improve(desk: Desk, choices: Sequence[Choice]) -> list[Choice]:
    """Lower the highest load, then bring instances on several nodes nearer together where no load speaks against it.

    Those that devices, groups or others tie to where they are stay there. How many nodes each has never changes.
    """
    better = list(choices)
    loose = [index for index, choice in enumerate(better) if _is_loose(desk, choice)]
    if len(loose) < 2:
        return better
    entries = desk.ledger.entries
    pieces = [
        Piece(index=index, cpus=better[index].need.cpus, entry=entries[better[index].instance.key])
        for index in loose
        if better[index].nodes <= desk.ledger.cpu_nodes
    ]
    Levelling(Layout(desk.ledger, pieces)).run()
    for piece in pieces:
        if piece.entry.nodes != better[piece.index].nodes.mask:
            _move(desk, better, piece.index, NodeSet.from_mask(piece.entry.nodes), reasons.TOGETHER)
    for _ in range(NEARER_ROUNDS):
        if not _draw_near(desk, better, loose):
            break
    return better


def _draw_near(desk: Desk, choices: list[Choice], loose: Iterable[int]) -> bool:
    """Whether any could be brought nearer together, which may make room for another."""
    changed = False
    for index in loose:
        nearer = _nearer(desk, choices[index])
        if nearer is not None:
            _move(desk, choices, index, nearer, reasons.TOGETHER)
            changed = True
    return changed


def _is_loose(desk: Desk, choice: Choice) -> bool:
    instance = choice.instance
    return instance.policy is not Policy.NONE and not desk.ties.is_tied(instance) and choice.need.weight > 0


def _move(desk: Desk, choices: list[Choice], index: int, nodes: NodeSet, why: str) -> None:
    choices[index] = replace(choices[index], nodes=nodes, why=why)
    desk.commit(choices[index].instance, nodes, CpuSet())


def _nearer(desk: Desk, choice: Choice) -> NodeSet | None:
    """As many nodes that are nearer together and not fuller than its own, None when there are none."""
    width, ledger, far = len(choice.nodes), desk.ledger, desk.machine.remoteness
    if width < 2 or not desk.settings.distance_weight:
        return None
    pairs = sum(far[a][b] for a in choice.nodes for b in choice.nodes) / 2
    if pairs <= desk.machine.least_remoteness[width] + 1e-9:
        return None
    entry = ledger.release(choice.instance.key)
    highest = max(ledger.node_load[node] for node in choice.nodes)
    most_load = highest + choice.need.weight / ledger.cpus_of(choice.nodes)
    nodes = candidates.nearest(ledger, choice.need, desk.settings, width=width, most_load=most_load)
    if entry is not None:
        ledger.commit(choice.instance.key, entry)
    if nodes is None or sum(far[a][b] for a in nodes for b in nodes) / 2 >= pairs - 1e-9:
        return None
    return nodes
