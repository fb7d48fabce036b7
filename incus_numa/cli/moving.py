"""Measured load and moves by it, as commands need them: once, shown while it takes time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from incus_numa.cli import progress
from incus_numa.cli.wiring import Session
from incus_numa.daemon.measuring import Measuring
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import MovePages, Placement

SMOOTHED = 0.5
"""Rates are smoothed over this part of a window, so that no part of it counts alone."""


async def measure(session: Session, seconds: float, *, plain: bool) -> Measuring:
    """Sample everything that runs for so long, and count it in the session's world."""
    measuring = Measuring(session.world, session.settings.host, seconds * SMOOTHED)
    with progress.sampling(session.world.count(), seconds, plain=plain) as tell:
        await measuring.watch(seconds, tell)
    return measuring


class Watching:
    """Shows memory that follows, one instance after the other: called with the instance and the bytes that have."""

    def __init__(self, session: Session, placements: Mapping[InstanceKey, Placement]) -> None:
        self._world = session.world
        self._placements = placements
        self._key: InstanceKey | None = None
        self._shown = ExitStack()
        self._tell: Callable[[int], None] = lambda _: None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end("done" if kind is None else "stopped")

    def __call__(self, key: InstanceKey, moved_bytes: int) -> bool:
        """Memory follows to the end, so the answer is always to go on."""
        if key != self._key:
            self._end("done")
            step = self._step(key)
            if step is not None:
                self._key, self._tell = key, self._shown.enter_context(progress.following(step))
        if key == self._key:
            self._tell(moved_bytes)
        return True

    def _end(self, word: str) -> None:
        if self._key is not None:
            self._shown.close()
            progress.ended(word)
        self._key = None

    def _step(self, key: InstanceKey) -> MovePages | None:
        """What is being moved, as it was before the first slice."""
        placement, seen = self._placements.get(key), self._world.get(key)
        if placement is None or seen is None:
            return None
        todo = self._world.diff(placement, seen)
        return next((one for one in todo if isinstance(one, MovePages)), None)
