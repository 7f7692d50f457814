"""The error codes in use and the registry are the same set."""

from __future__ import annotations

import ast
import re
from functools import cache

from arch.source import SRC, nodes, where
from edgewise.core.errors import REGISTRY

CODE = re.compile(r"\bE-[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*\b")


@cache
def used() -> dict[str, str]:
    """Code -> one place that uses it: string literals outside docstrings and outside the registry."""
    places: dict[str, str] = {}
    prose = {
        id(node.body[0].value)
        for _, node in nodes(ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if node.body and isinstance(node.body[0], ast.Expr)
    }
    for path, node in nodes(ast.Constant):
        if not isinstance(node.value, str) or "E-" not in node.value:
            continue
        if id(node) not in prose and path != SRC / "core" / "errors.py":
            places |= {code: where(path, node) for code in CODE.findall(node.value) if code not in places}
    return places


def test_every_code_in_use_is_registered() -> None:
    unknown = {code: place for code, place in used().items() if code not in REGISTRY}
    assert not unknown, f"add to REGISTRY in core/errors.py and to docs/errors.md: {unknown}"


def test_every_registered_code_is_in_use() -> None:
    unused = sorted(REGISTRY.keys() - used().keys())
    assert not unused, f"no code raises these; raise them or take them out of REGISTRY and docs/errors.md: {unused}"
