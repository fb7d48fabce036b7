"""docs/api.md names every route, event and setting of the API, and the unit lets the daemon serve it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from incus_numa.settings import ApiSettings, DaemonSettings
from incus_numa.web.routes import ROUTES
from incus_numa.web.telling import KINDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "api.md").read_text()
UNIT = (ROOT / "systemd" / "incus-numa.service").read_text().splitlines()


def test_every_route_is_in_the_table() -> None:
    told = {(method, path) for method, path in re.findall(r"^\| `([A-Z]+) (/[^`\[ ]*)", TEXT, re.MULTILINE)}
    assert told == {(one.method, one.path) for one in ROUTES} | {("GET", "/")}


def test_every_event_is_named() -> None:
    assert {kind for kind in KINDS.values() if f"`{kind}`" not in TEXT} == set()


@pytest.mark.parametrize("key", [one.name for one in fields(ApiSettings)])
def test_every_setting_is_told_with_its_default(key: str) -> None:
    line = next(line for line in TEXT.splitlines() if line.startswith("| `") and f"`{key}`" in line.split(" | ")[0])
    default = getattr(ApiSettings(), key)
    told = {True: "`true`", (): "`[]`", "": '`""`'}.get(default, f"`{default}`")
    assert line.split(" | ")[1] == told


def test_the_folder_of_the_socket_can_be_entered_by_its_group() -> None:
    assert "RuntimeDirectoryMode=0755" in UNIT
    assert Path(ApiSettings().socket).parent == Path(DaemonSettings().run_dir)


def test_the_unit_allows_loopback_and_nothing_else() -> None:
    assert [line for line in UNIT if line.startswith(("RestrictAddressFamilies=", "IPAddress"))] == [
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        "IPAddressDeny=any",
        "IPAddressAllow=localhost",
    ]
