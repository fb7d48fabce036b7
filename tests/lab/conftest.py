"""One booted host for all scenarios, with Incus initialised and incus-numa running under systemd as installed by users.

`LAB_PORT=PORT` uses a host that `tests.lab.boot` keeps instead of booting one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.lab.host import CommandError, Host
from tests.lab.lab import GUEST, RECORD, Lab

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / ".lab"
HOST = pytest.StashKey[Host]()
FIGURES = pytest.StashKey[list[str]]()
VENV = "/opt/incus-numa"
PROJECTS = "incus project list --format=csv --columns=n </dev/null | sed 's/ (current)//'"


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
            ("incus", "journalctl --no-pager --unit=incus --lines=20"),
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
    if not (IMAGE / "disk").exists():
        pytest.fail("there is no image in .lab: `make lab` builds it", pytrace=False)
    port = os.environ.get("LAB_PORT")
    began = time.monotonic()
    one = Host.attach(IMAGE, int(port)) if port else _boot()
    try:
        one.wait()
        figures.say("boot, until SSH answers", time.monotonic() - began)
        pytestconfig.stash[HOST] = one
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="session")
def lab(host: Host, figures: Figures, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The host with Incus initialised, the recorder running and incus-numa running."""
    began = time.monotonic()
    _initialise_incus(host)
    figures.say("Incus initialised", time.monotonic() - began)
    lab = Lab(host)
    _delete_everything(lab)
    for script in ("record.py", "correct.py"):
        host.put((GUEST / script).read_bytes(), f"/root/{script}")
    host.run(
        f"systemctl stop lab-record 2>/dev/null; systemd-run -q --unit=lab-record python3 /root/record.py {RECORD}"
    )
    began = time.monotonic()
    _install(host, tmp_path_factory.mktemp("wheel"))
    figures.say("incus-numa installed", time.monotonic() - began)
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
    one = Host.start(IMAGE)
    try:
        one.wait()
    except CommandError as error:
        one.stop()
        print(f"the first boot failed: {error}")
        one = Host.start(IMAGE)
    return one


def _initialise_incus(host: Host) -> None:
    """A storage pool and the tiny image; no network, which containers that only compute do not need."""
    host.run("incus admin waitready --timeout=120", timeout_s=150)
    host.run(
        "exec </dev/null; incus storage show default >/dev/null 2>&1 || {"
        " incus storage create default dir && incus profile device add default root disk path=/ pool=default; }"
    )
    host.run(
        "exec </dev/null; incus image show tiny >/dev/null 2>&1 || incus image import /root/tiny.tar.gz --alias tiny"
    )


def _delete_everything(lab: Lab) -> None:
    for project in lab.host.run(PROJECTS).split():
        lab.delete(*lab.list_names(project), project=project)
        if project != "default":
            lab.incus("project", "delete", project)


def _install(host: Host, folder: Path) -> None:
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
