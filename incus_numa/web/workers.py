"""Threads for what is asked of the API. Placing has those of the event loop, which must never be busy with that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Workers:
    """So many threads, which are started when they are needed."""

    def __init__(self, name: str, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)

    async def run(self, call: Callable[[], T]) -> T:
        """What a call returns or raises; it waits for its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)
