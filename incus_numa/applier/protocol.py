"""What carries out steps. `live` changes things, `dry_run` says what it would change; nothing else differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never

from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import PatchNodes, Step, StepResult, WriteCpus, WriteMems
from incus_numa.model.snapshot import Decided


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where one instance's steps go.

    `group` is its payload cgroup (None without one), `nodes_key` the server's key for the record of its nodes, `etag`
    what its keys were read with, `mark` the decision to keep on the cgroup (None: it is there already).
    """

    key: InstanceKey
    group: Path | None
    nodes_key: str
    etag: str | None
    mark: Decided | None


class Applier(Protocol):
    """Carries out the steps of one instance: the record, and beside it those on the cgroup in their order."""

    async def apply(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Results of the steps that were tried. After BUSY the instance should be looked at again soon."""

    async def apply_together(self, work: Sequence[tuple[Target, Sequence[Step]]]) -> tuple[StepResult, ...]:
        """`apply` for many instances whose steps do not ask the server, all at once."""

    async def release(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Carry out the last steps of an instance that is no longer ours, then forget what was decided for it."""


def describe(step: Step) -> str:
    """A step in one line, for logs."""
    return f"instance={step.key} {describe_change(step)}"


def describe_change(step: Step) -> str:
    """What a step changes, for tables."""
    match step:
        case PatchNodes():
            return f"nodes={step.nodes} was={step.before or 'unset'}"
        case WriteCpus():
            return f"cpuset.cpus={step.cpus} was={step.before or 'unset'}"
        case WriteMems():
            return f"cpuset.mems={step.mems or 'unset'} was={step.before or 'unset'}"
    assert_never(step)
