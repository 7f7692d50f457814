"""Bad input through the command line: a clear code, the right exit status, and a run directory that still works."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy_recipe
from typer.testing import CliRunner

from edgewise.apps.cli.main import app
from edgewise.drivers.storage.run_store import RunStore

SUPPORT = Path(__file__).parents[1] / "support"
TOY = ["--extension", "toy"]
PLAIN = toy_recipe.TEXT


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Run the command line in ``tmp_path`` with ``--json``; returns (exit status, envelope)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SUPPORT))

    def run(*arguments):
        done = CliRunner().invoke(app, [*arguments, "--json"])
        return done.exit_code, json.loads(done.stdout.strip().splitlines()[-1])

    return run


def write(text, name="recipe.toml"):
    Path(name).write_text(text, encoding="utf-8")
    return name


@pytest.mark.slow
def test_noise_beyond_float32_ends_a_run_with_a_code(cli):
    """With a clip that somebody switched off the model and the optimizer's memory would hold infinity."""
    stages = ['kind = "clip"\nl2 = 1e29', 'kind = "quantize"\ngrid = "shared"', 'kind = "wrap"']
    text = PLAIN[: PLAIN.index("[[stage]]")].replace('privacy = "none"', 'privacy = "central_dp"')
    text += "".join(f"[[stage]]\n{stage}\n" for stage in stages)
    text += '[merge]\nkind = "secure_sum"\n[dp]\nepsilon = 20.0\ndelta = 1e-5\nclip_l2 = 1e29\n'
    status, envelope = cli("sim", write(text), *TOY, "--out", "run")
    assert (status, envelope["error"]["code"]) == (1, "E-NAN")
    assert "dp.clip_l2" in envelope["error"]["fix"]


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        (PLAIN.replace("lr = 0.3", "lrr = 0.3"), "E-KEY", "lr"),
        (PLAIN.replace("lr = 0.3", 'lr = "fast"'), "E-TYPE", "number"),
        (PLAIN.replace("lr = 0.3", "lr = -1"), "E-VALUE", "above 0"),
        (PLAIN.replace('privacy = "none"', ""), "E-MISSING", "privacy"),
        (PLAIN.replace('privacy = "none"', 'privacy = "total"'), "E-VALUE", "none"),
        (PLAIN.replace("devices = 8", ""), "E-MISSING", "devices"),
        (PLAIN.replace('kind = "top_k"', 'kind = "topk"'), "E-NAME", "top_k"),
        (PLAIN.replace("fraction = 0.2", "fractoin = 0.2"), "E-KEY", "fraction"),
        (PLAIN.replace("bits = 4", 'bits = 4\ngrid = "shared"'), "E-NO-BOUND", "clamp"),
        (PLAIN + '\n[[post]]\nkind = "noise"\nz = 1.0', "E-NOISE-NOCLIP", "clip"),
        (PLAIN.replace("rounds = 4", 'rounds = 4\nsampling = "fixed"\ncohort = 99'), "E-QUORUM", "99"),
        ("privacy = ", "E-RECIPE-SYNTAX", "recipe.toml"),
    ],
)
def test_a_bad_recipe_says_what_and_where(cli, text, code, hint):
    status, envelope = cli("sim", write(text), "--out", "run", *TOY)
    error = envelope["error"]
    assert (status, envelope["ok"], error["code"]) == (2, False, code)
    assert hint in error["what"] + error["fix"]


def test_unknown_extension_and_missing_recipe(cli):
    assert cli("sim", write(PLAIN), "--extension", "no_such_module")[1]["error"]["code"] == "E-EXTENSION"
    assert cli("sim", "nowhere.toml")[1]["error"]["code"] == "E-RECIPE-READ"


def test_an_extension_that_fails_at_import(cli, tmp_path, monkeypatch):
    (tmp_path / "half_done.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    status, envelope = cli("sim", write(PLAIN), "--out", "run", "--extension", "half_done")
    assert (status, envelope["error"]["code"]) == (2, "E-EXTENSION")
    assert "ZeroDivisionError" in envelope["error"]["what"]


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("text", [PLAIN, 'privacy = "none"\n'], ids=["with stages", "without"])
@pytest.mark.parametrize("key", ["stage.x.cap", "stage.5.cap", "stage.-1.cap", "stage.9", "post.0.z", "name.x.y"])
def test_set_where_there_is_nothing(cli, text, key):
    status, envelope = cli("sim", write(text), "--out", "run", "--set", f"{key}=1", *TOY)
    error = envelope["error"]
    named = text == PLAIN or not key.startswith("name")  # without a name, name.x.y makes a table: the wrong type
    assert (status, error["code"]) == (2, "E-KEY" if named else "E-TYPE"), error
    assert not named or key in error["what"]


@pytest.mark.slow
def test_missing_data_and_unreadable_model(cli, tmp_path):
    text = 'privacy = "none"\n[data]\nsource = "text"\npath = "nowhere"\n'
    status, envelope = cli("sim", write(text), "--out", "run")
    assert (status, envelope["error"]["code"]) == (2, "E-DATA-MISSING")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{not json", encoding="utf-8")
    status, envelope = cli("sim", write('privacy = "none"\n[model]\nbase = "model"\n'), "--out", "run")
    assert (status, envelope["error"]["code"]) == (2, "E-MODEL")
    # nothing was begun, so the same directory can be used at once
    assert cli("sim", write(PLAIN), "--out", "run", *TOY)[0] == 0


@pytest.mark.slow
def test_empty_and_tiny_devices_are_handled_one_by_one(cli, tmp_path):
    for name, content in {
        "long": "the quick brown fox jumps over the lazy dog. " * 80,
        "longer": "def f(x):\n    return x + 1\n\n" * 90,
        "sentence": "One sentence only, nothing more.",
        "empty": "",
    }.items():
        folder = tmp_path / "texts" / name
        folder.mkdir(parents=True)
        (folder / "a.txt").write_text(content, encoding="utf-8")
    text = """
privacy = "none"
[data]
source = "text"
path = "texts"
sequence_len = 32
[round]
rounds = 1
[training]
local_steps = 2
batch = 2
[compare]
centralised = false
"""
    status, envelope = cli("sim", write(text), "--out", "run")
    assert status == 0, envelope
    summary = envelope["summary"]
    with RunStore(Path("run")) as store:
        lost = {e.device: e.code for e in store.events("lost")}
        accepted = {e.device for e in store.events("accepted")}
        measured = store.measures("federated")
    assert lost in ({"empty": "E-DEVICE-DATA"}, {})
    assert {"long", "longer", "sentence"} <= accepted
    assert "empty" not in accepted
    assert "empty" not in measured
    assert summary["perplexity"]["federated"]["weighted_mean"] > 0


@pytest.mark.slow
def test_training_that_explodes_stops_with_a_reason_and_is_not_averaged(cli, monkeypatch):
    monkeypatch.setenv("TOY_NAN", ",".join(f"d{i:05d}" for i in range(8)))
    status, envelope = cli("sim", write(PLAIN), "--out", "run", *TOY)
    assert (status, envelope["error"]["code"]) == (1, "E-ROUND")
    with RunStore(Path("run")) as store:
        assert {e.code for e in store.events("lost")} == {"E-NAN"}
        models = store.models()
    assert len(set(models.values())) == 1


@pytest.mark.slow
def test_an_existing_run_is_never_overwritten(cli):
    recipe = write(PLAIN)
    assert cli("sim", recipe, "--out", "run", *TOY)[0] == 0
    status, envelope = cli("sim", recipe, "--out", "run", *TOY)
    assert (status, envelope["error"]["code"]) == (2, "E-RUN-EXISTS")
    status, envelope = cli("sim", recipe, "--out", "run", "--resume", "--set", "seed=5", *TOY)
    assert (status, envelope["error"]["code"]) == (2, "E-RESUME")
    status, envelope = cli("sim", recipe, "--out", "empty", "--resume", *TOY)
    assert (status, envelope["error"]["code"], Path("empty").exists()) == (2, "E-RESUME", False)
    assert cli("sim", recipe, "--out", "run", "--resume", *TOY)[0] == 0  # finished: nothing to do, report again


@pytest.mark.slow
def test_a_corrupt_checkpoint_is_named(cli):
    recipe = write(PLAIN)
    assert cli("sim", recipe, "--out", "run", *TOY)[0] == 0
    with RunStore(Path("run")) as store:
        digest = store.models()[4]
    blob = Path("run/blobs") / digest
    blob.write_bytes(bytes(len(blob.read_bytes())))
    status, envelope = cli("sim", recipe, "--out", "run", "--resume", *TOY)
    assert (status, envelope["error"]["code"]) == (8, "E-CHECKPOINT")
    assert digest in envelope["error"]["what"]


def process(*arguments, limit_bytes=0, **env):
    """The real command in a process of its own, optionally unable to write files above a size."""

    def prepare():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if limit_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    return subprocess.Popen(
        [sys.executable, "-m", "edgewise.apps.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SUPPORT), **env},
        preexec_fn=prepare,
    )


@pytest.mark.slow
def test_no_room_on_the_disk_then_room_again(cli):
    recipe = write(PLAIN)
    assert cli("sim", recipe, "--out", "calm", *TOY, "--set", "simulation.engine=inproc")[0] == 0
    # 50 coordinates are 200 bytes; the database outgrows 150 kB after a while, or cannot even be made
    failed = process("sim", recipe, "--out", "run", *TOY, "--json", limit_bytes=60_000)
    out, err = failed.communicate(timeout=120)
    assert failed.returncode == 6, (out, err)
    assert json.loads(out.strip().splitlines()[-1])["error"]["code"] == "E-DISK"
    started = (Path("run") / "run.db").exists() and _has_run("run")
    status, envelope = cli("sim", recipe, "--out", "run", *TOY, *(["--resume"] if started else []))
    assert status == 0, envelope
    with RunStore(Path("calm")) as a, RunStore(Path("run")) as b:
        assert a.models()[4] == b.models()[4]


def _has_run(out):
    with RunStore(Path(out)) as store:
        return store.run() is not None


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(cli):
    recipe = write(PLAIN)
    running = process("sim", recipe, "--out", "run", *TOY, TOY_SLEEP="0.1")
    journal = Path("run/journal")
    for _ in range(600):
        if journal.exists() and any(journal.iterdir()):
            break
        try:
            running.wait(0.1)
            break
        except subprocess.TimeoutExpired:
            continue
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert "E-INTERRUPTED" in err
    assert "--resume" in err
    assert cli("sim", recipe, "--out", "run", "--resume", *TOY)[0] == 0
