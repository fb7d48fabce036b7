"""From a snapshot to a plan. The daemon and the commands call `plan`; `daemon.observe` calls `place_new` at a start.

What an instance has is kept while it is legal and as narrow as possible, so adding an instance never moves another and
planning twice changes nothing. The server's own choice at start is kept only where it costs no more than ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from incus_numa.cpuset import NodeSet
from incus_numa.model.instance import Instance, InstanceKey, Policy
from incus_numa.model.plan import Placement, Plan, Rejection
from incus_numa.model.snapshot import Observed, Snapshot
from incus_numa.policy import candidates, cores, cpus, keeping, refusals, scoring
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk, Standing, open_desk
from incus_numa.policy.search import Need
from incus_numa.quantities import render_bytes
from incus_numa.settings import PlacementSettings

Answers = dict[InstanceKey, Placement | Rejection]


def plan(snapshot: Snapshot, settings: PlacementSettings, *, only: frozenset[InstanceKey] | None = None) -> Plan:
    """Placements and rejections for the managed instances (those in `only`, if given; the rest stay as they are).

    Pure and repeatable: the order of `snapshot.instances` never matters.
    """
    instances = sorted(snapshot.instances, key=lambda instance: instance.key)
    desk = open_desk(snapshot, settings, instances)
    judged = [one for one in instances if one.managed and (only is None or one.key in only)]
    answers, pinned, free = _sort_out(desk, judged)
    keys = {one.key for one in free}
    keepers = keeping.Keepers(desk, (one for one in instances if one.key not in keys))
    staying = keepers.stay(free)
    waiting = [one for one in free if one.key not in staying]
    for instance in waiting:
        desk.ledger.release(instance.key)
    for instance in free:
        if instance.key in staying:
            answers[instance.key] = keeping.keep(desk, instance)
    answers |= _place_all(desk, waiting)
    _narrow(desk, free, answers)
    _spread_out(desk, [*waiting, *(one for one in free if one.key in staying)], answers)
    answers |= {instance.key: _pinned(desk, instance) for instance in pinned}
    return _assemble(desk, answers, judged)


def place_new(standing: Standing, snapshot: Snapshot) -> Plan:
    """`plan` for instances that have no decision yet, where all others are counted in `standing` already.

    The same answer as `plan` of the whole snapshot with `only` these instances, for a fraction of the work: the
    snapshot needs to hold only them. `standing` does not change.
    """
    desk = standing.open_desk(snapshot)
    judged = sorted((one for one in snapshot.instances if one.managed), key=lambda one: one.key)
    answers, pinned, free = _sort_out(desk, judged)
    for instance in free:
        desk.ledger.release(instance.key)
    answers |= _place_all(desk, free)
    _narrow(desk, free, answers)
    answers |= {instance.key: _pinned(desk, instance) for instance in pinned}
    return _assemble(desk, answers, judged)


def _sort_out(desk: Desk, judged: Iterable[Instance]) -> tuple[Answers, list[Instance], list[Instance]]:
    """Refusals of those whose own keys allow no placement, those that are pinned, and those to choose nodes for."""
    answers: Answers = {}
    pinned: list[Instance] = []
    free: list[Instance] = []
    for instance in judged:
        refused = refusals.refuse(desk, instance)
        if refused is not None:
            answers[instance.key] = refused
        elif instance.demand.pinned_cpus is not None:
            pinned.append(instance)
        else:
            free.append(instance)
    return answers, pinned, free


def _place_all(desk: Desk, instances: Iterable[Instance]) -> Answers:
    """Place instances that are not counted, the largest first.

    One that is refused stays where it is, which the others must know: they are placed again with it counted there.
    """
    order = sorted(instances, key=lambda one: _largest_first(desk, one))
    refused: Answers = {}
    while True:
        answers: Answers = {}
        for instance in order:
            answers[instance.key] = refused.get(instance.key) or _place(desk, instance)
        found: Answers = {key: answer for key, answer in answers.items() if isinstance(answer, Rejection)}
        if found.keys() == refused.keys():
            return answers
        refused = found
        for instance in order:
            if instance.key not in refused:
                desk.ledger.release(instance.key)


def _pinned(desk: Desk, instance: Instance) -> Placement:
    """An explicit CPU list is respected: its nodes are recorded and its memory follows the memory rule if it fits.

    Asked when all others have their places, so that the answer is the same when planning again.
    """
    pinned = instance.demand.pinned_cpus or desk.machine.online
    cpu_set = pinned & desk.machine.online
    nodes = desk.machine.nodes_of(cpu_set)
    reason = f"limits.cpu lists CPUs {pinned}: respected, on node{_s(len(nodes))} {nodes}"
    found = desk.placement(instance, nodes, cpu_set, reason)
    # What is bound already stays so for as long as the nodes could hold it at all: others never unbind it.
    bound = found.mems == desk.observed(instance).mems
    ledger = desk.empty if bound else desk.ledger
    lacking = refusals.lacking_memory(ledger, instance, nodes) if found.mems is not None else None
    return found if lacking is None else replace(found, mems=None, reason=f"{reason}; memory is not bound: {lacking}")


def _place(desk: Desk, instance: Instance) -> Placement | Rejection:
    """Choose nodes, then CPUs inside them, and commit them; or refuse and count it where it is.

    Memory that is only usage is left out where no nodes would be allowed with it.
    """
    need, firm = desk.need(instance), desk.firm_need(instance)
    found = _find(desk, instance, need)
    if isinstance(found, Rejection) and need != firm:
        need, found = firm, _find(desk, instance, firm)
    if isinstance(found, Rejection):
        desk.commit_as_is(instance)
        return found
    return _settle_on(desk, instance, need, found)


def _find(desk: Desk, instance: Instance, need: Need) -> Candidate | Rejection:
    """The best set of nodes that the policy allows."""
    if instance.policy is Policy.NONE:
        return Candidate(nodes=desk.ledger.cpu_nodes, cost=0.0)
    found = candidates.best(desk.ledger, need, desk.settings)
    if found is None:
        return refusals.too_big(desk, instance)
    return refusals.forbidden_width(desk, instance, len(found.nodes)) or found


def _settle_on(desk: Desk, instance: Instance, need: Need, found: Candidate) -> Placement:
    """Commit an uncounted instance to the set that was found for it, or to an equally good one that it has."""
    observed = desk.observed(instance)
    nodes, why = _prefer_what_it_has(desk, need, found, observed)
    wish = desk.wish(instance, nodes, observed.cpus)
    cpu_set = cpus.choose(desk.ledger, nodes, wish)
    has = None if observed.decided else observed.cpus
    if (
        has
        and not wish.pack
        and cpus.legal(desk.ledger, nodes, has, wish.count)
        and cpus.burden(desk.ledger, has, need.weight) <= cpus.burden(desk.ledger, cpu_set, need.weight)
    ):
        # The server's own choice is kept where it is as good, so that nothing is written without need.
        cpu_set = has
    whole = instance.policy is Policy.NONE
    reason = "policy none: all usable CPUs of the machine" if whole else _why(desk, need, nodes, why)
    desk.commit(instance, nodes, cpu_set)
    return desk.placement(instance, nodes, cpu_set, reason)


def _prefer_what_it_has(desk: Desk, need: Need, found: Candidate, observed: Observed) -> tuple[NodeSet, str]:
    has = observed.nodes
    if has and len(has) == len(found.nodes) and has != found.nodes and has <= desk.ledger.nodes:
        same = candidates.cost(desk.ledger, need, has, desk.settings) <= found.cost
        if same and candidates.fits(desk.ledger, need, has):
            return has, "what it has costs no more than any other"
    return found.nodes, "least loaded and nearest"


def _narrow(desk: Desk, instances: Iterable[Instance], answers: Answers) -> None:
    """Give fewer nodes to those that now fit on fewer, until there is none; then try again what was refused.

    Each change makes the placements narrower or the refusals fewer, so this ends.
    """
    freed = True
    while freed:
        freed = False
        for instance in instances:
            answer = answers[instance.key]
            if isinstance(answer, Placement):
                found = keeping.narrower(desk, instance, answer.nodes)
                if found is not None:
                    desk.ledger.release(instance.key)
                    answers[instance.key] = _settle_on(desk, instance, desk.need(instance), found)
                    freed = True
        for instance in instances if freed else ():
            if isinstance(answers[instance.key], Rejection):
                desk.ledger.release(instance.key)
                answers[instance.key] = _place(desk, instance)


def _spread_out(desk: Desk, instances: Iterable[Instance], answers: Answers) -> None:
    """With smt = "spread", leave shared cores while others stay idle. New ones come first: who is there stays."""
    if desk.settings.smt != "spread":
        return
    idle = cores.IdleCores(desk.ledger)
    for instance in instances:
        answer = answers[instance.key]
        if isinstance(answer, Placement):
            better = idle.spread_out(answer.nodes, answer.cpus)
            if better is not answer.cpus:
                desk.commit(instance, answer.nodes, better)
                answers[instance.key] = replace(answer, cpus=better)


def _why(desk: Desk, need: Need, nodes: NodeSet, why: str) -> str:
    ledger = desk.ledger
    # Nodes without CPUs are counted where one of them is used.
    count = len(ledger.cpu_nodes if nodes <= ledger.cpu_nodes else ledger.cpu_nodes | desk.machine.memory_nodes)
    text = f"{len(nodes)} of {count} node{_s(count)} hold {need.cpus} vCPU{_s(need.cpus)}"
    if need.memory_bytes:
        text += f" and {render_bytes(need.memory_bytes)}"
    loads = [ledger.node_load[node] for node in nodes & ledger.cpu_nodes]
    text += f"; {why}: load before at most {max(loads, default=0.0):.2f}"
    distance = scoring.mean_distance(desk.machine, nodes)
    return text + (f", mean distance {distance:.0f}" if distance is not None else "")


def _largest_first(desk: Desk, instance: Instance) -> tuple[int, float, int, InstanceKey]:
    """An order that depends on the instance and the machine alone, so that it is the same when planning again."""
    need = desk.firm_need(instance)
    return -candidates.minimum_width(desk.empty, need), -need.weight, -need.memory_bytes, instance.key


def _assemble(desk: Desk, answers: Mapping[InstanceKey, Placement | Rejection], judged: Iterable[Instance]) -> Plan:
    ledger = desk.ledger
    warnings = [
        f"{one.key}: limits.cpu asks for {one.demand.vcpus} CPUs, the machine has {ledger.total_cpus} usable: "
        "it gets the whole machine"
        for one in judged
        if (one.demand.vcpus or 0) > ledger.total_cpus and isinstance(answers[one.key], Placement)
    ]
    ordered = [answers[key] for key in sorted(answers)]
    return Plan(
        placements=tuple(one for one in ordered if isinstance(one, Placement)),
        rejections=tuple(one for one in ordered if isinstance(one, Rejection)),
        node_load={node: round(load, 9) + 0.0 for node, load in ledger.node_load.items() if ledger.cpu_count[node]},
        warnings=tuple(warnings),
    )


def _s(count: int) -> str:
    return "s" if count != 1 else ""
