"""The commands ``edgewise models``: ls, show, promote, rollback and fetch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.cli.asking import ask_server, table
from edgewise.apps.terminal.options import HOME, Debug, Home, Json

if TYPE_CHECKING:
    from edgewise.drivers.http.link import Link

models = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@models.command("ls")
def list_models(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """List promotions and rollbacks with their authors. The last one counts."""

    def ask(link: Link) -> dict[str, Any]:
        found = link.call("GET", "/v1/models")
        if not as_json:
            rows = [{**one, "run": one["run"][:12], "model": one["model"][:12], "by": one["by"][:12]} for one in found]
            table(rows, ("verb", "run", "name", "played", "model", "by", "at_s"))
        return {"models": found}

    ask_server("models ls", home, as_json, debug, ask)


@models.command()
def show(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Show the promoted model and its origin."""

    def ask(link: Link) -> dict[str, Any]:
        return _shown_promotion(link.call("GET", "/v1/models/promoted"), as_json)

    ask_server("models show", home, as_json, debug, ask)


@models.command()
def promote(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="The run's id or a unique prefix of it.", show_default=False)
    ],
    played: Annotated[
        int | None,
        typer.Option("--round", min=1, help="Rounds after which to take the model (default: the run's final model)."),
    ] = None,
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Promote a released model for devices and gateways to fetch.

    The server verifies the run first, as `edgewise run verify` does.
    """

    def ask(link: Link) -> dict[str, Any]:
        from edgewise.apps.cli.run_commands import whole

        wanted = {"run": whole(link, run), "played": played}
        return _shown_promotion(_request_change(link, "/v1/models", wanted), as_json)

    ask_server("models promote", home, as_json, debug, ask)


@models.command()
def rollback(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Return to the previously promoted model.

    The server verifies that model's run first.
    """

    def ask(link: Link) -> dict[str, Any]:
        return _shown_promotion(_request_change(link, "/v1/models/rollback", None), as_json)

    ask_server("models rollback", home, as_json, debug, ask)


@models.command()
def fetch(
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="A new folder for the model.", show_default=False)],
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Fetch the promoted model to a device, a gateway or your machine.

    DEST holds the trained tensors by name (trained.safetensors), the files of the base model if the server has them
    (base), the facts of the run (facts.json) and lineage.json. `edgewise generate DEST` and `edgewise chat DEST` use
    it. DEST appears complete or not at all.
    """

    def ask(link: Link) -> dict[str, Any]:
        from edgewise.apps.server import fetching

        found = fetching.fetch(link, dest)
        if not as_json:
            print(f"{dest}: the model after {found['played']} rounds of {found['name']}, {found['model'][:16]}")
        return {"dest": str(dest), **found}

    ask_server("models fetch", home, as_json, debug, ask)


def _request_change(link: Link, path: str, document: object) -> dict[str, Any]:
    """Ask for a change that takes a verification, once."""
    from edgewise.drivers.http.link import SLOW_S

    found: dict[str, Any] = link.call("POST", path, document=document, answer_s=SLOW_S, once=True)
    return found


def _shown_promotion(one: Mapping[str, Any], as_json: bool) -> dict[str, Any]:
    """Make the result that shows a promoted model."""
    import datetime

    from edgewise.apps.report import numbers

    if not as_json:
        at = datetime.datetime.fromtimestamp(one["at_s"], datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        done = {"promote": "promoted", "rollback": "returned to"}[one["verb"]]
        print(f"{one['model']}\n  {done} by {one['by']} at {at}")
        print(f"  run         {one['run']}, {one['name']}, after {one['played']} rounds")
        print(f"  base        {one['base']}\n  last total  {one['total'] or 'none: the last round released nothing'}")
        print(f"  chain       {one['chain']} at its verification")
        print(f"  to fetch    {numbers.size(sum(one['blobs'].values()))}")
    return dict(one)
