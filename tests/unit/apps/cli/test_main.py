"""The command line from outside: statuses, envelopes, messages, run directories; with a trainer that is arithmetic."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from toy_recipe import PLAIN
from typer.testing import Result

from edgewise.apps.cli import doctor, recipe_schema
from edgewise.apps.runs import recipe_file, run_dirs
from edgewise.apps.terminal import sessions
from edgewise.core.errors import REGISTRY, EdgewiseError, RecipeError
from edgewise.drivers.storage import folder as folders
from support.commands import call
from unit.made_run import made_plan, make_run

TOY = ("--extension", "toy")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(PLAIN, encoding="utf-8")
    return tmp_path


def envelope(result: Result) -> dict[str, Any]:
    """Standard output holds one JSON value and nothing else."""
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_help_names_every_command_and_is_light() -> None:
    code = "import sys; from edgewise.apps.cli.main import main\ntry: main()\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=60)
    for command in ("demo", "check", "sim", "report", "export", "bench", "doctor", "schema"):
        assert f"\n  {command} " in done.stdout
    loaded = set(done.stdout.rsplit("\n", 2)[-2].split())
    assert not loaded & {"torch", "numpy", "sqlalchemy", "pydantic", "rich", "matplotlib", "numba", "msgspec"}


def test_version() -> None:
    assert call("--version").stdout.startswith("edgewise ")


@pytest.mark.slow
def test_a_whole_run_and_what_it_leaves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("sim", "toy.toml", *TOY, "--json")
    assert result.exit_code == 0, result.output
    found = envelope(result)
    assert (found["ok"], found["command"]) == (True, "sim")
    out = folder / found["run_dir"]
    assert out.name.startswith("toy-")
    assert out.parent.name == "runs"
    assert json.loads((out / "summary.json").read_text(encoding="utf-8")) == found["summary"]
    assert found["summary"]["complete"] is True
    assert found["summary"]["change_percent"]["federated"] < 0
    for name in ("report.html", "recipe.toml", "plots/quality.png"):
        assert (out / name).is_file()

    again = call("sim", "toy.toml", *TOY)
    assert again.exit_code == REGISTRY["E-RUN-EXISTS"].exit_status
    assert "E-RUN-EXISTS" in again.stderr
    assert "edgewise explain E-RUN-EXISTS" in again.stderr

    (out / "report.html").unlink()
    made = call("report", str(out))
    assert made.exit_code == 0
    assert (out / "report.html").is_file()
    assert "federated" in made.stdout

    page = (out / "report.html").read_text(encoding="utf-8")
    copy, command = page.split("Repeat this run")[1].split("<pre>")[1].split("</pre>")[0].split("\n")
    monkeypatch.chdir(out)
    shutil.copy(*shlex.split(copy)[1:])
    repeated = call(*shlex.split(command)[1:], "--json")
    assert repeated.exit_code == 0, repeated.output
    assert envelope(repeated)["summary"]["model_sha256"] == found["summary"]["model_sha256"]
    assert (folder / "runs" / "toy-again" / "report.html").is_file()


@pytest.mark.slow
def test_set_engine_and_out_reach_the_run(folder: Path) -> None:
    sets = ("--set", "round.rounds=1", "--set", "name=other", "--set", "compare.centralised=false")
    result = call("sim", "toy.toml", *TOY, *sets, "--out", "here", "--engine", "inproc", "--json")
    summary = envelope(result)["summary"]
    assert (summary["name"], summary["rounds"]["played"]) == ("other", 1)
    assert summary["perplexity"]["centralised"] is None
    assert summary["recipe"]["simulation"]["engine"] == "inproc"
    assert (folder / "here" / "summary.json").exists()


@pytest.mark.slow
def test_errors_are_messages_with_their_status(folder: Path) -> None:
    plain = call("sim", "toy.toml", "--set", "training.lrr=1")
    assert plain.exit_code == 2
    assert "E-KEY" in plain.stderr
    assert "did you mean `lr`?" in plain.stderr
    assert "Traceback" not in plain.stderr
    assert plain.stdout == ""
    error = envelope(call("sim", "toy.toml", "--set", "training.lrr=1", "--json"))
    assert error["ok"] is False
    assert error["error"]["code"] == "E-KEY"
    fault = error["error"]["faults"][0]
    assert (fault["code"], fault["file"], fault["line"]) == ("E-KEY", "", None)
    assert set(error["error"]) == {"code", "what", "fix", "faults"}
    assert call("sim", "missing.toml").exit_code == 2
    assert "E-COMBO" in call("sim", "toy.toml", *TOY, "--engine", "inproc", "--workers", "3").stderr
    wrong = call("demo", "cod")
    assert (wrong.exit_code, "E-UNKNOWN" in wrong.stderr, "did you mean `code`?" in wrong.stderr) == (2, True, True)
    own = call("demo", "--set", "simulation.engine=inproc", "--workers", "2")
    assert "E-COMBO" in own.stderr, "a recipe key given by hand wins over the demo's default"
    assert call("report", "nowhere").exit_code == 2
    assert not (folder / "nowhere").exists()
    assert call("sim").exit_code == 2


@pytest.mark.slow
def test_a_bug_leaves_a_crash_file_and_a_short_message(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(run_dirs, "place", broken)
    monkeypatch.setattr(sessions.tempfile, "gettempdir", lambda: str(folder))
    result = call("sim", "toy.toml")
    assert result.exit_code == 1
    assert "unexpected ZeroDivisionError: a bug" in result.stderr
    assert "Traceback" not in result.stderr
    [crash] = folder.glob("crash-*.txt")
    assert "ZeroDivisionError: a bug" in crash.read_text(encoding="utf-8")
    assert str(crash) in result.stderr
    assert "Traceback" in call("sim", "toy.toml", "--debug").stderr


def test_a_missing_extra_is_named() -> None:
    def body() -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    assert sessions.CommandSession("sim").run(body) == REGISTRY["E-DEPENDENCY"].exit_status


def test_check_says_what_would_happen_and_runs_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_STEP_S", "0.25")
    found = envelope(call("check", "toy.toml", *TOY, "--json"))
    assert found["population"] == 6
    assert found["trace"][0]["role"] == "start"
    assert found["claims"]
    assert found["bytes"]["float32_model"] == 4 * 50
    assert found["forecast"]["federated_s"] > 0.25 * 2 * 6 * 3, "training, and a little for encoding"
    text = call("check", "toy.toml", *TOY).stdout
    for said in ("who learns what", "the update pipeline", "0.25 s per step"):
        assert said in text
    assert "ok: this recipe runs: 3 rounds, 6 devices, " in " ".join(text.split())
    wrong = call("check", "toy.toml", *TOY, "--set", "training.lr=-1")
    assert wrong.stderr.rstrip().splitlines()[-1] == "not ok: this recipe does not run"
    assert "\033" not in text
    assert sorted(p.name for p in folder.iterdir()) == ["toy.toml"]


@pytest.mark.slow
def test_check_tells_the_way_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_DIM", "64")
    down = ("--set", 'downlink=[{kind="quantize", bits=4}]')
    found = envelope(call("check", "toy.toml", *TOY, *down, "--json"))
    assert [r["role"] for r in found["trace_down"]] == ["start", "stage"]
    b = found["bytes"]
    delta = b["down"] - b["down_frames"]
    assert delta < b["snapshot"] == 4 * 64
    assert b["down_total"] == pytest.approx(6 * (b["snapshot"] + 2 * delta + 3 * b["down_frames"]))
    text = " ".join(call("check", "toy.toml", *TOY, *down).stdout.split())
    assert "the way down" in text
    assert "one that was not: the deltas of up to 1 missed round, else the model, 256 B" in text
    assert "E-KEY" in call("check", "toy.toml", *TOY, "--set", "downlink.0.bits=4").stderr
    assert "whole number ≥ 1 ≤ 16" in call("schema", "--field", "downlink.quantize").stdout
    assert "the way down" not in call("check", "toy.toml", *TOY).stdout


def test_assignments_are_toml_with_a_text_fallback() -> None:
    given = ["a.b=1", "c=2.5", "d=true", "e=[1, 2]", 'f="x y"', "g=plain", "h=x=y", "i="]
    assert recipe_file.assignments(given) == {
        "a.b": 1, "c": 2.5, "d": True, "e": [1, 2], "f": "x y", "g": "plain", "h": "x=y", "i": "",
    }  # fmt: skip
    assert recipe_file.assignments(None) == {}
    for bad in ("novalue", "=1"):
        with pytest.raises(RecipeError) as e:
            recipe_file.assignments([bad])
        assert e.value.code == "E-VALUE"


@pytest.mark.slow
def test_a_demonstration_whose_data_does_not_ship_asks_for_it(folder: Path) -> None:
    for arguments, code, named in (
        (["demo", "smart-home"], "E-MISSING", "--data"),
        (["demo", "industrial"], "E-MISSING", "--data"),
        (["demo", "industrial", "--data", "a.npz"], "E-DATA-MISSING", "a.npz"),
        (["demo", "industrial", "--data", "a.npz", "--set", "training.lr=1"], "E-COMBO", "training.lr"),
        (["demo", "industrial", "--data", "a.npz", "--resume"], "E-MISSING", "--out"),
        (["demo", "plays", "--data", "clips.npz"], "E-COMBO", "ships"),
        (["demo", "smart-home", "--data", "clips.npz"], "E-DATA-MISSING", str(folder / "clips.npz")),
    ):
        done = call(*arguments, "--engine", "inproc")
        assert (code in done.output, named in done.output) == (True, True), done.output


def test_the_demo_never_stands_in_its_own_way(folder: Path) -> None:
    recipe = made_plan().recipe
    first = run_dirs.place(recipe, fresh=True, resume=False)
    assert first == Path("runs") / f"made-{recipe.sha256()[:8]}"
    make_run(first)
    (first / "recipe.toml").touch()
    assert run_dirs.place(recipe, fresh=True, resume=False).name == f"{first.name}-2"
    assert run_dirs.place(recipe, fresh=True, resume=True) == first
    theirs = first.with_name(f"{first.name}-2")
    theirs.mkdir()
    (theirs / "notes.txt").touch()
    assert run_dirs.place(recipe, fresh=True, resume=False).name == f"{first.name}-3"
    assert run_dirs.place(recipe, fresh=True, resume=True) == first
    assert run_dirs.place(recipe, fresh=False, resume=False) == first


@pytest.mark.slow
def test_schema_of_everything_and_of_one_key() -> None:
    whole = json.loads(call("schema").stdout)
    assert "training" in whole["properties"]
    assert "learning rate in round 0" in call("schema", "--field", "training.lr").stdout
    assert "bits: whole number ≥ 2 ≤ 32" in call("schema", "--field", "stage.wrap").stdout
    assert "bits: whole number ≥ 1 ≤ 16  block 1-8" in call("schema", "--field", "stage.quantize").stdout
    wrong = call("schema", "--field", "training.lrr")
    assert wrong.exit_code == 2
    assert "did you mean `training.lr`?" in wrong.stderr


@pytest.mark.slow
def test_every_key_of_the_schema_can_be_described() -> None:
    whole = json.loads(recipe_schema.everything())
    for top in whole["properties"]:
        assert recipe_schema.describe(top).startswith(f"{top}: ")


def test_doctor_finds_this_machine_fit(folder: Path) -> None:
    result = call("doctor", "--json")
    found = envelope(result) if result.exit_code == 0 else json.loads(result.stdout)
    assert {f["name"] for f in found["findings"]} >= {"python", "disk", "bundled model", "demo text", "bfloat16"}
    assert [f["found"] for f in found["findings"] if f["name"] == "demo text"] == ["1,877 speeches"]
    assert result.exit_code == 0
    assert "ok    python" in call("doctor").stdout


@pytest.mark.slow
def test_doctor_says_what_is_wrong_and_how_to_mend_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DISK_BYTES", 1e18)
    monkeypatch.setattr(doctor, "TRAIN", ("no-such-package",))
    bad = {f.name: f for f in doctor.examine(folder / "runs") if f.state == doctor.BAD}
    assert set(bad) == {"training packages", "disk"}
    assert all(f.fix for f in bad.values())
    result = call("doctor", "--json")
    assert result.exit_code == 1
    assert envelope(result)["ok"] is False


def test_noise_goes_to_the_log_and_not_to_the_screen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folders.claim(tmp_path)
    with sessions.quiet_screen(tmp_path / "log.txt") as screen:
        os.write(1, b"library chatter\n")
        os.write(2, b"worker chatter\n")
        print("progress", file=screen, flush=True)
    print("after")
    out, err = capfd.readouterr()
    assert (out, err) == ("after\n", "progress\n")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "library chatter\nworker chatter\n"
    assert os.name == "nt" or (tmp_path / "log.txt").stat().st_mode & 0o077 == 0
    with sessions.quiet_screen(tmp_path / "other.txt"):
        pass
    assert not (tmp_path / "other.txt").exists()


def test_a_screen_of_few_characters_does_not_stop_a_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with sessions.quiet_screen(None) as screen:
        print("●", file=screen, flush=True)
    assert capfd.readouterr().err == "\\u25cf\n"


def test_the_command_that_continues() -> None:
    assert sessions.again(["/x/edgewise", "sim", "a b.toml", "--set", "x=1"]).endswith(
        " sim 'a b.toml' --set x=1 --resume"
    )
    assert sessions.again(["edgewise", "demo", "--resume"]).count("--resume") == 1


def test_error_output_for_every_status() -> None:
    for code, entry in REGISTRY.items():

        def body(code: str = code) -> None:
            raise EdgewiseError(code, "what happened.", "what to do.")

        assert sessions.CommandSession("sim", as_json=True).run(body) == entry.exit_status


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_says_how_to_go_on_and_going_on_gives_the_same_model(folder: Path) -> None:
    path = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    env = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}
    run = ["sim", "toy.toml", *TOY, "--set", "round.rounds=60", "--set", "eval.every=0", "--out"]
    command = [sys.executable, "-m", "edgewise.apps.cli.main", *run, "cut"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("round  3/"):
            assert process.poll() is None, "the run ended before it could be interrupted"
        process.send_signal(signal.SIGINT)
        text = process.stderr.read()
    assert process.returncode == 130
    assert "E-INTERRUPTED" in text
    assert "--set eval.every=0 --out cut --resume" in text
    assert "Traceback" not in text
    resumed, whole = call(*run, "cut", "--resume", "--json"), call(*run, "whole", "--json")
    assert "resumed after round" not in whole.stderr
    assert envelope(resumed)["summary"]["model_sha256"] == envelope(whole)["summary"]["model_sha256"]
