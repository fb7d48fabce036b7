"""What the daemon has said about instances, so that its log tells news only."""

from __future__ import annotations

import logging
from collections.abc import Set

from incus_numa.model.instance import InstanceKey

log = logging.getLogger(__name__)

MOST_LINES = 16
"""So many lines are remembered of one instance. Beyond that the one not said for longest would be news again."""


class Said:
    """What was already said, so that each thing is said once, and again only after the instance was rid of it."""

    def __init__(self) -> None:
        self._lines: dict[InstanceKey, dict[str, None]] = {}

    def once(self, key: InstanceKey, line: str) -> None:
        """Log a line about an instance unless that was done before."""
        known = self._lines.setdefault(key, {})
        if line not in known:
            log.warning("instance=%s %s", key, line)
        # The last one said goes to the end.
        known.pop(line, None)
        known[line] = None
        if len(known) > MOST_LINES:
            del known[next(iter(known))]

    def knows(self, key: InstanceKey, line: str) -> bool:
        """Whether that was said of the instance."""
        return line in self._lines.get(key, ())

    def told(self) -> tuple[InstanceKey, ...]:
        """The instances that something was said of."""
        return tuple(self._lines)

    def forget(self, keys: Set[InstanceKey]) -> None:
        """These are right, or gone: whatever is wrong with them from now on is news."""
        for key in keys:
            self._lines.pop(key, None)

    def forget_all(self) -> None:
        """Say everything anew."""
        self._lines.clear()
