"""Virtual machines in the virtual host, and what QEMU and the kernel say about them. Used by test_vm.py.

They are emulated as the host itself is, and have no system: the firmware starts a boot sector that touches some memory
and then halts or spins. So one is up in seconds, and an idle one costs nothing.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from tests.lab.lab import SETTLE_S, Lab, Layout

EVENTS = "/run/lab-events"
BOOT_S = 180.0
"""How long the firmware may take: it is emulated by what is emulated itself."""

PAGE = 4096
CODE = """
fa                      cli
31 c0                   xor %ax, %ax
8e d8                   mov %ax, %ds
0f 01 16 54 7c          lgdt table          # one segment of 4 GiB, which real mode keeps in %es
0f 20 c0                mov %cr0, %eax
0c 01                   or $1, %al
0f 22 c0                mov %eax, %cr0
bb 08 00                mov $8, %bx
8e c3                   mov %bx, %es
24 fe                   and $0xfe, %al
0f 22 c0                mov %eax, %cr0
66 bf 00 00 00 01       mov $0x1000000, %edi
66 8b 0e 5a 7c          mov pages, %ecx
67 e3 13                jecxz end
26 67 66 c7 07 01 00 00 00  fill: movl $1, %es:(%edi)
66 81 c7 00 10 00 00    add $4096, %edi
67 e2 ed                loop fill
eb fe                   end: jmp end        # or past it
f4                      hlt
eb fb                   jmp end
66 90                   nop
00 00 00 00 00 00 00 00 segments: none
ff ff 00 00 00 92 cf 00 data, 4 GiB
0f 00 44 7c 00 00       table: 15, segments
"""
"""The boot sector up to the number of pages, each line the bytes of one instruction."""

JUMP = 0x3E
"""Where the sector says how far it jumps after its work: back to the jump itself, or on to the halt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenVm:
    """One running virtual machine.

    `vcpus` and `others` are threads by id with the CPUs that the kernel lets them run on; QEMU itself says which are
    vCPUs. `memory` is the guest's, in bytes by node; `bound` the nodes that the kernel takes new pages of it from.
    `recorded` is the server's record of nodes, `needs_reset` whether the server will restart QEMU at the next reboot.
    """

    vcpus: Mapping[int, CpuSet]
    others: Mapping[int, CpuSet]
    memory: Mapping[int, int]
    bound: NodeSet
    recorded: NodeSet | None
    needs_reset: bool

    @property
    def cpus(self) -> CpuSet:
        """All CPUs that some vCPU may run on."""
        return CpuSet(cpu for cpus in self.vcpus.values() for cpu in cpus)

    @property
    def around(self) -> CpuSet:
        """All CPUs that some other thread may run on."""
        return CpuSet(cpu for cpus in self.others.values() for cpu in cpus)


class Vms:
    """The virtual machines of a host."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._monitors: dict[str, Path] = {}
        lab.host.run(
            "systemctl stop lab-events 2>/dev/null; systemd-run -q --unit=lab-events"
            f" sh -c 'incus monitor --type=lifecycle --all-projects --format=json </dev/null >{EVENTS}'"
        )

    def launch(self, name: str, *, mib: int = 0, spins: bool = False, **config: str) -> None:
        """Create and start a virtual machine that touches so much memory and then keeps one vCPU busy, or none."""
        # Threads have names that tell what they are, as they have without asking from QEMU 11 on.
        options = f"-cpu max -name {name},debug-threads=on -qmp unix:/run/lab.{name}.qmp,server=on,wait=off"
        written = {
            "limits.memory": "192MiB",
            "security.csm": "true",
            "security.secureboot": "false",
            "raw.qemu": options,
            "raw.qemu.conf": '[machine]\naccel = "tcg"\n',
        } | {key.replace("_", "."): value for key, value in config.items()}
        body = {"name": name, "type": "virtual-machine", "source": {"type": "none"}, "config": written}
        self._lab.api.request("POST", "/1.0/instances", body)
        disk = f"/var/lib/incus/storage-pools/default/virtual-machines/{name}/root.img"
        sector = render_boot_sector(mib * 2**20 // PAGE, spins=spins)
        self._lab.host.run(f"dd of={disk} conv=notrunc status=none", stdin=sector)
        self._lab.start(name)
        self._lab.until(lambda: sum(self._read(name)[1].values()) >= mib * 2**20, f"{name} holds {mib} MiB", BOOT_S)

    def change(self, name: str, **config: str) -> None:
        """Write to its configuration; an empty value removes a key."""
        written = {key.replace("_", "."): value for key, value in config.items()}
        self._lab.api.request("PATCH", f"/1.0/instances/{name}", {"config": written})

    def see(self, name: str) -> SeenVm:
        """What QEMU, the kernel and the server say about a running virtual machine now."""
        vcpus = self._query_vcpus(name)
        threads, memory, bound = self._read(name)
        config = self._lab.get(name)["config"]
        recorded = config.get("volatile.cpu.nodes")
        return SeenVm(
            vcpus={tid: cpus for tid, cpus in threads.items() if tid in vcpus},
            others={tid: cpus for tid, cpus in threads.items() if tid not in vcpus},
            memory=memory,
            bound=bound,
            recorded=NodeSet.parse(recorded) if recorded else None,
            needs_reset=bool(config.get("volatile.vm.needs_reset")),
        )

    def settle(self, name: str, vcpus: int, within_s: float = SETTLE_S) -> SeenVm:
        """Wait until `check_placed` finds nothing wrong, and return what was seen; AssertionError with what was."""
        deadline = time.monotonic() + within_s
        while True:
            seen = self.see(name)
            problems = check_placed(seen, self._lab.layout, vcpus)
            if not problems:
                return seen
            assert time.monotonic() < deadline, f"{name} after {within_s:.0f} s: {'; '.join(problems)}\n{seen}"
            time.sleep(0.5)

    def count_updates(self, name: str) -> int:
        """How often its configuration has been written to, by whomever."""
        found = 0
        for line in self._lab.host.run(f"cat {EVENTS}").splitlines():
            metadata = json.loads(line)["metadata"] if line else {}
            found += metadata.get("action") == "instance-updated" and metadata.get("name") == name
        return found

    def _read(self, name: str) -> tuple[dict[int, CpuSet], dict[int, int], NodeSet]:
        """Threads with their CPUs, guest memory by node, and the nodes that it is bound to."""
        # Threads come and go while they are looked at.
        _, out, _ = self._lab.host.attempt(
            f"cd /proc/$(cat /run/incus/{name}/qemu.pid) && grep -H ^Cpus_allowed_list task/*/status;"
            " grep /memfd:memory-backend numa_maps"
        )
        threads: dict[int, CpuSet] = {}
        memory: dict[int, int] = {}
        bound = NodeSet()
        for line in out.splitlines():
            if line.startswith("task/"):
                threads[int(line.split("/")[1])] = CpuSet.parse(line.split(":\t")[1])
                continue
            _, policy, *fields = line.split()
            if policy.startswith("bind:"):
                bound |= NodeSet.parse(policy.removeprefix("bind:"))
            for field in fields:
                node, _, pages = field.partition("=")
                if node[:1] == "N":
                    memory[int(node[1:])] = memory.get(int(node[1:]), 0) + int(pages) * PAGE
        return threads, memory, bound

    def _query_vcpus(self, name: str) -> set[int]:
        """Ids of the threads that QEMU itself calls vCPUs."""
        if name not in self._monitors:
            self._monitors[name] = self._lab.host.forward(f"/run/lab.{name}.qmp")
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(60)
            one.connect(str(self._monitors[name]))
            with one.makefile("rw") as stream:
                answer: list[dict[str, int]] = []
                for command in ("qmp_capabilities", "query-cpus-fast"):
                    stream.write(json.dumps({"execute": command}))
                    stream.flush()
                    while "return" not in (said := json.loads(stream.readline())):
                        pass
                    answer = said["return"]
        return {cpu["thread-id"] for cpu in answer}


def render_boot_sector(pages: int, *, spins: bool) -> bytes:
    """A sector that touches so many pages from 16 MiB on, and then spins or halts."""
    code = bytearray()
    for line in CODE.strip().splitlines():
        for word in line.split():
            if len(word) != 2 or not set(word) <= set("0123456789abcdef"):
                break
            code.append(int(word, 16))
    code[JUMP] = 0xFE if spins else 0x00
    return (bytes(code) + pages.to_bytes(4, "little")).ljust(510, b"\0") + b"\x55\xaa"


def check_placed(seen: SeenVm, layout: Layout, vcpus: int) -> list[str]:
    """What is wrong with where a managed virtual machine is, one sentence each."""
    per_node = max(len(own) for own in layout.cpus.values())
    nodes = layout.nodes_of(seen.cpus)
    around = CpuSet(cpu for node in nodes for cpu in layout.cpus[node])
    problems = []
    if len(seen.vcpus) != vcpus:
        problems.append(f"{len(seen.vcpus)} vCPU threads, not {vcpus}")
    if len(seen.cpus) != vcpus:
        problems.append(f"{len(seen.cpus)} CPUs ({seen.cpus}) for {vcpus} vCPUs")
    if len(nodes) != -(-vcpus // per_node):
        problems.append(f"on nodes {nodes}")
    if len(set(seen.vcpus.values())) > 1:
        problems.append("its vCPUs may not all run on the same CPUs")
    if set(seen.others.values()) != {around}:
        problems.append(f"its other threads may run on CPUs {seen.around}, its nodes have {around}")
    if seen.recorded != nodes:
        problems.append(f"the server's record says {seen.recorded}, the kernel {nodes}")
    return problems
