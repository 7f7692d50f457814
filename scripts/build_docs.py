#!/usr/bin/env python3
"""Build the pages of ``docs/`` as a site in ``build/docs/site``: ``make docs``.

Zensical builds what lies in one folder, and its strict mode ends the build at a link or anchor that leads nowhere. The
pages of this repository also link to files beside ``docs/``. So they are copied first: the Markdown files of ``BESIDE``
become pages of the site, and a link to any other file becomes its path.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
BUILD = ROOT / "build" / "docs"
BESIDE = {
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "tests/README.md": "project/tests.md",
    "benchmarks/RESULTS.md": "project/results.md",
    "src/edgewise/assets/student/README.md": "project/bundled-model.md",
    "docs/adr": "adr/index.md",
}
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```[^\n]*$)", re.DOTALL | re.MULTILINE)


def staged() -> dict[str, str]:
    """Path in the site -> text of each page, with links as they lead there."""
    sources = {page.relative_to(ROOT).as_posix(): page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    places = {**sources, **BESIDE}
    pages = {
        place: relinked((ROOT / source).read_text(encoding="utf-8"), source, places)
        for source, place in places.items()
        if source.endswith(".md")
    }
    return {**pages, "adr/index.md": decisions()}


def relinked(text: str, source: str, places: dict[str, str]) -> str:
    """The text of the file ``source`` with its links as they lead in the site; code blocks stay as they are."""
    here = places[source]

    def link(found: re.Match[str]) -> str:
        picture, said, target, anchor = found[1], found[2], found[3], found[4] or ""
        if not target or re.match(r"[a-z]+:", target):
            return found[0]
        path = os.path.normpath(os.path.join(os.path.dirname(source), target)).replace(os.sep, "/")
        if path in places:
            return f"{picture}[{said}]({os.path.relpath(places[path], os.path.dirname(here) or '.')}{anchor})"
        if path.startswith("docs/") and here in places.values() and source.startswith("docs/"):
            return found[0]  # a picture below docs/, or a dead link, which the strict build finds
        return f"{said} (`{path}`)"

    pieces = FENCE.split(text)
    return "".join(piece if piece.startswith("```") else LINK.sub(link, piece) for piece in pieces)


def decisions() -> str:
    """The page that lists the records of decisions."""
    lines = ["# Decisions", "", "Each larger choice of the design has a record of one page.", ""]
    for page in sorted((DOCS / "adr").glob("*.md")):
        title = page.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        lines.append(f"- [{title}]({page.name})")
    return "\n".join(lines) + "\n"


def stage(folder: Path) -> None:
    """Write all that Zensical reads into ``folder``, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DOCS / "images", folder / "pages" / "images")
    for place, text in staged().items():
        path = folder / "pages" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    shutil.copyfile(DOCS / "site.css", folder / "pages" / "site.css")
    shutil.copyfile(DOCS / "site.toml", folder / "zensical.toml")


def main() -> int:
    """Build the site; returns the exit status, 1 where a link leads nowhere."""
    stage(BUILD)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(BUILD / "zensical.toml")]
    done = subprocess.run(command, cwd=BUILD, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
    if done.returncode:
        said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr).split("Traceback (most recent call last)")[0]
        print(f"{said}\nthe site was not built; its pages are copies, in {BUILD / 'pages'}", file=sys.stderr)
        return 1
    print(f"the site: {BUILD / 'site' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
