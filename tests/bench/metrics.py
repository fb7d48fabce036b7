"""What /metrics costs with 1000 instances on 24 nodes: taking the numbers from a service, and writing them as text."""

from __future__ import annotations

import asyncio
import gc
import gzip
import time
from collections.abc import Callable, Sequence
from functools import partial

from incus_numa.daemon.service import Service
from incus_numa.facts.gauges import take_gauges
from incus_numa.model.instance import InstanceKey
from incus_numa.settings import DaemonSettings, RebalanceSettings, Settings
from incus_numa.simulator import scenario
from incus_numa.simulator.options import SimulatorOptions
from incus_numa.web.metrics import Metrics
from incus_numa.web.scrapes import LEVEL
from tests.bench.rig import percentile
from tests.contract.daemon_rig import Rig, Wish, eventually, rig

INSTANCES, SIZES, TOGETHER, ROUNDS = 1000, (1, 2, 4, 8), 20, 51
QUIET = SimulatorOptions(lock_release_s=(0.0, 0.0), balances=False)
SETTINGS = Settings(
    daemon=DaemonSettings(resync_s=3600.0, verify_s=(3600.0,)),
    rebalance=RebalanceSettings(interval_s=1.0, hold_s=3600.0),
)


def main() -> None:
    """Measure and print."""
    # As the daemon does.
    gc.set_threshold(50_000, 20, 100)
    asyncio.run(_measure())


async def _measure() -> None:
    async with rig(QUIET, machine=scenario.machine(), wish=Wish(settings=SETTINGS)) as host:
        service = host.daemon.service
        keys = [host.managed(f"i{n:04}", SIZES[n % len(SIZES)], limits_memory="128MiB") for n in range(INSTANCES)]
        for first in range(0, INSTANCES, TOGETHER):
            await _start(host, keys[first : first + TOGETHER])
        await eventually(lambda: _is_measured(service))
        # Its own work would be measured, too.
        await host.stop_daemon()
        _report(service)


async def _start(host: Rig, keys: Sequence[InstanceKey]) -> None:
    await host.start(*keys)
    await eventually(lambda: all(host.daemon.service.reconciler.is_placed(key) for key in keys))


def _is_measured(service: Service) -> bool:
    rates = service.balancing.rates
    return rates is not None and sum(one.used_cpus is not None for one in rates.instances.values()) == INSTANCES


def _report(service: Service) -> None:
    gauges = take_gauges(service)
    assert sum(one.load_cpus is not None for one in gauges.instances) == INSTANCES
    print(f"{len(gauges.instances)} instances, {len(gauges.nodes)} nodes")
    print("gauges, taken once a second at most:", _cpu_ms(lambda: take_gauges(service)))
    metrics = Metrics()
    for name, openmetrics in (("text", False), ("OpenMetrics", True)):
        show = partial(metrics.render, gauges, INSTANCES, openmetrics=openmetrics)
        text, _ = show()
        packed = partial(gzip.compress, text, LEVEL)
        print(f"{name}, once a second at most: {len(text)} bytes,", _cpu_ms(show))
        print(f"  packed: {len(packed())} bytes,", _cpu_ms(packed))


def _cpu_ms(work: Callable[[], object]) -> str:
    """How much CPU time a call takes."""
    work()
    took = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        took.append((time.process_time() - began) * 1000)
    return f"{percentile(took, 0.5):.1f} ms of CPU, most {max(took):.1f} ms"
