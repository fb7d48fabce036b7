"""What was last seen of a running instance: a value that the world keeps and everybody reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from incus_numa.model.instance import Instance
from incus_numa.model.snapshot import Decided, Observed


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One running instance as last seen.

    `marked` is the decision that is kept on its cgroup, `etag` is None when it was seen in a listing, `turn` orders the
    looks. `problem` says why its cgroup could not be read, None when it could.
    """

    instance: Instance
    observed: Observed
    group: Path | None
    marked: Decided | None
    etag: str | None
    turn: int
    problem: str | None = None


def moved(before: Seen, now: Seen) -> bool:
    """Whether what an instance takes may have changed: where it was decided to be counts, else what it has."""
    if now.observed.decided is not None and now.observed.decided.cpus is not None:
        return now.observed.decided != before.observed.decided
    return now.observed != before.observed
