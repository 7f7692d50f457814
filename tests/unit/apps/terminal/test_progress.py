"""Progress: the board follows events, the forecast is arithmetic, both faces (terminal and lines) say what happened."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from edgewise.apps.simulate.baselines import timed
from edgewise.apps.terminal.progress import Board, ProgressScreen
from edgewise.core import events
from unit.made_run import made_plan

HEAD = {"loss_first": 6.0, "loss_last": 5.5}


def started(round: int) -> list[events.AnyEvent]:
    return [events.RoundStarted(round=round, invited=4, goal=4, minimum=2)]


def finished(round: int, **changes: Any) -> events.RoundFinished:
    plain: dict[str, Any] = {
        "round": round, "met": True, "accepted": 3, "lost": 1, "late": 0, "bytes_up": 300, "bytes_down": 4000,
        "update_l2": 1.0, "head": HEAD, "train_s": 6.0, "encode_s": 0.1, "aggregate_s": 0.1,
        "seconds": 2.0, "model": "",
    }  # fmt: skip
    return events.RoundFinished(**{**plain, **changes})


def one_round(round: int) -> list[events.AnyEvent]:
    accepted = [
        events.Accepted(round=round, device=d, bytes_up=100, train_s=2.0, encode_s=0.0) for d in ("a", "b", "c")
    ]
    lost = events.Lost(round=round, device="d", code="E-NAN", reason="loss is NaN")
    return [*started(round), *accepted, lost, finished(round)]


RUN = events.RunStarted(run="x", name="made", rounds=12, population=4, cohort=4, dim=1000)
FEDERATED = events.PhaseStarted(phase="federated", steps=12)


def board(**recipe: Any) -> tuple[Board, list[float]]:
    clock = [0.0]
    return Board(made_plan(4, **{"personal": {"method": "none"}, **recipe}).recipe, now_s=lambda: clock[0]), clock


def test_the_board_counts() -> None:
    b, _ = board()
    for e in [RUN, FEDERATED, *one_round(0), *one_round(1)]:
        b.take(e)
    assert (b.done, b.total, b.answered, b.invited) == (2, 12, 4, 4)
    assert (b.bytes_up, b.contributions, b.bytes_down, b.invitations) == (600, 6, 8000, 8)
    assert b.lost == {"E-NAN": 2}
    assert b.losses == [5.5, 5.5]


def test_answers_to_earlier_invitations_are_counted_against_the_contributions_that_close_a_round() -> None:
    stream = io.StringIO()
    accepted = [e for e in one_round(0) if isinstance(e, events.Accepted)]
    with ProgressScreen(made_plan(4).recipe, stream) as progress:
        for e in [RUN, FEDERATED, events.RoundStarted(round=0, invited=1, goal=3, minimum=2), *accepted, finished(0)]:
            progress(e)
    assert "3/3 answered" in stream.getvalue()


def test_late_devices_are_counted_with_the_lost() -> None:
    b, _ = board()
    for e in [RUN, FEDERATED, *started(0), finished(0, late=2)]:
        b.take(e)
    assert b.lost["late"] == 2


@pytest.mark.parametrize(
    ("compare", "engine", "extra"),
    [
        ({"local_only": False, "centralised": False}, "pool", 0.0),
        ({"centralised": False}, "pool", 72.0 / 2),
        ({"local_only": False}, "pool", 72.0),
        ({}, "pool", 72.0),
        ({}, "inproc", 144.0),
    ],
)
def test_time_left_includes_the_comparisons(compare: dict[str, bool], engine: str, extra: float) -> None:
    b, clock = board(compare=compare, simulation={"engine": engine, "workers": 2})
    b.take(RUN)
    b.take(FEDERATED)
    assert b.left_s() is None, "nothing to go by yet"
    for e in one_round(0):
        b.take(e)
    clock[0] = 5.0
    assert b.left_s() == pytest.approx(5.0 * 11 + extra)  # 6 device seconds a round, 12 rounds = 72


def test_a_resumed_run_goes_by_its_own_rounds() -> None:
    b, clock = board(compare={"local_only": False, "centralised": False})
    b.take(events.RunStarted(run="x", name="made", rounds=12, population=4, cohort=4, dim=9, resumed_round=6))
    b.take(FEDERATED)
    assert b.done == 6
    assert b.left_s() is None
    for e in one_round(6):
        b.take(e)
    clock[0] = 3.0
    assert b.left_s() == pytest.approx(3.0 * 5)


def test_phases_are_timed() -> None:
    b, clock = board()
    b.take(events.PhaseStarted(phase="load"))
    clock[0] = 2.0
    b.take(FEDERATED)
    clock[0] = 5.0
    b.take(events.RunFinished(model="", seconds=5.0))
    assert b.phases == [("load", 2.0), ("federated", 3.0)]


def whole() -> list[events.AnyEvent]:
    measured = {"nll": {"a": 640.0}, "tokens": {"a": 100}, "seconds": 1.0}
    return [
        events.PhaseStarted(phase="load"),
        RUN,
        FEDERATED,
        events.Evaluated(round=-1, model="base", **measured, missing={"b": "late", "c": "E-NAN"}),
        *one_round(0),
        *started(1),
        finished(1, met=False, accepted=0, lost=4, head={}, bytes_up=0),
        events.PhaseStarted(phase="compare", steps=2),
        events.Progress(phase="compare", done=1, total=2, note="a: E-NAN: not finite."),
        events.Progress(phase="compare", done=2, total=2),
        events.RunFinished(model="", seconds=9.0),
    ]


def test_a_forecast_stands_before_the_first_round_and_is_counted_down() -> None:
    stream, told = io.StringIO(), events.Forecast(rounds_s=31.0, compare_s=22.0)
    recipe = made_plan(4, compare={"centralised": False}).recipe
    with ProgressScreen(recipe, stream) as progress:
        for e in (told, RUN, FEDERATED):
            progress(e)
    assert stream.getvalue().startswith("about 55 s from here: rounds 30 s, comparisons 20 s\n")
    b, clock = board(compare={"centralised": False})
    for e in (told, RUN, FEDERATED):
        b.take(e)
    clock[0] = 3.0
    assert b.left_s() == pytest.approx(50.0)
    for e in one_round(0):
        b.take(e)
    clock[0] = 6.0
    assert b.left_s() != pytest.approx(47.0), "rounds of this run say more than the forecast"


def test_training_alone_for_longer_is_in_the_time_left() -> None:
    longer = {"centralised": False, "longer": 3, "longer_devices": 2}
    b, clock = board(compare=longer, simulation={"engine": "pool", "workers": 2})
    for e in (RUN, FEDERATED, *one_round(0)):
        b.take(e)
    clock[0] = 5.0
    assert b.left_s() == pytest.approx(5.0 * 11 + 72.0 / 2 + 72.0 / 4 * 3 * 2 / 2)


@pytest.mark.parametrize(
    ("personal", "further_s"),
    [
        ({"method": "fine_tune", "steps": 24}, 18.0),
        ({"method": "interpolate", "weight": 0.0, "steps": 12}, 18.0),  # without and with the held-back text
        ({"method": "ditto", "steps": 24}, 0.0),  # beside the rounds
    ],
)
def test_personal_models_are_in_the_time_left_also_of_training_alone(
    personal: dict[str, Any], further_s: float
) -> None:
    """12 rounds of 8 steps take the devices 72 s, so 24 steps of each take 18 s."""
    b, clock = board(compare={"centralised": False}, personal=personal)
    for e in (RUN, FEDERATED, *one_round(0)):
        b.take(e)
    clock[0] = 5.0
    assert b.left_s() == pytest.approx(5.0 * 11 + 72.0 + 2 * further_s)
    b.take(events.PhaseStarted(phase="personal", steps=4))
    clock[0] += 8.0
    assert b.left_s() == pytest.approx(max(0.0, further_s - 8.0))


@pytest.mark.parametrize(
    ("compare", "title"),
    [
        ({}, "comparisons: each device alone, and all text in one place"),
        ({"centralised": False}, "comparison: each device alone"),
        ({"local_only": False}, "comparison: all text in one place"),
    ],
)
def test_comparisons_are_called_what_they_are(compare: dict[str, bool], title: str) -> None:
    stream = io.StringIO()
    with ProgressScreen(made_plan(4, compare=compare).recipe, stream) as progress:
        progress(events.PhaseStarted(phase="compare", steps=2))
    assert stream.getvalue() == f"{title}\n"


@pytest.mark.quick(sample=6)
@pytest.mark.parametrize("compare", [{}, {"centralised": False}, {"local_only": False}])
@pytest.mark.parametrize("phase", ["load", "federated", "compare", "longer", "evaluate", "report"])
def test_the_bar_and_its_title_fit_into_80_columns(compare: dict[str, bool], phase: str) -> None:
    progress = ProgressScreen(made_plan(4, compare=compare).recipe, io.StringIO(), live=False)
    for e in (RUN, events.PhaseStarted(phase=phase, steps=2), events.Progress(phase=phase, done=1, total=2)):
        progress.board.take(e)
    screen = io.StringIO()
    Console(file=screen, width=80).print(progress.render())
    assert "elapsed" in screen.getvalue().splitlines()[0]
    assert len(screen.getvalue().splitlines()) <= 2, screen.getvalue()


def test_lines_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with ProgressScreen(made_plan(4).recipe, stream) as progress:
        for e in whole():
            progress(e)
    text = stream.getvalue()
    assert "\033" not in text
    assert "round  1/12  3/4 answered  lost 1, late 0  loss 5.5000  up 100 B each  2.0 s\n" in text
    assert "abandoned: too few contributions" in text
    assert "perplexity base: 601.8  without 2 devices that did not measure it\n" in text
    assert "compare 1/2  no figure for a: E-NAN: not finite.\n" in text
    assert "compare 2/2" in text


def test_the_live_part_draws_every_state_and_cleans_up() -> None:
    stream = io.StringIO()
    with ProgressScreen(made_plan(4).recipe, stream, live=True) as progress:
        drawn = []
        for e in whole():
            progress(e)
            canvas = Console(file=io.StringIO(), width=100)
            canvas.print(progress.render())
            drawn.append(canvas.file.getvalue())  # type: ignore[attr-defined]
        progress.stopping()
    assert any("round 1/12" in d and "●●●●" in d for d in drawn)
    assert any("1 E-NAN" in d for d in drawn)
    assert any("no figure" in d and "a: E-NAN" in d for d in drawn)
    assert "loading model and text" in stream.getvalue(), "a finished phase leaves its line"


def test_quiet_is_quiet() -> None:
    stream = io.StringIO()
    with ProgressScreen(made_plan(4).recipe, stream, quiet=True, live=True) as progress:
        for e in whole():
            progress(e)
    assert stream.getvalue() == ""
    assert progress.board.contributions == 3


def test_ci_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("CI", "true")
    stream = Terminal()
    with ProgressScreen(made_plan(4).recipe, stream) as progress:
        progress(FEDERATED)
    assert stream.getvalue() == "federated rounds\n"


def test_a_comparisons_time_includes_its_training() -> None:
    measured = events.Evaluated(round=3, model="centralised", nll={}, tokens={}, seconds=2.0)
    assert timed(measured, 3.0).seconds == 5.0
