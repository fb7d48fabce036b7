"""What servers do wrong is said of those that it is true of, and of no other."""

from __future__ import annotations

import pytest

from incus_numa.server import quirks
from incus_numa.server.protocol import Product, ServerInfo
from incus_numa.simulator.personalities import PERSONALITIES


def info(name: str) -> ServerInfo:
    one = PERSONALITIES[name]
    return ServerInfo(product=one.product, version=one.version, extensions=one.offered)


@pytest.mark.parametrize("name", PERSONALITIES)
def test_servers_that_die_of_wide_instances_are_those_that_the_simulator_lets_die(name: str) -> None:
    one = PERSONALITIES[name]
    dies = one.panics and one.product is Product.INCUS
    assert quirks.panics_on_wide_balanced(info(name)) == dies


@pytest.mark.parametrize(
    ("version", "dies"),
    [
        ("6.0.3", False),
        ("6.0.4", True),
        ("6.0.9", True),
        ("6.9", False),
        ("6.10", True),
        ("6.22.1", True),
        ("7.0.1", True),
        ("7.0.2", False),
        ("7.1", False),
        ("of today", True),
    ],
)
def test_versions_that_die_of_wide_instances(version: str, dies: bool) -> None:
    one = ServerInfo(product=Product.INCUS, version=version, extensions=frozenset())
    assert quirks.panics_on_wide_balanced(one) == dies
