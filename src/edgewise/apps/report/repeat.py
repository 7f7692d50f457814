"""Commands that repeat a run, for the reader of a report to copy into a shell."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from edgewise.plan.recipe.data import SHIPPED


def folder(facts: Mapping[str, Any]) -> str:
    """Return the path from a run's folder to its recipe's folder, such as ``"../.."``.

    It is empty if the recipe's folder does not contain the run. Any other path would disclose names of folders on the
    machine.
    """
    found = str(facts.get("recipe_from_run") or "")
    return found if found and set(found.split("/")) == {".."} else ""


def repeat_block(s: Mapping[str, Any]) -> str:
    """Build the paragraph and the commands from ``summary.build``."""
    if "objects" in s["facts"]:
        sentences = "This run used objects of a Python script or notebook. edgewise does not store their code."
        sentences += " Repeat it with <code>edgewise.Federation</code>. <code>recipe.toml</code> has all settings."
        return f"<h3>Repeat this run</h3><p class='hint'>{sentences}</p>"
    sentences = "<code>recipe.toml</code> next to this page is the recipe with all defaults."
    same = "The same seed, data and arithmetic give the same model bytes with any engine."
    recipe, out, where = "recipe.toml", f"../{s['name']}-again", "here"
    lines = []
    if needs := _relative_inputs(s):
        recipe, place = f"{s['name']}-again.toml", s["recipe_folder"]
        sentences += f" It reads {', '.join(needs)} from the folder of the original recipe. So copy it there first."
        if place:
            recipe = f"{place}/{recipe}"
            lines.append(f"cp recipe.toml {shlex.quote(recipe)}")
        else:
            sentences += f" Name it <code>{escape(recipe)}</code>."
            out, where = f"runs/{s['name']}-again", "there"
    command = f"edgewise sim {shlex.quote(recipe)} --out {shlex.quote(out)}"
    for module in s["facts"].get("extensions") or ():
        command += f" --extension {shlex.quote(str(module))}"
    asked = f"Run this {'in the folder of this page' if where == 'here' else 'in that folder'}."
    commands = escape("\n".join([*lines, command]))
    return f"<h3>Repeat this run</h3><p class='hint'>{sentences} {same} {asked}</p><pre>{commands}</pre>"


def _relative_inputs(s: Mapping[str, Any]) -> list[str]:
    """List the inputs that a recipe names by relative paths."""
    recipe = s["recipe"]
    base, data, trace = recipe["model"]["base"], recipe["data"], recipe["simulation"]["link_trace"]
    paths = [] if data["source"] in SHIPPED else [data["path"]] if isinstance(data["path"], str) else data["path"]
    found = {
        "its data": any(map(_is_relative, paths)),
        "its model": base != "bundled" and not base.startswith("hub:") and _is_relative(base),
        "its link traces": bool(trace) and _is_relative(trace),
        "its extensions": bool(s["facts"].get("extensions")),
    }
    return [name for name, is_there in found.items() if is_there]


def _is_relative(path: str) -> bool:
    """Tell whether a path starts from the current folder."""
    return not Path(path).expanduser().is_absolute()
