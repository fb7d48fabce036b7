"""Virtual machines as the kernel shows them: which threads are vCPUs, where they run, and what is kept about them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.errors import GoneError, ReportError
from incus_numa.host import threads
from incus_numa.host.threads import KernelAffinity
from incus_numa.host.virtual import Process, VirtualMachines, VmState
from incus_numa.model.snapshot import Decided
from incus_numa.simulator.options import VmEvidence
from tests.virtual import PID, QemuHost, qemu_host

ALL = CpuSet(range(16))
HALF, QUARTER = CpuSet.parse("0-7"), CpuSet.parse("4-7")
DECIDED = Decided(nodes=NodeSet([1]), cpus=QUARTER)


def masks(host: QemuHost) -> tuple[set[CpuSet], set[CpuSet]]:
    """The CPUs that vCPUs and other threads really have."""
    truth = host.qemu.threads()
    return set(truth.vcpus.values()), set(truth.others.values())


def is_true(host: QemuHost, state: VmState) -> bool:
    truth = host.qemu.threads()
    return (state.vcpus, state.others) == (truth.vcpus, truth.others)


@pytest.mark.parametrize("expected", [3, 2, None])
def test_threads_that_have_run_a_guest_are_vcpus(tmp_path: Path, expected: int | None) -> None:
    host = qemu_host(tmp_path, 3)
    state = host.vms.read(host.process, expected)
    assert is_true(host, state)
    assert (state.evidence, state.cpus, state.around) == ("guest time", ALL, ALL)


@pytest.mark.parametrize("expected", [3, None])
def test_names_of_a_newer_qemu_tell_vcpus_before_any_guest_ran(tmp_path: Path, expected: int | None) -> None:
    host = qemu_host(tmp_path, 3, evidence=VmEvidence.NAMES)
    state = host.vms.read(host.process, expected)
    assert is_true(host, state)
    assert state.evidence == "thread names"


def test_names_that_do_not_count_as_many_vcpus_as_expected_tell_nothing(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 3, evidence=VmEvidence.NAMES)
    state = host.vms.read(host.process, 4)
    assert (state.vcpus, state.evidence, state.cpus) == ({}, "", None)


@pytest.mark.parametrize("name", ["CPU 0/KVM", "CPU 0/XYZ", "CPU /KVM", "CPU 0/KVM)", "xCPU 1/KVM"])
def test_names_that_no_two_vcpus_have_tell_nothing(tmp_path: Path, name: str) -> None:
    host = qemu_host(tmp_path, 2, evidence=VmEvidence.NAMES)
    host.rename(max(host.qemu.threads().vcpus), name)
    assert host.vms.read(host.process, 2).vcpus == {}


def test_names_of_a_program_that_is_no_qemu_tell_nothing(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, evidence=VmEvidence.NAMES)
    host.rename(PID, "bash")
    assert host.vms.read(host.process, 2).vcpus == {}
    (host.qemu.folder / "exe").symlink_to("/opt/incus/bin/qemu-system-x86_64")
    assert is_true(host, host.vms.read(host.process, 2))


def test_cpus_that_the_server_gave_tell_vcpus_when_nothing_else_does(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, masks="4-7;4-7", evidence=VmEvidence.NONE)
    state = host.vms.read(host.process, 2)
    assert is_true(host, state)
    assert (state.evidence, state.cpus, state.around) == ("affinity", QUARTER, ALL)
    assert VirtualMachines(tmp_path / "proc", tmp_path / "sys", tmp_path / "run").read(host.process, 3).vcpus == {}
    assert VirtualMachines(tmp_path / "proc", tmp_path / "sys", tmp_path / "run").read(host.process, None).vcpus == {}


def test_workers_that_a_vcpu_made_are_others(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, masks="4-7;4-7", evidence=VmEvidence.NONE)
    host.vms.read(host.process, 2)
    worker = host.qemu.add_worker(5000)
    fresh = VirtualMachines(tmp_path / "proc", tmp_path / "sys", tmp_path / "run")
    assert fresh.read(host.process, 2).vcpus == {}
    assert is_true(host, host.vms.read(host.process, 2))
    host.vms.pin(host.process, 2, QUARTER, HALF)
    assert host.vms.read(host.process, 2).others[worker] == HALF


def test_named_vcpus_that_the_guest_did_not_give_back_are_still_vcpus(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 3, evidence=VmEvidence.NAMES)
    assert is_true(host, host.vms.read(host.process, 1))


def test_one_floating_vcpu_that_nothing_tells_is_not_guessed(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 1, evidence=VmEvidence.NONE)
    assert host.vms.read(host.process, 1).vcpus == {}


def test_kvm_tells_vcpus_where_debugfs_is_mounted(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, evidence=VmEvidence.NONE)
    first, second = host.qemu.threads().vcpus
    for machine, number, text in (
        (f"{PID}-12", 0, f"{first}\n"),
        (f"{PID}-12", 1, f"{second}\n"),
        (f"{PID}-12", 2, "99999\n"),
        (f"{PID}-12", 3, "garbage\n"),
        (f"{PID}1-12", 0, f"{PID}\n"),
    ):
        folder = tmp_path / "sys/kernel/debug/kvm" / machine / f"vcpu{number}"
        folder.mkdir(parents=True)
        (folder / "pid").write_text(text)
    (tmp_path / "sys/kernel/debug/kvm/exits").write_text("5\n")
    state = host.vms.read(host.process, 2)
    assert is_true(host, state)
    assert state.evidence == "KVM debugfs"


def test_vcpu_stays_one_when_what_told_it_is_gone(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, masks="4-7;4-7", evidence=VmEvidence.NONE)
    host.vms.read(host.process, 2)
    host.vms.pin(host.process, 2, QUARTER, QUARTER)
    state = host.vms.read(host.process, 2)
    assert is_true(host, state)
    assert state.evidence == "affinity"


def test_vcpus_that_are_certain_are_taken_where_others_have_not_run_yet(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    first = min(host.qemu.threads().vcpus)
    state = host.vms.read(host.process, 3)
    assert (set(state.vcpus), state.evidence) == (set(host.qemu.threads().vcpus), "guest time")
    assert first in state.vcpus


def test_vcpu_hotplug_is_followed(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    host.vms.pin(host.process, 2, QUARTER, HALF)
    host.qemu.set_vcpus(4, first_id=5000)
    assert masks(host) == ({QUARTER, HALF}, {HALF})
    host.vms.pin(host.process, 4, QUARTER, HALF)
    assert masks(host) == ({QUARTER}, {HALF})
    host.qemu.set_vcpus(1, first_id=6000)
    state = host.vms.read(host.process, 1)
    assert is_true(host, state)


def test_pinned_vcpus_and_all_others_are_where_they_belong(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 3)
    host.vms.pin(host.process, 3, QUARTER, HALF)
    assert masks(host) == ({QUARTER}, {HALF})
    state = host.vms.read(host.process, 3)
    assert (state.cpus, state.around) == (QUARTER, HALF)


def test_threads_go_around_when_no_vcpu_is_known(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 1, evidence=VmEvidence.NONE)
    host.vms.pin(host.process, 1, QUARTER, HALF)
    assert masks(host) == ({HALF}, {HALF})


def test_vcpus_that_share_their_cpus_out_stay_as_they_are(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, masks="4-5;6-7")
    host.vms.pin(host.process, 2, QUARTER, HALF)
    assert masks(host) == ({CpuSet.parse("4-5"), CpuSet.parse("6-7")}, {HALF})


def test_vcpus_whose_cpus_overlap_unevenly_all_get_the_same(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, masks="4-5;4-7")
    host.vms.pin(host.process, 2, QUARTER, HALF)
    assert masks(host) == ({QUARTER}, {HALF})


def test_offline_cpus_do_not_count(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    (tmp_path / "sys/devices/system/cpu/online").write_text("0-6\n")
    host.vms.pin(host.process, 2, QUARTER, HALF)
    before = [host.status(tid).stat().st_ino for tid in host.vms.read(host.process, 2).vcpus]
    host.vms.pin(host.process, 2, CpuSet.parse("4-6"), HALF)
    assert [host.status(tid).stat().st_ino for tid in host.vms.read(host.process, 2).vcpus] == before


def test_threads_of_the_kernel_that_serve_a_guest_are_others(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    host.add_kernel_thread(77, f"vhost-{PID}")
    host.add_kernel_thread(78, f"vhost-{PID}", flags=0)
    host.add_kernel_thread(79, "vhost-1")
    host.vms.pin(host.process, 2, QUARTER, HALF)
    assert host.vms.read(host.process, 2).others[77] == HALF
    assert [host.read_kernel_thread(tid) for tid in (77, 78, 79)] == ["0-7", "0-15", "0-15"]


def test_only_children_of_the_kernel_thread_daemon_are_looked_through(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    host.add_kernel_thread(77, f"vhost-{PID}")
    host.add_kernel_thread(78, f"vhost-{PID}")
    children = tmp_path / "proc/2/task/2/children"
    children.parent.mkdir(parents=True)
    children.write_text("3 4 77 ")
    assert set(host.vms.read(host.process, 2).others) - set(host.qemu.threads().others) == {77}


def test_threads_that_nobody_may_set_are_not_seen(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    before = host.vms.read(host.process, 2)
    worker = host.qemu.add_worker(5000, name="iou-wrk-4242", is_fixed=True)
    assert host.vms.read(host.process, 2) == before
    host.vms.pin(host.process, 2, QUARTER, HALF)
    truth = host.qemu.threads()
    assert set(truth.vcpus.values()) == {QUARTER}
    assert {tid for tid, cpus in truth.others.items() if cpus != HALF} == {worker}


def test_they_do_not_hide_vcpus_that_only_their_cpus_tell(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, masks="4-7;4-7", evidence=VmEvidence.NONE)
    status = host.status(host.qemu.add_worker(5000, name="iou-wrk-4242", is_fixed=True))
    status.write_text(status.read_text().replace("_list:\t0-15", "_list:\t0-3"))
    assert set(host.vms.read(host.process, 2).vcpus) == set(host.qemu.threads().vcpus)


def set_online(folder: Path, cpus: str) -> None:
    (folder / "sys/devices/system/cpu/online").write_text(f"{cpus}\n")


def test_cpus_that_went_offline_are_not_among_those_of_threads(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    host.vms.pin(host.process, 2, QUARTER, HALF)
    set_online(tmp_path, "0-4,6-15")
    state = host.vms.read(host.process, 2)
    assert (state.cpus, state.around) == (CpuSet.parse("4,6-7"), CpuSet.parse("0-4,6-7"))


def test_thread_whose_cpus_are_all_offline_may_run_anywhere(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    host.vms.pin(host.process, 2, QUARTER, HALF)
    set_online(tmp_path, "0-3,8-15")
    state = host.vms.read(host.process, 2)
    assert (state.cpus, state.around) == (CpuSet.parse("0-3,8-15"), CpuSet.parse("0-3"))
    host.vms.pin(host.process, 2, CpuSet.parse("8-9"), CpuSet.parse("8-11"))
    assert masks(host) == ({CpuSet.parse("8-9")}, {CpuSet.parse("8-11")})


def test_process_that_has_ended_is_gone(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    process = host.process
    assert host.vms.is_live(process)
    shutil.rmtree(host.qemu.folder)
    assert (host.vms.find(PID), host.vms.is_live(process)) == (None, False)
    with pytest.raises(GoneError, match=f"process {PID} has ended"):
        host.vms.read(process, 2)
    with pytest.raises(GoneError):
        host.vms.pin(process, 2, QUARTER, HALF)


def test_another_process_with_the_same_id_is_not_the_one(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    earlier = Process(PID, host.process.started - 1)
    with pytest.raises(GoneError):
        host.vms.read(earlier, 2)
    with pytest.raises(GoneError):
        host.vms.pin(earlier, 2, QUARTER, HALF)
    assert masks(host) == ({ALL}, {ALL})


def test_process_that_nobody_waited_for_has_ended(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    stat = host.qemu.folder / "stat"
    stat.write_text(stat.read_text().replace(") S ", ") Z "))
    assert host.vms.find(PID) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("status", b"Name:\tqemu\n"),
        ("status", b"Name:\tqemu\nCpus_allowed_list:\t\n"),
        ("status", b"Name:\tqemu\nCpus_allowed_list:\t5-2\n"),
        ("status", b"Name:\tqemu\nCpus_allowed_list:\t\xff\xfe\n"),
        ("stat", b"no stat at all"),
        ("stat", b"1 (qemu) S " + b"x " * 50),
    ],
)
def test_odd_file_of_a_thread_is_said_and_named(tmp_path: Path, name: str, text: bytes) -> None:
    host = qemu_host(tmp_path, 2)
    path = host.qemu.folder / "task" / str(PID) / name
    path.write_bytes(text)
    with pytest.raises(ReportError, match=str(path)):
        host.vms.read(host.process, 2)


def test_thread_that_ended_meanwhile_is_left_out(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    truth = host.qemu.threads()
    (host.qemu.folder / "task" / "9999").mkdir()
    state = host.vms.read(host.process, 2)
    assert (state.vcpus, state.others) == (truth.vcpus, truth.others)


def test_names_with_brackets_and_line_ends_do_not_confuse() -> None:
    text = b"7 (a) R (b\n) S 1 2 3 4 5 64 " + b"0 " * 12 + b"55 " + b"0 " * 20 + b"9 0 0\n"
    assert threads.parse_stat(text) == ("a) R (b\n", "S", 64, 55, 9)


def test_decision_is_kept_for_one_run_of_a_process(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    assert host.vms.read(host.process, 2).decided is None
    host.vms.mark(host.process, DECIDED)
    assert host.vms.read(host.process, 2).decided == DECIDED
    again = VirtualMachines(tmp_path / "proc", tmp_path / "sys", tmp_path / "run/vms")
    assert again.read_mark(host.process) == DECIDED
    assert again.read_mark(Process(PID, host.process.started + 1)) is None
    again.unmark(host.process)
    assert host.vms.read_mark(host.process) is None


def test_memory_and_its_binding_are_read(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2, bound="0-1")
    memory = host.vms.memory(host.process)
    assert (memory.by_node, memory.bound) == ({0: 3 << 20, 1: 1 << 20}, NodeSet.parse("0-1"))


def test_memory_is_read_anew_only_when_asked_for_or_due(tmp_path: Path) -> None:
    host = qemu_host(tmp_path, 2)
    before = host.vms.memory(host.process)
    host.qemu.set_pages({2: 4 << 20})
    assert host.vms.memory(host.process) == before
    assert host.vms.memory(host.process, fresh=True).by_node == {2: 4 << 20}
    host.qemu.set_pages({3: 4 << 20})
    assert host.vms.memory(Process(PID, 1)).by_node == {3: 4 << 20}


SLEEPERS = """
import sys, threading
for _ in range(3):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def real() -> Iterator[int]:
    """A process of ours with four threads."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process.pid
    process.communicate(b"")


def test_threads_of_a_real_process_are_pinned_by_the_kernel(real: int, tmp_path: Path) -> None:
    usable = sorted(os.sched_getaffinity(0))
    one, last = CpuSet(usable[:1]), CpuSet(usable[-1:])
    vms = VirtualMachines(Path("/proc"), Path("/sys"), tmp_path)
    process = vms.find(real)
    assert process is not None
    for cpus in (one, last):
        vms.pin(process, 1, CpuSet(usable), cpus)
        assert set(vms.read(process, 1).others.values()) == {cpus}
        assert {frozenset(os.sched_getaffinity(int(name))) for name in os.listdir(f"/proc/{real}/task")} == {
            frozenset(cpus)
        }
    with pytest.raises(ReportError, match=r"cannot put thread 'python' of .* on CPUs 60000: none of them is online; "):
        vms.pin(process, 1, one, CpuSet([60000]))


def test_kernel_takes_no_cpus_for_a_thread_that_is_gone() -> None:
    thread = threads.Thread(name="x", guest_ticks=0, cpus=CpuSet([0]), folder="/proc/0")
    with pytest.raises(ProcessLookupError):
        KernelAffinity().set_cpus(1 << 30, thread, CpuSet([0]))
