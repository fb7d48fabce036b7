"""What the server refuses, in its words. Pure. Called by `incus` before it changes anything.

Nearly all of these are plain errors in the server, so they arrive as HTTP 500; only the text tells them apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from incus_numa.model.instance import InstanceKey, InstanceType
from incus_numa.simulator.options import BALANCED_NODES, CHOSEN_NODES, SimulatorOptions


class ApiError(Exception):
    """An answer of the server that is an error: HTTP status and the message of the envelope."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(f"{status}: {message}")


KNOWN_VOLATILE = frozenset(
    {
        "volatile.apply_template",
        "volatile.base_image",
        "volatile.cloud-init.instance-id",
        "volatile.cpu.nodes",
        "volatile.evacuate.origin",
        "volatile.idmap.base",
        "volatile.idmap.current",
        "volatile.idmap.next",
        "volatile.last_state.idmap",
        "volatile.last_state.power",
        "volatile.last_state.ready",
        "volatile.uuid",
        "volatile.uuid.generation",
        "volatile.vm.needs_reset",
        "volatile.vsock_id",
    }
)
_SAFE_VOLATILE = frozenset({"volatile.apply_template", "volatile.base_image", "volatile.last_state.power"})
_FREE = re.compile(r"(user|environment|image|linux\.sysctl|limits\.kernel)\.")
_DEVICE_VOLATILE = re.compile(r"volatile\.[^.]+\.(hwaddr|apply_quota|host_name|last_state\..*)\Z")
_KNOWN = re.compile(
    r"(limits\.(cpu(\.allowance|\.nodes|\.priority)?|memory(\..+)?|processes|disk\.priority"
    r"|hugepages\.(64KB|1MB|2MB|1GB))"
    r"|(boot|security|raw|migration|snapshots|cloud-init|cluster|nvidia|agent)\..+)\Z"
)
_CPU_SET = re.compile(r"[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*\Z")
_TOPOLOGY = re.compile(r"((sockets|cores|threads)=[1-9][0-9]*(,|\Z))+\Z")
_SYNTAX = "Invalid CPU limit syntax"


def check_config(options: SimulatorOptions, config: Mapping[str, str]) -> None:
    """Raises ApiError for the first key that is unknown or has a value that the server does not take."""
    for key, value in sorted(config.items()):
        problem = _problem(options, key, value)
        if problem:
            raise ApiError(500, f"Invalid config: {problem}")


def check_project(
    project: Mapping[str, str],
    key: InstanceKey,
    kind: InstanceType,
    changes: Mapping[str, str],
    current: Mapping[str, str],
) -> None:
    """Raises ApiError if a restricted project, or one with any limit, forbids to change a volatile key."""
    if not is_restricted(project, kind):
        return
    for name, value in changes.items():
        if not name.startswith("volatile.") or name in _SAFE_VOLATILE or _DEVICE_VOLATILE.match(name):
            continue
        if current.get(name) != value:
            verb = "Changing" if name in current else "Setting"
            raise ApiError(500, f'{verb} "{name}" on {kind.value} "{key.name}" in project "{key.project}" is forbidden')


def is_restricted(project: Mapping[str, str], kind: InstanceType) -> bool:
    """Whether the project's configuration keeps even root from changing low-level keys of such an instance."""
    word = "containers" if kind is InstanceType.CONTAINER else "virtual-machines"
    if project.get(f"restricted.{word}.lowlevel") == "allow":
        return False
    return project.get("restricted") == "true" or any(name.startswith("limits.") for name in project)


def _problem(options: SimulatorOptions, key: str, value: str) -> str | None:
    if _FREE.match(key) or not value:
        return None
    if key.startswith("volatile."):
        known = key in KNOWN_VOLATILE or _DEVICE_VOLATILE.match(key)
        if not known or (key == "volatile.cpu.nodes" and BALANCED_NODES not in options.offered):
            return f"Unknown configuration key: {key}"
    elif not _KNOWN.match(key) or (key == "limits.cpu.nodes" and CHOSEN_NODES not in options.offered):
        return f"Unknown configuration key: {key}"
    if key == "limits.cpu.nodes" and value == "balanced":
        return None if BALANCED_NODES in options.offered else _SYNTAX
    if key == "limits.cpu" and _TOPOLOGY.match(value):
        return None
    if key in ("limits.cpu", "limits.cpu.nodes", "volatile.cpu.nodes") and not _CPU_SET.match(value):
        return _SYNTAX
    if key == "volatile.cpu.nodes" and value == "0" and options.refuses_node_zero:
        return _SYNTAX
    return None
