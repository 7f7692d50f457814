"""The command line in this process, as a script would read it."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from edgewise.apps.cli.main import app


def call(*arguments: str) -> Result:
    """Run a command. Returns what it prints, and its exit status."""
    return CliRunner().invoke(app, list(arguments))


def command(*arguments: str) -> dict[str, Any]:
    """Answer of a command with ``--json``. Of one that fails: its error (``code``, ``what``, ``fix``)."""
    done = call(*arguments, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    envelope = json.loads(done.stdout.strip().splitlines()[-1])
    found: dict[str, Any] = envelope if done.exit_code == 0 else envelope["error"]
    return found


def done(*arguments: str) -> dict[str, Any]:
    """Answer of a command that must not fail."""
    found = command(*arguments)
    assert "ok" in found, found
    return found


def sim(*arguments: str, out: str = "run", **values: Any) -> dict[str, Any]:
    """``edgewise sim recipe.toml``; ``training__lr=1`` stands for ``--set training.lr=1``."""
    options = [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]
    return command("sim", "recipe.toml", "--out", out, *arguments, *options)
