"""An index holds what was put in, finds it again, and refuses damage, emptiness and another model."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from edgewise.apps.cli import main, retrieve_commands
from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Array
from edgewise.drivers.storage import files
from edgewise.learn.retrieve import query
from edgewise.learn.retrieve.embed import Embedder
from edgewise.learn.retrieve.index import Index, IndexedText, build, passages, read_documents, read_index

NOTES = (
    IndexedText("a", "The pump was serviced in May. The valve was replaced in June."),
    IndexedText("b", "Dogs bark at night. Cats sleep by day."),
    IndexedText("c", "The boiler is old and the valve is new."),
)
QUESTION = "When was the valve replaced?"


class Letters:
    """An embedder without a model: how often each letter stands in a text."""

    pool = "states"

    def __init__(self, name: str = "letters") -> None:
        self.name = name

    def digest(self) -> str:
        return self.name

    def __call__(self, texts: Sequence[str]) -> Array:
        counts = np.array([[t.lower().count(c) for c in map(chr, range(97, 123))] for t in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


LETTERS: Any = Letters()


@pytest.fixture
def index() -> Iterator[Index]:
    opened = read_index(build(NOTES, LETTERS, "letters"))
    yield opened
    opened.tables.close()


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of documents, and commands that embed by letters."""
    monkeypatch.setattr(
        retrieve_commands,
        "embedder",
        lambda model, pool=None: Letters(Path(model).name),
    )
    folder = tmp_path / "notes"
    folder.mkdir()
    for one in NOTES:
        (folder / f"{one.source}.txt").write_text(one.text, encoding="utf-8")
    return folder


def run(*words: object) -> Any:
    return json.loads(CliRunner().invoke(main.app, [*map(str, words), "--json"]).stdout)


@pytest.mark.parametrize("by", query.WAYS)
def test_a_passage_is_found_by_its_own_text(index: Index, by: str) -> None:
    for one in NOTES:
        found = query.search(index, LETTERS, one.text, 3, by)
        assert found[0].source == one.source
        assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)


def test_the_answer_is_the_sentence_that_shares_the_rare_words(index: Index) -> None:
    found = query.search(index, None, QUESTION, 3, query.WORDS)
    assert [f.source for f in found] == ["a", "c"]
    assert query.answer(found, QUESTION) == "The valve was replaced in June."
    assert query.answer([], QUESTION) == ""


def test_a_question_is_words_not_a_search_expression(index: Index) -> None:
    assert query.search(index, None, '"valve" NOT pump* NEAR(', 3, query.WORDS)[0].source in "ac"
    with pytest.raises(EdgewiseError, match="no word"):
        query.search(index, None, '?"', 3, query.WORDS)


def test_passages_are_whole_sentences_and_lose_nothing() -> None:
    assert passages("One. Two is longer! Three?", 12) == ["One.", "Two is longe", "r! Three?"]
    assert passages("One. Two. Three.", 9) == ["One. Two.", "Three."]
    assert passages(" \n ") == []


def test_every_changed_byte_of_an_index_is_noticed() -> None:
    raw = build(NOTES, LETTERS, "letters")
    for at in [*range(48), len(raw) // 2, len(raw) - 1]:
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(EdgewiseError) as e:
            read_index(changed)
        assert e.value.code == "E-INDEX"
    with pytest.raises(EdgewiseError):
        read_index(raw[:-1])


def test_documents_are_text_and_rows(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n', encoding="utf-8")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    found = read_documents(tmp_path)
    assert [(Path(d.source).name, d.text) for d in found] == [("b.jsonl:1", "one"), ("b.jsonl:3", "two")]
    for raw, code in ((b"\xff", "E-DATA-FORMAT"), (b"{", "E-DATA-FORMAT"), (b"[1]", "E-DATA-COLUMN")):
        (tmp_path / "b.jsonl").write_bytes(raw)
        with pytest.raises(EdgewiseError) as e:
            read_documents(tmp_path)
        assert e.value.code == code


@pytest.mark.slow
def test_index_and_ask(notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    assert run("index", "--documents", notes, "--out", out)["documents"] == 3
    assert out.stat().st_mode & 0o077 == 0
    asked = run("ask", out, QUESTION, "--top", 1)
    assert asked["answer"] == "The valve was replaced in June."
    assert [Path(p["source"]).name for p in asked["passages"]] == ["a.txt"]
    assert run("ask", out, QUESTION, "--model", "another")["error"]["code"] == "E-INDEX-MODEL"
    assert run("ask", out, QUESTION, "--by", "smell")["error"]["code"] == "E-USE"
    assert run("ask", tmp_path / "none", QUESTION)["error"]["code"] == "E-INDEX"
    before = out.read_bytes()
    assert run("index", "--documents", notes, "--out", out)["error"]["code"] == "E-FILE-EXISTS"
    assert out.read_bytes() == before


def test_nothing_to_index_leaves_no_file(notes: Path, tmp_path: Path) -> None:
    for file in notes.iterdir():
        file.write_text(" \n", encoding="utf-8")
    out = tmp_path / "x.index"
    assert run("index", "--documents", notes, "--out", out)["error"]["code"] == "E-DATA-EMPTY"
    assert run("index", "--documents", notes / "no", "--out", out)["error"]["code"] == "E-DATA-MISSING"
    assert not out.exists()


@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_no_index(notes: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.index"
    child = os.fork()
    if not child:
        files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[attr-defined,assignment]
        run("index", "--documents", notes, "--out", out)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not out.exists()
    assert run("index", "--documents", notes, "--out", out)["documents"] == 3


def test_a_text_has_the_same_vector_alone_and_among_longer_ones() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=128, max_position_embeddings=8, **sizes))
    tokens: Any = SimpleNamespace(digest="t", encode=lambda ts: [np.frombuffer(t.encode(), np.uint8) for t in ts])
    embed = Embedder(model, tokens)
    digest = embed.digest()
    together = embed(["ab", "", "a longer text", "a longer one"])
    assert np.allclose(together[0], embed(["ab"])[0], atol=1e-6)
    assert np.allclose(np.linalg.norm(together, axis=1), [1, 0, 1, 1], atol=1e-5)
    assert np.array_equal(together[2], together[3]), "they differ after the context's 8 tokens only"
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    assert embed.digest() != digest
