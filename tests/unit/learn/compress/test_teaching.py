"""Lessons of a student: losses fall, interruptions change nothing, and generated text carries no gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model

from edgewise.core.errors import EdgewiseError
from edgewise.core.keys import root

torch = pytest.importorskip("torch")

from edgewise.learn.compress import distill, student, teaching  # noqa: E402
from edgewise.learn.compress.teaching import Lesson  # noqa: E402
from edgewise.learn.models.architecture import logits  # noqa: E402
from edgewise.learn.models.load import load  # noqa: E402

KEY = root(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    one = load(str(tiny_model.save(tmp_path_factory.mktemp("teacher"), tie=False)), Path())
    with torch.no_grad():
        one.model.lm_head.weight.mul_(40.0)  # It is sure of what it says, so that there is something to learn.
    one.model.requires_grad_(False)
    return one


@pytest.fixture(scope="module")
def blocks_NS(teacher: Any) -> np.ndarray:
    ids = np.concatenate(teacher.tokens.encode(tiny_model.LINES)).astype(np.int32)
    found = np.resize(ids, (10, 17))
    found[0, :4] = ~found[0, :4]
    return found


def made(teacher: Any, to: str = "29.5K") -> Any:
    return student.make_student(teacher, to, Path(), KEY).model


def vector(model: Any) -> Any:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("loss", teaching.LOSSES)
def test_each_loss_brings_the_student_nearer_to_its_teacher(loss: str, teacher: Any, blocks_NS: np.ndarray) -> None:
    def distance(model: Any) -> float:
        real = distill.distill_inputs(torch.from_numpy(blocks_NS).long())
        with torch.no_grad():
            z_s, z_t = (logits(m, real.x_BT) for m in (model, teacher.model))
        return float(distill.distillation_divergence(z_s, z_t, real.counted_BT))

    model = made(teacher, "36.4K")  # It begins at random.
    before = distance(model)
    lesson = Lesson(loss, steps=8, lr=0.01, batch=8, data=0.0, generated=1.0 if loss == "sequence" else 0.5, top_k=64)
    teaching.teach_student(model, teacher.model, blocks_NS, lesson, KEY)
    assert distance(model) < 0.97 * before


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["logits", "gkd"])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_an_interrupted_lesson_ends_with_the_same_bits(
    loss: str, optimizer: str, teacher: Any, blocks_NS: np.ndarray, tmp_path: Path
) -> None:
    lesson = Lesson(loss, steps=5, batch=3, optimizer=optimizer)
    whole, cut = made(teacher), made(teacher)
    wanted = teaching.teach_student(whole, teacher.model, blocks_NS, lesson, KEY)

    def killed(done: int, read: Any) -> None:
        if done == 2:
            teaching.save_lesson(tmp_path / "state", read())
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teaching.teach_student(cut, teacher.model, blocks_NS, lesson, KEY, after=killed)
    fresh = made(teacher)
    begin = teaching.load_lesson(tmp_path / "state")
    found = teaching.teach_student(fresh, teacher.model, blocks_NS, lesson, KEY, begin=begin)
    assert found.losses == wanted.losses
    assert torch.equal(vector(fresh), vector(whole))
    assert torch.equal(found.w_D, wanted.w_D)


def test_each_pass_reads_each_block_once_in_another_order(blocks_NS: np.ndarray) -> None:
    numbered = np.arange(10, dtype=np.int32)[:, None].repeat(3, 1)
    read = [int(i) for step in range(10) for i in teaching.lesson_rows(numbered, 4, step, KEY)[:, 0]]
    passes = [read[at : at + 10] for at in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert len(set(map(tuple, passes))) == 4


def test_passes_of_bounded_memory_have_the_gradient_of_the_whole(
    teacher: Any, blocks_NS: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for at_once in (1 << 25, 300 * 16 * 3):
        monkeypatch.setattr(teaching, "AT_ONCE", at_once)
        model = made(teacher)
        last = teaching.teach_student(
            model, teacher.model, blocks_NS, Lesson(steps=1, batch=10, optimizer="adamw"), KEY
        )
        found.append((last.losses[0], last.moments[0]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-6)


def test_generated_text_begins_with_the_real_text_and_counts_after_it(teacher: Any, blocks_NS: np.ndarray) -> None:
    real = distill.distill_inputs(torch.from_numpy(blocks_NS).long())
    found = teaching.student_written_text(teacher.model, real, 17, torch.float32, Lesson("gkd"), KEY)
    assert found.x_BT.shape == real.x_BT.shape
    assert torch.equal(found.x_BT[:, :4], real.x_BT[:, :4])
    assert found.counted_BT.sum(1).tolist() == [13] * 10
    assert torch.equal(found.y_BT[:, :-1], found.x_BT[:, 1:])
    again = teaching.student_written_text(teacher.model, real, 17, torch.float32, Lesson("gkd"), KEY)
    assert torch.equal(found.y_BT, again.y_BT)


def test_what_the_student_writes_is_judged_as_it_stands(teacher: Any, blocks_NS: np.ndarray) -> None:
    """The gradient of a step on its own text is that of the divergence on fixed tokens: none goes through the draws."""
    model, lesson = made(teacher), Lesson("gkd", steps=1, generated=1.0, beta=0.0, optimizer="adamw", batch=10)
    start = made(teacher)
    last = teaching.teach_student(model, teacher.model, blocks_NS, lesson, KEY)
    here = teaching.derive(KEY, "step", 0)
    s_BS = torch.from_numpy(teaching.lesson_rows(blocks_NS, 10, 0, KEY))
    text = teaching.student_written_text(start, distill.distill_inputs(s_BS), 17, torch.float32, lesson, here)
    loss = distill.jensen_shannon_loss(
        logits(start, text.x_BT), logits(teacher.model, text.x_BT), text.counted_BT, 0.0, lesson.tau
    )
    assert last.losses[0] == pytest.approx(loss.item(), rel=1e-5)


def test_a_student_without_a_teacher_learns_the_next_tokens(teacher: Any, blocks_NS: np.ndarray) -> None:
    model = made(teacher)
    before = teaching.measure_student(model, blocks_NS)
    teaching.teach_student(model, None, blocks_NS, Lesson(teaching.DATA, steps=4, lr=0.01), KEY)
    after = teaching.measure_student(model, blocks_NS)
    assert after.tokens == before.tokens == int((blocks_NS[:, 1:] >= 0).sum())
    assert after.nll < before.nll


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    lesson = Lesson(steps=100, lr=1.0)
    rates = [teaching.lesson_rate(lesson, step) for step in range(100)]
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert rates[0] == pytest.approx(0.2)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)


def test_nothing_to_learn_from_and_a_damaged_state_are_refused(
    teacher: Any, blocks_NS: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(EdgewiseError, match="no block"):
        teaching.teach_student(made(teacher), None, blocks_NS[:0], Lesson(teaching.DATA), KEY)
    (tmp_path / "state").write_bytes(b"half a file")
    with pytest.raises(EdgewiseError) as e:
        teaching.load_lesson(tmp_path / "state")
    assert e.value.code == "E-RESUME"
