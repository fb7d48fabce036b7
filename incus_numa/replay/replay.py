"""Runs a trace through a placer and measures what comes of it.

Events of one time are one moment: departures, then arrivals, then departures of those that stay for no time at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from incus_numa.cpuset import NodeSet
from incus_numa.model.machine import LOCAL_DISTANCE
from incus_numa.policy.scoring import mean_distance
from incus_numa.replay.ground import Ground, Placer, Seat
from incus_numa.replay.history import LoadHistory
from incus_numa.replay.stays import Stay

Watch = Callable[[], None]
"""Called after every event, to show progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a policy made of a trace. None where there is nothing to measure: nobody stayed, no distance is known.

    Load of a node is committed vCPUs over usable CPUs; the imbalance of a moment is the highest load of a node over the
    mean load, which is all committed vCPUs over all usable CPUs. Both are averaged over the time in which anything
    runs (`mean_load` and `mean_imbalance`), and the worst moment is told. A trace without duration is its last moment.

    Averages over placed instances, each counted once: `mean_distance` of its nodes, one node counting as local (10);
    `multi_node_distance` the same without those that have one node; `nodes_per_instance`. `moves` counts the times that
    an instance was given other nodes because another one arrived; `rejected` are the names of the refused.
    """

    mean_imbalance: float | None
    worst_imbalance: float | None
    mean_load: float | None
    highest_load: float
    mean_distance: float | None
    multi_node_distance: float | None
    nodes_per_instance: float | None
    placed: int
    rejected: tuple[str, ...]
    moves: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Somebody arrives or leaves. `rank` orders the events of one time."""

    at_s: float
    rank: int
    arrives: bool
    stay: Stay


def list_events(stays: Iterable[Stay]) -> list[Event]:
    """All events in order."""
    events = []
    for stay in stays:
        events.append(Event(at_s=stay.arrival_s, rank=1, arrives=True, stay=stay))
        if stay.departure_s is not None:
            rank = 2 if stay.departure_s == stay.arrival_s else 0
            events.append(Event(at_s=stay.departure_s, rank=rank, arrives=False, stay=stay))
    return sorted(events, key=lambda event: (event.at_s, event.rank))


def replay(
    ground: Ground,
    events: Sequence[Event],
    placer: Placer,
    *,
    history: LoadHistory | None = None,
    watch: Watch = lambda: None,
) -> Outcome:
    """Place every arrival, and measure. `history` is told the loads of every stretch of time."""
    tally = _Tally(ground)
    before: float | None = None
    for at_s, moment in _moments(events):
        if before is not None:
            tally.let_pass(at_s - before)
            if history is not None:
                history.note(before, at_s, tally.loads())
        for event in moment:
            if event.arrives:
                tally.arrive(event.stay.name, placer.arrive(event.stay))
            elif tally.has(event.stay.name):
                placer.depart(event.stay.name)
                tally.leave(event.stay.name)
            watch()
        tally.look()
        before = at_s
    if history is not None:
        history.end(tally.loads())
    return tally.outcome()


def _moments(events: Sequence[Event]) -> Iterator[tuple[float, Iterator[Event]]]:
    return groupby(events, key=lambda event: event.at_s)


class _Tally:
    """Who sits where now, and running sums over time and over those who were placed."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._seats: dict[str, Seat] = {}
        self._vcpus = dict.fromkeys(ground.cpus, 0.0)
        self._now: _Moment | None = None
        self._imbalance, self._load = _Mean(), _Mean()
        self._worst: float | None = None
        self._highest = 0.0
        self._near, self._wide, self._width = _Mean(), _Mean(), _Mean()
        self._distances: dict[NodeSet, float | None] = {}
        self._rejected: list[str] = []
        self._moves = 0

    def arrive(self, name: str, changed: Mapping[str, Seat]) -> None:
        """Somebody arrived, and the placer answered these seats."""
        for other, seat in changed.items():
            if other != name:
                self._moves += self._seats[other].nodes != seat.nodes
                self._vacate(other)
            self._take(other, seat)
        if name not in changed:
            self._rejected.append(name)
            return
        nodes = changed[name].nodes
        self._width.add(len(nodes))
        distance = self._distance(nodes)
        if distance is not None:
            self._near.add(distance)
            if len(nodes) > 1:
                self._wide.add(distance)

    def leave(self, name: str) -> None:
        """Somebody who was placed left."""
        self._vacate(name)
        if not self._seats:
            # Sums that are added to and taken from gather rounding errors: here they are known to be nothing.
            self._vcpus = dict.fromkeys(self._ground.cpus, 0.0)

    def has(self, name: str) -> bool:
        """Whether somebody is there, which one who was refused is not."""
        return name in self._seats

    def look(self) -> None:
        """Everything of this moment has happened."""
        self._now = None
        if self._seats:
            mean = sum(self._vcpus.values()) / self._ground.total_cpus
            peak = max(self.loads())
            self._now = _Moment(imbalance=peak / mean, load=mean)
            self._worst = max(self._worst or 0.0, peak / mean)
            self._highest = max(self._highest, peak)

    def let_pass(self, seconds: float) -> None:
        """All stays as it is for so long."""
        if self._now is not None:
            self._imbalance.add(self._now.imbalance, seconds)
            self._load.add(self._now.load, seconds)

    def loads(self) -> list[float]:
        """The load of every node of the ground, in its order."""
        return [vcpus / count for vcpus, count in zip(self._vcpus.values(), self._ground.cpus.values(), strict=True)]

    def outcome(self) -> Outcome:
        """What was measured, the last moment instead of an average when no time passed."""
        now = self._now
        return Outcome(
            mean_imbalance=self._imbalance.value(None if now is None else now.imbalance),
            worst_imbalance=self._worst,
            mean_load=self._load.value(None if now is None else now.load),
            highest_load=self._highest,
            mean_distance=self._near.value(),
            multi_node_distance=self._wide.value(),
            nodes_per_instance=self._width.value(),
            placed=round(self._width.weight),
            rejected=tuple(self._rejected),
            moves=self._moves,
        )

    def _take(self, name: str, seat: Seat) -> None:
        self._seats[name] = seat
        for node, vcpus in seat.vcpus.items():
            self._vcpus[node] += vcpus

    def _vacate(self, name: str) -> None:
        for node, vcpus in self._seats.pop(name).vcpus.items():
            self._vcpus[node] -= vcpus

    def _distance(self, nodes: NodeSet) -> float | None:
        if nodes not in self._distances:
            one = float(LOCAL_DISTANCE) if len(nodes) == 1 else None
            self._distances[nodes] = one or mean_distance(self._ground.machine, nodes)
        return self._distances[nodes]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Moment:
    imbalance: float
    load: float


class _Mean:
    """A weighted mean as it grows."""

    def __init__(self) -> None:
        self.weight = self._sum = 0.0

    def add(self, value: float, weight: float = 1.0) -> None:
        """Count a value with a weight."""
        self.weight += weight
        self._sum += value * weight

    def value(self, otherwise: float | None = None) -> float | None:
        """The mean, `otherwise` when nothing of any weight was counted."""
        return self._sum / self.weight if self.weight else otherwise
