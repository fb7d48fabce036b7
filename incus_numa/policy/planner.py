"""From a snapshot to a plan. The daemon and the commands call `plan`; `daemon.observe` calls `place_new` at a start.

What an instance has is kept while it is legal and as narrow as possible, so adding an instance never moves another and
planning twice changes nothing. The server's own choice at start is kept only where it costs no more than ours.

Exclusive CPUs are given first. Then nodes are chosen for all that have none, together (see `batch`), and last CPUs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from incus_numa.cpuset import CpuSet, NodeSet
from incus_numa.model.instance import Instance, InstanceKey, Policy
from incus_numa.model.plan import Placement, Plan, Proof, Rejection
from incus_numa.model.snapshot import Observed, Snapshot
from incus_numa.policy import batch, candidates, cores, cpus, exclusive, keeping, reasons, refusals
from incus_numa.policy.batch import Choice
from incus_numa.policy.candidates import Candidate
from incus_numa.policy.desk import Desk, Standing, open_desk
from incus_numa.policy.field import Need
from incus_numa.policy.policies import RULES
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
    owners = [one for one in free if one.demand.exclusive]
    sharers = [one for one in free if not one.demand.exclusive]
    others = [one for one in instances if one.key not in keys]
    keepers = keeping.Keepers(desk, others)
    owning = _stay_with_theirs(desk, owners, sharers, keepers, others) if owners else set[InstanceKey]()
    staying = keepers.stay(sharers)
    waiting = [one for one in sharers if one.key not in staying]
    for instance in waiting:
        desk.ledger.release(instance.key)
    kept = [one for one in sharers if one.key in staying]
    if len(owning) < len(owners):
        # CPUs are given away beside those that will be had, which may be others than those that are had now.
        for instance in kept:
            keeping.keep(desk, instance)
    answers |= _own(desk, owners, owning)
    answers |= {instance.key: keeping.keep(desk, instance) for instance in kept}
    answers |= _place_all(desk, waiting)
    _narrow(desk, sharers, answers)
    _spread_out(desk, [*waiting, *kept], answers)
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
    sharers = [one for one in free if not one.demand.exclusive]
    owners = [one for one in free if one.demand.exclusive]
    answers |= _own(desk, owners, frozenset())
    answers |= _place_all(desk, sharers)
    _narrow(desk, sharers, answers)
    # Without a wish for one kind of cores, idle ones were chosen before shared ones.
    wishing = [one for one in sharers if one.demand.cores is not None]
    if wishing:
        _spread_out(desk, wishing, answers)
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


def _stay_with_theirs(
    desk: Desk,
    owners: Iterable[Instance],
    sharers: Iterable[Instance],
    keepers: keeping.Keepers,
    others: Iterable[Instance],
) -> set[InstanceKey]:
    """The owners that keep their CPUs beside those who would stay if nobody had any; the others are not counted."""
    for owner in owners:
        desk.ledger.release(owner.key)
    staying = keeping.Keepers(desk, others).stay(sharers)
    leaving = [one for one in sharers if one.key not in staying]
    for instance in leaving:
        desk.ledger.release(instance.key)
    for owner in owners:
        desk.commit_as_is(owner)
    owning = exclusive.stay(desk, _largest_first(owners), keepers)
    for instance in leaving:
        desk.commit_as_is(instance)
    return owning


def _largest_first(owners: Iterable[Instance]) -> list[Instance]:
    return sorted(owners, key=lambda one: (-(one.demand.vcpus or 0), one.key))


def _own(desk: Desk, owners: Iterable[Instance], staying: Set[InstanceKey]) -> Answers:
    """Exclusive CPUs: those of owners that stay, else chosen, the largest first. Owners that do not are not counted."""
    answers: Answers = {}
    for owner in _largest_first(owners):
        decided = desk.observed(owner).decided
        if owner.key in staying and decided is not None and decided.cpus is not None:
            answers[owner.key] = desk.placement(owner, decided.nodes, decided.cpus, reasons.kept(decided.nodes))
            continue
        found = exclusive.find(desk, owner)
        if isinstance(found, Rejection):
            desk.commit_as_is(owner, exclusive=False)
            answers[owner.key] = found
            continue
        candidate, cpu_set = found
        need = desk.need(owner)
        reason = f"{reasons.why(desk, need, candidate.nodes, reasons.BEST)}; its CPUs are exclusive"
        reason += reasons.outweighed(desk, owner, need, candidate.nodes)
        desk.commit(owner, candidate.nodes, cpu_set)
        answers[owner.key] = desk.placement(owner, candidate.nodes, cpu_set, reason)
    return answers


def _place_all(desk: Desk, instances: Iterable[Instance]) -> Answers:
    """Place instances that are not counted.

    One that is refused stays where it is, which the others must know: they are placed again with it counted there.
    """
    order = batch.order(desk, instances)
    desk = replace(desk, search_limit=batch.search_limit(len(order)))
    refused: dict[InstanceKey, Rejection] = {}
    while True:
        chosen: list[Choice] = []
        found: dict[InstanceKey, Rejection] = {}
        for instance in order:
            choice = refused.get(instance.key) or _choose_nodes(desk, instance)
            if isinstance(choice, Rejection):
                found[instance.key] = choice
            else:
                chosen.append(choice)
        if found.keys() == refused.keys():
            break
        refused = found
        for choice in chosen:
            desk.ledger.release(choice.instance.key)
    answers: Answers = dict(refused)
    _narrow_choices(desk, chosen)
    for choice in batch.improve(desk, chosen):
        answers[choice.instance.key] = _settle(desk, choice)
    return answers


def _narrow_choices(desk: Desk, choices: list[Choice]) -> None:
    """Give fewer nodes to those that now fit on fewer, until there is none: the largest first is not always best."""
    freed = True
    while freed:
        freed = False
        for index, choice in enumerate(choices):
            found = keeping.narrower(desk, choice.instance, choice.nodes) if len(choice.nodes) > 1 else None
            if found is not None:
                desk.ledger.release(choice.instance.key)
                choices[index] = _choice(desk, choice.instance, desk.need(choice.instance), found)
                freed = True


def _pinned(desk: Desk, instance: Instance) -> Placement:
    """An explicit CPU list is respected: its nodes are recorded and its memory follows the memory rule if it fits.

    Asked when all others have their places, so that the answer is the same when planning again.
    """
    pinned = instance.demand.pinned_cpus or desk.machine.online
    cpu_set = pinned & desk.machine.online
    nodes = desk.machine.nodes_of(cpu_set)
    reason = f"limits.cpu lists CPUs {pinned}: respected, on node{'s' if len(nodes) != 1 else ''} {nodes}"
    found = desk.placement(instance, nodes, cpu_set, reason)
    # What is bound already stays so for as long as the nodes could hold it at all: others never unbind it.
    bound = found.mems == desk.observed(instance).mems
    ledger = desk.empty if bound else desk.ledger
    lacking = refusals.lacking_memory(ledger, instance, nodes) if found.mems is not None else None
    return found if lacking is None else replace(found, mems=None, reason=f"{reason}; memory is not bound: {lacking}")


def _place(desk: Desk, instance: Instance) -> Placement | Rejection:
    """Choose nodes, then CPUs inside them, and commit them; or refuse and count it where it is."""
    choice = _choose_nodes(desk, instance)
    return choice if isinstance(choice, Rejection) else _settle(desk, choice)


def _choose_nodes(desk: Desk, instance: Instance) -> Choice | Rejection:
    """Choose nodes and count the instance there; or refuse and count it where it is.

    Memory that is only usage is left out where no nodes would be allowed with it.
    """
    if not desk.ledger.total_cpus:
        desk.commit_as_is(instance)
        return refusals.no_cpus(desk, instance)
    need, rule = desk.need(instance), RULES[instance.policy]
    found = rule.find(desk, instance, need)
    if isinstance(found, Rejection) and need.memory_bytes and instance.demand.memory_is_usage:
        need = desk.firm_need(instance)
        found = rule.find(desk, instance, need)
    if isinstance(found, Rejection):
        desk.commit_as_is(instance)
        return found
    return _choice(desk, instance, need, found)


def _choice(desk: Desk, instance: Instance, need: Need, found: Candidate) -> Choice:
    """The set that was found, or an equally good one that it has, counted without CPUs."""
    nodes, why = _prefer_what_it_has(desk, need, found, desk.observed(instance))
    desk.commit(instance, nodes, CpuSet())
    return Choice(instance=instance, need=need, nodes=nodes, why=why, found=found)


def _settle(desk: Desk, choice: Choice) -> Placement:
    """CPUs inside the nodes that were chosen, counted."""
    instance, nodes, need = choice.instance, choice.nodes, choice.need
    observed = desk.observed(instance)
    wish = desk.wish(instance, nodes, observed.cpus, need)
    cpu_set = cpus.choose(desk.ledger, nodes, wish)
    has = None if observed.decided else observed.cpus
    if (
        has
        and not wish.pack
        and cpus.legal(desk.ledger, nodes, has, wish.count, cores=wish.cores)
        and cpus.burden(desk.ledger, has, need.weight, cores=wish.cores)
        <= cpus.burden(desk.ledger, cpu_set, need.weight, cores=wish.cores)
    ):
        # The server's own choice is kept where it is as good, so that nothing is written without need.
        cpu_set = has
    if instance.policy is Policy.NONE:
        reason = "policy none: all usable CPUs of the machine"
    else:
        reason = reasons.why(desk, need, nodes, choice.why) + reasons.proved(choice.found, nodes)
        reason += reasons.outweighed(desk, instance, need, nodes)
    desk.ledger.give_cpus(instance.key, cpu_set.mask)
    found = choice.found
    proof = Proof(cost=found.cost, bound=found.bound, least_width=found.least_width) if nodes == found.nodes else None
    return desk.placement(instance, nodes, cpu_set, reason, proof)


def _prefer_what_it_has(desk: Desk, need: Need, found: Candidate, observed: Observed) -> tuple[NodeSet, str]:
    has = observed.given
    if has and has != found.nodes and len(has) == len(found.nodes) and has <= desk.ledger.nodes:
        same = candidates.cost(desk.ledger, need, has, desk.settings) <= found.cost
        if same and candidates.fits(desk.ledger, need, has):
            return has, reasons.NO_WORSE
    return found.nodes, reasons.BEST


def _narrow(desk: Desk, instances: Iterable[Instance], answers: Answers) -> None:
    """Give fewer nodes to those that now fit on fewer, and try again what was refused, until nothing changes.

    Each change makes the placements narrower or the refusals fewer, so this ends.
    """
    changed = True
    while changed:
        changed = False
        for instance in instances:
            answer = answers[instance.key]
            if isinstance(answer, Placement) and len(answer.nodes) > 1:
                found = keeping.narrower(desk, instance, answer.nodes)
                if found is not None:
                    desk.ledger.release(instance.key)
                    answers[instance.key] = _settle(desk, _choice(desk, instance, desk.need(instance), found))
                    changed = True
        for instance in instances:
            if isinstance(answers[instance.key], Rejection):
                desk.ledger.release(instance.key)
                answers[instance.key] = _place(desk, instance)
                changed = changed or isinstance(answers[instance.key], Placement)


def _spread_out(desk: Desk, instances: Iterable[Instance], answers: Answers) -> None:
    """With smt = "spread", leave shared cores while others stay idle. New ones come first: who is there stays."""
    if desk.settings.smt != "spread":
        return
    idle = cores.IdleCores(desk.ledger)
    for instance in instances:
        answer = answers[instance.key]
        if isinstance(answer, Placement):
            better = idle.spread_out(answer.nodes, answer.cpus, instance.demand.cores)
            if better is not answer.cpus:
                desk.commit(instance, answer.nodes, better)
                answers[instance.key] = replace(answer, cpus=better)


def _assemble(desk: Desk, answers: Mapping[InstanceKey, Placement | Rejection], judged: Iterable[Instance]) -> Plan:
    ledger = desk.ledger
    warnings = [
        f"{one.key}: limits.cpu asks for {one.demand.vcpus} CPUs, the machine has {ledger.total_cpus} usable: "
        "it gets the whole machine"
        for one in judged
        if not one.demand.exclusive
        and (one.demand.vcpus or 0) > ledger.total_cpus
        and isinstance(answers[one.key], Placement)
    ]
    ordered = [answers[key] for key in sorted(answers)]
    return Plan(
        placements=tuple(one for one in ordered if isinstance(one, Placement)),
        rejections=tuple(one for one in ordered if isinstance(one, Rejection)),
        node_load={node: round(load, 9) + 0.0 for node, load in ledger.report_load().items()},
        warnings=tuple(warnings),
    )
