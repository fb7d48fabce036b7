"""Memory of containers that were born in their cgroups follows when it is bound at once, and what moved is counted."""

from __future__ import annotations

import json
from dataclasses import replace

from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import MemoryFollowed, Notice
from incus_numa.policy.steps import PACED_BYTES
from incus_numa.settings import DaemonSettings, RebalanceSettings, Settings
from tests import builders
from tests.builders import GIB
from tests.contract.daemon_rig import QUICK, Rig, Wish, eventually, rig

BORN_INSIDE = replace(QUICK, born_inside=True)
LITTLE = "40MiB"
"""Less than is moved in slices. Its parts come to whole pages, whose tenth is memory of files."""

RARELY = DaemonSettings(resync_s=3600.0, verify_s=(0.2,))
SWIFT = RebalanceSettings(
    interval_s=0.15, time_constant_s=0.1, hold_s=0.1, cooldown_s=3600.0, bytes_per_second=64 * GIB
)
MACHINE = builders.machine(nodes=4, cpus_per_node=4, memory_bytes=16 * GIB)


def heard(r: Rig) -> list[Notice]:
    """What the daemon tells from now on."""
    found: list[Notice] = []
    r.daemon.service.reconciler.notices.watch(found.append)
    return found


def followed(notices: list[Notice], key: InstanceKey) -> list[int]:
    return [one.moved_bytes for one in notices if isinstance(one, MemoryFollowed) and one.key == key]


def anonymous(r: Rig, key: InstanceKey) -> dict[int, int]:
    """Its memory as the kernel shows it, where there is any."""
    fields = r.path(key, "memory.numa_stat").read_text().splitlines()[0].split()[1:]
    return {int(node[1:]): int(size) for node, size in (one.split("=") for one in fields) if int(size)}


async def test_a_little_memory_is_all_on_its_node_after_the_first_binding_and_is_counted() -> None:
    async with rig(BORN_INSIDE, MACHINE, Wish(settings=Settings(daemon=RARELY)), run=False) as r:
        keys = [r.managed(f"c{n}", 4, limits_memory=LITTLE) for n in range(4)]
        await r.start(*keys)
        before = {key: anonymous(r, key) for key in keys}
        r.start_daemon()
        notices = heard(r)
        await r.placed(*keys)
        homes = {key: r.nodes(key).lowest() for key in keys}
        away = {key: sum(before[key].values()) - before[key].get(homes[key], 0) for key in keys}
        assert any(away.values())
        await eventually(lambda: len([one for one in notices if isinstance(one, MemoryFollowed)]) == len(away))
        assert {key: followed(notices, key) for key in keys} == {key: [size] for key, size in away.items()}
        assert {key: anonymous(r, key) for key in keys} == {
            key: {homes[key]: sum(before[key].values())} for key in keys
        }


async def test_a_move_by_load_counts_memory_that_the_kernel_moved_at_once() -> None:
    wish = Wish(settings=Settings(daemon=RARELY, rebalance=SWIFT))
    async with rig(BORN_INSIDE, MACHINE, wish) as r:
        keys = [
            await r.present(f"c{n}", 4, limits_memory=LITTLE, user_numa_movable=str(n > 3).lower()) for n in range(5)
        ]
        mover = keys[4]
        before = r.nodes(mover)
        mate = next(key for key in keys[:4] if r.nodes(key) == before)
        notices = heard(r)
        for key in (mover, mate):
            r.simulator.set_work(key, 4.0)
        await eventually(lambda: r.journal.exists() and bool(r.journal.read_text()))
        (line,) = [json.loads(text) for text in r.journal.read_text().splitlines()]
        size = sum(anonymous(r, mover).values())
        # Less than is moved in slices.
        assert size < PACED_BYTES
        assert (line["name"], line["result"], line["moved_bytes"]) == (mover.name, "moved", size)
        assert followed(notices, mover)[-1:] == [size]
