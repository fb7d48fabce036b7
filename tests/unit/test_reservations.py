"""Memory that is kept for the host: what a machine cannot keep, and what is set aside."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.model.machine import Machine
from incus_numa.policy.reservations import check_reservations, reserve
from incus_numa.settings import MemorySettings, Reservation
from tests import strategies
from tests.builders import GIB, machine


def static(**amounts: int) -> MemorySettings:
    """Reservations written as `n0=GIB`; their total is their sum."""
    reserved = tuple(Reservation(int(name[1:]), amount) for name, amount in amounts.items())
    return MemorySettings(policy="static", reserved_total=sum(amounts.values()), reserved=reserved)


def host() -> Machine:
    """Node 0: 32 GiB, 1: none, 2: unknown, 3: 32 GiB of which 30 are huge pages."""
    base = machine()
    nodes = list(base.nodes)
    nodes[1] = replace(nodes[1], memory_bytes=0)
    nodes[2] = replace(nodes[2], memory_bytes=None)
    nodes[3] = replace(nodes[3], hugepages={2 << 20: 10 * GIB, 1 << 30: 20 * GIB})
    return replace(base, nodes=tuple(nodes))


@pytest.mark.parametrize(
    "memory",
    [
        static(n0=32 * GIB),
        static(n0=1, n3=2 * GIB),
        static(n1=0, n0=1),
        static(n2=1 << 60),
        replace(static(n7=GIB, n1=GIB), policy="none"),
        MemorySettings(),
    ],
)
def test_what_fits_is_no_problem(memory: MemorySettings) -> None:
    assert check_reservations(memory, host()) == ()


def test_every_misfit_is_told_with_its_numbers() -> None:
    assert check_reservations(static(n0=33 * GIB, n1=1, n3=3 * GIB, n4=GIB, n9=0), host()) == (
        "memory.reserved.0 = 35433480192 bytes (33 GiB): node 0 has 34359738368 bytes (32 GiB) of memory; expected"
        " 34359738368 bytes (32 GiB) or less",
        "memory.reserved.1 = 1 bytes (1 B): node 1 has no memory, so none of it can be kept",
        "memory.reserved.3 = 3221225472 bytes (3 GiB): node 3 has 34359738368 bytes (32 GiB) of memory, 32212254720"
        " bytes (30 GiB) of it in huge pages; expected 2147483648 bytes (2 GiB) or less",
        "memory.reserved.4 = 1073741824 bytes (1 GiB): this machine has no node 4, only 0-3",
        "memory.reserved.9 = 0 bytes (0 B): this machine has no node 9, only 0-3",
    )


def test_reservations_are_set_aside_and_what_does_not_fit_is_cut() -> None:
    reserved = reserve(host(), static(n0=5 * GIB, n1=GIB, n2=3 * GIB, n3=9 * GIB, n8=GIB))
    assert [node.reserved_bytes for node in reserved.nodes] == [5 * GIB, 0, 3 * GIB, 2 * GIB]
    assert replace(reserved, nodes=host().nodes) == host()


def test_with_the_policy_none_nothing_is_set_aside() -> None:
    assert reserve(host(), replace(static(n0=GIB), policy="none")) == host()


def test_reservations_take_the_place_of_earlier_ones() -> None:
    once = reserve(host(), static(n0=GIB, n3=GIB))
    assert reserve(once, static(n2=GIB)) == reserve(host(), static(n2=GIB))
    assert reserve(once, MemorySettings()) == host()


@given(strategies.machines(), st.dictionaries(st.integers(0, 9), st.integers(0, 40 * GIB), max_size=4))
def test_what_is_set_aside_always_fits_and_is_all_where_nothing_is_wrong(host: Machine, kept: dict[int, int]) -> None:
    memory = static(**{f"n{node}": amount for node, amount in kept.items()})
    reserved = reserve(host, memory)
    assert all(0 <= node.reserved_bytes <= (node.memory_bytes or 1 << 63) for node in reserved.nodes)
    if not check_reservations(memory, host):
        assert {node.id: node.reserved_bytes for node in reserved.nodes if node.id in kept} == kept
