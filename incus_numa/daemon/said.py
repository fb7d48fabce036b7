"""What the daemon has said about instances, so that its log tells news only."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from incus_numa.model.instance import InstanceKey

log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class Said:
    """What was already said, so that each thing is said once and again only after it changed."""

    lines: dict[InstanceKey, str] = field(default_factory=dict)

    def once(self, key: InstanceKey, line: str) -> None:
        """Log a line about an instance unless it was the last one."""
        if self.lines.get(key) != line:
            self.lines[key] = line
            log.warning("instance=%s %s", key, line)
