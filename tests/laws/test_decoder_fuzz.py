"""Decoders under damaged bytes: payloads and frames are refused by code, or are exactly what they encode."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from fuzz import KINDS, Damage, frame_is_strict, limit_bytes, payload_is_strict, peak_bytes
from hypothesis import given
from hypothesis import strategies as st

from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.keys import Turn, derive, root
from edgewise.core.pipeline import Pipeline
from laws.test_stages import CHAINS, COUNT, LOSS, VECTORS, Chain

TURN = Turn(0, derive(root(1), "public", 0), derive(root(2), "private", 0))
DAMAGE = st.builds(
    Damage, st.sampled_from(KINDS), st.integers(0, 1 << 20), st.integers(0, 1 << 20), st.integers(0, 1 << 32)
)
every = pytest.mark.parametrize("chain", CHAINS, ids=lambda c: c.name)

PLANS: dict[str, tuple[Pipeline, list[bytes]]] = {}


def streams_of(chain: Chain) -> tuple[Pipeline, list[bytes]]:
    """The chain's pipeline and some valid streams."""
    if chain.name not in PLANS:
        pipe = chain.at()
        encoded = (pipe.encode(VECTORS[n], LOSS, COUNT, pipe.init(), TURN)[0] for n in ("gaussian", "heavy", "zeros"))
        PLANS[chain.name] = pipe, [pack.pack(payload, pipe.encoded) for payload in encoded]
    return PLANS[chain.name]


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.slow
@every
@pytest.mark.long
@given(which=st.integers(0, 2), other=st.integers(0, 2), damages=st.lists(DAMAGE, min_size=1, max_size=3))
def test_damaged_payloads(chain: Chain, which: int, other: int, damages: list[Damage]) -> None:
    pipe, streams = streams_of(chain)
    raw = streams[which]
    for damage in damages:
        raw = damage(raw, streams[other])
    accepted = payload_is_strict(raw, pipe, TURN)
    if raw != streams[which] and len(damages) == 1 and damages[0].kind in ("cut", "extend"):
        assert not accepted, "a part of a stream, or more than one, is none"


@pytest.mark.quick(sample=10)
@every
def test_untouched_payloads_are_accepted(chain: Chain) -> None:
    pipe, streams = streams_of(chain)
    assert all(payload_is_strict(raw, pipe, TURN) for raw in streams)


@pytest.mark.quick(sample=10)
@every
def test_decoding_allocates_by_what_was_announced(chain: Chain, traced: None) -> None:
    pipe, streams = streams_of(chain)
    noise = np.random.default_rng(1)
    tried = [*streams, *(noise.bytes(len(streams[0])) for _ in range(5)), b"", bytes(10**7), streams[1] * 9]
    peak_bytes(streams[0], pipe.encoded)  # This fills the caches first.
    for raw in tried:
        assert peak_bytes(raw, pipe.encoded) <= limit_bytes(pipe.encoded)


def frames() -> list[bytes]:
    rule = frame.LocalRule(steps=3, lr=0.1)
    messages: list[frame.Message] = [
        frame.Invite(
            run="r" * 64, round=3, spec="s" * 64, model="m" * 64, public=bytes(range(32)), accepted=None,
            deadline_s=1.5, rule=rule,
        ),
        frame.Contribution(run="r" * 64, round=3, device="d1", payload=bytes(range(256))),
        frame.Refusal(run="r" * 64, round=3, device="d1", code="E-NAN", reason="not finite"),
        frame.Measurement(run="r" * 64, round=3, device="d1", nll=12.5, tokens=7),
    ]  # fmt: skip
    return [frame.dump(m) for m in messages]


@pytest.mark.long
@given(
    which=st.integers(0, 3),
    other=st.integers(0, 3),
    damages=st.lists(DAMAGE, min_size=1, max_size=3),
    any=st.booleans(),
)
def test_damaged_frames(which: int, other: int, damages: list[Damage], any: bool) -> None:
    valid = frames()
    raw = valid[which]
    for damage in damages:
        raw = damage(raw, valid[other])
    frame_is_strict(valid[which][:4] + raw[4:] if any else raw)  # also past the header


def test_the_damage_does_damage() -> None:
    """The fuzzing must not be vacuous: every kind changes the stream, and is refused at least sometimes."""
    pipe, streams = streams_of(next(c for c in CHAINS if "top_k(0.05) > quantize(4" in c.name))
    for kind in KINDS:
        outs = [Damage(kind, 7 * i, 11 * i, i)(streams[0], streams[1]) for i in range(1, 40)]
        assert sum(out != streams[0] for out in outs) > 20, kind
        assert not all(payload_is_strict(out, pipe, TURN) for out in outs), kind
