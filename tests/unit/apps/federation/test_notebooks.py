"""Objects in a notebook: a table as a DataFrame, the page of a check, Hugging Face datasets as data."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import datasets
import pandas
import pytest
import torch

import edgewise as ew
from edgewise.apps.federation import texts
from edgewise.apps.federation.checked import Checked
from edgewise.apps.federation.run import Table
from edgewise.core.frame import LocalRule
from edgewise.core.training import FitRequest
from edgewise.learn.task import TaskTrainer
from edgewise.plan.recipe.data import DataSection
from edgewise.plan.recipe.recipe import from_plain

ROWS = [
    {"question": "one?", "answer": "the kettle boils", "unused": 1},
    {"question": "two?", "answer": "roses need water", "unused": 2},
]


def test_a_table_becomes_a_data_frame() -> None:
    rows = [{"round": 0, "loss": 2.5, "met": True}, {"round": 1, "loss": 2.25, "met": True, "epsilon": 0.5}]
    frame = Table(rows, "rounds").to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["round", "loss", "met", "epsilon"]
    assert (frame["round"].dtype.kind, frame["loss"].dtype.kind, frame["met"].dtype.kind) == ("i", "f", "b")
    assert frame["epsilon"].isna().tolist() == [True, False]
    assert len(Table([], "rounds").to_pandas()) == 0


def test_a_table_without_pandas_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ew.EdgewiseError, match=r"E-DEPENDENCY.*pandas"):
        Table([], "rounds").to_pandas()


def test_a_check_shows_its_page_in_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a kernel rich would display each part of the page at once, and the page itself would be empty."""
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(
        "edgewise.apps.simulate.check_screen.show_check",
        lambda console, facts, name: console.print("the <page> of", name),
    )
    found = Checked({"population": 3, "rounds": 2}, "toy")
    assert found._repr_html_() == "<pre>the &lt;page&gt; of toy\n</pre>"
    assert str(found) == "the <page> of toy\n"


def test_datasets_of_hugging_face_are_data_for_a_language_model() -> None:
    """They are written as the same rows in a list, byte for byte."""
    section = DataSection(source="jsonl", path="x", owner=texts.OWNER, prompt="question", text="answer")

    def stream() -> Iterator[dict[str, Any]]:
        yield from ROWS

    forms = {
        "table": datasets.Dataset.from_list(ROWS),
        "stream": datasets.IterableDataset.from_generator(stream),
        "column of torch": datasets.Dataset.from_list(ROWS).with_format("torch"),
        "made later": lambda: datasets.Dataset.from_list(ROWS),
    }
    wanted = list(texts.device_text_lines({"d": ROWS}, section))
    for form, given in forms.items():
        assert list(texts.device_text_lines({"d": given}, section)) == wanted, form
    with pytest.raises(ew.EdgewiseError, match=r"E-DATA-FORMAT.*DatasetDict"):
        list(texts.device_text_lines({"d": datasets.DatasetDict(train=forms["table"])}, section))
    with pytest.raises(ew.EdgewiseError, match=r"E-DATA-COLUMN.*'question'"):
        list(texts.device_text_lines({"d": datasets.Dataset.from_list([{"answer": "alone"}])}, section))


def test_datasets_of_hugging_face_are_data_for_a_torch_task() -> None:
    """They train as the same records in a list do, to the same bytes."""
    records = [{"x": [float(i), 1.0], "y": [float(2 * i)]} for i in range(8)]
    recipe = from_plain({"privacy": "none", "training": {"local_steps": 3, "batch": 2}})

    def loss(net: torch.nn.Module, batch: Any) -> torch.Tensor:
        return ((net(batch["x"]) - batch["y"]) ** 2).mean()

    def trained(data: Any) -> bytes:
        torch.manual_seed(0)
        trainer = TaskTrainer(ew.TorchTask(torch.nn.Linear(2, 1), loss), {"d": data}, recipe)
        request = FitRequest("d", 0, trainer.initial(), LocalRule(steps=3, lr=0.1), bytes(32), bytes(32))
        return trainer.fit(request).x.tobytes()

    tensors = [{key: torch.tensor(value) for key, value in record.items()} for record in records]
    table = datasets.Dataset.from_list(records).with_format("torch")
    assert trained(table) == trained(tensors)
    with pytest.raises(ew.EdgewiseError, match=r"E-DATA-FORMAT.*IterableDataset.*no numbers"):
        trained(table.to_iterable_dataset())
