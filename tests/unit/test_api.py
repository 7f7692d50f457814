"""The Python API where no run begins: what a result shows, and what is refused before a folder is made."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgewise


def test_a_result_shows_itself_in_a_line() -> None:
    figures = {
        "base": {"weighted_mean": 565.6, "median": 1.0},
        "federated": {"weighted_mean": 147.2},
        "centralised": None,
    }
    shown = repr(edgewise.Result(Path("runs/mine"), {"perplexity": figures, "per_device": ["long"] * 1000}))
    assert shown == "Result('runs/mine', perplexity={'base': 565.6, 'federated': 147.2})"


def test_parts_that_do_not_exist_are_refused_before_a_folder_is_made(folder: Path) -> None:
    with pytest.raises(edgewise.EdgewiseError, match=r"E-NAME: \[\[stage\]\] 1: .*quantise.*did you mean `quantize`"):
        edgewise.simulate({"privacy": "none", "stage": [{"kind": "quantise"}]}, out="run")
    assert not list(folder.iterdir())
