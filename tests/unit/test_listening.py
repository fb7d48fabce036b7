"""What events say to one member: others' instances are others' business, unless they may have moved to here."""

from __future__ import annotations

import pytest

from incus_numa.daemon.listening import Meaning, meaning_of
from incus_numa.model.instance import InstanceKey
from incus_numa.server.protocol import Event

C1 = InstanceKey("default", "c1")


def meaning(action: str, *, location: str | None = None, member: str | None = None, about: bool = True) -> Meaning:
    return meaning_of(Event(action=action, key=C1 if about else None, location=location), member)


@pytest.mark.parametrize(
    ("action", "wanted"),
    [
        ("instance-started", Meaning.STARTED),
        ("instance-restarted", Meaning.STARTED),
        ("instance-resumed", Meaning.STARTED),
        ("instance-shutdown", Meaning.CHANGED),
        ("instance-renamed", Meaning.CHANGED),
        ("instance-paused", Meaning.CHANGED),
        ("instance-restored", Meaning.CHANGED),
        ("instance-updated", Meaning.EDITED),
        ("instance-migrated", Meaning.MIGRATED),
        ("instance-log-retrieved", Meaning.NOTHING),
        ("instance-exec", Meaning.NOTHING),
        ("instance-snapshot-created", Meaning.NOTHING),
    ],
)
@pytest.mark.parametrize("member", [None, "here"])
def test_event_about_an_instance_here(action: str, wanted: Meaning, member: str | None) -> None:
    assert meaning(action, location=member, member=member) is wanted


@pytest.mark.parametrize("action", ["instance-started", "instance-updated", "instance-stopped", "instance-deleted"])
def test_event_of_another_member_is_not_ours(action: str) -> None:
    assert meaning(action, location="there", member="here") is Meaning.NOTHING


def test_migration_from_another_member_may_have_been_to_here() -> None:
    assert meaning("instance-migrated", location="there", member="here") is Meaning.MIGRATED


@pytest.mark.parametrize("location", [None, "none", ""])
def test_event_that_names_no_member_may_be_ours(location: str | None) -> None:
    assert meaning("instance-started", location=location, member="here") is Meaning.STARTED


@pytest.mark.parametrize("member", [None, "here"])
@pytest.mark.parametrize(
    "action",
    ["cluster-member-evacuated", "cluster-member-restored", "cluster-member-renamed", "cluster-member-added",
     "cluster-enabled", "cluster-disabled"],
)  # fmt: skip
def test_change_of_the_cluster_concerns_every_member(action: str, member: str | None) -> None:
    assert meaning(action, location="there", member=member, about=False) is Meaning.CLUSTER_CHANGED


@pytest.mark.parametrize("location", [None, "here", "there"])
@pytest.mark.parametrize("member", [None, "here"])
def test_change_of_a_project_concerns_every_member(location: str | None, member: str | None) -> None:
    assert meaning("project-updated", location=location, member=member, about=False) is Meaning.PROJECT_CHANGED


@pytest.mark.parametrize(
    "action", ["instance-started", "project-created", "cluster-group-updated", "cluster-token-created"]
)
def test_event_about_no_instance_says_nothing(action: str) -> None:
    assert meaning(action, about=False) is Meaning.NOTHING
