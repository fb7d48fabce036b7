"""The cases that the kernel, the kubelet, Nova, numactl and LXD test their own CPU sets and topologies with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.topology import sysfs

PEER_CASES = Path(__file__).parents[3] / "shared" / "data" / "peer_cases"

pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not PEER_CASES.is_dir(), reason="../shared/data/peer_cases is not there"),
]

Case = dict[str, Any]


def cases(name: str) -> list[Case]:
    path = PEER_CASES / f"{name}.json"
    found: list[Case] = json.loads(path.read_bytes())["cases"] if path.is_file() else []
    return found


def parse_cases(*dialects: str) -> list[Case]:
    return [case for case in cases("cpuset_parse") if case["dialect"].startswith(dialects)]


def text_of(case: Case) -> str:
    return f"{case['dialect']}:{case['input']!r}"


def has_empty_field(text: str) -> bool:
    return text != "" and not all(field.strip() for field in text.split(","))


@pytest.mark.parametrize("case", [c for c in parse_cases("kernel") if c["dialect"] == "kernel"], ids=text_of)
def test_kernel_lists(case: Case) -> None:
    """The kernel also refuses ids beyond its bitmap, which we have no size for: there the ids must be those."""
    if case.get("error") == "EINVAL":
        with pytest.raises(ValueError, match="bad cpuset"):
            CpuSet.parse(case["input"])
        return
    found = list(CpuSet.parse(case["input"]))
    if case.get("error") == "ERANGE":
        assert max(found) >= case["nbits"]
    else:
        assert found == case["expected"]


@pytest.mark.parametrize("case", parse_cases("kernel-cmdline"), ids=text_of)
def test_command_line_strides_are_refused(case: Case) -> None:
    """sysfs never prints `0-31:1/4`, `N` or `all`; half understood they would be wrong sets."""
    with pytest.raises(ValueError, match="bad cpuset"):
        CpuSet.parse(case["input"])


@pytest.mark.parametrize("case", parse_cases("kubelet", "nri", "incus"), ids=text_of)
def test_lists_of_other_agents(case: Case) -> None:
    """Where they are stricter than the kernel (empty fields, repeats, 64 nodes) we follow the kernel."""
    text, kind = case["input"], NodeSet if case["dialect"].startswith("nri") else CpuSet
    stricter = has_empty_field(text) or "multiple times" in case.get("error", "") or "too large" in case.get("note", "")
    if "error" in case and not stricter:
        with pytest.raises(ValueError, match=r"bad (cpuset|nodeset)"):
            kind.parse(text)
        return
    found = list(kind.parse(text))
    assert found == case.get("expected", found)
    assert found == sorted(set(found))


@pytest.mark.parametrize("case", [c for c in parse_cases("nova") if "^" in c["input"]], ids=text_of)
def test_novas_exclusions_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="bad cpuset"):
        CpuSet.parse(case["input"])


@pytest.mark.parametrize("case", cases("cpuset_format"), ids=lambda case: str(case["expected"]) or "empty")
def test_formatting(case: Case) -> None:
    """util-linux prints strides and pairs as `0,1`, Nova can print no ranges: those must be the same set."""
    text = str(CpuSet(case["cpus"]))
    expected = case["expected"]
    if case["source"].startswith("util-linux") or not case.get("options", {}).get("allow_ranges", True):
        assert list(CpuSet.parse(text)) == case["cpus"]
        assert len(text) <= len(expected) or ":" in expected
    else:
        assert text == expected


@pytest.mark.parametrize("case", [c for c in cases("cpuset_format") if "hex_mask" in c], ids=lambda c: c["input"])
def test_masks_of_util_linux(case: Case) -> None:
    assert list(CpuSet.parse_mask(case["hex_mask"])) == case["cpus"]


@pytest.mark.parametrize("case", cases("cpuset_ops"), ids=lambda case: case["op"])
def test_operations(case: Case) -> None:
    one = CpuSet(case["s1"])
    other = CpuSet(case.get("s2", ()))
    match case["op"]:
        case "union":
            for each in case["others"]:
                one |= CpuSet(each)
            assert list(one) == case["expected"]
        case "intersection":
            assert list(one & other) == case["expected"]
        case "difference":
            assert list(one - other) == case["expected"]
        case "is_subset":
            assert (one <= other) == (set(case["s1"]) <= set(case["s2"]))
        case "equal":
            assert (one == other) == (set(case["s1"]) == set(case["s2"]))
        case unknown:
            pytest.fail(f"unknown operation {unknown}")


def test_masks_of_numactl() -> None:
    wrong = [case for case in cases("cpumask_bitmap") if list(CpuSet.parse_mask(case["map"])) != [case["bit"]]]
    assert wrong == []
    assert len(cases("cpumask_bitmap")) == 300


@pytest.mark.parametrize("case", cases("lxd_resources_cpu"), ids=lambda case: case["name"])
def test_tiny_trees_of_lxd(case: Case, tmp_path: Path) -> None:
    """Cores are not judged: these trees have core ids only, which we do not believe. Names and L1/L2 are not ours."""
    root = tmp_path / "sys/devices/system/cpu"
    files: dict[str, str] = {
        f"cpu{cpu}/topology/physical_package_id": f"{ids[0]}\n" for cpu, ids in case["cpus"].items()
    }
    for name, text in (files | case.get("files", {})).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    machine = sysfs.read_machine(tmp_path / "sys")
    expect = case["expect"]
    online = {int(cpu) for cpu, is_online in expect.get("online", {}).items() if is_online}
    assert set(machine.online) == (online or {int(cpu) for cpu in case["cpus"]})
    assert list(machine.isolated) == expect.get("isolated", [])
    assert len({cpu.socket for cpu in machine.cpus}) == expect.get("sockets", 1)
    assert {str(cpu.id): cpu.node for cpu in machine.cpus} == (
        expect.get("node_of_core") or {str(cpu.id): 0 for cpu in machine.cpus}
    )
