"""A host in files with one QEMU, for the tests of what reads and sets its threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.host.virtual import Process, VirtualMachines
from incus_numa.simulator import groups, trees
from incus_numa.simulator.options import VmEvidence
from incus_numa.simulator.virtual import Shape, VirtualMachine
from tests import builders

PID = 4242
KTHREAD = 0x00200000


@dataclass(frozen=True, kw_only=True)
class QemuHost:
    """Sixteen CPUs on four nodes, and below `folder` the trees of a kernel that runs one QEMU."""

    folder: Path
    qemu: VirtualMachine
    vms: VirtualMachines

    @property
    def process(self) -> Process:
        found = self.vms.find(PID)
        assert found is not None
        return found

    def status(self, tid: int) -> Path:
        return self.qemu.folder / "task" / str(tid) / "status"

    def rename(self, tid: int, name: str) -> None:
        """Give a thread another name, as `stat` and `comm` show it."""
        task = self.qemu.folder / "task" / str(tid)
        text = (task / "stat").read_text()
        (task / "stat").write_text(f"{tid} ({name}){text.rpartition(')')[2]}")
        (task / "comm").write_text(f"{name}\n")

    def add_kernel_thread(self, tid: int, name: str, *, flags: int = KTHREAD) -> None:
        """A thread of the kernel, or with other flags a process that has its name."""
        folder = self.folder / "proc" / str(tid)
        fields = groups.render_stat(tid, name).split()
        fields[8] = str(flags)
        trees.put(folder / "stat", " ".join(fields) + "\n")
        trees.put(folder / "comm", f"{name}\n")
        trees.put(folder / "status", f"Name:\t{name}\nCpus_allowed_list:\t0-15\n")

    def read_kernel_thread(self, tid: int) -> str:
        return (self.folder / "proc" / str(tid) / "status").read_text().rpartition("\t")[2].strip()


def qemu_host(
    folder: Path,
    vcpus: int = 2,
    *,
    masks: str = "",
    bound: str = "",
    evidence: VmEvidence = VmEvidence.GUEST_TIME,
) -> QemuHost:
    """A host with a QEMU of so many vCPUs; `masks` are their CPUs, one list each with `;` between, bound memory."""
    host = builders.machine()
    trees.write_sysfs(folder / "sys", host)
    shape = Shape(
        vcpus=vcpus, masks=tuple(map(CpuSet.parse, masks.split(";"))) if masks else (), bound=NodeSet.parse(bound)
    )
    pages = {0: 3 << 20, 1: 1 << 20}
    qemu = VirtualMachine(folder / "proc", PID, shape, machine=host, pages=pages, evidence=evidence)
    return QemuHost(
        folder=folder, qemu=qemu, vms=VirtualMachines(folder / "proc", folder / "sys", folder / "run" / "vms")
    )
