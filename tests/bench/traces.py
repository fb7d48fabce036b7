"""Our policy and the peers' on real traces: every trace of ../shared on a machine of 8 and one of 24 nodes.

Each machine keeps its nodes and distances and is scaled up to the trace where that is larger: CPUs for the 95th
percentile of what runs at once. Every node has memory for all, so that CPUs alone decide, as they do for most peers.

A peer with exclusive CPUs refuses what makes a machine uneven: bursts and wide instances. So `same` is what our policy
makes of those instances alone that the peer placed.
"""

from __future__ import annotations

import math
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from incus_numa.cpuset import CpuSet
from incus_numa.model.instance import Policy
from incus_numa.model.machine import Cpu, Machine
from incus_numa.replay import ground, policies, replay, stays
from incus_numa.replay.replay import Outcome
from incus_numa.replay.stays import Stay
from incus_numa.settings import PlacementSettings
from incus_numa.topology import sysfs
from tests import builders

DATA = Path(__file__).parents[3] / "shared" / "data"
TRACES = sorted((DATA / "traces").glob("*.csv"), key=lambda path: path.stat().st_size)
EIGHT = DATA / "topologies" / "x-epyc7551-2s8n.tar.xz"
SETTINGS = PlacementSettings()
OURS = Policy.BALANCED.value


def main() -> None:
    """Replay and print one table."""
    if not TRACES or not EIGHT.exists():
        print("../shared/data is not there: nothing to replay")
        return
    print("max/mean: time-averaged highest over mean node load; distance: mean in a set, one node counts as 10;")
    print(
        "inside: the same over sets of several nodes; ratio: max/mean over ours; same: ours of what it did not refuse"
    )
    for machine in machines():
        for path in TRACES:
            _print(machine, path)


def machines() -> tuple[Machine, Machine]:
    """One of 8 nodes and one of 24, both real."""
    return read_topology(EIGHT), builders.load_machine("sgi-uv-24n384t")


def read_topology(archive: Path) -> Machine:
    """A snapshot's machine."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        (root,) = Path(folder).glob("**/sys/devices/system/node/node0")
        sys_root = root.parents[3]
        return sysfs.read_machine(sys_root, sys_root.parent / "proc", name=archive.name.split(".")[0])


def read_trace(path: Path) -> tuple[Stay, ...]:
    """A trace of ../shared."""
    return stays.parse_trace(path.read_text())


def fitted(machine: Machine, trace: Sequence[Stay], *, grows: bool = True) -> Machine:
    """The machine with as many CPUs per node as the trace needs, with `grows` no less than it has."""
    count = len(machine.nodes)
    cpus_per_node = math.ceil(_percentile(trace, lambda stay: stay.vcpus, 0.95) / 0.95 / count)
    memory_bytes = _percentile(trace, lambda stay: stay.memory_bytes or 0, 1.0)
    if grows:
        cpus_per_node = max(cpus_per_node, len(machine.cpus) // count)
    cpus = tuple(
        Cpu(id=cpu, node=machine.nodes[cpu // cpus_per_node].id, socket=None, core=cpu, l3=None)
        for cpu in range(count * cpus_per_node)
    )
    nodes = tuple(
        replace(
            node,
            cpus=CpuSet(range(place * cpus_per_node, (place + 1) * cpus_per_node)),
            memory_bytes=memory_bytes,
            free_bytes=memory_bytes,
            hugepages={},
        )
        for place, node in enumerate(machine.nodes)
    )
    name = f"{machine.name}, {count} nodes of {cpus_per_node} CPUs"
    return Machine(name=name, nodes=nodes, cpus=cpus, online=CpuSet(cpu.id for cpu in cpus))


def compare(machine: Machine, trace: Sequence[Stay], names: Iterable[str] = policies.COMPARED) -> dict[str, Outcome]:
    """What each policy makes of it."""
    here, events = ground.survey(machine, SETTINGS), replay.list_events(trace)
    return {name: replay.replay(here, events, policies.placer(name, here, SETTINGS)) for name in names}


def _percentile(trace: Sequence[Stay], amount: Callable[[Stay], int], part: float) -> int:
    """What so much of the time is not exceeded by the sum over those that are there."""
    total, before, spent = 0, 0.0, dict[int, float]()
    for event in replay.list_events(trace):
        spent[total] = spent.get(total, 0.0) + event.at_s - before
        before = event.at_s
        total += amount(event.stay) if event.arrives else -amount(event.stay)
    left = sum(spent.values()) * part
    for level in sorted(spent):
        left -= spent[level]
        if left <= 1e-6:
            return level
    return max(spent)


def _print(machine: Machine, path: Path) -> None:
    trace = read_trace(path)
    scaled = fitted(machine, trace)
    began = time.perf_counter()
    found = compare(scaled, trace)
    print(f"\n{path.stem}, {len(trace)} instances; {scaled.name} ({time.perf_counter() - began:.1f} s)")
    heads = ("max/mean", "ratio", "same", "load", "distance", "inside", "nodes", "moves", "refused")
    print(f"{'':18}" + "".join(f"{head:>9}" for head in heads))
    ours = found[OURS].mean_imbalance or math.nan
    same = {name: _same(scaled, trace, one) for name, one in found.items() if one.rejected}
    for name, one in found.items():
        mean = one.mean_imbalance or math.nan
        inside = "-" if one.multi_node_distance is None else f"{one.multi_node_distance:.2f}"
        kept = f"{same[name]:.3f}" if name in same else "-"
        print(
            f"{name:18}{mean:9.3f}{mean / ours:9.3f}{kept:>9}{one.mean_load or 0:9.2f}{one.mean_distance or 0:9.3f}"
            f"{inside:>9}{one.nodes_per_instance or 0:9.2f}{one.moves:9}{len(one.rejected):9}"
        )


def _same(machine: Machine, trace: Sequence[Stay], peer: Outcome) -> float:
    refused = frozenset(peer.rejected)
    ours = compare(machine, [stay for stay in trace if stay.name not in refused], [OURS])[OURS]
    return ours.mean_imbalance or math.nan
