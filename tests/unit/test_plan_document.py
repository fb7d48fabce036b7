"""The instances document: what its keys become."""

from __future__ import annotations

import json

from incus_numa.model.instance import Demand, MemoryMode
from incus_numa.model.machine import CoreKind
from incus_numa.policy import document
from tests import builders


def demand(**keys: object) -> Demand:
    text = json.dumps([{"name": "db", **keys}]).encode()
    (found,) = document.parse_snapshot(text, builders.machine(), MemoryMode.LOCAL).instances
    return found.demand


def test_kind_of_cores_exclusive_cpus_and_huge_pages_are_demands() -> None:
    pages = {"2097152": 1 << 30, "1073741824": 0}
    assert demand(vcpus=2, cores="efficiency", exclusive=True, hugepages=pages) == Demand(
        vcpus=2, weight=2.0, cores=CoreKind.EFFICIENCY, exclusive=True, hugepages={2 << 20: 1 << 30}
    )


def test_any_kind_of_cores_is_no_demand() -> None:
    assert [demand(cores=cores) for cores in ("any", None)] == [Demand(), Demand()]
