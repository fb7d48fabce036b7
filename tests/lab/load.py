"""Load and memory of containers in the host: processes of the host's own, put into the containers' cgroups.

They cost less under emulation than `incus exec`, and end without the containers noticing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.lab.lab import GUEST, Lab

SPIN = "while :; do :; done"


@dataclass(frozen=True, kw_only=True, slots=True)
class Touched:
    """What hold.py says: longest stall in seconds since `Work.forget`, damaged bytes, rounds over all memory."""

    longest_s: float
    lost: int
    rounds: int


class Work:
    """What runs in the containers' cgroups. `stop` ends all of it, which has to be done before they are deleted."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def spin(self, name: str, loops: int) -> None:
        """Start endless loops in a container."""
        into = f"echo $$ >{self._lab.cgroup(name)}/cgroup.procs"
        script = f"setsid sh -c '{into}; echo $$ >>/run/spin.{name}; {SPIN}' </dev/null >/dev/null 2>&1 &"
        self._lab.host.run(f"for loop in $(seq {loops}); do {script} done")

    def rest(self) -> None:
        """End the loops of all containers."""
        self._lab.host.run("kill -9 $(cat /run/spin.* 2>/dev/null) 2>/dev/null; rm -f /run/spin.*; true")

    def hold(self, name: str, mib: int) -> None:
        """Start a process that holds that much memory and keeps touching it, for the last one; wait until it does."""
        self._lab.host.put((GUEST / "hold.py").read_bytes(), "/root/hold.py")
        self._lab.host.run(f"kill -9 $(cat /run/holder.{name} 2>/dev/null) 2>/dev/null; rm -f /run/hold.{name}; true")
        held = f"python3 /root/hold.py {self._lab.cgroup(name)} {mib} /run/hold.{name}"
        self._lab.host.run(f"setsid {held} </dev/null >/dev/null 2>&1 & echo $! >/run/holder.{name}")
        self._lab.until(lambda: self._told(name) is not None, f"{name} holds {mib} MiB", within_s=120)

    def touched(self, name: str) -> Touched:
        """What the process that holds memory has seen; AssertionError if it does not run."""
        found = self._told(name)
        assert found is not None, f"the process in {name} has said nothing"
        return found

    def forget(self, name: str) -> None:
        """Measure stalls from here on."""
        self._lab.host.run(f"kill -USR1 $(cat /run/holder.{name})")

    def is_holding(self, name: str) -> bool:
        """Whether the process that holds memory still runs."""
        return self._lab.host.attempt(f"kill -0 $(cat /run/holder.{name})")[0] == 0

    def stop(self) -> None:
        """End everything."""
        self._lab.host.run(
            "kill -9 $(cat /run/spin.* /run/holder.*) 2>/dev/null; rm -f /run/spin.* /run/hold.* /run/holder.*; true"
        )

    def measure_cpus(self, names: list[str], seconds: float) -> dict[str, float]:
        """CPUs that each container keeps busy, from cpu.stat over some time of the host's clock."""
        files = " ".join(f"{self._lab.cgroup(name)}/cpu.stat" for name in names)
        look = f"grep -h usage_usec {files}; cut -d' ' -f1 /proc/uptime"
        lines = self._lab.host.run(f"{look}; sleep {seconds:g}; {look}").splitlines()
        (*before, began), (*after, ended) = lines[: len(lines) // 2], lines[len(lines) // 2 :]
        used = [(int(late.split()[1]) - int(early.split()[1])) / 1e6 for early, late in zip(before, after, strict=True)]
        return {name: one / (float(ended) - float(began)) for name, one in zip(names, used, strict=True)}

    def _told(self, name: str) -> Touched | None:
        code, out, _ = self._lab.host.attempt(f"cat /run/hold.{name}")
        if code:
            return None
        longest, lost, rounds = out.split()
        return Touched(longest_s=float(longest), lost=int(lost), rounds=int(rounds))
