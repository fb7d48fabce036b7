"""Draws the machine with its instances as SVG: nodes as cards below their sockets, each with its CPUs, its memory and
who is on it; below them the distances between the nodes as a map.

The same input gives the same text, which refers to nothing outside and follows the reader's light or dark colours.
Called by the command `topology`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.facts import distances, sheet
from incus_numa.facts.cpu_use import CpuUse, spread
from incus_numa.facts.sheet import CELL, EDGE, WIDTH
from incus_numa.facts.words import count, show_name
from incus_numa.model.machine import Core, Machine, Node
from incus_numa.quantities import render_bytes

Row = Mapping[str, Any]

TOP = 92
IN_ROW, APART = 4, 12
CARD = (WIDTH - 2 * EDGE - (IN_ROW - 1) * APART) // IN_ROW
INSIDE, PAD = CARD - 20, 10
CORE_GAP, CACHE_GAP, CHIP = 2, 6, 17
IN_LINE = (WIDTH - 2 * EDGE) // (CELL + CORE_GAP)
HEAD = 52
"""Of a card: its three lines of text."""

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
    "c1": ("fill", "#9cc3e6", "#31587d"),
    "c2": ("fill", "#2f6fb0", "#5ea3e0"),
    "c3": ("fill", "#b3401f", "#ee8159"),
    "offline": ("stroke", "#59626c", "#a2abb4"),
    "isolated": ("fill", "#b9a5d6", "#6f5a92"),
    "memory": ("fill", "#2f6fb0", "#5ea3e0"),
    "placed": ("fill", "#cfe3f5", "#234a6d"),
    "differs": ("fill", "#f6e3b4", "#5d4a17"),
    "refused": ("fill", "#f6d4cd", "#6a2f27"),
    "unmanaged": ("fill", "#e6e6e2", "#34383c"),
    "h0": ("fill", "#e3efe0", "#1f3326"),
    "h1": ("fill", "#fbf0d0", "#37311d"),
    "h2": ("fill", "#f9ddaa", "#4a3a1b"),
    "h3": ("fill", "#f5c685", "#5e421c"),
    "h4": ("fill", "#eead66", "#73491f"),
    "h5": ("fill", "#e4934f", "#884f25"),
}
"""Classes: the property, light and dark. No variables, as not every viewer knows them."""

_LEGEND = (("c0", "free"), ("isolated", "isolated"), ("offline", "offline"), ("memory", "memory in use"))
_WITH_INSTANCES = (
    _LEGEND[0],
    ("c1", "in use"),
    ("c2", "full"),
    ("c3", "more vCPUs than CPUs"),
    *_LEGEND[1:],
    ("placed", "placed"),
    ("differs", "differs"),
    ("refused", "refused"),
    ("unmanaged", "unmanaged"),
)
_RULE = (
    "An instance's vCPUs count evenly on its CPUs. One without limits.cpu claims none; if it may run on all CPUs, it "
    "colours none."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """Nodes whose CPUs are in the same socket or sockets, with a heading."""

    heading: str
    nodes: tuple[Node, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Card:
    """One node, how much of each of its CPUs is claimed, its load if known, and who is on it."""

    node: Node
    cores: tuple[Core, ...]
    isolated: CpuSet
    use: Mapping[int, CpuUse]
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
        body.append(f'<text class="p" x="{EDGE}" y="{y + 14}">{sheet.text(package.heading)}</text>')
        y += 24
        for start in range(0, len(package.nodes), IN_ROW):
            row = [cards[node.id] for node in package.nodes[start : start + IN_ROW]]
            high = max(_height(card) for card in row)
            for place, card in enumerate(row):
                body += _draw(card, EDGE + place * (CARD + APART), y, high)
            y += high + APART
    body += _offline(machine.offline, y)
    y += _offline_height(machine.offline)
    lost = [show_name(row) for row in instances if not row["nodes"]]
    if lost:
        told = sheet.text(sheet.cut(f"on no known node: {', '.join(lost)}", WIDTH // 7))
        body.append(f'<text class="dim" x="{EDGE}" y="{y + 12}">{told}</text>')
        y += 24
    body += distances.draw_map(machine.nodes, y)
    y += distances.find_height(machine.nodes)
    title = f"{machine.name or 'machine'}: {count(len(machine.nodes), 'node')}, {count(len(machine.online), 'CPU')}"
    if instances:
        title += f", {count(len(instances), 'instance')}"
    return "\n".join([*_head(title, y + 4), *_legend(with_instances=bool(instances)), *body, "</svg>", ""])


def _cards(machine: Machine, nodes: Sequence[Row], instances: Sequence[Row]) -> Iterator[_Card]:
    loads = {row["node"]: row["load"] for row in nodes}
    use = spread(machine, instances)
    homes = [(row, NodeSet.parse(row["nodes"] or "")) for row in instances]
    for node in machine.nodes:
        yield _Card(
            node=node,
            cores=machine.cores_by_node[node.id],
            isolated=machine.isolated,
            use=use,
            load=loads.get(node.id),
            instances=tuple(row for row, home in homes if node.id in home),
        )


def _head(title: str, height: int) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'role="img" aria-labelledby="title">'
    )
    yield f'<title id="title">{sheet.text(title)}</title>'
    yield f"<style>{_style()}</style>"
    yield f'<rect class="back" width="{WIDTH}" height="{height}"/>'
    yield f'<text class="t" x="{EDGE}" y="30">{sheet.text(title)}</text>'


def _style() -> str:
    light = "".join(f".{name}{{{what}:{one}}}" for name, (what, one, _) in _COLOURS.items())
    dark = "".join(f".{name}{{{what}:{one}}}" for name, (what, _, one) in _COLOURS.items())
    return (
        "text{font:11px system-ui,sans-serif}text:not(.dim){fill:#1d2228}.t{font-size:16px;font-weight:600}"
        f".p,.n{{font-weight:600}}.e{{text-anchor:end}}.m{{text-anchor:middle}}"
        f".offline{{fill:none;stroke-dasharray:2 2}}{light}"
        f"@media (prefers-color-scheme:dark){{text:not(.dim){{fill:#e7eaed}}{dark}}}"
    )


def _legend(*, with_instances: bool) -> Iterator[str]:
    x = EDGE
    for name, label in _WITH_INSTANCES if with_instances else _LEGEND:
        yield f'<rect class="{name}" x="{x}" y="46" width="{CELL}" height="{CELL}"/>'
        yield f'<text class="dim" x="{x + CELL + 4}" y="55.5">{label}</text>'
        x += CELL + 18 + 6 * len(label)
    if with_instances:
        yield f'<text class="dim" x="{EDGE}" y="74">{sheet.text(_RULE)}</text>'


def _height(card: _Card) -> int:
    last = max((y for _, _, y in _places(card)), default=-CORE_GAP) + CELL
    chips = min(len(card.instances), MOST_CHIPS) + (len(card.instances) > MOST_CHIPS)
    return HEAD + last + 20 + CHIP * chips + 6


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
    load = "" if card.load is None else f", load {card.load:.2f}"
    cpus = f"CPUs {node.cpus}" if node.cpus else "no CPUs"
    yield f'<text class="dim" x="{x}" y="{y + 14}">{sheet.text(sheet.cut(cpus, LETTERS - len(load)) + load)}</text>'
    yield f'<text class="dim" x="{x}" y="{y + 28}">{_memory(node)}</text>'
    y, last = top + HEAD, -CELL
    for cpu, right, down in _places(card):
        kind = "isolated" if cpu in card.isolated else f"c{card.use.get(cpu, CpuUse()).level}"
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
    use = card.use.get(cpu, CpuUse())
    told = ["isolated"] if cpu in card.isolated else []
    if use.limited or not use.unlimited:
        told.append(f"{use.vcpus:.2f} vCPUs of {count(use.limited, 'instance')}")
    if use.unlimited:
        told.append(f"{count(use.unlimited, 'instance')} without limits.cpu")
    return ", ".join(told)


def _offline(cpus: CpuSet, top: int) -> Iterator[str]:
    """CPUs that are not online, apart from the nodes: to which one each belongs is not known."""
    if not cpus:
        return
    told = sheet.text(sheet.cut(f"offline, node unknown: CPUs {cpus}", WIDTH // 7))
    yield f'<text class="p" x="{EDGE}" y="{top + 14}">{told}</text>'
    for place, cpu in enumerate(cpus):
        x, y = EDGE + place % IN_LINE * (CELL + CORE_GAP), top + 24 + place // IN_LINE * (CELL + CORE_GAP)
        yield f'<rect class="offline" x="{x}" y="{y}" width="{CELL}" height="{CELL}">'
        yield f"<title>CPU {cpu}: offline</title></rect>"


def _offline_height(cpus: CpuSet) -> int:
    return 24 + -(-len(cpus) // IN_LINE) * (CELL + CORE_GAP) + APART if cpus else 0


def _memory(node: Node) -> str:
    if node.memory_bytes is None:
        return "memory unknown"
    whole = render_bytes(node.memory_bytes)
    return whole if node.free_bytes is None else f"{render_bytes(node.free_bytes)} of {whole} free"


def _chips(card: _Card, x: int, y: int) -> Iterator[str]:
    for row in card.instances[:MOST_CHIPS]:
        state = row["state"].partition(":")[0]
        told = f"{show_name(row)}: {row['state']}, nodes {row['nodes']}, CPUs {row['cpus'] or 'not limited'}"
        name = sheet.text(sheet.cut(_short(row), LETTERS - 1))
        place = f'x="{x}" y="{y}" width="{INSIDE}" height="{CHIP - 2}" rx="2"'
        yield f'<g><title>{sheet.text(told)}</title><rect class="{sheet.text(state)}" {place}/>'
        yield f'<text x="{x + 4}" y="{y + 11}">{name}</text></g>'
        y += CHIP
    more = len(card.instances) - MOST_CHIPS
    if more > 0:
        yield f'<text class="dim" x="{x + 4}" y="{y + 11}">and {more} more</text>'


def _short(row: Row) -> str:
    """An instance's name, and its nodes where it has several."""
    return show_name(row) + ("" if row["nodes"].isdecimal() else f" on {row['nodes']}")
