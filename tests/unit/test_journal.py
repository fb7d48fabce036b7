"""The journal of moves: what is kept, and that nothing that happens to the file stops anything."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import pytest

from incus_numa.cpuset import NodeSet
from incus_numa.daemon import journal
from incus_numa.daemon.journal import Journal
from incus_numa.model.instance import InstanceKey
from incus_numa.model.rebalance import Move, MoveRecord

WEB = Move(
    key=InstanceKey("default", "web"),
    before=NodeSet([0]),
    after=NodeSet([2, 3]),
    gain=0.625,
    price=0.04,
    load_cpus=2.5,
    size_bytes=2 << 30,
    distance=12.5,
    with_key=InstanceKey("ci", "job"),
    reason="load of node 0 is 1.31, „busy“",
)


def record(at_s: float = 1_790_000_000.125, name: str = "web", result: str = "moved") -> MoveRecord:
    return MoveRecord(
        at_s=at_s, move=replace(WEB, key=InstanceKey("default", name)), result=result, moved_bytes=1 << 30, took_s=4.5
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "moves.jsonl"


def test_what_is_noted_is_read_again_by_another_process_oldest_first(path: Path) -> None:
    noted = (record(1.0), record(2.0, "db", "cancelled"), replace(record(3.0), move=replace(WEB, with_key=None)))
    for one in noted:
        Journal(path).append(one)
    assert Journal(path).read() == noted
    assert path.read_bytes().count(b"\n") == 3


def test_a_journal_that_is_not_there_is_empty(path: Path) -> None:
    assert Journal(path).read() == ()
    assert not path.parent.exists()


def test_only_root_and_its_group_may_read_it(path: Path) -> None:
    before = os.umask(0)
    try:
        Journal(path).append(record())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    "bad", [b"", b"{", b"null", b"[]", b'{"at_s": 1}', b"\xff\xfe", b'{"at_s":"x"}', b"[" * 5000], ids=repr
)
def test_lines_that_are_no_records_are_passed_over(path: Path, bad: bytes) -> None:
    moves = Journal(path)
    moves.append(record(1.0))
    with path.open("ab") as file:
        file.write(bad + b"\n")
    moves.append(record(2.0))
    assert moves.read() == (record(1.0), record(2.0))


def test_a_line_with_nodes_that_are_none_is_passed_over(path: Path) -> None:
    Journal(path).append(record())
    path.write_bytes(path.read_bytes().replace(b'"from":"0"', b'"from":"zero"'))
    assert Journal(path).read() == ()


def test_a_line_that_a_later_version_wrote_is_read(path: Path) -> None:
    Journal(path).append(record())
    path.write_bytes(path.read_bytes().replace(b'{"at_s"', b'{"colour":"red","at_s"'))
    assert Journal(path).read() == (record(),)


def test_a_line_cut_by_a_crash_spoils_no_other(path: Path) -> None:
    moves = Journal(path)
    moves.append(record(1.0))
    moves.append(record(2.0))
    path.write_bytes(path.read_bytes()[:-9])
    assert moves.read() == (record(1.0),)
    moves.append(record(3.0))
    assert moves.read() == (record(1.0), record(3.0))


def test_it_is_cut_to_the_newest_when_it_has_grown_to_twice_as_many(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "KEPT", 4)
    moves = Journal(path)
    for at in range(7):
        moves.append(record(float(at)))
    assert len(moves.read()) == 7
    moves.append(record(7.0))
    assert [one.at_s for one in moves.read()] == [4.0, 5.0, 6.0, 7.0]
    assert path.stat().st_mode & 0o777 == 0o640
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    for at in range(8, 100):
        moves.append(record(float(at)))
    assert [one.at_s for one in moves.read()][-4:] == [96.0, 97.0, 98.0, 99.0]
    assert len(moves.read()) < 8


def test_it_may_be_deleted_while_it_is_in_use(path: Path) -> None:
    moves = Journal(path)
    moves.append(record(1.0))
    path.unlink()
    assert moves.read() == ()
    moves.append(record(2.0))
    path.unlink()
    path.parent.rmdir()
    moves.append(record(3.0))
    assert moves.read() == (record(3.0),)


def test_what_cannot_be_written_is_said_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    moves = Journal(tmp_path / "state" / "moves.jsonl")
    moves.append(record())
    moves.append(record())
    assert moves.read() == ()
    warnings = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"moves are not noted in {tmp_path}/state/moves.jsonl: ")


def test_a_folder_in_its_place_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moves = Journal(tmp_path)
    assert moves.read() == moves.read() == ()
    assert [one.levelname for one in caplog.records] == ["WARNING"]


def _note_many(path: Path, name: str) -> None:
    moves = Journal(path)
    for at in range(200):
        moves.append(record(float(at), name))


def test_several_that_write_at_once_lose_no_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "KEPT", 150)
    names = ("a", "b", "c")
    context = get_context("fork")
    writers = [context.Process(target=_note_many, args=(path, name)) for name in names]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    left = Journal(path).read()
    assert 150 <= len(left) < 300
    # Only the oldest were cut: of each writer the newest are there without a gap.
    for name in names:
        own = [one.at_s for one in left if one.move.key.name == name]
        assert own == [float(at) for at in range(200 - len(own), 200)]


def test_the_last_move_of_each_counts_for_the_cool_down(path: Path) -> None:
    moves = Journal(path)
    for one in (
        record(10.0, "web"),
        record(20.0, "web", "cancelled"),
        record(30.0, "db", "failed"),
        record(40.0, "ended", "gone"),
        record(9999.0, "tomorrow"),
    ):
        moves.append(one)
    assert moves.last_moves(100.0) == {InstanceKey("default", "web"): 20.0, InstanceKey("default", "db"): 30.0}
