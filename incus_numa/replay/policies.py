"""The policies that can be replayed, by name: our own under their names, and the peers'."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from incus_numa.model.instance import Policy
from incus_numa.replay.ground import Ground, Placer
from incus_numa.replay.peer_incus import IncusCount
from incus_numa.replay.peer_kubelet import KubeletHints
from incus_numa.replay.peer_numad import NumadScore
from incus_numa.replay.planned import Planned
from incus_numa.settings import PlacementSettings

PEERS: Mapping[str, Callable[[Ground], Placer]] = {
    "incus": IncusCount,
    "kubelet": partial(KubeletHints, restricted=False),
    "kubelet-restricted": partial(KubeletHints, restricted=True),
    "numad": partial(NumadScore, advises=False),
    "numad-advice": partial(NumadScore, advises=True),
}

NAMES = (*(policy.value for policy in Policy), *PEERS)
"""Every name, our own policies first."""

COMPARED = (Policy.BALANCED.value, *PEERS)
"""What is compared when nobody says what."""


def placer(name: str, ground: Ground, settings: PlacementSettings) -> Placer:
    """A new placer of the policy, which is one of NAMES, on an empty machine."""
    return PEERS[name](ground) if name in PEERS else Planned(ground, settings, Policy(name))
