"""Instance keys become a demand; garbage becomes the problem of that one instance."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Demand, Instance, InstanceKey, InstanceType, MemoryMode, Policy
from incus_numa.model.machine import CoreKind, Machine, Node
from incus_numa.server import demand
from incus_numa.server.protocol import Product, ServerInfo, ServerInstance
from incus_numa.settings import PlacementSettings

GIB = 1 << 30
MACHINE = Machine(
    nodes=(
        Node(id=0, cpus=CpuSet.parse("0-3"), memory_bytes=8 * GIB),
        Node(id=1, cpus=CpuSet.parse("4-7"), memory_bytes=8 * GIB),
    ),
    cpus=(),
    online=CpuSet.parse("0-7"),
)
CONTAINER = InstanceType.CONTAINER
VM = InstanceType.VIRTUAL_MACHINE


def server_instance(kind: InstanceType = CONTAINER, usage: int | None = None, **config: str) -> ServerInstance:
    """Keys are written with `__` for the dots, because they are names here."""
    keys = {key.replace("__", "."): value for key, value in config.items()}
    return ServerInstance(key=InstanceKey("default", "c1"), type=kind, running=True, config=keys, memory_usage=usage)


def managed(kind: InstanceType = CONTAINER, usage: int | None = None, **config: str) -> Instance:
    return read(server_instance(kind, usage, **{"limits__cpu__nodes": "balanced"} | config))


def read(raw: ServerInstance, **settings: Any) -> Instance:
    return demand.instance_from(raw, MACHINE, PlacementSettings(**settings))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"limits__cpu__nodes": "balanced"}, True),
        ({"limits__cpu__nodes": " balanced "}, True),
        ({"user__limits__cpu__nodes": "balanced"}, True),
        ({"user__limits__cpu__nodes": "balanced", "limits__cpu__nodes": "1"}, True),
        ({"limits__cpu__nodes": "0-1"}, False),
        ({"limits__cpu__nodes": ""}, False),
        ({}, False),
    ],
)
def test_balanced_opts_in(config: dict[str, str], expected: bool) -> None:
    one = read(server_instance(CONTAINER, None, **config))
    assert (one.managed, one.problem) == (expected, None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", Demand(vcpus=4, weight=4)),
        (" 4 ", Demand(vcpus=4, weight=4)),
        ("48", Demand(vcpus=48, weight=48)),
        ("1-1", Demand(vcpus=1, weight=1, pinned_cpus=CpuSet.parse("1"))),
        ("1,3", Demand(vcpus=2, weight=2, pinned_cpus=CpuSet.parse("1,3"))),
        ("0-3,8", Demand(vcpus=5, weight=5, pinned_cpus=CpuSet.parse("0-3,8"))),
        ("sockets=2,cores=3,threads=2", Demand(vcpus=12, weight=12)),
        ("cores=4", Demand(vcpus=4, weight=4)),
        ("", Demand(vcpus=None, weight=1)),
    ],
)
def test_cpu_limit(text: str, expected: Demand) -> None:
    assert managed(limits__cpu=text).demand == expected


@pytest.mark.parametrize(
    ("cpus", "allowance", "weight"),
    [
        ("4", "50%", 2.0),
        ("4", "200%", 4.0),
        ("4", "25ms/100ms", 0.25),
        ("4", "200ms/100ms", 2.0),
        ("2", "900ms/100ms", 2.0),
        ("", "50%", 0.5),
        ("", "300ms/100ms", 3.0),
        ("", "9900ms/100ms", 8.0),
        ("0-3", "50%", 2.0),
    ],
)
def test_allowance_scales_the_weight_of_a_container(cpus: str, allowance: str, weight: float) -> None:
    one = managed(limits__cpu=cpus, limits__cpu__allowance=allowance)
    assert (one.demand.weight, one.problem) == (weight, None)


def test_allowance_leaves_a_vm_alone() -> None:
    assert managed(VM, limits__cpu="4", limits__cpu__allowance="50%").demand.weight == 4


@pytest.mark.parametrize(
    ("text", "usage", "expected"),
    [
        ("2GiB", 5, 2 * GIB),
        ("512MB", None, 512_000_000),
        ("4096", None, 4096),
        ("25%", None, 4 * GIB),
        ("", 123, 123),
        ("", None, None),
    ],
)
def test_memory_is_the_limit_else_the_usage(text: str, usage: int | None, expected: int | None) -> None:
    assert managed(usage=usage, limits__memory=text).demand.memory_bytes == expected


def test_percentage_of_unknown_memory_is_the_usage() -> None:
    machine = Machine(nodes=(Node(id=0, cpus=CpuSet.parse("0")),), cpus=(), online=CpuSet.parse("0"))
    one = demand.instance_from(server_instance(usage=77, limits__memory="10%"), machine, PlacementSettings())
    assert one.demand.memory_bytes == 77


def test_vm_has_the_defaults_of_the_server() -> None:
    assert managed(VM, usage=5).demand == Demand(vcpus=1, weight=1, memory_bytes=GIB)


def test_own_keys_are_read() -> None:
    one = managed(
        user__numa__policy="single-numa-node",
        user__numa__memory="bind",
        user__numa__group="db",
        user__numa__avoid="web, cache,web",
        user__numa__movable="false",
        user__numa__cores="efficiency",
        user__numa__exclusive="true",
    )
    assert one == Instance(
        key=InstanceKey("default", "c1"),
        managed=True,
        policy=Policy.SINGLE_NUMA_NODE,
        memory=MemoryMode.BIND,
        group="db",
        avoid=("web", "cache"),
        movable=False,
        demand=Demand(cores=CoreKind.EFFICIENCY, exclusive=True),
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [("any", None), ("", None), ("performance", CoreKind.PERFORMANCE), (" efficiency ", CoreKind.EFFICIENCY)],
)
def test_kind_of_cores(text: str, kind: CoreKind | None) -> None:
    assert (managed(user__numa__cores=text).demand.cores, managed(user__numa__cores=text).problem) == (kind, None)


def test_bad_kind_of_cores_names_what_is_expected() -> None:
    problem = managed(user__numa__cores="fast").problem
    assert problem == "user.numa.cores: bad value 'fast': expected one of any, performance, efficiency"


def test_huge_pages_of_a_container_are_whole_pages_beside_its_memory() -> None:
    one = managed(
        limits__memory="2GiB",
        limits__hugepages__64KB="1MiB",
        limits__hugepages__1MB="3000000",
        limits__hugepages__2MB="64MB",
        limits__hugepages__1GB="1023MiB",
    )
    assert (one.demand.memory_bytes, one.demand.hugepages, one.problem) == (
        2 * GIB,
        {1 << 16: 1 << 20, 1 << 20: 2 << 20, 2 << 20: 30 << 21},
        None,
    )


def test_huge_pages_of_containers_are_nothing_to_a_vm_and_the_other_way_round() -> None:
    assert managed(VM, limits__hugepages__2MB="1GiB").demand.hugepages == {}
    assert managed(limits__memory__hugepages="true", limits__memory="1GiB").demand == Demand(memory_bytes=GIB)


@pytest.mark.parametrize(
    ("set_aside", "size", "memory", "amount"),
    [
        ({}, 2 << 20, "1GiB", GIB),
        ({}, 2 << 20, "", GIB),
        ({1 << 30: 4 * GIB}, 1 << 30, "1500MiB", 2 * GIB),
        ({1 << 30: 4 * GIB, 2 << 20: GIB}, 2 << 20, "3MiB", 4 << 20),
    ],
)
def test_vm_in_huge_pages_has_no_other_memory(set_aside: dict[int, int], size: int, memory: str, amount: int) -> None:
    nodes = tuple(replace(node, hugepages=set_aside) for node in MACHINE.nodes)
    raw = server_instance(VM, limits__memory=memory, limits__memory__hugepages="true")
    found = demand.instance_from(raw, replace(MACHINE, nodes=nodes), PlacementSettings()).demand
    assert (found.memory_bytes, found.hugepages) == (0, {size: amount})


def test_memory_mode_comes_from_the_settings_where_unset() -> None:
    assert read(server_instance(), memory="none").memory is MemoryMode.NONE
    assert read(server_instance(user__numa__memory="local"), memory="none").memory is MemoryMode.LOCAL


GARBAGE = [
    ("limits.cpu", "0"),
    ("limits.cpu", "-1"),
    ("limits.cpu", "4-"),
    ("limits.cpu", "four"),
    ("limits.cpu", "3-1"),
    ("limits.cpu", ","),
    ("limits.cpu", "1.5"),
    ("limits.cpu", "0-99999999"),
    ("limits.cpu", "٣"),
    ("limits.cpu", "sockets=0,cores=2"),
    ("limits.cpu", "sockets=2,sockets=2"),
    ("limits.cpu", "1," * 5000),
    ("limits.cpu.allowance", "half"),
    ("limits.cpu.allowance", "0%"),
    ("limits.cpu.allowance", "10ms/0ms"),
    ("limits.cpu.allowance", "-5%"),
    ("limits.memory", "lots"),
    ("limits.memory", "0"),
    ("limits.memory", "0%"),
    ("limits.memory", "120%"),
    ("limits.memory", "-1GiB"),
    ("limits.memory", "9" * 3000),
    ("limits.memory", "99EiB"),
    ("limits.cpu.nodes", "balnced"),
    ("limits.cpu.nodes", ","),
    ("user.limits.cpu.nodes", "0-1"),
    ("volatile.cpu.nodes", "zero"),
    ("volatile.cpu.nodes", ","),
    ("user.numa.policy", "best"),
    ("user.numa.memory", "strict"),
    ("user.numa.group", "a b"),
    ("user.numa.avoid", "a b,c"),
    ("user.numa.movable", "perhaps"),
    ("user.numa.cores", "fast"),
    ("user.numa.exclusive", "perhaps"),
    ("limits.hugepages.2MB", "lots"),
    ("limits.hugepages.1GB", "-1"),
    ("limits.hugepages.64KB", "99EiB"),
    ("user.numa.polcy", "none"),
]


@pytest.mark.parametrize(("key", "value"), GARBAGE)
def test_garbage_is_the_problem_of_a_managed_instance(key: str, value: str) -> None:
    one = read(
        ServerInstance(
            key=InstanceKey("default", "c1"),
            type=CONTAINER,
            running=True,
            config={"user.limits.cpu.nodes": "balanced", key: value},
        )
    )
    assert one.managed
    ((about, what),) = one.problems
    assert about == key
    assert "expected" in what
    assert len(what) < 300


@pytest.mark.parametrize(("key", "value"), [pair for pair in GARBAGE if "limits.cpu.nodes" not in pair[0]])
def test_garbage_counts_as_unset_where_unmanaged(key: str, value: str) -> None:
    raw = ServerInstance(key=InstanceKey("default", "c1"), type=CONTAINER, running=True, config={key: value})
    assert read(raw) == Instance(key=raw.key)


def test_bad_own_keys_are_known_of_unmanaged_instances_as_well() -> None:
    raw = server_instance(user__numa__policy="sideways", user__numa__zz="1", limits__memory="lots")
    assert read(raw).problems == ()
    assert [key for key, _ in demand.list_bad_own_keys(raw, MACHINE, PlacementSettings())] == [
        "user.numa.zz",
        "user.numa.policy",
    ]


@pytest.mark.parametrize(
    ("config", "is_followed"),
    [
        ({"limits__cpu__nodes": "balanced", "volatile__cpu__nodes": "1"}, True),
        ({"limits__cpu__nodes": "1"}, True),
        ({"user__limits__cpu__nodes": "balanced", "volatile__cpu__nodes": "1"}, False),
        ({"volatile__cpu__nodes": "1"}, False),
        ({"limits__cpu__nodes": " ", "volatile__cpu__nodes": "1"}, False),
    ],
)
def test_a_record_is_followed_only_beside_balanced(config: dict[str, str], is_followed: bool) -> None:
    assert demand.follows_nodes(server_instance(CONTAINER, None, **config)) == is_followed


def test_problems_are_the_same_in_any_order_of_keys_and_all_of_them_are_told() -> None:
    config = {"limits.cpu.nodes": "balanced", "limits.memory": "x", "limits.cpu": "x", "user.numa.zz": "1"}
    problems = {
        demand.instance_from(
            ServerInstance(key=InstanceKey("default", "c"), type=CONTAINER, running=True, config=dict(items)),
            MACHINE,
            PlacementSettings(),
        ).problems
        for items in (config.items(), reversed(config.items()))
    }
    assert [[key for key, _ in found] for found in problems] == [["limits.cpu", "limits.memory", "user.numa.zz"]]


@pytest.mark.parametrize(
    ("config", "nodes"),
    [
        ({"volatile__cpu__nodes": "0-1"}, NodeSet((0, 1))),
        ({"volatile__cpu__nodes": "0-0", "limits__cpu__nodes": "balanced"}, NodeSet((0,))),
        ({"limits__cpu__nodes": "1", "user__limits__cpu__nodes": "balanced"}, NodeSet((1,))),
        ({"limits__cpu__nodes": "1", "volatile__cpu__nodes": "0-1"}, NodeSet((1,))),
        ({"limits__cpu__nodes": "balanced"}, None),
        ({"volatile__cpu__nodes": "zero"}, None),
        ({"volatile__cpu__nodes": ""}, None),
        ({}, None),
    ],
)
def test_nodes_are_what_the_configuration_names(config: dict[str, str], nodes: NodeSet | None) -> None:
    assert demand.nodes_from(server_instance(CONTAINER, None, **config)) == nodes


@pytest.mark.parametrize(
    ("extensions", "key"),
    [
        ({"numa_cpu_placement", "numa_cpu_balanced"}, "volatile.cpu.nodes"),
        ({"numa_cpu_placement"}, "limits.cpu.nodes"),
        (set(), None),
    ],
)
@pytest.mark.parametrize("product", Product)
def test_decision_is_written_where_the_server_reads_it(product: Product, extensions: set[str], key: str | None) -> None:
    assert demand.nodes_key(ServerInfo(product=product, version="1", extensions=frozenset(extensions))) == key


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"limits__cpu__nodes": "balanced"}, "volatile.cpu.nodes"),
        ({"user__limits__cpu__nodes": "balanced"}, "volatile.cpu.nodes"),
        ({"limits__cpu__nodes": "balanced", "user__limits__cpu__nodes": "balanced"}, "volatile.cpu.nodes"),
        ({"limits__cpu__nodes": "1", "user__limits__cpu__nodes": "balanced"}, "limits.cpu.nodes"),
        ({"limits__cpu__nodes": "1"}, "volatile.cpu.nodes"),
    ],
)
def test_one_that_opted_in_has_its_nodes_where_a_list_is_in_the_way(config: dict[str, str], key: str) -> None:
    assert demand.record_key(server_instance(CONTAINER, None, **config), "volatile.cpu.nodes") == key


KEYS = sorted({key for key, _ in GARBAGE})


@given(
    st.dictionaries(st.sampled_from(KEYS), st.text(max_size=20) | st.from_regex(r"[-0-9,.%=/msGiB]{0,12}")),
    st.sampled_from(InstanceType),
)
def test_no_text_in_any_key_raises(config: dict[str, str], kind: InstanceType) -> None:
    raw = ServerInstance(key=InstanceKey("default", "c1"), type=kind, running=True, config=config)
    one = read(raw)
    demand.nodes_from(raw)
    assert one.demand.weight > 0
    assert one.demand.vcpus is None or one.demand.vcpus >= 1
    assert one.problem is None or one.managed


@pytest.mark.parametrize("limit", ["70000", "99999999999999999999", "cores=999999,threads=999999"])
def test_more_vcpus_than_any_machine_has_are_no_garbage(limit: str) -> None:
    found = demand.parse_cpu_limit(limit)
    assert isinstance(found, int)
    assert found >= 65536
