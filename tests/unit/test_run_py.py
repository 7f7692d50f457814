"""run.py sets up ``.venv``: it deletes only an environment that it made itself, and compiles what Python would not."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from docs.blocks import ROOT


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """run.py as a module, at work in ``tmp_path``; it gets as far as making the environment."""
    spec = importlib.util.spec_from_file_location("run_py", ROOT / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / ".venv"
    for name, path in {
        "ROOT": tmp_path, "VENV": venv, "STAMP": venv / "edgewise-stamp.json", "LOG": tmp_path / "build/setup.log",
        "UNFINISHED": venv / "edgewise-unfinished", "PYTHON": venv / "bin/python",
    }.items():  # fmt: skip
        monkeypatch.setattr(module, name, path)

    def stops(*_: object) -> None:
        raise module.Stop("here", "the test ends")

    monkeypatch.setattr(module, "make_venv", stops)
    (tmp_path / "build").mkdir()
    (tmp_path / ".venv").mkdir()
    return module


WANTED = {"interpreter": "python"}


def test_an_environment_of_somebody_else_is_not_deleted(script: ModuleType, tmp_path: Path) -> None:
    theirs = tmp_path / ".venv" / "pyvenv.cfg"
    theirs.write_text("home = /usr/bin", encoding="utf-8")
    with pytest.raises(script.Stop, match="not made by edgewise"):
        script.make((3, 11, 0), "python", WANTED)
    assert [p.name for p in theirs.parent.iterdir()] == ["pyvenv.cfg"]


@pytest.mark.parametrize("mark", ["edgewise-stamp.json", "edgewise-unfinished"])
def test_an_environment_of_another_python_is_made_anew(script: ModuleType, tmp_path: Path, mark: str) -> None:
    for name in ("pyvenv.cfg", mark):
        (tmp_path / ".venv" / name).write_text("{}", encoding="utf-8")
    with pytest.raises(script.Stop, match="here"):
        script.make((3, 11, 0), "python", WANTED)
    assert [p.name for p in (tmp_path / ".venv").iterdir()] == ["edgewise-unfinished"]


@pytest.mark.skipif(os.name == "nt", reason="a link stands in for an environment's Python")
@pytest.mark.parametrize("kept", [True, False])
def test_packages_are_compiled_where_python_keeps_no_bytecode(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    def venv(*_: object) -> None:
        (tmp_path / ".venv/bin").mkdir()
        (tmp_path / ".venv/bin/python").symlink_to(sys.executable)

    def pip(*_: object) -> None:
        (tmp_path / ".venv/packages").mkdir()
        (tmp_path / ".venv/packages/one.py").write_text("ONE = 1\n", encoding="utf-8")

    (tmp_path / ".venv").rmdir()
    monkeypatch.setattr(script, "make_venv", venv)
    monkeypatch.setattr(script, "install_torch", lambda *_: None)
    monkeypatch.setattr(script, "pip", pip)
    monkeypatch.setattr(sys, "dont_write_bytecode", not kept)
    script.make((3, 11, 0), "python", WANTED)
    assert bool([*tmp_path.glob(".venv/packages/__pycache__/one.*.pyc")]) is not kept


@pytest.mark.skipif(os.name == "nt", reason="a shell script stands in for Python")
def test_static_checks_and_tests_run_side_by_side(script: ModuleType, capfd: pytest.CaptureFixture[str]) -> None:
    """One waits for the start of the tests here, and another fails."""
    script.PYTHON.parent.mkdir()
    script.PYTHON.write_text(
        """#!/bin/sh
case "$*" in
  *pytest*) touch began ;;
  *mypy*) n=0; until [ -e began ]; do n=$((n + 1)); [ $n -gt 100 ] && exit 9; sleep 0.1; done ;;
  *"ruff check"*) echo three faults; exit 1 ;;
esac
"""
    )
    script.PYTHON.chmod(0o755)
    assert script.check([]) == 1
    said = capfd.readouterr().err
    assert "mypy          ok" in said
    assert "three faults" in said
    assert "check: failed: ruff lint," in said
