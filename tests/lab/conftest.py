"""One booted host for all scenarios: its server initialised, and incus-numa running under systemd as users have it.

`LAB_KIND=KIND` chooses what runs in the host (`host.KINDS`), and with it the scenarios that are for it; `LAB_ALL=1`
adds those for `incus`. `LAB_PORT=PORT` uses a host that `tests.lab.boot` keeps instead of booting one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab.host import INCUS, KINDS, CommandError, Host
from tests.lab.lab import GUEST, RECORD, Lab

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / ".lab"
KIND = KINDS[os.environ.get("LAB_KIND", INCUS.name)]
HERE = {KIND.name, INCUS.name} if os.environ.get("LAB_ALL") else {KIND.name}
HOST = pytest.StashKey[Host]()
FIGURES = pytest.StashKey[list[str]]()
VENV = "/opt/incus-numa"
READY = {"incus": "incus admin waitready --timeout=120", "lxd": "lxd waitready --timeout=120"}
POOL = (
    "exec </dev/null; {command} storage show default >/dev/null 2>&1 || {{ {command} storage create default dir"
    " && {command} profile device add default root disk path=/ pool=default; }}"
)
TINY = (
    "exec </dev/null; {command} image show tiny >/dev/null 2>&1"
    " || {command} image import /root/tiny.tar.gz --alias tiny"
)


class Figures:
    """Measured figures, printed while they come in and once more at the end of the run."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def say(self, what: str, value: float, unit: str = " s") -> None:
        """Add one figure."""
        line = f"{what}: {value:.2f}{unit}"
        print(line)
        self._lines.append(line)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []
    config.addinivalue_line("markers", f"on(KIND, ...): the hosts that a scenario is for; {INCUS.name} if not said")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for other hosts than the one that is booted."""
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        mark = item.get_closest_marker("on")
        is_here = item.get_closest_marker("lab") is None or HERE & set(mark.args if mark else (INCUS.name,))
        (kept if is_here else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for line in config.stash[FIGURES]:
        terminalreporter.write_line(f"measured: {line}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed scenario says what the daemon, the server and the console said."""
    report = yield
    host = item.config.stash.get(HOST, None)
    if report.failed and host is not None:
        for title, command in (
            ("incus-numa", "journalctl --no-pager --unit=incus-numa --lines=80"),
            (KIND.server, f"journalctl --no-pager --unit={KIND.server} --lines=20"),
            ("containers", "cd /sys/fs/cgroup; grep . lxc.payload.*/cpuset.cpus lxc.payload.*/cpuset.mems"),
            ("cpuset changes", f"tail -n 40 {RECORD}"),
        ):
            try:
                _, out, err = host.attempt(command, timeout_s=30)
            except CommandError as error:
                out, err = "", str(error)
            report.sections.append((title, out + err))
        report.sections.append(("console", host.read_serial()))
    return report


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    return Figures(pytestconfig.stash[FIGURES])


@pytest.fixture(scope="session")
def host(pytestconfig: pytest.Config, figures: Figures) -> Iterator[Host]:
    """A booted host that answers."""
    if not (IMAGES / KIND.suite / "disk").exists():
        pytest.fail("there is no image in .lab: `make lab` builds it", pytrace=False)
    port = os.environ.get("LAB_PORT")
    began = time.monotonic()
    one = Host.attach(IMAGES, int(port)) if port else _boot()
    try:
        one.wait()
        figures.say("boot, until SSH answers", time.monotonic() - began)
        pytestconfig.stash[HOST] = one
        yield one
        if (busy_s := one.read_cpu_s()) is not None:
            figures.say("CPUs that the emulator kept busy", busy_s / (time.monotonic() - began), unit="")
    finally:
        one.stop()


@pytest.fixture(scope="session")
def lab(host: Host, figures: Figures, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The host with its server initialised, the recorder running and incus-numa running."""
    began = time.monotonic()
    lab = Lab(host, KIND)
    with ThreadPoolExecutor() as both:
        # Neither keeps more than one CPU busy.
        jobs = [both.submit(initialise, lab), both.submit(install, host, tmp_path_factory.mktemp("wheel"))]
    for job in jobs:
        job.result()
    for script in ("record.py", "correct.py"):
        host.put((GUEST / script).read_bytes(), f"/root/{script}")
    host.run(
        f"systemctl stop lab-record 2>/dev/null; systemd-run -q --unit=lab-record python3 /root/record.py {RECORD}"
    )
    figures.say(f"{KIND.server} initialised and incus-numa installed", time.monotonic() - began)
    began = time.monotonic()
    lab.systemctl("restart", "incus-numa")
    figures.say("incus-numa started, until READY", time.monotonic() - began)
    return lab


@pytest.fixture(scope="module", autouse=True)
def _clean(lab: Lab) -> Iterator[None]:
    """Every module starts with the daemon running, without containers, and leaves it so."""
    if not lab.is_active():
        lab.systemctl("restart", "incus-numa")
    yield
    _delete_everything(lab)


def _boot() -> Host:
    """A started host; a second one if the first dies, for emulators have bugs of their own."""
    one = Host.start(IMAGES, KIND)
    try:
        one.wait()
    except CommandError as error:
        one.stop()
        print(f"the first boot failed: {error}")
        one = Host.start(IMAGES, KIND)
    return one


def initialise(lab: Lab) -> None:
    """A storage pool and the tiny image, nothing else; no network, which containers that only compute do not need."""
    lab.host.run(READY[lab.kind.server], timeout_s=150)
    for step in (POOL, TINY):
        lab.host.run(step.format(command=lab.server.command))
    _delete_everything(lab)


def _delete_everything(lab: Lab) -> None:
    for project in lab.list_projects():
        lab.delete(*lab.list_names(project), project=project)
        if project != "default":
            lab.incus("project", "delete", project)


def install(host: Host, folder: Path) -> None:
    """The project's wheel in the image's venv, its unit, and its example configuration, as README says."""
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--wheel-dir", str(folder), str(ROOT)], check=True, stdin=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    host.put(wheel.read_bytes(), f"/root/{wheel.name}")
    host.run(
        f"{VENV}/bin/pip install -q --no-index --no-deps --force-reinstall /root/{wheel.name}"
        f" && ln -sf {VENV}/bin/incus-numa /usr/bin/incus-numa",
        timeout_s=240,
    )
    for unit in (ROOT / "systemd").iterdir():
        host.put(unit.read_bytes(), f"/etc/systemd/system/{unit.name}")
    host.put((ROOT / "examples" / "config.toml").read_bytes(), "/etc/incus-numa/config.toml")
    host.run("systemctl daemon-reload && systemctl enable --quiet incus-numa")
