"""Evaluate models in use on the rows of a file, per device and in all.

found = evaluate_in_use(used, ["global", "base"], rows, EvaluationRequest())
found["global"]["all"]["perplexity"]
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from edgewise.apps.models.in_use import UsedModel
from edgewise.core.errors import EdgewiseError
from edgewise.learn.models import scoring
from edgewise.learn.models.architecture import sizes
from edgewise.learn.models.streaming import BY_HAND, Decoding, prompt_token_ids, stream
from edgewise.learn.text.evaluation_rows import EVERYBODY, EvaluationRow

ROUGE = "rouge_l"
Score = Callable[[Mapping[str, Any], str], float]


class EvaluationRequest(NamedTuple):
    """A request for an evaluation.

    Attributes:
        length: tokens of a block, for the perplexity.
        rouge: generate an answer to each prompt, and compare it with the row's text.
        metric: ``module:name`` of a function (row, answer) -> number, for the generated answers. None: none.
        max_tokens: of a generated answer.
    """

    length: int = 128
    rouge: bool = False
    metric: str | None = None
    max_tokens: int = 128


class _Sums:
    """Sums of one model over the rows of one device."""

    def __init__(self) -> None:
        self.nll = self.tokens = self.size_bytes = self.rows = 0.0
        self.scores: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        self.scores.setdefault(name, []).append(value)

    def plain(self) -> dict[str, float | int | None]:
        """Return the figures. None for one that is not finite."""
        found: dict[str, Any] = {"rows": int(self.rows), "tokens": int(self.tokens)}
        if self.tokens:
            found["perplexity"] = math.exp(min(self.nll / self.tokens, 700.0))
            found["bits_per_byte"] = self.nll / math.log(2) / self.size_bytes if self.size_bytes else None
        means = {name: math.fsum(values) / len(values) for name, values in self.scores.items()}
        return {**found, **{name: mean if math.isfinite(mean) else None for name, mean in means.items()}}


def evaluate_in_use(
    used: UsedModel,
    names: Sequence[str],
    rows: Sequence[EvaluationRow],
    wanted: EvaluationRequest,
    step: Callable[[str, int, int], object] = lambda what, done, of: None,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Evaluate models in use on the rows of a file.

    A row of text counts for the perplexity and the bits per byte, a question for ``accuracy`` and ``accuracy_by_byte``,
    and a prompt with text for the generated answers too, which are greedy. Without a device of its own, the model
    ``personal`` is each row's owner's.

    Returns:
        Model -> device -> figures. The device ``"all"`` has all rows: sums of losses are added before they are divided,
        and other figures are means over rows.
    Raises:
        EdgewiseError: E-USE for a model that is not there, or for a metric without a row to generate from.
            E-EXTENSION for a metric that cannot be imported. E-DEPENDENCY without rouge-score.
    """
    scores, context = _answer_scores(wanted), sizes(used.model).context
    if context is not None and wanted.length > context:
        what = f"a block of {wanted.length} tokens is longer than the model's context of {context}."
        raise EdgewiseError("E-USE", what, f"take --length {context} or less.")
    if scores and not any(row.prompt and row.text for row in rows):
        what = "no row has a prompt and a text, so there is no answer to generate."
        raise EdgewiseError("E-USE", what, "give rows with prompt and text, or leave out --rouge and --metric.")
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for name in names:
        sums: dict[str, _Sums] = {EVERYBODY: _Sums()}
        for done, row in enumerate(sorted(rows, key=lambda row: row.owner), 1):
            used.turn_to(name, row.owner)
            places = [sums[EVERYBODY]]
            if row.owner != EVERYBODY:
                places.append(sums.setdefault(row.owner, _Sums()))
            _add_scores(used, row, wanted, scores, places)
            step(f"{name} model", done, len(rows))
        found[name] = {device: one.plain() for device, one in sums.items()}
    return found


def _add_scores(
    used: UsedModel, row: EvaluationRow, wanted: EvaluationRequest, scores: Mapping[str, Score], places: Sequence[_Sums]
) -> None:
    """Score a row and add it to the sums of all and of its device."""
    figures: dict[str, float] = {}
    held, size_bytes = None, 0
    if row.choices:
        chosen, by_byte = scoring.likeliest_answer(used.model, used.tokens, row)
        figures = {"accuracy": float(chosen == row.answer), "accuracy_by_byte": float(by_byte == row.answer)}
    else:
        held, size_bytes = scoring.text_loss(used.model, used.tokens, row, wanted.length)
        if scores and row.prompt and row.text:
            settings = Decoding(wanted.max_tokens, 0.0)
            ids = prompt_token_ids(used.tokens, row.prompt)
            answer = stream(used.model, used.tokens, ids, settings, lambda piece: None)
            if answer.ended == BY_HAND:
                raise KeyboardInterrupt
            figures = {name: float(score(row.plain, answer.text)) for name, score in scores.items() if name != ROUGE}
            if ROUGE in scores:
                figures[ROUGE] = scores[ROUGE]({"text": row.text}, answer.text)
    for place in places:
        place.rows += 1
        if held is not None:
            place.nll, place.tokens = place.nll + held.nll, place.tokens + held.tokens
            place.size_bytes += size_bytes
        for name, value in figures.items():
            place.add(name, value)


def _answer_scores(wanted: EvaluationRequest) -> dict[str, Score]:
    """Return the functions that score generated answers, by name."""
    found: dict[str, Score] = {}
    if wanted.rouge:
        found[ROUGE] = _rouge_score()
    if wanted.metric is not None:
        module, _, name = wanted.metric.partition(":")
        if not name:
            what = f"{wanted.metric!r:.60} is no metric."
            raise EdgewiseError("E-EXTENSION", what, "write MODULE:FUNCTION, as in --metric my_scores:exact.")
        try:
            found[name] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as e:
            fix = "check the module's name and its folder; the current folder is searched."
            raise EdgewiseError("E-EXTENSION", f"there is no function {wanted.metric!r:.60}: {e}.", fix) from e
    return found


def _rouge_score() -> Score:
    """Return ROUGE-L's F1 of an answer and a row's text, by the rouge-score package, without stemming.

    Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        fix = 'pip install "edgewise[eval]".'
        raise EdgewiseError("E-DEPENDENCY", "ROUGE-L needs the package rouge-score.", fix) from None

    scorer = RougeScorer(["rougeL"])
    return lambda row, answer: float(scorer.score(row["text"], answer)["rougeL"].fmeasure)
