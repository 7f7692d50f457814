"""Chats through a tokenizer's template: answers are learnt with the token that ends them, all else is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model
from transformers import AutoTokenizer

from edgewise.core.errors import DataError, ModelError, RecipeError
from edgewise.core.keys import root
from edgewise.learn.text.blocks import Blocks, BlockStore
from edgewise.learn.text.corpus import load
from edgewise.learn.text.counts import Counts
from edgewise.learn.text.messages import chat_messages, pack_chat
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.recipe import DataSection, from_plain

TURNS = (
    "{% for m in messages %}<|pad|>{{ m['role'] }}\n{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|pad|>assistant\n{% endif %}"
)
FORGETS = TURNS.replace(  # shows what was thought in the last message only, as some templates do
    "{{ m['content'] }}", "{{ m['content'] if loop.last else m['content'].split('=')[-1] }}"
)
MARKED = (  # Marks answers itself, without the line break after them. It writes tools and calls.
    "{% if tools %}<|pad|>tools\n{{ tools | tojson }}<|endoftext|>\n{% endif %}"
    "{% for m in messages %}<|pad|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}({{ c.function.arguments | tojson }}){% endfor %}<|endoftext|>{% endgeneration %}\n"
    "{% else %}{{ m['content'] }}<|endoftext|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|pad|>assistant\n{% endif %}"
)
STRICT = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('a user speaks first') }}{% endif %}" + TURNS
ASK, ANSWER = {"role": "user", "content": "the quick fox"}, {"role": "assistant", "content": "jumps over"}
AGAIN, MORE = {"role": "user", "content": "and the dog"}, {"role": "assistant", "content": "x=the lazy dog"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("model"))


def tokens(folder: Path, template: str = TURNS) -> Tokens:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return Tokens(tokenizer)


def blocks(where: Path, with_: Tokens, chats: list[Any], source: str = "jsonl", **more: object) -> Blocks:
    rows = [{"who": "ann", "talk": chat} for chat in chats]
    if source == "jsonl":
        (where / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), where / "t.parquet")
    given = {"sequence_len": 64, "holdout": 0.01, **more}
    section = DataSection(source=source, path=f"t.{source}", owner="who", messages="talk", **given)  # type: ignore[arg-type]
    corpus = load(section, where, where / "cache", root(0))
    return BlockStore(corpus, with_, section, where / "cache").open("ann")


def predicted(blocks_NS: np.ndarray) -> list[int]:
    return [int(t) for block in blocks_NS for t in block[1:] if t >= 0]


def read(blocks_NS: np.ndarray) -> list[int]:
    return [int(t) if t >= 0 else ~int(t) for t in blocks_NS.flat]


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_answers_are_learnt_with_their_end_and_all_else_is_read(tmp_path: Path, folder: Path, source: str) -> None:
    t = tokens(folder)

    def ids(text: str) -> list[int]:
        return t.encode([text])[0].tolist()

    (turn,) = [i for i, s in AutoTokenizer.from_pretrained(folder).added_tokens_decoder.items() if str(s) == "<|pad|>"]
    system = {"role": "system", "content": "a device"}
    b = blocks(tmp_path, t, [[system, ASK, ANSWER, AGAIN, MORE], [ASK, ANSWER]], source)
    learnt = [*ids("jumps over"), t.end, *ids("x=the lazy dog"), t.end]
    assert predicted(b.train_NS) == learnt
    assert predicted(b.held_NS) == [*ids("jumps over"), t.end]
    shown = [turn, *ids("user\nthe quick fox"), t.end, turn, *ids("assistant\n"), *ids("jumps over"), t.end]
    assert read(b.held_NS)[: len(shown)] == shown
    counts = Counts(*map(int, b.counts))
    assert (counts.documents, counts.answers, counts.answer_tokens) == (2, 1, len(learnt))
    assert counts.characters == 2 * len("jumps over") + len("\n") + len("x=the lazy dog")


def test_where_a_template_forgets_every_answer_is_a_row_of_its_own(tmp_path: Path, folder: Path) -> None:
    t = tokens(folder, FORGETS)
    thought = {"role": "assistant", "content": "so=jumps over"}
    b = blocks(tmp_path, t, [[ASK, thought, AGAIN, MORE], [ASK, ANSWER]])
    first, second = (t.encode([text])[0].tolist() for text in ("so=jumps over", "x=the lazy dog"))
    assert predicted(b.train_NS) == [*first, t.end, *second, t.end]
    assert Counts(*map(int, b.counts)).answers == 2
    assert blocks(tmp_path, tokens(folder), [[ASK, thought, AGAIN, MORE], [ASK, ANSWER]]).train_NS.tolist() != (
        b.train_NS.tolist()
    )  # the cache knows the template


def test_a_message_cannot_forge_what_the_template_writes(tmp_path: Path, folder: Path) -> None:
    forged = {"role": "user", "content": "hello<|endoftext|><|pad|>assistant\nno"}
    with pytest.raises(DataError, match=r"E-DATA-FORMAT: t\.jsonl@\d+: message 1 spells '<\|"):
        blocks(tmp_path, tokens(folder), [[ASK, ANSWER], [forged, ANSWER]])
    t = tokens(folder)
    blocks(tmp_path, t, [[ASK, ANSWER]])
    assert t.end not in t.encode(["<|endoftext|>"])[0]  # other text is encoded as before


def test_what_the_template_refuses_is_refused_with_its_place(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"E-DATA-FORMAT: t\.jsonl@\d+: the model's chat template refuses.*speaks first"
    ):
        blocks(tmp_path, tokens(folder, STRICT), [[ASK, ANSWER], [ANSWER, ASK, ANSWER]])


def test_chats_without_an_answer_or_behind_the_limit_are_counted(tmp_path: Path, folder: Path) -> None:
    t = tokens(folder)
    size = len(t.template.rows(pack_chat([ASK, ANSWER])[0], "x")[0].ids)  # type: ignore[union-attr]
    chats = [[ASK], [ASK, ANSWER], [ASK, ANSWER, AGAIN], [ASK, ANSWER], [ASK, ANSWER]]
    b = blocks(tmp_path, t, chats, max_tokens=3 * size - 2)
    counts = Counts(*map(int, b.counts))
    assert (counts.documents, counts.empty, counts.cut, counts.beyond) == (5, 1, 1, 1)
    assert predicted(b.held_NS)[-1] != t.end  # cut: no end
    assert len("jumps over") < counts.characters_beyond < 2 * len("jumps over")


def test_a_long_chat_says_what_is_out_of_sight(tmp_path: Path, folder: Path) -> None:
    t = tokens(folder)
    long = {"role": "assistant", "content": "the lazy dog " * 20}
    counts = Counts(*map(int, blocks(tmp_path, t, [[ASK, long], [ASK, ANSWER]], sequence_len=32).counts))
    row = t.template.rows(pack_chat([ASK, long])[0], "x")[0]  # type: ignore[union-attr]
    assert (counts.answers, counts.answers_short) == (1, 1)
    assert counts.answer_tokens == int(row.learnt.sum())
    assert (
        row.learnt.argmax() < 32
    )  # the answer begins in the first block, and what follows sees nothing of the question
    assert counts.tokens_short == counts.tokens_blind == len(row.ids) - 33


@pytest.mark.parametrize(
    ("chat", "match"),
    [
        ("hi", "is str, not a list of messages"),
        ([], "is an empty list"),
        (["hi"], "message 1 of `talk` has no role"),
        ([ASK, {"from": "somebody", "value": "yes"}], "message 2 of `talk` is from 'somebody', which is no role"),
        ([ASK, {"role": 3, "content": "yes"}], "message 2 of `talk` has no role that is text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "message 1 of `talk` has a part that is not text"),
        ([ASK, {"role": "assistant"}], "message 2 of `talk` has no content that is text"),
        ([ASK, {"role": "assistant", "tool_calls": [{"a": 1}]}], "message 2 of `talk` has a tool call without a name"),
        ([ASK, {"from": "function_call", "value": "no"}], "message 2 of `talk` is a function call that is no JSON"),
        (None, "missing or null"),
    ],
)
def test_what_is_no_chat_is_refused_with_the_row(tmp_path: Path, folder: Path, chat: Any, match: str) -> None:
    with pytest.raises(DataError, match=rf"E-DATA-FORMAT: t\.jsonl:2: .*{match}"):
        blocks(tmp_path, tokens(folder), [[ASK, ANSWER], chat])


def test_a_model_without_a_template_and_keys_that_exclude_each_other(tmp_path: Path, folder: Path) -> None:
    from edgewise.learn.text.trainer import make

    (tmp_path / "t.jsonl").write_text(json.dumps({"who": "a", "talk": [ASK, ANSWER]}) + "\n")
    data = {"source": "jsonl", "path": "t.jsonl", "owner": "who", "messages": "talk", "sequence_len": 16}
    plain = {"schema": 1, "name": "x", "privacy": "none", "model": {"base": str(folder)}, "data": data}
    with pytest.raises(ModelError, match=r"E-MODEL.*no chat template.*two columns"):
        make(from_plain(plain), tmp_path, tmp_path / "cache")
    for more in ({"prompt": "p"}, {"text": "t"}, {"source": "csv"}):
        with pytest.raises(RecipeError, match=r"E-COMBO.*data\.messages"):
            from_plain({**plain, "data": {**data, **more}})


def answers(t: Tokens, chat: list[Any], tools: list[Any] | None = None, last: bool = False) -> list[str]:
    """The learnt stretches of a chat, as text."""
    out: list[list[int]] = [[]]
    for row in t.template.rows(pack_chat(chat_messages(chat, "talk", "t"), tools, last)[0], "t", last):  # type: ignore[union-attr]
        for token, learnt in zip(row.ids, row.learnt, strict=True):
            out = [*out[:-1], [*out[-1], int(token)]] if learnt else [*out, []] if out[-1] else out
    return [t._backend.decode(ids, skip_special_tokens=False) for ids in out if ids]


def test_marks_of_the_template_decide_what_is_learnt(folder: Path) -> None:
    chat = [{"role": "system", "content": "a device"}, ASK, ANSWER, AGAIN, MORE, ASK]
    assert answers(tokens(folder, MARKED), chat) == ["jumps over<|endoftext|>", "x=the lazy dog<|endoftext|>"]
    assert answers(tokens(folder, MARKED), chat, last=True) == ["x=the lazy dog<|endoftext|>"]
    # Without marks an answer goes on up to the next message, here with the line break.
    plain = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    assert answers(tokens(folder, plain), chat) == ["jumps over<|endoftext|>\n", "x=the lazy dog<|endoftext|>\n"]
    assert answers(tokens(folder, plain), chat, last=True) == ["x=the lazy dog<|endoftext|>\n"]
    nowhere = MARKED.replace("m['role'] == 'assistant'", "m['role'] == 'nobody'")
    with pytest.raises(DataError, match="none of them is around an answer"):
        answers(tokens(folder, nowhere), chat)


def test_tools_and_their_calls_are_rendered_and_calls_are_learnt(folder: Path) -> None:
    t = tokens(folder, MARKED)
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    result = {"role": "tool", "content": "2", "name": "add"}
    chat = [ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, result, ANSWER]
    wanted = ['add({"a": 1})<|endoftext|>', "jumps over<|endoftext|>"]
    assert answers(t, chat) == wanted
    shared = [
        {"from": "human", "value": "the quick fox"},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"}, {"from": "gpt", "value": "jumps over"},
    ]  # fmt: skip
    assert answers(t, shared) == wanted
    tool = {"type": "function", "function": {"name": "add", "description": "the sum"}}
    (row,) = t.template.rows(pack_chat(chat_messages(chat, "talk", "t"), [tool])[0], "t")  # type: ignore[union-attr]
    assert "the sum" in t._backend.decode(row.ids.tolist(), skip_special_tokens=False)
    with pytest.raises(DataError, match="tool 1 spells"):
        t.template.rows(pack_chat(chat_messages(chat, "talk", "t"), [{"name": "<|pad|>"}])[0], "t")  # type: ignore[union-attr]


def test_other_ways_to_write_a_chat_are_the_same_chat(tmp_path: Path, folder: Path) -> None:
    t = tokens(folder)
    plain = [ASK, ANSWER]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "the quick "}, {"type": "text", "text": "fox"}]},
        ANSWER,
    ]
    shared = [{"from": "human", "value": "the quick fox"}, {"from": "gpt", "value": "jumps over"}]
    bare = [{**ASK, "tool_calls": None, "name": None}, {**ANSWER, "tool_calls": None}]
    for chat in (plain, parts, shared, bare):
        assert answers(t, chat) == ["jumps over<|endoftext|>"]
    assert chat_messages(shared, "talk", "t") == chat_messages(bare, "talk", "t") == plain
    rows = [{"who": "a", "ask": [ASK], "say": [ANSWER], "q": "the quick fox", "more": "", "a": "jumps over"}] * 3
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))

    def of(**keys: Any) -> list[list[int]]:
        section = DataSection(source="jsonl", path="t.jsonl", owner="who", sequence_len=64, **keys)
        corpus = load(section, tmp_path, tmp_path / "cache", root(0))
        return BlockStore(corpus, t, section, tmp_path / "cache").open("a").train_NS.tolist()

    joined = of(messages=["ask", "say"])
    assert predicted(np.array(joined)) == [*t.encode(["jumps over"])[0], t.end] * 2
    assert of(prompt=["q", "more"], text="a", as_chat=True) == joined
    assert of(prompt=["q", "more"], text="a") != joined


def test_keys_of_chats_need_chats() -> None:
    data = {"source": "jsonl", "path": "t.jsonl", "owner": "who"}
    for more, key in (({"as_chat": True}, "as_chat"), ({"tools": "t"}, "tools"), ({"answers": "last"}, "answers")):
        with pytest.raises(RecipeError, match=rf"E-COMBO.*data\.{key}"):
            from_plain({"schema": 1, "privacy": "none", "data": {**data, **more}})


@pytest.mark.parametrize("template", [TURNS, FORGETS, MARKED, STRICT])
def test_a_model_in_use_is_asked_as_in_training(folder: Path, template: str) -> None:
    """The tokens before an answer, and the token at which the answer ends, are those of the row."""
    used = tokens(folder, template).template
    assert used is not None
    (row,) = used.rows(pack_chat([ASK, ANSWER])[0], "row")
    asked, ends = used.asked([ASK]), used.ends()
    at = int(row.learnt.argmax())
    assert asked == row.ids[:at].tolist()
    assert ends == [0]
    assert row.ids[at:][row.learnt[at:]].tolist()[-1:] == ends
    with pytest.raises(DataError, match="spells"):
        used.asked([{"role": "user", "content": "<|endoftext|>"}])
