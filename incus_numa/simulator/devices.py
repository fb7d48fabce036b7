"""Cards plugged into the simulated host, and devices given to its instances. Used by tests through the simulator."""

from __future__ import annotations

from collections.abc import Mapping

from incus_numa.model.instance import InstanceKey
from incus_numa.simulator.cards import Card, write_card
from incus_numa.simulator.incus import Incus


class Devices:
    """The hands that plug cards into the host and give devices to instances."""

    def __init__(self, incus: Incus) -> None:
        self._incus = incus

    def plug(self, *cards: Card) -> None:
        """Add cards to the host."""
        for card in cards:
            write_card(self._incus.kernel.sysfs, card)
            self._incus.cards.append(card)

    def hide(self, interface: str) -> None:
        """Move a network interface into an instance: it is no longer seen in the host's `/sys`."""
        (self._incus.kernel.sysfs / "class/net" / interface).unlink()

    def give(self, key: InstanceKey, name: str, device: Mapping[str, str], **volatile: str) -> None:
        """Add a device to an instance or replace it; `volatile` is what the server notes about it."""
        record = self._incus.get(key)
        record.devices[name] = dict(device)
        for what, value in volatile.items():
            record.config[f"volatile.{name}.{what.replace('_', '.')}"] = value
        self._tell(key)

    def take(self, key: InstanceKey, name: str) -> None:
        """Remove a device from an instance, and what the server noted about it."""
        record = self._incus.get(key)
        del record.devices[name]
        for noted in [one for one in record.config if one.startswith(f"volatile.{name}.")]:
            del record.config[noted]
        self._tell(key)

    def _tell(self, key: InstanceKey) -> None:
        self._incus.update(self._incus.get(key))
        self._incus.send("instance-updated", key)
