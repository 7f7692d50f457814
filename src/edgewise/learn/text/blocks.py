"""From documents to training and held-out blocks of tokens, cached as memory maps that all processes share.

A block is int32[S], S = sequence_len + 1. ``~id`` (negative) is a token that is read but never predicted: prompts,
padding, and the start of a piece of text. Successive blocks of a stream overlap by one token, so each token is
predicted exactly once.

Blocks are packed with text of several documents, or cut from each document by itself (``apart``): then a block says
nothing of other documents, and one that is missing takes its own blocks along and leaves the others' as they are. The
hold-out still is of what there is where it is taken from the end of the device (tables): its border may move, and
``data.max_tokens`` counts what is there.

The end of a text is predicted where the text ends: not where ``data.max_tokens`` cuts it, nor where a piece of a file
goes on in another.

Shape suffixes: N = blocks, S = tokens per block.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.learn.text.cache import write_atomically
from edgewise.learn.text.corpus import Corpus, Document
from edgewise.learn.text.counts import Counts
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.recipe import DataSection

FORMAT = 2  # part of the cache key: raise it when the blocks of the same text change


class Blocks(NamedTuple):
    """A device's text: ``train_NS`` and ``held_NS``, int32; never both contain a predicted token of the same place.
    ``counts``: ``Counts`` as int64, what became of the text."""

    train_NS: Array
    held_NS: Array
    counts: Array

    def __repr__(self) -> str:
        return outline(self)

    @property
    def train_tokens(self) -> int:
        """Predicted tokens in training."""
        return predictions(self.train_NS)

    @property
    def held_tokens(self) -> int:
        """Predicted tokens held out."""
        return predictions(self.held_NS)


def predictions(blocks_NS: Array) -> int:
    """How many tokens of these blocks are predicted."""
    return int(np.count_nonzero(blocks_NS[:, 1:] >= 0))


class BlockStore:
    """Blocks by device: tokenized on first use by any process, then mapped from ``cache_dir / "blocks"``.

    The key is the digest of tokenizer, data section and the device's text itself, so a stale file cannot be hit and
    several runs share a folder. Memory does not grow with the population: maps are not kept here.
    ``apart``: no block has text of two documents.
    """

    def __init__(
        self, corpus: Corpus, tokens: Tokens, section: DataSection, cache_dir: Path, apart: bool = False
    ) -> None:
        self._corpus, self._tokens, self._section, self._apart = corpus, tokens, section, apart
        self._folder = cache_dir / "blocks"
        parts = [FORMAT, tokens.digest, section.sequence_len, section.holdout, section.max_tokens, bool(section.prompt)]
        chats = [tokens.template.digest] if section.messages and tokens.template else []
        self._key = json.dumps([*parts, corpus.cut_each, apart, *chats])

    def open(self, device: DeviceId) -> Blocks:
        """Blocks of one device; either array may have no rows. Raises DataError as ``Corpus.documents``, StoreError."""
        stem = hashlib.sha256(f"{self._key} {self._corpus.digest(device)}".encode()).hexdigest()[:40]
        paths = [self._folder / f"{stem}.{part}.npy" for part in Blocks._fields]
        maps = self._maps(*paths)
        if any(m is None for m in maps):
            for path, array in zip(paths, self._build(device), strict=True):
                write_atomically(path, lambda f, a=array: np.save(f, a, allow_pickle=False), sync=False)
            maps = self._maps(*paths)
        return Blocks(*maps)

    def _maps(self, train: Path, held: Path, counts: Path) -> tuple[Array | None, ...]:
        width = self._section.sequence_len + 1
        found = _map(counts, np.int64, len(Counts._fields))
        return _map(train, np.int32, width, 2), _map(held, np.int32, width, 2), found

    def _build(self, device: DeviceId) -> Blocks:
        return build(self._corpus.documents(device), self._tokens, self._section, self._corpus.cut_each, self._apart)


def _map(path: Path, dtype: type, width: int, axes: int = 1) -> Array | None:
    """The array in a cache file, or None where it is missing or damaged (then it is made again)."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if (array.dtype, array.ndim, array.shape[-1:]) == (dtype, axes, (width,)) else None


def build(
    documents: Iterable[Document], tokens: Tokens, section: DataSection, cut_each: bool, apart: bool = False
) -> Blocks:
    """Tokenize and cut.

    The hold-out is the last ``holdout`` share of the tokens: of each file (``cut_each``; what a file is too short to
    give is owed by the next), or of the device's rows in order. A row of instruction data (``data.prompt``) is never
    split: its whole rows from the end, at least one where there are two, and rows are packed whole into blocks.
    ``apart``: every document has blocks of its own, and a file that is too short to give owes nothing to the next.
    """
    encoded, counts = _encode(documents, tokens, section.max_tokens, section.messages != "")
    if section.prompt or section.messages:
        train, held = _hold_rows(encoded, section.holdout)
        packed = [_pack_rows(part, tokens, section.sequence_len, apart) for part in (train, held)]
        counts += _in_sight(train, tokens, section.sequence_len)
        return Blocks(*packed, counts.array())
    lengths = [len(e.text) for e in encoded]
    if cut_each:
        each = [[n] for n in lengths] if apart else [lengths]
        keep = [k for part in each for k in _cut_each(part, section.holdout)]
    else:
        keep = _cut_end(lengths, section.holdout)
    train_pieces, held_pieces = [], []
    for e, k in zip(encoded, keep, strict=True):
        if k:
            train_pieces.append(_piece(e.text[:k], tokens, begins=True, ends=e.ends and k == len(e.text)))
        if k < len(e.text):
            held_pieces.append(_piece(e.text[k:], tokens, begins=k == 0, ends=e.ends))
    cut = (_cut(p, tokens, section.sequence_len, apart) for p in (train_pieces, held_pieces))
    return Blocks(*cut, counts.array())


class Encoded(NamedTuple):
    """A document's tokens, int32; ``ends``: where they end, the document does. ``learnt``: of a chat, which tokens of
    ``text`` are learnt (bool), and its template has written what stands around messages; else None."""

    prompt: Array
    text: Array
    ends: bool
    learnt: Array | None = None

    __repr__ = outline


TOGETHER_CHARS = 1 << 20  # text given to the tokenizer at once: enough for its threads, little memory


def _encode(documents: Iterable[Document], tokens: Tokens, limit: int, chats: bool) -> tuple[list[Encoded], Counts]:
    """The documents that have text, up to ``limit`` tokens (0 = all) with their prompts, and what was counted. Those
    behind the limit are read for their length, and not tokenized."""
    encoded: list[Encoded] = []
    total = 0
    n: Counter[str] = Counter()
    for group in _groups(documents):
        n["documents"] += len(group)
        n["characters"] += sum(len(d.text) for d in group)
        n["replaced"] += sum(d.replaced for d in group)
        if limit and total >= limit:
            n["beyond"] += sum(bool(d.text) for d in group)
            n["empty"] += sum(not d.text for d in group)
            n["characters_beyond"] += sum(len(d.text) for d in group)
            continue
        for d, rows in _tokenized(group, tokens, limit + 1 if limit else 0, chats):  # one more: is there more?
            n["empty"] += not rows
            for e in rows:
                room = max(0, limit - total - len(e.prompt)) if limit else len(e.text)
                if room < len(e.text):
                    n["cut" if room else "beyond"] += 1
                    n["prompts_over"] += len(e.prompt) >= limit
                    used = _share(d, e, room, len(rows)) if chats else tokens.characters(d.text, room)
                    n["characters_beyond"] += len(d.text) // len(rows) - used
                if room:
                    learnt = None if e.learnt is None else e.learnt[:room]
                    encoded.append(Encoded(e.prompt, e.text[:room], e.ends and len(e.text) <= room, learnt))
                    n["tokens"] += len(encoded[-1].text)
                    total += len(e.prompt) + len(encoded[-1].text)
    return encoded, Counts(**n)


def _tokenized(
    group: list[Document], tokens: Tokens, most: int, chats: bool
) -> Iterator[tuple[Document, list[Encoded]]]:
    """Each document with its tokens, at least ``most`` of its text where there are so many (0 = all): no row where it
    has none, and of a chat perhaps several."""
    if chats:
        assert tokens.template is not None, "the trainer refuses chats without a template"
        for d in group:
            rows = tokens.template.rows(d.prompt, d.name) if d.text else []
            at = [int(row.learnt.argmax()) for row in rows]  # where the first answer begins
            yield d, [Encoded(r.ids[:i], r.ids[i:], True, r.learnt[i:]) for r, i in zip(rows, at, strict=True)]
        return
    prompts, texts = (tokens.encode([getattr(d, part) for d in group], most) for part in ("prompt", "text"))
    for d, prompt, text in zip(group, prompts, texts, strict=True):
        yield d, [Encoded(prompt, text, d.ends)] if len(text) else []


def _share(d: Document, e: Encoded, room: int, rows: int) -> int:
    """About how many characters of a chat's answers are in the first ``room`` tokens of one of its rows."""
    learnt = np.zeros(0, bool) if e.learnt is None else e.learnt
    return int(len(d.text) // rows * learnt[:room].sum() // max(1, learnt.sum()))


def _groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    group, size = [], 0
    for d in documents:
        group.append(d)
        size += len(d.text) + len(d.prompt)
        if size >= TOGETHER_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _cut_each(lengths: Sequence[int], holdout: float) -> list[int]:
    """Per document, how many of its first tokens are trained; a tail is at least 2 tokens and at most half."""
    keep, owed = [], 0.0
    for n in lengths:
        owed += n * holdout
        tail = min(round(owed), max(n // 2, round(n * holdout)))
        tail = tail if tail >= 2 and n - tail >= 2 else 0
        owed -= tail
        keep.append(n - tail)
    return keep


def _cut_end(lengths: Sequence[int], holdout: float) -> list[int]:
    """As ``_cut_each`` for one cut in the concatenation of all documents."""
    total = sum(lengths)
    tail = round(total * holdout)
    at = total - tail if tail >= 2 and total - tail >= 2 else total
    keep = []
    for n in lengths:
        keep.append(max(0, min(n, at)))
        at -= n
    return keep


def _hold_rows(encoded: list[Encoded], holdout: float) -> tuple[list[Encoded], list[Encoded]]:
    sizes = [len(e.prompt) + len(e.text) for e in encoded]
    tail, rows = 0, 0
    while rows < len(encoded) - 1 and (rows == 0 or tail + sizes[-rows - 1] <= holdout * sum(sizes)):
        tail += sizes[-rows - 1]
        rows += 1
    at = len(encoded) - rows
    return encoded[:at], encoded[at:]


def _piece(text: Array, tokens: Tokens, begins: bool, ends: bool) -> Array:
    """Text with the tokens around a document. A first token without its context is not predicted."""
    start = [np.array([~tokens.start], np.int32)] if begins and tokens.start is not None else []
    body = text if start else np.concatenate([~text[:1], text[1:]])
    end = [np.array([tokens.end], np.int32)] if ends and tokens.end is not None else []
    return np.concatenate([*start, body, *end])


def _joined(pieces: Sequence[Array], tokens: Tokens) -> Array:
    """One stream; where a document ends with the token that starts the next one, it stands once."""
    parts: list[Array] = [np.zeros(0, np.int32)]
    for piece in pieces:
        doubled = tokens.start is not None and len(parts[-1]) and parts[-1][-1] == tokens.start
        parts.append(piece[1:] if doubled and piece[0] == ~tokens.start else piece)
    return np.concatenate(parts)


def _cut(pieces: Sequence[Array], tokens: Tokens, sequence_len: int, apart: bool) -> Array:
    streams = [np.zeros(0, np.int32), *pieces] if apart else [_joined(pieces, tokens)]
    return np.concatenate([_stream(stream, tokens, sequence_len) for stream in streams])


def _stream(stream: Array, tokens: Tokens, sequence_len: int) -> Array:
    """Windows of S tokens, each starting with the last token of the one before; the last is padded."""
    n = -(-max(0, len(stream) - 1) // sequence_len)
    padded = np.full(n * sequence_len + 1, ~(tokens.end or 0), np.int32)
    padded[: len(stream)] = stream[: len(padded)]
    at = np.arange(n)[:, None] * sequence_len + np.arange(sequence_len + 1)[None, :]
    blocks_NS = padded[at]
    return blocks_NS[(blocks_NS[:, 1:] >= 0).any(1)]


def _row(e: Encoded, tokens: Tokens) -> Array:
    """A row of instruction data, or a chat, with what is only read as ``~id``."""
    if e.learnt is None:
        row = _piece(np.concatenate([e.prompt, e.text]), tokens, begins=True, ends=e.ends)
        at = len(row) - len(e.text) - (e.ends and tokens.end is not None)
        row[:at] = np.minimum(row[:at], ~row[:at])  # the negative one of x and ~x
        return row
    row = np.concatenate([e.prompt, e.text])
    return np.where(np.concatenate([np.zeros(len(e.prompt), bool), e.learnt]), row, ~row)


def _pack_rows(encoded: list[Encoded], tokens: Tokens, sequence_len: int, apart: bool) -> Array:
    """Whole rows into blocks, in order, as many as fit (one with ``apart``); a row longer than a block goes on in the
    next ones."""
    blocks: list[Array] = []
    waiting: list[Array] = []
    for e in encoded:
        row = _row(e, tokens)
        if waiting and (apart or len(_joined([*waiting, row], tokens)) > sequence_len + 1):
            blocks.append(_stream(_joined(waiting, tokens), tokens, sequence_len))
            waiting = []
        waiting.append(row)
    blocks.append(_stream(_joined(waiting, tokens), tokens, sequence_len))
    return np.concatenate(blocks)


def _in_sight(encoded: list[Encoded], tokens: Tokens, sequence_len: int) -> Counts:
    """How many answers, and how many tokens of them, are predicted with their prompt in the same block.

    A row of at most S + 1 tokens, S = ``sequence_len``, is packed whole. A longer one begins a stream: its token t is
    predicted in the block that begins with token S ((t - 1) // S). The whole prompt is there in the first block, and
    something of it where a token that is only read stands before t in t's block.
    """
    n: Counter[str] = Counter()
    for e in encoded:
        if not len(e.prompt):
            continue
        row = _row(e, tokens)
        read = np.concatenate([[0], np.cumsum(row < 0)])
        t = np.flatnonzero(row >= 0)
        begins = (t - 1) // sequence_len * sequence_len
        n["answers"] += 1
        n["answers_short"] += bool((begins > 0).any())
        n["answer_tokens"] += len(t)
        n["tokens_short"] += int((begins > 0).sum())
        n["tokens_blind"] += int(((begins > 0) & (read[t] == read[begins])).sum())
    return Counts(**n)
