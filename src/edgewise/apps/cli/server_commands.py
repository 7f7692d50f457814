"""The commands ``edgewise serve``, ``join``, ``token`` and ``fleet``.

The commands import everything beyond typer inside their bodies, so that help is fast.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgewise.apps.cli.asking import PATIENCE_S, ask_server, identifier, run_body, table
from edgewise.apps.terminal.options import HOME, Certificate, Debug, Home, Json, Key, Listen, Log, Names

if TYPE_CHECKING:
    from edgewise.core.events import AnyEvent
    from edgewise.drivers.http.link import Link

token = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
fleet = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def serve(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder for keys and database. The first start makes it.")
    ],
    listen: Listen = "127.0.0.1:8443",
    public: Names = None,
    certificate: Certificate = None,
    key: Key = None,
    plain: Annotated[bool, typer.Option("--plain", help="Use HTTP without TLS, on 127.0.0.1 only.")] = False,
    public_url: Annotated[
        str,
        typer.Option(
            "--public-url",
            metavar="URL",
            help="URL of a reverse proxy in front of the server: https://HOST. Forms of the dashboard count from it.",
        ),
    ] = "",
    log: Log = "",
    gateway: Annotated[
        str,
        typer.Option("--gateway", metavar="NAME@URL", help="Gateway that aggregates shared sums, as it prints itself."),
    ] = "",
    split_listen: Annotated[
        str,
        typer.Option(
            "--split-listen",
            metavar="HOST:PORT",
            help="Address for sessions of split learning, over TLS; its process loads torch.",
        ),
    ] = "",
    database: Annotated[
        str,
        typer.Option(
            "--database",
            metavar="URL",
            envvar="EDGEWISE_DATABASE",
            help="PostgreSQL database that servers share: postgresql://USER@HOST/NAME. Other users see options, so "
            "give a password by the variable EDGEWISE_DATABASE.",
            show_default="SQLite in FOLDER",
            show_envvar=False,
        ),
    ] = "",
    blobs: Annotated[
        str,
        typer.Option(
            "--blobs",
            metavar="URL",
            envvar="EDGEWISE_BLOBS",
            help="Place of published models in an S3-compatible object store: s3://BUCKET/PREFIX. Credentials come "
            "from the environment (AWS_ACCESS_KEY_ID) or from the machine's role.",
            show_default="FOLDER",
            show_envvar=False,
        ),
    ] = "",
    blobs_endpoint: Annotated[
        str,
        typer.Option(
            "--blobs-endpoint",
            metavar="URL",
            help="URL of an object store that is not Amazon's: https://HOST:PORT (default: AWS_ENDPOINT_URL).",
        ),
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a server that enrols devices and trains with them.

    The first start makes keys, a certificate and a token for the first administrator. `edgewise run submit` starts a
    run. A server that starts again resumes its runs.
    """

    def body() -> dict[str, Any]:
        import json
        from contextlib import suppress
        from threading import Event

        from edgewise.apps.server import sharing
        from edgewise.apps.server.start import HttpServer, Tls
        from edgewise.apps.terminal import sessions
        from edgewise.drivers import logs
        from edgewise.drivers.storage import store_place

        place = store_place.given_store_place(blobs, blobs_endpoint, os.environ)
        host, port, names = address(listen, public, certificate, key)
        tls, lines = Tls(names, certificate, key, plain), None if log == "-" else Path(log or folder / "server.log")
        tell = (lambda run, event: None) if as_json else _print_run_event
        second = sharing.gateway_address(gateway) if gateway else None
        split = address(split_listen, None, None, None)[:2] if split_listen else None
        with (
            sessions.interrupts(),
            HttpServer(
                folder,
                host,
                port,
                tls,
                tell=tell,
                gateway=second,
                database=database,
                blobs=place,
                public_url=public_url,
                split=split,
            ) as server,
            logs.opened_log(lines),
        ):
            scheme, first = "http" if plain else "https", server.first_token()
            url = public_url or f"{scheme}://{names[0] if names else '127.0.0.1'}:{server.port}"
            if as_json:
                print(json.dumps({"url": url, "server": server.service.identity.name, "token": first}), flush=True)
            else:
                print(f"serving  {url}  key {server.service.identity.name}  (Ctrl-C ends)", flush=True)
                if first is not None:
                    print(f"first administrator, within an hour:  edgewise join {url}\n  token  {first}", flush=True)
            with suppress(KeyboardInterrupt):  # Ctrl-C is how a person ends the server.
                Event().wait()
        return {"ended": url}

    run_body("serve", as_json, debug, body)


def _print_run_event(run: str, event: AnyEvent) -> None:
    """Print one event of a run as a line."""
    from edgewise.apps.server.lines import server_event_line

    if (text := server_event_line(event)) is not None:
        print(f"{run[:12]}  {text}", flush=True)


def address(
    listen: str, public: list[str] | None, certificate: Path | None, key: Path | None
) -> tuple[str, int, tuple[str, ...]]:
    """Parse the host, port and names of a server. Raises TransportError(E-REQUEST) for impossible options."""
    from edgewise.core.errors import TransportError

    host, _, port = listen.rpartition(":")
    if not (host and port.isdigit() and int(port) < 2**16):
        raise TransportError("E-REQUEST", f"{listen} is not HOST:PORT.", "write for example --listen 0.0.0.0:8443.")
    if (certificate is None) != (key is None):
        raise TransportError("E-REQUEST", "--cert and --key belong together.", "give both, or neither.")
    names = tuple(dict.fromkeys([*(public or ()), *(() if host in ("0.0.0.0", "::") else (host,))]))
    return host, int(port), names


def join(
    url: Annotated[
        str, typer.Argument(metavar="URL", help="Address of the server: https://HOST:PORT.", show_default=False)
    ],
    token_file: Annotated[
        str, typer.Option("--token-file", help="File with the token; - is standard input (default: a prompt).")
    ] = "",
    home: Home = HOME,
    label: Annotated[str, typer.Option("--label", help="Your name for this device.")] = "",
    plain: Annotated[bool, typer.Option("--plain", help="Use HTTP without TLS, to this machine only.")] = False,
    gateway: Annotated[
        str,
        typer.Option(
            "--gateway", metavar="NAME", help="Fingerprint of the gateway's key, if URL is that of a gateway."
        ),
    ] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Enrol this machine at a server with a token.

    Makes a key that never leaves this machine, and the first policy of a device. The token is not an option, because
    other users can read command lines. The variable EDGEWISE_TOKEN can hold it too.
    """

    def body() -> dict[str, Any]:
        from edgewise.drivers.http.link import Link

        folder = home.expanduser()
        with Link.join(url, entered_token(token_file), folder, label, plain, PATIENCE_S, gateway or None) as link:
            standing = dict(link.standing())
        if not as_json:
            waits = "" if standing["status"] == "approved" else "; the operator must approve it"
            print(f"{standing['role']} {standing['id']} is {standing['status']}{waits}")
        if standing["role"] != "device":
            return standing
        from edgewise.apps.device import policy

        if policy.first_policy(folder) and not as_json:
            print(f"  next  edit {folder / policy.FILE}: set data.path to your text, and the privacy that you demand")
        return {**standing, "policy": str(folder / policy.FILE)}

    run_body("join", as_json, debug, body)


def entered_token(file: str) -> str:
    """Read an enrolment token from a file, standard input (-), the environment or a prompt.

    Raises TransportError(E-TOKEN).
    """
    import getpass
    import sys

    from edgewise.core.errors import TransportError

    if file == "-":
        return sys.stdin.readline()
    if file:
        try:
            return Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError as e:
            what = f"the token file {file} cannot be read: {e.strerror}."
            raise TransportError("E-TOKEN", what, "name a file that holds the token.") from None
    if given := os.environ.get("EDGEWISE_TOKEN"):
        return given
    try:
        return getpass.getpass("enrolment token: ")
    except EOFError:
        what = "no enrolment token was given, and there is no terminal to ask for it."
        raise TransportError("E-TOKEN", what, "name a file that holds it: --token-file FILE.") from None


@token.command("create")
def create_token(
    role: Annotated[str, typer.Option("--role", help="Role: device, viewer, operator, admin or gateway.")] = "device",
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Tag for the members that enrol with it. Repeatable.")
    ] = None,
    uses: Annotated[int, typer.Option("--uses", min=1, help="Number of enrolments that it allows.")] = 1,
    approved: Annotated[bool, typer.Option("--approved", help="Approve members that enrol with it at once.")] = False,
    hours: Annotated[float, typer.Option("--hours", min=0.001, max=2160.0, help="Hours until it expires.")] = 1.0,
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Create an enrolment token. It is shown only once."""

    def ask(link: Link) -> dict[str, Any]:
        wanted = {"role": role, "tags": tag or [], "uses": uses, "approved": approved, "expires_in_s": 3600.0 * hours}
        made: dict[str, Any] = link.call("POST", "/v1/tokens", document=wanted)
        if not as_json:
            print(f"{made['text']}\n  id {made['id']}; on the device:  edgewise join {link.home.url}")
        return made

    ask_server("token create", home, as_json, debug, ask)


@token.command("ls")
def list_tokens(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """List the enrolment tokens."""

    def ask(link: Link) -> dict[str, Any]:
        found = link.call("GET", "/v1/tokens")
        if not as_json:
            table(found, ("id", "role", "tags", "used", "uses", "approved", "revoked", "expires_s"))
        return {"tokens": found}

    ask_server("token ls", home, as_json, debug, ask)


@token.command("revoke")
def revoke_token(
    id: Annotated[
        str, typer.Argument(metavar="ID", help="The token's id, as `edgewise token ls` shows it.", show_default=False)
    ],
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Revoke an enrolment token. Nobody can enrol with it any more."""

    def ask(link: Link) -> dict[str, Any]:
        done: dict[str, Any] = link.call("POST", f"/v1/tokens/{identifier(id)}/revoke")
        if not as_json:
            print(f"token {id} is revoked")
        return done

    ask_server("token revoke", home, as_json, debug, ask)


@fleet.command("ls")
def list_members(
    status: Annotated[str, typer.Option("--status", help="Show only pending, approved or revoked members.")] = "",
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the devices and the operators of the fleet."""

    def ask(link: Link) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        while True:
            page = link.call("GET", "/v1/devices", {"status": status, "after": found[-1]["id"] if found else ""})
            found += page
            if not page:
                break
        if not as_json:
            table(found, ("id", "role", "status", "tags", "label", "joined_s"))
        return {"members": found}

    ask_server("fleet ls", home, as_json, debug, ask)


@fleet.command("login")
def log_in(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Print a token that logs you in to the server's dashboard, once, within 5 minutes."""

    def ask(link: Link) -> dict[str, Any]:
        made: dict[str, Any] = link.call("POST", "/v1/logins")
        made["url"] = f"{link.home.url}{made['path']}"
        if not as_json:
            print(f"{made['text']}\n  once, within {made['lasts_s'] / 60:.0f} minutes, at  {made['url']}")
        return made

    ask_server("fleet login", home, as_json, debug, ask)


def _member_verb(verb: str, done: str) -> Callable[..., None]:
    """Make the command that changes the status of members."""

    def command(
        ids: Annotated[
            list[str],
            typer.Argument(
                metavar="ID...", help="Ids of members, as `edgewise fleet ls` shows them.", show_default=False
            ),
        ],
        home: Home = HOME,
        as_json: Json = False,
        debug: Debug = False,
    ) -> None:
        def ask(link: Link) -> dict[str, Any]:
            changed = [link.call("POST", f"/v1/devices/{identifier(one)}/{verb}") for one in ids]
            if not as_json:
                print("\n".join(f"{one['id']} is {done}" for one in changed))
            return {"members": changed}

        ask_server(f"fleet {verb}", home, as_json, debug, ask)

    return command


fleet.command("approve", help="Approve pending devices.")(_member_verb("approve", "approved"))
fleet.command("revoke", help="Revoke devices at once and for good.")(_member_verb("revoke", "revoked"))
