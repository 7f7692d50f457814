"""The fenced code blocks of a Markdown page, and what their marks say about running them.

A mark is an HTML comment on the line before the fence (blank lines between are fine):

    <!-- not run: reason -->        this block is not executed
    <!-- run with: --set a=b -->    `edgewise` commands in this block get these arguments appended in the test
    <!-- file: recipe.toml -->      this block is written to that file in the page's folder
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name != "adr"]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "tests/README.md")), *DOCS]
LINKING = [
    *PAGES,
    *(ROOT / name for name in ("CHANGELOG.md", "benchmarks/README.md", "benchmarks/RESULTS.md")),
    *sorted((ROOT / "docs" / "adr").glob("*.md")),
]


def page_id(page: Path) -> str:
    """The path of a page below the root: what a test of it is called."""
    return page.relative_to(ROOT).as_posix()


class Block(NamedTuple):
    """One fenced block: its language, text, first line in the page, and marks."""

    language: str
    text: str
    line: int
    marks: dict[str, str]


def blocks(page: Path) -> list[Block]:
    """The blocks of a page in order. Raises ValueError on a fence that never closes or an unknown mark."""
    found: list[Block] = []
    marks: dict[str, str] = {}
    fence, language, body, start = "", "", list[str](), 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if fence:
            if line.strip() == fence:
                found.append(Block(language, "\n".join(body) + "\n", start, marks))
                fence, marks = "", {}
            else:
                body.append(line)
        elif opening := re.match(r"\s*(```+|~~~+)\s*(\w*)", line):
            fence, language, body, start = opening.group(1), opening.group(2), [], number
        elif mark := re.match(r"\s*<!--\s*(not run|run with|file):\s*(.*?)\s*-->\s*$", line):
            marks = {**marks, mark.group(1): mark.group(2)}
        elif line.strip() and marks:
            raise ValueError(f"{page.name}:{number}: the mark {marks} stands before no code block")
    if fence:
        raise ValueError(f"{page.name}:{start}: the code block never ends")
    return found


def logical_lines(text: str) -> list[str]:
    """Shell lines with continuations joined, without comments and blanks."""
    joined = re.sub(r"\\\n\s*", " ", text)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
