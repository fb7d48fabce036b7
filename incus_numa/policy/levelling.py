"""Lowers the highest load of nodes that were chosen one instance after the other. Called by `batch`.

From the fullest node on, an instance goes to other nodes, or changes places with one or two others, or several are
placed anew, where the fullest of the nodes concerned is less full afterwards. So the sorted list of loads falls with
every change, which ends it; work is counted and limited besides, so that the same question always has the same answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement

from incus_numa.policy.layout import LEAST_GAIN, Change, Layout, Piece, kinds
from incus_numa.policy.rebuilding import Rebuilding
from incus_numa.policy.rooms import bits

WORK_LIMIT = 20_000
"""Changes looked at in one plan."""

REBUILT_LIMIT = 20_000
"""Sets looked at in one plan while instances are placed anew, see rebuilding."""

NEAR_ENOUGH = 1.001
"""A highest load this many times the least that any placement could have is not lowered further."""

MOST_PACKED = 60
"""So many instances are packed anew all together."""

PAIRED = 6
"""So many of the least full nodes are also taken two at a time."""

MOST_REBUILT = 14
"""Instances that are placed anew together at most."""


class Levelling:
    """The search for changes, and the work it has done."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._load, self._cpus = layout.load, layout.cpus
        self._wide = [piece for piece in layout.pieces if piece.is_wide]
        self._work = self._rebuilt = 0
        self._least = 0.0

    def run(self) -> None:
        """Change the layout until no fuller node can be made less full."""
        self._least = self._layout.least()
        enough = self._least * NEAR_ENOUGH
        stuck: set[int] = set()
        while self._work < WORK_LIMIT:
            fullest = max(
                (node for node in self._cpus if node not in stuck and self._layout.at[node]),
                key=lambda node: (round(self._load[node], 9), -node),
                default=None,
            )
            if fullest is None or self._load[fullest] <= enough:
                return
            change = self._best_change(fullest)
            if change is None:
                stuck.add(fullest)
                continue
            self._layout.apply(change)
            stuck.clear()

    def _best_change(self, fullest: int) -> Change | None:
        for changes in (self._single, self._exchanges, self._threes):
            best: Change | None = None
            for change in changes(fullest):
                if (best is None or change.height < best.height - LEAST_GAIN) and self._layout.allows(change):
                    best = change
            if best is not None:
                return best
        return next(self._rebuilds(fullest), None)

    def _single(self, fullest: int) -> Iterator[Change]:
        """A piece on one node goes to another; one on several leaves this node for another."""
        height = self._load[fullest] - LEAST_GAIN
        for piece in kinds(self._layout.at[fullest]):
            for node in self._cpus:
                self._work += 1
                if not piece.nodes >> node & 1:
                    change = self._shifted(piece, piece.nodes ^ 1 << fullest | 1 << node)
                    if change is not None and change.height < height:
                        yield change

    def _shifted(self, piece: Piece, nodes: int) -> Change | None:
        """A piece on other nodes, None where these do not have enough CPUs."""
        weight = piece.entry.weight
        count = self._layout.count_cpus(nodes)
        if count < piece.cpus:
            return None
        before, after = weight / self._layout.count_cpus(piece.nodes), weight / count
        height = 0.0
        for node in bits(nodes | piece.nodes):
            load = self._load[node]
            load += after if nodes >> node & 1 else 0.0
            load -= before if piece.nodes >> node & 1 else 0.0
            height = max(height, load)
        return Change(height=height, goes=((piece, nodes),))

    def _exchanges(self, fullest: int) -> Iterator[Change]:
        """A piece changes places with another one on as many nodes."""
        for piece in kinds(self._layout.at[fullest]):
            if piece.is_wide:
                yield from self._wide_exchanges(fullest, piece)
        mine = _narrow_kinds(self._layout.at[fullest])
        for node in self._cpus:
            if node != fullest:
                for other in _narrow_kinds(self._layout.at[node]):
                    for piece in mine:
                        if piece.entry.weight > other.entry.weight:
                            yield from self._trade(fullest, (piece,), node, (other,))

    def _wide_exchanges(self, fullest: int, piece: Piece) -> Iterator[Change]:
        width, weight, here = piece.nodes.bit_count(), piece.entry.weight, self._layout.count_cpus(piece.nodes)
        tried: set[tuple[int, tuple[object, ...]]] = set()
        for other in self._wide:
            if other.nodes.bit_count() != width or other.nodes >> fullest & 1 or (other.nodes, other.kind) in tried:
                continue
            tried.add((other.nodes, other.kind))
            self._work += width
            there = self._layout.count_cpus(other.nodes)
            if there < piece.cpus or here < other.cpus:
                continue
            moved = {
                piece.nodes: (other.entry.weight - weight) / here,
                other.nodes: (weight - other.entry.weight) / there,
            }
            height = max(
                self._load[node] + sum(part for nodes, part in moved.items() if nodes >> node & 1)
                for node in bits(piece.nodes | other.nodes)
            )
            if height < self._load[fullest] - LEAST_GAIN:
                yield Change(height=height, goes=((piece, other.nodes), (other, piece.nodes)))

    def _threes(self, fullest: int) -> Iterator[Change]:
        """A piece changes places with two others, or two with one."""
        mine = _narrow_kinds(self._layout.at[fullest])
        for node in self._cpus:
            if node == fullest:
                continue
            others = _narrow_kinds(self._layout.at[node])
            for piece in mine:
                for two in self._pairs(node, others):
                    yield from self._trade(fullest, (piece,), node, two)
            for two in self._pairs(fullest, mine):
                for other in others:
                    yield from self._trade(fullest, two, node, (other,))

    def _rebuilds(self, fullest: int) -> Iterator[Change]:
        """All pieces are placed anew where they are few, else some of the node and of another one."""
        layout = self._layout
        if self._load[fullest] < max(self._load.values()) - LEAST_GAIN:
            return
        yield from self._packed(self._load[fullest])
        groups: list[Sequence[Piece]] = [layout.pieces]
        if len(layout.pieces) > MOST_REBUILT:
            here = sorted(layout.at[fullest], key=_largest_first)[: MOST_REBUILT // 2]
            nodes = sorted(self._cpus, key=lambda node: (round(self._load[node], 9), node))
            places = [*((node,) for node in nodes), *combinations(nodes[:PAIRED], 2)]
            groups = [_first([*here, *(one for node in place for one in layout.at[node])]) for place in places]
        for group in groups:
            yield from self._rebuilt_below(self._load[fullest] - LEAST_GAIN, group, packs=False)

    def _packed(self, height: float) -> Iterator[Change]:
        """All pieces are packed anew, each where it is fullest below a ceiling: first a low one, then higher ones."""
        if len(self._layout.pieces) <= MOST_PACKED:
            for ceiling in (self._least * NEAR_ENOUGH, (self._least + height) / 2, height - LEAST_GAIN):
                yield from self._rebuilt_below(ceiling, self._layout.pieces, packs=True)

    def _rebuilt_below(self, ceiling: float, pieces: Sequence[Piece], *, packs: bool) -> Iterator[Change]:
        if self._rebuilt < REBUILT_LIMIT:
            rebuilding = Rebuilding(self._layout, sorted(pieces, key=_largest_first), ceiling, packs=packs)
            change = rebuilding.run()
            self._rebuilt += rebuilding.work
            if change is not None:
                yield change

    def _pairs(self, node: int, pieces: Sequence[Piece]) -> Iterator[tuple[Piece, Piece]]:
        for one, two in combinations_with_replacement(pieces, 2):
            if one is not two:
                yield one, two
                continue
            here = self._layout.at[node]
            twin = next((piece for piece in here if piece is not one and piece.kind == one.kind), None)
            if twin is not None:
                yield one, twin

    def _trade(self, fullest: int, mine: tuple[Piece, ...], node: int, others: tuple[Piece, ...]) -> Iterator[Change]:
        """The change if it makes the fuller of the two nodes less full. Pieces are on one node each."""
        self._work += 1
        moved = sum(piece.entry.weight for piece in mine) - sum(piece.entry.weight for piece in others)
        here = self._load[fullest] - moved / self._cpus[fullest]
        there = self._load[node] + moved / self._cpus[node]
        height = max(here, there)
        if (
            height < self._load[fullest] - LEAST_GAIN
            and all(piece.cpus <= self._cpus[node] for piece in mine)
            and all(piece.cpus <= self._cpus[fullest] for piece in others)
        ):
            goes = tuple((piece, 1 << node) for piece in mine) + tuple((piece, 1 << fullest) for piece in others)
            yield Change(height=height, goes=goes)


def _first(pieces: Sequence[Piece]) -> list[Piece]:
    """As many as are placed anew together, each once."""
    return list(dict.fromkeys(pieces))[:MOST_REBUILT]


def _narrow_kinds(pieces: Sequence[Piece]) -> list[Piece]:
    return kinds(piece for piece in pieces if not piece.is_wide)


def _largest_first(piece: Piece) -> tuple[int, float, int]:
    return -piece.nodes.bit_count(), -piece.entry.weight, piece.index
