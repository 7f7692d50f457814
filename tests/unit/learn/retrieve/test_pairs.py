"""A retriever: pairs of own documents, their loss, their trainer, and an index that a run's model makes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
import torch
from typer.testing import CliRunner

from edgewise import simulate
from edgewise.apps.cli import main
from edgewise.core.errors import DataError, ModelError, TrainingError
from edgewise.core.frame import LocalRule
from edgewise.core.keys import root
from edgewise.core.training import FitRequest, StepNoise
from edgewise.learn.models.load import load
from edgewise.learn.retrieve import pairs
from edgewise.learn.retrieve.index import passages, sentences
from edgewise.learn.retrieve.loss import PairLoss, represented
from edgewise.learn.retrieve.pairs import TextPair, pairs_of
from edgewise.learn.retrieve.trainer import EVAL_PAIRS, make
from edgewise.learn.text.corpus import Document
from edgewise.plan.recipe.recipe import from_plain

ADAPTER = {"kind": "lora", "rule": "fedit", "targets": ["embed_tokens"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    tiny_model.save(folder / "model")
    for name, first in (("ann", 0), ("bob", 100), ("one", 999)):
        (folder / "talks" / name).mkdir(parents=True)
        for at in range(first, min(first + 40, 1000), 20):
            lines = [f"where is fox {i}?\nfox {i} jumps\n" for i in range(at, min(at + 20, 1000))]
            (folder / "talks" / name / f"{at}.txt").write_text("".join(lines))
    return folder


def plain(**sections: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "privacy": "none",
        "model": {"base": "model", "precision": "float32"},
        "trainable": ADAPTER,
        "data": {"source": "text", "path": "talks", "sequence_len": 32},
        "training": {"batch": 16, "lr": 0.02},
        "retriever": {"pairs": "turns"},
    }
    return {**base, **{k: {**base.get(k, {}), **v} if isinstance(v, dict) else v for k, v in sections.items()}}


def trainer(place: Path, **sections: Any) -> Any:
    return make(from_plain(plain(**sections)), place, place / "cache")


def test_pairs_of_each_kind() -> None:
    talk = Document("a", "asked", "One? \n\n Two.\nThree! Four.")
    assert pairs_of(talk, "rows") == [TextPair("asked", "One? \n\n Two.\nThree! Four.")]
    assert pairs_of(talk, "turns") == [TextPair("One?", "Two."), TextPair("Two.", "Three! Four.")]
    (one,) = pairs_of(talk, "cloze")
    assert sorted([one.question, *sentences(one.passage)]) == sorted(["One?", "Two.", "Three!", "Four."])
    many = " ".join(f"Fox number {i} jumps over dog {i}." for i in range(200))
    made = pairs_of(Document("a", "", many), "cloze")
    assert len(made) == len(passages(many)) > 9
    assert len({sentences(whole).index(one.question) for one, whole in zip(made, passages(many), strict=True)}) > 3
    assert not any(
        pairs_of(Document("a", "", text), how) for text in ("", "One.") for how in ("turns", "cloze", "rows")
    )
    assert "Two" not in repr(pairs_of(talk, "turns"))


def test_a_row_is_a_question_its_passage_and_padding(place: Path) -> None:
    t = trainer(place)
    row = np.array(t.text("ann").blocks.train_NS[0])
    split = int((row >= 0).argmax())
    text = row[split:][row[split:] >= 0]
    assert t.loaded.tokens.decode(~row[:split]) == "where is fox 0?"
    assert t.loaded.tokens.decode(text) == "fox 0 jumps"
    assert (row[split + len(text) :] < 0).all()


def test_a_long_question_leaves_room_for_its_passage(place: Path) -> None:
    t = trainer(place, data={"sequence_len": 8})
    rows = np.array(t.text("ann").blocks.train_NS)
    assert ((rows >= 0).sum(1) >= 4).all()
    assert ((rows >= 0).cumsum(1) == 0).sum(1).max() == 4


def test_whole_documents_are_held_out_where_there_are_several(place: Path) -> None:
    blocks = trainer(place).text("ann").blocks
    assert (len(blocks.train_NS), len(blocks.held_NS)) == (39, 39), "of two files with 39 pairs each, the last"
    shares = [[np.zeros(2)] * n for n in (6, 2, 1, 1)]
    assert [len(part) for part in pairs._held_out(shares, 0.2)] == [8, 2]
    assert [len(part) for part in pairs._held_out(shares[:1], 0.34)] == [4, 2]


def test_a_limit_of_tokens_bounds_the_pairs(place: Path) -> None:
    blocks = trainer(place, data={"max_tokens": 100}).text("ann").blocks
    assert 50 < blocks.counts[8] <= 100
    assert len(blocks.train_NS) < 10


def test_the_loss_is_that_of_its_formula(place: Path) -> None:
    model, rows = load("model", place).model, [[~5, 6, 7, ~0], [~8, ~9, 10, ~0], [~11, 6, 7, ~0]]
    e = model.get_input_embeddings().weight.detach().double()

    def unit(ids: list[int]) -> Any:
        return e[ids].mean(0) / e[ids].mean(0).norm()

    q, p = [unit([5]), unit([8, 9]), unit([11])], [unit([6, 7]), unit([10]), unit([6, 7])]
    scores = [[float(a @ b) / 0.1 for b in p] for a in q]
    others = [[0, 1], [0, 1, 2], [1, 2]]  # Passages 0 and 2 are the same.
    expected = [math.log(sum(math.exp(scores[i][j]) for j in others[i])) - scores[i][i] for i in range(3)]
    found, n = PairLoss("tokens", 0.1, torch.float32)(model, (torch.tensor(rows), 4))
    assert (found.item(), n) == (pytest.approx(sum(expected) / 3, abs=1e-5), 3.0)
    alone, _ = PairLoss("tokens", 0.1, torch.float32)(model, (torch.tensor(rows[:1]), 2))
    assert alone.item() == 0.0


@pytest.mark.parametrize("pool", ["tokens", "states"])
def test_a_text_has_the_vector_that_an_index_gives_it(place: Path, pool: Any) -> None:
    """The same text asks and answers, whatever stands before and behind it."""
    model, loss = load("model", place).model, PairLoss(pool, 0.05, torch.float32)
    rows = torch.tensor([[~5, ~6, ~7, 5, 6, 7, ~0, ~0], [~9, 5, 6, 7, 8, 9, 10, ~0]])
    asked = loss._vectors(model, rows, (rows >= 0).cumsum(1) == 0)
    said = loss._vectors(model, rows, rows >= 0)
    indexed = represented(model, torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool), pool)
    assert torch.allclose(asked[0], indexed[0], atol=1e-6)
    assert torch.allclose(said[0], indexed[0], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["tokens", "states"])
def test_training_tells_held_out_passages_apart(place: Path, pool: str) -> None:
    more = {} if pool == "tokens" else {"trainable": {"targets": ["all-linear"]}}
    t = trainer(place, retriever={"pool": pool}, **more)
    request = FitRequest("ann", 0, t.initial(), LocalRule(steps=40, lr=0.02), root(1), root(1))
    before = t.evaluate("ann", t.initial())
    assert before.tokens == 39, "pairs"
    assert t.evaluate("ann", t.initial() + t.fit(request).x).nll < before.nll - 0.2 * before.tokens


def test_held_out_pairs_come_in_equal_batches_up_to_the_limit(place: Path) -> None:
    shard = trainer(place).text("ann")
    assert [len(rows) for rows, _ in shard.held_out()] == [EVAL_PAIRS, 7]
    few = trainer(place, eval={"max_tokens": 64}).text("ann")
    assert sum(int((rows >= 0).sum()) for rows, _ in few.held_out()) <= 64


def test_a_device_with_one_pair_cannot_train(place: Path) -> None:
    t = trainer(place)
    with pytest.raises(DataError, match="fewer than two pairs"):
        t.fit(FitRequest("one", 0, t.initial(), LocalRule(steps=1, lr=0.02), root(1), root(1)))


def test_parameters_that_no_vector_reads_are_refused(place: Path) -> None:
    with pytest.raises(ModelError, match=r'targets = \["embed_tokens"\]'):
        trainer(place, trainable={"targets": ["all-linear"]})
    with pytest.raises(TrainingError, match="mixes the pairs"):
        trainer(place).noise_steps(StepNoise(0.1, 1.0, 1.0))


def run(*words: object) -> Any:
    return json.loads(CliRunner().invoke(main.app, [*map(str, words), "--json"]).stdout)


@pytest.mark.slow
def test_an_index_by_a_run_is_refused_once_the_run_has_another_model(place: Path, tmp_path: Path) -> None:
    """The same recipe under masks trains the same kind of run, and ``index`` takes its adapter and its pooling."""
    recipe = plain(privacy="hidden", round={"rounds": 2}, trust={"malicious_fraction": 0.0, "dropout_fraction": 0.0})
    recipe["merge"], recipe["training"] = {"kind": "secure_sum"}, {"batch": 16, "lr": 0.02, "local_steps": 3}
    recipe["model"]["base"], recipe["data"]["path"] = str(place / "model"), str(place / "talks")
    recipe["round"] |= {"minimum": 0.6}
    for seed in (0, 1):
        simulate({**recipe, "seed": seed, "name": "x"}, out=tmp_path / f"run{seed}")
    index = tmp_path / "x.index"
    assert run("index", "--documents", place / "talks", "--model", tmp_path / "run0", "--out", index)["documents"]
    assert run("ask", index, "where is fox 3?", "--by", "meaning")["passages"]
    other = run("ask", index, "where is fox 3?", "--by", "meaning", "--model", tmp_path / "run1")
    assert other["error"]["code"] == "E-INDEX-MODEL"
    assert (
        run("index", "--documents", place / "talks", "--pool", "sum", "--out", tmp_path / "y")["error"]["code"]
        == "E-USE"
    )
