"""The commands that repeat a run, as its report shows them: to be copied into a shell in the folder of the report."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from edgewise.plan.recipe.data import SHIPPED


def folder(facts: Mapping[str, Any]) -> str:
    """The folder in which a run's recipe lay, from the run's own: ``"../.."``, or empty where it is not around it.

    Only such a folder is told, since any other path would name folders of the machine.
    """
    found = str(facts.get("recipe_from_run") or "")
    return found if found and set(found.split("/")) == {".."} else ""


def block(s: Mapping[str, Any]) -> str:
    """The paragraph and the commands, from ``summary.build``."""
    if "objects" in s["facts"]:
        said = "This run began from objects of a Python script or notebook, which edgewise does not keep as code."
        said += " Run it again with <code>edgewise.Federation</code>. <code>recipe.toml</code> has all settings."
        return f"<h3>Repeat this run</h3><p class='hint'>{said}</p>"
    said = "The recipe with all defaults is <code>recipe.toml</code> beside this page."
    same = "The same seed, data and arithmetic give the same model bytes with any engine."
    recipe, out, where = "recipe.toml", f"../{s['name']}-again", "here"
    lines = []
    if needs := _beside(s):
        recipe, place = f"{s['name']}-again.toml", s["recipe_folder"]
        said += f" It reads {', '.join(needs)} from the folder of the original recipe, so it is copied there first."
        if place:
            recipe = f"{place}/{recipe}"
            lines.append(f"cp recipe.toml {shlex.quote(recipe)}")
        else:
            said += f" Copy it there as <code>{escape(recipe)}</code>."
            out, where = f"runs/{s['name']}-again", "there"
    command = f"edgewise sim {shlex.quote(recipe)} --out {shlex.quote(out)}"
    for module in s["facts"].get("extensions") or ():
        command += f" --extension {shlex.quote(str(module))}"
    asked = f"Run this {'in the folder of this page' if where == 'here' else 'there'}."
    commands = escape("\n".join([*lines, command]))
    return f"<h3>Repeat this run</h3><p class='hint'>{said} {same} {asked}</p><pre>{commands}</pre>"


def _beside(s: Mapping[str, Any]) -> list[str]:
    """What a recipe finds by where it lies."""
    recipe = s["recipe"]
    base, data, trace = recipe["model"]["base"], recipe["data"], recipe["simulation"]["link_trace"]
    paths = [] if data["source"] in SHIPPED else [data["path"]] if isinstance(data["path"], str) else data["path"]
    found = {
        "its data": any(map(_relative, paths)),
        "its model": base != "bundled" and not base.startswith("hub:") and _relative(base),
        "its link traces": bool(trace) and _relative(trace),
        "its extensions": bool(s["facts"].get("extensions")),
    }
    return [name for name, is_there in found.items() if is_there]


def _relative(path: str) -> bool:
    return not Path(path).expanduser().is_absolute()
