"""Decisions that are kept for as long as a process runs."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.host.marks import Marks, parse_mark, render_mark
from incus_numa.model.snapshot import Decided

DECIDED = Decided(nodes=NodeSet.parse("1,3"), cpus=CpuSet.parse("4-7"))
NODES_ONLY = Decided(nodes=NodeSet([2]))


def marks(folder: Path, live: set[int] | None = None) -> Marks:
    return Marks(folder, lambda pid, started: live is None or pid in live)


@pytest.mark.parametrize("decided", [DECIDED, NODES_ONLY])
def test_mark_is_read_back_by_another_life_of_the_daemon(tmp_path: Path, decided: Decided) -> None:
    folder = tmp_path / "run" / "vms"
    marks(folder).write(7, 100, decided)
    assert marks(folder).read(7, 100) == decided
    assert marks(folder).read(7, 101) is None
    assert [path.name for path in folder.iterdir()] == ["7-100"]
    assert stat.S_IMODE((folder / "7-100").stat().st_mode) == 0o644


def test_later_decision_takes_the_place_of_the_earlier_and_goes_away(tmp_path: Path) -> None:
    kept = marks(tmp_path)
    kept.write(7, 100, DECIDED)
    kept.write(7, 100, NODES_ONLY)
    assert kept.read(7, 100) == NODES_ONLY
    kept.remove(7, 100)
    kept.remove(7, 100)
    assert kept.read(7, 100) is None


def test_marks_of_ended_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("1-5", "2-5", "2-5.new", "notes.txt", "1-x"):
        (tmp_path / name).write_text("0;0\n")
    marks(tmp_path, {1, 3}).write(3, 9, DECIDED)
    assert {path.name for path in tmp_path.iterdir()} == {"1-5", "3-9", "notes.txt", "1-x"}


def test_decision_is_kept_in_memory_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    live = {7, 8}
    kept = marks(tmp_path / "file" / "vms", live)
    kept.write(7, 100, DECIDED)
    assert kept.read(7, 100) == DECIDED
    kept.remove(7, 100)
    assert kept.read(7, 100) is None


def test_link_in_the_place_of_a_new_mark_is_not_followed(tmp_path: Path) -> None:
    folder, victim = tmp_path / "vms", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    os.symlink(victim, folder / "7-100.new")
    kept = marks(folder)
    kept.write(7, 100, DECIDED)
    assert victim.read_text() == "precious"
    assert kept.read(7, 100) == DECIDED


@pytest.mark.parametrize("text", ["", ";", ";4", "x;4", "1;x", "\x00", "1;4;5", "999999999;1", "-1;"])
def test_what_we_did_not_write_is_no_mark(text: str) -> None:
    assert parse_mark(text) is None


def test_bytes_that_are_no_text_are_no_mark(tmp_path: Path) -> None:
    (tmp_path / "7-100").write_bytes(b"\xff\xfe1;2")
    assert marks(tmp_path).read(7, 100) is None


def test_mark_is_nodes_and_cpus() -> None:
    assert (render_mark(DECIDED), render_mark(NODES_ONLY)) == ("1,3;4-7", "2;")
