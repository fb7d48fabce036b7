"""Every quirk of a sysfs tree that was met on a machine, one by one, on the smallest tree that shows it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from incus_numa.cpuset import CpuSet
from incus_numa.model.machine import CoreKind, Cpu, Machine, Node
from incus_numa.topology import sysfs
from incus_numa.topology.files import KernelFiles
from incus_numa.topology.kinds import read_kinds


class Tree:
    """Two nodes of one SMT2 core each, siblings 0,2 and 1,3; tests change what they are about."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("cpu/online", "0-3")
        self.write("cpu/isolated", "")
        self.write("node/online", "0-1")
        for cpu in range(4):
            self.write(f"cpu/cpu{cpu}/topology/thread_siblings", "5" if cpu % 2 == 0 else "a")
            self.write(f"cpu/cpu{cpu}/topology/physical_package_id", str(cpu % 2))
            self.write(f"cpu/cpu{cpu}/topology/core_id", "0")
            self.write(f"cpu/cpu{cpu}/cache/index3/level", "3")
            self.write(f"cpu/cpu{cpu}/cache/index3/shared_cpu_map", "5" if cpu % 2 == 0 else "a")
        for node in range(2):
            self.node(node, cpumap="5" if node == 0 else "a", distance="10 21" if node == 0 else "21 10")

    def node(self, node: int, *, cpumap: str, distance: str) -> None:
        self.write(f"node/node{node}/cpumap", cpumap)
        self.write(f"node/node{node}/distance", distance)
        lines = (f"Node {node} MemTotal:       2048 kB", f"Node {node} MemFree:        1024 kB", f"Node {node} X: 1")
        self.write(f"node/node{node}/meminfo", "\n".join(lines))

    def write(self, name: str, text: str) -> None:
        path = self.root / "sys/devices/system" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def remove(self, name: str) -> None:
        path = self.root / "sys/devices/system" / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    def read(self) -> Machine:
        return sysfs.read_machine(self.root / "sys", self.root / "proc")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def cpus_of(machine: Machine) -> dict[int, str]:
    return {node.id: str(node.cpus) for node in machine.nodes}


def cores_of(machine: Machine) -> list[int]:
    return [cpu.core for cpu in machine.cpus]


def l3_of(machine: Machine) -> list[int | None]:
    return [cpu.l3 for cpu in machine.cpus]


def test_a_plain_machine_is_read_whole(tree: Tree) -> None:
    assert tree.read() == Machine(
        nodes=(
            Node(id=0, cpus=CpuSet((0, 2)), memory_bytes=1 << 21, free_bytes=1 << 20, distances={0: 10, 1: 21}),
            Node(id=1, cpus=CpuSet((1, 3)), memory_bytes=1 << 21, free_bytes=1 << 20, distances={0: 21, 1: 10}),
        ),
        cpus=tuple(Cpu(id=cpu, node=cpu % 2, socket=cpu % 2, core=cpu % 2, l3=cpu % 2) for cpu in range(4)),
        online=CpuSet(range(4)),
    )


def test_name_is_what_the_caller_says(tree: Tree) -> None:
    assert sysfs.read_machine(tree.root / "sys", name="epyc").name == "epyc"


def test_isolated_cpus_are_read(tree: Tree) -> None:
    tree.write("cpu/isolated", "1,3")
    assert tree.read().isolated == CpuSet((1, 3))


def test_missing_isolated_file_is_a_warning(tree: Tree) -> None:
    tree.remove("cpu/isolated")
    machine = tree.read()
    assert machine.isolated == CpuSet()
    assert machine.warnings == ("/sys/devices/system/cpu/isolated is not readable: no CPU is taken as isolated",)


def test_nohz_full_of_null_is_not_our_business(tree: Tree) -> None:
    tree.write("cpu/nohz_full", "(null)")
    assert tree.read().warnings == ()


def test_offline_cpu_is_dropped_from_node_core_and_l3(tree: Tree) -> None:
    tree.write("cpu/online", "1-3")
    machine = tree.read()
    assert (cpus_of(machine), cores_of(machine), l3_of(machine)) == ({0: "2", 1: "1,3"}, [1, 2, 1], [1, 2, 1])
    assert machine.warnings == ()


@pytest.mark.parametrize(("present", "offline"), [("0-5", "0,4-5"), ("1-3", ""), ("0-x", ""), (None, "")])
def test_cpus_that_are_plugged_in_and_not_online_are_offline(tree: Tree, present: str | None, offline: str) -> None:
    tree.write("cpu/online", "1-3")
    tree.write("cpu/offline", "0,4-127")
    if present is not None:
        tree.write("cpu/present", present)
    assert tree.read().offline == CpuSet.parse(offline)


def test_without_the_online_list_the_cpu_directories_tell(tree: Tree) -> None:
    tree.remove("cpu/online")
    tree.write("cpu/cpu2/online", "0")
    tree.write("cpu/cpu3/online", "1")
    tree.write("cpu/cpufreq/policy", "")
    machine = tree.read()
    assert machine.online == CpuSet((0, 1, 3))
    assert machine.warnings == (
        "/sys/devices/system/cpu/online gives no CPU list such as 0-3,8: the CPUs' directories are believed",
    )


def test_malformed_online_list_falls_back_to_the_directories(tree: Tree) -> None:
    tree.write("cpu/online", "0-x")
    machine = tree.read()
    assert machine.online == CpuSet(range(4))
    assert machine.warnings[0] == "/sys/devices/system/cpu/online is malformed: expected a CPU list such as 0-3,8"


def test_node_list_naming_absent_cpus_is_cut_to_online_ones(tree: Tree) -> None:
    tree.remove("node/node1/cpumap")
    tree.write("node/node1/cpulist", "1,3,8-140")
    assert cpus_of(tree.read()) == {0: "0,2", 1: "1,3"}


def test_cpumap_beats_a_contradicting_cpulist(tree: Tree) -> None:
    tree.write("node/node0/cpulist", "0-1")
    machine = tree.read()
    assert cpus_of(machine) == {0: "0,2", 1: "1,3"}
    assert machine.warnings == ("/sys/devices/system/node/node0/cpulist contradicts cpumap, which is believed",)


def test_cpulist_that_differs_in_offline_cpus_only_is_no_contradiction(tree: Tree) -> None:
    tree.write("node/node0/cpulist", "0,2,4-87")
    assert tree.read().warnings == ()


def test_malformed_cpumap_falls_back_to_cpulist(tree: Tree) -> None:
    tree.write("node/node0/cpumap", "zz")
    tree.write("node/node0/cpulist", "0,2")
    machine = tree.read()
    assert cpus_of(machine)[0] == "0,2"
    assert machine.warnings == ("/sys/devices/system/node/node0/cpumap is malformed: expected a CPU hexadecimal mask",)


def test_node_without_cpu_files_is_known_by_the_links_of_its_cpus(tree: Tree) -> None:
    tree.remove("node/node1/cpumap")
    tree.write("cpu/cpu3/node1/numastat", "")
    machine = tree.read()
    assert cpus_of(machine) == {0: "0,2", 1: "3"}
    assert machine.warnings == (
        "/sys/devices/system/node/node1/cpumap and cpulist are missing: expected the node's CPUs,"
        " so only what the CPUs' own directories say is known",
        "CPU 1 belongs to no node",
    )


def test_tree_without_node_directory_knows_nodes_by_the_links_of_its_cpus(tree: Tree) -> None:
    tree.remove("node")
    for cpu in range(4):
        tree.write(f"cpu/cpu{cpu}/node{cpu // 2}/numastat", "")
    assert cpus_of(tree.read()) == {0: "0-1", 1: "2-3"}


def test_node_without_cpus_has_memory_only(tree: Tree) -> None:
    tree.write("node/online", "0-2")
    tree.node(0, cpumap="5", distance="10 21 31")
    tree.node(1, cpumap="a", distance="21 10 31")
    tree.node(2, cpumap="0", distance="31 31 10")
    machine = tree.read()
    assert machine.nodes[2] == Node(
        id=2, cpus=CpuSet(), memory_bytes=1 << 21, free_bytes=1 << 20, distances={0: 31, 1: 31, 2: 10}
    )
    assert machine.warnings == ()


def test_node_without_memory_has_zero_not_unknown(tree: Tree) -> None:
    tree.write("node/node1/meminfo", "Node 1 MemTotal:              0 kB\nNode 1 MemFree:               0 kB")
    machine = tree.read()
    assert (machine.nodes[1].memory_bytes, machine.nodes[1].free_bytes) == (0, 0)
    assert machine.warnings == ()


@pytest.mark.parametrize("text", [None, "", "Node 1 MemTotal: many kB", "Node 1 MemTotal: 12 MB", "\udcff"])
def test_unreadable_meminfo_is_unknown_memory(tree: Tree, text: str | None) -> None:
    tree.remove("node/node1/meminfo")
    if text is not None:
        path = tree.root / "sys/devices/system/node/node1/meminfo"
        path.write_bytes(text.encode(errors="surrogateescape"))
    machine = tree.read()
    assert (machine.nodes[1].memory_bytes, machine.nodes[1].free_bytes) == (None, None)
    assert machine.warnings == (
        "/sys/devices/system/node/node1/meminfo is missing or has no MemTotal line: the node's memory is unknown",
    )


def test_sparse_node_ids_take_distances_by_position(tree: Tree) -> None:
    tree.remove("node")
    tree.write("node/online", "0,252")
    tree.write("node/has_cpu", "0,252")
    tree.node(0, cpumap="5", distance="10 80")
    tree.node(252, cpumap="a", distance="80 10")
    machine = tree.read()
    assert [dict(node.distances) for node in machine.nodes] == [{0: 10, 252: 80}, {0: 80, 252: 10}]
    assert cpus_of(machine) == {0: "0,2", 252: "1,3"}


@pytest.mark.parametrize("row", ["10", "21 10 30", "21 x", "21 0", "21 -10", ""])
def test_distance_row_that_does_not_fit_is_unknown(tree: Tree, row: str) -> None:
    tree.write("node/node1/distance", row)
    machine = tree.read()
    assert [dict(node.distances) for node in machine.nodes] == [{0: 10, 1: 21}, {}]
    assert machine.warnings == (
        "/sys/devices/system/node/node1/distance is missing or does not fit: expected one number for each of"
        " 2 nodes, so the distances are unknown",
    )


def test_the_same_warning_about_many_nodes_is_one_sentence(tree: Tree) -> None:
    tree.remove("node/node0/distance")
    tree.remove("node/node1/distance")
    assert tree.read().warnings == (
        "/sys/devices/system/node/node[0-1]/distance is missing or does not fit: expected one number for each of"
        " 2 nodes, so the distances are unknown",
    )


def test_without_the_node_list_the_directories_are_the_nodes(tree: Tree) -> None:
    tree.remove("node/online")
    machine = tree.read()
    assert cpus_of(machine) == {0: "0,2", 1: "1,3"}
    assert machine.warnings == ()


def test_listed_node_without_directory_is_a_warning_and_makes_distances_unknown(tree: Tree) -> None:
    tree.write("node/online", "0-2")
    for node in range(2):
        tree.node(node, cpumap="5" if node == 0 else "a", distance="10 20 30")
    machine = tree.read()
    assert [dict(node.distances) for node in machine.nodes] == [{}, {}]
    assert "/sys/devices/system/node/online says 0-2, but there are directories for 0-1" in machine.warnings


def test_machine_without_node_directory_is_one_node(tree: Tree) -> None:
    tree.remove("node")
    (tree.root / "proc").mkdir()
    (tree.root / "proc/meminfo").write_text("MemTotal:        8192 kB\nMemFree:         4096 kB\n")
    machine = tree.read()
    assert machine.nodes == (Node(id=0, cpus=CpuSet(range(4)), memory_bytes=8 << 20, free_bytes=4 << 20, distances={}),)
    assert {cpu.node for cpu in machine.cpus} == {0}
    assert machine.warnings == (
        "no NUMA information: /sys/devices/system/node has no nodes, so all CPUs are taken as node 0",
    )


def test_machine_without_node_directory_and_meminfo_has_unknown_memory(tree: Tree) -> None:
    tree.remove("node")
    machine = tree.read()
    assert machine.nodes == (Node(id=0, cpus=CpuSet(range(4))),)
    assert machine.warnings[1] == "/proc/meminfo is missing or has no MemTotal line: the memory is unknown"


def test_nothing_at_all_is_an_empty_machine_with_a_warning(tmp_path: Path) -> None:
    machine = sysfs.read_machine(tmp_path / "nowhere")
    assert (machine.nodes, machine.cpus, machine.online) == ((), (), CpuSet())
    assert machine.warnings[0] == (
        "/sys/devices/system/cpu has no CPUs: expected a sysfs directory, so nothing is known"
    )


def test_cpu_in_no_node_has_none(tree: Tree) -> None:
    tree.write("node/node1/cpumap", "8")
    machine = tree.read()
    assert [cpu.node for cpu in machine.cpus] == [0, None, 0, 1]
    assert machine.warnings == ("CPU 1 belongs to no node",)


def test_cpu_in_two_nodes_is_counted_in_the_lowest(tree: Tree) -> None:
    tree.write("node/node1/cpumap", "e")
    machine = tree.read()
    assert [cpu.node for cpu in machine.cpus] == [0, 1, 0, 1]
    assert machine.warnings == ("CPU 2 belongs to several nodes: it is counted in the lowest",)


def test_cores_are_told_by_siblings_where_core_ids_repeat(tree: Tree) -> None:
    assert cores_of(tree.read()) == [0, 1, 0, 1]


def test_newer_core_cpus_file_is_enough(tree: Tree) -> None:
    for cpu in range(4):
        tree.remove(f"cpu/cpu{cpu}/topology/thread_siblings")
        tree.write(f"cpu/cpu{cpu}/topology/core_cpus_list", "0-1" if cpu < 2 else "2-3")
    assert cores_of(tree.read()) == [0, 0, 2, 2]


def test_sibling_mask_beats_the_list(tree: Tree) -> None:
    tree.write("cpu/cpu0/topology/thread_siblings_list", "0-3")
    assert cores_of(tree.read()) == [0, 1, 0, 1]


def test_without_siblings_every_cpu_is_its_own_core_with_a_warning(tree: Tree) -> None:
    for cpu in range(4):
        tree.remove(f"cpu/cpu{cpu}/topology/thread_siblings")
    machine = tree.read()
    assert cores_of(machine) == [0, 1, 2, 3]
    assert machine.warnings == (
        "/sys/devices/system/cpu/cpu[0-3]/topology/core_cpus and thread_siblings are missing:"
        " expected a CPU mask, so each of these CPUs is taken as its own core",
    )


def test_sibling_that_claims_a_cpu_of_another_core_is_not_believed(tree: Tree) -> None:
    tree.write("cpu/cpu1/topology/thread_siblings", "b")
    machine = tree.read()
    assert cores_of(machine) == [0, 1, 0, 1]
    assert machine.warnings == ("thread_siblings of CPU 1 contradicts that of a lower CPU, which is believed",)


def test_package_id_of_minus_one_is_an_unknown_socket(tree: Tree) -> None:
    for cpu in range(4):
        tree.write(f"cpu/cpu{cpu}/topology/physical_package_id", "-1")
    machine = tree.read()
    assert {cpu.socket for cpu in machine.cpus} == {None}
    assert machine.warnings == ()


def test_missing_package_id_is_an_unknown_socket_and_a_warning(tree: Tree) -> None:
    tree.remove("cpu/cpu1/topology/physical_package_id")
    machine = tree.read()
    assert [cpu.socket for cpu in machine.cpus] == [0, None, 0, None]
    assert machine.warnings == (
        "/sys/devices/system/cpu/cpu1/topology/physical_package_id is missing or malformed:"
        " expected a number, so the socket is unknown",
    )


def test_l3_may_span_nodes(tree: Tree) -> None:
    for cpu in range(4):
        tree.write(f"cpu/cpu{cpu}/cache/index3/shared_cpu_map", "00000000,0000000f")
    assert l3_of(tree.read()) == [0, 0, 0, 0]


def test_l3_is_found_by_level_not_by_index(tree: Tree) -> None:
    for cpu in range(4):
        tree.write(f"cpu/cpu{cpu}/cache/index3/level", "4")
        tree.write(f"cpu/cpu{cpu}/cache/index7/level", "3")
        tree.write(f"cpu/cpu{cpu}/cache/index7/shared_cpu_list", "0-1" if cpu < 2 else "2-3")
    assert l3_of(tree.read()) == [0, 0, 2, 2]


def test_no_l3_is_unknown_without_a_warning(tree: Tree) -> None:
    for cpu in range(4):
        tree.remove(f"cpu/cpu{cpu}/cache")
    machine = tree.read()
    assert l3_of(machine) == [None] * 4
    assert machine.warnings == ()


def test_l3_of_some_cpus_only(tree: Tree) -> None:
    tree.remove("cpu/cpu1/cache")
    tree.remove("cpu/cpu3/cache")
    assert l3_of(tree.read()) == [0, None, 0, None]


def test_empty_cache_mask_means_private(tree: Tree) -> None:
    for cpu in range(4):
        tree.write(f"cpu/cpu{cpu}/cache/index3/shared_cpu_map", "0")
    assert l3_of(tree.read()) == [0, 1, 2, 3]


def test_l3_without_sharing_files_is_unknown_and_a_warning(tree: Tree) -> None:
    tree.remove("cpu/cpu1/cache/index3/shared_cpu_map")
    machine = tree.read()
    assert l3_of(machine) == [0, None, 0, None]
    assert machine.warnings == (
        "/sys/devices/system/cpu/cpu1/cache/index3/shared_cpu_map is missing or malformed:"
        " expected a CPU mask, so who shares the L3 is unknown",
    )


def test_ids_above_64_and_in_second_words(tree: Tree) -> None:
    tree.write("cpu/online", "0,2,64,4095")
    tree.write("node/node1/cpumap", "80000000," + ",".join(["00000000"] * 124) + ",00000001,00000000,00000000")
    tree.write("cpu/cpu64/topology/thread_siblings_list", "64,4095")
    tree.write("cpu/cpu64/topology/physical_package_id", "1")
    machine = tree.read()
    assert cpus_of(machine) == {0: "0,2", 1: "64,4095"}
    assert cores_of(machine) == [0, 0, 64, 64]


def test_files_that_are_directories_do_not_crash(tree: Tree) -> None:
    for name in ("cpu/online", "node/online", "node/node0/meminfo", "cpu/cpu0/topology/thread_siblings"):
        tree.remove(name)
        tree.write(f"{name}/x", "")
    machine = tree.read()
    assert machine.online == CpuSet(range(4))
    assert machine.nodes[0].memory_bytes is None


def kinds_of(tree: Tree, online: str = "0-3") -> tuple[str, str, tuple[str, ...]]:
    """The CPUs of performance and of efficiency cores, and the warnings."""
    files = KernelFiles(tree.root / "sys", "/sys")
    kinds = read_kinds(files, CpuSet.parse(online))
    performance, efficiency = (CpuSet(cpu for cpu, one in kinds.items() if one is kind) for kind in CoreKind)
    return str(performance), str(efficiency), files.notes.sentences()


def write_capacities(tree: Tree, *capacities: str) -> None:
    for cpu, capacity in enumerate(capacities):
        tree.write(f"cpu/cpu{cpu}/cpu_capacity", capacity)


def test_a_machine_that_says_nothing_of_kinds_has_none(tree: Tree) -> None:
    assert kinds_of(tree) == ("", "", ())


def test_performance_counters_tell_the_kinds_of_a_hybrid_machine(tree: Tree) -> None:
    tree.write("../cpu_core/cpus", "0,2")
    tree.write("../cpu_atom/cpus", "1,3")
    assert kinds_of(tree) == ("0,2", "1,3", ())


def test_low_power_cores_are_efficiency_cores(tree: Tree) -> None:
    tree.write("../cpu_core/cpus", "0-1")
    tree.write("../cpu_atom/cpus", "2")
    tree.write("../cpu_lowpower/cpus", "3")
    assert kinds_of(tree) == ("0-1", "2-3", ())


@pytest.mark.parametrize("online", ["0,2", "1,3"])
def test_a_hybrid_machine_with_one_kind_online_has_none(tree: Tree, online: str) -> None:
    tree.write("../cpu_core/cpus", "0,2")
    tree.write("../cpu_atom/cpus", "1,3")
    assert kinds_of(tree, online) == ("", "", ())


@pytest.mark.parametrize("missing", ["cpu_core", "cpu_atom"])
def test_one_kind_of_counters_alone_tells_nothing(tree: Tree, missing: str) -> None:
    tree.write("../cpu_core/cpus", "0,2")
    tree.write("../cpu_atom/cpus", "1,3")
    tree.remove(f"../{missing}")
    assert kinds_of(tree) == ("", "", ())


def test_malformed_counter_list_is_no_kinds_and_a_warning(tree: Tree) -> None:
    tree.write("../cpu_core/cpus", "0-x")
    tree.write("../cpu_atom/cpus", "1,3")
    warning = "/sys/devices/cpu_core/cpus is malformed: expected a CPU list such as 0-3,8"
    assert kinds_of(tree) == ("", "", (warning,))


def test_counter_lists_that_overlap_are_not_believed(tree: Tree) -> None:
    tree.write("../cpu_core/cpus", "0-2")
    tree.write("../cpu_atom/cpus", "2-3")
    warning = "/sys/devices/cpu_core and cpu_atom both list CPUs 2: no CPU's kind is known"
    assert kinds_of(tree) == ("", "", (warning,))


def test_cpu_that_no_counters_list_has_no_kind(tree: Tree) -> None:
    tree.write("../cpu_core/cpus", "0")
    tree.write("../cpu_atom/cpus", "3")
    warning = "/sys/devices/cpu_core and cpu_atom do not list CPU [1-2]: its kind is unknown"
    assert kinds_of(tree) == ("0", "3", (warning,))


def test_counters_are_believed_before_capacities(tree: Tree) -> None:
    tree.write("../cpu_core/cpus", "0")
    tree.write("../cpu_atom/cpus", "1-3")
    write_capacities(tree, "1024", "1024", "512", "512")
    assert kinds_of(tree) == ("0", "1-3", ())


@pytest.mark.parametrize(
    ("capacities", "performance", "efficiency"),
    [
        (("1024", "1024", "446", "446"), "0-1", "2-3"),
        (("1024", "855", "280", "280"), "0-1", "2-3"),
        (("1024", "500", "450", "446"), "0", "1-3"),
        (("1024", "1000", "530", "512"), "0-1", "2-3"),
        (("1024", "512", "256", "256"), "0", "1-3"),
        (("1024", "819", "1024", "819"), "0,2", "1,3"),
        (("1024", "1024", "1024", "1024"), "", ""),
        (("1024", "1008", "1008", "1024"), "", ""),
        (("1024", "820", "820", "1024"), "", ""),
    ],
)
def test_capacities_above_the_widest_gap_are_performance_cores(
    tree: Tree, capacities: tuple[str, ...], performance: str, efficiency: str
) -> None:
    write_capacities(tree, *capacities)
    assert kinds_of(tree) == (performance, efficiency, ())


@pytest.mark.parametrize("wrong", ["", "many", "0", "-1"])
def test_wrong_capacity_is_no_kinds_and_a_warning(tree: Tree, wrong: str) -> None:
    write_capacities(tree, "1024", "1024", wrong, "446")
    warning = (
        "/sys/devices/system/cpu/cpu2/cpu_capacity is missing or malformed:"
        " expected a positive number, so no CPU's kind is known"
    )
    assert kinds_of(tree) == ("", "", (warning,))


def test_frequencies_tell_no_kinds(tree: Tree) -> None:
    for cpu in range(4):
        tree.write(f"cpu/cpu{cpu}/cpufreq/base_frequency", "2700000" if cpu < 2 else "2100000")
        tree.write(f"cpu/cpu{cpu}/cpufreq/cpuinfo_max_freq", "5200000" if cpu < 2 else "5000000")
    assert kinds_of(tree) == ("", "", ())


def test_kinds_of_no_cpus_are_none(tree: Tree) -> None:
    assert kinds_of(tree, "") == ("", "", ())


def test_huge_pages_are_bytes_by_page_size(tree: Tree) -> None:
    pages = "node/node1/hugepages/hugepages-{}kB/nr_hugepages"
    for size, count in {"64": "2", "2048": "0", "1048576": "-1", "32768": "x"}.items():
        tree.write(pages.format(size), count)
    assert [node.hugepages for node in tree.read().nodes] == [{}, {1 << 16: 1 << 17}]
    assert tree.read().warnings == ()


def test_more_huge_pages_than_memory_are_not_believed(tree: Tree) -> None:
    tree.write("node/node0/hugepages/hugepages-2048kB/nr_hugepages", "1")
    tree.write("node/node1/hugepages/hugepages-2048kB/nr_hugepages", "2")
    read = tree.read()
    assert [node.hugepages for node in read.nodes] == [{2 << 20: 2 << 20}, {}]
    assert read.warnings == (
        "/sys/devices/system/node/node1/hugepages tells of more than the node's memory: expected less, so it is left"
        " out",
    )
