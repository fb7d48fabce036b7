"""The sentences that say why an instance is where it is. Called by the planner."""

from __future__ import annotations

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance
from incus_numa.policy import candidates, scoring
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


def outweighed(desk: Desk, instance: Instance, need: Need, nodes: NodeSet) -> str:
    """Why these nodes and not those that its memory is bound to, as the end of a sentence; nothing where they agree."""
    bound, ledger = instance.bound_nodes & desk.ledger.nodes, desk.ledger
    if not bound or bound & nodes:
        return ""
    entry = ledger.release(instance.key)
    has, does = ("has", "does") if len(bound) == 1 else ("have", "do")
    if not ledger.cpus_of(bound):
        why = f"which {has} no usable CPUs"
    elif not candidates.fits(ledger, need, bound):
        why = "which cannot hold it"
    elif len(bound) > len(nodes):
        why = "which are more than it needs"
    elif instance.device_nodes & nodes and not instance.device_nodes & bound:
        why = f"which {does} not have its devices"
    else:
        there, here = (candidates.cost(ledger, need, one, desk.settings) for one in (bound, nodes))
        why = f"which would cost {there:.4g}, {_named(nodes)} {'costs' if len(nodes) == 1 else 'cost'} {here:.4g}"
    if entry is not None:
        ledger.commit(instance.key, entry)
    return f"; the server bound its memory to {_named(bound)}, {why}"


def kept(nodes: NodeSet) -> str:
    """Why nothing changes."""
    return f"kept: node{'s' if len(nodes) > 1 else ''} {nodes} still hold{'' if len(nodes) > 1 else 's'} it"


def _named(nodes: NodeSet) -> str:
    return f"node{_s(len(nodes))} {nodes}"


def _s(count: int) -> str:
    return "s" if count != 1 else ""
