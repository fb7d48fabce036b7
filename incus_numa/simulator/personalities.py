"""Servers as they are out there, by name. Used by the suite of the Server protocol and by the daemon's contract tests.

Each is a set of options: what the server offers, refuses and does badly. Sources: the API extensions that both projects
list in their documentation, and docs/servers.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from incus_numa.server.protocol import Product
from incus_numa.simulator.options import BALANCED_NODES, CHOSEN_NODES, EXTENSIONS, SimulatorOptions

RESTRICTED: Final = {"restricted": "true"}
"""Configuration of a project whose instances' low-level keys not even root may change."""

LIMITED: Final = {"limits.instances": "1000"}
"""A project with any limit is as strict with low-level keys as a restricted one."""

_JITTER_S = 0.02
_NAMES = "event_lifecycle_name_and_project"

_INCUS = EXTENSIONS[Product.INCUS] | {_NAMES}
_LXD = EXTENSIONS[Product.LXD]

_INCUS_6_0_0 = SimulatorOptions(
    version="6.0.0",
    extensions=_INCUS,
    picks_one_node=True,
    refuses_node_zero=True,
    panics=False,
    event_jitter_s=_JITTER_S,
)
_INCUS_6_0_4 = SimulatorOptions(version="6.0.4", extensions=_INCUS, event_jitter_s=_JITTER_S)
_INCUS_7 = SimulatorOptions(version="7.0.2", extensions=_INCUS, panics=False)
_LXD_5_0 = SimulatorOptions(
    product=Product.LXD, version="5.0.2", extensions=_LXD, names_in_events=False, event_jitter_s=_JITTER_S
)
_LXD_5_21 = SimulatorOptions(
    product=Product.LXD, version="5.21.3", extensions=_LXD | {_NAMES}, event_jitter_s=_JITTER_S
)

PERSONALITIES: Final[Mapping[str, SimulatorOptions]] = {
    "incus-6.0.0": _INCUS_6_0_0,
    "incus-6.0.4": _INCUS_6_0_4,
    "incus-7": _INCUS_7,
    "incus-7-restricted": replace(_INCUS_7, projects={"default": RESTRICTED}),
    "incus-6.0.4-limited": replace(_INCUS_6_0_4, projects={"default": LIMITED}),
    "incus-without-balanced": replace(_INCUS_6_0_0, version="0.6", extensions=_INCUS - {BALANCED_NODES}),
    "incus-without-nodes": replace(_INCUS_6_0_0, version="0.1", extensions=_INCUS - {BALANCED_NODES, CHOSEN_NODES}),
    "lxd-5.0": _LXD_5_0,
    "lxd-5.0-without-nodes": replace(_LXD_5_0, version="5.0.0", extensions=_LXD - {CHOSEN_NODES}),
    "lxd-5.21": _LXD_5_21,
    "lxd-6": replace(_LXD_5_21, version="6.5", event_jitter_s=0.0),
}
"""The options of each server; its time, memory and trees are still to be chosen."""
