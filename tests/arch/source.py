"""The source tree as the architecture tests see it: files, syntax trees, tracked paths."""

from __future__ import annotations

import ast
import functools
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src" / "edgewise"
IGNORED = {".git", ".venv", "build", "dist", "runs", "node_modules"}


def files() -> list[Path]:
    """Every Python file of the package."""
    return sorted(SRC.rglob("*.py"))


@functools.cache
def tree(path: Path) -> ast.Module:
    """Its syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def where(path: Path, node: ast.AST | None = None) -> str:
    """``src/edgewise/core/keys.py:12`` for messages."""
    return f"{path.relative_to(ROOT).as_posix()}{f':{node.lineno}' if node is not None else ''}"  # type: ignore[attr-defined]


@functools.cache
def _nodes_by_kind() -> dict[type[ast.AST], list[tuple[Path, ast.AST]]]:
    """All syntax nodes of all files by their kind, walked once in a process."""
    found: dict[type[ast.AST], list[tuple[Path, ast.AST]]] = {}
    for path in files():
        for node in ast.walk(tree(path)):
            found.setdefault(type(node), []).append((path, node))
    return found


def nodes(*kinds: type[ast.AST]) -> Iterator[tuple[Path, Any]]:
    """The syntax nodes of these kinds in all files, one kind after the other."""
    return itertools.chain.from_iterable(_nodes_by_kind().get(kind, []) for kind in kinds)


def dotted(node: ast.AST) -> str:
    """``np.random.seed`` for that attribute chain; empty for anything that is not a plain chain."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def imported(node: ast.AST) -> list[str]:
    """Full names that an import statement brings in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def tracked() -> list[Path]:
    """List the files that git tracks or would track. Without git: all but the usual outputs."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listing = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout.decode()
        paths = [ROOT / name for name in listing.split("\0") if name]
    else:
        paths = [p for p in ROOT.rglob("*") if not IGNORED.intersection(p.relative_to(ROOT).parts)]
    return sorted(p for p in paths if p.is_file() and "__pycache__" not in p.parts)
