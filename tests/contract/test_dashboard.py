"""The dashboard in a real Chromium: what it shows, that it follows, and what can be done with it."""

from __future__ import annotations

import calendar
import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, Route, async_playwright

from incus_numa.model.machine import Machine
from incus_numa.settings import ApiSettings
from incus_numa.web import pages
from tests import builders
from tests.contract.api_rig import TOKEN, Api, api, free_address, write_token
from tests.contract.daemon_rig import QUICK, Rig, eventually, rig

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


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How a page is opened: its width, whether there is a token, what is done before, and answers that are made up."""

    width: int = 1400
    with_token: bool = True
    prepare: Callable[[Rig], Awaitable[None]] | None = None
    answers: Mapping[str, Callable[[Route], Awaitable[None]]] = field(default_factory=dict)


@asynccontextmanager
async def shown(
    tmp_path: Path, machine: Machine | None = None, starting: int = 0, wish: Wish | None = None
) -> AsyncIterator[Shown]:
    """The dashboard of a daemon that has placed some containers. Nothing may have been complained about in the end."""
    wish = wish or Wish()
    token_file = str(write_token(tmp_path)) if wish.with_token else ""
    settings = ApiSettings(listen=free_address(), token_file=token_file)
    async with rig(QUICK, machine) as r:
        for number in range(starting):
            await r.present(f"c{number}", 2)
        async with api(r, settings) as one, async_playwright() as tool:
            if wish.prepare is not None:
                await wish.prepare(r)
            browser = await tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = await browser.new_page(viewport={"width": wish.width, "height": 1000})
            page.set_default_timeout(PATIENCE_MS)
            complaints: list[str] = []
            page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            for path, answer in wish.answers.items():
                await page.route(f"**/v1/{path}", answer)
            await page.goto(f"http://{settings.listen}/")
            await page.wait_for_selector("#machine svg")
            yield Shown(page=page, complaints=complaints, rig=r, api=one)
            await page.unroute_all(behavior="ignoreErrors")
            await browser.close()
            assert complaints == []


def telling(document: object) -> Callable[[Route], Awaitable[None]]:
    """Answers with this."""

    async def answer(route: Route) -> None:
        await route.fulfill(status=200, content_type="application/json", body=json.dumps(document))

    return answer


def changing(change: Callable[[Any], object]) -> Callable[[Route], Awaitable[None]]:
    """Answers with what the daemon says, changed."""

    async def answer(route: Route) -> None:
        response = await route.fetch()
        document = await response.json()
        change(document)
        await route.fulfill(response=response, body=json.dumps(document))

    return answer


async def text_of(page: Page, selector: str) -> str:
    found = await page.inner_text(selector)
    return str(found)


async def test_machine_and_instances_are_shown(tmp_path: Path) -> None:
    async with shown(tmp_path, starting=3) as found:
        page, machine = found.page, found.rig.simulator.machine
        assert await page.locator("#machine svg > g[role=img]").count() == len(machine.nodes)
        assert await page.locator("#machine .cpu").count() == len(machine.cpus)
        assert await page.locator("#machine .span").count() == 3
        assert await page.locator("#instances tbody th").all_text_contents() == ["c0", "c1", "c2"]
        assert "incus 6.0.4" in await text_of(page, "#server")
        assert await page.locator("#distances > svg rect").count() == len(machine.nodes) ** 2


async def test_cpus_that_are_offline_or_isolated_look_different(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        found.rig.simulator.offline_cpu(3)
        await found.page.wait_for_selector("#machine .cpu.offline")
        assert await found.page.locator("#machine .cpu.offline").count() == 1


async def test_cpus_that_were_offline_before_are_drawn_apart(tmp_path: Path) -> None:
    async def prepare(r: Rig) -> None:
        r.simulator.offline_cpu(3)
        r.simulator.offline_cpu(6)
        await eventually(lambda: str(r.daemon.service.reconciler.world.machine.offline) == "3,6")

    async with shown(tmp_path, wish=Wish(prepare=prepare)) as found:
        assert await found.page.locator("#machine .cpu.offline").count() == 2
        assert "Offline, node unknown: CPUs 3,6" in await text_of(found.page, "#machine")
        found.rig.simulator.online_cpu(3)
        await found.page.get_by_text("Offline, node unknown: CPUs 6").wait_for()
        found.rig.simulator.offline_cpu(3)
        await found.page.wait_for_selector("#machine g > .cpu.offline")
        assert await found.page.locator("#machine .cpu.offline").count() == 2


def row(name: str, nodes: str | None, cpus: str | None, vcpus: int | None) -> dict[str, Any]:
    return {
        "project": "default",
        "name": name,
        "type": "container",
        "vcpus": vcpus,
        "memory_bytes": None,
        "nodes": nodes,
        "cpus": cpus,
        "mems": None,
        "state": "placed",
        "group": None,
        "exclusive": False,
        "load_cpus": None,
        "locality": None,
    }


async def test_an_instance_claims_the_vcpus_that_it_is_limited_to_and_none_without_a_limit(tmp_path: Path) -> None:
    """The rule of the pictures that `topology` draws: see the tests of facts.cpu_use."""
    rows = [
        row("idle", "0-1", "0-7", None),
        row("full", "0", "0-1", 2),
        row("again", "0", "1", 1),
        row("near", "1", "4-5", None),
        row("vm", "1", None, 2),
    ]
    machine = builders.machine(nodes=2, cpus_per_node=4, isolated="7")
    async with shown(tmp_path, machine, wish=Wish(answers={"instances": telling(rows)})) as found:
        cells = found.page.locator("#machine .cpu")
        assert [await one.get_attribute("class") for one in await cells.all()] == [
            *("cpu c2", "cpu c3", "cpu c0", "cpu c0"),
            *("cpu c2", "cpu c2", "cpu c2", "cpu isolated"),
        ]
        titles = await found.page.locator("#machine .cpu title").all_text_contents()
        assert [re.sub(", [0-9]+ % busy", "", one) for one in titles] == [
            *("CPU 0: 1.00 vCPUs of 1 instance", "CPU 1: 2.00 vCPUs of 2 instances"),
            *("CPU 2: no instance", "CPU 3: no instance"),
            *(f"CPU {cpu}: 0.67 vCPUs of 1 instance, 1 without limits.cpu" for cpu in (4, 5)),
            *("CPU 6: 0.67 vCPUs of 1 instance", "CPU 7: isolated"),
        ]
        assert "without limits.cpu claims none" in await text_of(found.page, "#legend")


async def test_events_are_followed_again_after_a_refusal_and_missed_moves_are_read_once(tmp_path: Path) -> None:
    move = {
        "project": "default",
        "name": "db",
        "from": "0",
        "to": "1",
        "result": "done",
        "gain": 1.0,
        "price": 0.1,
        "moved_bytes": 0,
        "took_s": 1.234,
        "reason": "busy",
    }
    missed = move | {"name": "web", "at": "2026-01-02T13:04:05Z"}
    journal = [missed]
    asked = 0

    async def events(route: Route) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            # Told, noted in the journal, and the connection is cut.
            journal.insert(0, move | {"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())})
            told = f"retry: 20\n\nevent: move-made\ndata: {json.dumps(move)}\n\n"
            await route.fulfill(status=200, content_type="text/event-stream", body=told)
        elif asked < 4:
            await route.fulfill(status=503, content_type="application/problem+json", body="{}")
        else:
            await route.continue_()

    async def moves(route: Route) -> None:
        await telling(journal)(route)

    wish = Wish(answers={"events": events, "moves?*": moves})
    async with shown(tmp_path, wish=wish) as found:
        await found.page.get_by_text("nothing is heard of events").wait_for()
        await eventually(lambda: asked == 4)
        await found.page.locator("#server:has-text('nothing is heard')").wait_for(state="detached")
        await found.rig.present("late", 2)
        await found.page.wait_for_selector("#events .start-placed")
        lines = await found.page.locator("#events li").all_inner_texts()
        assert [re.sub("^[^Z]*Z", "", line).split()[0] for line in lines] == ["late", "db", "web"]
        assert lines[-1].startswith("2026-01-02T13:04:05Z")
        assert all("503" in one for one in found.complaints)
        found.complaints.clear()


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


async def focused(page: Page) -> str | None:
    found = await page.evaluate("document.activeElement.dataset.span ?? null")
    return None if found is None else str(found)


async def test_a_span_keeps_the_focus_when_everything_is_drawn_anew(tmp_path: Path) -> None:
    async with shown(tmp_path, starting=2) as found:
        await found.page.focus("#machine .span[data-span='default/c1/0']")
        await found.rig.present("new", 2)
        await found.page.wait_for_selector("#machine .span[data-span='default/new/0']")
        assert await focused(found.page) == "default/c1/0"
        await found.page.keyboard.press("Enter")
        await found.page.wait_for_selector("#detail[open] dl")
        await found.rig.present("newer", 2)
        await found.page.wait_for_selector("#machine .span[data-span='default/newer/0']", state="attached")
        await found.page.keyboard.press("Escape")
        await found.page.wait_for_selector("#machine .span:focus")
        assert await focused(found.page) == "default/c1/0"


async def test_instances_are_one_stop_of_the_tab_key_and_arrows_lead_on(tmp_path: Path) -> None:
    rows = [row("wide", "0-2", "0-11", 12), row("a", "0", "0", 1), row("b", "1", "4", 1), row("c", "1,3", "5,12", 2)]
    async with shown(tmp_path, wish=Wish(answers={"instances": telling(rows)})) as found:
        page = found.page
        assert await page.locator("#machine .span").count() == 5
        assert await page.locator("#machine .span[tabindex='0']").count() == 1
        await page.focus("#machine")
        await page.keyboard.press("Tab")
        ways = {"ArrowRight": "c/1", "ArrowDown": "c/1", "Home": "wide/0", "End": "c/0", "ArrowUp": "b/0"}
        went = [await focused(page)]
        for key in (*ways, "ArrowLeft"):
            await page.keyboard.press(key)
            went.append(await focused(page))
        assert went == [f"default/{one}" for one in ("wide/0", *ways.values(), "a/0")]
        assert await page.locator("#machine .span[tabindex='0']").get_attribute("data-span") == "default/a/0"
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.id") == "load"


async def test_machine_and_instances_can_be_skipped_to(tmp_path: Path) -> None:
    async with shown(tmp_path, starting=1) as found:
        for presses, place in ((1, "machine"), (2, "instance-list")):
            await found.page.evaluate("document.activeElement.blur(), getSelection().removeAllRanges()")
            await found.page.reload()
            await found.page.wait_for_selector("#machine svg")
            for _ in range(presses):
                await found.page.keyboard.press("Tab")
            await found.page.keyboard.press("Enter")
            assert await found.page.evaluate("document.activeElement.id") == place


async def columns(page: Page) -> list[tuple[float, float]]:
    """Where the samples of node 0 are in the chart, from 0 (an hour ago) to 1 (the present)."""
    boxes = await page.locator("#load svg rect").evaluate_all(
        "(all) => all.filter((one) => one.getAttribute('y') === '0')"
        ".map((one) => [one.x.baseVal.value, one.width.baseVal.value])"
    )
    ticks = await page.locator("#load .tick").evaluate_all("(all) => all.map((one) => one.x1.baseVal.value)")
    whole = ticks[-1] - ticks[0]
    return [((x - ticks[0]) / whole, (x + width - ticks[0]) / whole) for x, width in boxes]


@pytest.mark.parametrize("is_fresh", [True, False])
async def test_load_is_drawn_at_the_time_of_its_samples_and_gaps_stay_gaps(tmp_path: Path, is_fresh: bool) -> None:
    end = 0 if is_fresh else 900
    ages = [*range(3000, 1800, -30), *range(1200 + end, end - 1, -30)] if is_fresh else [*range(3000, 1800, -30)]
    now = time.time()
    loads = [0.5 if at % 2 else None for at in range(len(ages))]
    history = {"step_s": 30.0, "at": [round(now - age) for age in ages], "load": {"0": [0.5] * len(ages), "1": loads}}
    async with shown(tmp_path, wish=Wish(answers={"history": telling(history)})) as found:
        page = found.page
        await page.wait_for_selector("#load svg")
        # Between the samples and the picture pass a few seconds.
        slack = (time.time() - now + 2) / 3600
        where = await columns(page)
        assert len(where) == len(ages)
        for (begin, finish), age in zip(where, ages, strict=True):
            assert finish == pytest.approx(1 - age / 3600, abs=slack)
            assert finish - begin <= 31 / 3600 + slack
        texts = await page.locator("#load svg text").all_text_contents()
        assert texts[2:6] == ["-60 min", "-45 min", "-30 min", "-15 min"]
        told = await text_of(page, "#load")
        assert (texts[6] == "now", "Last measured at" in told) == (is_fresh, not is_fresh)
        assert ("; now node" in (await page.get_attribute("#load svg", "aria-label") or "")) == is_fresh


async def test_times_are_those_of_the_command_line(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        await found.rig.present("late", 2)
        await found.page.wait_for_selector("#events .start-placed")
        told = await text_of(found.page, "#events time")
        assert abs(calendar.timegm(time.strptime(told, "%Y-%m-%dT%H:%M:%SZ")) - time.time()) < 60


@pytest.mark.parametrize(("load", "told"), [(0.09, "–"), (0.1, "1.90"), (None, "–")])
async def test_imbalance_of_a_host_that_is_not_busy_is_not_told(tmp_path: Path, load: float | None, told: str) -> None:
    def even(nodes: Any) -> None:
        for one in nodes:
            one["measured_load"] = load

    answers = {"status": changing(lambda status: status.update(imbalance=1.9)), "nodes": changing(even)}
    async with shown(tmp_path, wish=Wish(answers=answers)) as found:
        facts = await found.page.locator("#summary div").all_inner_texts()
        assert [one.split()[1] for one in facts if one.startswith("imbalance")] == [told]


async def test_on_a_narrow_page_nodes_states_and_the_present_are_in_sight(tmp_path: Path) -> None:
    now = round(time.time())
    history = {"step_s": 30.0, "at": [now - 30, now], "load": {"0": [0.5, 0.5]}}
    wish = Wish(width=400, answers={"history": telling(history)})
    async with shown(tmp_path, starting=2, wish=wish) as found:
        page = found.page
        assert await page.evaluate("document.documentElement.scrollWidth") == 400
        for place in ("#instances th:has-text('Nodes')", "#instances th:has-text('State')", "#load text.last"):
            box = await page.locator(place).bounding_box()
            assert box is not None
            assert box["x"] + box["width"] <= 400


async def test_names_are_cut_in_the_middle_and_no_text_leaves_its_span(tmp_path: Path) -> None:
    machine = builders.machine(nodes=24, cpus_per_node=16)
    names = ["integration-build1", "integration-build2", "web", "W" * 40, "i" * 40]
    rows = [row(name, str(node), None, 1) for node, name in enumerate(names)]
    async with shown(tmp_path, machine, wish=Wish(answers={"instances": telling(rows)})) as found:
        texts = await found.page.locator("#machine .span text").all_text_contents()
        assert texts[2] == "web"
        for name, text in zip(names, texts, strict=True):
            head, dots, end = text.partition("…")
            assert head
            assert name.startswith(head)
            assert not dots or (end and name.endswith(end))
        over = await found.page.locator("#machine .span").evaluate_all(
            "(all) => all.map((one) => ['text', 'rect'].map((of) => one.querySelector(of).getBBox().width))"
            ".filter(([text, room]) => text > room - 3)"
        )
        assert over == []


@pytest.mark.parametrize(("width", "is_told"), [(1700, True), (900, False)])
async def test_free_memory_is_named_or_left_out(tmp_path: Path, width: int, is_told: bool) -> None:
    def fill(nodes: Any) -> None:
        for one in nodes:
            one["free_bytes"] = 24 << 30
        nodes[3]["free_bytes"] = 1006 << 20

    machine = builders.machine(nodes=24, cpus_per_node=16)
    wish = Wish(width=width, answers={"nodes": changing(fill)})
    async with shown(tmp_path, machine, wish=wish) as found:
        texts = await found.page.locator("#machine svg text").all_text_contents()
        assert {"load", "memory"} <= set(texts)
        told = {text: texts.count(text) for text in ("free", "24 GiB", "1006 MiB") if text in texts}
        assert told == ({"free": 1, "24 GiB": 23, "1006 MiB": 1} if is_told else {})
        assert not [text for text in texts if re.fullmatch(r"[0-9]+\.[0-9]+", text)]


@pytest.mark.parametrize(("nodes", "numbers"), [(24, 24 * 24), (64, 0)])
async def test_distances_have_a_scale_and_numbers_where_there_is_room(tmp_path: Path, nodes: int, numbers: int) -> None:
    machine = builders.machine(nodes=nodes, cpus_per_node=1)
    async with shown(tmp_path, machine) as found:
        assert await found.page.locator("#distances > svg text.in").count() == numbers
        assert (await text_of(found.page, "#distances .legend")).split() == ["10", "12", "32"]
        assert len(await found.page.locator("#load .legend, #load .empty").all()) == 1


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
        await page.fill("[id='placement.reserved_cpus']", "3-x")
        await page.click("#policy-body button[type=submit]")
        await page.wait_for_selector("#policy-body .errors li")
        assert "placement.reserved_cpus" in await text_of(page, "#policy-body .errors")
        assert found.rig.daemon.service.settings == before
        # The browser reports every answer that is an error.
        assert all("422" in one for one in found.complaints)
        found.complaints.clear()


async def test_keys_of_the_policy_are_offered_as_what_they_can_be(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        page = found.page
        await page.click("#policy-open")
        await page.wait_for_selector("#policy-body form")
        offered = await page.locator("#policy-body select").evaluate_all(
            "(all) => Object.fromEntries(all.map((one) => [one.id, [one.value, [...one.options].map((o) => o.value)]]))"
        )
        assert offered == {
            "placement.smt": ["spread", ["pack", "spread"]],
            "placement.memory": ["local", ["bind", "local", "none"]],
            "placement.vm_memory": ["keep", ["keep", "migrate"]],
            "placement.vm_record": ["once", ["never", "once"]],
            "placement.restricted_record": ["none", ["limits", "none"]],
            "memory.policy": ["none", ["none", "static"]],
        }
        numbers = {
            key: [await page.get_attribute(f"[id='{key}']", name) for name in ("type", "min", "max", "step")]
            for key in ("rebalance.margin", "rebalance.max_moves", "rebalance.max_bytes")
        }
        assert numbers == {
            "rebalance.margin": ["number", "0.01", "10", "any"],
            "rebalance.max_moves": ["number", "1", "10000", "1"],
            "rebalance.max_bytes": ["text", None, None, None],
        }


async def test_amounts_of_the_policy_may_have_a_unit(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        await found.page.click("#policy-open")
        await found.page.fill("#token", TOKEN)
        await found.page.fill("[id='rebalance.max_bytes']", "3GiB")
        await found.page.click("#policy-body button[type=submit]")
        await found.page.get_by_text("In force now.").wait_for()
        assert found.rig.daemon.service.settings.rebalance.max_bytes == 3 << 30


async def test_a_policy_that_was_changed_meanwhile_is_not_undone(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        page = found.page
        await page.click("#policy-open")
        await page.wait_for_selector("#token")
        await found.api.unix.ask("/v1/policy", "PUT", {"rebalance": {"margin": 0.75}})
        await page.fill("#token", TOKEN)
        await page.select_option("[id='placement.smt']", "pack")
        await page.click("#policy-body button[type=submit]")
        await page.get_by_text("changed by somebody else meanwhile").wait_for()
        assert found.rig.daemon.service.settings.rebalance.margin == 0.75
        assert all("412" in one for one in found.complaints)
        found.complaints.clear()


async def test_apply_stays_in_sight(tmp_path: Path) -> None:
    async with shown(tmp_path, wish=Wish(width=400)) as found:
        await found.page.click("#policy-open")
        for end in ("0", "this.scrollHeight"):
            await found.page.locator("#policy").evaluate("(one) => one.scrollTo(0, " + end.replace("this", "one") + ")")
            box = await found.page.locator("#policy-body button[type=submit]").bounding_box()
            assert box is not None
            assert 0 <= box["y"] <= 1000 - box["height"]


async def test_where_no_token_can_work_nothing_is_offered(tmp_path: Path) -> None:
    async with shown(tmp_path, wish=Wish(with_token=False)) as found:
        await found.page.click("#policy-open")
        await found.page.wait_for_selector("#policy-body .read-only")
        assert "api.token_file is not set" in await text_of(found.page, "#policy-body")
        assert await found.page.locator("#policy-body button, #token").count() == 0
        assert await found.page.locator("#policy-body :is(input, select):enabled").count() == 0


@pytest.mark.parametrize("with_token", [True, False])
async def test_moves_of_a_preview_are_offered_where_they_can_be_made(tmp_path: Path, with_token: bool) -> None:
    move = {"name": "db", "from": "0", "to": "1", "gain": 1.0, "price": 0.5, "reason": "busy"}
    answers = {"plan": changing(lambda plan: plan["by_load"].update(moves=[move]))}
    async with shown(tmp_path, wish=Wish(with_token=with_token, answers=answers)) as found:
        await found.page.click("#preview-open")
        await found.page.get_by_text("Moves that pay").wait_for()
        assert await found.page.locator("#preview-body button").count() == int(with_token)
        assert ("api.token_file is not set" in await text_of(found.page, "#preview-body")) != with_token


async def test_reservations_may_be_entered_as_the_file_has_them(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        page = found.page
        await page.click("#policy-open")
        await page.fill("#token", TOKEN)
        await page.fill("[id='memory.reserved']", '{"0" = "2GiB"}')
        await page.fill("[id='memory.reserved_total']", "2GiB")
        await page.select_option("[id='memory.policy']", "static")
        await page.click("#policy-body button[type=submit]")
        await page.get_by_text("In force now.").wait_for()
        memory = found.rig.daemon.service.settings.memory
        assert (memory.reserved_total, memory.reserved) == (2 << 30, ((0, 2 << 30),))


async def test_without_a_token_nothing_can_be_changed(tmp_path: Path) -> None:
    async with shown(tmp_path) as found:
        page, before = found.page, found.rig.daemon.service.settings
        await page.click("#policy-open")
        await page.fill("[id='rebalance.margin']", "0.5")
        await page.click("#policy-body button[type=submit]")
        await page.wait_for_selector("#policy-body .errors li")
        assert "enter that of api.token_file" in await text_of(page, "#policy-body .errors")
        assert await page.evaluate("document.activeElement.id") == "token"
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
