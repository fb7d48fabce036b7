"""docs/settings.md is what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import settings_document

DOCUMENT = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_document_of_settings_is_made_from_the_code(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--update-golden"):
        DOCUMENT.write_text(settings_document.render())
    assert DOCUMENT.read_text() == settings_document.render(), "if that is wanted, run `make golden`"


def test_every_key_of_an_instance_is_in_the_document() -> None:
    assert {f"user.numa.{name}" for name in settings_document.OWN_KEYS} == set(settings_document.known_keys())
