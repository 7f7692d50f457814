"""Several teachers as one, beside their formulas by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

torch = pytest.importorskip("torch")

from edgewise.core.keys import root  # noqa: E402
from edgewise.learn.compress import student, teaching  # noqa: E402
from edgewise.learn.compress.ensemble import TeacherEnsemble, teacher_shares  # noqa: E402
from edgewise.learn.compress.teaching import Lesson  # noqa: E402
from edgewise.learn.models.architecture import logits  # noqa: E402
from edgewise.learn.models.load import load  # noqa: E402

IDS = torch.arange(24).reshape(2, 12) % 290


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("teachers")
    found = [load(str(tiny_models.save(name, folder / name)), Path()) for name in ("llama", "gpt2")]
    with torch.no_grad():
        found[0].model.lm_head.weight.mul_(30.0)
    for one in found:
        one.model.requires_grad_(False).eval()
    return found


def logp(one: Any) -> Any:
    return torch.log_softmax(logits(one.model, IDS).double(), -1)


def probabilities(z: Any) -> Any:
    return torch.softmax(z.double(), -1)


def test_fixed_weights_give_the_probabilities_of_the_mean_logits(teachers: list[Any]) -> None:
    found = logits(TeacherEnsemble([one.model for one in teachers], [0.3, 0.7]), IDS)
    plain = [logits(one.model, IDS).double() for one in teachers]
    torch.testing.assert_close(
        probabilities(found), probabilities(0.3 * plain[0] + 0.7 * plain[1]), rtol=1e-4, atol=1e-7
    )


def test_entropy_weighs_each_prediction_by_certainty(teachers: list[Any]) -> None:
    found = logits(TeacherEnsemble([one.model for one in teachers], None), IDS)
    each = [logp(one) for one in teachers]
    certain = torch.stack([1 / -(x.exp() * x).sum(-1) for x in each])
    w = certain / certain.sum(0)
    wanted = w[0][..., None] * each[0] + w[1][..., None] * each[1]
    torch.testing.assert_close(probabilities(found), probabilities(wanted), rtol=1e-3, atol=1e-7)
    assert float(w[0].mean()) > 0.5  # The sharper one.


def test_text_weighs_teachers_by_the_inverse_of_their_perplexity(teachers: list[Any]) -> None:
    blocks_NS = np.tile(np.arange(13, dtype=np.int32), (70, 1))
    models = [one.model for one in teachers]
    found = teacher_shares("text", models, blocks_NS)
    held = [teaching.measure_student(one, blocks_NS) for one in models]
    inverse = np.array([np.exp(-one.nll / one.tokens) for one in held])
    assert found == pytest.approx(inverse / inverse.sum(), rel=1e-4)
    assert teacher_shares("equal", models, blocks_NS) == [0.5, 0.5]
    assert teacher_shares("entropy", models, blocks_NS) is None


def test_a_student_learns_from_teachers_of_two_architectures(teachers: list[Any]) -> None:
    rng = np.random.default_rng(0)
    blocks_NS = rng.integers(0, 290, (6, 13)).astype(np.int32)
    together = TeacherEnsemble([one.model for one in teachers], [0.5, 0.5])
    fewer = sum(p.numel() for name, p in teachers[1].model.named_parameters() if ".1." not in name)
    model = student.make_student(teachers[1], str(fewer), Path(), root(0)).model
    last = teaching.teach_student(model, together, blocks_NS, Lesson(steps=12, lr=0.01, data=0.0), root(0))
    assert last.losses[-1] < 0.9 * last.losses[0]
