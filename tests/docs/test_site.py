"""The site of the pages: each page stands in its menu, and `make docs` fails where a link leads nowhere."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from docs.blocks import ROOT

SCRIPT = runpy.run_path(str(ROOT / "scripts" / "build_docs.py"))


def menu(entry: Any) -> list[str]:
    """The pages of a menu, in its order."""
    if isinstance(entry, str):
        return [entry]
    return [page for one in (entry.values() if isinstance(entry, dict) else entry) for page in menu(one)]


def test_every_page_stands_in_the_menu_once() -> None:
    site = tomllib.loads((ROOT / "docs" / "site.toml").read_text(encoding="utf-8"))
    shown = menu(site["project"]["nav"])
    pages = [page for page in SCRIPT["staged"]() if not re.fullmatch(r"adr/\d.*", page)]
    assert sorted(shown) == sorted(pages)


def test_links_of_a_page_lead_there_in_the_site() -> None:
    relinked: Callable[..., str] = SCRIPT["relinked"]
    places = {"docs/howto/a.md": "howto/a.md", "docs/b.md": "b.md", "tests/README.md": "project/tests.md"}
    text = "[b](../b.md#x) [tests](../../tests/README.md) [`c`](../../src/c.py) [d](#e) [f](https://g)\n```\n[b](../b.md)\n```\n"
    assert relinked(text, "docs/howto/a.md", places) == (
        "[b](../b.md#x) [tests](../project/tests.md) `c` (`src/c.py`) [d](#e) [f](https://g)\n```\n[b](../b.md)\n```\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("zensical") is None, reason="make docs installs the generator")
def test_the_site_is_built_and_a_dead_anchor_ends_it(tmp_path: Path) -> None:
    SCRIPT["stage"](tmp_path)
    build = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(tmp_path / "zensical.toml")]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "tutorial" / "first-model.html").is_file()
    with (tmp_path / "pages" / "index.md").open("a", encoding="utf-8") as page:
        page.write("\n[nowhere](concepts.md#no-such-place)\n")
    assert subprocess.run(build, cwd=tmp_path, capture_output=True).returncode != 0
