"""Students through the real command: what it leaves, an interruption, and bad input."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import tiny_models
from commands import call, done

torch = pytest.importorskip("torch")
TEXT = "\n".join(f"the {i} quick brown foxes jump over {i * 7} lazy dogs" for i in range(400))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_model.save(tmp_path / "teacher", tie=False)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def distil(out: str, *options: str, steps: int = 6, to: str = "29.5K") -> dict[str, Any]:
    return done("distill", "teacher", "--to", to, "--on", "text.txt", "--out", out, "--steps", str(steps), *options)


def weights(out: Path) -> str:
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_a_student_is_a_folder_that_transformers_reads_with_a_true_report(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = distil("student", "--beside", "--length", "32")
    model = AutoModelForCausalLM.from_pretrained(folder / "student")
    assert AutoTokenizer.from_pretrained(folder / "student").vocab_size == 300
    assert sum(p.numel() for p in model.parameters()) == found["student"]["parameters"] == 29_536
    assert found["student"]["bytes"] == (folder / "student" / "model.safetensors").stat().st_size
    assert found["alone"]["perplexity"] < found["teacher"]["perplexity"]  # The teacher is drawn at random.
    assert sorted(p.name for p in folder.iterdir()) == ["student", "teacher", "text.txt"]
    report = json.loads((folder / "student" / "distilled.json").read_text(encoding="utf-8"))
    assert report["student"] == found["student"]
    said = done("eval", "student", "--on", "text.txt", "--length", "32")
    assert said["models"]["global"]["all"]["perplexity"] > 1.0
    card = (folder / "student" / "README.md").read_text(encoding="utf-8")
    assert "| student (this folder) |" in card
    for words in ("the teacher's logits at temperature 2", "layer 0", "of the teacher's 2"):
        assert words.replace("layer 0", "layers 0") in card


@pytest.mark.slow
def test_a_killed_distillation_goes_on_and_ends_with_the_same_bytes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewise.apps.models import distilling
    from edgewise.learn.compress import teaching

    distil("whole")
    monkeypatch.setattr(distilling, "SAVE_S", 0.0)
    rate = teaching.lesson_rate

    def stopped(lesson: Any, step: int) -> float:
        if step == 4:
            raise KeyboardInterrupt
        return rate(lesson, step)

    monkeypatch.setattr(teaching, "lesson_rate", stopped)
    options = ("distill", "teacher", "--to", "29.5K", "--on", "text.txt", "--out", "cut", "--steps", "6")
    said = call(*options)
    assert said.exit_code == 130
    assert "--resume" in said.stderr
    assert not (folder / "cut").exists()
    monkeypatch.setattr(teaching, "lesson_rate", rate)
    assert "E-RUN-EXISTS" in call(*options).stderr
    other = call(*options[:-1], "7", "--resume")
    assert "another lesson.steps" in other.stderr
    steps: list[int] = []
    monkeypatch.setattr(teaching, "lesson_rate", lambda lesson, step: steps.append(step) or rate(lesson, step))
    distil("cut", "--resume")
    assert steps == [4, 5]
    assert weights(folder / "cut") == weights(folder / "whole")
    assert not (folder / ".cut.distill").exists()


@pytest.mark.slow
def test_teacher_and_student_learn_from_each_other_round_after_round(folder: Path) -> None:
    """The teacher adapts to the text and to the student, and its folder is the next round's teacher."""
    first = distil("student1", "--adapt", "6", "--teacher-out", "teacher1", "--length", "32", "--rate", "0.01")
    assert first["adapted"]["perplexity"] < first["teacher"]["perplexity"]
    found = done(
        "distill", "teacher1", "--to", "student1", "--on", "text.txt", "--out", "student2", "--steps", "6",
        "--adapt", "6", "--teacher-out", "teacher2", "--length", "32", "--rate", "0.01",
    )  # fmt: skip
    assert found["student"]["origin"] == "the weights in student1"
    assert found["teacher"]["perplexity"] == pytest.approx(first["adapted"]["perplexity"], rel=1e-4)
    assert found["student"]["perplexity"] < first["student"]["perplexity"]
    assert found["student"]["perplexity_before"] == pytest.approx(first["student"]["perplexity"], rel=1e-4)
    assert weights(folder / "teacher1") != weights(folder / "teacher2")


@pytest.mark.slow
def test_two_teachers_of_other_architectures_teach_one_student(folder: Path) -> None:
    tiny_models.save("gpt2", folder / "gpt2")
    found = distil("student", "--also", "gpt2", "--weigh", "text", "--length", "32")
    assert found["ensemble"]["names"] == ["teacher", "gpt2"]
    assert sum(found["ensemble"]["weights"]) == pytest.approx(1.0)
    assert found["ensemble"]["generated_tokens_per_s"] is None
    assert "A student of `teacher`, `gpt2`" in (folder / "student" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--loss", "sequence", "--also", "teacher"), "E-DISTILL", "write no text"),
        (("--adapt", "2", "--data", "0.1"), "E-DISTILL", "at least 0.2"),
        (("--adapt", "2", "--also", "teacher"), "E-DISTILL", "one teacher"),
        (("--teacher-out", "adapted"), "E-DISTILL", "--adapt"),
        (("--weigh", "best"), "E-DISTILL", "no rule"),
        (("--to", "9M"), "E-DISTILL", "has 39,840"),
        (("--to", "config.jsn"), "E-DISTILL", "neither"),
        (("--length", "512"), "E-DISTILL", "at most 128 tokens"),
        (("--loss", "mse"), "E-DISTILL", "no loss"),
        (("--on", "none.txt"), "E-DATA-MISSING", "none.txt"),
        (("--column", "txt=body"), "E-DATA-COLUMN", "txt"),
        (("--column", "text=body"), "E-DATA-COLUMN", "--column"),
        (("--resume",), "E-RESUME", "no distillation"),
        (("--out", "teacher"), "E-FOLDER", "not empty"),
    ],
)
def test_bad_input_has_a_code_and_leaves_nothing(options: tuple[str, ...], code: str, words: str, folder: Path) -> None:
    base = {"--to": "29.5K", "--on": "text.txt", "--out": "student", "--steps": "2"}
    base |= dict(zip(options[::2], options[1::2], strict=True)) if len(options) > 1 else {}
    given = [word for pair in base.items() for word in pair] + [*options] * (len(options) == 1)
    said = call("distill", "teacher", *given)
    assert code in said.stderr, said.output
    assert words in " ".join(said.stderr.split())
    assert not (folder / "student").exists()
    assert not os.path.exists(folder / ".student.distill" / "request.json")
