"""The picture of a machine: everything is in it, it is well-formed, and it refers to nothing outside."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

from incus_numa.cpuset import CpuSet
from incus_numa.facts.picture import MOST_CHIPS, list_packages, render_picture
from incus_numa.model.machine import Machine, Node
from tests import builders

SVG = "{http://www.w3.org/2000/svg}"


def row(
    name: str, nodes: str | None, cpus: str | None, state: str = "placed", project: str = "default"
) -> dict[str, Any]:
    return {"project": project, "name": name, "nodes": nodes, "cpus": cpus, "state": state}


def drawn(machine: Machine, *instances: dict[str, Any], loads: dict[int, float] | None = None) -> ElementTree.Element:
    nodes = [{"node": node, "load": load} for node, load in (loads or {}).items()]
    return ElementTree.fromstring(render_picture(machine, nodes, instances))


def classes_of_cpus(root: ElementTree.Element) -> dict[int, str]:
    found = {}
    for rect in root.iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None and (text := re.match(r"CPU (\d+)", title.text or "")):
            found[int(text[1])] = rect.attrib["class"]
    return found


def texts(root: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in root.iter(f"{SVG}text")]


def test_every_cpu_is_drawn_once_with_how_many_have_it() -> None:
    machine = builders.machine(nodes=2, cpus_per_node=4, isolated="7")
    root = drawn(machine, row("a", "0", "0-1"), row("b", "0", "1-2"), row("c", "1", None))
    found = classes_of_cpus(root)
    assert [found[cpu] for cpu in range(8)] == ["c1", "c2", "c1", "c0", "c0", "c0", "c0", "isolated"]
    assert len(found) == 8


def test_no_two_cpus_and_no_two_cards_lie_on_each_other() -> None:
    root = drawn(builders.machine(nodes=9, cpus_per_node=96, threads=4, nodes_per_socket=3))
    places = Counter(
        (one.attrib.get("x"), one.attrib.get("y"))
        for one in root.iter(f"{SVG}rect")
        if one.find(f"{SVG}title") is not None
    )
    assert set(places.values()) == {1}
    height = float(root.attrib["height"])
    for one in root.iter(f"{SVG}rect"):
        assert float(one.get("x", "0")) + float(one.attrib["width"]) <= 960
        assert float(one.get("y", "0")) + float(one.attrib["height"]) <= height


def test_an_instance_is_on_each_of_its_nodes_with_its_state() -> None:
    machine = builders.machine(nodes=3)
    root = drawn(
        machine, row("db", "0,2", "0,8"), row("x", "1", None, "refused: no-memory", "ci"), row("lost", None, None)
    )
    names = [one for one in texts(root) if one.startswith(("db", "ci/x"))]
    assert names == ["db on 0,2", "ci/x", "db on 0,2"]
    assert [one.attrib["class"] for one in root.iter(f"{SVG}rect") if one.get("rx") == "2"] == [
        "placed",
        "refused",
        "placed",
    ]
    assert texts(root)[-1] == "on no known node: lost"


def test_of_many_instances_on_a_node_the_number_is_told() -> None:
    many = [row(f"c{number}", "0", "0") for number in range(MOST_CHIPS + 3)]
    shown = texts(drawn(builders.machine(nodes=1), *many))
    assert shown[-1] == "and 3 more"
    assert len([one for one in shown if re.fullmatch(r"c\d+", one)]) == MOST_CHIPS


def test_loads_memory_and_what_is_unknown_are_told() -> None:
    machine = builders.machine(nodes=2)
    bare = replace(machine, nodes=(*machine.nodes, Node(id=5, cpus=CpuSet())))
    shown = texts(drawn(bare, loads={0: 0.5}))
    assert "CPUs 0-3, load 0.50" in shown
    assert "CPUs 4-7" in shown
    assert shown.count("24 GiB of 32 GiB free") == 2
    assert shown[-4:] == ["memory without CPUs", "node 5", "memory unknown", "no CPUs"]


def test_nodes_are_by_socket_and_those_without_cpus_last() -> None:
    machine = builders.machine(nodes=4, nodes_per_socket=2)
    bare = replace(machine, nodes=(Node(id=9, cpus=CpuSet()), *machine.nodes))
    found = [(one.heading, [node.id for node in one.nodes]) for one in list_packages(bare)]
    assert found == [("socket 0", [0, 1]), ("socket 1", [2, 3]), ("memory without CPUs", [9])]


def test_names_are_text_whatever_letters_they_have() -> None:
    name = '<script>"&\x00\x1b'
    root = drawn(replace(builders.machine(nodes=1), name=name), row(name, "0", "0", 'odd"<'))
    assert list(root.iter(f"{SVG}script")) == []
    assert '<script>"&' in texts(root)


def test_it_refers_to_nothing_outside_and_follows_light_and_dark() -> None:
    text = render_picture(builders.machine(), [], [row("a", "0", "0")])
    assert re.findall(r"\w+://[^\"]*", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"url\(|@import|href|<image|<script|<foreignObject", text)
    light, _, dark = text.partition("@media (prefers-color-scheme:dark)")
    used = {name for one in re.findall(r'class="([^"]+)"', text) for name in one.split()} - {"t", "p", "n", "e"}
    for name in used:
        assert f".{name}{{" in light, name
        assert f".{name}{{" in dark.partition("</style>")[0], name
