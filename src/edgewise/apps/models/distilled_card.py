"""The README.md of a distilled student: its origin, what was kept of the teacher, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.apps.models import model_card
from edgewise.apps.report import numbers

LOSSES = {
    "logits": "the teacher's logits at temperature {tau:g}",
    "jsd": "the generalized Jensen-Shannon divergence from the teacher, beta {beta:g}, temperature {tau:g}",
    "gkd": "the generalized Jensen-Shannon divergence from the teacher, beta {beta:g}, temperature {tau:g}, with "
    "{generated:.0%} of the steps on text that the student wrote",
    "sequence": "the next tokens of text, {generated:.0%} of it written by the teacher",
    "top_k": "the teacher's {top_k} largest logits at temperature {tau:g}",
}
COLUMNS = ("model", "perplexity", "parameters", "weights", "tokens/s read", "tokens/s generated")
ROWS = {
    "teacher": "teacher",
    "adapted": "teacher, adapted to the text",
    "ensemble": "all teachers together",
    "student": "student (this folder)",
    "alone": "the same student on the text alone",
}


def distilled_model_card(name: str, report: Mapping[str, Any], teacher: Path) -> str:
    """Write the card as Markdown, after the metadata of the hub. The teacher's licence is copied from its own card."""
    said = model_card.said_of(teacher)
    head = {key: value for key, value in said.items() if key in model_card.PASSED_ON}
    head |= {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["distillation", "edgewise"]}
    metadata = "\n".join(f"{key}: {json.dumps(value)}" for key, value in head.items())
    teachers = ", ".join(f"`{one}`" for one in report.get("ensemble", {}).get("names", [report["teacher"]["name"]]))
    rule = LOSSES[report["loss"]].format(**report)
    if report["loss"] not in ("sequence",) and report["data"]:
        rule += f". On real text, {report['data']:.0%} of the loss is that of the next tokens"
    return f"""---
{metadata}
---

# {name}

A student of {teachers}, distilled with edgewise in {report["steps"]:,} steps of {report["batch_tokens"]:,} tokens.
It began as {report["student"]["origin"]}. It learnt from {rule}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (kind.from_pretrained("FOLDER") for kind in (AutoModelForCausalLM, AutoTokenizer))
```

{table(report)}
Perplexity is per token, on {report["held_out_tokens"]:,} held-out tokens of the same text, of the weights as they are stored. Speeds are those of the
machine that distilled. Whether the teacher saw the held-out text in its own training is not known here.
"""  # noqa: E501


def distilled_model_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the figures of each model in words, in the order of ``COLUMNS``."""
    found = [(title, report[key]) for key, title in ROWS.items() if key in report]
    return [
        (
            title,
            numbers.perplexity(one["perplexity"]),
            f"{one['parameters']:,}",
            numbers.size(one["bytes"]),
            f"{one['read_tokens_per_s']:,.0f}",
            "-" if one["generated_tokens_per_s"] is None else f"{one['generated_tokens_per_s']:,.0f}",
        )
        for title, one in found
    ]


def table(report: Mapping[str, Any]) -> str:
    """Write the figures of all models as a Markdown table."""
    lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *distilled_model_rows(report)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
