"""The commands ``edgewise doctor``, ``backup`` and ``restore``.

The commands import everything beyond typer inside their bodies, so that help is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgewise.apps.terminal.options import Debug, Json


def doctor(
    server: Annotated[
        Path | None, typer.Option("--server", metavar="FOLDER", help="Check this server's folder instead.")
    ] = None,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Address on which that server listens.")
    ] = "127.0.0.1:8443",
    as_json: Json = False,
) -> None:
    """Check this machine, or a server's folder.

    Exit status 1 means that something must be fixed.
    """

    def body() -> dict[str, Any]:
        import time

        from edgewise.apps.cli import doctor as checks

        if server is None:
            findings = checks.examine(Path("runs").absolute())
        else:
            from edgewise.apps.cli import server_doctor

            findings = server_doctor.examine_server_folder(server, listen, time.time())
        if not as_json:
            print("\n".join(checks.doctor_lines(findings)))
        return {"ok": checks.doctor_is_healthy(findings), "findings": [f._asdict() for f in findings]}

    _run_command("doctor", as_json, False, body)


def backup(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The server's folder. The server may run.", show_default=False)
    ],
    to: Annotated[Path, typer.Argument(metavar="TO", help="A new folder for the backup.", show_default=False)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Back up a server's folder, even while the server runs.

    TO appears complete or not at all. It holds the keys of the server, so protect it as you protect them. It holds no
    messages of devices and no keys of rounds.
    """

    def body() -> dict[str, Any]:
        import time

        from edgewise.drivers.fleet import backup as backups

        made = backups.save(folder, to, time.time())
        size = sum(size for size, _ in made.files.values())
        if not as_json:
            print(f"{to}: {len(made.files)} files, {size / 1e6:.1f} MB, with the keys of the server")
        return {"backup": str(to), "files": len(made.files), "bytes": size}

    _run_command("backup", as_json, debug, body)


def restore(
    copy: Annotated[
        Path, typer.Argument(metavar="BACKUP", help="A folder written by `edgewise backup`.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new folder for the server.", show_default=False)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Restore a server's folder from a backup.

    The old server must not run any more. Everything after the backup is lost: enrolments, approvals, revocations,
    rounds and models. Unfinished runs end. Unused enrolment tokens are revoked.
    """

    def body() -> dict[str, Any]:
        import datetime
        import time

        from edgewise.drivers.fleet import backup as backups

        done = backups.restore(copy, folder, time.time())
        made = datetime.datetime.fromtimestamp(done.made_s, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        if not as_json:
            print(
                f"{folder} is the server as of {made}, in epoch {done.epoch}.\n"
                f"  runs ended      {', '.join(run[:12] for run in done.ended) or 'none'}\n"
                f"  tokens revoked  {done.tokens}\n"
                f"  next            revoke again each member that was revoked after {made}; members that enrolled\n"
                "                  after it must join again"
            )
        return {"folder": str(folder), "made": made, "epoch": done.epoch, "ended": done.ended, "tokens": done.tokens}

    _run_command("restore", as_json, debug, body)


def _run_command(name: str, as_json: bool, debug: bool, body: Any) -> None:
    """Run the body of a command, and exit with its status."""
    from edgewise.apps.terminal.sessions import CommandSession

    raise typer.Exit(CommandSession(name, as_json=as_json, debug=debug).run(body))
