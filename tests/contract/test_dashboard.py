"""The dashboard in a real Chromium: what it shows, that it follows, and what can be done with it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Page, async_playwright

from incus_numa.model.machine import Machine
from incus_numa.settings import ApiSettings
from incus_numa.web import pages
from tests import builders
from tests.contract.api_rig import TOKEN, Api, api, free_address, write_token
from tests.contract.daemon_rig import QUICK, Rig, rig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt install chromium")

MOST_BYTES = 200_000
PATIENCE_MS = 15_000


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A page that is open, what its console said, and the host behind it."""

    page: Page
    complaints: list[str]
    rig: Rig
    api: Api


@asynccontextmanager
async def shown(tmp_path: Path, machine: Machine | None = None, starting: int = 0) -> AsyncIterator[Shown]:
    """The dashboard of a daemon that has placed some containers. Nothing may have been complained about in the end."""
    settings = ApiSettings(listen=free_address(), token_file=str(write_token(tmp_path)))
    async with rig(QUICK, machine) as r:
        for number in range(starting):
            await r.present(f"c{number}", 2)
        async with api(r, settings) as one, async_playwright() as tool:
            browser = await tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = await browser.new_page(viewport={"width": 1400, "height": 1000})
            page.set_default_timeout(PATIENCE_MS)
            complaints: list[str] = []
            page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            await page.goto(f"http://{settings.listen}/")
            await page.wait_for_selector("#machine svg")
            yield Shown(page=page, complaints=complaints, rig=r, api=one)
            await browser.close()
            assert complaints == []


async def text_of(page: Page, selector: str) -> str:
    found = await page.inner_text(selector)
    return str(found)


async def test_machine_and_instances_are_shown(tmp_path: Path) -> None:
    async with shown(tmp_path, starting=3) as found:
        page, machine = found.page, found.rig.simulator.machine
        assert await page.locator("#machine svg > g[role=img]").count() == len(machine.nodes)
        assert await page.locator("#machine .cpu").count() == len(machine.cpus)
        assert await page.locator("#machine .span").count() == 3
        rows = await page.locator("#instances tbody tr").all_inner_texts()
        assert [row.split()[0] for row in rows] == ["c0", "c1", "c2"]
        assert "incus 6.0.4" in await text_of(page, "#server")
        assert await page.locator("#distances rect").count() == len(machine.nodes) ** 2


async def test_cpus_that_are_offline_or_isolated_look_different(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        found.rig.simulator.offline_cpu(3)
        await found.page.wait_for_selector("#machine .cpu.offline")
        assert await found.page.locator("#machine .cpu.offline").count() == 1


async def test_what_happens_is_shown_without_a_reload(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        assert await found.page.locator("#machine .span").count() == 0
        await found.rig.present("late", 2)
        await found.page.wait_for_selector("#machine .span")
        assert "late placed on node" in await text_of(found.page, "#events")
        key = found.rig.managed("wide", 2, user_numa_policy="nonsense")
        await found.rig.start(key)
        await found.page.wait_for_selector("#events .refused")
        assert "wide refused (bad-key)" in await text_of(found.page, "#events")


async def test_instance_is_explained_by_keyboard(tmp_path: Path) -> None:
    async with shown(tmp_path, starting=1) as found:
        await found.page.focus("#machine .span")
        await found.page.keyboard.press("Enter")
        await found.page.wait_for_selector("#detail[open] dl")
        body = await text_of(found.page, "#detail-body")
        assert "placed" in body
        assert "policy balanced" in body
        await found.page.keyboard.press("Escape")
        await found.page.wait_for_selector("#detail:not([open])", state="attached")


async def test_policy_is_changed_with_a_token_and_taken_back(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        page, service = found.page, found.rig.daemon.service
        await page.click("#policy-open")
        await page.fill("#token", TOKEN)
        await page.dispatch_event("#token", "change")
        await page.fill("[id='rebalance.margin']", "0.25")
        await page.select_option("[id='placement.smt']", "pack")
        await page.click("#policy-body button[type=submit]")
        await page.get_by_text("In force now.").wait_for()
        assert (service.settings.rebalance.margin, service.settings.placement.smt) == (0.25, "pack")
        await page.get_by_text("Back to the file").click()
        await page.get_by_text("The file is in force again.").wait_for()
        assert service.settings.placement.smt == "spread"


async def test_bad_policy_is_told_and_nothing_changes(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        page, before = found.page, found.rig.daemon.service.settings
        await page.click("#policy-open")
        await page.fill("#token", TOKEN)
        await page.dispatch_event("#token", "change")
        await page.fill("[id='rebalance.margin']", "-1")
        await page.click("#policy-body button[type=submit]")
        await page.wait_for_selector("#policy-body .errors li")
        assert "rebalance.margin" in await text_of(page, "#policy-body .errors")
        assert found.rig.daemon.service.settings == before
        # The browser reports every answer that is an error.
        assert all("422" in one for one in found.complaints)
        found.complaints.clear()


async def test_without_a_token_nothing_can_be_changed(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        page, before = found.page, found.rig.daemon.service.settings
        await page.click("#policy-open")
        await page.fill("[id='rebalance.margin']", "0.5")
        await page.click("#policy-body button[type=submit]")
        await page.wait_for_selector("#policy-body .errors li")
        assert "token" in (await text_of(page, "#policy-body .errors")).lower()
        assert found.rig.daemon.service.settings == before
        assert all("401" in one for one in found.complaints)
        found.complaints.clear()


async def test_preview_tells_what_a_rebalance_would_do(tmp_path: Path) -> None:
    async with shown(tmp_path, starting=2) as found:
        await found.page.click("#preview-open")
        await found.page.get_by_text("Nothing moves by load.").wait_for()


async def test_sixty_four_nodes_fit_the_page(tmp_path: Path) -> None:
    machine = builders.machine(nodes=64, cpus_per_node=4)
    async with shown(tmp_path, machine, starting=2) as found:
        assert await found.page.locator("#machine svg > g[role=img]").count() == 64
        wide = await found.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide == 0


def test_page_is_light_and_loads_nothing_from_elsewhere() -> None:
    files = {path: page.body for path, page in pages.read_pages().items() if path != "/"}
    assert sum(map(len, files.values())) < MOST_BYTES
    everything = b"".join(files.values()).replace(b"http://www.w3.org/2000/svg", b"")
    assert b"://" not in everything
