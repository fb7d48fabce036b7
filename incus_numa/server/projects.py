"""Whether there is a project of some name. Called by commands and by the API where a project is asked for."""

from __future__ import annotations

from incus_numa.errors import GoneError, ReportError
from incus_numa.server.protocol import Server


async def explain_unknown(server: Server, project: str | None) -> str | None:
    """That there is no project of this name, and which there are; None where there is, or nothing is known of them."""
    if project is None:
        return None
    try:
        known = sorted(one.name for one in await server.list_projects())
    except (ReportError, GoneError):
        return None
    return f"there is no project {project!r}, but {', '.join(known)}" if known and project not in known else None
