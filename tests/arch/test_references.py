"""Names that code takes from modules of the package exist, also in ``learn/``, whose types nothing checks."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from arch.source import SRC, files, tree, where


def _file(module: str) -> Path | None:
    """The file of a module of the package. None for other modules, and for names inside of modules."""
    at = SRC.parent.joinpath(*module.split("."))
    return next((p for p in (at.with_suffix(".py"), at / "__init__.py") if p.is_file()), None)


@functools.cache
def _names(path: Path) -> frozenset[str]:
    """Names that a module binds outside of functions and classes, and the modules in its folder."""
    found: set[str] = set()
    left: list[ast.AST] = list(tree(path).body)
    while left:
        node = left.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name.split(".")[0])
        left += ast.iter_child_nodes(node)
    if path.name == "__init__.py":
        found |= {p.stem for p in path.parent.iterdir()}
    return frozenset(found)


@functools.cache
def _bound(scope: ast.AST) -> set[str]:
    """Names that are parameters or assigned somewhere in a file, which may hide a module of that name."""
    args = {node.arg for node in ast.walk(scope) if isinstance(node, ast.arg)}
    return args | {n.id for n in ast.walk(scope) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


@pytest.mark.slow
def test_what_is_taken_from_a_module_is_there() -> None:
    bad, seen = [], 0
    for path in files():
        whole = tree(path)
        modules: dict[str, Path] = {}
        for node in ast.walk(whole):
            if not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgewise")):
                continue
            source = _file(node.module or "")
            for alias in node.names:
                inner = _file(f"{node.module}.{alias.name}")
                if inner is not None:
                    modules[alias.asname or alias.name] = inner
                elif source is not None and not {alias.name, "__getattr__"} & _names(source):
                    bad.append(f"{where(path, node)}: {node.module} has no {alias.name}")
        for node in ast.walk(whole):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                seen += 1
                if node.value.id in _bound(whole) or node.attr.startswith("__"):
                    continue
                names = _names(modules[node.value.id])
                if node.attr not in names and "__getattr__" not in names:
                    bad.append(f"{where(path, node)}: {node.value.id} has no {node.attr}")
    assert seen > 1000, "there are such places"
    assert not bad, "\n".join(bad)
