"""A Prometheus outside the virtual host that scrapes the daemon inside, set up from the files in examples/.

It runs outside because emulation would make it slow; the daemon cannot tell.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.lab.host import free_port

EXAMPLES = Path(__file__).parents[2] / "examples"
PATIENCE_S = 30


class Prometheus:
    """A running Prometheus."""

    def __init__(self, base: str) -> None:
        self._base = base

    def wait(self) -> None:
        """Wait until it answers. Raises OSError when it does not."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.query("up")
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def query(self, expression: str) -> dict[str, float]:
        """The values of an expression now, by their labels as JSON with sorted keys, those of the target left out."""
        found = self._get(f"/api/v1/query?query={urllib.parse.quote(expression)}")["result"]
        return {_render_labels(one["metric"]): float(one["value"][1]) for one in found}

    def list_rules(self) -> dict[str, str]:
        """The alert rules and their health: "ok" for those that could be evaluated."""
        groups = self._get("/api/v1/rules")["groups"]
        return {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}

    def list_firing(self) -> dict[str, str]:
        """The alerts that fire, and the summary of each."""
        alerts = self._get("/api/v1/alerts")["alerts"]
        return {one["labels"]["alertname"]: one["annotations"]["summary"] for one in alerts if one["state"] == "firing"}

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self._base + path, timeout=PATIENCE_S) as answer:
            return json.loads(answer.read())["data"]


@contextmanager
def prometheus(folder: Path, port: int, token: Path, certificate: Path) -> Iterator[Prometheus]:
    """Prometheus with what examples/ has for hosts that are reached from elsewhere: TLS, a token and the alert rules.

    The target is port `port` of localhost. Rules are as they are but for their `for`: alerts do not wait to fire.
    """
    config = folder / "prometheus.yml"
    config.write_text(render_configuration((EXAMPLES / "prometheus.yml").read_text(), port, token, certificate))
    rules = (EXAMPLES / "alerts.yml").read_text()
    (folder / "alerts.yml").write_text(re.sub(r"(?m)^ +for: .*\n", "", rules))
    own = free_port()
    argv = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    argv += [f"--web.listen-address=127.0.0.1:{own}", "--log.level=warn"]
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv], stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )
    try:
        server = Prometheus(f"http://127.0.0.1:{own}")
        server.wait()
        yield server
    finally:
        process.kill()
        process.wait()
        print((folder / "said").read_text())


def render_configuration(example: str, port: int, token: Path, certificate: Path) -> str:
    """The example with its commented job for hosts elsewhere in the place of the one for this host, asking often."""
    head, _, rest = example.partition("scrape_configs:\n")
    _, _, commented = rest.partition("  # Hosts that are reached from elsewhere:\n")
    job = re.sub(r"(?m)^  # ?", "  ", commented)
    for pattern, value in (
        (r"(?<=credentials_file: ).*", str(token)),
        (r"(?<=ca_file: ).*", str(certificate)),
        (r"(?<=targets: ).*", f'["localhost:{port}"]'),
    ):
        job, changed = re.subn(pattern, value, job)
        assert changed == 1, f"examples/prometheus.yml has no {pattern}"
    return re.sub(r"(?<=_interval: ).*", "3s", head) + "scrape_configs:\n" + job


def _render_labels(metric: dict[str, str]) -> str:
    return json.dumps(
        {key: value for key, value in metric.items() if key not in ("__name__", "job", "instance")}, sort_keys=True
    )
