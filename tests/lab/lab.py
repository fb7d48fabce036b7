"""What scenarios do with the virtual host: containers, the daemon, and what the kernel says about both."""

from __future__ import annotations

import itertools
import json
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from incus_numa.cpuset import CpuSet, NodeSet
from tests.lab.api import Api, ApiError
from tests.lab.host import Host, Kind

GUEST = Path(__file__).parent / "guest"
RECORD = "/run/lab-record"
CONFIG = "/etc/incus-numa/config.toml"
CGROUPS = "/sys/fs/cgroup"
SETTLE_S = 60.0
"""How long a scenario waits for a state before it is judged. The emulated host is about 20 times slower than a real
one; what has a bound of its own is measured, not waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """How the server of a host is spoken to: its unit is named like it, and what it calls what we ask and record."""

    command: str
    socket: str
    opt_in: str
    record: str


SERVERS = {
    "incus": Server(
        command="incus", socket="/var/lib/incus/unix.socket", opt_in="limits.cpu.nodes", record="volatile.cpu.nodes"
    ),
    "lxd": Server(
        command="lxc", socket="/var/lib/lxd/unix.socket", opt_in="user.limits.cpu.nodes", record="limits.cpu.nodes"
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """One running container: its cgroup as the kernel shows it, and what the server recorded.

    `cpus` is cpuset.cpus.effective, `written` cpuset.cpus, `mems` cpuset.mems: empty when memory is not bound, which
    the kernel shows as nothing or, once it has been bound, as all nodes, for it refuses to be given nothing again.
    `nodes` are the nodes of `cpus`. `recorded` is the server's record of them: volatile.cpu.nodes on Incus.
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
    """The host, seen through its server's command, the kernel's files and systemd."""

    def __init__(self, host: Host, kind: Kind) -> None:
        self.host = host
        self.kind = kind
        self.server = SERVERS[kind.server]
        self.socket = host.forward(self.server.socket)
        self.api = Api(self.socket)
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
        """Run the server's command, `incus` or `lxc`; it gets no input."""
        return self.host.run(f"{self.server.command} {shlex.join(words)} </dev/null", timeout_s=timeout_s)

    def create(self, name: str, project: str = "default", **config: str) -> None:
        """Create a container; `limits_cpu="2"` means `limits.cpu=2`."""
        written = {key.replace("_", "."): value for key, value in config.items()}
        source = {"type": "image", "alias": "tiny"}
        self.api.request(
            "POST", f"/1.0/instances?project={project}", {"name": name, "source": source, "config": written}
        )

    def start(self, name: str, project: str = "default") -> None:
        """Start a container; returns when the server says it runs."""
        self._change_state(name, project, "start")

    def launch(self, name: str, project: str = "default", **config: str) -> None:
        """Create and start a container."""
        self.create(name, project, **config)
        self.start(name, project)

    def launch_balanced(self, name: str, vcpus: int, **config: str) -> None:
        """Create and start a managed container with that many vCPUs."""
        opt_in = self.server.opt_in.replace(".", "_")
        self.launch(name, **{"limits_cpu": str(vcpus), opt_in: "balanced"}, **config)

    def delete(self, *names: str, project: str = "default") -> None:
        """Delete containers, running or not, three at a time."""
        with ThreadPoolExecutor(max_workers=3) as pool:
            list(pool.map(lambda name: self._delete(name, project), names))

    def _delete(self, name: str, project: str) -> None:
        """The server calls it busy while the daemon writes to its record, so it is tried again."""
        for left in (3, 2, 1, 0):
            try:
                if self.get(name, project)["status"] != "Stopped":
                    self._change_state(name, project, "stop")
                self.api.request("DELETE", f"/1.0/instances/{name}?project={project}")
            except ApiError as error:
                is_gone = left < 3 and "not found" in str(error)
                if not is_gone and (left == 0 or "busy" not in str(error)):
                    raise
                time.sleep(1)
            else:
                return

    def _change_state(self, name: str, project: str, action: str) -> None:
        body = {"action": action, "force": action != "start", "timeout": 60}
        self.api.request("PUT", f"/1.0/instances/{name}/state?project={project}", body)

    def list_names(self, project: str = "default") -> list[str]:
        """The project's containers."""
        return [path.split("/")[3].split("?")[0] for path in self.api.get(f"/1.0/instances?project={project}")]

    def list_projects(self) -> list[str]:
        """The server's projects."""
        return [path.removeprefix("/1.0/projects/") for path in self.api.get("/1.0/projects")]

    def get(self, name: str, project: str = "default") -> dict[str, Any]:
        """The server's record of a container, without its state."""
        found: dict[str, Any] = self.api.get(f"/1.0/instances/{name}?project={project}")
        return found

    def get_pid(self, name: str, project: str = "default") -> int:
        """The container's init as the host's kernel counts it; 0 while there is none."""
        _, out, _ = self.host.attempt(f"cat {self.cgroup(name, project)}/cgroup.procs")
        return min((int(one) for one in out.split()), default=0)

    def cgroup(self, name: str, project: str = "default") -> str:
        """The container's cgroup folder in the host."""
        return f"{CGROUPS}/lxc.payload.{name if project == 'default' else f'{project}_{name}'}"

    def see(self, name: str, project: str = "default") -> Seen:
        """What the kernel and the server say about a running container now."""
        files = " ".join(f"cpuset.{file}" for file in ("cpus.effective", "cpus", "mems"))
        effective, written, mems = self.host.run(f"cd {self.cgroup(name, project)} && cat {files}").splitlines()
        cpus = CpuSet.parse(effective)
        recorded = self.get(name, project)["config"].get(self.server.record)
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
        """Start a process in the container that holds that much memory, and wait until it has written to all of it."""
        hold = f"(dd if=/dev/zero bs=1M count={mib}; sleep 100000) | tail -c {mib << 20}"
        command = shlex.join([self.server.command, "exec", name, "--", "sh", "-c", hold])
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

    def configure(self, tables: dict[str, dict[str, object]], verb: str = "restart") -> None:
        """Make the daemon use these settings, and the defaults for all others, by a restart or a "reload"."""
        lines = []
        for name, values in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
        self.host.put("\n".join((*lines, "")).encode(), CONFIG)
        self.systemctl(verb, "incus-numa")

    def run_cli(self, *words: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of an incus-numa command in the host."""
        return self.host.attempt(shlex.join(["incus-numa", *words]), timeout_s=120)


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
        problems.append(f"the server's record says {seen.recorded}, the kernel {seen.nodes}")
    bound = seen.nodes if width == 1 else NodeSet()
    if seen.mems != bound:
        problems.append(f"cpuset.mems is '{seen.mems}', expected '{bound}'")
    return problems


def median(figures: Sequence[float]) -> float:
    """The middle figure."""
    return sorted(figures)[len(figures) // 2]
