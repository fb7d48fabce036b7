"""How much memory is left for one more instance on a set of nodes, others being on theirs: a question of flow.

By Hall's condition: the least, over all larger sets, of their memory less that of all instances inside them. Taken over
all sets at once up to EXHAUSTIVE nodes; above, by a flow for one set after the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from tests.bench.reference.ground import Ground, bits

BySet: TypeAlias = "np.ndarray[tuple[int, ...], np.dtype[np.int64]]"
"""A number for every set, by its mask."""

EXHAUSTIVE = 10
"""Nodes up to which all sets are looked at."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """Memory that sets of nodes have for one more. `taken` are (set, bytes) of all others."""

    ground: Ground
    taken: tuple[tuple[int, int], ...]

    def holds(self, mask: int, size: int) -> bool:
        """Whether so many bytes fit on the set."""
        if not size:
            return True
        if len(self.ground.ids) <= EXHAUSTIVE:
            return bool(self.by_set[mask] >= size)
        return flows(self.ground.memory, [*self.taken, (mask, size)])

    @cached_property
    def by_set(self) -> BySet:
        """Room of every set, by mask."""
        count = len(self.ground.ids)
        inside: BySet = np.zeros(1 << count, dtype=np.int64)
        for mask, size in self.taken:
            inside[mask] += size
        whole: BySet = sums(self.ground.memory)
        for index in range(count):
            # Sums over all subsets, one node after the other.
            halves = inside.reshape(-1, 2, 1 << index)
            halves[:, 1] += halves[:, 0]
        slack: BySet = whole - inside
        for index in range(count):
            halves = slack.reshape(-1, 2, 1 << index)
            np.minimum(halves[:, 0], halves[:, 1], out=halves[:, 0])
        return slack


def sums(values: Iterable[int]) -> BySet:
    """Sums over every set, by mask."""
    total: BySet = np.zeros(1, dtype=np.int64)
    for value in values:
        total = np.concatenate([total, total + value])
    return total


def flows(sizes: Iterable[int], taken: Iterable[tuple[int, int]]) -> bool:
    """Whether all bytes can be laid out over the nodes of their sets: augmenting paths, one set after the other."""
    left = list(sizes)
    laid: dict[int, list[int]] = {}
    wanted: dict[int, int] = {}
    for mask, size in taken:
        if mask & (mask - 1):
            wanted[mask] = wanted.get(mask, 0) + size
        elif size:
            left[mask.bit_length() - 1] -= size
    if any(room < 0 for room in left):
        return False
    for mask, size in wanted.items():
        here = laid.setdefault(mask, [0] * len(left))
        while size:
            moved = _augment(left, laid, mask, size, here)
            if not moved:
                return False
            size -= moved
    return True


def _augment(left: list[int], laid: dict[int, list[int]], mask: int, size: int, here: list[int]) -> int:
    came: dict[int, tuple[int, int] | None] = dict.fromkeys(bits(mask))
    queue = list(came)
    for node in queue:
        if left[node]:
            return _move(left, laid, (node, size), came, here)
        for other, amounts in laid.items():
            if amounts[node]:
                for target in bits(other):
                    if target not in came:
                        came[target] = (node, other)
                        queue.append(target)
    return 0


def _move(
    left: list[int],
    laid: dict[int, list[int]],
    last: tuple[int, int],
    came: dict[int, tuple[int, int] | None],
    here: list[int],
) -> int:
    node, most = last
    chain, amount, at = [], min(most, left[node]), node
    while (step := came[at]) is not None:
        source, other = step
        amount = min(amount, laid[other][source])
        chain.append((source, at, laid[other]))
        at = source
    left[node] -= amount
    for source, target, amounts in chain:
        amounts[source] -= amount
        amounts[target] += amount
    here[at] += amount
    return amount
