"""`make bench`: prints the figures that README quotes. Nothing here asserts on time.

Each part runs by itself, too: `python -m tests.bench starts`.
"""

from __future__ import annotations

import sys

from tests.bench import (
    commands,
    dashboard,
    hints,
    idle,
    metrics,
    moving,
    planning,
    profiles,
    rebalancing,
    rewrites,
    sampling,
    scrapes,
    servers,
    starts,
    traces,
)


def _reference() -> None:
    # The solver is installed by `make bench` only, and the other parts do without it.
    from tests.bench.reference import report

    report.main()


PARTS = {
    "commands": commands.main,
    "planning": planning.main,
    "hints": hints.main,
    "rebalancing": rebalancing.main,
    "reference": _reference,
    "traces": traces.main,
    "moving": moving.main,
    "servers": servers.main,
    "rewrites": rewrites.main,
    "starts": starts.main,
    "profile": profiles.main,
    "sampling": sampling.main,
    "metrics": metrics.main,
    "scrapes": scrapes.main,
    "dashboard": dashboard.main,
    "idle": idle.main,
}


def main() -> None:
    """Run the parts that were named, or all."""
    names = sys.argv[1:] or list(PARTS)
    for name in names:
        print(f"== {name}", flush=True)
        PARTS[name]()


main()
