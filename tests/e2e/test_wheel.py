"""The wheel as people get it: what is in it, what it says of itself, and that it works where there is no clone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from docs.blocks import ROOT
from edgewise.apps.cli import manual

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out)]
    done = subprocess.run([*build, str(ROOT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = out.glob("edgewise-*.whl")
    return path


def test_it_holds_the_package_its_pages_and_its_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        names = set(z.namelist())
    tracked = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*.py")}
    pages = {f"edgewise/{p.relative_to(ROOT).as_posix()}" for p in (ROOT / "docs").rglob("*.md")}
    assert {"edgewise/py.typed", *tracked, *pages} <= names
    assert not [name for name in names if name.endswith((".pyc", ".png"))]
    assert wheel.stat().st_size < 5e6  # model, plays, pages and code


def test_its_metadata_is_whole_and_its_description_has_no_dead_link(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as z:
        [name] = [n for n in z.namelist() if n.endswith("dist-info/METADATA")]
        said = message_from_string(z.read(name).decode())
        licences = [n.rsplit("/", 1)[-1] for n in z.namelist() if "/licenses/" in n]
    assert (said["Author"], said["License-Expression"]) == ("The edgewise authors", "Apache-2.0")
    assert sorted(licences) == ["LICENSE", "NOTICE"]
    assert "Typing :: Typed" in said.get_all("Classifier", [])
    assert said["Keywords"]
    description = str(said.get_payload())
    assert description.startswith("# edgewise\n")
    assert "![" not in description
    dead = [target for target in re.findall(r"\]\(([^)]*)\)", description) if not re.match(r"[a-z]+:", target)]
    assert dead == []
    named = re.findall(r"`edgewise explain ([a-z-]+)`", description)
    assert "threat-model" in named
    assert set(named) <= set(manual.manual_pages())


@pytest.mark.skipif(os.name == "nt", reason="paths of a POSIX environment")
def test_it_works_where_there_is_no_clone(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, symlinks=True)
    install = ["--python", str(home / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    [site] = home.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")  # what edgewise needs
    work = tmp_path / "work"
    work.mkdir()
    (work / "notes.jsonl").write_text(
        "".join(f'{{"ward": "w{i % 3}", "note": "a note of some words, number {i}"}}\n' for i in range(30)),
        encoding="utf-8",
    )
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def edgewise(*arguments: str) -> str:
        done = subprocess.run(
            [str(home / "bin" / "edgewise"), *arguments], cwd=work, env=env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = [str(home / "bin" / "python"), "-c", "import edgewise; print(edgewise.__file__)"]
    at = subprocess.run(where, cwd=work, env=env, capture_output=True, text=True, timeout=60).stdout
    assert at.startswith(str(site))
    assert "private" in edgewise("recipes")
    edgewise("recipes", "private", "--to", "own.toml")
    assert (work / "own.toml").is_file()
    assert "*What to do:*" in edgewise("explain", "E-QUORUM")
    assert edgewise("explain", "threat-model").startswith("# Threat model")
    assert "3 devices, by `ward`" in edgewise("new", "--data", "notes.jsonl", "--privacy", "hidden")
    assert "E-QUORUM" in edgewise("explain")
