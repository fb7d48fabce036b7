"""What certain versions of the servers do wrong. Pure; the only place that looks at version numbers. Used by `check`.

What a server offers is asked by its API extensions. A version is looked at only where no extension came with a change:
choosing several nodes, and the bound that 7.0.2 gave it.

Source: the server's own code and the virtual host's experiments; see docs/servers.md.
"""

from __future__ import annotations

import re

from incus_numa.server.protocol import Product, ServerInfo


def panics_on_wide_balanced(info: ServerInfo) -> bool:
    """Whether this incusd dies when an instance with `balanced` asks for more nodes than there are.

    Choosing several nodes came with 6.0.4 and 6.10 without a bound; 7.0.2 caps it. A version that cannot be read is
    taken as one that dies.
    """
    if info.product is not Product.INCUS:
        return False
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", info.version)
    if match is None:
        return True
    major, minor, patch = int(match[1]), int(match[2]), int(match[3] or 0)
    if (major, minor) == (6, 0):
        return patch >= 4
    return (major, minor) >= (6, 10) and (major, minor, patch) < (7, 0, 2)


def nodes_picked(vcpus: int, total_cpus: int, nodes: int) -> int:
    """How many nodes incusd picks: ceil(limits.cpu / (CPUs / nodes)), all CPUs counted, isolated and offline, too."""
    per_node = max(1, total_cpus // max(1, nodes))
    return -(-vcpus // per_node)
