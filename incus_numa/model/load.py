"""Measured load, as plans are decided from it. Empty until something samples it: commitments count alone then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from incus_numa.model.instance import InstanceKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """CPU use in CPUs (1.5 is one and a half CPUs busy).

    `cpus_by_instance` is what each instance uses, and what it would use if nobody else wanted the same CPUs; those not
    in it are unknown. `other_by_node` is what else keeps a node's CPUs busy: the host's own work.
    """

    cpus_by_instance: Mapping[InstanceKey, float] = field(default_factory=dict)
    other_by_node: Mapping[int, float] = field(default_factory=dict)
