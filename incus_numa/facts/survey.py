"""One look at everything, without changing anything, and what a pass would decide. Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.daemon.observe import World
from incus_numa.daemon.seen import Seen
from incus_numa.facts.locality import home_of, locality
from incus_numa.model.instance import InstanceKey
from incus_numa.model.machine import Machine
from incus_numa.model.plan import Placement, Plan, Rejection, Step
from incus_numa.model.sample import InstanceRates, Rates
from incus_numa.model.snapshot import Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import open_desk
from incus_numa.policy.rebalance import measured as node_loads
from incus_numa.settings import PlacementSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What was measured: rates, the snapshot with the load that follows from them, and that of every node.

    `imbalance` is the highest load of a node over the mean, None where no node is busy.
    """

    rates: Rates
    snapshot: Snapshot
    node_load: Mapping[int, float]
    imbalance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What runs, what a pass would decide now, and the load of the nodes as things are.

    `steps` are those that a pass would take for each placement, `load_now` is committed load; `measured` is None where
    nothing was measured.
    """

    machine: Machine
    seen: tuple[Seen, ...]
    snapshot: Snapshot
    plan: Plan
    load_now: Mapping[int, float]
    steps: Mapping[InstanceKey, tuple[Step, ...]] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    measured: Measured | None = None

    def get(self, key: InstanceKey) -> Seen | None:
        """One running instance, None if it does not run here."""
        return self._seen_by_key.get(key)

    def answer(self, key: InstanceKey) -> Placement | Rejection | None:
        """What a pass would decide about an instance; None if it is not managed."""
        return self._answers.get(key)

    @cached_property
    def _seen_by_key(self) -> Mapping[InstanceKey, Seen]:
        return {one.instance.key: one for one in self.seen}

    @cached_property
    def _answers(self) -> Mapping[InstanceKey, Placement | Rejection]:
        found: dict[InstanceKey, Placement | Rejection] = {one.key: one for one in self.plan.rejections}
        return found | {one.key: one for one in self.plan.placements}

    def state(self, seen: Seen) -> str:
        """placed: as decided; differs: a pass would change something; refused, with the reason; unmanaged."""
        answer = self.answer(seen.instance.key)
        if answer is None:
            return "unmanaged"
        if isinstance(answer, Rejection):
            return f"refused: {answer.reason.value}"
        return "differs" if self.steps.get(answer.key) else "placed"

    def load_cpus(self, key: InstanceKey) -> float | None:
        """CPUs that an instance keeps busy, and would if nobody else wanted them; None when unknown."""
        return None if self.measured is None else self.measured.snapshot.load.cpus_by_instance.get(key)

    def rates(self, key: InstanceKey) -> InstanceRates | None:
        """Measured rates of an instance; None where nothing was measured."""
        return None if self.measured is None else self.measured.rates.instances.get(key)

    def memory_by_node(self, seen: Seen) -> Mapping[int, int] | None:
        """Anonymous memory of an instance in bytes by node, as last read; None when unknown."""
        if self.measured is not None and seen.instance.key in self.measured.snapshot.observed:
            return self.measured.snapshot.observed[seen.instance.key].memory
        return seen.observed.memory

    def nodes_of(self, seen: Seen) -> NodeSet:
        """The nodes that an instance has by the server's record, or where that says nothing by its CPUs; else none."""
        observed = seen.observed
        return observed.given or observed.home or self.machine.nodes_of(observed.cpus or CpuSet())

    def locality(self, seen: Seen) -> float | None:
        """The part of an instance's memory that is on its own nodes; None when either is unknown or it has none."""
        return locality(self.memory_by_node(seen), home_of(seen.observed, self.machine))


class Answer(NamedTuple):
    """What a pass would decide about a snapshot, the load of the nodes as things are, and as measured."""

    plan: Plan
    load_now: Mapping[int, float]
    measured: Measured | None


def take_survey(world: World, settings: PlacementSettings) -> Survey:
    """What was last seen of everything that runs, and what a pass would decide about it."""
    snapshot = world.snapshot()
    return make_survey(world, snapshot, world.all_seen(), answer(snapshot, settings))


def answer(snapshot: Snapshot, settings: PlacementSettings, rates: Rates | None = None) -> Answer:
    """The answer to a snapshot. Pure: it may run in a thread."""
    nothing = planner.plan(snapshot, settings, only=frozenset())
    return Answer(planner.plan(snapshot, settings), nothing.node_load, measure(snapshot, settings, rates))


def make_survey(world: World, snapshot: Snapshot, seen: Iterable[Seen], found: Answer) -> Survey:
    """A survey of what was seen when the snapshot was taken."""
    by_key = {one.instance.key: one for one in seen}
    refused = [one.key for one in found.plan.rejections]
    return Survey(
        steps={one.key: world.diff(one, by_key[one.key], refused) for one in found.plan.placements},
        machine=snapshot.machine,
        seen=tuple(by_key[key] for key in sorted(by_key)),
        measured=found.measured,
        snapshot=snapshot,
        plan=found.plan,
        load_now=found.load_now,
        problems=world.problems,
    )


def measure(snapshot: Snapshot, settings: PlacementSettings, rates: Rates | None) -> Measured | None:
    """The load of instances and nodes by the rates that were measured; None without any."""
    if rates is None:
        return None
    instances = sorted(snapshot.instances, key=lambda one: one.key)
    found = node_loads.measure(open_desk(snapshot, settings, instances))
    return Measured(rates=rates, snapshot=snapshot, node_load=found.load, imbalance=found.imbalance)
