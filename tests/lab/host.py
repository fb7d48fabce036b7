"""A virtual NUMA host: one QEMU process under software emulation, reached over SSH. Started by conftest and boot.py.

Two nodes share a package: distance 12 inside it, 32 outside. The disk is a throw-away snapshot of a built image, so
every host of a kind starts alike. Nothing outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

BOOT_TIMEOUT_S = 420.0
"""From power on to SSH; 60 to 110 s where two cores are free."""

LEAN = "apparmor=0 audit=0 mitigations=off systemd.show_status=no selinux=0 no_timer_check"
"""Kernel features that have no part in placement and that emulation makes slow: each start would compile a profile. And
a check of the timer, which now and then panics where the emulator has to wait for a CPU."""

NEAR, FAR = 12, 32
"""Distance inside a package and between two."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The machine to emulate. Two threads per core."""

    nodes: int = 4
    cpus_per_node: int = 2
    mib_per_node: int = 1024
    wire: tuple[str, ...] = ()
    """Arguments of the emulator for a network card that leads to another host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What runs in the host: the Debian suite of its image, the server, and the units that are not started."""

    name: str
    suite: str
    server: str
    masked: tuple[str, ...] = ()


INCUS = Kind(name="incus", suite="trixie", server="incus", masked=("lxd.service", "lxd.socket"))
INCUS7 = Kind(name="incus7", suite="forky", server="incus")
LXD = Kind(name="lxd", suite="trixie", server="lxd", masked=("incus.service", "incus.socket"))
CLUSTER = Kind(name="cluster", suite="trixie", server="incus", masked=("lxd.service", "lxd.socket"))
"""Two hosts of two shapes, which test_cluster.py boots itself."""

VM = Kind(name="vm", suite="trixie", server="incus", masked=INCUS.masked)
"""A host whose server starts virtual machines."""

KINDS = {kind.name: kind for kind in (INCUS, INCUS7, LXD, CLUSTER, VM)}


class CommandError(AssertionError):
    """A command in the host failed or took too long; the text holds what it printed."""


def render_qemu(image: Path, kind: Kind, shape: Shape, port: int, serial: Path) -> list[str]:
    """The command line of the emulator; `image` is the folder of the kind's suite."""
    cpus, per = shape.nodes * shape.cpus_per_node, shape.cpus_per_node
    # Without cmpxchg16b, whose emulation in QEMU 7.2 now and then leaves wrong flags: guest kernels crash within
    # minutes. Without five-level page tables, which cost time and serve nothing here.
    argv = ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi,tb-size=1024"]
    argv += ["-cpu", "max,la57=off,cx16=off"]
    argv += ["-display", "none", "-no-reboot", "-nodefaults", "-serial", f"file:{serial}"]
    argv += ["-smp", f"{cpus},sockets={shape.nodes},cores={per // 2},threads=2"]
    argv += ["-m", f"{shape.nodes * shape.mib_per_node}M"]
    masks = " ".join(f"systemd.mask={unit}" for unit in kind.masked)
    argv += ["-kernel", str(image / "vmlinuz"), "-initrd", str(image / "initrd")]
    argv += ["-append", f"root=/dev/vda rw console=ttyS0 quiet panic=-1 {LEAN} {masks}"]
    argv += ["-drive", f"file={image / 'disk'},format=raw,if=virtio,snapshot=on"]
    argv += ["-netdev", f"user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"]
    argv += ["-device", "virtio-net-pci,netdev=n0", "-device", "virtio-rng-pci", *shape.wire]
    for node in range(shape.nodes):
        argv += ["-object", f"memory-backend-ram,id=m{node},size={shape.mib_per_node}M"]
        argv += ["-numa", f"node,nodeid={node},memdev=m{node},cpus={node * per}-{(node + 1) * per - 1}"]
    for a in range(shape.nodes):
        for b in range(shape.nodes):
            if a != b:
                argv += ["-numa", f"dist,src={a},dst={b},val={NEAR if a // 2 == b // 2 else FAR}"]
    return argv


class Host:
    """A running host. `run` is the way in; `stop` ends it, and the kernel ends it if we die."""

    def __init__(self, images: Path, port: int, emulator: subprocess.Popen[bytes] | None, scratch: Path) -> None:
        self.port = port
        self._key = images / "id"
        self._emulator = emulator
        self._scratch = scratch
        self._master: subprocess.Popen[bytes] | None = None

    @classmethod
    def start(cls, images: Path, kind: Kind = INCUS, shape: Shape | None = None) -> Host:
        """Start the emulator on a free port. Returns before the host answers: see `wait`."""
        image = images / kind.suite
        scratch = Path(tempfile.mkdtemp(prefix="lab."))
        port = free_port()
        argv = render_qemu(image, kind, shape or Shape(), port, scratch / "serial.log")
        # The snapshot of the disk is an unlinked file in TMPDIR, which belongs beside the image and not in a tmpfs.
        with (scratch / "emulator.log").open("wb") as said:
            emulator = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *argv],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, "TMPDIR": str(image)},
            )
        return cls(images, port, emulator, scratch)

    @classmethod
    def attach(cls, images: Path, port: int) -> Host:
        """A host that someone else started, for example boot.py, and will stop."""
        return cls(images, port, None, Path(tempfile.mkdtemp(prefix="lab.")))

    def wait(self) -> float:
        """Wait until commands can be run. Returns the seconds it took; raises CommandError after BOOT_TIMEOUT_S."""
        began = time.monotonic()
        if self._master is not None:
            return 0.0
        while time.monotonic() - began < BOOT_TIMEOUT_S:
            if self._emulator is not None and self._emulator.poll() is not None:
                raise CommandError(f"the emulator ended with {self._emulator.returncode}\n{self.read_serial()}")
            probe = subprocess.run(
                [*self._ssh("-o", "ConnectTimeout=10"), "true"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
            if probe.returncode == 0:
                self._open_master()
                return time.monotonic() - began
            time.sleep(1)
        raise CommandError(f"no SSH after {BOOT_TIMEOUT_S:.0f} s\n{self.read_serial()}")

    def run(self, command: str, *, timeout_s: float = 120, stdin: bytes = b"") -> str:
        """What a shell command in the host printed on stdout. Raises CommandError with all output if it fails."""
        code, out, err = self.attempt(command, timeout_s=timeout_s, stdin=stdin)
        if code != 0:
            raise CommandError(f"in the host: {command}\nexit code {code}\n{out}{err}")
        return out

    def attempt(self, command: str, *, timeout_s: float = 120, stdin: bytes = b"") -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a shell command in the host. Raises CommandError when it takes too long."""
        try:
            done = subprocess.run(
                [*self._ssh(), command], input=stdin, capture_output=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired as late:
            printed = f"{(late.stdout or b'').decode()}{(late.stderr or b'').decode()}"
            raise CommandError(f"in the host: {command}\nno end after {timeout_s:.0f} s\n{printed}") from late
        return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")

    def put(self, content: bytes, path: str, mode: str = "644") -> None:
        """Write a file in the host, with its folders."""
        self.run(f"install -D -m {mode} /dev/stdin {path}", stdin=content)

    def forward(self, path: str) -> Path:
        """A Unix socket outside that leads to one in the host."""
        outside = self._scratch / Path(path).name
        outside.unlink(missing_ok=True)
        self._open_way(f"{outside}:{path}")
        return outside

    def forward_address(self, address: str) -> int:
        """A port of 127.0.0.1 outside that leads to an address and port in the host."""
        port = free_port()
        self._open_way(f"127.0.0.1:{port}:{address}")
        return port

    def _open_way(self, way: str) -> None:
        subprocess.run([*self._ssh("-O", "forward", "-L", way)], check=True, stdin=subprocess.DEVNULL)

    def read_cpu_s(self) -> float | None:
        """CPU seconds that the emulator has used; None for an attached host."""
        if self._emulator is None:
            return None
        fields = Path(f"/proc/{self._emulator.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def read_serial(self, lines: int = 30) -> str:
        """The end of what the emulator and the console said; empty for an attached host."""
        said = []
        for log in ("emulator.log", "serial.log"):
            with contextlib.suppress(OSError):
                said += (self._scratch / log).read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(said)

    def stop(self) -> None:
        """End the SSH connection and, if we started it, the emulator."""
        for process in (self._master, self._emulator):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _ssh(self, *options: str) -> list[str]:
        fixed = ["-q", "-p", str(self.port), "-i", str(self._key), "-o", "BatchMode=yes"]
        fixed += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-F", "none"]
        fixed += ["-o", f"ControlPath={self._scratch / 'ssh'}"]
        return ["ssh", *fixed, *options, "root@127.0.0.1"]

    def _open_master(self) -> None:
        """One connection that all commands share: a new one costs a second and more under emulation."""
        self._master = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *self._ssh("-M", "-N", "-o", "ServerAliveInterval=15")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while not (self._scratch / "ssh").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
