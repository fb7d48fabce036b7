"""How busy each CPU was since it was asked for before, by the ticks of the kernel and a clock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from incus_numa.facts.cpu_busy import MOST_S, CpuBusy

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Host:
    """A kernel that counts ticks, and a clock, both of which go on when they are told to."""

    def __init__(self, procfs: Path) -> None:
        self.stat = procfs / "stat"
        self.now_s = 1000.0
        self.busy = CpuBusy(procfs, clock=lambda: self.now_s)

    def after(self, seconds: float, **busy_s: float) -> dict[int, float]:
        """What is told after so long, when CPUs (`cpu0=...`) have been busy for so long in all."""
        self.now_s += seconds
        lines = [f"{cpu} {round(busy * TICKS_PER_S)} 0 0 7 0 0 0 0 0 0\n" for cpu, busy in busy_s.items()]
        self.stat.write_text("cpu  9 9 9 9 0 0 0 0 0 0\n" + "".join(lines) + "intr 1\n")
        return dict(self.busy.read())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_nothing_is_known_at_first(host: Host) -> None:
    assert host.after(0, cpu0=5, cpu1=7) == {}


def test_parts_are_of_the_time_since_it_was_asked_for_before(host: Host) -> None:
    host.after(0, cpu0=5, cpu1=7, cpu2=1)
    assert host.after(2, cpu0=6, cpu1=7, cpu2=3) == {0: 0.5, 1: 0.0, 2: 1.0}
    assert host.after(4, cpu0=7, cpu1=10, cpu2=3) == {0: 0.25, 1: 0.75, 2: 0.0}


def test_asked_again_at_once_it_tells_what_it_told(host: Host) -> None:
    host.after(0, cpu0=0)
    host.after(1, cpu0=1)
    assert host.after(0.4, cpu0=1) == {0: 1.0}
    # The time that was passed over counts with the next one.
    assert host.after(0.6, cpu0=1.25) == {0: 0.25}


def test_parts_are_never_below_nothing_or_above_everything(host: Host) -> None:
    host.after(0, cpu0=9, cpu1=0)
    assert host.after(1, cpu0=8, cpu1=3) == {0: 0.0, 1: 1.0}


def test_cpus_that_come_and_go_are_told_once_they_were_seen_twice(host: Host) -> None:
    host.after(0, cpu0=0, cpu1=0)
    assert host.after(1, cpu1=0.5, cpu2=4) == {1: 0.5}
    assert host.after(1, cpu0=1, cpu1=0.5, cpu2=5) == {1: 0.0, 2: 1.0}


def test_a_kernel_that_tells_nothing_is_unknown_until_it_was_read_twice(host: Host) -> None:
    host.after(0, cpu0=0)
    host.stat.unlink()
    host.now_s += 1
    assert host.busy.read() == {}
    assert host.after(1, cpu0=2) == {}
    assert host.after(1, cpu0=2.5) == {0: 0.5}


def test_after_a_long_pause_it_begins_anew(host: Host) -> None:
    host.after(0, cpu0=0)
    assert host.after(MOST_S + 1, cpu0=60) == {}
    assert host.after(2, cpu0=61) == {0: 0.5}
