"""Commands on a host with Incus and LXD: one is taken, the other is told, and the settings choose."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from incus_numa.server.protocol import Product
from tests.commands import config_file, is_clean, run_beside
from tests.contract import simulated
from tests.contract.simulated import QUICK, Host


@pytest.fixture
async def both(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Host, Host]]:
    """A host with Incus, and one with LXD, whose places the environment names."""
    async with AsyncExitStack() as stack:
        incus = await stack.enter_async_context(simulated.host(QUICK))
        lxd = await stack.enter_async_context(simulated.host(replace(QUICK, product=Product.LXD, version="5.21.3")))
        monkeypatch.delenv("INCUS_SOCKET", raising=False)
        monkeypatch.setenv("INCUS_DIR", str(incus.simulator.socket_path.parent))
        monkeypatch.setenv("LXD_DIR", str(lxd.simulator.socket_path.parent))
        for host, name in ((incus, "of-incus"), (lxd, "of-lxd")):
            await host.simulator.start(host.simulator.create(name, {"limits.cpu": "2"}))
        yield incus, lxd


def config(folder: Path, host: Host, product: str) -> Path:
    paths = host.simulator
    return config_file(
        folder,
        f'[server]\nproduct = "{product}"\n[host]\nsysfs = "{paths.sysfs}"\nprocfs = "{paths.procfs}"\n'
        f'cgroup = "{paths.cgroup}"\n',
    )


@pytest.mark.parametrize(("product", "listed"), [("auto", "of-incus"), ("incus", "of-incus"), ("lxd", "of-lxd")])
async def test_settings_choose_the_server(tmp_path: Path, both: tuple[Host, Host], product: str, listed: str) -> None:
    host = both[listed == "of-lxd"]
    result = await run_beside("list", "-f", "json", "--config", config(tmp_path, host, product))
    assert result.code == 0
    assert {row["name"] for row in result.data["instances"]} == {listed}
    assert is_clean(result)


@pytest.mark.parametrize("product", ["auto", "incus"])
async def test_check_tells_of_the_other_server_where_nobody_chose(
    tmp_path: Path, both: tuple[Host, Host], product: str
) -> None:
    result = await run_beside("check", "-f", "json", "--config", config(tmp_path, both[0], product))
    told = [row["finding"] for row in result.data if str(both[1].simulator.socket_path) in row["finding"]]
    assert len(told) == (1 if product == "auto" else 0)


async def test_server_that_was_chosen_and_is_not_there_is_3_and_the_other_is_named(
    tmp_path: Path, both: tuple[Host, Host]
) -> None:
    await both[1].simulator.stop_server()
    result = await run_beside("list", "--config", config(tmp_path, both[0], "lxd"))
    assert (result.code, result.out) == (3, "")
    assert 'set server.product = "incus" or "auto"' in result.err


async def test_socket_of_another_product_than_asked_for_is_3(tmp_path: Path, both: tuple[Host, Host]) -> None:
    path = both[0].simulator.socket_path
    result = await run_beside(
        "list", "--config", config_file(tmp_path, f'[server]\nproduct = "lxd"\nsocket = "{path}"\n')
    )
    assert (result.code, result.out) == (3, "")
    assert 'server.product is "lxd", but Incus answers' in result.err
