"""Compares texts with the files in `texts/`; `--update-golden` writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

TEXTS = Path(__file__).parent / "texts"

Golden = Callable[[str, str], None]


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Check a text against `texts/NAME`."""
    update = request.config.getoption("--update-golden")

    def check(name: str, text: str) -> None:
        path = TEXTS / name
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing: run `make golden` and look at what it wrote"
        assert text == path.read_text(), f"{path} differs: if that is wanted, run `make golden`"

    return check
