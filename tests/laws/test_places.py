"""Two stages of one kind draw different numbers, in a row, inside error feedback and on a rung of a ladder."""

from __future__ import annotations

import numpy as np
import pytest

from edgewise.codecs.feedback.ef14 import feedback
from edgewise.codecs.ladder import ladder
from edgewise.codecs.select.random_k import random_k
from edgewise.core.keys import Key, Turn, derive, root
from edgewise.core.memory import Memory
from edgewise.core.payload import Payload
from edgewise.core.pipeline import pipeline
from edgewise.core.space import Quorum, Space
from edgewise.core.stage import Stage
from edgewise.merges.plain import plain_sum

DIM = 100
START = Space(DIM, Quorum(2, 4))
X = np.ones(DIM, np.float32)


def turn(i: int = 0) -> Turn:
    return Turn(0, derive(root(1), "public", i), derive(root(2), "private", i), device="a")


class Probe:
    """Make a stage that changes nothing and records the keys that it gets, by its name."""

    def __init__(self) -> None:
        self.encoded: list[tuple[Key, Key]] = []
        self.decoded: list[Key] = []

    def stage(self, name: str = "probe(1)") -> Stage:
        def encode(payload: Payload, memory: Memory, space: Space, turn: Turn) -> tuple[Payload, Memory]:
            self.encoded.append((turn.public, turn.private))
            return payload, memory

        def decode(payload: Payload, space: Space, turn: Turn) -> Payload:
            self.decoded.append(turn.public)
            return payload

        return Stage(name, lambda space: space, encode, decode, lambda before, after: name, takes_support=True)


def chain_of(shape: str, probe: Probe) -> list[Stage]:
    one = probe.stage()
    return {
        "in a row": [one, probe.stage("other"), probe.stage("probe(2)"), one],
        "inside feedback": [one, feedback([probe.stage("probe(2)"), one])],
        "on a rung": [one, ladder([[probe.stage("probe(2)"), one]])],
        "on a rung inside feedback": [one, feedback([ladder([[probe.stage("probe(2)"), one]])])],
    }[shape]


@pytest.mark.parametrize("shape", ["in a row", "inside feedback", "on a rung", "on a rung inside feedback"])
def test_every_place_has_its_own_keys(shape: str) -> None:
    probe = Probe()
    pipe = pipeline(START, chain_of(shape, probe), plain_sum())
    payload, _ = pipe.encode(X, {}, 1.0, pipe.init(), turn())
    pairs = probe.encoded
    if shape == "in a row":
        assert pairs[1] == pairs[0]  # of another kind: its own name tells its keys apart
        pairs = [pairs[0], *pairs[2:]]
    assert len(pairs) == 3
    assert len(set(pairs)) == len({public for public, _ in pairs}) == len({private for _, private in pairs}) == 3
    assert pairs[0] == (turn().public, turn().private)
    probe.decoded.clear()
    server = Turn(0, turn().public, device="a")
    pipe.decode(payload, server)
    assert set(probe.decoded) == {public for public, _ in pairs}


@pytest.mark.slow
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_two_random_choices_are_unbiased(each: bool, nested: bool) -> None:
    """The mean over 4,000 rounds of each coordinate is 1, within five standard errors of sqrt(3 / 4000)."""
    one = random_k(0.5, each=each)
    pipe = pipeline(START, [one, ladder([[one]]) if nested else one], plain_sum())
    assert pipe.encoded.unbiased
    total = np.zeros(DIM)
    for i in range(4000):
        payload, _ = pipe.encode(X, {}, 1.0, Memory(), turn(i))
        total += pipe.decode(payload, turn(i)).body
    assert np.abs(total / 4000 - 1.0).max() < 5.0 * np.sqrt(3.0 / 4000)
