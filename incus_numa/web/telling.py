"""Notices as those who watch the API see them: a kind, and a plain document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from incus_numa.model.instance import InstanceKey
from incus_numa.model.notice import (
    CpusetCorrected,
    MemoryFollowed,
    MoveHeld,
    MoveMade,
    Notice,
    PassEnded,
    Refused,
    ServerCalled,
    SettingsChanged,
    StartPlaced,
    StepTaken,
    StreamOpened,
)
from incus_numa.model.plan import MovePages, PatchNodes, PinThreads, Step, StepResult, WriteCpus, WriteMems
from incus_numa.model.rebalance import MoveRecord
from incus_numa.web.protocol import Document

KINDS: dict[type[Notice], str] = {
    PassEnded: "pass-ended",
    StepTaken: "step-taken",
    StartPlaced: "start-placed",
    Refused: "refused",
    CpusetCorrected: "cpuset-corrected",
    MoveMade: "move-made",
    MoveHeld: "move-held",
    MemoryFollowed: "memory-followed",
    StreamOpened: "stream-opened",
    ServerCalled: "server-called",
    SettingsChanged: "settings-changed",
}
"""What each kind of notice is called."""

STEP_KINDS: Mapping[type[Step], str] = {
    PatchNodes: "patch-nodes",
    WriteCpus: "write-cpus",
    WriteMems: "write-mems",
    MovePages: "move-pages",
    PinThreads: "pin-threads",
}
"""What each kind of step is called."""


def render_notice(notice: Notice) -> Document:
    """A notice as plain values; sets are in kernel list format."""
    match notice:
        case PassEnded():
            return {"scope": notice.scope.value, "took_s": round(notice.took_s, 6), "error": notice.error}
        case StepTaken():
            return _step(notice.result)
        case StartPlaced():
            where = {"nodes": str(notice.nodes), "cpus": str(notice.cpus)}
            return _named(notice.key) | where | {"took_s": round(notice.took_s, 6)}
        case Refused():
            refused = notice.rejection
            return _named(refused.key) | {"reason": refused.reason.value, "detail": refused.detail}
        case CpusetCorrected():
            return _named(notice.key)
        case MoveMade():
            return _move(notice.record)
        case MoveHeld():
            return _named(notice.key) | {"reason": notice.hold.value, "detail": notice.detail}
        case MemoryFollowed():
            return _named(notice.key) | {"moved_bytes": notice.moved_bytes, "took_s": round(notice.took_s, 6)}
        case StreamOpened():
            return {"again": notice.again}
        case ServerCalled():
            return {"call": notice.call, "took_s": round(notice.took_s, 6), "error": notice.error}
        case SettingsChanged():
            return {}
        case _:
            assert_never(notice)


def _named(key: InstanceKey) -> Document:
    return {"project": key.project, "name": key.name}


def _move(record: MoveRecord) -> Document:
    move = record.move
    return _named(move.key) | {
        "from": str(move.before),
        "to": str(move.after),
        "result": record.result,
        "gain": round(move.gain, 6),
        "price": round(move.price, 6),
        "moved_bytes": record.moved_bytes,
        "took_s": round(record.took_s, 6),
        "reason": move.reason,
    }


def _step(result: StepResult) -> Document:
    return _named(result.step.key) | {
        "step": STEP_KINDS[type(result.step)],
        "to": _aim(result.step),
        "result": result.outcome.value,
        "detail": result.detail or None,
    }


def _aim(step: Step) -> str:
    """What a step sets its part to."""
    match step:
        case PatchNodes():
            return str(step.nodes)
        case WriteCpus() | PinThreads():
            return str(step.cpus)
        case WriteMems():
            return str(step.mems)
        case MovePages():
            return str(step.targets)
        case _:
            assert_never(step)
