"""Decisions and the steps that carry them out, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey


class Reason(Enum):
    """Why an instance was refused."""

    BAD_KEY = "bad-key"
    NO_CPUS = "no-cpus"
    NO_MEMORY = "no-memory"
    NOT_ONE_NODE = "not-one-node"
    NOT_NARROWEST = "not-narrowest"
    BAD_PIN = "bad-pin"
    NO_HUGEPAGES = "no-hugepages"
    NOT_ALIGNED = "not-aligned"
    NO_EXCLUSIVE_CPUS = "no-exclusive-cpus"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proof:
    """What the search for nodes has proved.

    No set of as many nodes that fits costs less than `bound`, which equals `cost` where the choice is the best one; no
    set of fewer than `least_width` nodes fits. In a plan of many the cost is that at the moment of the choice.
    """

    cost: float
    bound: float
    least_width: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where an instance belongs. `mems` is None when its memory is not bound; `reason` is a sentence.

    `leaves` are nodes that it is moved away from: memory that is not bound follows from them.
    `exclusive` CPUs are nobody else's. `proof` is None where the nodes are not what a search for them alone
    found: kept, pinned, exclusive, or changed together with others.
    """

    key: InstanceKey
    nodes: NodeSet
    cpus: CpuSet
    mems: NodeSet | None = None
    moved: bool = False
    reason: str = ""
    exclusive: bool = False
    proof: Proof | None = None
    leaves: NodeSet | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rejection:
    """A refusal. The instance is left as it is; `detail` is a sentence with the numbers."""

    key: InstanceKey
    reason: Reason
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Placements and rejections of managed instances, ordered by project and name.

    `node_load` is committed vCPU weight over usable CPUs per node, after the plan, for nodes with usable CPUs.
    """

    placements: tuple[Placement, ...] = ()
    rejections: tuple[Rejection, ...] = ()
    node_load: Mapping[int, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchNodes:
    """Write the server's record of the nodes (`volatile.cpu.nodes`)."""

    key: InstanceKey
    nodes: NodeSet
    before: NodeSet | None


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteCpus:
    """Write `cpuset.cpus` of the instance's cgroup."""

    key: InstanceKey
    cpus: CpuSet
    before: CpuSet | None


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteMems:
    """Write `cpuset.mems` of the instance's cgroup, which moves its pages to `mems`; all of the machine's unbind."""

    key: InstanceKey
    mems: NodeSet
    before: NodeSet | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MovePages:
    """Move the instance's memory from some nodes to others in short slices, before or instead of binding it there.

    `size_bytes` is what was there to be moved when this was decided.
    """

    key: InstanceKey
    sources: NodeSet
    targets: NodeSet
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PinThreads:
    """Let the vCPU threads of a virtual machine run on `cpus`, and all other threads of its QEMU on `around`."""

    key: InstanceKey
    cpus: CpuSet
    around: CpuSet
    before: CpuSet | None


Step = PatchNodes | WriteCpus | WriteMems | MovePages | PinThreads


class Outcome(Enum):
    """What became of a step."""

    DONE = "done"
    WOULD_DO = "would do"
    GONE = "gone"
    BUSY = "busy"
    FORBIDDEN = "forbidden"
    FAILED = "failed"
    CUT = "cut"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """A step and what became of it; `detail` is empty when there is nothing to add."""

    step: Step
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class PassReport:
    """What a pass decided and did.

    `problems` are sentences about what could not be seen or applied, `skipped` the instances that another pass worked
    on.
    """

    plan: Plan = field(default_factory=Plan)
    results: tuple[StepResult, ...] = ()
    problems: tuple[str, ...] = ()
    skipped: tuple[InstanceKey, ...] = ()
