"""numad's daemon with what runs: it binds processes anew by what they use.

Its rule, read in numad.c (`update_nodes`, `manage_loads`, `pick_numa_nodes`, `bind_process_and_migrate_memory`):

- Candidates use more than half a CPU and more than 300 MB; all others are left where they are. Those that are not bound
  yet come first, the largest product of CPUs and memory leading; then the bound ones in bins of that product, the
  largest bin first, in a bin (within about a sixth) who was evaluated longest ago.
- Who was evaluated less than 5 minutes ago is passed over; but not one that would fit one node, is on the node with the
  fewest free CPUs or the least free memory, and brings both, it seems, nearer to their means by going to the node with
  the most.
- It asks for what it uses with the margin of utilization (85 %) on top, but for no more CPUs than it has threads, and
  gets the nodes that `pick_numa_nodes` finds on a machine where it has given back its memory, a fourth more than it
  has of it, and where each of its nodes has the mean free CPUs of its nodes: that is all that keeps it where it is.
  One on all nodes gives back its memory, a sixteenth more, and CPUs in proportion to it. CPUs are taken for granted
  unless the candidates use more than the machine has, and the free ones are enough all the same.
- Other nodes than it has: it goes there, with the memory that is elsewhere, and the daemon looks again after 5 seconds;
  after a round without a move, after 15. The same nodes: evaluated, it stays.

Ours: an instance is one process with as many threads as vCPUs, whose memory is all used and follows at once. An arrival
is bound by its vCPUs, as in `peer_numad` (`binds_arrivals`), or may run on all nodes, its memory spread over them,
until it is a candidate, which is told at its arrival or at a look. The use at a look stands for the highest of the last
eight samples. A quiet daemon looks at the regular looks and when 5 minutes end for somebody, at 15 seconds' distance,
as nothing else could change its mind but use that has changed. A sixteenth of each node's memory is in use by the host:
without that, giving back more than a process has would not show on a node that is else empty, and it would wander to
the lowest empty one. No memory is interleaved. All threads count as full CPUs (`-t 100`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from incus_numa.cpuset import NodeSet
from incus_numa.replay.ground import Ground, Look, Seat
from incus_numa.replay.peer_numad import HUNDREDTHS, MEGABYTE, NodePicker, fill, with_margin
from incus_numa.replay.stays import Stay

CPU_THRESHOLD, MEMORY_THRESHOLD = 50, 300
"""Hundredths of CPUs and megabytes that a candidate uses more than."""

HOST_PART = 16
"""One part in so many of a node's memory is in use by the host."""

DELAY_S, SHORT_S, LONG_S = 300.0, 5.0, 15.0
"""Between evaluations of one process, and between rounds with and without a move."""


@dataclass(slots=True, eq=False)
class _Process:
    """`megabytes` is its memory, `held` where it is, by node; `evaluated_s` is None for one that is not bound."""

    name: str
    threads: int
    megabytes: int
    seat: Seat
    held: dict[int, int]
    evaluated_s: float | None = None


class _Extremes(NamedTuple):
    """Of something that is free on nodes: who has the least, and least, most and mean."""

    node: int
    least: int
    most: int
    mean: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Round:
    """What one round sees: free hundredths of CPUs by node, used ones by process, and whether the candidates' fit."""

    now_s: float
    free: Mapping[int, int]
    used: Mapping[str, int]
    candidates: Sequence[_Process]
    fits: bool
    cpus: _Extremes
    memory: _Extremes


class NumadDaemon:
    """Binds at most one process in a round, and refuses nobody."""

    def __init__(self, ground: Ground, *, binds_arrivals: bool) -> None:
        self._ground = ground
        self._binds_arrivals = binds_arrivals
        self._picker = NodePicker(ground)
        self._room = {node: size - size // HOST_PART for node, size in self._picker.megabytes.items()}
        self._processes: dict[str, _Process] = {}

    def arrive(self, stay: Stay, use: Mapping[str, float]) -> Mapping[str, Seat]:
        """Bind the newcomer, or leave it to the kernel."""
        new = self._unbound(stay)
        self._processes[stay.name] = new
        self._hold(new, new.held)
        seen = self._see(stay.arrival_s, use)
        if self._binds_arrivals:
            self._hold(new, {})
            order = self._picker.pick(new.threads * HUNDREDTHS, with_margin(new.megabytes), seen.free, self._room)
            self._hold(new, fill(order, new.megabytes, self._room))
            self._bind(new, order, stay.arrival_s)
        elif new in seen.candidates:
            self._evaluate(new, seen)
        return {stay.name: new.seat}

    def depart(self, name: str) -> None:
        """Its memory is free again."""
        self._hold(self._processes.pop(name), {})

    def look(self, now_s: float, use: Mapping[str, float]) -> Look:
        """A round; after a move another one follows soon."""
        seen = self._see(now_s, use)
        for process in _in_order([one for one in seen.candidates if self._is_due(one, seen)], seen.used):
            if self._evaluate(process, seen):
                return Look(seats={process.name: process.seat}, again_s=now_s + SHORT_S)
        return Look(again_s=_next_s(seen))

    def restart(self, stay: Stay) -> Mapping[str, Seat]:
        """Nothing: restarts are not replayed for numad."""
        return {}

    def _unbound(self, stay: Stay) -> _Process:
        """A process that may run everywhere, with its memory everywhere."""
        anywhere = self._ground.spread(self._ground.cpus, self._ground.weight(stay))
        megabytes = (stay.memory_bytes or 0) // MEGABYTE if self._picker.knows_memory else 0
        seat = replace(anywhere, bound=False)
        nodes = len(self._room)
        held = {node: megabytes // nodes + (place < megabytes % nodes) for place, node in enumerate(self._room)}
        return _Process(stay.name, stay.vcpus, megabytes, seat, held)

    def _hold(self, process: _Process, held: dict[int, int]) -> None:
        """Its memory is here now."""
        if process.held is not held:
            for node, megabytes in process.held.items():
                self._room[node] += megabytes
        for node, megabytes in held.items():
            self._room[node] -= megabytes
        process.held = held

    def _see(self, now_s: float, use: Mapping[str, float]) -> _Round:
        busy = dict.fromkeys(self._ground.cpus, 0.0)
        for process in self._processes.values():
            for node, part in process.seat.parts.items():
                busy[node] += part * use[process.name]
        free = {node: max(0, self._picker.hundredths[node] - round(cpus * HUNDREDTHS)) for node, cpus in busy.items()}
        used = {name: int(use[name] * HUNDREDTHS) for name in self._processes}
        least_mb = MEMORY_THRESHOLD if self._picker.knows_memory else -1
        candidates = [
            one for one in self._processes.values() if used[one.name] > CPU_THRESHOLD and one.megabytes > least_mb
        ]
        return _Round(
            now_s=now_s,
            free=free,
            used=used,
            candidates=candidates,
            fits=sum(used[one.name] for one in candidates) <= sum(self._picker.hundredths.values()),
            cpus=_extremes(free),
            memory=_extremes(self._room),
        )

    def _is_due(self, process: _Process, seen: _Round) -> bool:
        """Whether 5 minutes are over, or it looks as if it could do better at once."""
        if process.evaluated_s is None or process.evaluated_s + DELAY_S <= seen.now_s:
            return True
        first = next(iter(self._ground.cpus))
        nodes = process.seat.nodes
        return (
            (seen.cpus.node in nodes or seen.memory.node in nodes)
            and _asked(process, seen) < self._picker.hundredths[first]
            and with_margin(process.megabytes) < self._picker.megabytes[first]
            and _levels(seen.cpus, seen.used[process.name], CPU_THRESHOLD)
            and _levels(seen.memory, process.megabytes, 0)
        )

    def _evaluate(self, process: _Process, seen: _Round) -> bool:
        """Whether it goes to other nodes, which it then has."""
        asked = _asked(process, seen)
        free, room, total = self._given_back(process, seen)
        order = self._picker.pick(
            asked,
            with_margin(process.megabytes),
            free,
            room,
            takes_cpus_for_granted=seen.fits or asked > total,
        )
        if process.evaluated_s is not None and NodeSet(order) == process.seat.nodes:
            process.evaluated_s = seen.now_s
            return False
        self._hold(process, _migrated(process.held, order))
        self._bind(process, order, seen.now_s)
        return True

    def _given_back(self, process: _Process, seen: _Round) -> tuple[dict[int, int], dict[int, int], int]:
        """Free CPUs and memory of nodes as if the process were on none, and the sum of the former before capping."""
        free, room = dict(seen.free), dict(self._room)
        nodes, used = process.seat.nodes, seen.used[process.name]
        is_everywhere = len(nodes) == len(room)
        mean = (used + sum(seen.free[node] for node in nodes)) // len(nodes)
        for node in room:
            held = process.held.get(node, 0)
            if is_everywhere:
                room[node] += held * 17 // 16
                free[node] += used * held // process.megabytes if process.megabytes else used // len(nodes)
            else:
                room[node] += held * 5 // 4
                free[node] = mean if node in nodes else free[node]
        total = sum(free.values())
        free = {node: min(count, self._picker.hundredths[node]) for node, count in free.items()}
        room = {node: max(0, min(free_mb, self._picker.megabytes[node])) for node, free_mb in room.items()}
        return free, room, total

    def _bind(self, process: _Process, order: Iterable[int], now_s: float) -> None:
        process.seat = self._ground.spread(order, min(process.threads, self._ground.total_cpus))
        process.evaluated_s = now_s


def _extremes(free: Mapping[int, int]) -> _Extremes:
    node = min(free, key=lambda one: (free[one], one))
    return _Extremes(node, free[node], max(free.values()), sum(free.values()) // len(free))


def _levels(free: _Extremes, amount: int, slack: int) -> bool:
    """Whether the node with the least and that with the most come nearer to the mean if so much changes over."""
    off = abs(free.least + amount - free.mean) + abs(free.most - amount - free.mean)
    return off < free.most - free.least - slack


def _asked(process: _Process, seen: _Round) -> int:
    """Hundredths of CPUs."""
    return min(with_margin(seen.used[process.name]), process.threads * HUNDREDTHS)


def _in_order(processes: list[_Process], used: Mapping[str, int]) -> Iterator[_Process]:
    """Who is evaluated first, second, and so on: found one at a time, as a round mostly ends before the last one."""
    left = [(used[one.name] * one.megabytes, one) for one in processes]
    while left:
        best = 0
        for place in range(1, len(left)):
            if _comes_before(left[place], left[best]):
                best = place
        yield left.pop(best)[1]


def _comes_before(one: tuple[int, _Process], best: tuple[int, _Process]) -> bool:
    """numad's comparison, which is no ordering: being nearly as large is not transitive."""
    since, best_since = one[1].evaluated_s, best[1].evaluated_s
    if since is None or best_since is None:
        return since is None and (best_since is not None or one[0] > best[0])
    less = best[0] - one[0]
    if less < 0:
        return True
    return (not less or one[0] // less >= 5) and since <= best_since


def _migrated(held: Mapping[int, int], order: Iterable[int]) -> dict[int, int]:
    """Memory by node, after the largest amounts elsewhere went, one after the other, to the node with the least."""
    found = {node: held.get(node, 0) for node in order}
    for _, node in sorted((-megabytes, node) for node, megabytes in held.items() if node not in found):
        # Of several with the least numad takes the highest.
        target = min(found, key=lambda one: (found[one], -one))
        found[target] += held[node]
    return found


def _next_s(seen: _Round) -> float | None:
    """When 5 minutes end for the first one, in whole pauses."""
    ends = [one.evaluated_s + DELAY_S for one in seen.candidates if one.evaluated_s is not None]
    waits = [end_s - seen.now_s for end_s in ends if end_s > seen.now_s]
    return seen.now_s + math.ceil(min(waits) / LONG_S) * LONG_S if waits else None
