"""From text to blocks: what is predicted, what is held out, what is only read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_model

from edgewise.core.keys import root
from edgewise.learn.text import blocks as blocks_module
from edgewise.learn.text.blocks import Blocks, BlockStore, build, predictions
from edgewise.learn.text.corpus import Document
from edgewise.learn.text.corpus import load as load_corpus
from edgewise.learn.text.counts import Counts
from edgewise.learn.text.tokens import Tokens, _text_parts, load_tokenizer
from edgewise.plan.recipe.recipe import DataSection


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    return load_tokenizer(tiny_model.save(tmp_path_factory.mktemp("model")))


def section(**more: object) -> DataSection:
    given = {"source": "jsonl", "owner": "o"} if "prompt" in more else {"source": "text"}
    return DataSection(path="x", sequence_len=16, **given, **more)  # type: ignore[arg-type]


def made(tokens: Tokens, documents: list[str], cut_each: bool = True, **more: object) -> Blocks:
    listed = [Document(f"{i}", "", t) for i, t in enumerate(documents)]
    return build(listed, tokens, section(**more), cut_each)


def predicted(blocks_NS: np.ndarray) -> list[int]:
    return [int(t) for block in blocks_NS for t in block[1:] if t >= 0]


def ids(tokens: Tokens, text: str) -> list[int]:
    return tokens.encode([text])[0].tolist()


LONG = "".join(f"word{i} " for i in range(100))


@pytest.mark.parametrize("cut_each", [True, False])
def test_hold_out_is_the_later_part_and_never_overlaps_training(tokens: Tokens, cut_each: bool) -> None:
    documents = [LONG, "".join(f"text{i} " for i in range(80))]
    b = made(tokens, documents, cut_each, holdout=0.25)
    first, second = (ids(tokens, d) for d in documents)
    n, m, end = len(first), len(second), tokens.end
    if cut_each:
        tail = round(n / 4)
        at, cut = n - tail, m - round((n + m) / 4 - tail)
        assert predicted(b.train_NS) == first[:at] + second[:cut]
        assert predicted(b.held_NS) == [*first[at + 1 :], end, *second[cut + 1 :], end]
    else:
        cut = m - round((n + m) / 4)
        assert predicted(b.train_NS) == [*first, end, *second[:cut]]
        assert predicted(b.held_NS) == [*second[cut + 1 :], end]


def test_one_file_is_split_exactly(tokens: Tokens) -> None:
    text = ids(tokens, LONG)
    cut = len(text) - round(len(text) * 0.1)
    b = made(tokens, [LONG])
    assert predicted(b.train_NS) == text[:cut]
    assert predicted(b.held_NS) == [*text[cut + 1 :], tokens.end]  # the first token has no context: read only
    read = {int(t) if t >= 0 else ~int(t) for t in b.held_NS.flat}
    assert read <= {*text[cut:], tokens.end}


def test_every_token_is_predicted_once_across_blocks(tokens: Tokens) -> None:
    b = made(tokens, [LONG])
    assert b.train_NS.shape[1] == 17
    for before, after in zip(b.train_NS[:-1], b.train_NS[1:], strict=True):
        assert before[-1] == after[0]  # context of the next block, predicted in this one
    assert b.train_tokens == predictions(b.train_NS) == len(predicted(b.train_NS))


def test_small_files_together_give_their_share(tokens: Tokens) -> None:
    b = made(tokens, ["the quick brown fox"] * 60)
    assert 0.05 < b.held_tokens / (b.held_tokens + b.train_tokens) < 0.15


def test_documents_are_separated_once(tokens: Tokens) -> None:
    b = made(tokens, ["a b", "c d"], holdout=0.01)
    expected = [~tokens.end, *ids(tokens, "a b"), tokens.end, *ids(tokens, "c d"), tokens.end]
    assert b.train_NS[0, : len(expected)].tolist() == expected
    assert (b.train_NS[0, len(expected) :] < 0).all()
    assert len(b.held_NS) == 0


def test_special_tokens_in_text_are_text(tokens: Tokens) -> None:
    assert tokens.end not in ids(tokens, "before <|endoftext|> after")


def test_short_and_empty_devices(tokens: Tokens) -> None:
    assert made(tokens, ["hi you"]).train_tokens >= 2
    assert made(tokens, [""]).train_tokens == made(tokens, []).train_tokens == 0
    assert made(tokens, [""]).train_NS.shape == (0, 17)


def test_prompt_is_masked_exactly(tokens: Tokens) -> None:
    rows = [Document("0", "ask one", "say two"), Document("1", "ask", "go"), Document("2", "x", "last row held")]
    b = build(rows, tokens, DataSection(source="jsonl", path="x", owner="o", prompt="p", sequence_len=32), False)
    learnt = [t for r in rows[:2] for t in (*ids(tokens, r.text), tokens.end)]
    assert predicted(b.train_NS) == learnt
    row = [~tokens.end, *(~t for t in ids(tokens, "ask one")), *ids(tokens, "say two"), tokens.end]
    assert b.train_NS[0, : len(row)].tolist() == row
    assert predicted(b.held_NS) == [*ids(tokens, "last row held"), tokens.end]


def test_rows_are_packed_whole_and_long_ones_go_on(tokens: Tokens) -> None:
    rows = [Document(str(i), "ask", "say it") for i in range(9)]
    data = DataSection(source="jsonl", path="x", owner="o", prompt="p", sequence_len=16, holdout=0.01)
    b = build(rows, tokens, data, False)
    answer = [*ids(tokens, "say it"), tokens.end]
    for block in b.train_NS:
        got = [int(t) for t in block[1:] if t >= 0]
        assert got == answer * (len(got) // len(answer))
    long = build([Document("0", "ask", LONG)], tokens, data, False)
    assert predicted(long.train_NS) == [*ids(tokens, LONG), tokens.end]


@pytest.mark.parametrize("cut_each", [True, False])
def test_a_cut_text_does_not_end(tokens: Tokens, cut_each: bool) -> None:
    text = ids(tokens, LONG)
    whole, cut = (made(tokens, [LONG], cut_each, max_tokens=n) for n in (len(text), 100))
    assert [predicted(b.held_NS)[-1] for b in (whole, cut)] == [tokens.end, text[99]]
    assert tokens.end not in [*predicted(cut.train_NS), *predicted(cut.held_NS)]
    rows = [Document(f"{i}", "ask", LONG) for i in range(3)]
    data = DataSection(source="jsonl", path="x", owner="o", prompt="p", sequence_len=16, max_tokens=2 * len(text))
    b = build(rows, tokens, data, False)
    asked = len(ids(tokens, "ask"))
    assert predicted(b.train_NS) == [*text, tokens.end]
    assert predicted(b.held_NS) == text[: 2 * len(text) - len(text) - 2 * asked]


def test_a_piece_of_a_file_does_not_end_where_the_file_goes_on(tmp_path: Path, tokens: Tokens) -> None:
    (tmp_path / "book.txt").write_text(LONG.replace(" ", "\n") * 8, encoding="utf-8")
    data = DataSection(source="text", path="book.txt", partition="iid", devices=1, sequence_len=16, holdout=0.01)
    corpus = load_corpus(data, tmp_path, tmp_path / "cache", root(0))
    pieces = list(corpus.documents("device-0"))
    assert [d.ends for d in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 2
    b = build(pieces, tokens, data, corpus.cut_each)
    assert [*predicted(b.train_NS), *predicted(b.held_NS)].count(tokens.end) == 1


def test_what_is_left_out_is_counted(tokens: Tokens) -> None:
    text, short = ids(tokens, LONG), ids(tokens, "a b")
    listed = [
        Document("0", "", ""),
        Document("1", "", "a b", replaced=3),
        Document("2", "", LONG),
        Document("3", "", "x y z"),
    ]
    all_of = Counts(*build(listed, tokens, section(), True).counts)
    chars = len(LONG) + len("a b") + len("x y z")
    tokens_of = len(text) + len(short) + len(ids(tokens, "x y z"))
    assert all_of == Counts(documents=4, empty=1, characters=chars, replaced=3, tokens=tokens_of)
    limit = len(short) + 7
    b = build(listed, tokens, section(max_tokens=limit), True)
    kept = len("".join(tokens._backend.decode([t]) for t in text[:7]))  # 7 tokens by hand: every one is whole letters
    assert LONG.startswith(tokens._backend.decode(text[:7]))
    assert Counts(*b.counts) == Counts(
        documents=4, empty=1, cut=1, beyond=1, characters=chars, characters_beyond=len(LONG) - kept + len("x y z"),
        replaced=3, tokens=limit,
    )  # fmt: skip
    assert b.train_tokens + b.held_tokens <= limit + 1


def test_prompts_that_use_up_the_limit_are_counted(tokens: Tokens) -> None:
    data = DataSection(source="jsonl", path="x", owner="o", prompt="p", sequence_len=16, max_tokens=20)
    counts = Counts(*build([Document("0", LONG, "yes"), Document("1", "ask", "no")], tokens, data, False).counts)
    assert (counts.beyond, counts.prompts_over, counts.cut) == (1, 1, 0)
    assert counts.characters_beyond == len("yes")


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("prompt", ["ask", LONG[:100], LONG[:400]])
def test_prompts_out_of_sight_are_those_of_the_blocks_that_are_trained(
    tokens: Tokens, prompt: str, apart: bool
) -> None:
    data = DataSection(source="jsonl", path="x", owner="o", prompt="p", sequence_len=16, holdout=0.01)
    rows = [Document(str(i), prompt, a) for i, a in enumerate(["say it", LONG[:60], "a"])]
    held, whole = Document("3", "ask", "held out"), [~tokens.end, *(~t for t in ids(tokens, prompt))]
    short = blind = short_answers = 0
    for row in rows:  # each by itself, what its blocks show read by hand
        before = short
        for block in build([row, held], tokens, data, False, apart).train_NS:
            learnt = int((block[1:] >= 0).sum())
            seen = block[: int(np.flatnonzero(block >= 0)[0])].tolist()
            short += 0 if seen == whole else learnt
            blind += 0 if seen else learnt
        short_answers += short > before
    b = build([*rows, held], tokens, data, False, apart)
    counts = Counts(*b.counts)
    assert (counts.answers, counts.answers_short) == (3, short_answers)
    assert (counts.answer_tokens, counts.tokens_short, counts.tokens_blind) == (b.train_tokens, short, blind)
    assert short_answers == {"ask": 1}.get(prompt, 3)


def test_max_tokens_caps_a_device(tokens: Tokens) -> None:
    b = made(tokens, [LONG, LONG], max_tokens=50, holdout=0.2)
    assert predicted(b.train_NS) == ids(tokens, LONG)[:40]
    assert b.held_tokens <= 11


def test_long_texts_are_encoded_in_parts_of_lines() -> None:
    text = "the lazy dog\n" * 50
    parts = list(_text_parts(text, size=100))
    assert "".join(parts) == text
    assert all(p.endswith("\n") and len(p) <= 100 for p in parts)
    assert list(_text_parts("x" * 250, size=100)) == ["x" * 100, "x" * 100, "x" * 50]


def store(folder: Path, tokens: Tokens, **more: object) -> BlockStore:
    data = DataSection(source="text", path="notes", sequence_len=16, **more)  # type: ignore[arg-type]
    return BlockStore(load_corpus(data, folder, folder / "cache", root(0)), tokens, data, folder / "cache")


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    for name in ("ann", "bob"):
        (tmp_path / "notes" / name).mkdir(parents=True)
        (tmp_path / "notes" / name / "1.txt").write_text(f"{name} " + LONG)
    return tmp_path


@pytest.mark.slow
def test_of_a_long_row_no_more_is_tokenized_than_is_used(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "a device trains on its own text\n"
    long, few = line * (6_000_000 // len(line)), line * (1_500_000 // len(line))
    seen = []
    whole = Tokens.encode

    def encode(self, texts, limit=0):
        ids = whole(self, texts, limit)
        seen.append(sum(map(len, ids)))
        return ids

    monkeypatch.setattr(Tokens, "encode", encode)
    section = DataSection(partition="iid", devices=2, max_tokens=2048, sequence_len=64)
    blocks = build([Document("row", "", long)], tokens, section, False)
    assert sum(seen) < 2_000_000
    for now, then in zip(blocks[:2], build([Document("row", "", few)], tokens, section, False)[:2], strict=True):
        np.testing.assert_array_equal(now, then)


def test_blocks_are_cached_until_the_text_changes(notes: Path, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store(notes, tokens).open("ann")
    assert isinstance(first.train_NS, np.memmap)
    calls = []
    monkeypatch.setattr(blocks_module, "build", lambda *a: calls.append(a) or build(*a))
    again = store(notes, tokens).open("ann")
    assert not calls
    np.testing.assert_array_equal(first.train_NS, again.train_NS)
    store(notes, tokens, holdout=0.3).open("ann")
    assert len(calls) == 1
    (notes / "notes" / "ann" / "1.txt").write_text("another " + LONG)
    changed = store(notes, tokens).open("ann")
    assert len(calls) == 2
    assert not np.array_equal(first.train_NS, changed.train_NS)


def test_a_damaged_cache_file_is_made_again(notes: Path, tokens: Tokens) -> None:
    first = np.array(store(notes, tokens).open("ann").train_NS)
    (path,) = (notes / "cache" / "blocks").glob("*.train_NS.npy")
    for damage in (b"", path.read_bytes()[:-50], b"\x80\x04pickle"):
        path.write_bytes(damage)
        np.testing.assert_array_equal(store(notes, tokens).open("ann").train_NS, first)


WRITER = """
import sys
from pathlib import Path
import numpy as np
from edgewise.core.keys import root
from edgewise.learn.text.blocks import BlockStore
from edgewise.learn.text.corpus import load
from edgewise.plan.recipe.recipe import DataSection

class Bytes:
    start = end = 0
    digest = "bytes"
    def encode(self, texts, limit=0):
        return [np.frombuffer(t.encode(), np.uint8).astype(np.int32) for t in texts]

folder = Path(sys.argv[1])
data = DataSection(source="text", path="notes", sequence_len=16)
store = BlockStore(load(data, folder, folder / "cache", root(0)), Bytes(), data, folder / "cache")
print(sum(store.open(d).train_tokens for d in ("ann", "bob")))
assert "torch" not in sys.modules
"""


@pytest.mark.slow
def test_two_processes_may_tokenize_at_once(notes: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(notes)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    one, two = (p.communicate()[0] for p in running)
    assert one == two != ""
    files = sorted(p.name for p in (notes / "cache" / "blocks").iterdir())
    assert len(files) == 6
    assert all(n.endswith((".train_NS.npy", ".held_NS.npy", ".counts.npy")) for n in files)


@pytest.mark.parametrize("missing", range(4))
@pytest.mark.parametrize("prompt", [False, True])
def test_apart_a_missing_document_takes_its_own_blocks_along_and_no_others(
    tokens: Tokens, missing: int, prompt: bool
) -> None:
    texts = [LONG, "a b", "c d", "".join(f"text{i} " for i in range(80)), LONG[50:]]
    listed = [Document(f"{i}", "what?" if prompt else "", t) for i, t in enumerate(texts)]
    data = section(holdout=0.01, prompt="q") if prompt else section(holdout=0.1)

    def blocks(documents: list[Document], apart: bool = True) -> list[list[bytes]]:
        made = build(documents, tokens, data, not prompt, apart)
        return [[block.tobytes() for block in part] for part in made[:2]]

    last = listed[-1:] if prompt else []  # of rows of instructions, the last one is held out
    rest = blocks([*listed[:missing], *listed[missing + 1 :]])
    own, at = blocks([listed[missing], *last]), len(blocks([*listed[:missing], *last])[0]) if missing else 0
    assert blocks(listed)[0] == [*rest[0][:at], *own[0], *rest[0][at:]]
    assert set(rest[1]) <= set(blocks(listed)[1])
    assert blocks(listed, apart=False)[0] != blocks(listed)[0]
