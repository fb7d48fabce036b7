"""Instances that may go elsewhere while a plan of many is improved, and what the nodes carry then.

Used by `levelling` and `rebuilding`. Nothing here changes the ledger it was made from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from math import gcd

from incus_numa.policy.ledger import Commitment, Ledger
from incus_numa.policy.rooms import Rooms, bits

PARTS = 1_000_000
LEAST_UNIT = PARTS // 100

LEAST_GAIN = 1e-9
"""Loads that differ by less are equal."""


@dataclass(kw_only=True, slots=True, eq=False)
class Piece:
    """One instance that may go elsewhere: its place in the caller's list, the CPUs it needs, and where it is."""

    index: int
    cpus: int
    entry: Commitment

    @property
    def nodes(self) -> int:
        """The mask of its nodes."""
        return self.entry.nodes

    @property
    def is_wide(self) -> bool:
        """Whether it is on more than one node."""
        return bool(self.entry.nodes & (self.entry.nodes - 1))

    @property
    def kind(self) -> tuple[object, ...]:
        """Equal for pieces that can stand in for each other anywhere."""
        entry = self.entry
        return self.cpus, entry.nodes.bit_count(), entry.weight, entry.memory_bytes, entry.hugepages


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """Pieces and the nodes, as masks, that they go to; `height` is the highest load of the nodes concerned then."""

    height: float
    goes: tuple[tuple[Piece, int], ...]


class Layout:
    """The loads of all nodes with usable CPUs, their memory, and who is where.

    `memory_work` is what asking for memory costs, counted in sets looked at.
    """

    def __init__(self, ledger: Ledger, pieces: Sequence[Piece]) -> None:
        self.cpus: Mapping[int, int] = {node: count for node, count in ledger.cpu_count.items() if count}
        self.load = {node: ledger.node_load[node] for node in self.cpus}
        self.pieces = pieces
        self.at: dict[int, list[Piece]] = {node: [] for node in self.cpus}
        for piece in pieces:
            for node in bits(piece.nodes):
                self.at[node].append(piece)
        own = ledger.fork()
        self._rooms: list[tuple[int | None, Rooms]] = [(None, own.rooms), *own.huge.items()]
        if not any(piece.entry.memory_bytes or piece.entry.hugepages for piece in pieces):
            self._rooms = []
        self.memory_work = 40 if any(rooms.has_wide for _, rooms in self._rooms) else 1

    def least(self) -> float:
        """No placement of the pieces has a lower highest load.

        Not the mean, and, where all parts that the pieces lay on nodes are multiples of one amount, not what so many of
        that amount come to when each goes where it is lowest.
        """
        mean = max(self._mean_from(size) for size in set(self.cpus.values()))
        parts = self._parts()
        unit = gcd(*parts) if parts else 0
        if unit < LEAST_UNIT:
            return mean
        fixed = {node: round(self.load[node] * count * PARTS) for node, count in self.cpus.items()}
        for piece in self.pieces:
            share = round(piece.entry.weight * PARTS) / self.count_cpus(piece.nodes)
            for node in bits(piece.nodes):
                fixed[node] -= round(share * self.cpus[node])
        room = {node: max(0, int(mean * count * PARTS) - fixed[node]) // unit for node, count in self.cpus.items()}
        left = sum(parts) // unit - sum(room.values())
        heap = [((fixed[node] + (room[node] + 1) * unit) / count, node) for node, count in self.cpus.items()]
        heapify(heap)
        height = mean
        for _ in range(left):
            reached, node = heap[0]
            height = max(height, reached / PARTS)
            heapreplace(heap, (reached + unit / self.cpus[node], node))
        return height

    def _mean_from(self, size: int) -> float:
        """The mean load of the nodes of at least that size once those pieces are gone that smaller ones could hold."""
        large = [node for node, count in self.cpus.items() if count >= size]
        total = sum(self.load[node] * self.cpus[node] for node in large)
        smaller = max((count for count in self.cpus.values() if count < size), default=0)
        for piece in self.pieces:
            if smaller and (piece.is_wide or piece.cpus <= smaller):
                part = piece.entry.weight / self.count_cpus(piece.nodes)
                total -= part * sum(self.cpus[node] for node in large if piece.nodes >> node & 1)
        return total / sum(self.cpus[node] for node in large)

    def _parts(self) -> list[int]:
        """What each piece lays on each of its nodes, in PARTS of a CPU; nothing where that depends on the nodes."""
        if len(set(self.cpus.values())) > 1 and any(piece.is_wide for piece in self.pieces):
            return []
        return [
            round(piece.entry.weight * PARTS / piece.nodes.bit_count())
            for piece in self.pieces
            for _ in range(piece.nodes.bit_count())
        ]

    def count_cpus(self, nodes: int) -> int:
        """Usable CPUs of the nodes."""
        return sum(self.cpus[node] for node in bits(nodes))

    def lift(self, piece: Piece, nodes: int) -> None:
        """Take a piece's load off nodes."""
        self._add(nodes, -piece.entry.weight)

    def lay(self, piece: Piece, nodes: int) -> None:
        """Put a piece's load on nodes."""
        self._add(nodes, piece.entry.weight)

    def take_memory(self, piece: Piece, nodes: int) -> None:
        """Give back what a piece has on nodes."""
        for size, rooms in self._rooms:
            rooms.take(nodes, _amount(piece, size))

    def give_memory(self, piece: Piece, nodes: int) -> None:
        """Commit what a piece needs to nodes, whether it fits or not."""
        for size, rooms in self._rooms:
            rooms.add(nodes, _amount(piece, size))

    def room(self, node: int) -> int:
        """Bytes of a node that are not committed to it alone."""
        return self._rooms[0][1].open(node)

    @property
    def asks_for_memory(self) -> bool:
        """Whether any piece needs memory or huge pages; else no room is known."""
        return bool(self._rooms)

    def holds(self, piece: Piece, nodes: int) -> bool:
        """Whether memory and huge pages of nodes are enough for one piece more."""
        return all(rooms.holds(nodes, _amount(piece, size)) for size, rooms in self._rooms)

    def allows(self, change: Change) -> bool:
        """Whether memory and huge pages are enough for all pieces of a change."""
        if not self._rooms:
            return True
        for piece, _ in change.goes:
            self.take_memory(piece, piece.nodes)
        given = []
        for piece, to in change.goes:
            if not self.holds(piece, to):
                break
            self.give_memory(piece, to)
            given.append((piece, to))
        for piece, to in given:
            self.take_memory(piece, to)
        for piece, _ in change.goes:
            self.give_memory(piece, piece.nodes)
        return len(given) == len(change.goes)

    def apply(self, change: Change) -> None:
        """Carry a change out."""
        for piece, _ in change.goes:
            self.lift(piece, piece.nodes)
            self.take_memory(piece, piece.nodes)
            for node in bits(piece.nodes):
                self.at[node].remove(piece)
        for piece, to in change.goes:
            piece.entry = piece.entry._replace(nodes=to)
            self.lay(piece, to)
            self.give_memory(piece, to)
            for node in bits(to):
                self.at[node].append(piece)

    def _add(self, nodes: int, weight: float) -> None:
        part = weight / self.count_cpus(nodes)
        for node in bits(nodes):
            self.load[node] += part


def kinds(pieces: Iterable[Piece]) -> list[Piece]:
    """One piece of each kind, in the order given."""
    found: dict[tuple[object, ...], Piece] = {}
    for piece in pieces:
        found.setdefault(piece.kind, piece)
    return list(found.values())


def _amount(piece: Piece, page_size: int | None) -> int:
    return piece.entry.memory_bytes if page_size is None else dict(piece.entry.hugepages).get(page_size, 0)
