"""Figures on read and left-out data are the same in `check`, at the start of a run, in its summary and on its page.
With differential privacy their owner alone has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from typer.testing import CliRunner

from edgewise.apps.cli.main import app

pytestmark = pytest.mark.slow

DATA = '[data]\nsource = "jsonl"\npath = "."\nowner = "who"\nprompt = "asked"\nsequence_len = 32\n'
RECIPE = """schema = 1
name = "read"
privacy = "{privacy}"
[model]
base = "tiny"
precision = "float32"
{data}
[round]
rounds = 1
[training]
local_steps = 1
batch = 2
[eval]
every = 0
[compare]
local_only = false
centralised = false
{more}"""
DP = "[dp]\nepsilon = 1000.0\ndelta = 0.01\nclip_l2 = 1.0\n"


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 0, done.output
    return done


def written(folder: Path, privacy: str, more: str = "") -> None:
    tiny_model.save(folder / "tiny")
    rows = [
        {"who": f"device {i % 4}", "asked": "the lazy dog " * (1 + 9 * (i % 2)), "text": "jumps over the fox"}
        for i in range(24)
    ]
    (folder / "t.jsonl").write_text("\n\n".join(json.dumps(r) for r in rows))
    (folder / "notes.md").write_text("no table")
    (folder / "recipe.toml").write_text(RECIPE.format(privacy=privacy, data=DATA, more=more))


def test_check_and_run_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "none")
    checked = json.loads(run("check", "recipe.toml", "--fast", "--json").stdout)["reading"]
    text = checked["text"]
    assert (text["answers"], text["answers_short"]) == (20, 10)
    assert checked["rows"] == {"read": 24, "left_out": {"blank lines": 23}}
    assert checked["files"]["left_out"] == {"files of another kind": 1, "recipes, runs or models of edgewise": 2}
    sentence = "50 % of the answers (10 of 20) see less than their whole prompt"
    shown = " ".join(run("check", "recipe.toml", "--fast").stdout.split())
    assert sentence in shown
    assert "blank lines (23)" in shown
    run("sim", "recipe.toml", "--out", "out")
    told = capfd.readouterr().err
    assert f"note: {sentence}" in told
    assert "note: Files left out: files of another kind (1).\n" in told
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["reading"] == {
        **checked,
        "files": {**checked["files"], "left_out": summary["reading"]["files"]["left_out"]},
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count(sentence) == 2  # in the note and in the list
    assert "blank lines (23)" in page


def test_exact_counts_are_for_the_owner_where_an_epsilon_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "central_dp", DP)
    run("sim", "recipe.toml", "--out", "out", "--quiet")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["reading"] is None
    assert "reading" not in summary["facts"]
    assert "see less than their whole prompt" not in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "devices.json").read_text())["reading"]["text"]["answers_short"] == 10


def test_check_refuses_text_that_nobody_can_measure_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "none")
    (tmp_path / "t.jsonl").write_text(json.dumps({"who": "ann", "asked": "the lazy dog", "text": "jumps"}))
    done = CliRunner().invoke(app, ["check", "recipe.toml", "--fast", "--json"])
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert (error["code"], "no device has enough text for a hold-out of 0.1" in error["what"]) == (
        "E-DEVICE-DATA",
        True,
    )
