"""Streamed answers: the tokens of a model without a cache, whole characters, and an end that is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_model

torch = pytest.importorskip("torch")

PROMPT = "the quick brown"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from edgewise.learn.models.load import load

    return load(str(tiny_model.save(tmp_path_factory.mktemp("tiny"))), Path())


def stream(loaded: Any, prompt: str = PROMPT, **settings: Any) -> Any:
    from edgewise.learn.models import streaming

    pieces: list[str] = []
    ids, more = streaming.prompt_token_ids(loaded.tokens, prompt), settings.pop("ends", ())
    answer = streaming.stream(
        loaded.model, loaded.tokens, ids, streaming.Decoding(**settings), pieces.append, ends=more
    )
    assert "".join(pieces) == answer.text
    return answer


def test_the_likeliest_tokens_are_those_of_a_model_without_a_cache(loaded: Any) -> None:
    from edgewise.learn.models.architecture import logits
    from edgewise.learn.models.streaming import prompt_token_ids

    ids = prompt_token_ids(loaded.tokens, PROMPT)
    assert ids[0] == loaded.tokens.start, "a document begins with this token in training"
    answer = stream(loaded, temperature=0, max_tokens=20)
    with torch.no_grad():
        for _ in range(20):
            ids.append(int(logits(loaded.model.eval(), torch.tensor([ids]))[0, -1].argmax()))
    assert answer.text == loaded.tokens.decode(ids[-20:])
    assert (answer.tokens, answer.ended) == (20, "max_tokens")
    assert 0 < answer.first_s <= answer.seconds


def test_a_seed_decides_the_draws_and_leaves_torch_alone(loaded: Any) -> None:
    before = torch.random.get_rng_state()
    one, again, other = (stream(loaded, seed=seed, max_tokens=12, temperature=1.5).text for seed in (1, 1, 2))
    assert one == again != other
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_answer_ends_at_a_token_that_ends_it(loaded: Any) -> None:
    from edgewise.learn.models.streaming import prompt_token_ids

    first = int(loaded.model(torch.tensor([prompt_token_ids(loaded.tokens, PROMPT)])).logits[0, -1].argmax())
    answer = stream(loaded, temperature=0, ends=[first])
    assert (answer.text, answer.tokens, answer.ended) == ("", 1, "end")


def test_an_answer_ends_where_the_context_does(loaded: Any) -> None:
    from edgewise.core.errors import EdgewiseError

    answer = stream(loaded, "a" * 120, temperature=0, max_tokens=50)
    assert answer.ended == "context"
    assert answer.prompt + answer.tokens == 128
    for prompt in ("a" * 130, "a" * 127):
        with pytest.raises(EdgewiseError, match="at most 128") as e:
            stream(loaded, prompt)
        assert e.value.code == "E-USE"


def test_ctrl_c_ends_the_answer_and_keeps_its_beginning(loaded: Any) -> None:
    from edgewise.learn.models import streaming

    pieces: list[str] = []

    def show(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    ids = streaming.prompt_token_ids(loaded.tokens, PROMPT)
    answer = streaming.stream(loaded.model, loaded.tokens, ids, streaming.Decoding(temperature=0), show)
    assert (answer.ended, answer.text) == ("interrupted", "".join(pieces))


def test_no_part_of_a_character_is_shown(loaded: Any) -> None:
    from edgewise.learn.models import streaming

    pieces: list[str] = []
    taken = streaming._GeneratedText(loaded.tokens, pieces.append, ())
    taken.put(torch.tensor([[0, 5]]))
    for token in loaded.tokens.encode(["a €uro"])[0].tolist():
        taken.put(torch.tensor([token]))
    assert "".join(pieces) == "a €uro"
    assert not any("�" in piece for piece in pieces)
