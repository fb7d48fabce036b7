"""Which CPUs of one node an instance may have for itself: whole cores, those first that fewest others have chosen.

Called by `policy.cpus`. Who has chosen CPUs would have to leave them; an instance that may run on all CPUs of the node
has chosen none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from incus_numa.model.machine import Core
from incus_numa.policy.ledger import Ledger
from incus_numa.policy.picking import fitting
from incus_numa.policy.rooms import bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Seat:
    """What a core has to give: its allowed CPUs as a mask, and what speaks against taking them."""

    core: Core
    own: int
    halved: bool
    leaving: int
    kept: int

    @property
    def size(self) -> int:
        """How many CPUs it has to give."""
        return self.own.bit_count()


def pick(ledger: Ledger, node: int, allowed: int, share: int, has: int) -> int:
    """So many of the allowed CPUs of the node, which are no fewer. Prefers CPUs of `has` among equals.

    As few CPUs as possible are left on cores of which others are taken; then cores of which all threads can be had,
    those that fewest have chosen, and fewer L3 caches.
    """
    chosen = _pick(ledger, node, allowed, share, has)
    # Cores it has come first, so having these may show better ones. Each turn is better, so this ends.
    while (again := _pick(ledger, node, allowed, share, chosen)) != chosen:
        chosen = again
    return chosen


def _pick(ledger: Ledger, node: int, allowed: int, share: int, has: int) -> int:
    seats = _seats(ledger, node, allowed, has)
    options: list[Sequence[Seat]] = [_choose(seats, share)]
    if (allowed & has).bit_count() == share:
        options.append([seat for seat in seats if seat.kept])
    caches = {seat.core.l3 for seat in seats}
    for l3 in caches if len(caches) > 1 else ():
        group = [seat for seat in seats if seat.core.l3 == l3]
        if sum(seat.size for seat in group) >= share:
            options.append(_choose(group, share))

    def quality(chosen: Sequence[Seat]) -> tuple[int, int, int, int, int, tuple[int, ...]]:
        return (
            sum(seat.size for seat in chosen),
            sum(seat.halved for seat in chosen),
            sum(seat.leaving for seat in chosen),
            len({seat.core.l3 for seat in chosen}),
            -sum(seat.kept for seat in chosen),
            tuple(sorted(seat.core.id for seat in chosen)),
        )

    return _cut(min(options, key=quality), share, has)


def _seats(ledger: Ledger, node: int, allowed: int, has: int) -> list[Seat]:
    """The cores in the order in which they are taken: L3 by L3 where they are equally good."""
    usable = ledger.usable[node].mask
    others = [here for one in ledger.entries.values() if (here := one.cpus & usable) and here != usable]
    seats = [
        Seat(
            core=core,
            own=own,
            halved=own != core.mask,
            leaving=sum(1 for mask in others if mask & own),
            kept=(own & has).bit_count(),
        )
        for core in ledger.machine.cores_by_node[node]
        if (own := core.mask & allowed)
    ]
    kept, idle = dict[int | None, int](), dict[int | None, int]()
    for seat in seats:
        l3 = seat.core.l3
        kept[l3] = kept.get(l3, 0) + seat.kept
        idle[l3] = idle.get(l3, 0) + (0 if seat.halved or seat.leaving else seat.size)
    place = {
        l3: at for at, l3 in enumerate(sorted(kept, key=lambda l3: (-kept[l3], -idle[l3], -1 if l3 is None else l3)))
    }
    return sorted(seats, key=lambda seat: (seat.halved, seat.leaving, place[seat.core.l3], -seat.kept, seat.core.id))


def _choose(seats: Sequence[Seat], share: int) -> list[Seat]:
    return [seats[place] for place in fitting([seat.size for seat in seats], share)]


def _cut(chosen: Sequence[Seat], share: int, has: int) -> int:
    """The CPUs of the cores. What they have too many is left on the core that fewest of its CPUs are kept of."""
    mask = sum(seat.own for seat in chosen)
    left = mask.bit_count() - share
    if left:
        last = max(chosen, key=lambda seat: (seat.size - seat.kept, seat.leaving, seat.core.id))
        spare = sorted(bits(last.own), key=lambda cpu: (has >> cpu & 1, -cpu))
        mask &= ~sum(1 << cpu for cpu in spare[:left])
    return mask
