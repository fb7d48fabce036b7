"""What carries out steps. `live` changes things, `dry_run` says what it would change; nothing else differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never

from incus_numa.host.virtual import Process
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import MovePages, PatchNodes, PinThreads, Step, StepResult, WriteCpus, WriteMems
from incus_numa.model.snapshot import Decided
from incus_numa.quantities import render_bytes

Progress = Callable[[int], bool]
"""Called with the bytes moved so far after each slice; says whether to go on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where one instance's steps go.

    `group` is its payload cgroup, `process` the QEMU of a virtual machine with so many `vcpus` (None without one),
    `nodes_key` the server's key for the record of its nodes, `etag` what its keys were read with, `mark` the decision
    to keep with cgroup or process (None: it is there already).
    """

    key: InstanceKey
    group: Path | None
    nodes_key: str
    etag: str | None
    mark: Decided | None
    process: Process | None = None
    vcpus: int | None = None


class PageMover(Protocol):
    """Moves memory of the processes in a cgroup, or of one process (`/proc/PID`), from node to node, slice by slice."""

    def move(self, group: Path, step: MovePages) -> Iterator[int]:
        """Each item is one slice of work that was done, aimed at 20 ms: the bytes that it moved, which can be 0.

        Ends when nothing that can be moved is left on the sources. Raises GoneError when the group is gone, ReportError
        when the kernel does not let us.
        """


class Applier(Protocol):
    """Carries out the steps of one instance: the record, and beside it those on the cgroup in their order.

    `paces` says whether memory that follows is given to `move_pages`, and what comes after it later; else all steps are
    given to `apply` at once.
    """

    paces: bool

    async def apply(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Results of the steps that were tried. After BUSY the instance should be looked at again soon.

        Where `paces` is set, `steps` has no MovePages.
        """

    async def apply_together(self, work: Sequence[tuple[Target, Sequence[Step]]]) -> tuple[StepResult, ...]:
        """`apply` for many instances whose steps do not ask the server, all at once."""

    async def release(self, target: Target, steps: Sequence[Step]) -> tuple[StepResult, ...]:
        """Carry out the last steps of an instance that is no longer ours, then forget what was decided for it."""

    async def move_pages(self, target: Target, step: MovePages, progress: Progress) -> StepResult:
        """Let memory follow, slice by slice and no faster than the settings say, for as long as `progress` says so.

        DONE when nothing that can be moved is left, CUT when it was stopped before; FAILED and GONE as always.
        """


def describe(step: Step) -> str:
    """A step in one line, for logs."""
    return f"instance={step.key} {describe_change(step)}"


def describe_change(step: Step) -> str:
    """What a step changes, for tables."""
    match step:
        case PatchNodes():
            return f"nodes={step.nodes or 'unset'} was={step.before or 'unset'}"
        case WriteCpus():
            return f"cpuset.cpus={step.cpus} was={step.before or 'unset'}"
        case WriteMems():
            return f"cpuset.mems={step.mems or 'unset'} was={step.before or 'unset'}"
        case PinThreads():
            return f"vcpus={step.cpus} others={step.around} was={step.before or 'unknown'}"
        case MovePages():
            return f"memory={render_bytes(step.size_bytes)} from={step.sources} to={step.targets}"
    assert_never(step)
