"""Text that arrives over time: what its keys need, and what a stream does not go with."""

from __future__ import annotations

import pytest

from edgewise.core.errors import RecipeError
from edgewise.plan.recipe.recipe import Recipe, from_plain

STREAM = {"source": "plays", "stream": True, "window": 5.0, "window_start": "1590", "replay": 8}
TABLE = {"source": "jsonl", "path": "t.jsonl", "owner": "who"}


def made(data: dict[str, object] | None = None, **tables: object) -> Recipe:
    tables = {"privacy": "none", "training": {"local_steps": 2, "batch": 8}, **tables}
    return from_plain({**tables, "data": {**STREAM, **(data or {})}})


@pytest.mark.parametrize(
    ("data", "code", "what"),
    [
        ({"stream": False, "replay": 0}, "E-COMBO", r"data\.window is about"),
        ({"window": 0.0}, "E-MISSING", r"data\.window is required"),
        ({"window_start": ""}, "E-MISSING", r"data\.window_start is required"),
        ({"window_start": "spring"}, "E-VALUE", "neither a number nor a date"),
        ({"window_start": "nan"}, "E-VALUE", "neither a number nor a date"),
        ({**TABLE}, "E-MISSING", r"data\.time is required"),
        ({"source": "text", "path": "notes"}, "E-COMBO", "has no times"),
        ({"source": "python-stdlib"}, "E-COMBO", "has no times"),
        ({"source": "plays-public"}, "E-COMBO", "has no times"),
        ({"replay": 0, "replay_share": 0.25}, "E-COMBO", "replays none"),
        ({"replay_share": 0.05}, "E-COMBO", "leaves no block"),
        ({"replay_share": 0.95}, "E-COMBO", "leaves no block"),
    ],
)
def test_keys_that_lack_one_another_are_refused(data: dict[str, object], code: str, what: str) -> None:
    with pytest.raises(RecipeError, match=what) as e:
        made(data)
    assert code in {fault.code for fault in e.value.faults}


@pytest.mark.parametrize(
    ("tables", "what"),
    [
        (
            {"privacy": "local_dp", "dp": {"unit": "example", "epsilon": 8.0, "delta": 1e-5}},
            "at one rate in every step",
        ),
        ({"training": {"local_epochs": 1.0}}, "passes are counted"),
        ({"personal": {"method": "ditto"}}, "no window is that"),
        ({"split": {"cut": 1}}, r"with \[split\]"),
        ({"training": {"local_steps": 2, "batch": 1}}, "leaves no block"),
    ],
)
def test_what_a_stream_does_not_go_with_is_refused_by_name(tables: dict[str, object], what: str) -> None:
    with pytest.raises(RecipeError, match=what):
        made(**tables)


@pytest.mark.parametrize("privacy", ["none", "hidden", "central_dp", "distributed_dp", "local_dp"])
def test_a_stream_goes_with_every_word_of_privacy(privacy: str) -> None:
    dp = {} if privacy in ("none", "hidden") else {"dp": {"epsilon": 8.0, "delta": 1e-5, "clip_l2": 1.0}}
    assert made(privacy=privacy, **dp).data.stream


def test_devices_of_a_server_get_the_windows_and_not_the_place_of_text() -> None:
    served = made({**TABLE, "time": "at", "window_rounds": 3, "replay_share": 0.25}).data.served()
    assert (served.source, served.path, served.time) == ("own", "", "")
    assert (served.stream, served.window, served.window_start, served.window_rounds) == (True, 5.0, "1590", 3)
    assert (served.replay, served.replay_share) == (8, 0.25)
    owned = {**served.model_dump(), "partition": "iid", "devices": 1, "source": "csv", "path": "mine.csv"}
    with pytest.raises(RecipeError, match=r"data\.time is required"):  # The owner's policy has to name the column.
        from_plain({"privacy": "none", "data": owned})
    assert from_plain({"privacy": "none", "data": {**owned, "time": "sent"}}).data.stream


def test_a_recipe_without_a_stream_keeps_its_identity() -> None:
    assert not {"stream", "window", "window_start", "window_rounds", "replay", "replay_share"} & set(
        from_plain({"privacy": "none"}).resolved()["data"]
    )
