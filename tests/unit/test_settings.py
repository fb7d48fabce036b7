"""The configuration file: what is accepted, and how what is wrong is told."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.errors import ConfigError
from incus_numa.settings import (
    DaemonSettings,
    HostSettings,
    PlacementSettings,
    ServerSettings,
    Settings,
    check_settings,
    parse_settings,
    render_settings,
    settings_as_dict,
)


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text)
    return caught.value.problems


def test_nothing_gives_the_defaults() -> None:
    assert parse_settings("") == Settings()
    assert parse_settings("[server]\n[placement]\n") == Settings()


def test_every_key_can_be_set() -> None:
    settings = Settings(
        server=ServerSettings(socket="/run/x", timeout_s=1.5),
        host=HostSettings(sysfs="/a", procfs="/b", cgroup="/c"),
        placement=PlacementSettings(
            smt="pack", memory="none", reserved_cpus="0-1,8", load_weight=2.0, distance_weight=0.0
        ),
        daemon=DaemonSettings(resync_s=5.0, verify_s=(1.0,), write_timeout_s=3.0),
    )
    assert parse_settings(render_settings(settings)) == settings


def test_a_whole_number_is_a_number() -> None:
    assert parse_settings("[daemon]\nresync_s = 5\n").daemon.resync_s == 5.0


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[plaecment]\n", ("[plaecment]", "unknown table", "placement")),
        ("placement = 3\n", ("placement = 3", "expected a table")),
        ('[placement]\nsmtt = "pack"\n', ("placement.smtt", "unknown key", "smt")),
        ('[placement]\nsmt = "both"\n', ("placement.smt = 'both'", "spread", "pack")),
        ("[placement]\nsmt = 3\n", ("placement.smt = 3", "spread, pack")),
        ('[placement]\nload_weight = "1"\n', ("placement.load_weight = '1'", "float")),
        ("[placement]\nload_weight = true\n", ("placement.load_weight = True", "float")),
        ("[placement]\nload_weight = -1.0\n", ("placement.load_weight = -1.0", ">= 0")),
        ("[placement]\nload_weight = nan\n", ("placement.load_weight = nan", ">= 0")),
        ("[placement]\ndistance_weight = 1001\n", ("placement.distance_weight = 1001", "<= 1000")),
        ("[placement]\nreserved_cpus = 3\n", ("placement.reserved_cpus = 3", "str")),
        ('[placement]\nreserved_cpus = "3-1"\n', ("placement.reserved_cpus", "'3-1'", "0-3,8")),
        ("[daemon]\nresync_s = 0\n", ("daemon.resync_s = 0", ">= 0.1")),
        ("[daemon]\nresync_s = inf\n", ("daemon.resync_s = inf", "<= 86400")),
        ("[daemon]\nverify_s = 3\n", ("daemon.verify_s = 3", "array")),
        ("[daemon]\nverify_s = [0.5, 0.0]\n", ("daemon.verify_s = [0.5, 0.0]", ">= 0.1")),
        ('[server]\nsocket = "x"\n', ("server.socket = 'x'", "absolute path")),
        ('[host]\nsysfs = ""\n', ("host.sysfs = ''", "absolute path")),
    ],
)
def test_a_wrong_value_is_told_with_key_value_and_expectation(text: str, parts: tuple[str, ...]) -> None:
    (problem,) = problems(text)
    assert [part for part in parts if part not in problem] == []


@pytest.mark.parametrize(
    "text", ["[server", "= 3", "[a]\n[a]\n", 'x = "', "x = [1,", "\x00", "[[a]]\n[a]", "a.b", "]", "x = 1979-99-99"]
)
def test_what_is_not_toml_is_told_so(text: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(("not TOML", "["))


def test_all_problems_are_told_at_once() -> None:
    text = """
[server]
timeout_s = 0
[nowhere]
[placement]
smt = 1
reserved_cpus = "x"
colour = "red"
[host]
cgroup = "relative"
"""
    found = problems(text)
    for part in ("server.timeout_s", "nowhere", "placement.smt", "placement.reserved_cpus", "colour", "host.cgroup"):
        assert any(part in one for one in found), (part, found)
    assert len(found) == 6


def test_problems_of_a_value_can_be_asked_for() -> None:
    settings = Settings(placement=PlacementSettings(reserved_cpus="x"))
    assert len(check_settings(settings)) == 1
    assert check_settings(replace(settings, placement=PlacementSettings())) == ()


def test_the_rendered_file_explains_every_key() -> None:
    lines = render_settings(Settings()).splitlines()
    for table, keys in settings_as_dict(Settings()).items():
        assert f"[{table}]" in lines
        for key in keys:
            (place,) = [index for index, line in enumerate(lines) if line.startswith(f"{key} =")]
            assert lines[place - 1].startswith("# ")


@given(st.text(max_size=40))
def test_any_text_gives_settings_or_problems(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_settings(text), Settings)
