"""Commands of operators on runs: submit, ls, show, watch, verify, pause, resume, cancel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.cli.asking import ask_server, asked_server, identifier, run_body, table
from edgewise.apps.terminal.options import HOME, Debug, Extension, Home, Json, Set

if TYPE_CHECKING:
    from edgewise.drivers.http.link import Link

run = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Run = Annotated[str, typer.Argument(metavar="RUN", help="Its id, or the beginning of it.", show_default=False)]
LOOK_S = 1.0
OVER = ("finished", "failed", "cancelled")


@run.command()
def submit(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)],
    overrides: Set = None,
    extension: Annotated[
        list[str] | None,
        typer.Option("--extension", metavar="MODULE", help="Module with parts of your own, of an installed package."),
    ] = None,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only devices with this tag; repeat for more.")] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Then watch the run until it ends.")] = False,
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Begin a run of a recipe on the enrolled devices.

    The recipe is the one that `edgewise sim` plays. Its [data] stays here: each device reads what its owner names. The
    model is sent to the server, and from there to the devices. No code is: server and devices have the package of an
    --extension, with the same files, and each owner allows it by its digest.
    """

    def asked(link: Link) -> dict[str, Any]:
        from edgewise.apps.runs import recipe_file
        from edgewise.apps.server.submit import submit as send
        from edgewise.apps.terminal import sessions

        parsed, modules = recipe_file.read(recipe, recipe_file.assignments(overrides), extension or ())
        with sessions.quiet_screen(None, debug):
            begun = send(link, parsed, recipe.parent, tag or (), modules)
        if not as_json:
            print(f"run {begun['run'][:12]} of {begun['name']}: {begun['rounds']} rounds")
            print(f"  next  edgewise run watch {begun['run'][:12]}")
        return _followed(link, begun["run"], as_json) if follow else begun

    ask_server("run submit", home, as_json, debug, asked)


@run.command("ls")
def list_runs(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """List the runs of the server."""

    def asked(link: Link) -> dict[str, Any]:
        found = link.call("GET", "/v1/runs")
        if not as_json:
            table(
                [{**one, "run": one["run"][:12]} for one in found], ("run", "name", "state", "rounds", "made_s", "why")
            )
        return {"runs": found}

    ask_server("run ls", home, as_json, debug, asked)


@run.command()
def show(id: Run, home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """What a run promises its devices, and where it stands."""

    def asked(link: Link) -> dict[str, Any]:
        import json

        found = dict(link.call("GET", f"/v1/runs/{whole(link, id)}"))
        if not as_json:
            facts = json.loads(found["facts"])
            noise = facts["noise"]
            print(f"{found['run']}\n  {found['name']}, {found['state']} {found['why']}".rstrip())
            print(f"  privacy     {facts['recipe']['privacy']}")
            print(f"  devices     {facts['population']}, {facts['n_min']} at least in a sum")
            if noise is not None:
                print(
                    f"  epsilon     {noise['epsilon']:.4g} in all rounds (noise multiplier {noise['multiplier']:.4g})"
                )
            print(f"  model       {facts['recipe']['model']['base']}\n  rounds      {found['rounds']}")
            for package in facts.get("packages", ()):
                print(f"  package     {package['name']}  {package['sha256']}")
        return found

    ask_server("run show", home, as_json, debug, asked)


@run.command()
def watch(id: Run, home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Tell the rounds of a run as they end; Ctrl-C leaves the run alone."""
    ask_server("run watch", home, as_json, debug, lambda link: _followed(link, whole(link, id), as_json))


@run.command()
def verify(
    run: Annotated[str, typer.Argument(metavar="RUN|FOLDER", help="A run's folder, or the id of a run on the server.")],
    chain: Annotated[
        str, typer.Option("--chain", metavar="DIGEST", help="Where an earlier verification ended: still part of it?")
    ] = "",
    extension: Extension = None,
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Replay the released totals of a run, and check its records.

    A folder is read here, also while the run is played; nothing in it is changed. The server verifies its own runs.
    Exit status 8 names the first round that does not follow; 1 where no total is kept to replay.
    """

    def asked(link: Link) -> dict[str, Any]:
        return dict(link.call("GET", f"/v1/runs/{whole(link, run)}/verification", {"chain": chain}))

    def body() -> dict[str, Any]:
        from edgewise.apps.models import verification, verified
        from edgewise.apps.runs.extensions import importable
        from edgewise.plan.catalogue import with_extensions

        if Path(run).is_dir():
            parts = with_extensions(importable(extension or (), Path()))
            found = verification.verify(Path(run), chain, parts)
        else:
            found = verified.from_plain(asked_server(home, asked))
        if not as_json:
            print("\n".join(verified.lines(found)))
        return found.to_plain()

    run_body("run verify", as_json, debug, body)


def _verb(verb: str, done: str) -> Callable[..., None]:
    def command(id: Run, home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
        def asked(link: Link) -> dict[str, Any]:
            found: dict[str, Any] = link.call("POST", f"/v1/runs/{whole(link, id)}/{verb}")
            if not as_json:
                print(f"run {found['run'][:12]} {done}")
            return found

        ask_server(f"run {verb}", home, as_json, debug, asked)

    return command


run.command("pause", help="Hold a run after the round under way.")(_verb("pause", "pauses after its round"))
run.command("resume", help="Go on with a run that is paused or failed.")(_verb("resume", "goes on"))
run.command("cancel", help="End a run at once, for good.")(_verb("cancel", "is cancelled"))


def whole(link: Link, begun: str) -> str:
    """A run's id from the beginning of it. Raises TransportError(E-UNKNOWN-ID)."""
    from edgewise.core.errors import TransportError

    ids = [one["run"] for one in link.call("GET", "/v1/runs") if one["run"].startswith(identifier(begun))]
    if len(ids) != 1:
        what = f"{len(ids)} runs have an id that begins with {begun:.64}."
        raise TransportError("E-UNKNOWN-ID", what, "`edgewise run ls` lists them.")
    return str(ids[0])


def _followed(link: Link, id: str, as_json: bool) -> dict[str, Any]:
    """Tell what happens in a run until it ends or waits for a person; returns its last state."""
    import json
    import time

    from edgewise.apps.server.lines import line
    from edgewise.core import events

    after = 0
    while True:
        told = link.call("GET", f"/v1/runs/{id}/events", {"after": after})
        if not as_json:
            for event in told["events"]:
                if (said := line(events.from_json(json.dumps(event)))) is not None:
                    print(said, flush=True)
        if not told["events"] and told["state"] != "running":
            break
        if not told["events"]:
            time.sleep(LOOK_S)
        after = told["after"]
    found = dict(link.call("GET", f"/v1/runs/{id}"))
    if not as_json:
        print(f"{found['state']} {found['why']}".rstrip())
    return {name: found[name] for name in ("run", "name", "state", "why", "rounds")}
