"""Places where `--extension` finds a module: by name or file, here, beside the recipe, in worker processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.apps.runs.extensions import importable
from edgewise.core.errors import RecipeError

RECIPE = """
privacy = "none"
[round]
rounds = 1
[[stage]]
kind = "weigh"
[[stage]]
kind = "doubled"
"""
PART = """
from edgewise.core.stage import Stage
from edgewise.core.part import part
from edgewise.plan.catalogue import Extension
import toy

@part
def doubled() -> Stage:
    return Stage("doubled", lambda s: s.but(l2=2 * s.l2, linf=2 * s.linf),
                 lambda p, m, s, t: (p.but(body=2 * p.body), m), lambda p, s, t: p.but(body=p.body / 2),
                 lambda before, after: "doubles")

EDGEWISE = Extension(parts=(doubled,), trainer=toy.EDGEWISE.trainer)
"""
SUPPORT = Path(__file__).parents[3] / "support"


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    return tmp_path


def test_a_name_is_looked_for_here_and_beside_the_recipe(path: Path) -> None:
    assert importable([], path / "recipes") == []
    assert str(path) not in sys.path
    assert importable(["signs", "a.b"], path / "recipes") == ["signs", "a.b"]
    assert sys.path[-2:] == [str(path), str(path / "recipes")]
    (path / "parts").mkdir()
    (path / "parts" / "own_signs.py").touch()
    assert importable(["parts/own_signs.py"], path / "recipes") == ["own_signs"]
    assert sys.path[-1] == str(path / "parts")


def test_a_file_is_that_file_or_refused(path: Path) -> None:
    for name, said in (("json.py", "another module"), ("own-signs.py", "not the name"), ("lacking.py", "no file")):
        if name != "lacking.py":
            (path / name).touch()
        with pytest.raises(RecipeError, match=said) as e:
            importable([name], path)
        assert e.value.code == "E-EXTENSION"


@pytest.mark.slow
@pytest.mark.parametrize("given", ["own_part", "own_part.py", "recipes/own_part.py"])
def test_a_run_finds_it_in_every_process(path: Path, given: str) -> None:
    (path / "recipes" / "r.toml").write_text(RECIPE, encoding="utf-8")
    (path / ("recipes" if "/" in given else ".") / "own_part.py").write_text(PART, encoding="utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path]), "OMP_NUM_THREADS": "1"}
    call = [
        sys.executable,
        "-P",
        "-m",
        "edgewise.apps.cli.main",
        "sim",
        "recipes/r.toml",
        "--extension",
        given,
        "--out",
        "o",
    ]
    for engine in (["--engine", "inproc"], ["--engine", "pool"]):
        done = subprocess.run([*call[:-1], engine[1], *engine], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
