"""`incus-numa man`: the man page, shown on a terminal and printed elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import click

from incus_numa.cli import output
from incus_numa.cli.main import EXIT_FAILED
from incus_numa.cli.manual import render_manual
from incus_numa.cli.options import common, start_logging


@click.command()
@common
def command(config_file: Path | None, log_level: str) -> int:
    """Show the man page; to a file or a pipe, print what man(1) reads.

    Example: incus-numa man > /usr/local/share/man/man1/incus-numa.1
    """
    start_logging(log_level)
    page = render_manual()
    viewer = shutil.which("man") if sys.stdout.isatty() else None
    if viewer is None:
        output.write(page.rstrip("\n"))
        return 0
    shown = subprocess.run([viewer, "-l", "-"], input=page.encode(), check=False)  # noqa: S603
    return EXIT_FAILED if shown.returncode else 0
