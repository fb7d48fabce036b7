"""Places a few instances anew, all at once, so that every load stays below a ceiling. Called by `levelling`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from incus_numa.policy.layout import Change, Layout, Piece
from incus_numa.policy.rooms import bits

WORK_LIMIT = 4_000
"""Sets looked at for one group of instances."""

MOST_CHOICES = 8
"""Sets tried for one instance after the other: the least loaded first."""

MOST_MAKES = 100
"""Sets that these are chosen from."""


class Rebuilding:
    """A depth-first search over the pieces in the order given. Each goes where the load is lowest first, or highest
    first if it `packs`. The layout is the same afterwards as it was before.
    """

    def __init__(self, layout: Layout, pieces: Sequence[Piece], ceiling: float, *, packs: bool) -> None:
        self._layout = layout
        self._pieces = pieces
        self._ceiling = ceiling
        self._packs = packs
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
        """Sets of as many nodes as it has, below the ceiling, those with the lowest highest load first.

        Nodes of equal load and size are taken in one order only: which of them does not matter for the loads.
        """
        width, weight, alike = piece.nodes.bit_count(), piece.entry.weight, self._alike()
        shapes = sorted(alike)
        found: list[tuple[float, int, list[int]]] = []
        for make in islice(_makes([len(alike[shape]) for shape in shapes], width), MOST_MAKES):
            used = [(shape, count) for shape, count in zip(shapes, make, strict=True) if count]
            cpus = sum(size * count for (_, size), count in used)
            height = max(load for (load, _), _ in used) + weight / cpus
            if cpus >= piece.cpus and height < self._ceiling:
                found.append((round(height, 9), -cpus, make))
            self.work += 1
        chosen = []
        for _, _, make in sorted(found, reverse=self._packs)[:MOST_CHOICES]:
            nodes = [node for shape, count in zip(shapes, make, strict=True) for node in alike[shape][:count]]
            chosen.append(sum(1 << node for node in nodes))
        return chosen

    def _alike(self) -> dict[tuple[float, int], list[int]]:
        """Nodes below the ceiling by load and size, those with the most memory first."""
        layout = self._layout
        alike: dict[tuple[float, int], list[int]] = {}
        for node, cpus in layout.cpus.items():
            load = round(layout.load[node], 9)
            if load < self._ceiling:
                alike.setdefault((load, cpus), []).append(node)
        if layout.asks_for_memory:
            for nodes in alike.values():
                nodes.sort(key=lambda node: (-layout.room(node), node))
        return alike


def _makes(sizes: Sequence[int], count: int) -> Iterator[list[int]]:
    """All ways to take so many from groups of these sizes, as numbers taken of each; much of the first groups first."""
    if not sizes:
        if not count:
            yield []
        return
    rest = sum(sizes[1:])
    for first in range(min(sizes[0], count), max(0, count - rest) - 1, -1):
        for others in _makes(sizes[1:], count - first):
            yield [first, *others]
