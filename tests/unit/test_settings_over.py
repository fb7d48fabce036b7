"""A policy over the settings of the file: what is right of it is in force, whatever else is said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from incus_numa.errors import ConfigError
from incus_numa.settings import LIVE_TABLES, RESTART_KEYS, Settings, put_over, salvage_over

KEYS = {
    "placement": ["smt", "memory", "reserved_cpus", "load_weight", "nosuch"],
    "memory": ["policy", "reserved_total", "reserved", "nosuch"],
    "rebalance": ["enabled", "margin", "max_moves", "max_bytes", "journal", "nosuch"],
    "server": ["socket"],
}
values: st.SearchStrategy[Any] = st.sampled_from(
    [
        *("pack", "none", "static", "bind", "0-3", "9", "x", "1GiB", "/x", True, False, 0, 1, 2.5, -1, None, [], {}),
        *({"0": "1GiB"}, {"0": 1}, {"a": 1}),
    ]
)
tables = st.fixed_dictionaries(
    {},
    optional={name: st.one_of(values, st.dictionaries(st.sampled_from(keys), values)) for name, keys in KEYS.items()},
)


def find_misfits(settings: Settings) -> tuple[str, ...]:
    """A machine with CPUs 0 to 7 and a node 0."""
    cpus = ("placement.reserved_cpus: no CPU 9",) if settings.placement.reserved_cpus == "9" else ()
    nodes = [one.node for one in settings.memory.reserved] if settings.memory.policy == "static" else []
    return (*cpus, *(f"memory.reserved: no node {one}" for one in nodes if one))


def all_keys(policy: Any) -> set[str]:
    return {
        f"{name}.{key}" if isinstance(table, dict) else name
        for name, table in policy.items()
        for key in (table if isinstance(table, dict) else [""])
    }


@given(tables)
def test_what_is_kept_is_right_as_a_whole_and_all_else_is_told(policy: dict[str, Any]) -> None:
    found = salvage_over(Settings(), policy, find_misfits)
    assert put_over(Settings(), found.tables, find_misfits) == found.settings
    left_out = {str(one.key) for one in found.left_out}
    for key in all_keys(policy):
        is_kept = key in all_keys(found.tables) and key not in left_out
        assert is_kept != bool({key, key.partition(".")[0]} & left_out), key


@given(tables)
def test_nothing_of_a_policy_that_may_be_set_is_left_out(policy: dict[str, Any]) -> None:
    try:
        found = put_over(Settings(), policy, find_misfits)
    except ConfigError:
        return
    salvaged = salvage_over(Settings(), policy, find_misfits)
    assert (salvaged.settings, salvaged.left_out) == (found, ())


@pytest.mark.parametrize(("name", "key"), sorted(RESTART_KEYS))
def test_keys_that_need_a_restart_cannot_be_set(name: str, key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        put_over(Settings(), {name: {key: "/x"}}, find_misfits)
    assert f"{name}.{key}: can only be changed in the file, followed by a restart" in refused.value.problems
    assert name in LIVE_TABLES


def test_amounts_that_must_add_up_are_left_out_together() -> None:
    memory = {"policy": "static", "reserved_total": "2GiB", "reserved": {"0": "1GiB"}}
    found = salvage_over(Settings(), {"memory": memory, "placement": {"smt": "pack"}}, find_misfits)
    assert (found.tables, [one.key for one in found.left_out]) == ({"placement": {"smt": "pack"}}, ["memory"])


def test_a_file_that_does_not_fit_costs_no_key_that_was_set() -> None:
    def misfits(settings: Settings) -> tuple[str, ...]:
        return ("memory: the file's does not fit",)

    found = salvage_over(Settings(), {"placement": {"smt": "pack"}}, misfits)
    assert (found.tables, found.left_out) == ({"placement": {"smt": "pack"}}, ())
