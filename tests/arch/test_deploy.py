"""The files of ``deploy``: their commands and options exist, and what they build from is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from edgewise.apps.cli.main import app

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="no parser of compose files: pip install pyyaml")
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return found


def unknown(words: list[str]) -> list[str]:
    """The words of a command line that name no command and no option of edgewise."""
    command: Any = typer.main.get_command(app)
    while words and hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    known = {name for parameter in command.params for name in parameter.opts}
    return ([words[0]] if hasattr(command, "commands") else []) + [w for w in words if w[:2] == "--" and w not in known]


def test_the_services_of_the_compose_file_start_commands_that_exist() -> None:
    services = compose()["services"]
    built = {name: service for name, service in services.items() if "build" in service}
    assert set(built) == {"server", "device-1", "device-2"}
    assert not {name: wrong for name, service in built.items() if (wrong := unknown(list(service["command"])))}
    for service in built.values():
        assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve().is_file()
        extras = (ROOT / "pyproject.toml").read_text()
        assert all(
            re.search(rf"^{extra} = \[", extras, re.M) for extra in service["build"]["args"]["EXTRAS"].split(",")
        )
        assert set(service.get("depends_on", ())) <= set(services)
    assert services["server"]["environment"]["EDGEWISE_DATABASE"].endswith("@database/edgewise")


def test_the_image_and_the_unit_start_commands_that_exist() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    (start,) = [line for line in lines if line.startswith("CMD")]
    assert not unknown(re.findall(r'"([^"]+)"', start))
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert not [name for name in copied if not (ROOT / name).exists()]
    unit = (DEPLOY / "edgewise-server.service").read_text()
    (line,) = re.findall(r"^ExecStart=(.*)$", unit, re.M)
    assert not unknown(shlex.split(line)[1:])


def test_a_command_that_does_not_exist_is_seen() -> None:
    assert unknown(["serve", "folder", "--data-base", "x"]) == ["--data-base"]
    assert unknown(["sevre"]) == ["sevre"]
