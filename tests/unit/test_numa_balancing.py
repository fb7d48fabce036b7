"""The simulated kernel's NUMA balancing brings memory to where threads run, and no further than the cpuset lets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.groups import render_numa_stat
from incus_numa.simulator.kernel import Kernel
from incus_numa.simulator.numa_balancing import STEP_S, NumaBalancing, bring_home
from tests import builders

WEB = InstanceKey("default", "web")
MIB = 1 << 20


@pytest.mark.parametrize(
    ("pages", "home", "expected"),
    [
        ({0: 100 * MIB, 1: 0}, "1", {0: 60 * MIB, 1: 40 * MIB}),
        ({0: 10 * MIB, 2: 100 * MIB}, "1,3", {0: 0, 2: 70 * MIB, 1: 20 * MIB, 3: 20 * MIB}),
        ({0: 10 * MIB, 1: 5 * MIB}, "0-1", {0: 10 * MIB, 1: 5 * MIB}),
        ({0: 10 * MIB}, "", {0: 10 * MIB}),
    ],
)
def test_so_much_is_brought_home_evenly(pages: dict[int, int], home: str, expected: dict[int, int]) -> None:
    assert bring_home(pages, NodeSet.parse(home), 40 * MIB) == expected


@pytest.mark.parametrize(
    ("wants", "mems", "expected"),
    [(1.0, "", {0: 60 * MIB, 1: 40 * MIB}), (0.0, "", {0: 100 * MIB}), (1.0, "0", {0: 100 * MIB})],
)
def test_it_works_for_those_who_work_within_what_is_allowed(
    tmp_path: Path, wants: float, mems: str, expected: dict[int, int]
) -> None:
    machine = builders.machine(nodes=2, cpus_per_node=4)
    kernel = Kernel(machine, tmp_path, watches=False, tick_s=None, on_write=lambda *_: None)
    kernel.boot()
    kernel.create(WEB, 7, {0: 100 * MIB})
    group = kernel.groups[WEB]
    group.mems = NodeSet.parse(mems)
    kernel.set_cpus(WEB, CpuSet.parse("4-7"))
    kernel.work.set_want(WEB, wants)
    NumaBalancing(kernel, int(40 * MIB / STEP_S)).step()
    assert group.pages == expected
    assert (group.path / "memory.numa_stat").read_text().rstrip() == render_numa_stat(expected).rstrip()
