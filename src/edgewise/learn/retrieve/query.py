"""Find the passages of an index that answer a question.

    found = search(index, embed, "When was the valve replaced?", 5)
    answer(found, question)

Shape suffixes: N = passages, H = width of the embedder.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import numpy as np

from edgewise.core.errors import EdgewiseError
from edgewise.learn.retrieve.embed import Embedder
from edgewise.learn.retrieve.index import Index, sentences

WORDS, MEANING, BOTH = "words", "meaning", "both"
WAYS = (WORDS, MEANING, BOTH)
RANK = 60  # The constant of reciprocal rank fusion.
POOL = 100  # Passages of each ranking that are fused.
WORD = re.compile(r"\w+")


class FoundPassage(NamedTuple):
    """A passage that was found. A larger ``score`` is better; scores of different ways do not compare."""

    score: float
    source: str
    text: str


def check_embedder(index: Index, embed: Embedder, name: str) -> None:
    """Refuse another model than the one that embedded the passages.

    Raises:
        EdgewiseError: E-INDEX-MODEL.
    """
    if embed.digest() != index.digest:
        what = f"{name} was made with other weights or another tokenizer than this model has ({index.model})."
        raise EdgewiseError("E-INDEX-MODEL", what, "name that model with --model, or write the index again.")


def search(index: Index, embed: Embedder | None, question: str, k: int, by: str = WORDS) -> list[FoundPassage]:
    """Find the best passages, best first.

        words: BM25 of the question's words.    meaning: the cosine of the vectors.
        both: sum over the two rankings of 1 / (60 + rank)

    Args:
        embed: the index's embedder. ``words`` needs none.
        k: at most so many passages, at least 1. ``words`` finds only passages that share a word with the question.
        by: one of ``WAYS``.
    Raises:
        EdgewiseError: E-USE for a question without a word.
    Source: Cormack et al., Reciprocal Rank Fusion outperforms Condorcet and individual rank learning methods.
    """
    if not WORD.search(question):
        raise EdgewiseError("E-USE", "the question has no word.", "ask a question.")
    pool = k if by != BOTH else max(k, POOL)
    rankings = []
    if by in (WORDS, BOTH):
        rankings.append(_by_words(index, question, pool))
    if by in (MEANING, BOTH):
        assert embed is not None
        rankings.append(_by_meaning(index, embed, question, pool))
    scores = dict(rankings[0]) if len(rankings) == 1 else _fused(rankings)
    best = sorted(scores, key=lambda i: (-scores[i], i))[:k]
    rows = {i: index.tables.execute("SELECT source, text FROM passages WHERE id = ?", (i,)).fetchone() for i in best}
    return [FoundPassage(scores[i], *rows[i]) for i in best]


def answer(found: list[FoundPassage], question: str) -> str:
    """Return the sentence of the found passages that shares most with the question. Empty where nothing was found.

    Words count by their rarity in the passages. Of equal sentences the one of the better passage is taken.
    """
    asked = _words(question)
    said = [(s, _words(s)) for one in found for s in sentences(one.text)]
    often = Counter(word for _, words in said for word in words & asked)
    best = max(said, key=lambda one: sum(1 / often[w] for w in one[1] & asked), default=("", asked))
    return best[0]


def _words(text: str) -> set[str]:
    return {word.lower() for word in WORD.findall(text)}


def _by_words(index: Index, question: str, k: int) -> list[tuple[int, float]]:
    asked = " OR ".join(f'"{word}"' for word in sorted(_words(question)))
    sql = "SELECT rowid, -bm25(words) FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid LIMIT ?"
    return [(int(i), float(score)) for i, score in index.tables.execute(sql, (asked, k))]


def _by_meaning(index: Index, embed: Embedder, question: str, k: int) -> list[tuple[int, float]]:
    scores_N = index.vectors_NH @ embed([question])[0]
    return [(int(i) + 1, float(scores_N[i])) for i in np.argsort(-scores_N, kind="stable")[:k]]


def _fused(rankings: list[list[tuple[int, float]]]) -> dict[int, float]:
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, (i, _) in enumerate(ranking, 1):
            scores[i] = scores.get(i, 0.0) + 1 / (RANK + rank)
    return scores
