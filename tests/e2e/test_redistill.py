"""Runs whose model the server distils again between rounds: same bytes after a kill, and a rule that rejects."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_model

import edgewise
from edgewise.apps.models.verification import verify_run
from edgewise.core import events
from edgewise.core.errors import EdgewiseError
from edgewise.drivers.storage.run_store import RunStore

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")
SUPPORT = Path(__file__).parents[1] / "support"
TEXT = "\n".join(f"the {i} quick brown foxes jump over {i * 7} lazy dogs" for i in range(300))
RECIPE = """
name = "again"
privacy = "none"
[model]
base = "model"
[data]
source = "text"
path = "text"
sequence_len = 32
[round]
rounds = 5
[training]
local_steps = 2
batch = 2
[distill]
every = 2
teacher = "teacher"
public = "public.txt"
steps = 4
adapt = 2
batch = 2
held_tokens = 128
diversity = 0.0
[eval]
every = 0
[compare]
local_only = false
centralised = false
"""
DOWN = '[[downlink]]\nkind = "top_k"\nfraction = 0.1\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model.save(tmp_path / "model", seed=1)
    tiny_model.save(tmp_path / "teacher", tie=False)
    (tmp_path / "public.txt").write_text(TEXT, encoding="utf-8")
    for owner in ("ann", "bob", "cyd"):
        (tmp_path / "text" / owner).mkdir(parents=True)
        (tmp_path / "text" / owner / "n.txt").write_text(("\n".join(tiny_model.LINES) + owner) * 4, encoding="utf-8")
    return tmp_path


def play(folder: Path, out: str, text: str = RECIPE, point: str = "", resume: bool = False) -> dict[int, str]:
    """Play a recipe, to its end or to the point where its process is killed. Returns the models after each round."""
    (folder / "again.toml").write_text(text, encoding="utf-8")
    if point:
        path = os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, str(SUPPORT / "killed_distillation.py"), "again.toml", out, point]
        killed = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    else:
        edgewise.simulate(folder / "again.toml", out=folder / out, resume=resume)
    with RunStore(folder / out) as store:
        return store.models()


def distillations(out: Path) -> list[events.Redistilled]:
    with RunStore(out) as store:
        return [e for e in store.events("redistilled") if isinstance(e, events.Redistilled)]


@pytest.mark.long(sample=2)
@pytest.mark.parametrize(
    ("point", "down"), [("kept", DOWN), ("step", ""), ("step", DOWN), ("committed", ""), ("kept", "")]
)
def test_a_run_killed_in_a_distillation_ends_with_the_same_models(folder: Path, point: str, down: str) -> None:
    whole = play(folder, "whole", RECIPE + down)
    cut = play(folder, "cut", RECIPE + down, point)
    assert len(cut) == (5 if point == "committed" else 4)
    assert play(folder, "cut", RECIPE + down, resume=True) == whole
    rounds = [(e.round, e.kept, e.perplexity, e.diversity, e.teacher) for e in distillations(folder / "whole")]
    assert [(e.round, e.kept, e.perplexity, e.diversity, e.teacher) for e in distillations(folder / "cut")] == rounds
    assert [(round, kept) for round, kept, *_ in rounds] == [(1, True), (3, True)]
    assert rounds[1][4] < distillations(folder / "whole")[0].teacher  # The second one goes on with the first's teacher.
    verified = verify_run(folder / "cut")
    assert verified.replayed == 5
    assert any("2 distillations" in sentence for sentence in verified.open)


def test_a_student_that_does_not_get_better_is_rejected_and_the_run_goes_on_without_it(folder: Path) -> None:
    with_none = RECIPE.partition("[distill]")[0] + "[eval]" + RECIPE.partition("[eval]")[2]
    plain = play(folder, "plain", with_none)
    wild = play(folder, "wild", RECIPE.replace("steps = 4", "steps = 4\nlr = 1.0"))
    assert wild == plain
    assert [(e.kept, e.reason) for e in distillations(folder / "wild")] == [(False, "perplexity")] * 2
    page = (folder / "wild" / "report.html").read_text(encoding="utf-8")
    assert "rejected: perplexity" in page
    with pytest.raises(EdgewiseError, match="another tokenizer"):
        play(folder, "other", RECIPE.replace('teacher = "teacher"', 'teacher = "bundled"'))
    play(folder, "dp", DP)
    card = (folder / "dp" / "report.html").read_text(encoding="utf-8")
    assert "post-processing of released models" in card


DP = (
    RECIPE.replace('privacy = "none"', 'privacy = "central_dp"\nmetrics = "none"')
    .replace("rounds = 5", 'rounds = 2\nsampling = "cyclic"\ncohort = 3')
    .replace("every = 0", "every = 0\n[dp]\nepsilon = 50.0\ndelta = 1e-3\nclip_l2 = 1.0")
    .replace("[[stage]]", "")
)
