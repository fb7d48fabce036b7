"""The table of what can be asked for: requests are led by it, and the OpenAPI document is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from incus_numa.web import answers, asked, tags

JSON = "application/json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """One path and method. `name` is the method of `app.Api` that answers, `answers` what by status.

    `path` has its parameters in braces, whose meanings are in `places`. `kind` is the content type, `examples` are
    bodies by name. `problems` are statuses that say more than that the request was wrong. `takes` and `sends` are
    headers with their meanings.
    """

    method: str
    path: str
    name: str
    summary: str
    query: type[Struct] = asked.NoQuery
    body: type[Struct] | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    answers: Mapping[int, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = (JSON,)
    examples: Mapping[str, Any] = field(default_factory=dict)
    problems: tuple[int, ...] = ()
    takes: Mapping[str, str] = field(default_factory=dict)
    sends: Mapping[str, str] = field(default_factory=dict)


_UNLESS_CHANGED = {
    tags.ONLY_IF: 'The policy that is meant, as the ETag of GET in quotes; "*" or nothing: whatever there is.'
}


ROUTES: tuple[Route, ...] = (
    Route(
        method="GET",
        path="/v1/status",
        name="get_status",
        summary="Who serves what, and how it goes",
        answers={200: answers.Status},
    ),
    Route(
        method="GET",
        path="/v1/topology",
        name="get_topology",
        summary="The machine, as `incus-numa topology --format json` prints it",
        answers={200: answers.Topology},
    ),
    Route(
        method="GET",
        path="/v1/nodes",
        name="list_nodes",
        summary="Every node: its load, memory, and who is on it",
        answers={200: list[answers.NodeFacts]},
    ),
    Route(
        method="GET",
        path="/v1/instances",
        name="list_instances",
        summary="Every running instance, or those of one project",
        query=asked.InstancesQuery,
        answers={200: list[answers.InstanceFacts]},
    ),
    Route(
        method="GET",
        path="/v1/instances/{name}",
        name="get_instance",
        summary="Everything about one instance, and why it is where it is",
        query=asked.InstanceQuery,
        places={"name": "Name of an instance that runs here."},
        answers={200: answers.Explanation},
        problems=(404,),
    ),
    Route(
        method="GET",
        path="/v1/plan",
        name="get_plan",
        summary="What a pass would do now, and who would move by load",
        answers={200: answers.Plan},
    ),
    Route(
        method="GET",
        path="/v1/moves",
        name="list_moves",
        summary="The journal of moves, newest first",
        query=asked.MovesQuery,
        answers={200: list[answers.Moved]},
    ),
    Route(
        method="GET",
        path="/v1/history",
        name="get_history",
        summary="Measured load of the nodes over the last hour",
        answers={200: answers.History},
    ),
    Route(
        method="GET",
        path="/v1/policy",
        name="get_policy",
        summary="The policy in force, and where it comes from",
        answers={200: answers.Policy},
        sends={tags.TAG: "Names what is answered, also as `etag` in it, for If-Match."},
    ),
    Route(
        method="PUT",
        path="/v1/policy",
        name="put_policy",
        summary="Have these tables over the file's from now on, and after a restart",
        body=asked.PolicyTables,
        answers={200: answers.Policy},
        examples={"pack": {"placement": {"smt": "pack"}}, "nothing": {}},
        problems=(409, 412, 422, 500),
        takes=_UNLESS_CHANGED,
    ),
    Route(
        method="DELETE",
        path="/v1/policy",
        name="delete_policy",
        summary="Go back to the configuration file",
        answers={200: answers.Policy},
        problems=(412, 422, 500),
        takes=_UNLESS_CHANGED,
    ),
    Route(
        method="POST",
        path="/v1/rebalance",
        name="post_rebalance",
        summary="One pass by measured load now",
        body=asked.RebalanceRequest,
        answers={200: answers.Rebalanced, 202: answers.Rebalanced},
        examples={"preview": {"dry_run": True}, "one": {"max_moves": 1, "project": "default"}},
        problems=(404, 409, 503),
    ),
    Route(
        method="GET",
        path="/v1/events",
        name="get_events",
        summary="What happens, as server-sent events",
        answers={200: str},
        kinds=("text/event-stream",),
        problems=(503,),
    ),
    Route(
        method="GET",
        path="/v1/openapi.json",
        name="get_openapi",
        summary="This document",
        answers={200: dict[str, Any]},
    ),
    Route(
        method="GET",
        path="/metrics",
        name="get_metrics",
        summary="Metrics for Prometheus, also as OpenMetrics",
        answers={200: str},
        kinds=("text/plain", "application/openmetrics-text"),
    ),
)
