"""Runs a trace through a steward, with CPU use that comes and goes, and measures what comes of it. Pure.

Events of one time are one moment, as in `replay`; changes of use and restarts come last. Stewards look at the load
every so often if anything has happened since they last did, and at the times that they asked for; after a moment of the
same time. Called by the benchmark and by tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import groupby
from typing import NamedTuple

from incus_numa.replay import loads, replay
from incus_numa.replay.ground import Ground, Seat, Steward
from incus_numa.replay.stays import Stay

EVERY_S = 10.0
"""Regular looks are so far apart: as those of our daemon are, and a little less than numad's."""


class Kind(IntEnum):
    """What happens; those of one time in this order, but for departures of those that stay for no time at all."""

    DEPARTS = 0
    ARRIVES = 1
    USES = 3
    RESTARTS = 4


class Happening(NamedTuple):
    """One thing that happens to an instance. `cpus` is what it uses from then on, for arrivals and changes of use."""

    at_s: float
    rank: int
    kind: Kind
    stay: Stay
    cpus: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveOutcome:
    """What a steward made of a trace. None where nothing ever ran.

    Load of a node is CPUs kept busy over usable CPUs, and more than 1 where more is wanted than there is; the imbalance
    of a moment is the highest load over the mean load. `mean_imbalance` is its average over the time in which anything
    runs; in `weighted_imbalance` each moment counts by its mean load, too, so that times in which hardly anything is
    done count hardly. `worst_imbalance` is that of the worst moment, `mean_load` the load over the same time.

    `moves` counts the times that an instance was given other nodes than those that were chosen for it before,
    `moved_bytes` the memory that followed: its part on the nodes that were left, spread as the vCPUs are. A restart
    frees memory, and nothing follows. `nodes_per_instance` is averaged over the time that each was there.
    """

    mean_imbalance: float | None
    weighted_imbalance: float | None
    worst_imbalance: float | None
    mean_load: float | None
    nodes_per_instance: float | None
    moves: int
    moved_bytes: int
    placed: int
    rejected: int


def list_happenings(stays: Iterable[Stay]) -> list[Happening]:
    """Everything that happens in a trace, in order. Use and restarts end with the last arrival or departure."""
    events = replay.list_events(stays)
    end_s = events[-1].at_s if events else 0.0
    found = []
    for event in events:
        if not event.arrives:
            found.append(Happening(event.at_s, event.rank, Kind.DEPARTS, event.stay))
            continue
        first, *later = loads.list_phases(event.stay, end_s)
        found.append(Happening(event.at_s, event.rank, Kind.ARRIVES, event.stay, first.cpus))
        found += [Happening(one.at_s, Kind.USES, Kind.USES, event.stay, one.cpus) for one in later]
        restarts = loads.list_restarts(event.stay, end_s)
        found += [Happening(at_s, Kind.RESTARTS, Kind.RESTARTS, event.stay) for at_s in restarts]
    return sorted(found, key=lambda one: (one.at_s, one.rank))


def replay_moves(
    ground: Ground,
    happenings: Sequence[Happening],
    steward: Steward,
    *,
    every_s: float = EVERY_S,
    watch: Callable[[], None] = lambda: None,
) -> MoveOutcome:
    """Place every arrival, let the steward look every so often, and measure. `watch` is called after every moment."""
    tally = _Tally(ground)
    if not happenings:
        return tally.outcome()
    clock = _Clock(happenings[0].at_s, every_s)
    for at_s, moment in groupby(happenings, key=lambda one: one.at_s):
        while clock.next_s < at_s:
            _look(tally, steward, clock)
        tally.let_pass(at_s)
        for one in moment:
            _happen(tally, steward, one)
        tally.measure()
        clock.happened(at_s)
        watch()
    return tally.outcome()


class _Clock:
    """When the next look is due: infinity when none is."""

    def __init__(self, first_s: float, every_s: float) -> None:
        self._first_s, self._every_s = first_s, every_s
        self._regular_s = self._asked_s = math.inf

    @property
    def next_s(self) -> float:
        return min(self._regular_s, self._asked_s)

    def happened(self, at_s: float) -> None:
        """Something has changed that the next regular look will show."""
        if self._regular_s == math.inf:
            count = (at_s - self._first_s) // self._every_s + 1
            self._regular_s = self._first_s + count * self._every_s

    def looked(self, again_s: float | None) -> None:
        """A look was taken, which has shown everything until then, and another one asked for."""
        self._regular_s = math.inf
        self._asked_s = math.inf if again_s is None else again_s


def _look(tally: _Tally, steward: Steward, clock: _Clock) -> None:
    now_s = clock.next_s
    tally.let_pass(now_s)
    look = steward.look(now_s, tally.use)
    for name, seat in look.seats.items():
        tally.move(name, seat)
    tally.measure()
    clock.looked(look.again_s)


def _happen(tally: _Tally, steward: Steward, one: Happening) -> None:
    name = one.stay.name
    if one.kind is Kind.ARRIVES:
        cpus = min(one.cpus, tally.total_cpus)
        tally.arrive(one.stay, cpus, steward.arrive(one.stay, {**tally.use, name: cpus}))
    elif name not in tally.use:
        # Whoever was refused does nothing.
        return
    elif one.kind is Kind.DEPARTS:
        steward.depart(name)
        tally.leave(name)
    elif one.kind is Kind.USES:
        tally.uses(name, min(one.cpus, tally.total_cpus))
    else:
        for other, seat in steward.restart(one.stay).items():
            tally.move(other, seat, follows=other != name)


class _Tally:
    """Who sits where and does how much now, and running sums over time. Times must not go back."""

    def __init__(self, ground: Ground) -> None:
        self.use: dict[str, float] = {}
        self.total_cpus = ground.total_cpus
        self._ground = ground
        self._stays: dict[str, Stay] = {}
        self._seats: dict[str, Seat] = {}
        self._busy = dict.fromkeys(ground.cpus, 0.0)
        self._width = 0
        self._peak = self._mean = 0.0
        self._worst: float | None = None
        self._at_s = 0.0
        self._seconds = self._imbalance = self._peak_load = self._mean_load = 0.0
        self._there = self._widths = 0.0
        self._moves = self._bytes = self._placed = self._rejected = 0

    def let_pass(self, until_s: float) -> None:
        """All stayed as it was last measured until this time."""
        seconds = until_s - self._at_s
        self._at_s = until_s
        if self._mean > 0:
            self._seconds += seconds
            self._imbalance += self._peak / self._mean * seconds
            self._peak_load += self._peak * seconds
            self._mean_load += self._mean * seconds
            self._there += len(self.use) * seconds
            self._widths += self._width * seconds

    def measure(self) -> None:
        """Everything of this moment has happened."""
        if not self.use:
            # Sums that are added to and taken from gather rounding errors: here they are known to be nothing.
            self._busy = dict.fromkeys(self._ground.cpus, 0.0)
            self._peak = self._mean = 0.0
            return
        cpus = self._ground.cpus
        self._peak = max(busy / cpus[node] for node, busy in self._busy.items())
        self._mean = sum(self._busy.values()) / self.total_cpus
        if self._mean > 0:
            self._worst = max(self._worst or 0.0, self._peak / self._mean)

    def arrive(self, stay: Stay, cpus: float, changed: Mapping[str, Seat]) -> None:
        """Somebody arrived who uses so many CPUs, and the steward answered these seats."""
        for other, seat in changed.items():
            if other != stay.name:
                self.move(other, seat)
        seat_of_new = changed.get(stay.name)
        if seat_of_new is None:
            self._rejected += 1
            return
        self._placed += 1
        self.use[stay.name] = cpus
        self._stays[stay.name] = stay
        self._take(stay.name, seat_of_new)

    def leave(self, name: str) -> None:
        """Somebody who was placed left."""
        self._vacate(name)
        del self.use[name], self._stays[name]

    def uses(self, name: str, cpus: float) -> None:
        """Somebody uses so many CPUs from now on."""
        seat = self._vacate(name)
        self.use[name] = cpus
        self._take(name, seat)

    def move(self, name: str, seat: Seat, *, follows: bool = True) -> None:
        """Somebody sits elsewhere, or on the same nodes; where the memory `follows`, it is counted."""
        before = self._vacate(name)
        self._take(name, seat)
        if before.nodes == seat.nodes:
            return
        self._moves += before.bound
        if follows:
            left = sum(part for node, part in before.parts.items() if node not in seat.nodes)
            self._bytes += round(left * (self._stays[name].memory_bytes or 0))

    def outcome(self) -> MoveOutcome:
        """What was measured, the last moment instead of an average when no time passed."""
        ratio = self._peak / self._mean if self._mean > 0 else None
        passed = self._seconds > 0
        return MoveOutcome(
            mean_imbalance=self._imbalance / self._seconds if passed else ratio,
            weighted_imbalance=self._peak_load / self._mean_load if passed else ratio,
            worst_imbalance=self._worst,
            mean_load=self._mean_load / self._seconds if passed else None if ratio is None else self._mean,
            nodes_per_instance=self._widths / self._there if passed else None,
            moves=self._moves,
            moved_bytes=self._bytes,
            placed=self._placed,
            rejected=self._rejected,
        )

    def _take(self, name: str, seat: Seat) -> None:
        self._seats[name] = seat
        self._width += len(seat.nodes)
        self._add(name, seat, self.use[name])

    def _vacate(self, name: str) -> Seat:
        seat = self._seats.pop(name)
        self._width -= len(seat.nodes)
        self._add(name, seat, -self.use[name])
        return seat

    def _add(self, name: str, seat: Seat, cpus: float) -> None:
        for node, part in seat.parts.items():
            self._busy[node] += cpus * part
