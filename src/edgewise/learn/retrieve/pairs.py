"""Pairs of a question and a passage from a device's own documents, as blocks of tokens.

    store = PairStore(corpus, tokens, recipe.data, cache_dir, recipe.retriever.pairs)
    store.open("clinic-1").train_NS          # int32[N, S], one pair a row

A row is the question's tokens as ``~id`` (read, never predicted), then the passage's, then padding as ``~id``. So rows
are blocks like any others, and the shards, caches and memory maps of text serve them.

Shape suffixes: N = pairs, S = sequence_len + 1.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.learn.retrieve.index import passages, sentences
from edgewise.learn.text.blocks import Blocks, BlockStore, predictions
from edgewise.learn.text.corpus import Corpus, Document
from edgewise.learn.text.counts import Counts
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.recipe import DataSection

FORMAT = "pairs 1"  # It is part of the cache key. Raise it when the pairs of the same text change.


class TextPair(NamedTuple):
    """A question and the passage that answers it."""

    question: str
    passage: str

    def __repr__(self) -> str:
        return f"TextPair(<{len(self.question)} characters>, <{len(self.passage)} characters>)"


def pairs_of(document: Document, how: str) -> list[TextPair]:
    """Make the pairs of a document.

        turns: (line i, line i + 1).    cloze: (a sentence, the other sentences of its passage), the inverse cloze task
        rows: (prompt, text)

    A passage gives one pair of ``cloze``, so that a step has no two halves of one passage to tell apart. Its checksum
    chooses the sentence.

    Lines and sentences without a character beside spaces are left out first. Pairs are in the document's order.

    >>> pairs_of(Document("a", "", "Hello.\\nGood day."), "turns")[0].question
    'Hello.'

    Source: Lee et al. 2019, arXiv:1906.00300 (inverse cloze task).
    """
    if how == "rows":
        question, passage = document.prompt.strip(), document.text.strip()
        return [TextPair(question, passage)] if question and passage else []
    if how == "turns":
        lines = [line for part in document.text.splitlines() if (line := part.strip())]
        return [TextPair(a, b) for a, b in pairwise(lines)]
    found = []
    for passage in passages(document.text):
        said = sentences(passage)
        if len(said) > 1:
            i = zlib.crc32(passage.encode()) % len(said)
            found.append(TextPair(said[i], " ".join(said[:i] + said[i + 1 :])))
    return found


class PairStore(BlockStore):
    """The pairs of each device, cached as ``BlockStore`` caches blocks."""

    def __init__(self, corpus: Corpus, tokens: Tokens, section: DataSection, cache_dir: Path, how: str) -> None:
        super().__init__(corpus, tokens, section, cache_dir)
        self._how, self._key = how, f"{FORMAT} {how} {self._key}"

    def _build_blocks(self, device: DeviceId) -> Blocks:
        """Make a device's pairs and hold the last ones out.

        Whole documents from the end are held out while they are at most a share of ``data.holdout`` of the pairs, at
        least one document. A device with pairs from one document holds its last pairs out. ``data.max_tokens`` bounds
        the tokens of all pairs. Fewer than two pairs for training are none: nothing would tell them apart.
        """
        rows: list[list[Array]] = []
        total, documents, empty, characters, beyond = 0, 0, 0, 0, 0
        for document in self._corpus.documents(device):
            documents += 1
            characters += len(document.text)
            pairs = pairs_of(document, self._how)
            made = list(self._rows(pairs))
            limit = self._section.max_tokens
            taken: list[Array] = []
            for row in made:
                size = len(row)
                if limit and total + size > limit:
                    break
                total += size
                taken.append(row)
            beyond += bool(made) and not taken
            empty += not made
            if taken:
                rows.append(taken)
        train, held = _held_out(rows, self._section.holdout)
        if len(train) < 2:
            train = []
        train_NS, held_NS = (self._blocks(part) for part in (train, held))
        counts = Counts(documents=documents, empty=empty, beyond=beyond, characters=characters, tokens=total)
        return Blocks(train_NS, held_NS, counts.array())

    def _rows(self, pairs: Sequence[TextPair]) -> Iterator[Array]:
        """Encode pairs: the first half of a row at most is the question's, and the passage has the rest."""
        most = self._section.sequence_len + 1
        questions, texts = (self._tokens.encode([pair[i] for pair in pairs]) for i in (0, 1))
        for question, text in zip(questions, texts, strict=True):
            row = np.concatenate([~question[: most // 2], text])[:most]
            if len(question) and len(text):
                yield row

    def _blocks(self, rows: Sequence[Array]) -> Array:
        blocks_NS = np.full((len(rows), self._section.sequence_len + 1), ~(self._tokens.end or 0), np.int32)
        for i, row in enumerate(rows):
            blocks_NS[i, : len(row)] = row
        assert predictions(blocks_NS) == sum(int((row >= 0).sum()) for row in rows)
        return blocks_NS


def _held_out(documents: Sequence[Sequence[Array]], holdout: float) -> tuple[list[Array], list[Array]]:
    """Split the pairs of documents into those for training and those held out."""
    if len(documents) < 2:
        rows = [row for one in documents for row in one]
        at = len(rows) - round(len(rows) * holdout)
        return rows[:at], rows[at:]
    room = holdout * sum(map(len, documents))
    first = len(documents) - 1
    room -= len(documents[first])
    while first > 1 and len(documents[first - 1]) <= room:
        first -= 1
        room -= len(documents[first])
    train, held = documents[:first], documents[first:]
    return [row for one in train for row in one], [row for one in held for row in one]
