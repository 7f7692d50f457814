"""The example package with parts of one's own, installed into a folder as pip does it from a wheel."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "own_parts"
MODULE, NAME = "own_parts", "own-parts"


def install(site: Path) -> Path:
    """Put the package with its metadata into a folder; returns the folder."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    ((group, points),) = project["entry-points"].items()
    info = site / f"{MODULE}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (site / f"{MODULE}.py").write_bytes((EXAMPLE / f"{MODULE}.py").read_bytes())
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    (info / "RECORD").write_text(f"{MODULE}.py,,\n{info.name}/METADATA,,\n{info.name}/entry_points.txt,,\n")
    return site


def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install it for this process, until the test ends; returns its one module's file."""
    monkeypatch.syspath_prepend(str(install(site)))
    for name in [name for name in sys.modules if name == MODULE]:
        monkeypatch.delitem(sys.modules, name)
    return site / f"{MODULE}.py"


def readings(folder: Path, n: int) -> list[Path]:
    """A file of readings for each of so many devices."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i in range(n):
        made.append(folder / f"d{i}.csv")
        made[-1].write_text("".join(f"{i + j},{2 * i - j},{0.25 * j}\n" for j in range(4 + i)))
    return made
