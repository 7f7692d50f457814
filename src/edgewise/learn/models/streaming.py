"""Continue a prompt token by token, with a key-value cache, and show the text as it appears.

    ids = prompt_token_ids(tokens, "Once upon a time")
    answer = stream(model, tokens, ids, Decoding(max_tokens=50), print)

transformers generates. Each new piece of text is shown at once, and never a part of a character.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from tokenizers.decoders import DecodeStream
from torch import nn
from transformers import GenerationConfig
from transformers.generation.streamers import BaseStreamer

from edgewise.core.errors import EdgewiseError, ModelError
from edgewise.core.keys import derive, root
from edgewise.learn.models.architecture import sizes
from edgewise.learn.seeded import seeded
from edgewise.learn.text.tokens import Tokens

BY_END, BY_LENGTH, BY_CONTEXT, BY_HAND = "end", "max_tokens", "context", "interrupted"


class Decoding(NamedTuple):
    """Settings of a generation.

    Attributes:
        max_tokens: largest number of new tokens, at least 1.
        temperature: the logits are divided by it. 0 takes the likeliest token each time.
        top_p: tokens are drawn from the smallest set of the likeliest ones with this probability (Holtzman et al. 2020,
            arXiv:1904.09751, section 3.1). 1 takes all tokens.
        seed: decides the draws.
    """

    max_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0


class GeneratedText(NamedTuple):
    """A generated text.

    Attributes:
        text: the text without special tokens. prompt: number of tokens that were read. tokens: number of new tokens.
        ended: ``"end"`` for a token that ends a text, ``"max_tokens"``, ``"context"`` where the model can read no
            further, or ``"interrupted"`` by Ctrl-C.
        first_s: seconds to the first token. seconds: of the whole generation.
    """

    text: str
    prompt: int
    tokens: int
    ended: str
    first_s: float
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Rate of the tokens after the first. 0 for fewer than two tokens."""
        after = self.seconds - self.first_s
        return (self.tokens - 1) / after if self.tokens > 1 and after > 0 else 0.0


def prompt_token_ids(tokens: Tokens, prompt: str) -> list[int]:
    """Return a prompt's tokens as in training: after the token that starts a document. May be empty without one."""
    start = [] if tokens.start is None else [tokens.start]
    return start + tokens.encode([prompt])[0].tolist()


def room_for_tokens(model: nn.Module, prompt: int) -> int | None:
    """Return the number of tokens that a model can add to a prompt. None without a limit."""
    longest = sizes(model).context
    return None if longest is None else longest - prompt


def stream(
    model: nn.Module,
    tokens: Tokens,
    ids: Sequence[int],
    settings: Decoding,
    show: Callable[[str], object],
    ends: Collection[int] = (),
) -> GeneratedText:
    """Generate tokens after ``ids`` and show each piece of text.

    Args:
        ids: the prompt's tokens, at least one.
        show: called with each new piece of text. Pieces are whole characters, and together they are the answer.
        ends: further tokens that end an answer. The tokenizer's and the model's own always do.
    Returns:
        The answer. Ctrl-C ends it early.
    Raises:
        EdgewiseError: E-USE for a prompt without tokens, or one that fills the model's context.
        ModelError: E-MODEL where transformers cannot generate with this model.
    Guarantees:
        Equal arguments give equal tokens on the same processor. torch's global generator stays as it is.
    """
    if not hasattr(model, "generate"):
        raise ModelError("E-MODEL", "transformers cannot generate text with this model.", "take a language model.")
    left = room_for_tokens(model, len(ids))
    if not ids:
        raise EdgewiseError("E-USE", "the prompt has no token.", "write some text after --prompt.")
    if left is not None and left < 1:
        what = f"the prompt has {len(ids)} tokens. The model reads at most {len(ids) + left}, with its answer."
        raise EdgewiseError("E-USE", what, "shorten the prompt.")
    longest = settings.max_tokens if left is None else min(settings.max_tokens, left)
    ending = sorted({*ends, *_ends(model, tokens)})
    drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if settings.temperature > 0:
        drawn = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    config = GenerationConfig(
        max_new_tokens=longest, num_beams=1, use_cache=True, eos_token_id=ending or None,
        pad_token_id=ending[0] if ending else 0, repetition_penalty=1.0, **drawn,
    )  # fmt: skip
    pieces = _GeneratedText(tokens, show, ending)
    ids_BT = torch.tensor([list(ids)], device=next(model.parameters()).device)
    model.eval()
    begun, interrupted = time.perf_counter(), False
    try:
        with seeded(derive(root(settings.seed), "answer")):
            pieces.begin(begun)
            model.generate(
                input_ids=ids_BT, attention_mask=torch.ones_like(ids_BT), generation_config=config, streamer=pieces
            )
    except KeyboardInterrupt:
        interrupted = True
    seconds = time.perf_counter() - begun
    ended = BY_LENGTH if longest == settings.max_tokens else BY_CONTEXT
    ended = BY_HAND if interrupted else BY_END if pieces.ended else ended
    return GeneratedText("".join(pieces.text), len(ids), pieces.count, ended, pieces.first_s, seconds)


def _ends(model: nn.Module, tokens: Tokens) -> set[int]:
    """Return the tokens that end a text: the tokenizer's, and those of the model's generation_config.json."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = own if isinstance(own, list) else [own]
    return {int(token) for token in (*listed, tokens.end) if token is not None}


class _GeneratedText(BaseStreamer):
    """Decode tokens as transformers gives them. The first call has the prompt."""

    def __init__(self, tokens: Tokens, show: Callable[[str], object], ends: Collection[int]) -> None:
        self._tokens, self._show, self._ends = tokens, show, set(ends)
        self._decoding = DecodeStream(skip_special_tokens=True)
        self._prompt_seen, self._begun = False, 0.0
        self.text: list[str] = []
        self.count, self.first_s, self.ended = 0, 0.0, False

    def begin(self, at: float) -> None:
        """Set the time from which the first token is measured."""
        self._begun = at

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt, then one token at a time."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.reshape(-1).tolist():
            self.count += 1
            self.first_s = self.first_s or time.perf_counter() - self._begun
            self.ended = token in self._ends
            if not self.ended and (piece := self._tokens.piece(self._decoding, token)):
                self.text.append(piece)
                self._show(piece)

    def end(self) -> None:
        """Nothing is left to show: a part of a character is never shown."""
