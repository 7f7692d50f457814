"""The plan says what it promises: nothing else reads its recipe, or compares a word of privacy."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import get_args

from arch.source import SRC, dotted, files, nodes, where
from edgewise.plan.recipe import privacy

WORDS = {*get_args(privacy.Privacy)} - {"none"}
WRITERS = {"apps/cli/new_recipe.py", "apps/cli/new_text.py"}  # they write recipes of each word


def outside(*kinds: type[ast.AST], but: Collection[str] = ()) -> Iterator[tuple[Path, ast.AST]]:
    """The nodes of these kinds in all files outside of plan/ and not in ``but``."""
    within = {path for path in files() if path.relative_to(SRC).parts[0] == "plan"} | {SRC / name for name in but}
    return ((path, node) for path, node in nodes(*kinds) if path not in within)


def reads_of_recipes(node: ast.AST) -> bool:
    """Tell whether the node reads the recipe of something that is named like a plan."""
    if not isinstance(node, ast.Attribute) or node.attr != "recipe":
        return False
    last = dotted(node.value).rsplit(".", 1)[-1]
    return "plan" in last or last in ("made", "scaled")


def compared_words(node: ast.AST) -> set[str]:
    """The words of privacy that a comparison or the keys of a dictionary name."""
    parts: list[ast.AST] = []
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    elif isinstance(node, ast.Dict):
        parts = [key for key in node.keys if key is not None]
    elif isinstance(node, ast.MatchValue):
        parts = [node.value]
    constants = (n for part in parts for n in ast.walk(part) if isinstance(n, ast.Constant))
    return {n.value for n in constants if isinstance(n.value, str)} & WORDS


def test_nothing_outside_of_the_plan_reads_its_recipe() -> None:
    bad = [where(path, node) for path, node in outside(ast.Attribute) if reads_of_recipes(node)]
    assert not bad, "give the plan what they need:\n" + "\n".join(bad)


def test_no_word_of_privacy_is_compared_outside_of_the_plan() -> None:
    bad = []
    for path, node in outside(ast.Compare, ast.Dict, ast.MatchValue, ast.ImportFrom, but=WRITERS):
        if found := compared_words(node):
            bad.append(f"{where(path, node)}: {', '.join(sorted(found))}")
        if isinstance(node, ast.ImportFrom) and node.module == privacy.__name__:
            names = {alias.name for alias in node.names} & {"DP_WORDS"}
            bad += [f"{where(path, node)}: import of {name}" for name in names]
    assert not bad, "ask the plan's promise:\n" + "\n".join(bad)


def test_both_are_found_where_they_are() -> None:
    code = 'if plan.recipe.privacy == "hidden" or self._plan.recipe.dp.bits:\n    x = {"local_dp": 1}'
    found = list(ast.walk(ast.parse(code)))
    assert sum(map(reads_of_recipes, found)) == 2
    assert set().union(*map(compared_words, found)) == {"hidden", "local_dp"}
