"""Random arrivals and departures, nobody moves: after each arrival the machine's highest node load over the least that
this arrival could have led to, on any set of the narrowest width that it could get.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from incus_numa.model.instance import Instance, InstanceKey
from incus_numa.model.plan import Plan
from incus_numa.model.snapshot import Observed, Snapshot
from incus_numa.policy import planner
from incus_numa.policy.desk import Standing
from incus_numa.settings import PlacementSettings
from tests.bench.reference import near
from tests.bench.reference.cases import SIZES, Case, Draw
from tests.bench.reference.ground import Ground, bits
from tests.bench.reference.room import Room
from tests.bench.reference.sets import Question, least_load, load_on
from tests.builders import settled

SETTINGS = PlacementSettings()


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One arrival: the machine as it was, what was asked, and what came of it. `mask` is None for a refusal."""

    case: Case
    number: int
    instance: Instance
    taken: dict[InstanceKey, tuple[int, float, int]]
    mask: int | None

    @property
    def loads(self) -> list[float]:
        """Loads before it came."""
        return loads_of(self.case.ground, self.taken)

    @property
    def question(self) -> Question:
        """What the planner had to answer."""
        demand = self.instance.demand
        taken = tuple((mask, size) for mask, _, size in self.taken.values() if size)
        return Question(
            ground=self.case.ground,
            loads=self.loads,
            room=Room(ground=self.case.ground, taken=taken),
            cpus=demand.vcpus or 1,
            weight=demand.weight,
            memory=demand.memory_bytes or 0,
        )

    @property
    def words(self) -> str:
        """What to tell people."""
        vcpus = self.instance.demand.vcpus
        return f"{self.case.name}, arrival {self.number} of {vcpus} vCPUs: {self.case.machine.name}"


def loads_of(ground: Ground, taken: dict[InstanceKey, tuple[int, float, int]]) -> list[float]:
    """Loads by position."""
    loads = [0.0] * len(ground.ids)
    for mask, weight, _ in taken.values():
        part = weight / ground.cpus_of(mask)
        for index in bits(mask):
            if ground.cpus[index]:
                loads[index] += part
    return loads


@dataclass(kw_only=True)
class Host:
    """A machine that instances come to and go from, as the daemon keeps it."""

    case: Case
    standing: Standing
    taken: dict[InstanceKey, tuple[int, float, int]] = field(default_factory=dict)

    def arrive(self, one: Instance) -> int | None:
        """Place one; its set, or None if it was refused."""
        plan = planner.place_new(self.standing, Snapshot(machine=self.case.machine, instances=(one,)))
        if not plan.placements:
            return None
        self.standing.see(one, observed(plan))
        mask = self.case.ground.mask(plan.placements[0].nodes)
        self.taken[one.key] = (mask, one.demand.weight, one.demand.memory_bytes or 0)
        return mask

    def leave(self, key: InstanceKey) -> None:
        """Count one no longer."""
        self.standing.drop(key)
        del self.taken[key]


def observed(plan: Plan) -> Observed:
    """What the only placement of a plan becomes."""
    (one,) = settled(plan).values()
    return one


def arrivals(case: Case, count: int) -> Iterator[Arrival]:
    """So many arrivals; somebody leaves whenever the machine is fuller than the fill that swings from 30 to 150 %."""
    chance = Random(case.seed * 7919 + 1)
    draw = Draw(chance=chance, ground=case.ground, sizes=chance.choice(SIZES), memory=case.with_memory, fill=1.5)
    host = Host(case=case, standing=Standing(case.machine, SETTINGS))
    total = sum(case.ground.cpus)
    fill = chance.uniform(0.3, 1.5)
    for number in range(count):
        if number % 25 == 0:
            fill = chance.uniform(0.3, 1.5)
        one = draw.one()
        while host.taken and sum(weight for _, weight, _ in host.taken.values()) + one.demand.weight > fill * total:
            host.leave(chance.choice(sorted(host.taken)))
        before = dict(host.taken)
        yield Arrival(case=case, number=number, instance=one, taken=before, mask=host.arrive(one))


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one arrival showed. `width` is the narrowest possible (None: not known), `nodes` what it got (0: refused).

    `load` is the ratio of the machine's highest load, `exact` whether to the optimum or to a bound; `distance` the
    ratio of a wide placement, None where it is none or where there are too many sets.
    """

    words: str
    width: int | None
    nodes: int
    load: float | None = None
    exact: bool = True
    distance: float | None = None
    skipped: bool = False


def judge(case: Case, count: int) -> list[Seen]:
    """Let instances come and go, and compare at each arrival."""
    return [_judge(arrival) for arrival in arrivals(case, count)]


def _judge(arrival: Arrival) -> Seen:
    question = arrival.question
    if arrival.mask is None:
        return Seen(words=arrival.words, width=question.width(), nodes=0)
    nodes = arrival.mask.bit_count()
    least, exact = least_load(question, nodes)
    top = max(question.loads)
    wide = nodes > 1 and question.ground.known
    distance = near.ratio(question, arrival.mask) if wide else None
    return Seen(
        words=arrival.words,
        width=question.width(),
        nodes=nodes,
        load=max(top, load_on(question, arrival.mask)) / max(top, least),
        exact=exact,
        distance=distance,
        skipped=wide and distance is None,
    )
