"""The section [drift]: what its keys need, and what they do not go with."""

from __future__ import annotations

import pytest

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.recipe import Recipe, from_plain

STREAM = {"source": "plays", "stream": True, "window": 5.0, "window_start": "1590"}


def made(**tables: object) -> Recipe:
    given = {"privacy": "none", "training": {"local_steps": 2, "batch": 8}, "data": STREAM, "drift": {"penalty": 1e4}}
    return from_plain({**given, **tables})


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ({"data": {"source": "plays"}}, "data.stream is false"),
        ({"drift": {"penalty_keep": 0.5}}, "which is not asked for"),
        ({"privacy": "hidden", "codec": "adaptive"}, 'codec = "adaptive": behind masks'),
        ({"strategy": {"kind": "zeroth_order"}}, "take no gradient"),
        ({"trainable": {"kind": "lora", "rank": 2, "rule": "flora"}}, "begin anew"),
        ({"engine": {"batch_devices": 4}}, "one by one"),
        ({"personal": {"method": "ditto"}}, "no window is that"),
        (
            {"privacy": "local_dp", "dp": {"unit": "example", "epsilon": 8.0, "delta": 1e-5}},
            "at one rate in every step",
        ),
    ],
)
def test_what_a_penalty_does_not_go_with_is_refused_by_name(tables: dict[str, object], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        made(**tables)


@pytest.mark.parametrize("privacy", ["none", "hidden", "central_dp", "distributed_dp", "local_dp"])
def test_a_penalty_goes_with_every_word_of_privacy(privacy: str) -> None:
    dp = {} if privacy in ("none", "hidden") else {"dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}}
    assert made(privacy=privacy, **dp).drift.stays


IN_ALARM = [{"name": "in_alarm", "lower": 0.0, "upper": 1.0}]


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        ({"drift": {"threshold": 1.0}}, "about drift.alarm, which is not asked for"),
        ({"data": {"source": "plays"}}, "drift.alarm is for text that arrives over time"),
        ({"drift": {"alarm": True, "act_step": 2.0}}, "no .*metric.* sends in_alarm"),
        ({"drift": {"alarm": True, "act_step": 2.0}, "metric": [{**IN_ALARM[0], "upper": 2.0}]}, "from 0 to 1"),
        (
            {"drift": {"alarm": True, "act_step": 2.0}, "metric": IN_ALARM, "strategy": {"kind": "feddyn"}},
            "a longer step would part",
        ),
        ({"strategy": {"kind": "zeroth_order"}}, "report no alarm"),
        ({"engine": {"batch_devices": 4}}, "one by one"),
    ],
)
def test_what_an_alarm_needs_and_does_not_go_with_is_refused_by_name(tables: dict[str, object], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        made(**{"drift": {"alarm": True}, **tables})


@pytest.mark.parametrize("privacy", ["none", "hidden", "central_dp", "distributed_dp", "local_dp"])
def test_an_alarm_and_its_action_go_with_every_word_of_privacy(privacy: str) -> None:
    dp = {} if privacy in ("none", "hidden") else {"dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}}
    assert made(privacy=privacy, drift={"alarm": True, "act_step": 2.0}, metric=IN_ALARM, **dp).drift.act_step == 2.0


def test_a_recipe_without_drift_keeps_its_identity() -> None:
    assert "drift" not in from_plain({"privacy": "none"}).resolved()
