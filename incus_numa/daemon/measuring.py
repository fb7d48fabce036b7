"""Samples everything that runs, and keeps the smoothed rates. Used by the service and by commands that show load.

What is measured is noted in the world, so that everything planned from then on counts it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from incus_numa.daemon.observe import World
from incus_numa.daemon.seen import Seen
from incus_numa.host.guest_memory import AT_ONCE
from incus_numa.host.sampler import Sampler
from incus_numa.host.virtual import Process
from incus_numa.model.instance import InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.sample import InstanceSample, Rates, Sample
from incus_numa.policy import rates
from incus_numa.settings import HostSettings

log = logging.getLogger(__name__)

TOGETHER = 25
"""So many containers are sampled in one go: sampling a thousand takes long enough to hold up a start."""

LOOKS = 10
"""How often a window is sampled."""


class Measuring:
    """The rates as of the last sample. Not thread-safe: one event loop uses it."""

    def __init__(self, world: World, host: HostSettings, time_constant_s: float) -> None:
        self._world = world
        self._sampler = Sampler(Path(host.procfs), Path(host.sysfs), world.cgroups.counters, world.vms.guests)
        self.time_constant_s = time_constant_s
        self.rates: Rates | None = None

    @property
    def load(self) -> Load:
        """What plans count; empty before the second sample."""
        return rates.load_of(self.rates)

    async def take(self) -> None:
        """One sample. What cannot be read is unknown, nor does a server that is away hold up the rest."""
        known = self._world.all_seen()
        sampled = await self._sample_processes([seen for seen in known if seen.process is not None])
        for count, seen in enumerate(seen for seen in known if seen.process is None):
            if count % TOGETHER == TOGETHER - 1:
                await asyncio.sleep(0)
            sampled[seen.instance.key] = self._sampler.sample_instance(seen.group)
        machine = self._world.machine
        nodes = self._sampler.sample_nodes({node.id: node.cpus for node in machine.nodes})
        sample = Sample(at_s=time.monotonic(), instances=sampled, nodes=nodes)
        # Values in, values out: in a thread it takes turns with starts instead of holding them up.
        self.rates = await asyncio.to_thread(
            rates.smooth, self.rates, sample, self._world.snapshot(), self.time_constant_s
        )
        self._world.note_load(
            self.load, {key: one.memory_by_node for key, one in sampled.items() if one.memory_by_node is not None}
        )

    async def _sample_processes(self, known: Sequence[Seen]) -> dict[InstanceKey, InstanceSample]:
        """Samples of virtual machines, several at a time, in threads: where a guest has its memory can take seconds."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def sample(process: Process) -> InstanceSample:
            async with gate:
                return await asyncio.to_thread(self._sampler.sample_instance, None, process.pid)

        found = await asyncio.gather(*(sample(seen.process) for seen in known if seen.process is not None))
        return {seen.instance.key: one for seen, one in zip(known, found, strict=True)}

    def forget(self) -> None:
        """Nothing is known from now on: what nobody measures any more must not count for ever."""
        if self.rates is not None:
            self.rates = None
            self._world.note_load(Load(), {})
            log.debug("load is measured no more")

    async def watch(self, seconds: float, progress: Callable[[float], None]) -> None:
        """Sample for so long; `progress` is told the part of it that is over."""
        began = time.monotonic()
        await self.take()
        for look in range(1, LOOKS + 1):
            await asyncio.sleep(max(0.0, began + seconds * look / LOOKS - time.monotonic()))
            await self.take()
            progress(look / LOOKS)
