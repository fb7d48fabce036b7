"""The instances document: what its keys become."""

from __future__ import annotations

import json

import pytest

from incus_numa.errors import ConfigError
from incus_numa.model.instance import Demand, Instance, MemoryMode
from incus_numa.model.machine import CoreKind
from incus_numa.policy import document
from tests import builders


def instance(**keys: object) -> Instance:
    text = json.dumps([{"name": "db", **keys}]).encode()
    (found,) = document.parse_snapshot(text, builders.machine(), MemoryMode.LOCAL).instances
    return found


def demand(**keys: object) -> Demand:
    return instance(**keys).demand


def test_kind_of_cores_exclusive_cpus_and_huge_pages_are_demands() -> None:
    pages = {"2097152": 1 << 30, "1073741824": 0}
    assert demand(vcpus=2, cores="efficiency", exclusive=True, hugepages=pages) == Demand(
        vcpus=2, weight=2.0, cores=CoreKind.EFFICIENCY, exclusive=True, hugepages={2 << 20: 1 << 30}
    )


def test_any_kind_of_cores_is_no_demand() -> None:
    assert [demand(cores=cores) for cores in ("any", None)] == [Demand(), Demand()]


def test_groups_are_read_as_the_servers_keys_are() -> None:
    one = instance(group=" db/α.1 ", avoid=["web", "", " web ", "ci"])
    assert (one.group, one.avoid) == ("db/α.1", ("web", "ci"))


@pytest.mark.parametrize("group", [None, "", " "])
def test_an_empty_group_is_none(group: str | None) -> None:
    assert instance(group=group).group is None


@pytest.mark.parametrize("name", ["a b", "a,b", "g" * 65, "db!", "a\nb"])
def test_what_the_servers_keys_refuse_as_a_group_is_refused_here(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        instance(group=name, avoid=[name])
    assert [problem.split(" '")[0] for problem in caught.value.problems] == [
        "instances[0] (db): group",
        "instances[0] (db): avoid",
    ]


def test_a_group_of_the_longest_name_is_taken() -> None:
    assert instance(group="g" * 64).group == "g" * 64
