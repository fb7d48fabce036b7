"""A cluster of two members of different shapes: each member's daemon places what is on its own host, and only that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import pytest

from incus_numa.cpuset import NodeSet
from tests.lab.api import ApiError
from tests.lab.cluster import WAIT_S, Cluster, boot, in_parallel, join
from tests.lab.conftest import HOST, IMAGES, Figures, initialise, install
from tests.lab.host import CLUSTER, CommandError, Host
from tests.lab.lab import Lab

pytestmark = [pytest.mark.lab, pytest.mark.on("cluster")]

FIRST = {"east": ("small", 2), "west": ("large", 2)}
"""Where containers are at first, and their vCPUs. Those of one node have their memory bound, which no server does."""


@pytest.fixture(scope="module")
def cluster(
    pytestconfig: pytest.Config, figures: Figures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Both hosts as one cluster, with incus-numa on each; others if one of them dies, as emulators have bugs."""
    for is_last in (False, True):
        began = time.monotonic()
        hosts = boot(IMAGES)
        figures.say("cluster: two hosts boot, until SSH answers", time.monotonic() - began)
        try:
            found = _set_up(hosts, figures, tmp_path_factory)
        except (CommandError, OSError) as error:
            print(error, *(host.read_serial() for host in hosts), sep="\n")
            for host in hosts:
                host.stop()
            if is_last:
                raise
        else:
            break
    pytestconfig.stash[HOST] = hosts[0]
    yield found
    for host in hosts:
        host.stop()


def _set_up(hosts: list[Host], figures: Figures, folders: pytest.TempPathFactory) -> Cluster:
    began = time.monotonic()
    labs = [Lab(host, CLUSTER) for host in hosts]
    installs = [partial(install, host, folders.mktemp("wheel")) for host in hosts]
    in_parallel([partial(initialise, labs[0]), *installs])
    figures.say("cluster: incus-numa installed", time.monotonic() - began)
    began = time.monotonic()
    found = join(labs)
    figures.say("cluster: joined", time.monotonic() - began)
    in_parallel([partial(lab.systemctl, "restart", "incus-numa") for lab in labs])
    return found


@pytest.fixture(scope="module", autouse=True)
def _clean(cluster: Cluster) -> None:
    """In the place of what other modules clean: these hosts end with this module."""


def test_each_member_places_its_own(cluster: Cluster) -> None:
    since = cluster.read_clocks()
    for name, (member, vcpus) in FIRST.items():
        cluster.launch(name, vcpus, member)
        cluster.settle(name, vcpus, member)
    assert cluster.find_named(since, FIRST) == {"east": {"small"}, "west": {"large"}}


def test_one_that_is_moved_to_a_member_ends_placed_there(cluster: Cluster, figures: Figures) -> None:
    since = cluster.read_clocks()
    began = time.monotonic()
    cluster.stop("east")
    cluster.move("east", "large")
    seen = cluster.settle("east", 2, "large")
    figures.say("cluster: stopped, moved, started and placed", time.monotonic() - began)
    assert cluster.location("east") == "large"
    assert seen.nodes & cluster.members["large"].see("west").nodes == NodeSet()
    assert cluster.find_named(since, ["east"]) == {"east": {"large"}}


def test_one_that_runs_is_not_moved_without_a_stop(cluster: Cluster) -> None:
    before = cluster.members["large"].see("east")
    with pytest.raises(ApiError):
        cluster.move("east", "small")
    assert cluster.members["large"].see("east") == before


def test_a_member_without_its_daemon_is_not_looked_after_by_the_other(cluster: Cluster) -> None:
    large = cluster.members["large"]
    large.systemctl("stop", "incus-numa")
    cluster.launch("orphan", 1, "large")
    cluster.members["small"].host.run("sleep 3")
    assert not large.see("orphan").mems, "nobody bound its memory"
    large.systemctl("start", "incus-numa")
    cluster.settle("orphan", 1, "large")
    large.delete("orphan")


def test_those_of_an_evacuated_member_are_placed_on_the_other(cluster: Cluster, figures: Figures) -> None:
    began = time.monotonic()
    cluster.change_member("large", "evacuate", mode="migrate")
    figures.say("cluster: evacuated", time.monotonic() - began)
    seen = {name: cluster.settle(name, vcpus, "small", WAIT_S) for name, (_, vcpus) in FIRST.items()}
    figures.say("cluster: ... and placed", time.monotonic() - began)
    assert seen["east"].nodes & seen["west"].nodes == NodeSet()
