"""Commands for a start: shipped recipes, a recipe of one's own, and what an error, a page or a key means."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.options import Debug, Json


def _recipes_like(incomplete: str) -> Iterable[str]:
    """For the shell: shipped recipes that begin so."""
    from edgewise.apps import shipped

    return [name for name in shipped.names() if name.startswith(incomplete)]


def _topics_like(incomplete: str) -> Iterable[str]:
    """For the shell: error codes and pages that begin so."""
    from edgewise.apps import manual

    return [one for one in [*manual.codes(), *manual.pages()] if one.lower().startswith(incomplete.lower())]


def recipes(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="One of those listed.", autocompletion=_recipes_like)
    ] = "",
    to: Annotated[Path | None, typer.Option("--to", help="Copy it to this file or folder.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the recipes that ship with edgewise, or copy one.

    A name alone prints that recipe. No file is ever written over.
    """
    from edgewise.apps.shell import Session

    session = Session("recipes", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from edgewise.apps import shipped
        from edgewise.core.errors import RecipeError

        if not name:
            if to is not None:
                raise RecipeError("E-MISSING", "--to needs the name of a recipe.", "`edgewise recipes` lists them.")
            found = {one: shipped.purpose(one) for one in shipped.names()}
            if not as_json:
                _print_pairs(found)
            return {"recipes": found}
        if to is None:
            if not as_json:
                print(shipped.text(name), end="")
            return {"name": name, "text": shipped.text(name)}
        target = shipped.copy(name, to)
        if not as_json:
            print(f"wrote {target}; next: edgewise check {target}")
        return {"name": name, "file": str(target)}

    raise typer.Exit(session.run(body))


def explain(
    topic: Annotated[
        str,
        typer.Argument(
            metavar="[TOPIC]", help="An error code, a page or a recipe key; all if none.", autocompletion=_topics_like
        ),
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Explain an error code, a page of the manual or a recipe key.

    Examples: edgewise explain E-QUORUM, edgewise explain threat-model, edgewise explain training.lr.
    """
    from edgewise.apps.shell import Session

    session = Session("explain", as_json=as_json, debug=debug)

    def body() -> dict[str, Any]:
        from edgewise.apps import manual

        if not topic:
            if not as_json:
                print(manual.overview())
            return {"codes": manual.codes(), "pages": list(manual.pages())}
        found = manual.find(topic)
        if not as_json:
            _print_markdown(found.text, plain=found.kind == "key")
        return found._asdict()

    raise typer.Exit(session.run(body))


def _print_pairs(pairs: dict[str, str]) -> None:
    """A table on a terminal, one line each in a pipe."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        print("\n".join(f"{name:<12} {said}" for name, said in pairs.items()))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, said in pairs.items():
        grid.add_row(name, said)
    console.print(grid)


def _print_markdown(text: str, plain: bool) -> None:
    """As it is into a pipe; laid out on a terminal."""
    from rich.console import Console
    from rich.markdown import Markdown

    console = Console(highlight=False)
    if plain or not console.is_terminal:
        print(text.rstrip())
    else:
        console.print(Markdown(text))
