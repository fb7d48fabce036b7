"""One look at everything, without changing anything: what `list` and `explain` show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from incus_numa.cli.wiring import connect
from incus_numa.daemon.seen import Seen
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Placement, Plan, Rejection
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import planner, steps
from incus_numa.settings import Settings


@dataclass(frozen=True, kw_only=True, slots=True)
class Survey:
    """What runs, what a pass would decide now, and the load of the nodes as things are."""

    machine: Machine
    seen: tuple[Seen, ...]
    snapshot: Snapshot
    plan: Plan
    load_now: Mapping[int, float]
    problems: tuple[str, ...] = ()

    def get(self, key: InstanceKey) -> Seen | None:
        """One running instance, None if it does not run here."""
        return next((one for one in self.seen if one.instance.key == key), None)

    def answer(self, key: InstanceKey) -> Placement | Rejection | None:
        """What a pass would decide about an instance; None if it is not managed."""
        answers: tuple[Placement | Rejection, ...] = (*self.plan.placements, *self.plan.rejections)
        return next((one for one in answers if one.key == key), None)

    def state(self, seen: Seen) -> str:
        """placed: as decided; differs: a pass would change something; refused, with the reason; unmanaged."""
        answer = self.answer(seen.instance.key)
        if answer is None:
            return "unmanaged"
        if isinstance(answer, Rejection):
            return f"refused: {answer.reason.value}"
        return "differs" if steps.diff_one(answer, seen.observed, self.machine.memory_nodes) else "placed"


async def survey(settings: Settings) -> Survey:
    """Look at everything once. Raises UnreachableError."""
    async with connect(settings) as session:
        await session.world.look_at_everything()
        snapshot = session.world.snapshot()
        plan = planner.plan(snapshot, settings.placement)
        nothing = planner.plan(snapshot, settings.placement, only=frozenset())
        return Survey(
            machine=snapshot.machine,
            seen=tuple(sorted(session.world.all_seen(), key=lambda seen: seen.instance.key)),
            snapshot=snapshot,
            plan=plan,
            load_now=nothing.node_load,
            problems=session.world.problems,
        )


async def whereabouts(settings: Settings, key: InstanceKey) -> str:
    """Why an instance was not seen running, as a sentence that says what to do. Raises UnreachableError."""
    async with connect(settings) as session:
        listing = await session.server.list_instances()
    alike = [one for one in listing.instances if one.key.name == key.name]
    for one in alike:
        if one.key == key and one.running:
            return f"{key.name} runs on cluster member {one.location}: ask incus-numa there"
        if one.key == key:
            return f"{key.name} does not run: it is placed when it starts"
    if alike:
        projects = ", ".join(sorted(one.key.project for one in alike))
        return f"no instance {key.name} in project {key.project}, but in {projects}: say --project"
    return f"no instance {key.name} in project {key.project}; `incus-numa list` shows those that run"
