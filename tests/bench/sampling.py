"""What sampling costs: CPU time per sample of containers and nodes, and of making rates of it.

Containers are files in memory, and real cgroups where there is a cgroup v2 mount to make them in; these have no memory
controller on a host that boots with cgroup v1. The kernel writes the text of a real file whenever it is read.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.host.sampler import Sampler
from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.model.sample import Rates, Sample
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import rates
from incus_numa.simulator import groups, scenario, trees
from incus_numa.simulator.groups import Group
from tests import builders

COUNTS = (250, 500, 1000, 2000)
ROUNDS = 9
DESCRIPTORS = 16384
"""The limit of open files that lets all of these stay open."""

CGROUPS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
CPU_STAT = """\
usage_usec {used}
user_usec {used}
system_usec 123456
nice_usec 0
core_sched.force_idle_usec 0
nr_periods 0
nr_throttled 0
throttled_usec 0
nr_bursts 0
burst_usec 0
"""
PRESSURE = """\
some avg10=1.95 avg60=1.58 avg300=1.02 total={some}
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""


def main() -> None:
    """Measure and print."""
    host = scenario.machine()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    kept = DESCRIPTORS if most == resource.RLIM_INFINITY else min(DESCRIPTORS, most)
    with tempfile.TemporaryDirectory(dir=trees.scratch_root()) as folder:
        root = Path(folder)
        paths = [_make(root / "cgroup", index, host) for index in range(max(COUNTS))]
        _write_host(root, host)
        for count in COUNTS:
            for limit in (kept, 1024):
                with _descriptors(limit):
                    _measure(f"{count} containers as files, at most {limit} open", root, host, paths[:count])
        for count in COUNTS:
            _rates(root, host, paths[:count])
        for count in COUNTS:
            with _real_groups(count) as real, _descriptors(kept):
                if real:
                    _measure(f"{count} real cgroups without memory controller", root, host, real)


def _measure(words: str, root: Path, host: Machine, paths: Sequence[Path]) -> None:
    sampler = Sampler(root / "proc", root / "sys")
    _take(sampler, host, paths)
    instances = _cpu_ms(lambda: [sampler.sample_instance(path) for path in paths])
    # What ends a sample would close all files if no instance was in it.
    whole = _cpu_ms(lambda: _take(sampler, host, paths))
    print(f"{words}: {instances:.1f} ms of CPU per sample, {whole:.1f} ms with {len(host.nodes)} nodes", flush=True)


def _rates(root: Path, host: Machine, paths: Sequence[Path]) -> None:
    instances = tuple(_instance(path) for path in paths)
    spots = [
        builders.decided(f"{index % 24}", f"{index % 24 * 16}-{index % 24 * 16 + 3}") for index in range(len(paths))
    ]
    observed = {one.key: spot for one, spot in zip(instances, spots, strict=True)}
    snapshot = Snapshot(machine=host, instances=instances, observed=observed)
    sampler, found = Sampler(root / "proc", root / "sys"), None
    took = []
    for _ in range(ROUNDS):
        sample = _take(sampler, host, paths)
        began = time.process_time()
        found = rates.smooth(found, sample, snapshot, 30.0)
        took.append((time.process_time() - began) * 1000)
    assert isinstance(found, Rates)
    assert all(one.used_cpus == 0.0 for one in found.instances.values())
    print(f"rates of {len(paths)} containers and {len(host.nodes)} nodes: {sorted(took)[ROUNDS // 2]:.1f} ms of CPU")


def _take(sampler: Sampler, host: Machine, paths: Sequence[Path]) -> Sample:
    sampled = {_key(path): sampler.sample_instance(path) for path in paths}
    nodes = sampler.sample_nodes({node.id: node.cpus for node in host.nodes})
    return Sample(at_s=time.monotonic(), instances=sampled, nodes=nodes)


def _key(path: Path) -> InstanceKey:
    return InstanceKey("default", path.name.removeprefix("lxc.payload."))


def _instance(path: Path) -> Instance:
    return builders.instance(_key(path).name, vcpus=4)


def _make(root: Path, index: int, host: Machine) -> Path:
    """Files of a container as long as real ones, with memory on two of the nodes."""
    name = f"lxc.payload.i{index:04}"
    pages = {node.id: 128 << 20 if (node.id - index) % len(host.nodes) < 2 else 0 for node in host.nodes}
    group = Group(name=name, path=root / name, pages=pages)
    groups.create_group(group, 1000 + index, host.online, NodeSet(pages))
    trees.put(group.path / "cpu.stat", CPU_STAT.format(used=5_000_000_000 + index))
    trees.put(group.path / "cpu.pressure", PRESSURE.format(some=8_000_000 + index))
    trees.put(group.path / "memory.pressure", PRESSURE.format(some=index))
    lines = (group.path / "memory.numa_stat").read_text().splitlines()
    # The kernel has about 35 rows.
    trees.put(group.path / "memory.numa_stat", "\n".join(lines + lines[-1:] * 32) + "\n")
    return group.path


def _write_host(root: Path, host: Machine) -> None:
    trees.write_sysfs(root / "sys", host)
    trees.write_procfs(root / "proc", host)
    lines = [f"cpu{cpu} 1176672 14427 180663 1110802 3670 0 602 20596 0 0" for cpu in CpuSet(host.online)]
    # A large host counts thousands of interrupts there.
    trees.put(root / "proc/stat", "\n".join(["cpu  1 2 3 4 5 6 7 8 9 0", *lines, "intr 31240786" + " 0" * 8000]) + "\n")
    for node in host.nodes:
        folder = root / f"sys/devices/system/node/node{node.id}"
        trees.put(folder / "numastat", "numa_hit 98376814\nnuma_miss 0\nnuma_foreign 0\ninterleave_hit 1129\n")


@contextmanager
def _descriptors(limit: int) -> Iterator[None]:
    """That soft limit of open files, as the service has it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def _real_groups(count: int) -> Iterator[Sequence[Path]]:
    """Empty cgroups, which are removed in the end; none where they cannot be made."""
    root = next((one for one in CGROUPS if (one / "cgroup.controllers").exists()), None)
    made: list[Path] = []
    try:
        if root is not None:
            for name in ["", *(f"lxc.payload.i{index:04}" for index in range(count))]:
                path = root / "incus-numa-bench" / name
                path.mkdir()
                made.append(path)
    except OSError as error:
        print(f"no real cgroups: {error}")
    try:
        yield made[1:] if len(made) > count else ()
    finally:
        for path in reversed(made):
            path.rmdir()


def _cpu_ms(work: Callable[[], object]) -> float:
    """The median of some rounds."""
    took = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        took.append((time.process_time() - began) * 1000)
    return sorted(took)[ROUNDS // 2]
