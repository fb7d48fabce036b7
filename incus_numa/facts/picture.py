"""Draws the machine with its instances as SVG: nodes as cards below their sockets, each with its CPUs, its memory and
who is on it.

The same input gives the same text, which refers to nothing outside and follows the reader's light or dark colours.
Called by the command `topology`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from xml.sax.saxutils import escape

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.facts.words import count, show_name
from incus_numa.model.machine import Core, Machine, Node
from incus_numa.quantities import render_bytes

Row = Mapping[str, Any]

WIDTH, EDGE, TOP = 960, 16, 76
IN_ROW, APART = 4, 12
CARD = (WIDTH - 2 * EDGE - (IN_ROW - 1) * APART) // IN_ROW
INSIDE, PAD = CARD - 20, 10
CELL, CORE_GAP, CACHE_GAP, CHIP = 11, 2, 6, 17
MOST_CHIPS = 12
"""Of more instances on one node the number is told."""

LETTERS = INSIDE // 6
"""So many letters fit into a card."""

_COLOURS = {
    "back": ("fill", "#fbfbfa", "#14171a"),
    "card": ("fill", "#ffffff", "#1c2024"),
    "edge": ("stroke", "#d5d9dd", "#363c42"),
    "dim": ("fill", "#59626c", "#a2abb4"),
    "c0": ("fill", "#dde3e8", "#2c3238"),
    "c1": ("fill", "#6fa8dc", "#3f7fb8"),
    "c2": ("fill", "#b3401f", "#ee8159"),
    "isolated": ("fill", "#b9a5d6", "#6f5a92"),
    "memory": ("fill", "#2f6fb0", "#5ea3e0"),
    "placed": ("fill", "#cfe3f5", "#234a6d"),
    "differs": ("fill", "#f6e3b4", "#5d4a17"),
    "refused": ("fill", "#f6d4cd", "#6a2f27"),
    "unmanaged": ("fill", "#e6e6e2", "#34383c"),
}
"""Classes: the property, light and dark. No variables, as not every viewer knows them."""

_LEGEND = (
    ("c0", "free"),
    ("c1", "one instance"),
    ("c2", "several"),
    ("isolated", "isolated"),
    ("memory", "memory in use"),
    ("placed", "placed"),
    ("differs", "differs"),
    ("refused", "refused"),
    ("unmanaged", "unmanaged"),
)
_UNSEEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """Nodes whose CPUs are in the same socket or sockets, with a heading."""

    heading: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Card:
    """One node, how many instances have each of its CPUs, its load if known, and who is on it."""

    node: Node
    cores: tuple[Core, ...]
    isolated: CpuSet
    users: Mapping[int, int]
    load: float | None
    instances: tuple[Row, ...]


def list_packages(machine: Machine) -> tuple[Package, ...]:
    """The nodes by socket, those without CPUs last."""
    found: dict[tuple[bool, tuple[int, ...]], list[Node]] = {}
    for node in machine.nodes:
        cpus = machine.cpus_by_node[node.id]
        sockets = {cpu.socket for cpu in cpus if cpu.socket is not None}
        found.setdefault((not cpus, tuple(sorted(sockets))), []).append(node)
    return tuple(
        Package(heading=_heading(sockets, is_bare=is_bare), nodes=tuple(nodes))
        for (is_bare, sockets), nodes in sorted(found.items(), key=lambda one: one[0])
    )


def list_caches(cores: Iterable[Core]) -> tuple[tuple[int | None, tuple[Core, ...]], ...]:
    """Cores by the L3 that they share, the lowest first, those of which none is known last."""
    ordered = sorted(cores, key=lambda one: (one.l3 is None, one.l3 or 0, one.id))
    return tuple((l3, tuple(own)) for l3, own in groupby(ordered, lambda one: one.l3))


def _heading(sockets: tuple[int, ...], *, is_bare: bool) -> str:
    if is_bare:
        return "memory without CPUs"
    if not sockets:
        return "socket unknown"
    return f"socket{'' if len(sockets) == 1 else 's'} {', '.join(map(str, sockets))}"


def render_picture(machine: Machine, nodes: Sequence[Row] = (), instances: Sequence[Row] = ()) -> str:
    """The machine as an SVG document; `nodes` and `instances` are rows as the API has them, none where unknown."""
    body, y = [], TOP
    cards = {one.node.id: one for one in _cards(machine, nodes, instances)}
    for package in list_packages(machine):
        body.append(f'<text class="p" x="{EDGE}" y="{y + 14}">{_text(package.heading)}</text>')
        y += 24
        for start in range(0, len(package.nodes), IN_ROW):
            row = [cards[node.id] for node in package.nodes[start : start + IN_ROW]]
            high = max(_height(card) for card in row)
            for place, card in enumerate(row):
                body += _draw(card, EDGE + place * (CARD + APART), y, high)
            y += high + APART
    lost = [show_name(row) for row in instances if not row["nodes"]]
    if lost:
        told = _text(_cut(f"on no known node: {', '.join(lost)}", WIDTH // 7))
        body.append(f'<text class="dim" x="{EDGE}" y="{y + 12}">{told}</text>')
        y += 24
    title = f"{machine.name or 'machine'}: {count(len(machine.nodes), 'node')}, {count(len(machine.online), 'CPU')}"
    if instances:
        title += f", {count(len(instances), 'instance')}"
    return "\n".join([*_head(title, y + 4), *_legend(with_instances=bool(instances)), *body, "</svg>", ""])


def _cards(machine: Machine, nodes: Sequence[Row], instances: Sequence[Row]) -> Iterator[_Card]:
    loads = {row["node"]: row["load"] for row in nodes}
    users = Counter(cpu for row in instances if row["cpus"] for cpu in CpuSet.parse(row["cpus"]))
    homes = [(row, NodeSet.parse(row["nodes"] or "")) for row in instances]
    for node in machine.nodes:
        yield _Card(
            node=node,
            cores=machine.cores_by_node[node.id],
            isolated=machine.isolated,
            users=users,
            load=loads.get(node.id),
            instances=tuple(row for row, home in homes if node.id in home),
        )


def _head(title: str, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'role="img" aria-labelledby="title">'
    )
    yield f'<title id="title">{_text(title)}</title>'
    yield f"<style>{_style()}</style>"
    yield f'<rect class="back" width="{WIDTH}" height="{height}"/>'
    yield f'<text class="t" x="{EDGE}" y="30">{_text(title)}</text>'


def _style() -> str:
    light = "".join(f".{name}{{{what}:{one}}}" for name, (what, one, _) in _COLOURS.items())
    dark = "".join(f".{name}{{{what}:{one}}}" for name, (what, _, one) in _COLOURS.items())
    return (
        "text{font:11px system-ui,sans-serif}text:not(.dim){fill:#1d2228}.t{font-size:16px;font-weight:600}"
        f".p,.n{{font-weight:600}}.e{{text-anchor:end}}{light}"
        f"@media (prefers-color-scheme:dark){{text:not(.dim){{fill:#e7eaed}}{dark}}}"
    )


def _legend(*, with_instances: bool) -> Iterator[str]:
    x = EDGE
    for name, label in _LEGEND if with_instances else (_LEGEND[0], *_LEGEND[3:5]):
        yield f'<rect class="{name}" x="{x}" y="46" width="{CELL}" height="{CELL}"/>'
        yield f'<text class="dim" x="{x + CELL + 4}" y="55.5">{label}</text>'
        x += CELL + 22 + 6 * len(label)


def _height(card: _Card) -> int:
    last = max((y for _, _, y in _places(card)), default=-CORE_GAP) + CELL
    chips = min(len(card.instances), MOST_CHIPS) + (len(card.instances) > MOST_CHIPS)
    return 38 + last + 20 + CHIP * chips + 6


def _places(card: _Card) -> Iterator[tuple[int, int, int]]:
    """Each CPU of a card and where it is: cores from left to right, the threads of one below each other."""
    x = y = deep = 0
    for _, cores in list_caches(card.cores):
        for core in cores:
            if x + CELL > INSIDE:
                x, y, deep = 0, y + deep + 4, 0
            for place, cpu in enumerate(core.threads):
                yield cpu, x, y + place * (CELL + 1)
            deep = max(deep, len(core.threads) * (CELL + 1))
            x += CELL + CORE_GAP
        x += CACHE_GAP - CORE_GAP


def _draw(card: _Card, left: int, top: int, high: int) -> Iterator[str]:
    node = card.node
    yield f'<g><rect class="card edge" x="{left}" y="{top}" width="{CARD}" height="{high}" rx="5"/>'
    x, y = left + PAD, top + 17
    yield f'<text class="n" x="{x}" y="{y}">node {node.id}</text>'
    yield f'<text class="dim e" x="{x + INSIDE}" y="{y}">{_memory(node)}</text>'
    load = "" if card.load is None else f", load {card.load:.2f}"
    cpus = f"CPUs {node.cpus}" if node.cpus else "no CPUs"
    yield f'<text class="dim" x="{x}" y="{y + 14}">{_text(_cut(cpus, LETTERS - len(load)) + load)}</text>'
    y, last = top + 38, -CELL
    for cpu, right, down in _places(card):
        kind = "isolated" if cpu in card.isolated else f"c{min(2, card.users.get(cpu, 0))}"
        yield f'<rect class="{kind}" x="{x + right}" y="{y + down}" width="{CELL}" height="{CELL}">'
        yield f"<title>CPU {cpu}: {_use(card, cpu)}</title></rect>"
        last = max(last, down)
    y += last + CELL + 6
    yield f'<rect class="c0" x="{x}" y="{y}" width="{INSIDE}" height="6"/>'
    if node.memory_bytes and node.free_bytes is not None:
        used = max(0.0, 1 - node.free_bytes / node.memory_bytes)
        yield f'<rect class="memory" x="{x}" y="{y}" width="{INSIDE * used:.1f}" height="6"/>'
    yield from _chips(card, x, y + 14)
    yield "</g>"


def _use(card: _Card, cpu: int) -> str:
    isolated = "isolated, " if cpu in card.isolated else ""
    return isolated + count(card.users.get(cpu, 0), "instance")


def _memory(node: Node) -> str:
    if node.memory_bytes is None:
        return "memory unknown"
    whole = render_bytes(node.memory_bytes)
    return whole if node.free_bytes is None else f"{render_bytes(node.free_bytes)} of {whole} free"


def _chips(card: _Card, x: int, y: int) -> Iterator[str]:
    for row in card.instances[:MOST_CHIPS]:
        state = row["state"].partition(":")[0]
        told = f"{show_name(row)}: {row['state']}, nodes {row['nodes']}, CPUs {row['cpus'] or 'not limited'}"
        name = _text(_cut(_short(row), LETTERS - 1))
        place = f'x="{x}" y="{y}" width="{INSIDE}" height="{CHIP - 2}" rx="2"'
        yield f'<g><title>{_text(told)}</title><rect class="{_text(state)}" {place}/>'
        yield f'<text x="{x + 4}" y="{y + 11}">{name}</text></g>'
        y += CHIP
    more = len(card.instances) - MOST_CHIPS
    if more > 0:
        yield f'<text class="dim" x="{x + 4}" y="{y + 11}">and {more} more</text>'


def _short(row: Row) -> str:
    """An instance's name, and its nodes where it has several."""
    return show_name(row) + ("" if row["nodes"].isdecimal() else f" on {row['nodes']}")


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _text(text: str) -> str:
    """Text as XML takes it, also in attributes; what XML has no letters for is left out."""
    return escape(_UNSEEN.sub("", text), {'"': "&quot;"})
