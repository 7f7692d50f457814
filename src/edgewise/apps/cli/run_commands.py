"""The commands ``edgewise run``: submit, ls, show, watch, verify, pause, resume and cancel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.cli.asking import ask_server, asked_server, identifier, run_body, table
from edgewise.apps.terminal.options import HOME, Debug, Extension, Home, Json, Set

if TYPE_CHECKING:
    from edgewise.drivers.http.link import Link

run = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Run = Annotated[str, typer.Argument(metavar="RUN", help="The run's id or a unique prefix of it.", show_default=False)]
LOOK_S = 1.0
OVER = ("finished", "failed", "cancelled")


@run.command()
def submit(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)],
    overrides: Set = None,
    extension: Annotated[
        list[str] | None,
        typer.Option("--extension", metavar="MODULE", help="Module of an installed package with your own parts."),
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Invite only devices with this tag. Repeatable.")
    ] = None,
    follow: Annotated[bool, typer.Option("--watch", help="Watch the run until it ends.")] = False,
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Start a run of a recipe on the enrolled devices.

    The recipe has the same format as for `edgewise sim`. Its [data] table stays here: each device reads the text that
    its owner names. The model is sent to the server, and from there to the devices. No code is sent. The package of an
    --extension must be installed on the server and the devices with the same files, and each owner must allow its
    digest.
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
            for warning in begun["warnings"]:
                print(f"  warning  {warning}")
            print(f"  next  edgewise run watch {begun['run'][:12]}")
        return follow_run(link, begun["run"], as_json) if follow else begun

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
    """Show the state of a run and the privacy that it promises."""

    def asked(link: Link) -> dict[str, Any]:
        import json

        found = dict(link.call("GET", f"/v1/runs/{whole(link, id)}"))
        if not as_json:
            facts = json.loads(found["facts"])
            noise = facts["noise"]
            print(f"{found['run']}\n  {found['name']}, {found['state']} {found['why'] or ''}".rstrip())
            print(f"  privacy     {facts['recipe']['privacy']}")
            print(f"  devices     {facts['population']}, at least {facts['n_min']} in each sum")
            if noise is not None:
                print(
                    f"  epsilon     {noise['epsilon']:.4g} for all rounds (noise multiplier {noise['multiplier']:.4g})"
                )
            print(f"  model       {facts['recipe']['model']['base']}\n  rounds      {found['rounds']}")
            for package in facts.get("packages", ()):
                print(f"  package     {package['name']}  {package['sha256']}")
        return found

    ask_server("run show", home, as_json, debug, asked)


@run.command()
def watch(id: Run, home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Print the rounds of a run as they end. Ctrl-C does not stop the run."""
    ask_server("run watch", home, as_json, debug, lambda link: follow_run(link, whole(link, id), as_json))


@run.command()
def verify(
    run: Annotated[
        str, typer.Argument(metavar="RUN|FOLDER", help="A run directory, or the id of a run on the server.")
    ],
    chain: Annotated[
        str,
        typer.Option(
            "--chain",
            metavar="DIGEST",
            help="Digest printed by an earlier verification. It must still be in the chain.",
        ),
    ] = "",
    extension: Extension = None,
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Replay the released totals of a run and check its records.

    Reads a run directory on this machine without changing it, even while the run is going on. A run on the server is
    verified by the server. Exit status 8 means that a round does not follow from its total: the first one is named.
    Exit status 1 means that the run kept no total to replay.
    """

    def asked(link: Link) -> dict[str, Any]:
        from edgewise.drivers.http.link import SLOW_S

        path = f"/v1/runs/{whole(link, run)}/verification"
        return dict(link.call("GET", path, {"chain": chain}, answer_s=SLOW_S))

    def body() -> dict[str, Any]:
        from edgewise.apps.models import verification, verified
        from edgewise.apps.runs.extensions import importable
        from edgewise.plan.catalogue import with_extensions

        if Path(run).is_dir():
            parts = with_extensions(importable(extension or (), Path()))
            found = verification.verify_run(Path(run), chain, parts)
        else:
            found = verified.verified_from_plain(asked_server(home, asked))
        if not as_json:
            print("\n".join(verified.verified_lines(found)))
        return found.to_plain()

    run_body("run verify", as_json, debug, body)


@run.command()
def statistics(id: Run, home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Print the statistics that a run of `edgewise stats --enrolled` has released."""
    ask_server("run statistics", home, as_json, debug, lambda link: show_statistics(link, whole(link, id), as_json))


def show_statistics(link: Link, run: str, as_json: bool, names: Mapping[int, str] = MappingProxyType({})) -> Any:
    """Read the statistics of a run, and print them unless ``as_json``. ``names``: as ``statistics_lines``."""
    from edgewise.apps.terminal.statistics_screen import statistics_lines

    found = dict(link.call("GET", f"/v1/runs/{run}/statistics"))
    if not as_json:
        print("\n".join(statistics_lines(found, names)))
    return found


def _run_verb(verb: str, done: str) -> Callable[..., None]:
    """Make the command that asks a server to change a run."""

    def command(id: Run, home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
        def asked(link: Link) -> dict[str, Any]:
            found: dict[str, Any] = link.call("POST", f"/v1/runs/{whole(link, id)}/{verb}")
            if not as_json:
                print(f"run {found['run'][:12]} {done}")
            return found

        ask_server(f"run {verb}", home, as_json, debug, asked)

    return command


run.command("pause", help="Pause a run after its current round.")(_run_verb("pause", "pauses after its current round"))
run.command("resume", help="Resume a paused or failed run.")(_run_verb("resume", "is resumed"))
run.command("cancel", help="Cancel a run at once. It cannot be resumed.")(_run_verb("cancel", "is cancelled"))


def whole(link: Link, begun: str) -> str:
    """Return the id of the only run whose id begins with ``begun``. Raises TransportError(E-UNKNOWN-ID)."""
    from edgewise.core.errors import TransportError

    ids = [one["run"] for one in link.call("GET", "/v1/runs") if one["run"].startswith(identifier(begun))]
    if len(ids) != 1:
        what = f"{len(ids)} runs have an id that begins with {begun:.64}."
        raise TransportError("E-UNKNOWN-ID", what, "list the ids with `edgewise run ls`.")
    return str(ids[0])


def follow_run(link: Link, id: str, as_json: bool) -> dict[str, Any]:
    """Print the events of a run until it ends or waits for a person. Returns its last state."""
    import json
    import time

    from edgewise.apps.server.lines import server_event_line
    from edgewise.core import events

    after = 0
    while True:
        page = link.call("GET", f"/v1/runs/{id}/events", {"after": after})
        if not as_json:
            for event in page["events"]:
                if (text := server_event_line(events.from_json(json.dumps(event)))) is not None:
                    print(text, flush=True)
        if not page["events"] and page["state"] != "running":
            break
        if not page["events"]:
            time.sleep(LOOK_S)
        after = page["after"]
    found = dict(link.call("GET", f"/v1/runs/{id}"))
    if not as_json:
        print(f"{found['state']} {found['why'] or ''}".rstrip())
    return {name: found[name] for name in ("run", "name", "state", "why", "rounds")}
