"""The chart is valid XML, the same every time, and can be read."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from incus_numa.replay.chart import LEFT, PLOT, Panel, render_chart
from incus_numa.replay.history import LoadHistory

SVG = "{http://www.w3.org/2000/svg}"


def panel(loads: list[float], span_s: float = 86400.0, name: str = "balanced") -> Panel:
    history = LoadHistory(len(loads), 0.0, span_s, columns=4)
    if span_s:
        history.note(0.0, span_s / 2, loads)
        history.note(span_s / 2, span_s, loads[::-1])
    history.end(loads)
    return Panel(name=name, caption="max over mean load 1.00", history=history)


def parse(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def texts(root: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in root.iter(f"{SVG}text")]


def fills(root: ElementTree.Element) -> list[tuple[str, int]]:
    """Colours of the maps, each with how many rectangles it has."""
    return [(one.get("fill", ""), one.get("d", "").count("M")) for one in root.iter(f"{SVG}path") if one.get("fill")]


def test_title_names_nodes_legend_and_axis_are_there() -> None:
    root = parse(render_chart("t.csv on epyc", [0, 8], [panel([0.0, 1.0]), panel([0.5, 0.5], name="incus")]))
    found = texts(root)
    assert root.findtext(f"{SVG}title") == "t.csv on epyc"
    assert [name for name in found if name in ("balanced", "incus")] == ["balanced", "incus"]
    assert found.count("0") == 3  # The legend's start, and node 0 of two panels.
    assert found.count("8") == 2
    assert found.count("12 h") == 2
    assert any("time since the first arrival" in one for one in found)
    assert any("committed vCPUs over usable CPUs" in one for one in found)


def test_colour_is_load_and_equal_neighbours_are_one_rectangle() -> None:
    idle, full = "#f4f7fb", "#083d7f"
    assert fills(parse(render_chart("x", [0, 1], [panel([0.0, 1.0])]))) == [(idle, 2), (full, 2)]
    assert fills(parse(render_chart("x", [0, 1], [panel([1.0, 1.0])]))) == [(full, 2)]


def test_more_than_one_vcpu_per_cpu_has_a_colour_of_its_own() -> None:
    root = parse(render_chart("x", [0, 1], [panel([1.0, 2.2])]))
    assert fills(root)[0] == ("#083d7f", 2)
    assert len(fills(root)) == 2
    assert "2.5" in texts(root)


@pytest.mark.parametrize(
    ("span_s", "labels"),
    [
        (0.0, ["0 s"]),
        (7.0, [f"{n} s" for n in range(8)]),
        (3600.0, [f"{n} min" for n in range(0, 61, 10)]),
        (4 * 86400.0, [f"{n} h" for n in range(0, 97, 12)]),
        (32 * 86400.0, [f"{n} d" for n in range(0, 33, 5)]),
        (3e9, [f"{n} d" for n in range(0, 34723, 10000)]),
    ],
)
def test_the_axis_has_a_few_round_times(span_s: float, labels: list[str]) -> None:
    found = texts(parse(render_chart("x", [0], [panel([1.0], span_s)])))
    assert [one for one in found if re.fullmatch(r"\d+ (s|min|h|d)", one)] == labels


def test_64_nodes_have_rows_and_labels_that_do_not_overlap() -> None:
    root = parse(render_chart("x", range(64), [panel([n / 64 for n in range(64)])]))
    labels = [float(one.get("y", "")) for one in root.iter(f"{SVG}text") if one.get("x") == "59"]
    assert min(b - a for a, b in pairwise(labels)) >= 12
    assert float(root.get("height", "")) < 600


def test_maps_fill_their_frame() -> None:
    text = render_chart("x", [0, 1], [panel([0.3, 0.7])])
    found = {(float(left), float(wide)) for left, wide in re.findall(r"M([\d.]+) [\d.]+h([\d.]+)v", text)}
    assert found == {(LEFT, PLOT / 2), (LEFT + PLOT / 2, PLOT / 2)}


def test_names_cannot_break_the_document() -> None:
    title = 'a<b>&"\x00\ud800\ufffe\u202e'
    root = parse(render_chart(title, [0], [panel([1.0], name="</text>")]))
    assert root.findtext(f"{SVG}title") == 'a<b>&"' + "\N{REPLACEMENT CHARACTER}" * 4
    assert "</text>" in texts(root)


def test_the_same_input_gives_the_same_text() -> None:
    assert render_chart("x", [0, 1], [panel([0.3, 0.7])]) == render_chart("x", [0, 1], [panel([0.3, 0.7])])
