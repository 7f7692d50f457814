"""Cut documents into training and held-out blocks of tokens, cached as memory maps that all processes share.

A block is int32[S], S = sequence_len + 1. ``~id`` (negative) is a token that is read but never predicted. Such tokens
are prompts, padding, and the start of a piece of text. Successive blocks of a stream overlap by one token, so each
token is predicted exactly once.

A block may hold text of several documents. With ``data.packing = "isolated"`` the first token of each is marked
(``marks``), so the loss can keep them apart. With ``apart``, or ``data.packing = "none"``, each document has blocks of
its own, so a block reveals nothing of other documents, and a missing document changes no other document's blocks. Where
the hold-out is taken from the end of the device (tables), its border may still move, and ``data.max_tokens`` still
counts the documents that are there.

The end of a text is predicted where the text itself ends. It is not predicted where ``data.max_tokens`` cuts the text,
or where a piece of a file continues in another piece.

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
from edgewise.learn.text.cache import mapped_array, write_atomically
from edgewise.learn.text.corpus import Corpus, Document
from edgewise.learn.text.counts import Counts
from edgewise.learn.text.marks import marked_document
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.recipe import DataSection

FORMAT = 3  # It is part of the cache key. Raise it when the blocks of the same text change.


class Blocks(NamedTuple):
    """A device's text as blocks.

    Attributes:
        train_NS: training blocks, int32.
        held_NS: held-out blocks, int32. No token is predicted in both.
        counts: ``Counts`` of the text, as int64.
        windows_V3: with ``data.stream`` the number of each window with text, and where its rows end in ``train_NS`` and
            in ``held_NS``, int64. Otherwise it has no rows.
    """

    train_NS: Array
    held_NS: Array
    counts: Array
    windows_V3: Array = np.zeros((0, 3), np.int64)

    def __repr__(self) -> str:
        return outline(self)

    def apart(self) -> Blocks:
        """Hold the last fifth of the training blocks out, at least one, in place of the held-out ones."""
        first = len(self.train_NS) - max(1, len(self.train_NS) // 5)
        return Blocks(self.train_NS[: max(0, first)], self.train_NS[max(0, first) :], self.counts)

    @property
    def train_tokens(self) -> int:
        """The number of predicted tokens for training."""
        return predictions(self.train_NS)

    @property
    def held_tokens(self) -> int:
        """The number of predicted tokens that are held out."""
        return predictions(self.held_NS)


def predictions(blocks_NS: Array) -> int:
    """Count the predicted tokens of some blocks."""
    return int(np.count_nonzero(blocks_NS[:, 1:] >= 0))


class BlockStore:
    """The blocks of each device, tokenized on first use by any process, then mapped from ``cache_dir / "blocks"``.

    The key is the digest of tokenizer, data section and the device's text itself. No stale file can match it, and
    several runs may share a folder. The store keeps no map open, so memory does not grow with the population.

    Args:
        apart: True where no block may have text of two documents.
    """

    def __init__(
        self, corpus: Corpus, tokens: Tokens, section: DataSection, cache_dir: Path, apart: bool = False
    ) -> None:
        self._corpus, self._tokens, self._section, self._apart = corpus, tokens, section, apart
        self._folder = cache_dir / "blocks"
        parts = [FORMAT, tokens.digest, section.sequence_len, section.holdout, section.max_tokens, bool(section.prompt)]
        chats = (
            [tokens.template.digest, section.as_chat, section.answers] if section.rendered and tokens.template else []
        )
        self._key = json.dumps([*parts, corpus.cut_each, apart, section.packing, *chats])

    def open(self, device: DeviceId) -> Blocks:
        """Open the blocks of one device. Either array may have no rows.

        Raises:
            DataError: as ``Corpus.documents``.
            StoreError: E-DISK where the cache cannot be written.
        """
        stem = hashlib.sha256(f"{self._key} {self._corpus.digest(device)}".encode()).hexdigest()[:40]
        layout = self._layout()
        paths = [self._folder / f"{stem}.{part}.npy" for part in layout]
        maps = [mapped_array(path, *of) for path, of in zip(paths, layout.values(), strict=True)]
        if any(m is None for m in maps):
            for path, array in zip(paths, self._build_blocks(device), strict=False):
                write_atomically(path, lambda f, a=array: np.save(f, a, allow_pickle=False), sync=False)
            maps = [mapped_array(path, *of) for path, of in zip(paths, layout.values(), strict=True)]
        return Blocks(*maps)

    def _layout(self) -> dict[str, tuple[type, int, int]]:
        """Return the dtype, the width and the number of axes of each cached part of ``Blocks``."""
        rows = (np.int32, self._section.sequence_len + 1, 2)
        return {"train_NS": rows, "held_NS": rows, "counts": (np.int64, len(Counts._fields), 1)}

    def _build_blocks(self, device: DeviceId) -> Blocks:
        """Cut a device's documents into blocks."""
        return build(self._corpus.documents(device), self._tokens, self._section, self._corpus.cut_each, self._apart)


def build(
    documents: Iterable[Document], tokens: Tokens, section: DataSection, cut_each: bool, apart: bool = False
) -> Blocks:
    """Tokenize documents and cut them into blocks.

    The hold-out is the last ``holdout`` share of the tokens. With ``cut_each`` it is the end of each file, and the next
    file makes up for one that is too short. Otherwise it is the end of the device's rows in order. A row of instruction
    data (``data.prompt``) is never split. Whole rows from the end are held out, at least one where there are two, and
    rows are packed whole into blocks.

    Args:
        cut_each: True takes the hold-out from each document.
        apart: True gives every document blocks of its own. A short file's share of the hold-out then does not pass to
            the next.
    """
    apart |= section.packing == "none"
    isolated = section.packing == "isolated"
    encoded, counts = _encode_documents(documents, tokens, section)
    if section.prompt or section.rendered:
        train, held = _hold_rows(encoded, section.holdout)
        packed = [_pack_rows(part, tokens, section.sequence_len, apart, isolated) for part in (train, held)]
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
            train_pieces.append(_document_piece(e.text[:k], tokens, begins=True, ends=e.ends and k == len(e.text)))
        if k < len(e.text):
            held_pieces.append(_document_piece(e.text[k:], tokens, begins=k == 0, ends=e.ends))
    cut = (_cut_pieces(p, tokens, section.sequence_len, apart, isolated) for p in (train_pieces, held_pieces))
    return Blocks(*cut, counts.array())


class EncodedDocument(NamedTuple):
    """A document's tokens.

    Attributes:
        prompt, text: int32.
        ends: True where the document ends with these tokens.
        learnt: for a chat, the tokens of ``text`` that are learnt (bool). Its template has written the tokens around
            messages. None for other documents.
    """

    prompt: Array
    text: Array
    ends: bool
    learnt: Array | None = None

    __repr__ = outline


TOGETHER_CHARS = 1 << 20  # The tokenizer takes so much text at once. It occupies its threads and little memory.


def _encode_documents(
    documents: Iterable[Document], tokens: Tokens, section: DataSection
) -> tuple[list[EncodedDocument], Counts]:
    """Tokenize the documents with text, up to ``data.max_tokens`` with their prompts, and count.

    Documents after the limit are read for their length and not tokenized.
    """
    limit, chats = section.max_tokens, section.rendered
    encoded: list[EncodedDocument] = []
    total = 0
    n: Counter[str] = Counter()
    for group in _document_groups(documents):
        n["documents"] += len(group)
        n["characters"] += sum(len(d.text) for d in group)
        n["replaced"] += sum(d.replaced for d in group)
        if limit and total >= limit:
            n["beyond"] += sum(bool(d.text) for d in group)
            n["empty"] += sum(not d.text for d in group)
            n["characters_beyond"] += sum(len(d.text) for d in group)
            continue
        for d, rows in _tokenized_documents(
            group, tokens, limit + 1 if limit else 0, section
        ):  # One more token tells of a cut.
            n["empty"] += not rows
            for e in rows:
                room = max(0, limit - total - len(e.prompt)) if limit else len(e.text)
                if room < len(e.text):
                    n["cut" if room else "beyond"] += 1
                    n["prompts_over"] += len(e.prompt) >= limit
                    used = _answer_characters(d, e, room, len(rows)) if chats else tokens.length_of_first(d.text, room)
                    n["characters_beyond"] += len(d.text) // len(rows) - used
                if room:
                    learnt = None if e.learnt is None else e.learnt[:room]
                    encoded.append(EncodedDocument(e.prompt, e.text[:room], e.ends and len(e.text) <= room, learnt))
                    n["tokens"] += len(encoded[-1].text)
                    total += len(e.prompt) + len(encoded[-1].text)
    return encoded, Counts(**n)


def _tokenized_documents(
    group: list[Document], tokens: Tokens, most: int, section: DataSection
) -> Iterator[tuple[Document, list[EncodedDocument]]]:
    """Tokenize each document, up to at least ``most`` tokens of its text (0 = all).

    A document without text has no row. A chat may have several.
    """
    if section.rendered:
        assert tokens.template is not None, "the trainer refuses chats without a template"
        for d in group:
            rows = tokens.template.rows(d.prompt, d.name, section.answers == "last") if d.text else []
            at = [int(row.learnt.argmax()) for row in rows]  # The first answer begins here.
            yield d, [EncodedDocument(r.ids[:i], r.ids[i:], True, r.learnt[i:]) for r, i in zip(rows, at, strict=True)]
        return
    prompts, texts = (tokens.encode([getattr(d, part) for d in group], most) for part in ("prompt", "text"))
    for d, prompt, text in zip(group, prompts, texts, strict=True):
        yield d, [EncodedDocument(prompt, text, d.ends)] if len(text) else []


def _answer_characters(d: Document, e: EncodedDocument, room: int, rows: int) -> int:
    """Estimate the number of characters of a chat's answers in the first ``room`` tokens of one of its rows."""
    learnt = np.zeros(0, bool) if e.learnt is None else e.learnt
    return int(len(d.text) // rows * learnt[:room].sum() // max(1, learnt.sum()))


def _document_groups(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Group documents that are tokenized together."""
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
    """Return each document's number of trained tokens. A held-out tail has at least 2 tokens and at most half."""
    keep, owed = [], 0.0
    for n in lengths:
        owed += n * holdout
        tail = min(round(owed), max(n // 2, round(n * holdout)))
        tail = tail if tail >= 2 and n - tail >= 2 else 0
        owed -= tail
        keep.append(n - tail)
    return keep


def _cut_end(lengths: Sequence[int], holdout: float) -> list[int]:
    """Return each document's number of trained tokens, by one cut in the concatenation of all documents."""
    total = sum(lengths)
    tail = round(total * holdout)
    at = total - tail if tail >= 2 and total - tail >= 2 else total
    keep = []
    for n in lengths:
        keep.append(max(0, min(n, at)))
        at -= n
    return keep


def _hold_rows(encoded: list[EncodedDocument], holdout: float) -> tuple[list[EncodedDocument], list[EncodedDocument]]:
    sizes = [len(e.prompt) + len(e.text) for e in encoded]
    tail, rows = 0, 0
    while rows < len(encoded) - 1 and (rows == 0 or tail + sizes[-rows - 1] <= holdout * sum(sizes)):
        tail += sizes[-rows - 1]
        rows += 1
    at = len(encoded) - rows
    return encoded[:at], encoded[at:]


def _document_piece(text: Array, tokens: Tokens, begins: bool, ends: bool) -> Array:
    """Add the tokens around a document to its text. A first token without context is not predicted."""
    start = [np.array([~tokens.start], np.int32)] if begins and tokens.start is not None else []
    body = text if start else np.concatenate([~text[:1], text[1:]])
    end = [np.array([tokens.end], np.int32)] if ends and tokens.end is not None else []
    return np.concatenate([*start, body, *end])


def _joined_pieces(pieces: Sequence[Array], tokens: Tokens, isolated: bool) -> Array:
    """Join pieces into one stream. A token that ends one document and starts the next one stands once.

    Args:
        isolated: True marks the first token of each piece. Each then keeps its own first token.
    """
    parts: list[Array] = [np.zeros(0, np.int32)]
    if isolated:
        return np.concatenate(parts + [marked_document(piece) for piece in pieces])
    for piece in pieces:
        doubled = tokens.start is not None and len(parts[-1]) and parts[-1][-1] == tokens.start
        parts.append(piece[1:] if doubled and piece[0] == ~tokens.start else piece)
    return np.concatenate(parts)


def _cut_pieces(pieces: Sequence[Array], tokens: Tokens, sequence_len: int, apart: bool, isolated: bool) -> Array:
    """Cut pieces into rows, together or each by itself."""
    streams = [np.zeros(0, np.int32), *pieces] if apart else [_joined_pieces(pieces, tokens, isolated)]
    return np.concatenate([_stream_windows(stream, tokens, sequence_len) for stream in streams])


def _stream_windows(stream: Array, tokens: Tokens, sequence_len: int) -> Array:
    """Cut a stream into windows of S tokens. Each starts with the last token of the one before. The last is padded."""
    n = -(-max(0, len(stream) - 1) // sequence_len)
    padded = np.full(n * sequence_len + 1, ~(tokens.end or 0), np.int32)
    padded[: len(stream)] = stream[: len(padded)]
    at = np.arange(n)[:, None] * sequence_len + np.arange(sequence_len + 1)[None, :]
    blocks_NS = padded[at]
    return blocks_NS[(blocks_NS[:, 1:] >= 0).any(1)]


def _encode_row(e: EncodedDocument, tokens: Tokens) -> Array:
    """Encode a row of instruction data, or a chat, with ``~id`` for tokens that are only read."""
    if e.learnt is None:
        row = _document_piece(np.concatenate([e.prompt, e.text]), tokens, begins=True, ends=e.ends)
        at = len(row) - len(e.text) - (e.ends and tokens.end is not None)
        row[:at] = np.minimum(row[:at], ~row[:at])  # The minimum is the negative one of x and ~x.
        return row
    row = np.concatenate([e.prompt, e.text])
    return np.where(np.concatenate([np.zeros(len(e.prompt), bool), e.learnt]), row, ~row)


def _pack_rows(encoded: list[EncodedDocument], tokens: Tokens, sequence_len: int, apart: bool, isolated: bool) -> Array:
    """Pack whole rows into blocks, in order, as many as fit (one with ``apart``).

    A row that is longer than a block continues in the next ones.
    """
    blocks: list[Array] = []
    waiting: list[Array] = []
    for e in encoded:
        row = _encode_row(e, tokens)
        if waiting and (apart or len(_joined_pieces([*waiting, row], tokens, isolated)) > sequence_len + 1):
            blocks.append(_stream_windows(_joined_pieces(waiting, tokens, isolated), tokens, sequence_len))
            waiting = []
        waiting.append(row)
    blocks.append(_stream_windows(_joined_pieces(waiting, tokens, isolated), tokens, sequence_len))
    return np.concatenate(blocks)


def _in_sight(encoded: list[EncodedDocument], tokens: Tokens, sequence_len: int) -> Counts:
    """Count the answers, and their tokens, that are predicted with their prompt in the same block.

    A row of at most S + 1 tokens, S = ``sequence_len``, is packed whole. A longer one begins a stream, and its token t
    is predicted in the block that begins with token S ((t - 1) // S). The first block has the whole prompt. A later
    block has a part of it if a token that is only read stands before t in that block.
    """
    n: Counter[str] = Counter()
    for e in encoded:
        if not len(e.prompt):
            continue
        row = _encode_row(e, tokens)
        read = np.concatenate([[0], np.cumsum(row < 0)])
        t = np.flatnonzero(row >= 0)
        begins = (t - 1) // sequence_len * sequence_len
        n["answers"] += 1
        n["answers_short"] += bool((begins > 0).any())
        n["answer_tokens"] += len(t)
        n["tokens_short"] += int((begins > 0).sum())
        n["tokens_blind"] += int(((begins > 0) & (read[t] == read[begins])).sum())
    return Counts(**n)
