"""The commands ``edgewise recipes``, ``new``, ``explain`` and ``compare``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Json

WORDS = ("none", "hidden", "central_dp", "distributed_dp", "local_dp")  # The words of a recipe's ``privacy``.


def _recipes_like(incomplete: str) -> Iterable[str]:
    """Complete the names of shipped recipes in the shell."""
    from edgewise.apps.cli import shipped

    return [name for name in shipped.shipped_recipe_names() if name.startswith(incomplete)]


def _topics_like(incomplete: str) -> Iterable[str]:
    """Complete error codes and page names in the shell."""
    from edgewise.apps.cli import manual

    return [
        one
        for one in [*manual.documented_error_codes(), *manual.manual_pages()]
        if one.lower().startswith(incomplete.lower())
    ]


def recipes(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="Name of a shipped recipe (default: list all).", autocompletion=_recipes_like
        ),
    ] = "",
    to: Annotated[Path | None, typer.Option("--to", help="Copy the recipe to this file or folder.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes that ship with edgewise, or copy one.

    A name alone prints that recipe. Existing files are never overwritten.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("recipes", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from edgewise.apps.cli import shipped
        from edgewise.core.errors import RecipeError

        if not name:
            if to is not None:
                raise RecipeError("E-MISSING", "--to needs the name of a recipe.", "`edgewise recipes` lists them.")
            found = {one: shipped.recipe_purpose(one) for one in shipped.shipped_recipe_names()}
            if not as_json:
                _print_pairs(found)
            return {"recipes": found}
        if to is None:
            if not as_json:
                print(shipped.text(name), end="")
            return {"name": name, "text": shipped.text(name)}
        target = shipped.copy_shipped_recipe(name, to)
        if not as_json:
            print(f"wrote {target}; next: edgewise check {target}")
        return {"name": name, "file": str(target)}

    raise typer.Exit(session.run(body))


def compare(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Two or more run directories.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("compare.html"),
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs in a table and on a page with overlaid plots.

    Shows perplexity, bytes, rounds, time and epsilon, and the settings in which the runs differ. Names the runs whose
    perplexities cannot be compared, because their data or base models differ.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("compare", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from edgewise.apps.report import comparison, comparison_page

        found = comparison.build_comparison(run_dirs)
        comparison_page.write_comparison_page(found, out)
        if not as_json:
            from rich.console import Console
            from rich.text import Text

            console = Console()
            comparison.show_comparison(console, found)
            console.print(Text("page    ", "dim").append(str(out), "bold"), soft_wrap=True)
        return {**found, "page": str(out)}

    raise typer.Exit(session.run(body))


def explain(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="[TOPIC]",
            help="An error code, a page, a recipe key or a glossary word (default: list all).",
            autocompletion=_topics_like,
        ),
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain an error code, a page, a recipe key or a word.

    Examples: edgewise explain E-QUORUM, explain threat-model, explain training.lr, explain masks.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("explain", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from edgewise.apps.cli import manual

        if not topic:
            if not as_json:
                print(manual.manual_overview())
            return {"codes": manual.documented_error_codes(), "pages": list(manual.manual_pages())}
        found = manual.find_topic(topic)
        if not as_json:
            _print_markdown(found.text, plain=found.kind == "key")
        return found._asdict()

    raise typer.Exit(session.run(body))


def new(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="Name of the recipe. Its file is NAME.toml.")] = "mine",
    data: Annotated[str, typer.Option("--data", help="A folder of text, or a table (jsonl, csv, parquet).")] = "",
    owner: Annotated[str, typer.Option("--owner", help="Column whose values name the devices.")] = "",
    text: Annotated[str, typer.Option("--text", help="Column to train on.")] = "",
    privacy: Annotated[
        str,
        typer.Option("--privacy", help=f"{', '.join(WORDS[:-1])} or {WORDS[-1]}.", autocompletion=lambda: list(WORDS)),
    ] = "",
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            help="Read the first line of a CSV file as column names, or as data.",
            show_default=False,
        ),
    ] = None,
    devices: Annotated[
        int, typer.Option("--devices", min=0, help="Deal the text out at random to this many devices.")
    ] = 0,
    base: Annotated[
        str, typer.Option("--base", help="Base model: a folder or hub:owner/name (default: bundled).")
    ] = "",
    unit: Annotated[
        str, typer.Option("--unit", help="Unit of privacy: device, or example (with local_dp).")
    ] = "device",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write an annotated recipe for your own data.

    Reads a part of the data and proposes columns. Asks for the answers that no option gives, unless it runs in a pipe.
    The recipe passes `edgewise check`. Existing files are never overwritten.
    """
    from edgewise.apps.terminal.sessions import CommandSession

    session = CommandSession("new", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from edgewise.apps.cli import new_recipe
        from edgewise.core.errors import RecipeError, StoreError

        file = new_recipe.recipe_file(name)
        if file.exists():
            raise StoreError("E-FILE-EXISTS", f"{file} exists already.", f"choose another name: edgewise new {name}-2")
        asks = sys.stdin.isatty() and sys.stderr.isatty()
        path = data or (_ask_person("data: a folder of text, or a table (jsonl, csv, parquet)") if asks else "")
        if not path:
            raise RecipeError("E-MISSING", "no data is named.", "name it by --data PATH.")
        ask = _ask_person if asks else None
        found, named = new_recipe.first_look_at_data(path, "auto" if header is None else header, ask)
        columns = new_recipe.columns_for_recipe(
            found, path, new_recipe.DataOptions(text, owner, devices, base, named), ask
        )
        word = privacy or (_ask_person(f"privacy: {', '.join(WORDS)}", "hidden") if asks else "")
        if not word:
            raise RecipeError(
                "E-MISSING", "no privacy word is given.", f"add --privacy with one of: {', '.join(WORDS)}."
            )
        answers = new_recipe.Answers(file, path, columns, word, base or "bundled", unit)
        written = new_recipe.write_new_recipe(answers, found)
        if not as_json:
            print(f"wrote {written.file}: {written.devices:,} devices{_columns_in_words(columns)}")
            print("\n".join([*(f"note: {note}" for note in written.notes), f"next: edgewise check {written.file}"]))
        return {"file": str(written.file), "devices": written.devices, "notes": list(written.notes), **columns}

    raise typer.Exit(session.run(body))


def _ask_person(question: str, proposed: str = "") -> str:
    """Ask a person on standard error. Standard output stays free for the command's result."""
    return str(typer.prompt(question, default=proposed or None, err=True))


def _columns_in_words(columns: Mapping[str, Any]) -> str:
    """Make the clause on the columns of a table: ``, by `ward`, text from `note` ``."""
    by = ("owner", "by"), ("messages", "chats from"), ("prompt", "prompts from"), ("text", "text from")
    named = {key: [value] if isinstance(value, str) else value for key, value in columns.items() if key != "devices"}
    clauses = [f", {words} {' and '.join(f'`{name}`' for name in named[key])}" for key, words in by if key in named]
    return "".join([", dealt out at random" * ("devices" in columns), *clauses])


def _print_pairs(pairs: dict[str, str]) -> None:
    """Print pairs as a table on a terminal, and as plain lines into a pipe."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        print("\n".join(f"{name:<12} {purpose}" for name, purpose in pairs.items()))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, purpose in pairs.items():
        grid.add_row(name, purpose)
    console.print(grid)


def _print_markdown(text: str, plain: bool) -> None:
    """Print Markdown with layout on a terminal, and unchanged into a pipe."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(highlight=False)
    if plain or not console.is_terminal:
        print(text.rstrip())
    else:
        console.print(Markdown(text))
