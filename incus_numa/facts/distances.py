"""Draws the distances between nodes as a map, as a part of the picture of a machine. Called by `picture`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from incus_numa.cpuset import NodeSet
from incus_numa.facts.sheet import CELL, EDGE, WIDTH
from incus_numa.facts.words import show_nodes
from incus_numa.model.machine import Node

LABEL, WIDEST, LOW = 40, 44, 18
"""The column of nodes, the widest cell, and how low one may be that has its distance in it."""

ROOM, NUMBER = WIDTH - 2 * EDGE - LABEL, 21
"""... the width that its cells have together, and what a number of three digits needs."""

MOST_NODES = 128
"""The map of more nodes is left out."""

HEATS = 6


def draw_map(nodes: Sequence[Node], top: int) -> Iterator[str]:
    """A map of the distances: a row for each node, a column for each that it reaches."""
    if not _has_distances(nodes):
        return
    told = "from the node of a row to that of a column; a node's own memory is at 10"
    if len(nodes) > MOST_NODES:
        told = f"not drawn, as there are {len(nodes)} nodes: see incus-numa topology --format json"
    yield f'<text class="p" x="{EDGE}" y="{top + 14}">distances</text>'
    yield f'<text class="dim" x="{EDGE + 64}" y="{top + 14}">{told}</text>'
    if len(nodes) > MOST_NODES:
        return
    wide, high = _cell(nodes)
    every = -(-NUMBER // wide)
    for place, node in enumerate(nodes):
        if place % every == 0:
            yield f'<text class="dim m" x="{EDGE + LABEL + (place + 0.5) * wide:g}" y="{top + 34}">{node.id}</text>'
    heats = _heats(nodes)
    if wide < NUMBER:
        yield from _heat_legend(heats, top)
    for place, node in enumerate(nodes):
        y = top + 40 + place * high
        if high >= LOW or place % -(-LOW // high) == 0:
            yield f'<text class="dim e" x="{EDGE + LABEL - 6}" y="{y + high / 2 + 4:g}">{node.id}</text>'
        yield from _distance_row(node, nodes, heats, y)


def _distance_row(node: Node, nodes: Sequence[Node], heats: Mapping[int | None, str], y: int) -> Iterator[str]:
    """Neighbours of one colour are one rectangle, so that the picture of many nodes stays small."""
    wide, high = _cell(nodes)
    x = EDGE + LABEL
    for distance, run in groupby(nodes, lambda one: node.distances.get(one.id)):
        ids = [one.id for one in run]
        told = f"node {node.id} to {show_nodes(NodeSet(ids))}: {'unknown' if distance is None else distance}"
        yield f'<rect class="{heats[distance]}" x="{x}" y="{y}" width="{len(ids) * wide - 1}" height="{high - 1}">'
        yield f"<title>{told}</title></rect>"
        if wide >= NUMBER:
            shown = "-" if distance is None else distance
            for place in range(len(ids)):
                yield f'<text class="m" x="{x + (place + 0.5) * wide:g}" y="{y + 13}">{shown}</text>'
        x += len(ids) * wide


def _heat_legend(heats: Mapping[int | None, str], top: int) -> Iterator[str]:
    """What the colours mean, where no cell can say it."""
    x = EDGE + 64 + 425
    known = [(distance, name) for distance, name in heats.items() if distance is not None]
    for name, run in groupby(known, lambda one: one[1]):
        own = [distance for distance, _ in run]
        label = str(own[0]) if len(own) == 1 else f"{own[0]}-{own[-1]}"
        yield f'<rect class="{name}" x="{x}" y="{top + 5}" width="{CELL}" height="{CELL}"/>'
        yield f'<text class="dim" x="{x + CELL + 4}" y="{top + 14}">{label}</text>'
        x += CELL + 16 + 6 * len(label)


def _heats(nodes: Sequence[Node]) -> Mapping[int | None, str]:
    """A class for each distance: its own as long as there are enough, else by how far it is between the ends."""
    found = sorted({one for node in nodes for one in node.distances.values()})
    last = max(1, len(found) - 1)
    step = 1.0 if last < HEATS else (HEATS - 1) / last
    return {None: "c0"} | {one: f"h{round(place * step)}" for place, one in enumerate(found)}


def _has_distances(nodes: Sequence[Node]) -> bool:
    return len(nodes) > 1 and any(node.distances for node in nodes)


def _cell(nodes: Sequence[Node]) -> tuple[int, int]:
    """Width and height of a cell, which is low where its distance does not fit into it."""
    wide = min(WIDEST, ROOM // len(nodes))
    return wide, LOW if wide >= NUMBER else max(6, wide)


def find_height(nodes: Sequence[Node]) -> int:
    """How high the map is; 0 where there is none."""
    if not _has_distances(nodes):
        return 0
    return 24 if len(nodes) > MOST_NODES else 40 + len(nodes) * _cell(nodes)[1] + 12
