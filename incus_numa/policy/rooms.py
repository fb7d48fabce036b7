"""Memory: what is committed to sets of nodes, and what therefore still fits where. Part of the ledger.

An instance on several nodes may have its memory on any of them, so whether one more fits is a question of flow: can all
committed memory be laid out over the nodes so that enough is left? The answer never depends on the order in which
commitments were made, and more commitments never make room.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

UNKNOWN_SIZE = 1 << 80
"""Room assumed on a node whose memory size is unknown: it never decides."""


def bits(mask: int) -> Iterator[int]:
    """The ids in a mask, ascending."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Rooms:
    """Committed bytes by set of nodes, and one way to lay them out that is made when it is first asked for.

    `steps` counts the work of making room, ever growing.
    """

    def __init__(self, sizes: Mapping[int, int | None]) -> None:
        self._size = {node: UNKNOWN_SIZE if size is None else size for node, size in sizes.items()}
        self._unknown = frozenset(node for node, size in sizes.items() if size is None)
        self._single = dict.fromkeys(sizes, 0)
        self._wide: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._laid: dict[int, dict[int, int]] = {}
        self._settled = self._overfull = False
        self.steps = 0

    def fork(self) -> Rooms:
        """A copy that can change without changing this one; its layout is made anew when it is asked for."""
        new = Rooms({})
        new._size, new._unknown = self._size, self._unknown
        new._single, new._wide = dict(self._single), dict(self._wide)
        return new

    def add(self, mask: int, size: int) -> None:
        """Commit bytes to a set of nodes, whether they fit or not."""
        if not size or not mask:
            return
        if mask & (mask - 1):
            self._wide[mask] = self._wide.get(mask, 0) + size
            if self._settled:
                self._lay(mask, size)
        else:
            node = mask.bit_length() - 1
            self._single[node] += size
            if self._settled and self._left[node] >= size:
                self._left[node] -= size
            else:
                self._settled = False

    def take(self, mask: int, size: int) -> None:
        """Take back bytes that were committed to the same set of nodes."""
        if not size or not mask:
            return
        if mask & (mask - 1):
            self._wide[mask] -= size
            if not self._wide[mask]:
                del self._wide[mask]
            if self._settled and not self._overfull:
                self._unlay(mask, size)
            else:
                self._settled = False
        else:
            node = mask.bit_length() - 1
            self._single[node] -= size
            if self._settled and not self._overfull:
                self._left[node] += size
            else:
                self._settled = False

    @property
    def has_wide(self) -> bool:
        """Whether any memory is committed to more than one node."""
        return bool(self._wide)

    def open(self, node: int) -> int:
        """The most that one more instance could get on a node: what is not committed to it alone."""
        return max(0, self._size[node] - self._single[node])

    def left(self, node: int) -> int | None:
        """Bytes of a node that the present layout leaves free, None when its size is unknown."""
        if node in self._unknown:
            return None
        self._settle()
        return self._left[node]

    def holds(self, mask: int, size: int) -> bool:
        """Whether that many more bytes fit on the nodes, moving wider commitments inside their sets if needed."""
        if not size:
            return True
        most = sum(self.open(node) for node in bits(mask))
        if most < size:
            return False
        if not self._wide:
            return True
        # What is committed inside the set cannot leave it.
        if most - sum(wide for other, wide in self._wide.items() if not other & ~mask) < size:
            return False
        if most - sum(wide for other, wide in self._wide.items() if other & mask) >= size:
            return True
        self._settle()
        return self._clear(mask, size)

    def _settle(self) -> None:
        if self._settled:
            return
        self._settled, self._overfull = True, False
        self._left = {node: self.open(node) for node in self._size}
        self._laid = {}
        self._overfull = any(self._single[node] > size for node, size in self._size.items())
        for mask in sorted(self._wide, key=lambda mask: (mask.bit_count(), mask)):
            self._lay(mask, self._wide[mask])

    def _lay(self, mask: int, size: int) -> None:
        """Lay bytes over the set by what each node has left; what fits nowhere is counted nowhere."""
        self._clear(mask, size)
        left = {node: self._left[node] for node in bits(mask)}
        room = sum(left.values())
        if room < size:
            self._overfull, size = True, room
        laid = self._laid.setdefault(mask, dict.fromkeys(left, 0))
        missing = size
        for node, part in left.items():
            share = size * part // room if room else 0
            laid[node] += share
            self._left[node] -= share
            missing -= share
        for node in left:
            more = min(missing, self._left[node])
            laid[node] += more
            self._left[node] -= more
            missing -= more

    def _unlay(self, mask: int, size: int) -> None:
        laid = self._laid[mask]
        for node in laid:
            part = min(size, laid[node])
            laid[node] -= part
            self._left[node] += part
            size -= part

    def _clear(self, mask: int, size: int) -> bool:
        """Move what is laid on the nodes to others until so many bytes are left; False if that is impossible."""
        while sum(self._left[node] for node in bits(mask)) < size:
            if not self._shift(mask, size - sum(self._left[node] for node in bits(mask))):
                return False
        return True

    def _shift(self, mask: int, most: int) -> bool:
        """Free up to `most` bytes on the set along one shortest chain of commitments that can move over."""
        came: dict[int, tuple[int, int]] = {}
        seen, queue = mask, list(bits(mask))
        for node in queue:
            self.steps += len(self._laid)
            for wide, laid in self._laid.items():
                if not laid.get(node):
                    continue
                for target in bits(wide & ~seen):
                    seen |= 1 << target
                    came[target] = (node, wide)
                    if self._left[target]:
                        self._move_along(came, target, most)
                        return True
                    queue.append(target)
        return False

    def _move_along(self, came: Mapping[int, tuple[int, int]], end: int, most: int) -> None:
        chain, node = [], end
        while node in came:
            source, wide = came[node]
            chain.append((source, node, self._laid[wide]))
            node = source
        amount = min(most, self._left[end], *(laid[source] for source, _, laid in chain))
        for source, target, laid in chain:
            laid[source] -= amount
            laid[target] += amount
        self._left[end] -= amount
        self._left[node] += amount
