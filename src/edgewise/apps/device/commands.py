"""Commands of a device's owner: policy, digest, status, pause, resume, leave. Everything beyond typer is imported
inside: help comes at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from edgewise.apps.options import HOME, Debug, Home, Json

device = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@device.command()
def policy(
    home: Home = HOME,
    show: Annotated[bool, typer.Option("--print", help="Print all keys with their meaning; write nothing.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Check your policy, or write the first one.

    The policy says which text this device trains on, when it works, and the least privacy that it takes.
    """

    def body() -> dict[str, Any]:
        from edgewise.apps.device import policy as policies

        folder = home.expanduser()
        if show:
            if not as_json:
                print(policies.template(), end="")
            return {"text": policies.template()}
        written = policies.first_policy(folder)
        found = policies.load(folder)
        if not as_json:
            print(f"{'wrote' if written else 'good:'} {folder / policies.FILE}")
            if not found.data.given:
                print("  next  write into it where your text is: data.path")
        return {"file": str(folder / policies.FILE), "written": written, "policy": found.model_dump(mode="json")}

    _run("policy", as_json, debug, body)


@device.command()
def digest(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="An installed package.", show_default=False)],
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """The digest by which a policy allows a package with trainers or codecs."""

    def body() -> dict[str, Any]:
        from edgewise.apps.device import digests

        found = digests.of_package(package)
        if not as_json:
            print(found)
        return {"sha256": found}

    _run("digest", as_json, debug, body)


def _run(name: str, as_json: bool, debug: bool, body: Callable[[], Mapping[str, Any]]) -> None:
    from edgewise.apps.shell import Session

    raise typer.Exit(Session(f"device {name}", as_json=as_json, debug=debug).run(body))
