"""Masks of chats beside vectors that TRL's SFT trainer has made of the same rows (``benchmarks/sft_masks.py``)."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from edgewise.learn.text.blocks import build
from edgewise.learn.text.corpus import Document
from edgewise.learn.text.messages import pack_chat
from edgewise.learn.text.tokens import Tokens
from edgewise.plan.recipe.data import DataSection

VECTORS = json.loads((Path(__file__).parent / "sft_masks.json").read_text(encoding="utf-8"))


@cache
def tokens(template: str) -> Tokens:
    made = AutoTokenizer.from_pretrained(Path(str(resources.files("edgewise"))) / "assets" / "student")
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = template
    return Tokens(made)


def own(row: dict[str, Any], template: str) -> tuple[list[int], list[int]]:
    keys: dict[str, Any] = {"source": "jsonl", "path": "rows.jsonl", "owner": "who", "sequence_len": 512}
    if isinstance(row.get("prompt"), str):
        section = DataSection(**keys, prompt="prompt", text="completion")
        document = Document("row", row["prompt"], row["completion"])
    else:
        chat = row["messages"] if "messages" in row else [*row["prompt"], *row["completion"]]
        section = DataSection(**keys, messages="messages", answers="all" if "messages" in row else "last")
        document = Document("row", *pack_chat(chat, row.get("tools"), section.answers == "last"))
    (ids,) = build([document], tokens(template), section, cut_each=False).train_NS
    ids = ids[: int(np.flatnonzero(ids >= 0)[-1]) + 1]
    return np.where(ids < 0, ~ids, ids).tolist(), (ids >= 0).astype(int).tolist()


@pytest.mark.parametrize("case", sorted({v["case"] for v in VECTORS}))
def test_ids_and_masks_are_those_of_trl(case: str) -> None:
    vectors = [v for v in VECTORS if v["case"] == case]
    assert len(vectors) == 4
    for v in vectors:
        ids, learnt = own(v["row"], v["template"])
        if isinstance(v["row"].get("prompt"), str):  # We begin a text with a token that is never learnt.
            ids, learnt = ids[1:], learnt[1:]
        assert ids == v["ids"][: len(ids)]
        assert learnt == v["learnt"][: len(ids)]
        assert not any(v["learnt"][len(ids) :])
