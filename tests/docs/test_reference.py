"""The written pages of docs/reference say what the schema and the commands say."""

from __future__ import annotations

import runpy

import pytest

from docs.blocks import ROOT


@pytest.mark.parametrize("name", ["keys.md", "cli.md"])
def test_reference_pages_are_as_the_script_writes_them(name: str) -> None:
    written = runpy.run_path(str(ROOT / "scripts" / "write_reference.py"))["pages"]()
    page = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert page == written[name], (
        f"run .venv/bin/python scripts/write_reference.py: docs/reference/{name} is not up to date"
    )
