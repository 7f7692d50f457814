"""The error codes in use and the registry are the same set."""

from __future__ import annotations

import ast
import re
from functools import cache

from arch.source import SRC, files, tree, where
from edgewise.core.errors import REGISTRY

CODE = re.compile(r"\bE-[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*\b")


@cache
def used() -> dict[str, str]:
    """Code -> one place that uses it: string literals outside docstrings and outside the registry."""
    places: dict[str, str] = {}
    for path in files():
        if path == SRC / "core" / "errors.py":
            continue
        prose = {
            id(node.body[0].value)
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                for code in CODE.findall(node.value):
                    places.setdefault(code, where(path, node))
    return places


def test_every_code_in_use_is_registered() -> None:
    unknown = {code: place for code, place in used().items() if code not in REGISTRY}
    assert not unknown, f"add to REGISTRY in core/errors.py and to docs/errors.md: {unknown}"


def test_every_registered_code_is_in_use() -> None:
    unused = sorted(REGISTRY.keys() - used().keys())
    assert not unused, f"no code raises these; raise them or take them out of REGISTRY and docs/errors.md: {unused}"
