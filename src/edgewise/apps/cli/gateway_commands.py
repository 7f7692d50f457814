"""The commands ``edgewise gateway``: join, approve and serve.

The commands import everything beyond typer inside their bodies, so that help is fast.
"""

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
Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Folder of the gateway: keys, memory, list of devices.", show_default=False),
]


@gateway.command()
def join(
    url: Annotated[str, typer.Argument(metavar="URL", help="Address of the server.", show_default=False)],
    folder: Folder,
    token_file: Annotated[
        str, typer.Option("--token-file", help="File with the token; - is standard input (default: a prompt).")
    ] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Use HTTP without TLS, to this machine only.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Enrol a gateway at a server with a token of role gateway.

    Makes the gateway's key and prints its fingerprint. Give the fingerprint to the owners of devices and to the
    server's operator yourself.
    """

    def body() -> dict[str, Any]:
        from edgewise.apps.gateway import start

        with start.join(url, entered_token(token_file), folder, plain, PATIENCE_S) as link:
            standing = dict(link.standing())
        if not as_json:
            waits = "" if standing["status"] == "approved" else "; the server's operator must approve it"
            print(f"gateway {standing['id']} is {standing['status']}{waits}")
            print(f"  next  edgewise gateway approve {folder} --all, then edgewise gateway serve {folder}")
        return standing

    run_body("gateway join", as_json, debug, body)


@gateway.command()
def approve(
    folder: Folder,
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID...]", help="Ids of devices.", show_default=False)
    ] = None,
    everybody: Annotated[bool, typer.Option("--all", help="Approve every enrolled device. List them first.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the server's devices, or approve some for this gateway.

    The gateway counts reports of approved devices only. Without ids the command lists all devices and marks the
    approved ones. FOLDER/devices.txt holds their ids. Remove a line to stop counting a device.
    """

    def body() -> dict[str, Any]:
        from edgewise.core.errors import TransportError
        from edgewise.drivers.http.allowed import Allowed
        from edgewise.drivers.http.link import Link

        allowed = Allowed(folder)
        with Link(folder, PATIENCE_S) as link:
            found = {one["id"]: one for one in _approved_devices(link)}
        wanted = list(found) if everybody else list(ids or ())
        if unknown := [id for id in wanted if id not in found]:
            what = f"the server has no approved device {unknown[0]:.40}."
            raise TransportError("E-UNKNOWN-ID", what, "list the ids with `edgewise gateway approve FOLDER`.")
        allowed.add(wanted)
        counted = allowed.ids()
        rows = [{**one, "counts": "yes" if id in counted else "no"} for id, one in found.items()]
        if not as_json:
            table(rows, ("id", "label", "tags", "joined_s", "counts"))
        return {"devices": sorted(counted), "enrolled": sorted(found)}

    run_body("gateway approve", as_json, debug, body)


def _named_package(given: str) -> tuple[str, str]:
    """Parse the name and digest of a package. Raises RecipeError(E-VALUE)."""
    import re

    from edgewise.core.digests import is_digest
    from edgewise.core.errors import RecipeError
    from edgewise.plan.facts import NAME

    name, _, sha256 = given.partition("=")
    if not (re.fullmatch(NAME, name) and is_digest(sha256)):
        what = f"--package {given:.120} is not a name and a digest."
        raise RecipeError("E-VALUE", what, "write --package NAME=DIGEST; `edgewise device digest NAME` prints it.")
    return name, sha256


def _approved_devices(link: Link) -> list[dict[str, Any]]:
    """List the server's approved devices whose ids are the fingerprints of their keys."""
    from edgewise.drivers.http.identity import key_fingerprint

    found: list[dict[str, Any]] = []
    while page := link.call("GET", "/v1/devices", {"status": "approved", "after": found[-1]["id"] if found else ""}):
        found += page
    return [one for one in found if one["role"] == "device" and key_fingerprint(bytes.fromhex(one["key"])) == one["id"]]


@gateway.command()
def serve(
    folder: Folder,
    listen: Listen = "127.0.0.1:9443",
    public: Names = None,
    certificate: Certificate = None,
    key: Key = None,
    cache_gb: Annotated[
        float, typer.Option("--cache-gb", min=0.0, help="Space for cached models, which devices download from here.")
    ] = 16.0,
    cohort: Annotated[
        int, typer.Option("--cohort", min=2, help="Smallest number of reports in a sum that is opened.")
    ] = 2,
    package: Annotated[
        list[str] | None,
        typer.Option(
            "--package",
            metavar="NAME=DIGEST",
            help="Installed package that runs may use. `edgewise device digest` prints its digest. Repeatable.",
        ),
    ] = None,
    evidence: Annotated[
        str,
        typer.Option(
            "--evidence",
            metavar="COMMAND",
            help="Command that prints attestation evidence of this machine for its last argument.",
        ),
    ] = "",
    log: Log = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a gateway: second server of shared sums, relay for devices.

    It serves one server, and relays the messages of devices near it. It compiles the plan of each run by itself, and
    refuses runs whose smallest sum is below --cohort.
    """

    def body() -> dict[str, Any]:
        import json
        import shlex
        from contextlib import suppress
        from threading import Event

        from edgewise.apps.gateway.start import Gateway
        from edgewise.apps.server.start import Tls
        from edgewise.apps.terminal import sessions
        from edgewise.drivers import logs
        from edgewise.drivers.http.evidence_command import EvidenceCommand
        from edgewise.plan.acceptance import OwnerFloor
        from edgewise.secagg.params import Floor

        host, port, names = address(listen, public, certificate, key)
        floor = OwnerFloor(secagg=Floor(n_min=cohort))
        tls, cache_bytes = Tls(names, certificate, key), int(1e9 * cache_gb)
        lines = None if log == "-" else Path(log or folder / "gateway.log")
        packages = dict(map(_named_package, package or ()))
        attest = EvidenceCommand(shlex.split(evidence)) if evidence.strip() else None
        gateway = Gateway(folder, host, port, tls, floor, cache_bytes=cache_bytes, packages=packages, attest=attest)
        with sessions.interrupts(), gateway as made, logs.opened_log(lines):
            url = f"https://{names[0] if names else '127.0.0.1'}:{made.port}"
            status = {"url": url, "gateway": made.name, "devices": len(made.allowed.ids())}
            if as_json:
                print(json.dumps(status), flush=True)
            else:
                print(f"gateway  {made.name}@{url}  counts {status['devices']} devices  (Ctrl-C ends)", flush=True)
            with suppress(KeyboardInterrupt):  # Ctrl-C is how a person ends the gateway.
                Event().wait()
        return {"ended": url}

    run_body("gateway serve", as_json, debug, body)
