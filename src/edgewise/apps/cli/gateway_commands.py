"""Commands of a gateway's operator: join, approve, serve. Everything beyond typer is imported inside: help comes at
once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.cli.asking import PATIENCE_S, run_body, table
from edgewise.apps.cli.server_commands import address, entered_token
from edgewise.apps.terminal.options import Certificate, Debug, Json, Key, Listen, Log, Names

if TYPE_CHECKING:
    from edgewise.drivers.http.link import Link

gateway = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Keys, memory and list of devices.", show_default=False)]


@gateway.command()
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the orchestrator.", show_default=False)],
    folder: Folder,
    token_file: Annotated[
        str, typer.Option("--token-file", help="File with the token; - reads standard input. Asked for if left out.")
    ] = "",
    plain: Annotated[bool, typer.Option("--plain", help="HTTP without TLS, to this machine only.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Enrol a gateway at an orchestrator, with a token of role gateway.

    Makes its key. Devices' owners and the orchestrator's operator need the fingerprint that it prints; give it to them
    yourself.
    """

    def body() -> dict[str, Any]:
        from edgewise.apps.gateway import start

        with start.join(url, entered_token(token_file), folder, plain, PATIENCE_S) as link:
            standing = dict(link.standing())
        if not as_json:
            waits = "" if standing["status"] == "approved" else "; the orchestrator's operator has to approve it"
            print(f"gateway {standing['id']} is {standing['status']}{waits}")
            print(f"  next  edgewise gateway approve {folder} --all, then edgewise gateway serve {folder}")
        return standing

    run_body("gateway join", as_json, debug, body)


@gateway.command()
def approve(
    folder: Folder,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Of devices.", show_default=False)] = None,
    everybody: Annotated[bool, typer.Option("--all", help="All that are enrolled now; look at them first.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the devices of the orchestrator, or count the reports of some of them.

    Without ids it lists, and marks those that count. What it writes is FOLDER/devices.txt; take a line out to count a
    device no more.
    """

    def body() -> dict[str, Any]:
        from edgewise.core.errors import TransportError
        from edgewise.drivers.http.allowed import Allowed
        from edgewise.drivers.http.link import Link

        allowed = Allowed(folder)
        with Link(folder, PATIENCE_S) as link:
            found = {one["id"]: one for one in _devices(link)}
        wanted = list(found) if everybody else list(ids or ())
        if unknown := [id for id in wanted if id not in found]:
            what = f"the orchestrator has no approved device {unknown[0]:.40}."
            raise TransportError("E-UNKNOWN-ID", what, "`edgewise gateway approve FOLDER` lists them.")
        allowed.add(wanted)
        counted = allowed.ids()
        rows = [{**one, "counts": "yes" if id in counted else "no"} for id, one in found.items()]
        if not as_json:
            table(rows, ("id", "label", "tags", "joined_s", "counts"))
        return {"devices": sorted(counted), "enrolled": sorted(found)}

    run_body("gateway approve", as_json, debug, body)


def _package(given: str) -> tuple[str, str]:
    """Name and digest of a package. Raises RecipeError(E-VALUE)."""
    import re

    from edgewise.core.errors import RecipeError
    from edgewise.plan.facts import DIGEST, NAME

    name, _, sha256 = given.partition("=")
    if not (re.fullmatch(NAME, name) and re.fullmatch(DIGEST, sha256)):
        what = f"--package {given:.120} is not a name and a digest."
        raise RecipeError("E-VALUE", what, "write --package NAME=DIGEST; `edgewise device digest NAME` prints it.")
    return name, sha256


def _devices(link: Link) -> list[dict[str, Any]]:
    """The approved devices of the orchestrator whose ids are the fingerprints of their keys."""
    from edgewise.drivers.http.identity import fingerprint

    found: list[dict[str, Any]] = []
    while page := link.call("GET", "/v1/devices", {"status": "approved", "after": found[-1]["id"] if found else ""}):
        found += page
    return [one for one in found if one["role"] == "device" and fingerprint(bytes.fromhex(one["key"])) == one["id"]]


@gateway.command()
def serve(
    folder: Folder,
    listen: Listen = "127.0.0.1:9443",
    public: Names = None,
    certificate: Certificate = None,
    key: Key = None,
    cache_gb: Annotated[
        float, typer.Option("--cache-gb", min=0.0, help="Models that are kept for devices that come through here.")
    ] = 16.0,
    cohort: Annotated[int, typer.Option("--cohort", min=2, help="Never open a sum of fewer reports.")] = 2,
    package: Annotated[
        list[str] | None,
        typer.Option(
            "--package",
            metavar="NAME=DIGEST",
            help="An installed package whose parts runs may use (`edgewise device digest`); repeat for more.",
        ),
    ] = None,
    log: Log = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Be the second server of shared sums for one orchestrator, and pass on what its devices near here say.

    It compiles the plan of each run by itself, and refuses runs whose smallest sum is below --cohort.
    """

    def body() -> dict[str, Any]:
        import json
        from contextlib import suppress
        from threading import Event

        from edgewise.apps.gateway.start import Gateway
        from edgewise.apps.server.start import Tls
        from edgewise.apps.terminal import sessions
        from edgewise.drivers import logs
        from edgewise.plan.acceptance import OwnerFloor
        from edgewise.secagg.params import Floor

        host, port, names = address(listen, public, certificate, key)
        floor = OwnerFloor(secagg=Floor(n_min=cohort))
        tls, cache_bytes = Tls(names, certificate, key), int(1e9 * cache_gb)
        lines = None if log == "-" else Path(log or folder / "gateway.log")
        packages = dict(map(_package, package or ()))
        gateway = Gateway(folder, host, port, tls, floor, cache_bytes=cache_bytes, packages=packages)
        with sessions.interrupts(), gateway as made, logs.opened(lines):
            url = f"https://{names[0] if names else '127.0.0.1'}:{made.port}"
            told = {"url": url, "gateway": made.name, "devices": len(made.allowed.ids())}
            if as_json:
                print(json.dumps(told), flush=True)
            else:
                print(f"gateway  {made.name}@{url}  counts {told['devices']} devices  (Ctrl-C ends)", flush=True)
            with suppress(KeyboardInterrupt):  # the way to end it
                Event().wait()
        return {"ended": url}

    run_body("gateway serve", as_json, debug, body)
