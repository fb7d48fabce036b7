"""The configuration file: what is accepted, and how what is wrong is told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import Field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.errors import ConfigError
from incus_numa.settings import (
    DaemonSettings,
    HostSettings,
    MemorySettings,
    PlacementSettings,
    Reservation,
    ServerSettings,
    Settings,
    check_settings,
    list_unused,
    parse_settings,
    render_settings,
    salvage_settings,
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
        memory=MemorySettings(
            policy="static", reserved_total=3000, reserved=(Reservation(0, 1000), Reservation(7, 2000))
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
        ('[placement]\nload_weight = "1"\n', ("placement.load_weight = '1'", "expected a number from 0 to 1000")),
        ("[placement]\nload_weight = true\n", ("placement.load_weight = True", "expected a number from 0 to 1000")),
        ("[placement]\nload_weight = -1.0\n", ("placement.load_weight = -1.0", "expected 0 to 1000")),
        ("[placement]\nload_weight = nan\n", ("placement.load_weight = nan", "expected 0 to 1000")),
        ("[placement]\ndistance_weight = 1001\n", ("placement.distance_weight = 1001", "expected 0 to 1000")),
        ("[placement]\nreserved_cpus = 3\n", ("placement.reserved_cpus = 3", "expected a text")),
        ('[placement]\nreserved_cpus = "3-1"\n', ("placement.reserved_cpus", "'3-1'", "0-3,8")),
        ("[daemon]\nresync_s = 0\n", ("daemon.resync_s = 0", "expected 0.1 to 86400")),
        ("[daemon]\nresync_s = inf\n", ("daemon.resync_s = inf", "expected 0.1 to 86400")),
        ("[daemon]\nverify_s = 3\n", ("daemon.verify_s = 3", "array")),
        ("[daemon]\nverify_s = [0.5, 0.0]\n", ("daemon.verify_s = [0.5, 0.0]", ">= 0.1")),
        ("[rebalance]\nmax_moves = 1.5\n", ("rebalance.max_moves = 1.5", "expected a whole number from 1 to 10000")),
        ("[rebalance]\nmax_moves = 0\n", ("rebalance.max_moves = 0", "expected 1 to 10000")),
        ("[rebalance]\nenabled = 1\n", ("rebalance.enabled = 1", "expected true or false")),
        ('[server]\nsocket = "x"\n', ("server.socket = 'x'", "absolute path")),
        ("[memory]\nreserved_total = -1\n", ("memory.reserved_total = -1", "0 or more")),
        ("[memory]\nreserved_total = nan\n", ("memory.reserved_total = nan", "8GiB")),
        ("[memory]\nreserved_total = true\n", ("memory.reserved_total = True", "8GiB")),
        ("[memory]\nreserved_total = 9223372036854775808\n", ("memory.reserved_total = 922", "less than 8 EiB")),
        ('[memory]\nreserved_total = "8 pounds"\n', ("memory.reserved_total = '8 pounds'", "8GiB")),
        ('[memory]\nreserved_total = "0.5"\n', ("memory.reserved_total = '0.5'", "whole number of bytes")),
        ('[memory]\nreserved = "0=1G"\n', ("memory.reserved = '0=1G'", '{"0" = "2GiB"}')),
        ("[memory]\nreserved = {x = 1}\n", ("memory.reserved: bad node id 'x'", "0 to 65535")),
        ("[memory]\nreserved = {65536 = 1}\n", ("memory.reserved: bad node id '65536'", "0 to 65535")),
        ("[memory]\nreserved = {00 = 1}\n", ("memory.reserved: bad node id '00'", "0 to 65535")),
        ("[memory]\nreserved = {-1 = 1}\n", ("memory.reserved: bad node id '-1'", "0 to 65535")),
        ('[memory]\nreserved = {"٣" = 1}\n', ("memory.reserved: bad node id '٣'", "0 to 65535")),
        ("[memory]\nreserved = {3 = -5}\n", ("memory.reserved.3 = -5", "0 or more")),
        ('[memory]\nreserved = {3 = "99EiB"}\n', ("memory.reserved.3 = '99EiB'", "less than 8 EiB")),
        ('[memory]\npolicy = "Static"\n', ("memory.policy = 'Static'", "none, static")),
        ("[memory]\nreserve = {}\n", ("memory.reserve", "unknown key", "reserved_total")),
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


def test_keys_that_a_running_daemon_does_not_take_over_say_so() -> None:
    assert _fixed(lambda one: one.metadata["meaning"].endswith(" (restart)")) == _fixed(_needs_restart) != []


def test_the_documentation_names_what_needs_a_restart() -> None:
    text = (Path(__file__).parents[2] / "docs/commands.md").read_text().replace("`", "")
    *others, last = sorted(_fixed(_needs_restart), key=lambda one: not one.startswith("["))
    assert f"{', '.join(others)} and {last}, which need a restart" in " ".join(text.split())


def _needs_restart(one: Field[Any]) -> bool:
    return bool(one.metadata["restart"])


def _fixed(is_fixed: Callable[[Field[Any]], bool]) -> list[str]:
    """Keys of which that is so, or the table where it is so of all."""
    found = []
    for table in fields(Settings):
        keys = fields(getattr(Settings(), table.name))
        own = [f"{table.name}.{one.name}" for one in keys if is_fixed(one)]
        found += [f"[{table.name}]"] if len(own) == len(keys) else own
    return found


def test_the_rendered_file_explains_every_key() -> None:
    lines = render_settings(Settings()).splitlines()
    for table, keys in settings_as_dict(Settings()).items():
        own = lines[lines.index(f"[{table}]") :]
        own = [*own, ""][: [*own, ""].index("")]
        for key in keys:
            (place,) = [index for index, line in enumerate(own) if line.startswith(f"{key} =")]
            assert own[place - 1].startswith("# ")


@pytest.mark.parametrize(
    "text",
    [
        'policy = "static"\nreserved_total = "3GiB"\nreserved = {1 = "1024Mi", "0" = "2GiB"}',
        'policy = "static"\nreserved_total = 3221225472\n[memory.reserved]\n0 = 2147483648\n1 = "1GiB"',
    ],
)
def test_reservations_are_read_in_order_of_their_nodes(text: str) -> None:
    assert parse_settings(f"[memory]\n{text}\n").memory == MemorySettings(
        policy="static", reserved_total=3 << 30, reserved=(Reservation(0, 2 << 30), Reservation(1, 1 << 30))
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'reserved_total = "4GiB"\nreserved = {0 = "2GiB", 1 = "1GiB"}',
            "memory.reserved adds up to 3221225472 bytes (3 GiB), which is 1073741824 bytes (1 GiB) too little:"
            " expected the sum to be memory.reserved_total = 4294967296 bytes (4 GiB), or memory.reserved_total to be"
            " 3221225472 bytes (3 GiB)",
        ),
        (
            "reserved_total = 0\nreserved = {0 = 1}",
            "memory.reserved adds up to 1 bytes (1 B), which is 1 bytes (1 B) too much: expected the sum to be"
            " memory.reserved_total = 0 bytes (0 B), or memory.reserved_total to be 1 bytes (1 B)",
        ),
        (
            "",
            "memory.policy = 'static': expected reservations: set memory.reserved_total and memory.reserved, or"
            ' memory.policy = "none"',
        ),
        (
            "reserved = {0 = 0}",
            "memory.policy = 'static': expected reservations: set memory.reserved_total and memory.reserved, or"
            ' memory.policy = "none"',
        ),
    ],
)
def test_static_reservations_must_be_there_and_add_up(text: str, expected: str) -> None:
    assert problems(f'[memory]\npolicy = "static"\n{text}\n') == (expected,)


def test_a_sum_of_which_a_part_is_bad_is_not_told_as_well() -> None:
    text = '[memory]\npolicy = "static"\nreserved_total = "4GiB"\nreserved = {0 = "2GiB", 1 = "x", y = 1}\n'
    assert [problem.split(":")[0] for problem in problems(text)] == ["memory.reserved.1 = 'x'", "memory.reserved"]
    settings, _ = salvage_settings(text)
    assert settings.memory.reserved == (Reservation(0, 2 << 30),)


@pytest.mark.parametrize(
    ("memory", "names"),
    [
        (MemorySettings(), None),
        (MemorySettings(reserved_total=1), "memory.reserved_total"),
        (MemorySettings(reserved=(Reservation(0, 1),)), "memory.reserved"),
        (MemorySettings(reserved_total=1, reserved=(Reservation(0, 5),)), "memory.reserved_total and memory.reserved"),
        (MemorySettings(policy="static", reserved_total=1, reserved=(Reservation(0, 1),)), None),
    ],
)
def test_reservations_without_the_policy_are_ignored_and_said_to_be(memory: MemorySettings, names: str | None) -> None:
    settings = Settings(memory=memory)
    assert check_settings(settings) == ()
    assert [one.split(": ")[0] for one in list_unused(settings)] == ([] if names is None else [names])


@given(
    st.sampled_from(["none", "static"]),
    st.dictionaries(st.integers(0, 65535), st.integers(1, 1 << 40) | st.integers(1, 999).map(lambda n: n << 30)),
)
def test_reservations_are_written_and_read_again(policy: Literal["none", "static"], amounts: dict[int, int]) -> None:
    reserved = tuple(Reservation(node, amounts[node]) for node in sorted(amounts))
    memory = MemorySettings(
        policy=policy if reserved else "none", reserved_total=sum(amounts.values()), reserved=reserved
    )
    assert parse_settings(render_settings(Settings(memory=memory))) == Settings(memory=memory)


@given(st.text(max_size=40))
def test_any_text_gives_settings_or_problems(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(parse_settings(text), Settings)
