"""The sentences that say why an instance is where it is. Called by the planner."""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.policy import scoring
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk
from incus_numa.policy.field import Need
from incus_numa.quantities import render_bytes

BEST = "least loaded and nearest"
NO_WORSE = "what it has costs no more than any other"
TOGETHER = "chosen together with the others so that the highest load is low"


def why(desk: Desk, need: Need, nodes: NodeSet, how: str) -> str:
    """Why these nodes, for an instance that is counted there already."""
    ledger = desk.ledger
    # Nodes without CPUs are counted where one of them is used.
    count = len(ledger.cpu_nodes if nodes <= ledger.cpu_nodes else ledger.cpu_nodes | desk.machine.memory_nodes)
    text = (
        f"{len(nodes)} of {count} node{'s' if count != 1 else ''} hold {need.cpus} vCPU{'s' if need.cpus != 1 else ''}"
    )
    if need.memory_bytes:
        text += f" and {render_bytes(need.memory_bytes)}"
    for size, amount in need.hugepages:
        text += f" and {render_bytes(amount)} of {render_bytes(size)} pages"
    loads = [ledger.node_load[node] for node in nodes & ledger.cpu_nodes]
    text += f"; {how}: load at most {max(loads, default=0.0):.2f}"
    distance = scoring.mean_distance(desk.machine, nodes) if len(nodes) > 1 else None
    return text + (f", mean distance {distance:.0f}" if distance is not None else "")


def proved(found: Candidate, nodes: NodeSet) -> str:
    """What the search could not prove, as the end of a sentence; nothing where it was complete."""
    text = ""
    if found.least_width < len(found.nodes):
        text += f"; the search was cut: fewer than {found.least_width} nodes do not hold it, {found.least_width} may"
    if found.bound < found.cost and nodes == found.nodes:
        text += f"; the search was cut: cost {found.cost:.4g}, no set costs less than {found.bound:.4g}"
    return text


def kept(nodes: NodeSet) -> str:
    """Why nothing changes."""
    return f"kept: node{'s' if len(nodes) > 1 else ''} {nodes} still hold{'' if len(nodes) > 1 else 's'} it"


def _s(count: int) -> str:
    return "s" if count != 1 else ""
