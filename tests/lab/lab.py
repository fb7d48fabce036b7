"""What scenarios do with the virtual host: containers, the daemon, and what the kernel says about both."""

from __future__ import annotations

import itertools
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from incus_numa.cpuset import CpuSet, NodeSet
from tests.lab.host import Host

GUEST = Path(__file__).parent / "guest"
RECORD = "/run/lab-record"
CONFIG = "/etc/incus-numa/config.toml"
SOCKET = "/var/lib/incus/unix.socket"
CGROUPS = "/sys/fs/cgroup"
DELETE = """
for try in 1 2 3 4 5; do
    said=$(incus delete --force "--project=$1" "$2" 2>&1 </dev/null) && exit 0
    case $try:$said in
        *busy*) sleep 1 ;;
        [2-5]:*"not found"*) exit 0 ;;
        *) break ;;
    esac
done
echo "$2: $said" >&2
exit 1
"""
"""Deletes container $2 of project $1. The server calls it busy while the daemon writes to its record."""

SETTLE_S = 60.0
"""How long a scenario waits for a state before it is judged. The emulated host is about 20 times slower than a real
one; what has a bound of its own is measured, not waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One running container: its cgroup as the kernel shows it, and what the server recorded.

    `cpus` is cpuset.cpus.effective, `written` cpuset.cpus, `mems` cpuset.mems: empty when memory is not bound, which
    the kernel shows as nothing or, once it has been bound, as all nodes, for it refuses to be given nothing again.
    `nodes` are the nodes of `cpus`. `recorded` is volatile.cpu.nodes.
    """

    cpus: CpuSet
    written: CpuSet
    mems: NodeSet
    nodes: NodeSet
    recorded: NodeSet | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A line of the recorder: at `at_s` of the host's clock a container's files became this; None when it is gone."""

    at_s: float
    cpus: str | None
    mems: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The host's nodes, read from its kernel: online CPUs and distances of each."""

    cpus: dict[int, CpuSet]
    distances: dict[int, dict[int, int]] = field(repr=False)

    def nodes_of(self, cpus: CpuSet) -> NodeSet:
        """The nodes that have any of the CPUs."""
        return NodeSet(node for node, own in self.cpus.items() if own & cpus)

    def spread(self, cpus: CpuSet) -> dict[int, int]:
        """How many of the CPUs each node has, for the nodes that have any."""
        return {node: len(own & cpus) for node, own in self.cpus.items() if own & cpus}


class Lab:
    """The host, seen through `incus`, the kernel's files and systemd."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.layout = self.read_layout()

    # The machine

    def read_layout(self) -> Layout:
        """Nodes, CPUs and distances as the host's kernel has them now."""
        text = self.host.run(
            "cd /sys/devices/system/node; for n in node[0-9]*; do echo $n; cat $n/cpulist $n/distance; done"
        )
        lines = text.splitlines()
        blocks = [lines[at : at + 3] for at in range(0, len(lines), 3)]
        cpus = {int(name.removeprefix("node")): CpuSet.parse(cpulist) for name, cpulist, _ in blocks}
        rows = {int(name.removeprefix("node")): row.split() for name, _, row in blocks}
        distances = {
            node: dict(zip(sorted(cpus), (int(one) for one in row), strict=True)) for node, row in rows.items()
        }
        return Layout(cpus=cpus, distances=distances)

    def clock(self) -> float:
        """The host's monotonic clock, in seconds."""
        return float(self.host.run("cut -d' ' -f1 /proc/uptime"))

    # Containers

    def incus(self, *words: str, timeout_s: float = 120) -> str:
        """Run an `incus` command; it gets no input."""
        return self.host.run(f"incus {shlex.join(words)} </dev/null", timeout_s=timeout_s)

    def create(self, name: str, project: str = "default", **config: str) -> None:
        """Create a container; `limits_cpu="2"` means `limits.cpu=2`."""
        self.incus("init", "tiny", name, "--quiet", f"--project={project}", *_render_config(config))

    def start(self, name: str, project: str = "default") -> None:
        """Start a container; returns when the server says it runs."""
        self.incus("start", name, f"--project={project}")

    def launch(self, name: str, project: str = "default", **config: str) -> None:
        """Create and start a container."""
        self.incus("launch", "tiny", name, "--quiet", f"--project={project}", *_render_config(config))

    def launch_balanced(self, name: str, vcpus: int, **config: str) -> None:
        """Create and start a managed container with that many vCPUs."""
        self.launch(name, limits_cpu=str(vcpus), limits_cpu_nodes="balanced", **config)

    def delete(self, *names: str, project: str = "default") -> None:
        """Delete containers, running or not, three at a time; one that is being written to is tried again."""
        if names:
            self.host.run(
                f"printf '%s\\n' {shlex.join(names)} | xargs -P 3 -n 1 sh -c {shlex.quote(DELETE)} delete {project}",
                timeout_s=60 + 30 * len(names),
            )

    def list_names(self, project: str = "default") -> list[str]:
        """The project's containers."""
        return self.incus("list", "--format=csv", "--columns=n", f"--project={project}").split()

    def get(self, name: str, project: str = "default") -> dict[str, Any]:
        """The server's record of a container, without its state."""
        return _metadata(self.host.run(_render_get(f"/1.0/instances/{name}?project={project}")))

    def get_pid(self, name: str, project: str = "default") -> int:
        """The container's init as the host's kernel counts it; 0 while there is none."""
        _, out, _ = self.host.attempt(f"cat {self.cgroup(name, project)}/cgroup.procs")
        return min((int(one) for one in out.split()), default=0)

    def cgroup(self, name: str, project: str = "default") -> str:
        """The container's cgroup folder in the host."""
        return f"{CGROUPS}/lxc.payload.{name if project == 'default' else f'{project}_{name}'}"

    def see(self, name: str, project: str = "default") -> Seen:
        """What the kernel and the server say about a running container now."""
        text = self.host.run(
            f"cd {self.cgroup(name, project)} && for f in cpuset.cpus.effective cpuset.cpus cpuset.mems;"
            f" do echo $(cat $f); done; {_render_get(f'/1.0/instances/{name}?project={project}')}"
        )
        effective, written, mems, record = text.split("\n", 3)
        cpus = CpuSet.parse(effective)
        recorded = _metadata(record)["config"].get("volatile.cpu.nodes")
        return Seen(
            cpus=cpus,
            written=CpuSet.parse(written),
            mems=NodeSet() if NodeSet.parse(mems) == NodeSet(self.layout.cpus) else NodeSet.parse(mems),
            nodes=self.layout.nodes_of(cpus),
            recorded=NodeSet.parse(recorded) if recorded else None,
        )

    def see_inside(self, name: str) -> tuple[CpuSet, NodeSet]:
        """The CPUs and memory nodes that a process inside the container is allowed."""
        fields = dict(
            line.split(":\t", 1)
            for line in self.incus("exec", name, "--", "cat", "/proc/self/status").splitlines()
            if ":\t" in line
        )
        return CpuSet.parse(fields["Cpus_allowed_list"]), NodeSet.parse(fields["Mems_allowed_list"])

    def read_anon_bytes(self, name: str) -> dict[int, int]:
        """Bytes of anonymous memory the container has on each node, from memory.numa_stat."""
        line = self.host.run(f"grep '^anon ' {self.cgroup(name)}/memory.numa_stat")
        return {int(one.split("=")[0][1:]): int(one.split("=")[1]) for one in line.split()[1:]}

    def touch_memory(self, name: str, mib: int) -> None:
        """Start a process in the container that holds and keeps writing that much memory, and wait until it does."""
        command = shlex.join(
            ["incus", "exec", name, "--", "dd", "if=/dev/zero", "of=/dev/null", f"bs={mib}M", "count=100000"]
        )
        self.host.run(f"systemd-run --quiet --collect --unit=lab-touch-{name} {command}")
        self.until(
            lambda: sum(self.read_anon_bytes(name).values()) >= mib * 2**20 * 9 // 10,
            f"{name} holds {mib} MiB",
        )

    # Waiting

    def until(self, condition: Callable[[], bool], what: str, within_s: float = SETTLE_S) -> None:
        """Wait until a condition holds; raises AssertionError saying what did not come."""
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
            time.sleep(0.2)

    def settle(
        self,
        name: str,
        vcpus: int,
        *,
        project: str = "default",
        recorded: bool = True,
        within_s: float = SETTLE_S,
    ) -> Seen:
        """Wait until `check_placed` finds nothing wrong, and return what was seen; AssertionError with what was.

        With `recorded=False` the server's record is not looked at.
        """
        deadline = time.monotonic() + within_s
        while True:
            seen = self.see(name, project)
            problems = check_placed(seen, self.layout, vcpus, recorded=recorded)
            if not problems:
                return seen
            assert time.monotonic() < deadline, f"{name} after {within_s:.0f} s: {'; '.join(problems)}\n{seen}"
            time.sleep(0.3)

    def read_changes(self, name: str, since_s: float) -> list[Change]:
        """What the recorder saw of a container (cgroup name) since a time of the host's clock, oldest first."""
        changes = []
        for line in self.host.run(f"cat {RECORD}").splitlines():
            at, who, cpus, mems = line.split(" ")
            if who == name and float(at) >= since_s:
                changes.append(
                    Change(at_s=float(at), cpus=None if cpus == "gone" else cpus, mems="" if mems == "-" else mems)
                )
        return changes

    def wait_quiet(self, quiet_s: float = 3.0, within_s: float = SETTLE_S) -> None:
        """Wait until no container's cpuset has changed for a while: the server's late rewrites are over."""
        self.until(lambda: self._quiet_for() >= quiet_s, f"no change for {quiet_s:.0f} s", within_s)

    def _quiet_for(self) -> float:
        last, now = self.host.run(f"tail -n 1 {RECORD} | cut -d' ' -f1; cut -d' ' -f1 /proc/uptime").split()
        return float(now) - float(last)

    def measure_corrections(self, name: str, value: str, rounds: int) -> list[float]:
        """Write a foreign cpuset.cpus that many times: seconds until it was right again, each; infinite for never."""
        out = self.host.run(
            f"python3 /root/correct.py {self.cgroup(name)}/cpuset.cpus {value} {rounds}", timeout_s=30 + 25 * rounds
        )
        return [float("inf") if line == "never" else float(line) for line in out.split()]

    def measure_drifts(self, names: Sequence[str], since_s: float) -> list[tuple[str, float]]:
        """The times that containers' cpusets were other than they are now: container and seconds, each."""
        found = []
        for name in names:
            changes = self.read_changes(name, since_s)
            for change, following in itertools.pairwise(changes):
                if (change.cpus, change.mems) != (changes[-1].cpus, changes[-1].mems):
                    found.append((name, following.at_s - change.at_s))
        return found

    # The daemon

    def systemctl(self, *words: str, timeout_s: float = 180) -> str:
        """Run systemctl."""
        return self.host.run(f"systemctl {shlex.join(words)}", timeout_s=timeout_s)

    def main_pid(self, unit: str = "incus-numa") -> int:
        """The unit's main process; 0 when there is none."""
        return int(self.systemctl("show", "--property=MainPID", "--value", unit))

    def is_active(self, unit: str = "incus-numa") -> bool:
        """Whether systemd calls the unit active, which for the daemon means it said READY."""
        return self.host.attempt(f"systemctl is-active --quiet {unit}")[0] == 0

    def wait_active(self, unit: str = "incus-numa") -> None:
        """Wait until the unit is active."""
        self.until(lambda: self.is_active(unit), f"{unit} is active", within_s=120)

    def journal(self, since_s: float = 0.0, unit: str = "incus-numa") -> list[str]:
        """What the unit logged since a time of the host's clock, oldest first."""
        lines = self.host.run(f"journalctl --no-pager --output=short-monotonic --unit={unit}").splitlines()
        found = []
        for line in lines:
            stamp = line.partition("]")[0].lstrip("[ ")
            if stamp.replace(".", "", 1).isdigit() and float(stamp) >= since_s:
                found.append(line.partition("]")[2].strip())
        return found

    def clock_of_unit(self, unit: str) -> float:
        """When the unit's process was last started, on the host's monotonic clock."""
        return int(self.systemctl("show", "--property=ExecMainStartTimestampMonotonic", "--value", unit)) / 1e6

    def configure(self, tables: dict[str, dict[str, object]]) -> None:
        """Make the daemon use these settings, and the defaults for all others."""
        lines = []
        for name, values in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        self.host.put("\n".join((*lines, "")).encode(), CONFIG)
        self.systemctl("restart", "incus-numa")

    def run_cli(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of an incus-numa command in the host."""
        return self.host.attempt(shlex.join(["incus-numa", *words]), timeout_s=120)


def _render_config(config: dict[str, str]) -> list[str]:
    return [f"--config={key.replace('_', '.')}={value}" for key, value in config.items()]


def _render_get(path: str) -> str:
    """A shell command that asks the server; much cheaper under emulation than the `incus` command."""
    return f"curl --silent --unix-socket {SOCKET} 'http://incus{path}'"


def _metadata(answer: str) -> dict[str, Any]:
    """What the server answered; raises AssertionError for a refusal."""
    body = json.loads(answer)
    assert body["type"] == "sync", body
    found: dict[str, Any] = body["metadata"]
    return found


def check_placed(seen: Seen, layout: Layout, vcpus: int, *, recorded: bool = True) -> list[str]:
    """What is wrong with where a managed container is, one sentence each: the rules of placement, from the outside."""
    per_node = max(len(own) for own in layout.cpus.values())
    width = -(-vcpus // per_node)
    problems = []
    if len(seen.cpus) != vcpus:
        problems.append(f"{len(seen.cpus)} CPUs ({seen.cpus}) for {vcpus} vCPUs")
    if len(seen.nodes) != width:
        problems.append(f"on nodes {seen.nodes}, though {width} can hold it")
    shares = layout.spread(seen.cpus).values()
    if shares and max(shares) - min(shares) > 1:
        problems.append(f"CPUs {seen.cpus} are not even over nodes {seen.nodes}")
    if recorded and seen.recorded != seen.nodes:
        problems.append(f"volatile.cpu.nodes says {seen.recorded}, the kernel {seen.nodes}")
    bound = seen.nodes if width == 1 else NodeSet()
    if seen.mems != bound:
        problems.append(f"cpuset.mems is '{seen.mems}', expected '{bound}'")
    return problems


def median(figures: Sequence[float]) -> float:
    """The middle figure."""
    return sorted(figures)[len(figures) // 2]
