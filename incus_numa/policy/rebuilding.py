"""Places a few instances anew, all at once, so that every load stays below a ceiling. Called by `levelling`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import comb

from incus_numa.policy.layout import Change, Layout, Piece
from incus_numa.policy.rooms import bits

WORK_LIMIT = 1_000
"""Sets tried for one group of instances."""

MOST_CHOICES = 6
"""Sets tried for one instance after the other: the least loaded first."""

FEW_SETS = 60
"""So many sets of nodes are all tried."""


class Rebuilding:
    """A depth-first search over the pieces, the largest first. The layout is the same afterwards as it was before."""

    def __init__(self, layout: Layout, pieces: Sequence[Piece], ceiling: float) -> None:
        self._layout = layout
        self._pieces = pieces
        self._ceiling = ceiling
        self._goes: list[tuple[Piece, int]] = []
        self.work = 0

    def run(self) -> Change | None:
        """The first layout found in which no node of theirs reaches the ceiling, None when none is found."""
        layout = self._layout
        for piece in self._pieces:
            layout.lift(piece, piece.nodes)
            layout.take_memory(piece, piece.nodes)
        found = self._place(0)
        for piece in self._pieces:
            layout.lay(piece, piece.nodes)
            layout.give_memory(piece, piece.nodes)
        return found

    def _place(self, at: int) -> Change | None:
        if at == len(self._pieces):
            touched = 0
            for piece, nodes in self._goes:
                touched |= piece.nodes | nodes
            return Change(height=max(self._layout.load[node] for node in bits(touched)), goes=tuple(self._goes))
        piece, layout = self._pieces[at], self._layout
        for nodes in self._choices(piece):
            self.work += layout.memory_work
            if self.work > WORK_LIMIT:
                return None
            if not layout.holds(piece, nodes):
                continue
            before = dict(layout.load)
            layout.lay(piece, nodes)
            layout.give_memory(piece, nodes)
            self._goes.append((piece, nodes))
            found = self._place(at + 1)
            self._goes.pop()
            layout.take_memory(piece, nodes)
            layout.load.update(before)
            if found is not None:
                return found
        return None

    def _choices(self, piece: Piece) -> list[int]:
        """Sets of as many nodes as it has, below the ceiling, those with the lowest highest load first."""
        width = piece.nodes.bit_count()
        if width == 1:
            return self._one_node(piece)
        if comb(len(self._layout.cpus), width) <= FEW_SETS:
            return self._all_sets(piece, width)
        return self._good_sets(piece, width)

    def _one_node(self, piece: Piece) -> list[int]:
        load, found = self._layout.load, dict[tuple[float, float], int]()
        for node, cpus in self._layout.cpus.items():
            height = load[node] + piece.entry.weight / cpus
            if height < self._ceiling and cpus >= piece.cpus:
                # Nodes that are no different are tried once, unless memory makes them different.
                found.setdefault((round(height, 9), cpus if self._layout.memory_work == 1 else node), node)
        return [1 << found[height] for height in sorted(found)[:MOST_CHOICES]]

    def _all_sets(self, piece: Piece, width: int) -> list[int]:
        layout, found = self._layout, list[tuple[float, int]]()
        for nodes in combinations(layout.cpus, width):
            cpus = sum(layout.cpus[node] for node in nodes)
            height = max(layout.load[node] for node in nodes) + piece.entry.weight / cpus
            if cpus >= piece.cpus and height < self._ceiling:
                found.append((round(height, 9), sum(1 << node for node in nodes)))
        return [mask for _, mask in sorted(found)]

    def _good_sets(self, piece: Piece, width: int) -> list[int]:
        """For each node as the fullest one, the largest of those that are no fuller."""
        layout, weight = self._layout, piece.entry.weight
        largest = sum(sorted(layout.cpus.values())[-width:])
        order = sorted(layout.cpus, key=lambda node: (round(layout.load[node], 9), -layout.cpus[node], node))
        rank = {node: (-layout.cpus[node], place) for place, node in enumerate(order)}
        found: dict[int, float] = {}
        for count in range(width, len(order) + 1):
            last = order[count - 1]
            if layout.load[last] + weight / largest >= self._ceiling:
                break
            chosen = [last, *sorted(order[: count - 1], key=rank.__getitem__)[: width - 1]]
            cpus = sum(layout.cpus[node] for node in chosen)
            height = layout.load[last] + weight / cpus
            if cpus >= piece.cpus and height < self._ceiling:
                found[sum(1 << node for node in chosen)] = round(height, 9)
        return sorted(found, key=lambda nodes: (found[nodes], nodes))[:MOST_CHOICES]
