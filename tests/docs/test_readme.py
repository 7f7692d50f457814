"""Examples of README.md and the pages of docs/ work: shell and Python blocks run as written, links lead somewhere.

All ``sh``, ``bash`` and ``python`` blocks run, in order, in one temporary folder per page; ``blocks.py`` says how to
mark exceptions. ``make`` and ``run.py`` are not called from here (they would call this test): their names are checked.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from docs.blocks import LINKING, PAGES, ROOT, Block, blocks, logical_lines, page_id

SHELL = ("sh", "bash", "shell", "console")
# Belongs to setting up a clone, in which this test already runs.
SETTING_UP = re.compile(r"\s*(git clone\b|cd edgewise\b|(source|\.) \.venv/bin/activate\b|pip install -e )")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
every_page = pytest.mark.parametrize("page", PAGES, ids=page_id)
# What a newcomer follows is played in every test run, the other pages in ``make test-long``.
FIRST = ("README.md", "docs/tutorial/first-model.md")
played_pages = pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=() if page_id(p) in FIRST else pytest.mark.long(sample=0)) for p in PAGES],
    ids=page_id,
)


def shell_script(block: Block) -> str:
    """The block as a script for the test: set-up lines dropped and checked, arguments of its mark appended."""
    lines = []
    for line in logical_lines(block.text):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            unknown = {w for w in words[1:] if "=" not in w and not w.startswith("-")} - TARGETS
            assert not unknown, f"line {block.line}: the Makefile has no target {unknown}"
        elif "run.py" in words[:2]:
            assert words[words.index("run.py") + 1] in TARGETS, f"line {block.line}: run.py has no such command: {line}"
        elif not SETTING_UP.match(line):
            command = line.replace(".venv/bin/", "")
            extra = block.marks.get("run with", "")
            if extra and words[0].endswith("edgewise"):  # before a pipe, a redirection or a comment
                command = re.sub(r"^(.*?)(\s+(?:[|>&;#]|2>).*)?$", rf"\1 {extra}\2", command)
            lines.append(command)
    return "\n".join(lines)


def run(command: list[str], folder: Path, block: Block, page: Path) -> None:
    """Run one block and show all of its output if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "NO_COLOR": "1", "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1500,
    )
    shown = f"{page.name}:{block.line}: exit status {done.returncode}\n{block.text}\n{done.stdout[-6000:]}"
    assert done.returncode == 0, shown


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(os.name == "nt", reason="the shell blocks are for a POSIX shell")
@played_pages
def test_code_blocks_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        if name := block.marks.get("file"):
            target = tmp_path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif "not run" in block.marks:
            continue
        elif block.language in SHELL:
            script = shell_script(block)
            if script:
                run(["bash", "-euxo", "pipefail", "-c", script], tmp_path, block, page)
        elif block.language == "python":
            script_path = tmp_path / f"block_{block.line}.py"
            script_path.write_text(block.text, encoding="utf-8")
            run([sys.executable, str(script_path)], tmp_path, block, page)
    if page.name == "first-model.md":
        compared = json.loads((tmp_path / "mine-run/summary.json").read_text(encoding="utf-8"))["against_alone"]
        assert compared["change_percent"] < -5, "the first run of one's own shows that federating wins"
        assert compared["better"] > compared["worse"]


def imported(source: str) -> list[str]:
    """List what a block imports of edgewise, as ``edgewise.core.part.Doc``. Raises SyntaxError."""
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in found if (node.module or "").split(".")[0] == "edgewise"]
    return [f"{node.module}.{alias.name}" for node in ours for alias in node.names]


def find_object(dotted: str) -> object | None:
    """The module or the object of a module that is called so; None where there is none."""
    home, _, name = dotted.rpartition(".")
    if find_spec(home) is None:
        return None
    return getattr(importlib.import_module(home), name, None) or find_spec(dotted)


@every_page
def test_blocks_are_well_formed(page: Path) -> None:
    """The cheap part: marks have reasons and stand before blocks, commands exist, TOML parses, imports exist."""
    for block in blocks(page):
        place = f"{page.name}:{block.line}"
        assert all(block.marks.values()), f"{place}: an empty mark {block.marks}"
        assert "run with" not in block.marks or block.language in SHELL, f"{place}: `run with` is for shell blocks"
        if block.language in SHELL and "not run" not in block.marks:
            assert not re.search(r"^\s*\$ ", block.text, re.MULTILINE), f"{place}: leave the prompt `$` out"
            shell_script(block)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "python":
            missing = [name for name in imported(block.text) if find_object(name) is None]
            assert not missing, f"{place}: edgewise has no {missing}"


@pytest.mark.parametrize("page", LINKING, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = page.parent / name if name else page
        if not target.exists():
            broken.append(link)
        elif anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            if anchor not in {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in heads}:
                broken.append(link)
    assert not broken, f"{page.name}: {broken}"


def test_readme_shows_the_two_commands() -> None:
    lines = [line.strip() for b in blocks(PAGES[0]) if b.language in SHELL for line in logical_lines(b.text)]
    for wanted in ("make demo", "make test"):
        assert any(line.split("#")[0].strip() == wanted for line in lines), (
            f"README.md: no shell block shows `{wanted}`"
        )
