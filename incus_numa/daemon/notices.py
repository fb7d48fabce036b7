"""Passes on what the service tells about its own work to whoever watches: metrics, the API."""

from __future__ import annotations

import logging
from collections.abc import Callable

from incus_numa.model.notice import Notice

log = logging.getLogger(__name__)

Watcher = Callable[[Notice], None]


class Notices:
    """A board of notices. Nothing is kept: those who come later see what happens from then on."""

    def __init__(self) -> None:
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with every notice from now on, in the event loop. Returns what ends that."""
        self._watchers.append(watcher)

        def end() -> None:
            if watcher in self._watchers:
                self._watchers.remove(watcher)

        return end

    def tell(self, notice: Notice) -> None:
        """Pass a notice on. A watcher that fails does no harm to the work it watches."""
        for watcher in tuple(self._watchers):
            try:
                watcher(notice)
            except Exception:
                log.exception("a watcher failed by a bug; what it watched goes on")
