"""What `explain` says about load, locality and last moves, as facts and for people."""

from __future__ import annotations

from dataclasses import replace

import pytest

from incus_numa.cli import load_facts, output
from incus_numa.cpuset import NodeSet
from incus_numa.daemon.seen import Seen
from incus_numa.facts import load
from incus_numa.facts.survey import Measured, Survey
from incus_numa.model.instance import InstanceKey
from incus_numa.model.load import Load
from incus_numa.model.plan import Plan
from incus_numa.model.rebalance import Held, Hold, Move, MoveRecord
from incus_numa.model.sample import InstanceRates, Rates, Sample
from incus_numa.model.snapshot import Observed
from incus_numa.policy.rebalance.explain import Verdict
from incus_numa.policy.rebalance.staying import Option
from incus_numa.settings import RebalanceSettings, Settings
from tests import builders

WEB = builders.instance("web", vcpus=2)
LIMITS = RebalanceSettings()
RATES = InstanceRates(used_cpus=1.5, wanted_cpus=1.95, waiting=0.23, stalled=0.0, throttled=0.041)


def seen(observed: Observed) -> Seen:
    return Seen(instance=WEB, observed=observed, group=None, marked=None, etag=None, turn=1)


def survey(observed: Observed, rates: InstanceRates | None = None) -> Survey:
    snapshot = builders.snapshot(builders.machine(), WEB, observed={WEB.key: observed})
    measured = None
    if rates is not None:
        load = Load(cpus_by_instance={} if rates.wanted_cpus is None else {WEB.key: rates.wanted_cpus})
        known = Rates(sample=Sample(at_s=1.0), instances={WEB.key: rates})
        measured = Measured(rates=known, snapshot=replace(snapshot, load=load), node_load={})
    return Survey(
        machine=snapshot.machine, seen=(seen(observed),), snapshot=snapshot, plan=Plan(), load_now={}, measured=measured
    )


def record(at_s: float, name: str = "web") -> MoveRecord:
    move = Move(
        key=InstanceKey("default", name),
        before=NodeSet([0]),
        after=NodeSet([2]),
        gain=0.62,
        price=0.04,
        load_cpus=1.9,
        reason="node 0 was busy",
    )
    return MoveRecord(at_s=at_s, move=move, result="moved", moved_bytes=300 << 20, took_s=2.5)


def test_load_is_what_was_measured() -> None:
    facts = load.list_facts(survey(Observed(), RATES), seen(Observed()), (), None, LIMITS)
    assert facts["load"] == {
        "used_cpus": 1.5,
        "wanted_cpus": 1.95,
        "waiting": 0.23,
        "stalled": 0.0,
        "throttled": 0.041,
    }
    assert load_facts.lines(facts) == [
        (
            "load",
            "1.50 CPUs busy, 1.95 if nobody else wanted them; 23% of the time waiting for a CPU, 4% of the time "
            "throttled by its allowance",
        )
    ]


def test_load_that_is_unknown_is_no_number() -> None:
    facts = load.list_facts(survey(Observed(), InstanceRates()), seen(Observed()), (), None, LIMITS)
    assert set(facts["load"].values()) == {None}
    assert load_facts.lines(facts) == [("load", "unknown")]


def test_what_was_not_measured_is_not_told() -> None:
    facts = load.list_facts(survey(Observed()), seen(Observed()), (), None, LIMITS)
    assert facts == {"load": None, "locality": None, "rebalancer": None, "last_moves": []}
    assert load_facts.lines(facts) == []


@pytest.mark.parametrize(
    ("observed", "locality"),
    [
        (replace(builders.decided("0-1", "0-7"), memory={0: 3 << 20, 1: 2 << 20, 2: 5 << 20}), 0.5),
        (Observed(nodes=NodeSet([2]), memory={2: 1, 3: 3}), 0.25),
        (replace(builders.decided("1", "4"), nodes=NodeSet([0]), memory={0: 1}), 0.0),
        (Observed(memory={0: 1}), None),
        (Observed(nodes=NodeSet([0]), memory={0: 0}), None),
        (Observed(nodes=NodeSet([0])), None),
    ],
    ids=["decided", "recorded", "decided before recorded", "no nodes", "no memory", "unknown"],
)
def test_locality_is_the_part_of_the_memory_on_its_own_nodes(observed: Observed, locality: float | None) -> None:
    assert survey(observed).locality(seen(observed)) == locality
    assert survey(observed, RATES).locality(seen(observed)) == locality


def test_the_newest_moves_are_told_first_with_times_in_utc() -> None:
    records = [record(1_790_000_000.9 + 60 * minute) for minute in range(7)]
    moves = load.list_moves([*records, record(1_800_000_000, "other")], WEB.key)
    assert [one["at"][11:] for one in moves] == ["14:19:20Z", "14:18:20Z", "14:17:20Z", "14:16:20Z", "14:15:20Z"]
    assert moves[-1] == {
        "at": "2026-09-21T14:15:20Z",
        "from": "0",
        "to": "2",
        "result": "moved",
        "gain": 0.62,
        "price": 0.04,
        "moved_bytes": 300 << 20,
        "took_s": 2.5,
        "reason": "node 0 was busy",
    }


def test_a_time_that_is_none_hides_no_move() -> None:
    (move,) = load.list_moves([record(1e300)], WEB.key)
    assert move["at"] is None
    facts = {"load": None, "locality": None, "rebalancer": None, "last_moves": [move]}
    assert load_facts.lines(facts) == [
        ("last move", "some time from node 0 to node 2, moved: node 0 was busy; 300 MiB followed")
    ]


UNEVEN = Verdict(
    key=WEB.key,
    nodes=NodeSet([0]),
    load_cpus=1.9,
    node_load={0: 0.9},
    mean=0.3,
    target=0.315,
    imbalance=3.0,
    is_even=False,
    options=(
        Option(nodes=NodeSet([2]), gain=1.25, price=0.03),
        Option(nodes=NodeSet([3]), gain=1.5, price=0.02, hold=Hold.DOES_NOT_FIT, detail="node 3 is full"),
    ),
)


def test_a_gain_that_is_rounded_to_nothing_has_no_sign() -> None:
    nothing = Option(nodes=NodeSet([2]), gain=-0.0001, price=0.01, hold=Hold.NO_GAIN, detail="it is idle")
    facts = load.list_facts(
        survey(Observed(), RATES), seen(Observed()), (), replace(UNEVEN, options=(nothing,)), LIMITS
    )
    assert load_facts.lines(facts)[-1] == ("considered", "node 2, gain 0.000, price 0.010: no (no-gain): it is idle")


def says(verdict: Verdict, limits: RebalanceSettings = LIMITS) -> str:
    facts = load.list_facts(survey(Observed(), RATES), seen(Observed()), (), verdict, limits)
    return str(facts["rebalancer"]["says"])


def test_what_may_move_is_told_with_gain_and_price_and_what_else_was_considered() -> None:
    facts = load.list_facts(survey(Observed(), RATES), seen(Observed()), (), UNEVEN, LIMITS)
    assert facts["rebalancer"] == {
        "measured_load": {"0": 0.9},
        "mean": 0.3,
        "target": 0.315,
        "imbalance": 3.0,
        "hold": None,
        "says": "may move to node 2, which gains 1.250 and costs 0.030, unless moves of others bring more",
        "would": None,
        "considered": [
            {"nodes": "2", "gain": 1.25, "price": 0.03, "hold": None, "detail": None},
            {"nodes": "3", "gain": 1.5, "price": 0.02, "hold": "does-not-fit", "detail": "node 3 is full"},
        ],
    }
    assert load_facts.lines(facts)[1:] == [
        ("by load", "may move to node 2, which gains 1.250 and costs 0.030, unless moves of others bring more"),
        ("considered", "node 2, gain 1.250, price 0.030: pays"),
        ("", "node 3, gain 1.500, price 0.020: no (does-not-fit): node 3 is full"),
    ]


@pytest.mark.parametrize(
    ("verdict", "sentence"),
    [
        (
            replace(UNEVEN, held=Held(key=WEB.key, hold=Hold.COOL_DOWN, detail="moved 5 s ago")),
            "stays (cool-down): moved 5 s ago",
        ),
        (replace(UNEVEN, load_cpus=None), "stays: its load is unknown"),
        (
            replace(UNEVEN, is_even=True, imbalance=1.05),
            "stays: load is even enough, the highest being 1.05 times the mean of 0.30",
        ),
        (
            replace(UNEVEN, is_even=True, imbalance=None),
            "stays: load is even enough, as no node is known to be busy",
        ),
        (
            replace(UNEVEN, node_load={0: 0.2, 1: 0.31}),
            "stays: its nodes are loaded 0.31, no more than the 0.32 aimed at",
        ),
        (
            replace(UNEVEN, options=UNEVEN.options[1:]),
            "stays: nothing that was considered pays, the highest being 3.00 times the mean of 0.30",
        ),
    ],
)
def test_why_it_stays_is_told(verdict: Verdict, sentence: str) -> None:
    assert says(verdict) == sentence
    assert says(verdict, RebalanceSettings(enabled=False)) == (
        f"{sentence}; moves by load are switched off (rebalance.enabled)"
    )


def test_what_would_have_to_change_is_told() -> None:
    facts = load.list_facts(
        survey(Observed(), RATES), seen(Observed()), (), replace(UNEVEN, would="it would if …"), LIMITS
    )
    assert load_facts.lines(facts)[-1] == ("would move", "it would if …")


def test_an_instance_that_is_not_managed_is_not_judged() -> None:
    loose = replace(WEB, managed=False)
    found = survey(builders.decided("0", "0-1"), RATES)
    assert load.judge(found, replace(found.seen[0], instance=loose), {}, 0.0, Settings()) is None
    assert load.judge(survey(Observed()), found.seen[0], {}, 0.0, Settings()) is None
    judged = load.judge(found, found.seen[0], {}, 0.0, Settings())
    assert judged is not None
    assert (judged.key, judged.load_cpus) == (WEB.key, 1.95)


def test_moves_fit_into_a_cell_of_csv() -> None:
    row = {"moves": [{"to": "2", "gain": 0.5}, {"to": "3", "gain": None}]}
    assert output.render_csv([row]) == 'moves\n"{""to"":""2"",""gain"":0.5}; {""to"":""3"",""gain"":null}"\n'
