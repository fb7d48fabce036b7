"""Measured load. Empty until something samples it; the planner then uses commitments alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from incus_numa.model.instance import InstanceKey


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """CPU use per instance, in CPUs (1.5 is one and a half CPUs busy). Instances not in it are unknown."""

    cpus_by_instance: Mapping[InstanceKey, float] = field(default_factory=dict)
