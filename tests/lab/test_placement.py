"""Where one managed container goes on an empty host, for each size: on the kernel's word and the container's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from incus_numa.cpuset import NodeSet
from tests.lab.conftest import Figures
from tests.lab.host import NEAR
from tests.lab.lab import Lab, Seen

pytestmark = [pytest.mark.lab, pytest.mark.on("incus", "incus7")]


@dataclass(frozen=True, kw_only=True, slots=True)
class Alone:
    """A settled container that is the only one on the host."""

    name: str
    vcpus: int
    seen: Seen


@pytest.fixture(scope="module", params=[1, 2, 3, 4, 8], ids=lambda vcpus: f"{vcpus}-vcpus")
def alone(request: pytest.FixtureRequest, lab: Lab, figures: Figures) -> Iterator[Alone]:
    vcpus: int = request.param
    name = f"alone{vcpus}"
    since = lab.clock()
    lab.launch_balanced(name, vcpus)
    seen = lab.settle(name, vcpus)
    changes = [change for change in lab.read_changes(name, since) if change.cpus not in (None, "-")]
    took = changes[-1].at_s - changes[0].at_s if changes else 0.0
    figures.say(f"start of {vcpus} vCPUs, from the server's first cpuset to the last change", took)
    yield Alone(name=name, vcpus=vcpus, seen=seen)
    lab.delete(name)


def test_it_gets_as_many_cpus_as_it_asked_for(alone: Alone) -> None:
    assert len(alone.seen.cpus) == alone.vcpus


def test_it_is_on_the_fewest_nodes_that_hold_it(alone: Alone) -> None:
    assert len(alone.seen.nodes) == {1: 1, 2: 1, 3: 2, 4: 2, 8: 4}[alone.vcpus]


def test_its_nodes_are_near_each_other(alone: Alone, lab: Lab) -> None:
    pairs = [(a, b) for a in alone.seen.nodes for b in alone.seen.nodes if a < b]
    far = [pair for pair in pairs if lab.layout.distances[pair[0]][pair[1]] > NEAR]
    assert far == [] or alone.seen.nodes == NodeSet(lab.layout.cpus)


def test_its_cpus_are_even_over_its_nodes(alone: Alone, lab: Lab) -> None:
    shares = lab.layout.spread(alone.seen.cpus).values()
    assert max(shares) - min(shares) <= 1


def test_its_memory_is_bound_on_one_node_and_free_on_several(alone: Alone) -> None:
    assert alone.seen.mems == (alone.seen.nodes if len(alone.seen.nodes) == 1 else NodeSet())


def test_the_server_records_the_nodes_that_the_kernel_has(alone: Alone) -> None:
    assert alone.seen.recorded == alone.seen.nodes


def test_a_process_inside_is_allowed_the_same(alone: Alone, lab: Lab) -> None:
    cpus, mems = lab.see_inside(alone.name)
    assert (cpus, mems) == (alone.seen.cpus, alone.seen.mems or NodeSet(lab.layout.cpus))
