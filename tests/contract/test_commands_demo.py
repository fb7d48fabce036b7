"""`demo --keep`: what it prints works, and there is load, memory that follows, and a dashboard to look at."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def invitation() -> Iterator[str]:
    """What a demo that is left running prints, while it runs."""
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONUNBUFFERED": "1"}
    program = [sys.executable, "-m", "incus_numa", "demo", "--keep"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ) as demo:
        assert demo.stdout is not None
        lines = []
        for line in demo.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        try:
            yield "".join(lines)
        finally:
            demo.send_signal(signal.SIGINT)
            demo.communicate(timeout=PATIENCE_S)


def commands(invitation: str) -> dict[str, str]:
    """Its command lines by their first word after the program."""
    found = re.findall(r"^  (\S+ -m incus_numa (\S+).*)$", invitation, re.MULTILINE)
    return {word: line for line, word in found}


def run(line: str, *more: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [*shlex.split(line), *more]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S, env=environ)


def listed(line: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(line, "-f", "json").stdout)
    return found


def test_the_commands_that_it_prints_work(invitation: str) -> None:
    found = commands(invitation)
    assert set(found) == {"list", "top", "explain", "check", "rebalance", "policy"}
    codes = {word: run(line).returncode for word, line in found.items() if word != "policy"}
    if os.geteuid():
        del codes["check"]
    assert set(codes.values()) == {0}


def test_there_is_load_and_memory_goes_where_its_threads_run(invitation: str) -> None:
    line = commands(invitation)["list"]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        rows = {one["name"]: one for one in listed(line)["instances"]}
        if rows["db1"]["locality"] > 0.99 and (rows["db1"]["load_cpus"] or 0) > 10:
            break
        assert time.monotonic() < deadline, rows["db1"]
        time.sleep(0.5)
    assert {name: rows[name]["load_cpus"] > 1 for name in ("analytics", "web1", "cache1")} == dict.fromkeys(
        ("analytics", "web1", "cache1"), True
    )


def test_moves_pay_and_the_dashboard_is_served(invitation: str) -> None:
    rebalance = run(commands(invitation)["rebalance"], "-f", "json")
    status = commands(invitation)["list"].replace(" list ", " top ") + " --once -f json"
    moves = json.loads(run(status).stdout)["moves"]
    assert moves or any(row["gain"] for row in json.loads(rebalance.stdout))
    (url,) = re.findall(r"http://127\.0\.0\.1:\d+/", invitation)
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as page:
        assert page.status == 200
        assert b"<title>incus-numa" in page.read()
