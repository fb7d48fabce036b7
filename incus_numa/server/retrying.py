"""Trying again while the server is busy. Called by whoever reads an ETag and writes with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception_type, stop_before_delay, wait_exponential, wait_random

from incus_numa.errors import RetryError

T = TypeVar("T")

_FIRST_S = 0.01
_MOST_S = 0.5


async def retrying(operation: Callable[[], Awaitable[T]], *, give_up_after_s: float) -> T:
    """The operation's result, tried again after 10 ms, 20 ms, up to 0.5 s while it raises RetryError.

    The operation is the whole of GET and PATCH: an ETag is old once it was refused. Raises the last RetryError when
    the next try would come after `give_up_after_s`; every other error at once.
    """
    try:
        # Most operations work at once, and setting up retries costs as much as a request.
        return await operation()
    except RetryError:
        await asyncio.sleep(_FIRST_S)
    attempts = AsyncRetrying(
        retry=retry_if_exception_type(RetryError),
        # Instances that were started together would otherwise also try again together.
        wait=wait_exponential(multiplier=_FIRST_S, max=_MOST_S) + wait_random(0, _FIRST_S),
        stop=stop_before_delay(give_up_after_s),
        reraise=True,
    )
    async for attempt in attempts:
        with attempt:
            return await operation()
    raise AssertionError("unreachable: the last attempt returns or raises")
