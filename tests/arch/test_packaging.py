"""Dependencies and pins: open in the metadata, exact in the constraints, installable everywhere."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from arch.source import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FILES = sorted((ROOT / "constraints").glob("py*.txt"))
# What `make setup` installs. Other extras (ray, postgres, ...) are open until their tests need pins.
INSTALLED = ("train", "server", "export", "eval", "dev")


def pins(path: Path) -> dict[str, str]:
    """Name -> version; every line must be a plain ``name==version``."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    wrong = [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)]
    assert not wrong, f"{path.name}: not plain pins (no +local, no @ address, no range): {wrong}"
    return dict(line.split("==") for line in lines)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_constraints_pin_every_requirement(path: Path) -> None:
    project, pinned = PROJECT["project"], pins(path)
    texts = [*project["dependencies"], *PROJECT["build-system"]["requires"]]
    texts += [text for extra in INSTALLED for text in project["optional-dependencies"][extra]]
    for requirement in map(Requirement, texts):
        version = pinned.get(canonicalize_name(requirement.name))
        fix = "run scripts/freeze_constraints.py"
        assert version is not None, f"{path.name}: no pin for {requirement.name}; {fix}"
        assert version in requirement.specifier, f"{path.name}: {version} does not satisfy {requirement}; {fix}"


def test_torch_is_open_in_the_metadata_and_plain_in_the_pins() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"torch>=2.6"' in text
    assert "download.pytorch.org" not in text, "a fixed torch index breaks machines that cannot reach it"
    assert all(pins(path)["torch"] == "2.13.0" for path in FILES)


def test_licence_is_shipped() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["project"]["license"] == "Apache-2.0"


def test_ci_calls_the_test_command_of_the_readme() -> None:
    script = ROOT / ".ci" / "run"
    assert "make test" in script.read_text(encoding="utf-8")
    assert os.access(script, os.X_OK) or os.name == "nt"
