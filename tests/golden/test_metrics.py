"""What /metrics shows of a service to which something of everything has happened."""

from __future__ import annotations

import re

from tests.exported import busy
from tests.golden.conftest import Golden


def test_metrics(golden: Golden) -> None:
    metrics, gauges = busy()
    text, _ = metrics.render(gauges, 1, openmetrics=False)
    golden("metrics.txt", re.sub(r"(?m)^(incus_numa_build_info)\{.*", r"\1{MASKED} 1.0", text.decode()))
