"""The section [retriever], and what training a retriever does not go with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.recipe import Recipe, from_plain

TURNS = {"pairs": "turns"}
TABLE = {"source": "jsonl", "path": "notes.jsonl", "owner": "who"}


def made(**tables: Any) -> Recipe:
    return from_plain({"privacy": "none", "retriever": TURNS, "data": TABLE, **tables})


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ({"retriever": {"pool": "states"}}, 'trains nothing with retriever.pairs = "none"'),
        ({"retriever": {"pairs": "rows"}}, "data.prompt names"),
        ({"data": {**TABLE, "prompt": "note"}}, "data.prompt would not be read"),
        ({"data": {**TABLE, "messages": "chat"}}, "a chat template would stand"),
        ({"data": {**TABLE, "packing": "none"}}, "pairs never share a block"),
        ({"data": {**TABLE, "stream": True, "time": "t", "window": 9.0, "window_start": "0"}}, "no window of time"),
        ({"training": {"batch": 1}}, "told apart from"),
        ({"training": {"accumulate": 2}}, "which is another loss"),
        ({"engine": {"max_memory_mb": 900}}, "they pick micro-batches"),
        ({"engine": {"batch_devices": 2}}, "passages of another"),
        ({"report": {"samples": 2}}, "continues no text"),
        ({"split": {"cut": 1}}, r"with \[split\]"),
        ({"distill": {"every": 2, "teacher": "t", "public": "plays-public"}}, r"with \[distill\]"),
        ({"personal": {"method": "fine_tune"}}, r"with \[personal\]"),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(tables: dict[str, Any], what: str) -> None:
    with pytest.raises(RecipeError, match=what) as e:
        made(**tables)
    assert "E-COMBO" in {fault.code for fault in e.value.faults}


def test_noise_on_single_pairs_is_refused() -> None:
    dp = {"unit": "example", "epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0, "sample_rate": 0.1}
    with pytest.raises(RecipeError, match="the loss of a pair depends on the others"):
        made(privacy="local_dp", dp=dp)


def test_a_recipe_without_the_section_keeps_its_identity(tmp_path: Path) -> None:
    plain = from_plain({"privacy": "none"})
    assert "retriever" not in plain.resolved()
    assert not plain.retriever.active
    assert made().resolved()["retriever"] == {"pairs": "turns", "pool": "tokens", "temperature": 0.05}
