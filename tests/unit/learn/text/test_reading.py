"""The record of what was read and what was not, counted by hand, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.apps.report import data_read as said
from edgewise.core.errors import DataError
from edgewise.core.keys import root
from edgewise.learn.text.blocks import BlockStore
from edgewise.learn.text.corpus import load
from edgewise.learn.text.reading import MOST_DEVICES, SOME_DEVICES, reading
from edgewise.plan.recipe.recipe import DataSection


class Letters:
    """A tokenizer by which every byte is a token, so that a person can count."""

    start = end = 0
    digest = "letters"

    def encode(self, texts: list[str], limit: int = 0) -> list[Any]:
        import numpy as np

        return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]

    def length_of_first(self, text: str, n: int) -> int:
        return len(text.encode()[:n].decode(errors="ignore"))


def read(folder: Path, most_bytes: int = 0, **more: object) -> dict[str, Any]:
    section = DataSection(**{"sequence_len": 8, **more})  # type: ignore[arg-type]
    corpus = load(section, folder, folder / "cache", root(0))
    store = BlockStore(corpus, Letters(), section, folder / "cache")  # type: ignore[arg-type]
    return reading(corpus, section, store.open, most_bytes)


def test_text_is_counted_by_hand(tmp_path: Path) -> None:
    notes = tmp_path / "n"
    for name, raw in {
        "ann/1.txt": b"\xef\xbb\xbf" + b"a" * 20,
        "ann/2.txt": b"b\xff" * 5,
        "ann/3.txt": b"",
        "bob/1.txt": b"c" * 100,
        "cyd/1.txt": b"d",
        "dan/1.txt": b"\0" * 9,
        "eve/1.txt": b"ee",
    }.items():
        (notes / name).parent.mkdir(parents=True, exist_ok=True)
        (notes / name).write_bytes(raw)
    r = read(tmp_path, source="text", path="n", max_tokens=40)
    assert (r["devices"], r["examined"]) == (5, 5)
    assert r["files"] == {"read": 7, "left_out": {"empty files": 1}}
    text = {"documents": 5, "characters": 20 + 10 + 100 + 1 + 2, "replaced": 5, "tokens": 20 + 20 + 40 + 1 + 2}
    assert {k: v for k, v in r["text"].items() if v} == {**text, "cut": 1, "characters_beyond": 60}
    # ann: 20 letters and 5 of "b\ufffd" (one and three bytes); a tenth of 20 and of 20 is held out
    ann_train, ann_held = 18 + 18, (2 - 1) + 1 + (2 - 1) + 1  # the first token held out is only read, the end is not
    bob_train, bob_held = 36, 4 - 1  # cut at 40: no end
    cyd, eve = 1 + 1, 2 + 1  # too short for a hold-out
    assert (r["train_tokens"], r["held_tokens"]) == (ann_train + bob_train + cyd + eve, ann_held + bob_held)
    assert r["cannot"] == {"too_little": 0, "unreadable": 1, "no_holdout": 2}
    assert r["example"].startswith("dan: dan/1.txt@0: not text (it has NUL bytes). Fix: keep only text")
    lines = dict(said.data_read_rows(r))
    assert lines["files"] == "7 read; left out: empty files (1)"
    assert lines["not UTF-8"] == "5 bad bytes became U+FFFD in the text"
    assert lines["held out"] == "the last 10 % of each file"
    assert lines["max_tokens"].startswith(
        "45 % of the text is beyond data.max_tokens = 40 of a device, about 68 tokens"
    )
    assert "of 5 devices, 1 that cannot be read (dan: dan/1.txt@0" in lines["devices"]
    assert any("2 with too little text for a hold-out" in note for note in said.notes(r))
    assert not any("U+FFFD" in note for note in said.notes(r))


def test_prompts_are_counted_by_hand(tmp_path: Path) -> None:
    rows = [("a", 4, 2), ("a", 4, 10), ("a", 12, 3), ("a", 90, 1), ("a", 1, 1)]  # letters of prompt and answer
    lines = [json.dumps({"o": o, "p": "p" * p, "text": "t" * t}) for o, p, t in rows]
    (tmp_path / "t.jsonl").write_text("\n \n".join(lines) + "\n")
    r = read(tmp_path, source="jsonl", path="t.jsonl", owner="o", prompt="p", max_tokens=60, holdout=0.01)
    assert r["rows"] == {"read": 5, "left_out": {"blank lines": 4}}
    t = r["text"]
    assert (t["documents"], t["beyond"], t["prompts_over"], t["characters_beyond"]) == (5, 1, 1, 1)
    # The last row is held out. Trained: [start pppp tt end] fits 8 + 1; [start pppp t*10 end]: t 5 to 14 and the end at
    # 15, those from 9 on in the second block, which begins with token 8, a t; [start p*12 ttt end]: t at 13 and the end
    # at 16 are in the block that begins with token 8, a p.
    assert (t["answers"], t["answers_short"]) == (3, 2)
    assert (t["answer_tokens"], t["tokens_short"], t["tokens_blind"]) == (3 + 11 + 4, 7 + 4, 7)
    assert r["train_tokens"] == 18
    lines = dict(said.data_read_rows(r))
    assert lines["prompts"].startswith(
        "67 % of the answers (2 of 3) see less than their whole prompt: 61 % of all their"
    )
    assert "39 % without any of it. Blocks have data.sequence_len = 8 tokens" in lines["prompts"]
    assert lines["long prompts"].startswith("1 row is not used: the prompt alone is as long as data.max_tokens = 60")
    assert lines["held out"] == "the last 1.0 % of each device's rows in their order, whole rows"
    assert said.notes(r)[0].startswith("67 % of the answers")


def test_nothing_left_out_is_nothing_said(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("o,text,at\n" + "a,some words,1\n" * 9)
    r = read(tmp_path, source="csv", path="t.csv", owner="o", time="at")
    assert said.notes(r) == []
    assert [name for name, _ in said.data_read_rows(r)] == ["files", "rows", "tokens", "held out"]
    assert dict(said.data_read_rows(r))["held out"] == "the last 10 % of each device's rows by `at`"


def test_pieces_of_files_say_what_the_hold_out_is(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a line of words\n" * 400)
    r = read(tmp_path, source="text", path="t.txt", partition="iid", devices=2)
    assert dict(said.data_read_rows(r))["held out"].endswith("the device trains on the beginning of the same piece")


@pytest.mark.slow
@pytest.mark.parametrize(("most_bytes", "examined"), [(0, SOME_DEVICES), (4 * 70, 4), (1, 1)])
def test_of_many_devices_some_are_counted(tmp_path: Path, most_bytes: int, examined: int) -> None:
    rows = (json.dumps({"o": f"{i:04d}", "text": f"{i:040d}"}) for i in range(MOST_DEVICES + 1))
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    r = read(tmp_path, most_bytes, source="jsonl", path="t.jsonl", owner="o")
    assert (r["devices"], r["examined"], r["rows"]["read"]) == (MOST_DEVICES + 1, examined, MOST_DEVICES + 1)
    assert r["text"]["characters"] == 40 * examined
    assert dict(said.data_read_rows(r))["tokens"].endswith(f"on {examined} of the devices")


def test_documents_that_are_left_out_one_by_one_are_counted(tmp_path: Path) -> None:
    for name, raw in {"a/1.txt": b"words " * 9, "a/2.txt": b"\0", "b/1.txt": b"words " * 9}.items():
        (tmp_path / "n" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "n" / name).write_bytes(raw)
    (tmp_path / "n" / "b" / "gone").symlink_to(tmp_path / "nowhere")
    section = DataSection(source="text", path="n", sequence_len=8)
    corpus = load(section, tmp_path, tmp_path / "cache", root(0), lenient=True)
    store = BlockStore(corpus, Letters(), section, tmp_path / "cache", apart=True)  # type: ignore[arg-type]
    for _ in range(2):
        r = reading(corpus, section, store.open)
        assert (r["unread_documents"], r["cannot"]["unreadable"]) == (2, 0)
    assert dict(said.data_read_rows(r))["unread"] == "2 documents cannot be read and are left out"


def test_a_device_that_the_limit_leaves_nothing_says_so(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    import tiny_model

    from edgewise.core.frame import LocalRule
    from edgewise.core.training import FitRequest
    from edgewise.learn.text.trainer import make
    from edgewise.plan.recipe.recipe import from_plain

    tiny_model.save(tmp_path / "model")
    (tmp_path / "t.jsonl").write_text(json.dumps({"o": "a", "p": "many words " * 50, "text": "yes"}) + "\n")
    data = {"source": "jsonl", "path": "t.jsonl", "owner": "o", "prompt": "p", "sequence_len": 16, "max_tokens": 30}
    recipe = from_plain({"schema": 1, "name": "x", "privacy": "none", "model": {"base": "model"}, "data": data})
    trainer = make(recipe, tmp_path, tmp_path / "cache")
    request = FitRequest("a", 0, trainer.initial(), LocalRule(steps=1, lr=0.1), bytes(32), bytes(32))
    for ask in (lambda: trainer.fit(request), lambda: trainer.evaluate("a", trainer.initial())):
        with pytest.raises(DataError, match=r"data\.max_tokens = 30 leaves out texts of it, since a prompt alone") as e:
            ask()
        assert (e.value.code, e.value.fix) == ("E-DEVICE-DATA", "raise data.max_tokens.")
    assert trainer.describe()["reading"]["cannot"]["too_little"] == 1


def test_owners_that_look_alike_are_told(tmp_path: Path) -> None:
    owners = ["ann", "Ann ", "ANN", "bob", "bo b", "stra\u00dfe", "STRASSE"]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"who": o, "text": "some words"}) + "\n" for o in owners))
    r = read(tmp_path, source="jsonl", path="t.jsonl", owner="who")
    assert (r["devices"], r["alike"]) == (7, {"names": 5, "example": ["ANN", "Ann ", "ann"]})
    assert "5 devices differ from another one" in dict(said.data_read_rows(r))["names"]
    assert any("'ANN', 'Ann ' and 'ann'" in note for note in said.notes(r))
    assert "names" not in dict(said.data_read_rows({key: value for key, value in r.items() if key != "alike"})), (
        "an older run"
    )
    assert "names" not in dict(said.data_read_rows(read(tmp_path, source="jsonl", path="t.jsonl", owner="text")))
