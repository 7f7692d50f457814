"""The commands ``edgewise device``: run, status, page, personalise, pause, resume, leave, policy and those on trust.

The commands import everything beyond typer inside their bodies, so that help is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import HOME, Debug, Home, Json

device = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@device.command("run")
def run_agent(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Train for the server as your policy allows. Ctrl-C ends it.

    The device trains on your text. The text stays here. The device sends only what the policy allows.
    `edgewise device status` shows its work and the bytes that left.
    """

    def body() -> dict[str, Any]:
        from contextlib import suppress

        from edgewise.apps.device.agent import work
        from edgewise.apps.terminal import sessions
        from edgewise.core.errors import Interrupted

        folder = home.expanduser()

        def began() -> None:
            if not as_json:
                print(f"working in {folder}  (Ctrl-C ends; `edgewise device status` shows its work)", flush=True)

        with sessions.interrupts(), suppress(KeyboardInterrupt, Interrupted):
            work(folder, began=began)
        return {"ended": str(folder)}

    _run_device_command("run", as_json, debug, body)


@device.command()
def status(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Show this device's state and the data that left it.

    Prints the server, the state and its reason, the runs, the bytes of today and in total, the spent epsilon and the
    refused invitations. Reads local files only.
    """

    def body() -> dict[str, Any]:
        import time

        from edgewise.apps.device import status as statuses

        found = statuses.found(home.expanduser(), time.time())
        if not as_json:
            print("\n".join(statuses.device_status_lines(found)))
        return found

    _run_device_command("status", as_json, debug, body)


@device.command()
def page(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1. 0 takes a free one.")] = 0,
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show this device's page in a browser: what left, and pause, resume and leave. Ctrl-C ends it.

    The page is served on this machine alone. The printed link works once.
    """

    def body() -> dict[str, Any]:
        import json
        from contextlib import suppress

        from edgewise.apps.device.owner_page import OwnerPage
        from edgewise.apps.terminal import sessions
        from edgewise.core.errors import Interrupted

        with sessions.interrupts(), OwnerPage(home.expanduser(), port) as shown:
            print(json.dumps({"url": shown.url}) if as_json else f"open once  {shown.url}\n  (Ctrl-C ends)", flush=True)
            with suppress(KeyboardInterrupt, Interrupted):
                shown.wait()
        return {"ended": str(home.expanduser())}

    _run_device_command("page", as_json, debug, body)


@device.command()
def personalise(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="A finished run: the beginning of its id.", show_default=False)
    ],
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Make this device's personal model of a finished run now.

    The released model trains on your text, as the run's recipe says. The result stays in the device's folder. The
    command sends nothing of it. A running agent does this by itself when a run has finished.
    """

    def body() -> dict[str, Any]:
        from edgewise.apps.device.agent import personalise_run
        from edgewise.apps.device.personal import made_personal_models
        from edgewise.apps.terminal import sessions

        folder = home.expanduser()
        with sessions.interrupts():
            personalise_run(folder, run)
        found = made_personal_models(folder)[0]
        if not as_json:
            print(f"wrote {found['file']}")
        return found

    _run_device_command("personalise", as_json, debug, body)


@device.command()
def pause(
    until: Annotated[
        str, typer.Option("--until", metavar="TIME", help="Local time to resume at: HH:MM or YYYY-MM-DD HH:MM.")
    ] = "",
    home: Home = HOME,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Stop all uploads of this device until you resume.

    Takes effect within a second, even in the middle of an upload. A round does not wait for a paused device beyond its
    deadline.
    """

    def body() -> dict[str, Any]:
        import time

        from edgewise.apps.device import clock, control
        from edgewise.apps.device.status import local_moment
        from edgewise.drivers.http import home as homes

        folder, now_s = home.expanduser(), time.time()
        homes.load(folder)
        until_s = clock.next_time(until, now_s) if until else None
        control.give_owner_order(folder, control.Order("pause", until_s))
        if not as_json:
            print(f"paused until {'`edgewise device resume`' if until_s is None else local_moment(until_s)}")
        return {"paused": True, "until_s": until_s}

    _run_device_command("pause", as_json, debug, body)


@device.command()
def resume(home: Home = HOME, as_json: Json = False, debug: Debug = False) -> None:
    """Resume after a pause."""

    def body() -> dict[str, Any]:
        from edgewise.apps.device import control
        from edgewise.drivers.http import home as homes

        folder = home.expanduser()
        homes.load(folder)
        control.give_owner_order(folder, control.Order())
        agent = control.running_agent(folder)
        if not as_json:
            print("resumed" if agent else "resumed; no agent runs here, start one with `edgewise device run`")
        return {"paused": False, "running": agent is not None}

    _run_device_command("resume", as_json, debug, body)


@device.command()
def leave(
    home: Home = HOME,
    keep_records: Annotated[
        bool, typer.Option("--keep-records", help="Keep the record of uploads and the privacy ledger.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Do not tell the server. It then still lists the device.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Leave the server for good and delete this device's key.

    The server revokes the device. The device's key and state are deleted here. Your text and your policy are not
    touched. The command lists what stays on each side. Without the privacy ledger a new enrolment counts epsilon from
    zero.
    """

    def body() -> dict[str, Any]:
        from edgewise.apps.device import leave as leaving

        folder = home.expanduser()
        done = leaving.leave(folder, keep_records, offline)
        if not as_json:
            print("\n".join(leaving.leaving_words(done, folder)))
        return done

    _run_device_command("leave", as_json, debug, body)


@device.command()
def policy(
    home: Home = HOME,
    show: Annotated[bool, typer.Option("--print", help="Print all keys with their meaning. Write nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check your policy, or write a first one.

    The policy says which text this device trains on, when it works, and the least privacy that it accepts.
    """

    def body() -> dict[str, Any]:
        from edgewise.apps.device import policy as policies

        folder = home.expanduser()
        if show:
            if not as_json:
                print(policies.owner_policy_template(), end="")
            return {"text": policies.owner_policy_template()}
        written = policies.first_policy(folder)
        found = policies.load(folder)
        if not as_json:
            print(f"{'wrote' if written else 'valid:'} {folder / policies.FILE}")
            if not found.data.given:
                print("  next  set data.path in it to your text")
        return {"file": str(folder / policies.FILE), "written": written, "policy": found.model_dump(mode="json")}

    _run_device_command("policy", as_json, debug, body)


@device.command()
def digest(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="An installed package.", show_default=False)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the digest of a package, for a policy to allow it.

    The package may hold trainers, codecs or strategies.
    """

    def body() -> dict[str, Any]:
        from edgewise.drivers import extension_packages

        found = extension_packages.package_files_digest(package)
        if not as_json:
            print(found)
        return {"sha256": found}

    _run_device_command("digest", as_json, debug, body)


@device.command()
def evidence(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Evidence as JSON. The operator sends it to you.", show_default=False)
    ],
    at: Annotated[
        datetime | None,
        typer.Option("--at", help="Time at which certificates must be valid, UTC. Now where it is left out."),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Verify attestation evidence, and print what it states for your policy.

    Compare the values with those of whoever built the image. Evidence does not say that its program is a good one.
    """

    def body() -> dict[str, Any]:
        from edgewise.apps.device.evidence import ShownEvidence

        shown = ShownEvidence.of(file, at)
        if not as_json:
            print("\n".join(shown.lines()))
        return shown.row()

    _run_device_command("evidence", as_json, debug, body)


@device.command()
def unit(
    home: Home = HOME,
    install: Annotated[
        bool, typer.Option("--install", help="Write the unit into your systemd folder and print how to start it.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Print or install a systemd user unit for this device's agent.

    Under the unit the agent can write to its own folder only.
    """

    def body() -> dict[str, Any]:
        from edgewise.apps.device import policy as policies
        from edgewise.apps.device import unit as units
        from edgewise.drivers.http import home as homes

        folder = home.expanduser().absolute()
        homes.load(folder)
        text = units.agent_unit_text(units.agent_program(), folder, policies.load(folder))
        at = units.install_agent_unit(text, units.agent_unit_place()) if install else units.agent_unit_place()
        if not as_json:
            print("\n".join((f"wrote {at}", *(f"  next  {step}" for step in units.NEXT))) if install else text, end="")
            print("", end="\n" if install else "")
        return {"unit": text, "place": str(at), "installed": install, "next": list(units.NEXT)}

    _run_device_command("unit", as_json, debug, body)


def _run_device_command(name: str, as_json: bool, debug: bool, body: Callable[[], Mapping[str, Any]]) -> None:
    """Run the body of a device command, and exit with its status."""
    from edgewise.apps.terminal.sessions import CommandSession

    raise typer.Exit(CommandSession(f"device {name}", as_json=as_json, debug=debug).run(body))
