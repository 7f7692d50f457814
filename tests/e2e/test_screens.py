"""Screens decide nothing: commands whose output nobody can read do the same work and end with the same status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_recipe

from edgewise.drivers.screen import screen_on
from edgewise.drivers.storage.run_store import RunStore

SUPPORT = Path(__file__).parents[1] / "support"
BROKEN = ["gone", "full", "closed"]
RUN = ["sim", "toy.toml", "--extension", "toy", "--out"]

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX descriptors")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("toy.toml").write_text(toy_recipe.TEXT, encoding="utf-8")
    return tmp_path


def command(arguments, broken="", which=(1, 2)):
    """Exit status of the real command, and what it could say, with these descriptors broken."""
    if broken == "full" and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path]), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "edgewise.apps.cli.main", *arguments]
    if broken == "closed":
        call = ["sh", "-c", 'exec "$@" ' + " ".join(f"{fd}>&-" for fd in which), "sh", *call]
    files = {}
    for fd in which if broken in ("gone", "full") else ():
        if broken == "full":
            files[fd] = os.open("/dev/full", os.O_WRONLY)
        else:
            reader, files[fd] = os.pipe()
            os.close(reader)
    out, err = files.get(1, subprocess.PIPE), files.get(2, subprocess.PIPE)
    done = subprocess.run(call, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, timeout=300)
    for fd in files.values():
        os.close(fd)
    return done.returncode, (done.stdout or b"").decode(), (done.stderr or b"").decode()


def played(out):
    with RunStore(Path(out)) as store:
        run = store.run()
        assert run is not None
        return bool(run["finished"]), store.models()


@pytest.mark.slow
def test_a_run_that_nobody_watches_ends_as_any_other(folder):
    assert command([*RUN, "seen"])[0] == 0
    for broken in BROKEN:
        assert command([*RUN, broken], broken)[0] == 0
        assert played(broken) == played("seen")
        assert played(broken)[0]
        assert Path(broken, "report.html").is_file()
    assert not list(folder.glob("**/crash-*"))


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("which", [(1,), (2,)], ids=["output", "error"])
def test_a_run_with_one_screen(folder, broken, which):
    status, out, err = command([*RUN, "run", "--set", "simulation.engine=pool"], broken, which)
    assert (status, played("run")[0]) == (0, True)
    assert 1 in which or "report" in out
    assert 2 in which or "round 4/4" in err
    assert not list(folder.glob("**/crash-*"))


@pytest.mark.slow
def test_a_reader_that_leaves_in_the_middle(folder):
    """``edgewise sim ... 2>&1 | head -1``."""
    reader, writer = os.pipe()
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(SUPPORT), *sys.path]), "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-m", "edgewise.apps.cli.main", *RUN, "run"]
    with subprocess.Popen(call, stdout=writer, stderr=writer, env=env) as process:
        os.close(writer)
        with os.fdopen(reader, "rb", 0) as lines:
            assert lines.readline() == b"loading model and text\n"
    assert process.returncode == 0
    assert played("run")[0]


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN)
def test_an_unfinished_run_never_ends_with_0(folder, broken):
    Path("dies.py").write_text(
        "import sys\nimport toy\nfrom edgewise.plan.catalogue import Extension\n"
        "class Dies(toy.ToyTrainer):\n    def fit(self, request):\n        sys.exit(0)\n"
        "EDGEWISE = Extension(trainer=Dies)\n",
        encoding="utf-8",
    )
    status, _, _ = command(["sim", "toy.toml", "--extension", "dies", "--out", "run"], broken)
    assert (status, played("run")[0]) == (2, False), "the code of the extension ended it: E-EXTENSION"
    assert command(["sim", "toy.toml", "--set", "training.lr=-1", "--out", "other"], broken)[0] == 2
    assert command([*RUN, "run", "--no-such-option"], broken)[0] == 2


QUICK = [["--help"], ["--version"], ["schema"], ["schema", "--field", "training.lr"], ["doctor"], ["no-such-command"]]


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize("arguments", QUICK, ids=" ".join)
def test_commands_that_only_say_something(folder, arguments):
    seen = command(arguments)[0]
    for broken in BROKEN:
        assert command(arguments, broken)[0] == seen
    assert not list(folder.glob("**/crash-*"))


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "toy.toml", "--extension", "toy"],
        ["check", "toy.toml", "--extension", "toy", "--json"],
        ["report", "run"],
        ["report", "nowhere"],
        ["export", "run", "--dest", "model"],
        ["bench", "codecs", "toy.toml", "--extension", "toy", "--repeats", "1"],
        ["audit", "toy.toml", "--quick", "--extension", "toy", "--out", "audit"],
        [*RUN, "quiet", "--quiet"],
        [*RUN, "json", "--json"],
        [*RUN, "debug", "--debug"],
    ],
    ids=lambda a: " ".join(a[:2]),
)
def test_every_command(folder, arguments):
    assert command([*RUN, "run"])[0] == 0
    seen = command(arguments)[0]
    for broken in BROKEN:
        for path in ("model", "quiet", "json", "debug"):
            if Path(path).exists():
                Path(path).rename(f"{path}-before-{broken}")
        assert command(arguments, broken)[0] == seen
    assert not list(folder.glob("**/crash-*"))


@pytest.mark.slow
def test_the_envelope_is_whole_where_only_progress_is_lost(folder):
    status, out, _ = command([*RUN, "run", "--json"], "gone", (2,))
    assert (status, json.loads(out)["ok"]) == (0, True)


def test_a_slow_reader_loses_text_and_not_the_screen():
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with screen_on(writer) as shown, os.fdopen(reader, "rb") as lines:
        for _ in range(3000):
            print("x" * 99, file=shown, flush=True)  # more than a pipe holds
        os.set_blocking(reader, False)
        assert lines.read(1000) == (b"x" * 99 + b"\n") * 10
        while lines.read(4096):
            pass
        print("again", file=shown, flush=True)
        assert (lines.read() or b"").endswith(b"again\n")
