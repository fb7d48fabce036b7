"""The server's CPU scheduler: some time after a trigger it rewrites the cpuset of every running container.

Triggers that come while it waits or works are coalesced into one further pass. Called by `incus` and `simulator`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from itertools import islice
from random import Random

from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator import choices
from incus_numa.simulator.choices import CpuClaim
from incus_numa.simulator.kernel import Kernel
from incus_numa.simulator.measure import Measurements
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.simulator.records import Record

CHUNK = 16
"""So many cpusets are written before others get a turn."""


class Balancer:
    """One task that runs pass after pass."""

    def __init__(
        self,
        kernel: Kernel,
        records: Mapping[InstanceKey, Record],
        options: SimulatorOptions,
        measurements: Measurements,
        random: Random,
    ) -> None:
        self.passes = 0
        self._kernel = kernel
        self._records = records
        self._options = options
        self._measurements = measurements
        self._random = random
        self._claims: dict[InstanceKey, CpuClaim | None] = {}
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to serve triggers."""
        self._task = asyncio.create_task(self._serve(), name="CPU scheduler")

    async def halt(self) -> None:
        """Stop, perhaps in the middle of a pass."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        self._idle.set()

    def trigger(self) -> None:
        """Ask for a pass."""
        if self._options.balances:
            self._idle.clear()
            self._wanted.set()

    def forget(self, key: InstanceKey | None = None) -> None:
        """What an instance claims has to be read again; of all of them, when no key is given."""
        if key is None:
            self._claims.clear()
        else:
            self._claims.pop(key, None)

    async def wait_idle(self) -> None:
        """Return when no pass runs or is asked for."""
        await self._idle.wait()

    async def _serve(self) -> None:
        while True:
            await self._wanted.wait()
            await asyncio.sleep(self._random.uniform(*self._options.balance_delay_s))
            self._wanted.clear()
            await self._run()
            self.passes += 1
            if not self._wanted.is_set():
                self._idle.set()

    async def _run(self) -> None:
        usable = self._kernel.open_cpus - self._kernel.machine.isolated
        try:
            claims = [claim for key in self._kernel.groups if (claim := self._claim(key)) is not None]
        except ValueError:
            # One limits.cpu that does not parse silently ends the pass for all.
            return
        shares = choices.share_cpus(claims, usable, self._random)
        pause_s = self._options.balance_s / max(1, len(claims) / CHUNK)
        while chunk := list(islice(shares, CHUNK)):
            await asyncio.sleep(pause_s)
            for key, cpus in chunk:
                if key in self._kernel.groups:
                    self._kernel.set_cpus(key, cpus)
                    self._measurements.mark(key, "balance", str(cpus))

    def _claim(self, key: InstanceKey) -> CpuClaim | None:
        if key not in self._claims:
            record = self._records[key]
            usable = self._kernel.open_cpus - self._kernel.machine.isolated
            container = record.type is InstanceType.CONTAINER
            self._claims[key] = (
                choices.claim_cpus(key, record.expanded, self._kernel.machine, usable) if container else None
            )
        return self._claims[key]
