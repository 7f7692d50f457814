"""A distillation between rounds ends between two steps where its run is cancelled."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_model

from edgewise.core.keys import root
from edgewise.plan.recipe.distill import DistillSection

pytest.importorskip("torch")

from edgewise.learn.compress import rounds
from edgewise.learn.flat import Flat
from edgewise.learn.models.load import load


class Cancelled(Exception): ...


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_distillation_stops_between_two_steps(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run has 2 measurements, 3 steps of the teacher and 4 of the student. Nobody waits for those that are left."""
    monkeypatch.setattr(rounds, "student_perplexity", lambda *_: 1.0)
    monkeypatch.setattr(rounds, "written_text_diversity", lambda *_: 1.0)
    folder = str(tiny_model.save(tmp_path, tie=False))
    model, teacher = load(folder, Path()).model, load(folder, Path()).model
    text_NS: Any = np.arange(40, dtype=np.int32).reshape(4, 10) % 30
    section = DistillSection(every=1, teacher=folder, public="plays-public", steps=4, adapt=3, batch=2)
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == after:
            raise Cancelled

    flat, blocks = Flat(list(model.named_parameters())), SimpleNamespace(train_NS=text_NS, held_NS=text_NS)
    with pytest.raises(Cancelled):
        rounds.redistil_student(model, flat, teacher, blocks, section, root(1), stop=stop)  # type: ignore[arg-type]
    assert calls == after
