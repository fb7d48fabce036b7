"""What others test their own placement with, judged by what both rules promise.

`DIFFERENT` lists the cases that ask for something that this planner does not do, each with its reason; the last test
counts that every case of every file is either run or listed.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Policy
from incus_numa.model.machine import Cpu, Machine, Node
from incus_numa.model.plan import Reason
from incus_numa.policy import cpus, planner, scoring
from incus_numa.policy.check import check_plan
from incus_numa.policy.cpus import CpuWish
from incus_numa.policy.ledger import Ledger, usable_cpus
from incus_numa.policy.rooms import Rooms
from incus_numa.settings import PlacementSettings
from incus_numa.topology import sysfs
from tests.builders import GIB, instance, snapshot

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "peer_cases"
SETTINGS = PlacementSettings()
Case = dict[str, Any]


def load(name: str) -> dict[str, Any]:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_bytes()) if path.exists() else {"cases": {}, "count": 0, "topologies": {}}


TAKE, NOVA, LIBMEM, E2E = map(load, ("cpu_take_by_topology", "nova_numa_fit", "nri_libmem", "nri_e2e_topologies"))
MERGE, COMPARE = map(load, ("topology_hint_merge", "topology_hint_compare"))
FILES = {
    "cpu_take_by_topology": TAKE,
    "nova_numa_fit": NOVA,
    "nri_libmem": LIBMEM,
    "nri_e2e_topologies": E2E,
    "topology_hint_merge": MERGE,
    "topology_hint_compare": COMPARE,
}

DIFFERENT: dict[tuple[str, str], int] = {
    ("cpu_take_by_topology", "taking nothing: every instance has a vCPU"): 2,
    ("cpu_take_by_topology", "free sockets: a socket is no unit here, distances tell what is near"): 13,
    ("cpu_take_by_topology", "the order of single CPUs: a count is chosen at once, even over the nodes"): 6,
    ("cpu_take_by_topology", "the machine is not in the file"): 3,
    ("nova_numa_fit", "guests have no NUMA cells of their own here, of which each must fit a node"): 4,
    ("nova_numa_fit", "sums of its own host object: commitments here are checked by the planner's properties"): 13,
    ("nova_numa_fit", "a thread policy that refuses siblings, or anything else: here siblings are a preference"): 4,
    ("nova_numa_fit", "some CPUs dedicated and some shared: here an instance is exclusive or it is not"): 1,
    ("nova_numa_fit", "shared CPUs, more than one instance to a CPU and to memory by ratios: here memory is never"): 9,
    ("nri_libmem", "expansion by types of memory: here nodes have memory and distances, and no types"): 6,
    ("nri_libmem", "failures of its own calls: unknown node, no affinity, unknown or absent type, same id"): 6,
    ("topology_hint_merge", "hints of separate providers: here one search over all resources, nothing to merge"): 77,
    ("topology_hint_compare", "which hint wins and how wide it must be: parts of the merge above"): 32,
    ("topology_hint_compare", "the distance of no nodes: there is no set without nodes"): 1,
}
"""How many cases of which file mean something else there, by reason. All others are run."""

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not FOLDER.is_dir(), reason="../shared/data/peer_cases is not there"),
]


def cases(data: dict[str, Any], kind: str | None = None) -> list[Case]:
    found = data["cases"]
    listed: list[Case] = found.get(kind, []) if isinstance(found, dict) else found
    return listed


# CPUs by topology


def take_reason(kind: str, case: Case) -> str | None:
    if kind == "free_sockets":
        return "free sockets: a socket is no unit here, distances tell what is near"
    if kind == "free_cpus_order":
        return "the order of single CPUs: a count is chosen at once, even over the nodes"
    if case["topology"] not in TAKE["topologies"]:
        return "the machine is not in the file"
    # Every case without a number of CPUs to take is about what is free.
    return None if case.get("take", 1) else "taking nothing: every instance has a vCPU"


def take_cases(*kinds: str) -> list[Any]:
    return [
        pytest.param(kind, case, id=f"{kind}-{index}")
        for kind in kinds
        for index, case in enumerate(cases(TAKE, kind))
        if take_reason(kind, case) is None
    ]


HALF_CORE_FIRST = "take one cpu from single socket with HT, some cpus are taken"
"""The kubelet gives the one CPU whose sibling is taken; here such a CPU is a core like any other, by its id."""


def machine_of(topology: dict[str, Any]) -> Machine:
    threads: dict[tuple[int, int], list[int]] = {}
    for cpu, place in topology["cpus"].items():
        threads.setdefault((place["socket"], place["core"]), []).append(int(cpu))
    found = tuple(
        Cpu(
            id=int(cpu),
            node=place["node"],
            socket=place["socket"],
            core=min(threads[place["socket"], place["core"]]),
            l3=None,
        )
        for cpu, place in sorted(topology["cpus"].items(), key=lambda one: int(one[0]))
    )
    nodes = sorted((int(node), CpuSet.parse(text)) for node, text in topology["nodes"].items())
    return Machine(
        nodes=tuple(Node(id=node, cpus=own) for node, own in nodes), cpus=found, online=CpuSet(cpu.id for cpu in found)
    )


def broken_cores(machine: Machine, available: CpuSet, chosen: CpuSet) -> int:
    """Cores that could have been taken whole and were taken in part."""
    members = [CpuSet(core.threads) for cores in machine.cores_by_node.values() for core in cores]
    return sum(1 for core in members if core <= available and core & chosen and not core <= chosen)


@pytest.mark.parametrize("smt", ["spread", "pack"])
@pytest.mark.parametrize(("kind", "case"), take_cases("packed", "distributed"))
def test_cpus_are_taken_no_worse_than_by_the_kubelet(kind: str, case: Case, smt: Literal["spread", "pack"]) -> None:
    machine, available = machine_of(TAKE["topologies"][case["topology"]]), CpuSet.parse(case["available"])
    settings = PlacementSettings(smt=smt, reserved_cpus=str(machine.online - available))
    plan = planner.plan(snapshot(machine, instance("x", vcpus=case["take"])), settings)
    (placement,) = plan.placements
    assert placement.cpus <= available
    if case["expected"] is None:
        # Where the kubelet fails, more is asked for than there is: here that is the whole machine and a warning.
        assert placement.cpus == available
        assert len(plan.warnings) == 1
        return
    expected = CpuSet.parse(case["expected"])
    assert len(placement.cpus) == len(expected)
    assert len(machine.nodes_of(placement.cpus)) <= len(machine.nodes_of(expected))
    in_groups = case.get("group_size", 1) > 1
    if smt == "pack" and not in_groups and case["name"] != HALF_CORE_FIRST:
        assert broken_cores(machine, available, placement.cpus) <= broken_cores(machine, available, expected)


def exclusively(machine: Machine, available: CpuSet, nodes: NodeSet, shares: dict[int, int]) -> CpuSet | None:
    ledger = Ledger(machine, usable_cpus(machine, machine.online - available))
    count = sum(shares.values())
    wish = CpuWish(count=count, weight=float(count), has=CpuSet())
    return cpus.choose_exclusive(ledger, nodes, wish, shares)


@pytest.mark.parametrize(("kind", "case"), take_cases("packed", "distributed"))
def test_exclusive_cpus_break_no_more_cores_than_the_kubelet_does(kind: str, case: Case) -> None:
    machine, available = machine_of(TAKE["topologies"][case["topology"]]), CpuSet.parse(case["available"])
    expected = CpuSet.parse(case["expected"] or "")
    if case["expected"] is None:
        wish = CpuWish(count=case["take"], weight=1.0, has=CpuSet())
        ledger = Ledger(machine, usable_cpus(machine, machine.online - available))
        assert cpus.choose_exclusive(ledger, ledger.nodes, wish) is None
        return
    nodes = machine.nodes_of(expected)
    shares = {node: len(machine.node_by_id[node].cpus & expected) for node in nodes}
    found = exclusively(machine, available, nodes, shares) or CpuSet()
    assert found <= available
    assert {node: len(machine.node_by_id[node].cpus & found) for node in nodes} == shares
    assert broken_cores(machine, available, found) <= broken_cores(machine, available, expected)


@pytest.mark.parametrize(("kind", "case"), take_cases("free_cores"))
def test_exclusive_cpus_are_the_free_cores_of_the_kubelet(kind: str, case: Case) -> None:
    topology = TAKE["topologies"][case["topology"]]
    machine, available = machine_of(topology), CpuSet.parse(case["available"])
    free = CpuSet(int(cpu) for cpu, place in topology["cpus"].items() if place["core"] in case["expected"])
    # A core with one thread taken is in the kubelet's list, but only the other thread is to be had.
    free = free & available
    shares = {node.id: len(node.cpus & free) for node in machine.nodes}
    assert exclusively(machine, available, NodeSet(shares), shares) == free


@pytest.mark.parametrize(("kind", "case"), take_cases("free_nodes"))
def test_what_needs_a_whole_node_goes_to_a_free_node_of_the_kubelet(kind: str, case: Case) -> None:
    machine, available = machine_of(TAKE["topologies"][case["topology"]]), CpuSet.parse(case["available"])
    settings = PlacementSettings(reserved_cpus=str(machine.online - available))
    vcpus = len(machine.nodes[0].cpus)
    one = instance("x", vcpus=vcpus, policy=Policy.SINGLE_NUMA_NODE)
    plan = planner.plan(snapshot(machine, one), settings)
    if case["expected"]:
        assert [list(placement.nodes) for placement in plan.placements] == [case["expected"][:1]]
    else:
        # More than the whole machine has is cut to what it has, which then fits its only node.
        assert not plan.placements or len(available) < vcpus


# Nova: does it fit


def nova_reason(case: Case) -> str | None:
    calls = case["calls"]
    if any(call["function"] == "numa_usage_from_instance_numa" for call in calls) and len(calls) < 3:
        return "sums of its own host object: commitments here are checked by the planner's properties"
    cells = instance_cells(case)
    if len(cells) > 1 and calls[0]["function"] == "numa_fit_instance_to_host" and len(calls) == 1:
        return "guests have no NUMA cells of their own here, of which each must fit a node"
    policies = {cell.get("cpu_policy") for cell in cells}
    if "mixed" in policies:
        return "some CPUs dedicated and some shared: here an instance is exclusive or it is not"
    if policies != {"dedicated"}:
        return "shared CPUs, more than one instance to a CPU and to memory by ratios: here memory is never"
    if cells[0].get("cpu_thread_policy") in {"require", "isolate"} and refused(case):
        return "a thread policy that refuses siblings, or anything else: here siblings are a preference"
    return None


def instance_cells(case: Case) -> list[Case]:
    found: list[Case] = []
    for call in case["calls"]:
        for arg in call["args"]:
            for cell in arg.get("cells", [arg]) if isinstance(arg, dict) else ():
                if cell.get("_type") == "InstanceNUMACell":
                    found.append(cell)
    return found


def host_cells(case: Case) -> list[Case]:
    host = case["calls"][0]["args"][0]
    found: list[Case] = host.get("cells", [host])
    return found


def refused(case: Case) -> bool:
    return ["assertIsNone", {"name": "RESULT1"}] in case["expect"]


def nova_machine(case: Case) -> tuple[Machine, CpuSet]:
    """The host, with ids of cores as siblings say, and the CPUs that are pinned by others."""
    core: dict[int, int] = {}
    for cell in host_cells(case):
        siblings = cell["siblings"]
        for group in siblings if isinstance(siblings, list) else ():
            core |= dict.fromkeys(group, min(group))
    own = {cell["id"]: CpuSet(cell["pcpuset"]) for cell in host_cells(case)}
    made = tuple(
        Cpu(id=cpu, node=node, socket=0, core=core.get(cpu, cpu), l3=None) for node, ids in own.items() for cpu in ids
    )
    nodes = tuple(
        Node(id=cell["id"], cpus=own[cell["id"]], memory_bytes=(cell["memory"] - cell["memory_usage"]) << 20)
        for cell in host_cells(case)
    )
    taken = CpuSet(cpu for cell in host_cells(case) for cpu in cell["pinned_cpus"])
    return Machine(nodes=nodes, cpus=made, online=CpuSet(cpu.id for cpu in made)), taken


@pytest.mark.parametrize(
    "case", [one for one in cases(NOVA) if nova_reason(one) is None], ids=lambda case: case["test"].split("_", 1)[1]
)
def test_dedicated_cpus_fit_where_they_fit_for_nova(case: Case) -> None:
    machine, taken = nova_machine(case)
    (cell,) = instance_cells(case)
    count = len(cell["pcpuset"])
    shares = {node.id: count for node in machine.nodes if len(node.cpus - taken) >= count}
    fits = [node for node in shares if (machine.node_by_id[node].memory_bytes or 0) >= cell["memory"] << 20]
    assert bool(fits) is not refused(case)
    for node in fits:
        found = exclusively(machine, machine.online - taken, NodeSet([node]), {node: count})
        assert found is not None
        assert (len(found), found & taken) == (count, CpuSet())
        if cell.get("cpu_thread_policy") == "require":
            assert broken_cores(machine, machine.online - taken, found) == 0
    allowed = [one[1] for one in case["expect"] if one[0].startswith("every cell")]
    assert fits == (allowed[0] if allowed else fits)
    one = instance("x", vcpus=count, memory_bytes=cell["memory"] << 20, policy=Policy.SINGLE_NUMA_NODE)
    plan = planner.plan(snapshot(machine, one), replace(SETTINGS, reserved_cpus=str(taken)))
    # The planner cuts what is asked for to what the machine has; Nova does not.
    if len(machine.online - taken) >= count:
        assert bool(plan.placements) is bool(fits)
        assert not plan.placements or plan.placements[0].nodes.lowest() in fits


# Memory of nodes


def libmem_reason(test: str, step: Case) -> str | None:
    if test == "TestExpand":
        return "expansion by types of memory: here nodes have memory and distances, and no types"
    if step.get("fail") and step["limit"] <= 32:
        return "failures of its own calls: unknown node, no affinity, unknown or absent type, same id"
    return None


@pytest.mark.parametrize("case", [one for one in cases(LIBMEM) if "closeCPUs" in one["setup"]], ids=lambda c: c["test"])
def test_memory_fits_where_it_fits_for_nri(case: Case) -> None:
    """Its sets of nodes are taken as given, with those it widens to make room; each must then hold here, too."""
    setup = case["setup"]
    rooms = Rooms(dict(enumerate(setup["capacities"])))
    there: dict[str, tuple[int, int]] = {}
    nodes = tuple(Node(id=at, cpus=CpuSet(own)) for at, own in enumerate(setup["closeCPUs"]))
    machine = Machine(nodes=nodes, cpus=(), online=CpuSet())
    for step in case["sequence"]:
        if libmem_reason(case["test"], step) is not None:
            continue
        if "cpus" in step:
            assert list(machine.nodes_of(CpuSet(step["cpus"]))) == step["affinity"]
            continue
        if step.get("fail"):
            assert not rooms.holds(NodeSet(range(len(nodes))).mask, step["limit"])
            continue
        moves = {step["id"]: step.get("realloced", step.get("result"))} | step.get("updates", {})
        for name, members in moves.items():
            mask, size = there.get(name, (0, step.get("limit", 0)))
            rooms.take(mask, size)
            there[name] = (NodeSet(members).mask, size)
        for name in moves:
            mask, size = there[name]
            assert rooms.holds(mask, size), step["name"]
            rooms.add(mask, size)
        for name in step.get("release", ()):
            rooms.take(*there.pop(name))


# Machines of end-to-end tests


def e2e_machine(case: Case) -> Machine:
    """Nodes as QEMU is told: `packages` times `dies` times `nodes` with cores each, or one without CPUs."""
    made: list[Cpu] = []
    nodes: list[Node] = []
    distances: dict[int, dict[int, int]] = {}
    for entry in case["topology"]:
        for _ in range(
            entry.get("packages", 1) * entry.get("dies", 1) * entry.get("nodes", 1) if "mem" in entry else 0
        ):
            ident, first, threads = len(nodes), len(made), entry.get("threads", 2)
            for at in range(entry.get("cores", 0) * threads):
                made.append(Cpu(id=first + at, node=ident, socket=None, core=first + at - at % threads, l3=None))
            distances[ident] = {int(other): value for other, value in entry.get("node-dist", {}).items()}
            size = int(entry["mem"][:-1]) << 30
            nodes.append(Node(id=ident, cpus=CpuSet(range(first, len(made))), memory_bytes=size))
    whole = {
        one.id: {
            other.id: distances[one.id].get(other.id, distances[other.id].get(one.id, 10 if one is other else 20))
            for other in nodes
        }
        for one in nodes
    }
    return Machine(
        nodes=tuple(replace(node, distances=whole[node.id]) for node in nodes),
        cpus=tuple(made),
        online=CpuSet(cpu.id for cpu in made),
    )


@pytest.mark.parametrize("case", cases(E2E), ids=lambda case: case["path"].split("/")[-2])
def test_machines_of_nri_are_planned_on(case: Case) -> None:
    machine = e2e_machine(case)
    size = len(machine.nodes[0].cpus)
    state = snapshot(
        machine,
        instance("node", vcpus=size, memory_bytes=GIB),
        instance("wide", vcpus=size + 1, memory_bytes=GIB),
        *(instance(f"small{index}", vcpus=1, memory_bytes=GIB >> 3) for index in range(4)),
    )
    plan = planner.plan(state, SETTINGS)
    assert check_plan(plan, state, SETTINGS) == ()
    width = {one.key.name: len(one.nodes) for one in plan.placements}
    assert width == {"node": 1, "wide": 2, "small0": 1, "small1": 1, "small2": 1, "small3": 1}
    assert all(machine.node_by_id[node].cpus for one in plan.placements for node in one.nodes)
    huge = planner.plan(snapshot(machine, instance("x", memory_bytes=machine.memory_bytes + 1)), SETTINGS)
    assert [one.reason for one in huge.rejections] == [Reason.NO_MEMORY]


# Distances


def distant_machine(rows: list[list[int]] | None, nodes: int) -> Machine:
    matrix = rows or [[10] * nodes for _ in range(nodes)]
    return Machine(
        nodes=tuple(Node(id=at, cpus=CpuSet([at]), distances=dict(enumerate(row))) for at, row in enumerate(matrix)),
        cpus=tuple(Cpu(id=at, node=at, socket=None, core=at, l3=None) for at in range(len(matrix))),
        online=CpuSet(range(len(matrix))),
    )


@pytest.mark.parametrize("case", cases(COMPARE, "closest"), ids=lambda case: case["name"])
def test_narrower_then_nearer_then_lower_nodes_win_as_for_the_kubelet(case: Case) -> None:
    machine = distant_machine(case["distances"], 3)

    def order(nodes: list[int]) -> tuple[int, float, list[int]]:
        return len(nodes), scoring.mean_distance(machine, nodes) or 0.0, nodes

    assert min(("current", "candidate"), key=lambda one: order(case[one])) == case["expected"]


@pytest.mark.parametrize(
    "case", [one for one in cases(COMPARE, "average_distance") if one["nodes"]], ids=lambda case: str(case["nodes"])
)
def test_mean_distance_is_the_kubelets_without_the_nodes_themselves(case: Case) -> None:
    """It counts each node's distance to itself, 10, among the pairs."""
    count = len(case["nodes"])
    mean = scoring.mean_distance(distant_machine(case["distances"], 0), case["nodes"])
    assert (mean or 0.0) * (count - 1) / count + 10 / count == pytest.approx(case["expected"])


@pytest.mark.parametrize("case", cases(COMPARE, "split_distance_file"), ids=lambda case: case["input"])
def test_distance_files_are_read_as_by_the_kubelet(case: Case, tmp_path: Path) -> None:
    count = len(case["input"].split())
    files = {"cpu/online": "0", "node/online": f"0-{count - 1}"}
    for node in range(count):
        files |= {f"node/node{node}/distance": case["input"], f"node/node{node}/cpumap": "1" if node == 0 else "0"}
    for name, text in files.items():
        path = tmp_path / "devices/system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    found = sysfs.read_machine(tmp_path).nodes[0].distances
    assert list(found.values()) == ([] if "error" in case else case["expected"])


# All of them


def reasons() -> Counter[tuple[str, str]]:
    """The cases that are not run, by file and reason."""
    take = [take_reason(kind, case) for kind in TAKE["cases"] for case in cases(TAKE, kind)]
    memory = [libmem_reason(case["test"], step) for case in cases(LIBMEM) for step in case["sequence"]]
    compare: list[str | None] = [
        "which hint wins and how wide it must be: parts of the merge above"
        for kind in ("narrowest", "max_of_min_affinity")
        for _ in cases(COMPARE, kind)
    ]
    compare += [
        "the distance of no nodes: there is no set without nodes"
        for case in cases(COMPARE, "average_distance")
        if not case["nodes"]
    ]
    merge: list[str | None] = [
        "hints of separate providers: here one search over all resources, nothing to merge"
        for kind in MERGE["cases"]
        for _ in cases(MERGE, kind)
    ]
    found: dict[str, list[str | None]] = {
        "cpu_take_by_topology": take,
        "nova_numa_fit": [nova_reason(case) for case in cases(NOVA)],
        "nri_libmem": memory,
        "topology_hint_merge": merge,
        "topology_hint_compare": compare,
    }
    return Counter((name, reason) for name, listed in found.items() for reason in listed if reason is not None)


RUN = {
    "cpu_take_by_topology": len(take_cases("packed", "distributed", "free_cores", "free_nodes")),
    "nova_numa_fit": sum(1 for case in cases(NOVA) if nova_reason(case) is None),
    "nri_libmem": sum(
        1 for case in cases(LIBMEM) for step in case["sequence"] if libmem_reason(case["test"], step) is None
    ),
    "nri_e2e_topologies": len(cases(E2E)),
    "topology_hint_merge": 0,
    "topology_hint_compare": len(cases(COMPARE, "closest"))
    + sum(1 for case in cases(COMPARE, "average_distance") if case["nodes"])
    + len(cases(COMPARE, "split_distance_file")),
}
"""How many cases the tests above run, by file."""


def test_every_case_is_run_or_listed_with_its_reason() -> None:
    assert reasons() == DIFFERENT
    listed = Counter(name for name, _ in reasons().elements())
    assert {name: RUN[name] + listed[name] for name in FILES} == {name: data["count"] for name, data in FILES.items()}
