"""What the service tells about its own work while it happens, as values: for metrics and for those who watch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import InstanceKey
from incus_numa.model.plan import Rejection, StepResult
from incus_numa.model.rebalance import Hold, MoveRecord


class Scope(Enum):
    """What a pass was about: all instances, one of them, cpusets that were rewritten, or load."""

    EVERYTHING = "everything"
    INSTANCE = "instance"
    CPUSETS = "cpusets"
    LOAD = "load"


@dataclass(frozen=True, kw_only=True, slots=True)
class PassEnded:
    """A pass is over; `error` is a sentence where it could not be finished."""

    scope: Scope
    took_s: float
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTaken:
    """A step was tried."""

    result: StepResult


@dataclass(frozen=True, kw_only=True, slots=True)
class StartPlaced:
    """An instance is where it was decided to be, so many seconds after its start was heard of."""

    key: InstanceKey
    nodes: NodeSet
    cpus: CpuSet
    took_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """An instance is refused that was not before, or for another reason."""

    rejection: Rejection


@dataclass(frozen=True, kw_only=True, slots=True)
class CpusetCorrected:
    """What somebody else wrote to an instance's cpusets was undone."""

    key: InstanceKey


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveMade:
    """An instance was moved because of its load, or was about to be."""

    record: MoveRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveHeld:
    """An instance stays on a node that is too loaded, and why; told once until the reason changes."""

    key: InstanceKey
    hold: Hold
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryFollowed:
    """Memory of an instance was moved to where the instance is."""

    key: InstanceKey
    moved_bytes: int
    took_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamOpened:
    """The server's events are heard; `again` after a gap, in which some may have been missed."""

    again: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerCalled:
    """A request to the server was answered or not; `error` is the kind of error, such as `busy`, None without one."""

    call: str
    took_s: float
    error: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class SettingsChanged:
    """Other settings are in force."""


Notice = (
    PassEnded
    | StepTaken
    | StartPlaced
    | Refused
    | CpusetCorrected
    | MoveMade
    | MoveHeld
    | MemoryFollowed
    | StreamOpened
    | ServerCalled
    | SettingsChanged
)
