#!/usr/bin/env python3
"""Write ``docs/reference/keys.md`` and ``docs/reference/cli.md`` from the recipe's schema and the commands themselves.

    .venv/bin/python scripts/write_reference.py

A test compares both pages with what this would write, so a new key or option comes with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from edgewise.apps.cli.main import app
from edgewise.apps.cli.recipe_schema import schema_tree

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
WRITTEN = "<!-- Written by scripts/write_reference.py; do not edit by hand. -->"


def pages() -> dict[str, str]:
    """File name -> text of each written page."""
    return {"keys.md": keys_page(), "cli.md": cli_page()}


def keys_page() -> str:
    """Every key of a recipe: its type and range, its default, and what it means."""
    known = schema_tree()
    plain = [key for key in known if not key.below]
    tables = [key for key in known if key.below]
    lines = [
        "# Recipe keys",
        "",
        WRITTEN,
        "",
        "Every key of a recipe, with its type, range and default. `edgewise explain training.lr` shows one, and "
        "`edgewise schema` prints the JSON schema for editors. [Recipes](recipes.md) says how they work together.",
        "",
        "## At the top",
        "",
        *_rows(plain),
        "",
    ]
    told: dict[tuple[str, ...], str] = {}  # the parts of a slot -> the slot that has listed them
    for table in tables:
        slot = any(key.below or key.kind == "table" for key in table.below)
        lines += [f"## {table.path}", ""]
        lines += [_sentence(table.says), ""] if table.says else []
        if not slot:
            lines += [*_rows(table.below), ""]
            continue
        repeated = (
            "`[[" + table.path + "]]`, as many as there are steps" if "list" in table.kind else f"`[{table.path}]`"
        )
        parts = tuple(kind.path.partition(".")[2] for kind in table.below)
        if (first := told.setdefault(parts, table.path)) != table.path:
            lines += [f"Written as {repeated}. The parts and their keys are those of [{first}](#{first}).", ""]
            continue
        lines += [f"Written as {repeated}, with one of these as its `kind`.", ""]
        for kind in table.below:
            lines += [f"### {kind.path}", "", _sentence(_prose(kind.says)), ""]
            lines += [*_rows(kind.below), ""] if kind.below else ["It has no keys of its own.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _rows(keys: Any) -> Iterator[str]:
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key in keys:
        default = f"`{key.default}`" if key.default else ("required" if key.required else "")
        name = key.path.rsplit(".", 1)[-1]
        yield f"| `{name}` | {_cell(key.kind)} | {_cell(default)} | {_cell(_prose(key.says))} |"


def cli_page() -> str:
    """Every command with its arguments and options."""
    root = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        WRITTEN,
        "",
        "Every command, argument and option. `edgewise COMMAND --help` shows the same. Exit statuses stand with the "
        "[errors](../errors.md).",
        "",
    ]
    for words, command in _commands(root, "edgewise"):
        lines += [f"## {words}", "", *_paragraphs(command.help or ""), *_parameters(words, command)]
    return "\n".join(lines).rstrip() + "\n"


def _commands(group: Any, words: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, f"{words} {name}")
        else:
            yield f"{words} {name}", command


def _parameters(words: str, command: Any) -> list[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden and p.name != "help"]
    usage = " ".join([words, *map(_placeholder, arguments), "[OPTIONS]"])
    lines = ["```text", usage, "```", ""]
    if arguments or options:
        lines += ["| argument or option | meaning |", "|---|---|"]
        lines += [f"| `{_placeholder(p).replace('|', ' or ')}` | {_meaning(p)} |" for p in arguments]
        lines += [f"| `{_flag(p).replace('|', ' or ')}` | {_meaning(p)} |" for p in options]
        lines.append("")
    return lines


def _placeholder(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _flag(option: Any) -> str:
    names = ", ".join([*option.opts, *option.secondary_opts])
    return names if option.is_flag else f"{names} {option.metavar or option.name.upper()}"


def _meaning(parameter: Any) -> str:
    said = [_prose(parameter.help or "")]
    if parameter.multiple:
        said.append("May be repeated.")
    default = parameter.default
    if not parameter.required and isinstance(default, str | int | float) and not isinstance(default, bool) and default:
        said.append(f"Default: `{default}`.")
    elif parameter.required and parameter.param_type_name == "option":
        said.append("Required.")
    return _cell(" ".join(filter(None, said)))


def _paragraphs(said: str) -> list[str]:
    """The paragraphs of a help text; what is between words of a line stays one line."""
    blocks = [" ".join(block.split()) for block in said.replace("\b", "").split("\n\n")]
    return [line for block in blocks if block for line in (_prose(block), "")]


def _prose(said: str) -> str:
    """Text in which double back quotes are single ones, and no character is Markdown or HTML by accident."""
    pieces = re.split(r"(`[^`]*`)", said.replace("``", "`"))
    return "".join(p if p.startswith("`") else re.sub(r"([*_<>\[\]])", r"\\\1", p) for p in pieces)


def _sentence(said: str) -> str:
    said = said[:1].upper() + said[1:]
    return said if said.endswith((".", "!", "?")) else f"{said}."


def _cell(said: str) -> str:
    return said.replace("|", "\\|")


def main() -> None:
    """Write both pages."""
    for name, text in pages().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"docs/reference/{name}")


if __name__ == "__main__":
    main()
