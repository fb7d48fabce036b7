"""One look at everything for a command: what `list` and `explain` show."""

from __future__ import annotations

from dataclasses import replace

from incus_numa.cli import moving
from incus_numa.cli.standing import tell_stopped
from incus_numa.cli.wiring import Session, connect
from incus_numa.errors import ReportError
from incus_numa.facts.survey import Survey, measure, take_survey
from incus_numa.model.instance import InstanceKey
from incus_numa.server import projects
from incus_numa.server.protocol import Server
from incus_numa.settings import Settings


async def survey(settings: Settings, window_s: float = 0.0, project: str | None = None) -> Survey:
    """Look at everything once, and measure load for so long.

    Raises UnreachableError, and ReportError for a `project` that there is not.
    """
    async with connect(settings) as session:
        await check_project(session.server, project)
        await session.world.look_at_everything()
        found = take_survey(session.world, settings.placement)
        if not window_s:
            return found
        measuring = await moving.measure(session, window_s, plain=False)
        return replace(found, measured=measure(session.world.snapshot(), settings.placement, measuring.rates))


async def check_project(server: Server, project: str | None) -> None:
    """Raise ReportError, which says what projects there are, if there is none of that name. None is any project."""
    if unknown := await projects.explain_unknown(server, project):
        raise ReportError(unknown)


async def whereabouts(settings: Settings, key: InstanceKey) -> str:
    """Why an instance was not seen running, as a sentence that says what to do. Raises UnreachableError."""
    async with connect(settings) as session:
        return await tell_whereabouts(session, key)


async def tell_whereabouts(session: Session, key: InstanceKey) -> str:
    """The same, asked of a server that is connected."""
    listing = await session.server.list_instances()
    alike = [one for one in listing.instances if one.key.name == key.name]
    for one in alike:
        if one.key == key and one.running:
            return f"{key.name} runs on cluster member {one.location}: ask incus-numa there"
        if one.key == key:
            return await tell_stopped(session, one)
    if alike:
        projects = ", ".join(sorted(one.key.project for one in alike))
        return f"no instance {key.name} in project {key.project}, but in {projects}: say --project"
    return f"no instance {key.name} in project {key.project}; `incus-numa list` shows those that run"
