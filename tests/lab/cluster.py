"""A cluster of two virtual hosts of different shapes, joined by a wire. Used by test_cluster.py.

Each has a network card of its own for the other one, beside the one that leads here.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.lab.api import Api, ApiError
from tests.lab.host import CLUSTER, CommandError, Host, Shape
from tests.lab.lab import SETTLE_S, Lab, Seen

SHAPES = {"small": Shape(nodes=2, mib_per_node=1024), "large": Shape(nodes=4, mib_per_node=512)}
"""The members; the first makes the cluster, and the second joins it."""

PORT = 8443
WAIT_S = 400.0
"""How long a change of the cluster may take: it is many requests of one emulated server to the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Members by name, each with its own host, kernel, daemon and door to the API."""

    members: Mapping[str, Lab]

    def launch(self, name: str, vcpus: int, member: str) -> None:
        """Create and start a managed container on a member."""
        lab = self.members[member]
        config = {"limits.cpu": str(vcpus), lab.server.opt_in: "balanced"}
        body = {"name": name, "source": {"type": "image", "alias": "tiny"}, "config": config}
        lab.api.request("POST", f"/1.0/instances?target={member}", body)
        lab.start(name)

    def move(self, name: str, member: str) -> None:
        """Move a stopped container to a member and start it there."""
        lab = self.members[member]
        # From here and not from where it is, as a user would who sits at the target.
        lab.api.request("POST", f"/1.0/instances/{name}?target={member}", {"name": name, "migration": True})
        lab.start(name)

    def stop(self, name: str) -> None:
        """Stop a container, wherever it is."""
        lab = next(iter(self.members.values()))
        lab.api.request("PUT", f"/1.0/instances/{name}/state", {"action": "stop", "force": True, "timeout": 60})

    def change_member(self, member: str, action: str, **more: str) -> None:
        """Evacuate or restore a member, as told by another one."""
        other = next(lab for name, lab in self.members.items() if name != member)
        body = {"action": action, **more}
        Api(other.socket, WAIT_S).request("POST", f"/1.0/cluster/members/{member}/state", body)

    def location(self, name: str) -> str:
        """The member that the server says a container is on."""
        found: str = next(iter(self.members.values())).get(name)["location"]
        return found

    def settle(self, name: str, vcpus: int, member: str, within_s: float = SETTLE_S) -> Seen:
        """Wait until a container is on a member and placed there as its kernel shows it."""
        lab = self.members[member]
        lab.until(lambda: bool(lab.get_pid(name)), f"{name} runs on {member}", within_s)
        return lab.settle(name, vcpus, within_s=within_s)

    def find_named(self, since: Mapping[str, float], names: Iterable[str]) -> dict[str, set[str]]:
        """The members whose daemons have said anything about an instance since a time of their clocks."""
        said = {member: lab.journal(since[member]) for member, lab in self.members.items()}
        return {
            name: {member for member, lines in said.items() if any(f"instance={name} " in line for line in lines)}
            for name in names
        }

    def read_clocks(self) -> dict[str, float]:
        """The hosts' clocks."""
        return {name: lab.clock() for name, lab in self.members.items()}


def boot(images: Path) -> list[Host]:
    """Hosts that answer, in the order of SHAPES, with the wire between them; all new ones if one of them dies."""
    for is_last in (False, True):
        ports = _free_ports()
        hosts = [Host.start(images, CLUSTER, _wired(number, ports)) for number in range(len(SHAPES))]
        try:
            for host in hosts:
                host.wait()
            for number, host in enumerate(hosts):
                host.run(_render_address(number))
        except CommandError as error:
            for host in hosts:
                host.stop()
            if is_last:
                raise
            print(f"the first boot failed: {error}")
        else:
            return hosts
    raise AssertionError("not reached")


def join(labs: Sequence[Lab]) -> Cluster:
    """Make one server of both; the storage pool of the first must be there, and nothing else on either."""
    (first_name, second_name), (first, second) = SHAPES, labs
    first.api.request("PATCH", "/1.0", {"config": {"core.https_address": f"{_address(0)}:{PORT}"}})
    _put_cluster(first, {"server_name": first_name, "enabled": True})
    # A member that is slow to answer is not offline, as it would be after 20 s. (Incus 6.0.4 drops the connection when
    # this is set before there is a cluster.)
    first.api.request("PATCH", "/1.0", {"config": {"cluster.offline_threshold": "240"}})
    token = first.incus("cluster", "add", second_name, "--quiet").split()[-1]
    pool = {"entity": "storage-pool", "name": "default", "key": "source", "value": ""}
    preseed = {
        "cluster": {
            "enabled": True,
            "server_name": second_name,
            "server_address": f"{_address(1)}:{PORT}",
            "cluster_token": token,
            "member_config": [pool],
        }
    }
    # JSON is YAML, too.
    second.host.run("incus admin init --preseed", timeout_s=WAIT_S, stdin=json.dumps(preseed).encode())
    for lab in labs:
        lab.until(lambda lab=lab: _is_whole(lab), "both members are online", WAIT_S)  # type: ignore[misc]
    return Cluster(members=dict(zip(SHAPES, labs, strict=True)))


def in_parallel(jobs: Sequence[Callable[[], object]]) -> None:
    """Run calls without arguments at the same time; raises what the first of them raises."""
    with ThreadPoolExecutor() as pool:
        for job in [pool.submit(one) for one in jobs]:
            job.result()


def _is_whole(lab: Lab) -> bool:
    """Whether a member sees all; it cannot be asked while it has not found the database."""
    with contextlib.suppress(ApiError):
        return [one["status"] for one in lab.api.get("/1.0/cluster/members?recursion=1")] == ["Online"] * len(SHAPES)
    return False


def _put_cluster(lab: Lab, body: dict[str, object]) -> None:
    """The server takes the address that it was told to listen on; it may still be about to."""
    lab.api.request("PUT", "/1.0/cluster", body)
    lab.until(lambda: bool(lab.api.get("/1.0")["environment"]["server_clustered"]), "it is a cluster", WAIT_S)


def _wired(number: int, ports: Sequence[int]) -> Shape:
    """The shape of a member with a card for datagrams to and from the other, which need not be there first."""
    shape = list(SHAPES.values())[number]
    here, there = ports[number], ports[1 - number]
    net = f"socket,id=n1,udp=127.0.0.1:{there},localaddr=127.0.0.1:{here}"
    wire = ("-netdev", net, "-device", f"virtio-net-pci,netdev=n1,mac={_mac(number)}")
    return Shape(nodes=shape.nodes, mib_per_node=shape.mib_per_node, wire=wire)


def _render_address(number: int) -> str:
    """A shell command that gives the card of the wire its address."""
    find = f"$(basename $(dirname $(grep -l {_mac(number)} /sys/class/net/*/address)))"
    return f"card={find} && ip link set $card up && ip address add {_address(number)}/24 dev $card"


def _mac(number: int) -> str:
    return f"52:54:00:00:00:0{number + 1}"


def _address(number: int) -> str:
    return f"10.9.0.{number + 1}"


def _free_ports() -> list[int]:
    """Two ports for datagrams that nobody uses."""
    with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(type=socket.SOCK_DGRAM) as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in (one, other)]
