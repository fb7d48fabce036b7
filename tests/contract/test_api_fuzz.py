"""Whatever is asked of the API, no answer is a 5xx, and every answer is as the OpenAPI document says.

`make test` tries a few requests of each kind; `make fuzz` tries them for ten minutes (INCUS_NUMA_FUZZ_S).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from incus_numa.settings import ApiSettings, DaemonSettings, RebalanceSettings, Settings
from tests.contract.api_rig import TOKEN, api, free_address, write_token
from tests.contract.daemon_rig import Wish, rig

FUZZ_S = int(os.environ.get("INCUS_NUMA_FUZZ_S", "0"))
FEW = ["--max-examples", "4", "--generation-deterministic"]
LONG = ["--max-examples", "200", "--max-time", str(FUZZ_S), "--generation-database", "none"]
OUTSIDE = "/v1/events"
"""A stream does not end, so that it has tests of its own."""


async def fuzz(address: str, folder: Path) -> tuple[int, str]:
    """Exit code and output of schemathesis."""
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        "run",
        f"http://{address}/v1/openapi.json",
        *("--header", f"Authorization: Bearer {TOKEN}"),
        *("--exclude-path", OUTSIDE),
        *("--checks", "all"),
        # Settings that are of the right type may still make no sense together, which no schema says.
        *("--exclude-checks", "positive_data_acceptance"),
        *("--no-color", "--request-timeout", "20"),
        *(LONG if FUZZ_S else FEW),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()


async def test_no_request_is_answered_by_a_5xx_or_by_what_is_not_documented(tmp_path: Path) -> None:
    limits = RebalanceSettings(interval_s=0.2, time_constant_s=0.1, hold_s=0.1)
    wish = Wish(settings=Settings(daemon=DaemonSettings(resync_s=5.0), rebalance=limits))
    address = free_address()
    async with rig(wish=wish) as r:
        for name, vcpus in (("web", 4), ("db", 8), ("mail", 1)):
            r.simulator.set_work(await r.present(name, vcpus), 1.0)
        await r.start(r.managed("refused", 2, user_numa_policy="nonsense"))
        async with api(r, ApiSettings(listen=address, token_file=str(write_token(tmp_path)))) as served:
            code, out = await fuzz(address, tmp_path)
            status = await served.unix.get("/v1/status")
    assert code == 0, out
    assert status["instances"]["running"] == 4
