"""Scores of a model on rows, beside the same figures computed by hand from its logits."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_model

from edgewise.core.errors import EdgewiseError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from edgewise.learn.models.load import load

    return load(str(tiny_model.save(tmp_path_factory.mktemp("tiny"))), Path())


def read(folder: Path, *rows: dict[str, Any], **columns: str) -> Any:
    from edgewise.learn.text import evaluation_rows

    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return evaluation_rows.read_evaluation_rows(folder / "rows.jsonl", columns)


def logp(loaded: Any, before: list[int], after: list[int]) -> float:
    """log p(after | before), token by token, each from the whole text before it."""
    total, ids = 0.0, list(before)
    with torch.no_grad():
        for token in after:
            all_logits = loaded.model.eval()(torch.tensor([ids])).logits[0, -1].double()
            total += float(torch.log_softmax(all_logits, -1)[token])
            ids.append(token)
    return total


def ids(loaded: Any, text: str) -> list[int]:
    return [int(i) for i in loaded.tokens.encode([text])[0]]


def test_the_loss_of_a_text_and_of_an_answer_is_that_of_their_tokens(loaded: Any, tmp_path: Path) -> None:
    from edgewise.learn.models import scoring

    text, prompt = "the quick brown fox", "def add(a, b):"
    whole, answer = read(tmp_path, {"text": text}, {"prompt": prompt, "text": text})
    held, size = scoring.text_loss(loaded.model, loaded.tokens, whole, 64)
    wanted = logp(loaded, [0], [*ids(loaded, text), 0])
    assert (held.tokens, size) == (len(ids(loaded, text)) + 1, len(text))
    assert held.nll == pytest.approx(-wanted, rel=1e-4)
    held, size = scoring.text_loss(loaded.model, loaded.tokens, answer, 64)
    wanted = logp(loaded, [0, *ids(loaded, prompt)], [*ids(loaded, text), 0])
    assert (held.tokens, size) == (len(ids(loaded, text)) + 1, len(text))
    assert held.nll == pytest.approx(-wanted, rel=1e-4)


def test_a_large_vocabulary_makes_the_passes_of_a_text_small(
    loaded: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgewise.learn.models import memory, scoring
    from edgewise.learn.models.architecture import sizes

    (row,) = read(tmp_path, {"text": "the quick brown fox jumps over the lazy dog " * 5})
    whole, _ = scoring.text_loss(loaded.model, loaded.tokens, row, 8)
    passes: list[int] = []
    monkeypatch.setattr(memory, "EVAL_LOGITS", 16 * sizes(loaded.model).vocabulary)
    embedding = loaded.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda module, inputs, output: passes.append(inputs[0].numel()))
    try:
        parts, _ = scoring.text_loss(loaded.model, loaded.tokens, row, 8)
    finally:
        handle.remove()
    assert len(passes) > 1
    assert max(passes) <= 16
    assert (parts.tokens, parts.nll) == (whole.tokens, pytest.approx(whole.nll))


def test_choices_are_compared_by_their_likelihood(loaded: Any, tmp_path: Path) -> None:
    from edgewise.learn.models import scoring

    choices = ["the lazy dog", "i", "a device trains on its own text"]
    (row,) = read(tmp_path, {"question": "the quick", "choices": choices, "answer": "i"})
    assert row.answer == 1
    wanted = [logp(loaded, [0, *ids(loaded, "the quick")], ids(loaded, f" {c}")) for c in choices]
    found = scoring.answer_logp(loaded.model, loaded.tokens, row)
    assert found == pytest.approx(wanted, rel=1e-4)
    by_byte = [one / len(c) for one, c in zip(wanted, choices, strict=True)]
    chosen = scoring.likeliest_answer(loaded.model, loaded.tokens, row)
    assert chosen == (wanted.index(max(wanted)), by_byte.index(max(by_byte)))
    assert chosen[0] != chosen[1], "the short choice is the likelier one only as a whole"


@pytest.mark.slow  # The import of rouge-score takes seconds.
def test_figures_are_of_each_owner_and_of_all_rows(loaded: Any, tmp_path: Path) -> None:
    from edgewise.apps.models.evaluating import EvaluationRequest, evaluate_in_use
    from edgewise.apps.models.in_use import UsedModel
    from edgewise.learn.models import scoring
    from edgewise.learn.models.streaming import Decoding, prompt_token_ids, stream

    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    rows = read(
        tmp_path,
        {"who": "ann", "prompt": "for i in", "text": "range(10): print"},
        {"who": "bob", "text": "the lazy dog jumps over the quick brown fox"},
        {"who": "bob", "question": "a", "choices": ["b", "c"], "answer": 1},
        owner="who",
    )
    used = UsedModel(loaded, loaded.model, "tiny", {"global": lambda: None})
    found = evaluate_in_use(used, ["global"], rows, EvaluationRequest(length=32, rouge=True, max_tokens=8))["global"]
    nll = {r.where: scoring.text_loss(loaded.model, loaded.tokens, r, 32) for r in rows[:2]}
    (ann, ann_bytes), (bob, bob_bytes) = nll.values()
    together = ann.nll + bob.nll
    assert found["ann"]["perplexity"] == pytest.approx(math.exp(ann.nll / ann.tokens))
    assert found["all"]["perplexity"] == pytest.approx(math.exp(together / (ann.tokens + bob.tokens)))
    assert found["all"]["bits_per_byte"] == pytest.approx(together / math.log(2) / (ann_bytes + bob_bytes))
    assert (found["all"]["rows"], found["bob"]["rows"], found["ann"]["rows"]) == (3, 2, 1)
    assert (
        found["all"]["accuracy"]
        == found["bob"]["accuracy"]
        == float(scoring.likeliest_answer(loaded.model, loaded.tokens, rows[2])[0] == 1)
    )
    ids = prompt_token_ids(loaded.tokens, "for i in")
    said = stream(loaded.model, loaded.tokens, ids, Decoding(8, 0.0), lambda piece: None).text
    score = rouge.RougeScorer(["rougeL"]).score("range(10): print", said)["rougeL"].fmeasure
    assert found["all"]["rouge_l"] == found["ann"]["rouge_l"] == score
    assert "rouge_l" not in found["bob"]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question": "a", "choices": ["b"], "answer": 0}, "two choices"),
        ({"question": "a", "choices": ["b", "c"], "answer": 2}, "is no choice"),
        ({"question": "a", "choices": ["b", "c"]}, "is no choice"),
        ({"choices": ["b", "c"], "answer": 0}, "needs a question"),
        ({"text": 7}, "not text"),
        ({"prompt": "a"}, "has no text"),
        ({"messages": []}, "empty list"),
    ],
)
def test_rows_that_cannot_be_scored_are_refused_by_their_place(row: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(EdgewiseError, match=r"rows\.jsonl:2") as e:
        read(tmp_path, {"text": "fine"}, row)
    assert e.value.code == "E-DATA-FORMAT"
    assert why in e.value.what
    assert e.value.fix


def test_a_csv_file_and_a_plain_text_are_read(tmp_path: Path) -> None:
    from edgewise.learn.text import evaluation_rows

    (tmp_path / "a.csv").write_text('q,choices,answer\nwhy?,"[""x"", ""y""]",1\n', encoding="utf-8")
    (row,) = evaluation_rows.read_evaluation_rows(tmp_path / "a.csv", {"question": "q"})
    assert (row.prompt, row.choices, row.answer, row.owner) == ("why?", ("x", "y"), 1, "all")
    (tmp_path / "b.txt").write_text("two\nlines", encoding="utf-8")
    assert [r.text for r in evaluation_rows.read_evaluation_rows(tmp_path / "b.txt", {})] == ["two\nlines"]
    with pytest.raises(EdgewiseError, match="is not a column") as e:
        evaluation_rows.read_evaluation_rows(tmp_path / "a.csv", {"text": "body"})
    assert e.value.code == "E-DATA-COLUMN"
