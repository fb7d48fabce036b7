"""How facts are worded and rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import InstanceKey


def show_nodes(nodes: NodeSet | str) -> str:
    """`node 3` or `nodes 0-1`, for sentences."""
    return f"node {nodes}" if str(nodes).isdecimal() else f"nodes {nodes}"


def show_name(row: Mapping[str, Any]) -> str:
    """The instance of a row as its key shows it: `web`, or `ci/web` where its project is not the default one."""
    return str(InstanceKey(row["project"], row["name"]))


def rounded(value: float | None) -> float | None:
    """A measured number with as many digits as mean anything; None stays None."""
    return None if value is None else round(value, 4)


def count(number: int, noun: str) -> str:
    """`1 node` or `3 nodes`, for sentences."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
