"""The audit finds a clip that is missing or too loose, and a bit beside the update that is counted wrongly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgewise.apps.audit import epsilon
from edgewise.plan.mechanisms import base, central
from support.audited import POISSON, RUNS, WORDS, half_counted, passing, plan, quiet

OTHER = [(base, "clip_tensors"), (central, "following_clip")]


@pytest.mark.long(sample=2)
@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_a_missing_clip_is_caught_before_the_code_refuses_what_is_too_long(monkeypatch, word):
    """The rounding and the visible sum refuse it: the audit measures, and does not end in their errors."""
    (honest, *_) = epsilon.audit_epsilon(plan(word), True, quiet)
    assert (honest.name, honest.holds, honest.tight, honest.confidence) == ("length", True, True, 1.0)
    monkeypatch.setattr(base, "clip", passing(base.clip))
    (found,) = epsilon.audit_epsilon(plan(word), True, quiet)
    assert not found.holds
    assert found.lower > 4 * found.claimed
    assert found.epsilon_lower > found.epsilon_claimed == pytest.approx(honest.epsilon_claimed)
    assert found.left_out == ("mechanism, rounds and one run (not tried if lengths do not hold)",)


@pytest.mark.slow
@pytest.mark.parametrize(("room", "name"), OTHER)
def test_other_clips_are_tried_too(monkeypatch, room, name):
    more = {"dp__tensor_l2": 0.2} if name == "clip_tensors" else {"dp__adaptive_clip": True}
    for found in epsilon.audit_epsilon(plan("central_dp", **more), True, quiet):
        assert found.holds, found
    monkeypatch.setattr(room, name, passing(getattr(room, name)))
    assert not epsilon.audit_length(plan("central_dp", **more)).holds


@pytest.mark.parametrize(("room", "name"), OTHER)
def test_a_clip_of_twice_the_length_is_caught(monkeypatch, room, name):
    true, more = (
        getattr(room, name),
        {"dp__tensor_l2": 0.2} if name == "clip_tensors" else {"dp__adaptive_clip": True},
    )

    def loose(*args):
        honest = true(*args)

        def encode(payload, memory, space, turn):
            payload, memory = honest.encode(payload, memory, space, turn)
            return payload.but(body=2 * payload.body), memory

        return replace(honest, encode=encode)

    monkeypatch.setattr(room, name, loose)
    assert not epsilon.audit_length(plan("central_dp", **more)).holds


def test_a_bit_that_is_counted_by_half_is_caught(monkeypatch):
    """A zeroed device sends a whole bit more than one whose update is above the clip."""
    honest = epsilon.audit_length(plan("central_dp", dp__adaptive_clip=True, round__rounds=40))
    assert honest.lower == pytest.approx(honest.claimed, rel=1e-4)
    monkeypatch.setattr(central, "following_clip", half_counted(central.following_clip))
    it = plan("central_dp", dp__adaptive_clip=True, round__rounds=40)
    found = epsilon.audit_length(it)
    assert not found.holds
    assert found.lower == pytest.approx(1.2 * found.claimed, rel=0.05)


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize("broken", [False, True])
def test_releases_with_a_bit_beside_the_update_are_scored_with_it(monkeypatch, broken):
    if broken:
        monkeypatch.setattr(central, "following_clip", half_counted(central.following_clip))
    found = epsilon.mechanism_release(plan("central_dp", dp__adaptive_clip=True), RUNS * 4, quiet)
    assert found.of.startswith("one release, body and head")
    assert found.holds is not broken, found
    assert found.tight


@pytest.mark.slow
def test_a_bit_is_right_by_half_where_a_device_is_there_or_not():
    it = plan("central_dp", 400, dp__adaptive_clip=True, **POISSON)
    for found in epsilon.audit_epsilon(it, True, quiet):
        assert found.holds, found
    assert epsilon.audit_length(it).tight


def test_an_encoding_of_zeros_that_is_not_zero_is_caught(monkeypatch):
    """A clip that makes something of nothing: all lengths are as they are said to be, distances are not."""
    true = base.clip

    def shifted(l2):
        stage = true(l2)

        def encode(payload, memory, space, turn):
            away = np.full_like(payload.body, -l2 / np.sqrt(payload.body.size))
            return (payload if payload.body.any() else payload.but(body=away)), memory

        return replace(stage, encode=lambda p, m, s, t: encode(*stage.encode(p, m, s, t), s, t))

    monkeypatch.setattr(base, "clip", shifted)
    found = epsilon.audit_length(plan("central_dp"))
    assert found.lower > 1.4 * found.claimed
    assert not found.holds
