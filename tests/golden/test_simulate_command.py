"""What `simulate` prints; elapsed time is masked."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from incus_numa.topology.document import render_machine
from tests import builders
from tests.commands import run
from tests.golden.conftest import Golden

ROWS = ("web,0,600,1,1024", "db,60,,6,2048", "job,120,300,4,1024", "big,200,400,20,4096", "late,610,700,2,")
MASKS = {
    "table": (r"(?m) +(\d+\.\d\d|SECONDS)$", " MASKED"),
    "json": (r'("elapsed_s": )[0-9.e-]+', r"\1MASKED"),
    "yaml": (r"(elapsed_s: )[0-9.e-]+", r"\1MASKED"),
    "csv": (r"(?m),[0-9.e-]+$", ",MASKED"),
}


@pytest.mark.parametrize("output_format", ["table", "json", "yaml", "csv"])
def test_simulate(tmp_path: Path, output_format: str, golden: Golden) -> None:
    machine, trace, chart = tmp_path / "machine.json", tmp_path / "trace.csv", tmp_path / "chart.svg"
    machine.write_text(json.dumps(render_machine(builders.machine(nodes=4, cpus_per_node=4))))
    trace.write_text("\n".join(("id,arrival_s,departure_s,vcpus,memory_bytes", *ROWS)))
    result = run("simulate", "--machine", machine, "--trace", trace, "--chart", chart, "-f", output_format)
    assert (result.code, result.err) == (0, "")
    assert max(map(len, result.out.splitlines())) <= 80 or output_format == "csv"
    golden(
        f"simulate.{'txt' if output_format == 'table' else output_format}", re.sub(*MASKS[output_format], result.out)
    )
    golden("simulate.svg", chart.read_text())
