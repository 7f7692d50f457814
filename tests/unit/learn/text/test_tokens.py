"""Wishes of a tokenizer's file beside splitting text: they never change the text of a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_model

pytest.importorskip("tokenizers")
TEXT = "the quick brown fox jumps over the lazy dog " * 3


def truncate(backend: Any) -> None:
    backend.enable_truncation(16)


def pad(backend: Any) -> None:
    backend.enable_padding(length=512)


def drop(backend: Any) -> None:
    backend.model.dropout = 0.9


def surround(backend: Any) -> None:
    from tokenizers import processors

    around = f"{tiny_model.END} $A {tiny_model.END}"
    backend.post_processor = processors.TemplateProcessing(single=around, special_tokens=[(tiny_model.END, 0)])


@pytest.mark.parametrize(("asked", "said"), [(truncate, "16"), (pad, "padding"), (drop, "dropout"), (surround, "")])
def test_what_the_file_asks_for_does_not_change_a_text(asked: Callable[[Any], None], said: str) -> None:
    from edgewise.learn.text.tokens import Tokens

    (wanted,) = Tokens(tiny_model.tokenizer()).encode([TEXT])
    tokenizer = tiny_model.tokenizer()
    asked(tokenizer.backend_tokenizer)
    tokens = Tokens(tokenizer)
    (found,) = tokens.encode([TEXT])
    assert np.array_equal(found, wanted)
    assert len(tokens.notes) == bool(said)
    assert said in "".join(tokens.notes)
    assert tokens.length_of_first(TEXT, len(wanted)) == len(TEXT)
