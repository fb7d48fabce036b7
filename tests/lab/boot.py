"""Boots a virtual host and keeps it: `python -m tests.lab.boot [KIND]`. To work on scenarios without a boot each time.

Prints what to set for the tests: `LAB_KIND=KIND LAB_PORT=PORT pytest -m lab tests/lab`. Ends with Ctrl-C or SIGTERM.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from tests.lab.host import INCUS, KINDS, Host

IMAGES = Path(__file__).parents[2] / ".lab"


def main() -> None:
    """Boot, say how to get in, wait."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    kind = KINDS[sys.argv[1]] if len(sys.argv) > 1 else INCUS
    host = Host.start(IMAGES, kind)
    try:
        print(f"booted in {host.wait():.0f} s: LAB_KIND={kind.name} LAB_PORT={host.port}", flush=True)
        print(f"ssh -p {host.port} -i {IMAGES}/id -o StrictHostKeyChecking=no root@127.0.0.1", flush=True)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        pass
    finally:
        host.stop()


if __name__ == "__main__":
    main()
