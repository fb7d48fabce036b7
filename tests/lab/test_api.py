"""The daemon's API, metrics and dashboard on a real host, compared with what its kernel says.

Everything is asked from outside, as operators ask. The scenarios build on each other: containers stay.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from incus_numa.cpuset import NodeSet
from tests.lab.api import OwnApi
from tests.lab.host import INCUS7
from tests.lab.lab import Lab
from tests.lab.load import Work
from tests.lab.prometheus import prometheus

pytestmark = [pytest.mark.lab, pytest.mark.on(INCUS7.name)]

SOCKET = "/run/incus-numa/api.sock"
PORT = 9714
INSIDE, OUTSIDE = f"127.0.0.1:{PORT}", f"10.0.2.15:{PORT}"
TOKEN = "a-token-that-nobody-guesses"
TOKEN_FILE, CERTIFICATE = "/etc/incus-numa/token", "/etc/incus-numa/tls.pem"
QUICK: dict[str, object] = {"interval_s": 3.0, "time_constant_s": 2.0, "cooldown_s": 1.0}
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def own(lab: Lab, _clean: None) -> Iterator[OwnApi]:
    """The API through its socket; TCP is on loopback, and moves by load are left to those who ask for them."""
    lab.host.put(f"{TOKEN}\n".encode(), TOKEN_FILE, mode="600")
    lab.configure({"api": {"listen": INSIDE, "token_file": TOKEN_FILE}, "rebalance": QUICK | {"hold_s": 86400}})
    api = OwnApi(lab.host.forward(SOCKET))
    yield api
    api.ask("DELETE", "/v1/policy")
    lab.configure({})


@pytest.fixture
def work(lab: Lab) -> Iterator[Work]:
    found = Work(lab)
    yield found
    found.stop()


@pytest.fixture
def page(own: OwnApi, lab: Lab) -> Iterator[Page]:
    """The dashboard in Chromium, reached through SSH as the documents say. It may not complain."""
    own.get("/v1/status")
    port = lab.host.forward_address(INSIDE)
    complaints: list[str] = []
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"http://localhost:{port}/")
        page.wait_for_selector("#machine svg")
        yield page
        browser.close()
    assert complaints == []


def test_it_tells_what_the_kernel_and_the_server_say(own: OwnApi, lab: Lab) -> None:
    lab.launch_balanced("first", 2)
    seen = lab.settle("first", 2)
    lab.launch_balanced("second", 1)
    lab.settle("second", 1)
    topology = own.get("/v1/topology")
    assert {one["id"]: one["cpus"] for one in topology["nodes"]} == {
        node: str(cpus) for node, cpus in lab.layout.cpus.items()
    }
    rows = {one["name"]: one for one in own.get("/v1/instances")}
    assert (rows["first"]["nodes"], rows["first"]["cpus"]) == (str(seen.nodes), str(seen.cpus))
    assert rows["second"]["cpus"] == str(lab.see("second").cpus)
    assert own.get("/v1/instances/first")["has_nodes"] == str(seen.nodes)
    assert own.get("/v1/status")["server"]["connected"] is True


def test_a_start_is_told_as_it_is_placed(own: OwnApi, lab: Lab) -> None:
    with own.events() as events:
        lab.launch_balanced("told", 2)
        placed = next(one.data for one in events if one.kind == "start-placed")
    seen = lab.settle("told", 2)
    assert (placed["name"], placed["nodes"], placed["cpus"]) == ("told", str(seen.nodes), str(seen.cpus))


@pytest.mark.parametrize(
    ("user", "opened", "expected"), [("friend", False, "200"), ("stranger", False, "000"), ("stranger", True, "403")]
)
def test_its_socket_is_for_the_servers_administrators(
    own: OwnApi, lab: Lab, user: str, opened: bool, expected: str
) -> None:
    own.get("/v1/status")
    for name, groups in (("friend", "-G incus-admin"), ("stranger", "")):
        lab.host.attempt(f"useradd {groups} {name}")
    lab.host.run(f"chmod {'666' if opened else '660'} {SOCKET}")
    command = f"curl -s -o /dev/null -w %{{http_code}} --unix-socket {SOCKET} http://localhost/v1/status"
    _, said, _ = lab.host.attempt(f"runuser -u {user} -- {command}")
    lab.host.run(f"chmod 660 {SOCKET}")
    assert said == expected


def test_a_policy_is_in_force_at_once_and_after_a_restart_until_it_is_deleted(own: OwnApi, lab: Lab) -> None:
    status, told = own.ask("PUT", "/v1/policy", {"placement": {"memory": "none"}})
    assert (status, told["effective"]["placement"]["memory"]) == (200, "none")
    lab.until(lambda: not lab.see("first").mems, "memory is not bound any more")
    lab.systemctl("restart", "incus-numa")
    assert own.get("/v1/policy")["effective"]["placement"]["memory"] == "none"
    assert own.ask("DELETE", "/v1/policy")[0] == 200
    lab.settle("first", 2)


def test_a_rebalance_is_previewed_and_done_by_request(own: OwnApi, lab: Lab, work: Work) -> None:
    names = ("first", "second", "told", "fourth", "fifth")
    for name in ("fourth", "fifth"):
        lab.launch_balanced(name, 2)
        lab.settle(name, 2)
    before = {name: lab.see(name).nodes for name in names}
    for name in crowded(before):
        work.spin(name, 1)
    wish = {"dry_run": True}
    lab.until(lambda: bool((own.ask("POST", "/v1/rebalance", wish)[1] or {}).get("moves")), "a move would pay")
    assert {name: lab.see(name).nodes for name in names} == before
    with own.events() as events:
        status, told = own.ask("POST", "/v1/rebalance", {"dry_run": False, "max_moves": 1})
        assert status == 202, told
        made = next(one.data for one in events if one.kind == "move-made")
    work.stop()
    assert [one["name"] for one in told["moves"]] == [made["name"]]
    now = {name: lab.settle(name, 1 if name == "second" else 2).nodes for name in names}
    assert now == before | {made["name"]: NodeSet.parse(made["to"])}
    assert now != before
    assert own.get("/v1/moves?limit=1")[0]["name"] == made["name"]


def test_the_dashboard_shows_the_host_and_follows_it(page: Page, lab: Lab) -> None:
    assert page.locator("#machine svg > g[role=img]").count() == len(lab.layout.cpus)
    assert page.locator("#machine .cpu").count() == sum(map(len, lab.layout.cpus.values()))
    rows = page.locator("#instances tbody tr")
    assert sorted(text.split()[0] for text in rows.all_inner_texts()) == sorted(lab.list_names())
    lab.launch_balanced("late", 1)
    nodes = lab.settle("late", 1).nodes
    page.get_by_text(f"late placed on node {nodes}").first.wait_for()
    page.locator("#instances tbody tr", has_text="late").wait_for()


def test_the_policy_is_changed_on_the_dashboard(page: Page, own: OwnApi) -> None:
    page.click("#policy-open")
    page.fill("#token", TOKEN)
    page.dispatch_event("#token", "change")
    page.select_option("[id='placement.smt']", "pack")
    page.click("#policy-body button[type=submit]")
    page.get_by_text("In force now.").wait_for()
    assert own.get("/v1/policy")["effective"]["placement"]["smt"] == "pack"


def test_prometheus_scrapes_it_and_an_alert_fires_and_ends(own: OwnApi, lab: Lab, tmp_path: Path) -> None:
    token, certificate = tmp_path / "token", tmp_path / "tls.pem"
    token.write_text(TOKEN)
    make_certificate(certificate)
    lab.host.put(certificate.read_bytes(), CERTIFICATE, mode="600")
    lab.host.put(b"[Service]\nIPAddressAllow=10.0.2.0/24\n", "/etc/systemd/system/incus-numa.service.d/lab.conf")
    lab.systemctl("daemon-reload")
    lab.configure({"api": {"listen": OUTSIDE, "token_file": TOKEN_FILE, "tls_certificate": CERTIFICATE}})
    with prometheus(tmp_path, lab.host.forward_address(OUTSIDE), token, certificate) as server:
        lab.until(lambda: server.query("up") == {"{}": 1.0}, "Prometheus has scraped the daemon")
        assert server.query("incus_numa_node_cpus") == {
            f'{{"node": "{node}"}}': len(cpus) for node, cpus in lab.layout.cpus.items()
        }
        lab.until(lambda: set(server.list_rules().values()) == {"ok"}, "all rules were evaluated")
        assert server.list_firing() == {}
        lab.launch_balanced("wrong", 1, user_numa_policy="nonsense")
        lab.until(lambda: "IncusNumaInstancesRefused" in server.list_firing(), "the alert fires")
        assert "bad-key" in server.list_firing()["IncusNumaInstancesRefused"]
        lab.incus("config", "unset", "wrong", "user.numa.policy")
        lab.until(lambda: server.list_firing() == {}, "the alert ends")


def crowded(nodes: dict[str, NodeSet]) -> list[str]:
    """Those who share nodes with others."""
    return [name for name, own in nodes.items() if list(nodes.values()).count(own) > 1]


def make_certificate(path: Path) -> None:
    """A certificate for localhost with its key, in one file."""
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*argv, "-keyout", str(path), "-out", str(path.with_suffix(".crt"))], check=True)
    path.write_bytes(path.read_bytes() + path.with_suffix(".crt").read_bytes())
