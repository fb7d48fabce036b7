"""The nodes that a set is chosen from, what it must hold, and the sums that tell early what cannot be good.

Used by `search`; `candidates` lays the field out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import accumulate
from math import inf
from operator import itemgetter
from typing import NamedTuple, TypeVar

from incus_numa.policy.rooms import Rooms, bits
from incus_numa.policy.scoring import price
from incus_numa.settings import PlacementSettings

ALMOST_ONE = 1 - 1e-9
"""One, less what rounding can lose."""

SEARCH_LIMIT = 24_000
"""Work for one question, counted in branches looked at (more for one with many nodes or much memory to make room);
beyond it the best so far is taken. A width may use half of what is left, but no less than search.LEAST_LIMIT."""

Number = TypeVar("Number", int, float)

Value = tuple[float, float, tuple[int, ...]]
"""Cost, mean load and ids: the order that sets are compared in. Rounded, so that sums in any order are equal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What a set of nodes must hold: CPUs, the weight they commit, bytes of memory (0: memory does not matter).

    `hugepages` are bytes by page size. `must` is the mask of nodes that have to be in the set, `pull` what the cost
    adds for each node (see ties); a node that is not in it adds nothing. No more than `most_width` nodes are looked at,
    None for any number, and no more work is done than `limit`.
    """

    cpus: int
    weight: float
    memory_bytes: int = 0
    hugepages: tuple[tuple[int, int], ...] = ()
    must: int = 0
    pull: Mapping[int, float] = field(default_factory=dict)
    most_width: int | None = None
    limit: int = SEARCH_LIMIT


class Have(NamedTuple):
    """Sums over a set of nodes."""

    cpus: int = 0
    room: int = 0
    worth: float = 0.0
    pull: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Field:
    """The nodes to choose from, as parallel lists: least loaded first, then lowest id; memory-only nodes last.

    `far` is the remoteness of each pair, `nearest` for each node and count at most its sum to the so many nearest
    others, `alike` the same id for nodes with the same distances to all others, `least_pairs` by width the least of any
    set.
    """

    ids: list[int]
    cpus: list[int]
    room: list[int]
    load: list[float]
    far: list[list[float]]
    nearest: list[Sequence[float]]
    alike: Mapping[int, int]
    least_pairs: Sequence[float]
    pull: list[float]
    rooms: Rooms
    huge: Mapping[int, Rooms]
    full: float
    most_load: float
    need: Need
    settings: PlacementSettings

    def price(self, load: float) -> float:
        """What a highest load adds to the cost."""
        return self.settings.load_weight * price(load, self.full)

    def value(self, members: Sequence[int]) -> Value:
        """What a set, given by positions, is compared by."""
        return self.value_of(members, self._pairs(members))

    def value_of(self, members: Sequence[int], pairs: float) -> Value:
        """The same where the sum of the distances between its nodes is known."""
        loads = [self.load[index] for index in members if self.cpus[index]]
        cpus = sum(self.cpus[index] for index in members)
        count = len(members)
        total = self.price(max(loads, default=0.0) + (self.need.weight / cpus if cpus else 0.0))
        if count > 1:
            total += self.settings.distance_weight * pairs / (count * (count - 1))
        if self.need.pull:
            total += sum(self.pull[index] for index in members) / max(1, count)
        mean = sum(loads) / len(loads) if loads else 0.0
        return round(total, 9), round(mean, 9), tuple(sorted(self.ids[index] for index in members))

    def fits(self, members: Sequence[int]) -> bool:
        """Whether CPUs, memory and huge pages of a set are enough, and whether it has the nodes it must have."""
        need = self.need
        cpus = sum(self.cpus[index] for index in members)
        if cpus < need.cpus:
            return False
        if self.most_load != inf and max(self.load[index] for index in members) + need.weight / cpus > self.most_load:
            return False
        if sum(self.room[index] for index in members) < need.memory_bytes:
            return False
        mask = sum(1 << self.ids[index] for index in members)
        if need.must & ~mask or not self.rooms.holds(mask, need.memory_bytes):
            return False
        return all(size in self.huge and self.huge[size].holds(mask, amount) for size, amount in need.hugepages)

    @cached_property
    def forced(self) -> frozenset[int]:
        """Positions that every set must have."""
        return frozenset(self.ids.index(node) for node in bits(self.need.must) if node in self.ids)

    @cached_property
    def least_pull(self) -> list[list[float]]:
        """By position and count: what the so many least repelling nodes from that position on add."""
        return [list(accumulate(sorted(self.pull[start:]), initial=0.0)) for start in range(len(self.pull) + 1)]

    @cached_property
    def most_huge(self) -> list[tuple[int, list[int], list[list[int]]]]:
        """For each page size that is asked for: bytes, what each position has, and the most by position and count."""
        found = []
        for size, amount in self.need.hugepages:
            rooms = self.huge.get(size)
            room = [rooms.open(node) if rooms else 0 for node in self.ids]
            found.append((amount, room, _largest_sums(tuple(room))))
        return found

    def may_hold_huge(self, start: int, count: int, chosen: Sequence[int]) -> bool:
        """Whether the chosen nodes and some `count` nodes from the start on may have enough huge pages."""
        return all(
            sum(room[index] for index in chosen) + most[start][count] >= amount for amount, room, most in self.most_huge
        )

    @cached_property
    def most_cpus(self) -> list[list[int]]:
        """By position and count: CPUs of the largest so many nodes from that position on."""
        return _largest_sums(tuple(self.cpus))

    @cached_property
    def most_room(self) -> list[list[int]]:
        """By position and count: memory of the roomiest so many nodes from that position on."""
        return _largest_sums(tuple(self.room))

    @cached_property
    def worth(self) -> list[float]:
        """What each node gives to the need, CPUs and memory taken together: a set that fits has 1 or more."""
        cpus = [cpus / max(1, self.need.cpus) for cpus in self.cpus]
        if not self.need.memory_bytes:
            return [0.0] * len(cpus)
        room = [min(1.0, room / self.need.memory_bytes) for room in self.room]
        return [(one + other) / 2 for one, other in zip(cpus, room, strict=True)]

    @cached_property
    def most_worth(self) -> list[list[float]]:
        """By position and count: the worth of the most useful so many nodes from that position on."""
        return _largest_sums(tuple(self.worth))

    def is_scarce(self, width: int) -> bool:
        """Whether some sets of so many nodes do not have the memory."""
        need = self.need.memory_bytes
        return bool(need) and sum(sorted(self.room)[:width]) < need

    def may_fit(self, start: int, count: int, have: Have) -> bool:
        """Whether what is had and some `count` nodes from the start on may have the memory; False is certain."""
        return (
            have.room + self.most_room[start][count] >= self.need.memory_bytes
            and have.worth + self.most_worth[start][count] >= ALMOST_ONE
        )

    @cached_property
    def twin(self) -> list[int | None]:
        """For each position the last earlier one that is no different in anything but its id, None if there is none."""
        twins: list[int | None] = []
        latest: dict[tuple[float, int, int, float, int], int] = {}
        wide = self.need.memory_bytes and self.rooms.has_wide
        if wide or self.need.hugepages or self.need.must:
            return [None] * len(self.ids)
        for index, node in enumerate(self.ids):
            room = self.room[index] if self.need.memory_bytes else 0
            shape = round(self.load[index], 9), self.cpus[index], room, self.pull[index], self.alike[node]
            twins.append(latest.get(shape))
            latest[shape] = index
        return twins

    def _pairs(self, members: Sequence[int]) -> float:
        if len(members) < 2:
            return 0.0
        pick = itemgetter(*members)
        return sum(sum(pick(self.far[index])) for index in members) / 2


@lru_cache(maxsize=256)
def _largest_sums(sizes: tuple[Number, ...]) -> list[list[Number]]:
    """By start and count: the sum of the so many largest sizes from the start on."""
    none = sizes[0] - sizes[0]
    return [list(accumulate(sorted(sizes[start:], reverse=True), initial=none)) for start in range(len(sizes) + 1)]
