"""The moves that were made, one JSON object per line. Whoever moves writes it; `explain` and the cool-down read it.

Nothing depends on it but the cool-down across restarts, so that it may be deleted at any time, and what goes wrong with
it is said once and stops nothing. The daemon and a command may write at the same time.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.rebalance import Move, MoveRecord

log = logging.getLogger(__name__)

KEPT = 1000
"""So many lines are kept; the file is cut to them when it has twice as many."""

MODE = 0o640

GONE = "gone"
"""The result of a move whose instance ended meanwhile: one of the same name that comes later was not moved."""


class _Partner(msgspec.Struct, kw_only=True):
    project: str
    name: str


class _Line(msgspec.Struct, kw_only=True):
    """A record as it is on disk. Unknown keys are passed over, so that later versions may add some."""

    at_s: float
    project: str
    name: str
    before: str = msgspec.field(name="from")
    after: str = msgspec.field(name="to")
    gain: float
    price: float
    load_cpus: float
    size_bytes: int = 0
    distance: float | None = None
    with_key: _Partner | None = msgspec.field(name="with", default=None)
    reason: str = ""
    result: str
    moved_bytes: int = 0
    took_s: float = 0.0


class Journal:
    """A file of moves, oldest first; it need not exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._said = False

    def append(self, record: MoveRecord) -> None:
        """Add a line at the end. What goes wrong is logged once; nothing is raised."""
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            with self._opened() as descriptor:
                text = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
                # A line that a crash has cut must not spoil the next one.
                gap = b"\n" if text and not text.endswith(b"\n") else b""
                os.write(descriptor, gap + _encode(record) + b"\n")
                if text.count(b"\n") + 1 >= 2 * KEPT:
                    self._shorten()
        except OSError as error:
            self._say(f"moves are not noted in {self._path}: {error.strerror or error}")

    def read(self) -> tuple[MoveRecord, ...]:
        """All records, oldest first; lines that are none are passed over. Empty when there is no file."""
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._say(f"earlier moves are unknown, {self._path} cannot be read: {error.strerror or error}")
            return ()
        return tuple(record for line in lines if (record := _decode(line)) is not None)

    def last_moves(self, now_s: float) -> Mapping[InstanceKey, float]:
        """When each instance was last moved, in seconds since 1970. Times after `now_s` are of a clock gone wrong."""
        return {one.move.key: one.at_s for one in self.read() if one.at_s <= now_s and one.result != GONE}

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file, locked against others that write or shorten it."""
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, MODE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not self._is_current(descriptor):
                    continue
                yield descriptor
                return
            finally:
                os.close(descriptor)

    def _is_current(self, descriptor: int) -> bool:
        """Whether the name still leads to this file, which may have been shortened or deleted before it was locked."""
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def _shorten(self) -> None:
        """Replace the file, whose lock is held, by one with its newest lines; readers see the one or the other."""
        with self._path.open("rb") as old:
            newest = deque((line for line in old if line.endswith(b"\n")), KEPT)
        fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
            with os.fdopen(descriptor, "wb") as new:
                new.writelines(newest)
                new.flush()
                os.fsync(new.fileno())
            fresh.replace(self._path)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise

    def _say(self, line: str) -> None:
        log.log(logging.DEBUG if self._said else logging.WARNING, "%s", line)
        self._said = True


def _encode(record: MoveRecord) -> bytes:
    move = record.move
    return msgspec.json.encode(
        _Line(
            at_s=round(record.at_s, 3),
            project=move.key.project,
            name=move.key.name,
            before=str(move.before),
            after=str(move.after),
            gain=move.gain,
            price=move.price,
            load_cpus=move.load_cpus,
            size_bytes=move.size_bytes,
            distance=move.distance,
            with_key=None
            if move.with_key is None
            else _Partner(project=move.with_key.project, name=move.with_key.name),
            reason=move.reason,
            result=record.result,
            moved_bytes=record.moved_bytes,
            took_s=record.took_s,
        )
    )


def _decode(text: bytes) -> MoveRecord | None:
    """The record of a line, None if it is empty, cut or something else."""
    try:
        line = msgspec.json.decode(text, type=_Line)
        move = Move(
            key=InstanceKey(line.project, line.name),
            before=NodeSet.parse(line.before),
            after=NodeSet.parse(line.after),
            gain=line.gain,
            price=line.price,
            load_cpus=line.load_cpus,
            size_bytes=line.size_bytes,
            distance=line.distance,
            with_key=None if line.with_key is None else InstanceKey(line.with_key.project, line.with_key.name),
            reason=line.reason,
        )
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return MoveRecord(at_s=line.at_s, move=move, result=line.result, moved_bytes=line.moved_bytes, took_s=line.took_s)
