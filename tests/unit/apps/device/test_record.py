"""The record of what left a device: durable before a frame leaves, once for each frame, in plain words."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from session import Session
from toy_recipe import make_recipe

from edgewise.apps.device import record
from edgewise.apps.device.record import Record, device_record_lines, device_record_summary
from edgewise.core import frame
from edgewise.core.errors import EdgewiseError, RecipeError, TransportError
from edgewise.core.vector import Spec
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.secagg import messages

SPEC = Spec.of([("w", (40,), "float32")])
NOON = time.mktime((2026, 12, 1, 12, 0, 0, 0, 0, -1))
DP = {
    "round.rounds": 1,
    "dp.noise_multiplier": 4.0,
    "dp.delta": 1e-5,
    "dp.clip_l2": 4.0,
    "metrics": "none",
    "stage": [],
}
PLAIN: dict[str, Any] = {"privacy": "none"}
NOISED: dict[str, Any] = {**DP, "privacy": "local_dp"}
STAGES = [
    {"kind": "weigh", "cap": 160}, {"kind": "clamp", "linf": 2.0}, {"kind": "quantize", "bits": 8, "grid": "shared"},
    {"kind": "wrap"},
]  # fmt: skip
MASKED: dict[str, Any] = {"privacy": "hidden", "stage": STAGES}


def plan(settings: dict[str, Any]) -> Plan:
    return compile(make_recipe(settings), SPEC, 8, BUILT_IN)


def contribution(size: int = 100, round: int = 0, run: str = "r") -> bytes:
    return frame.dump(frame.Contribution(run=run, round=round, device="d", payload=memoryview(bytes(size))))


def refusal(code: str = "E-BUDGET") -> bytes:
    return frame.dump(frame.Refusal(run="r", round=1, device="d", code=code, reason="no more epsilon"))


def test_each_frame_is_written_once_before_it_leaves(tmp_path: Path) -> None:
    plain, raw = plan(PLAIN), contribution()
    left = Record(tmp_path, lambda: NOON)
    left.frame("server", plain, raw, 0.5)
    assert (tmp_path / record.FILE).stat().st_mode & 0o077 == 0
    left.frame("server", plain, raw, 0.5)
    again = Record(tmp_path, lambda: NOON)
    again.frame("server", plain, raw, 0.5)
    (row,) = device_record_lines(tmp_path)
    assert (row.server, row.run, row.round, row.size, row.epsilon) == ("server", "r", 0, len(raw), 0.5)
    assert left.today(NOON + 3600.0) == again.today(NOON) == len(raw)
    assert left.today(NOON + 86400.0) == 0
    assert Record(tmp_path).today(NOON) == len(raw), "a new process counts what left before"


def test_the_limit_of_a_round_counts_what_really_leaves_in_all_its_attempts(tmp_path: Path) -> None:
    plain, raw, size = plan(PLAIN), contribution(), len(contribution())
    made = lambda: Record(tmp_path, lambda: NOON, 2.5 * size)  # noqa: E731
    left = made()
    left.frame("s", plain, raw)
    left.sends(size)
    assert left.too_much_again("r", 0, 2 * size)
    assert left.too_much_again("r", 0, size) is None
    assert left.too_much_again("r", 1, 2 * size) is None
    left.sends(size)  # the server has lost it
    with pytest.raises(TransportError, match="MB have left in this round"):
        left.sends(size)
    with pytest.raises(TransportError, match="E-OWNER"):
        left.frame("s", plain, contribution(99))
    left.frame("s", plain, refusal())
    left.frame("s", plain, contribution(99, round=1))
    resumed = made()
    assert resumed.too_much_again("r", 0, 2 * size) is None, "it may send the rest of what it has begun"
    resumed.frame("s", plain, raw)
    resumed.sends(size)


def test_what_leaves_again_is_in_the_record(tmp_path: Path) -> None:
    raw = contribution(2 * record.AGAIN_BYTES)
    left = Record(tmp_path, lambda: NOON)
    left.frame("s", plan(PLAIN), raw)
    for _ in range(3):
        left.sends(len(raw))
    assert left.again(NOON) == 2 * len(raw)
    assert Record(tmp_path).today(NOON) == 3 * len(raw)
    counted = device_record_summary(device_record_lines(tmp_path), NOON)["all"]
    assert (counted["frames"], counted["bytes"]) == (1, 3 * len(raw))


def test_what_crosses_a_cut_is_recorded_before_it_leaves_and_counts_for_the_round(tmp_path: Path) -> None:
    left = Record(tmp_path, lambda: NOON, round_bytes=3e6)
    for _ in range(10):
        left.crosses("server", "r", 0, 200_000)
    assert [(row.kind, row.size) for row in device_record_lines(tmp_path)] == [
        (record.CROSSED, record.CROSSED_BYTES)
    ] * 2
    left.crosses("server", "r", 1, 100)
    assert left.today(NOON) == 3 * record.CROSSED_BYTES
    assert device_record_summary(device_record_lines(tmp_path), NOON)["runs"][0]["bytes"] == 3 * record.CROSSED_BYTES
    left.crosses("server", "r", 1, 2_900_000)
    with pytest.raises(TransportError) as refused:
        left.crosses("server", "r", 1, 100_000)
    assert refused.value.code == "E-OWNER"


@pytest.mark.parametrize(
    ("settings", "said", "promised"),
    [
        (PLAIN, "update, readable by the server", "no epsilon"),
        (NOISED, "noised update", "for all text of this device in the whole run, against the server"),
        ({**NOISED, "privacy": "central_dp"}, "update, readable by the server", "against readers of the models"),
        ({**MASKED, "merge": {"kind": "shared_sum"}}, "update in two sealed shares", "no epsilon"),
    ],
)
def test_an_update_is_named_by_who_can_read_it_and_what_its_run_promises(
    tmp_path: Path, settings: dict[str, Any], said: str, promised: str
) -> None:
    Record(tmp_path).frame("s", plan(settings), contribution())
    (row,) = device_record_lines(tmp_path)
    assert row.kind == said
    assert promised in (row.promise or "")


def test_every_message_of_a_hidden_sum_has_a_name(tmp_path: Path) -> None:
    left, masked = Record(tmp_path), plan({**MASKED, "merge": {"kind": "secure_sum"}})
    session = Session(4)
    session.play()
    said = {type(messages.load_secagg_message(body)): body for body in session.sent}
    own = (
        messages.AdvertiseMessage,
        messages.SharesMessage,
        messages.MaskedMessage,
        messages.ConsistentMessage,
        messages.RevealedMessage,
    )
    for number, body in enumerate(said[step] for step in own):
        left.frame("s", masked, frame.dump(frame.Step(run="r", round=number, device="d", body=body)))
    left.frame(
        "s", masked,
        frame.dump(frame.Step(run="r", round=9, device="d", body=messages.dump(messages.Abort(code="E-SECAGG-FEW")))),
    )  # fmt: skip
    found = device_record_lines(tmp_path)
    assert [row.kind for row in found] == [
        "public keys of a hidden sum", "sealed shares of its keys", "masked update",
        "signature on who is in the sum", "shares of others' keys that open the sum", "refusal",
    ]  # fmt: skip
    assert (found[-1].reason or "").startswith("E-SECAGG-FEW")


def test_a_summary_counts_by_day_and_run_and_names_refusals(tmp_path: Path) -> None:
    now, plain = [NOON - 86400.0], plan(PLAIN)
    left = Record(tmp_path, lambda: now[0])
    left.frame("s", plain, contribution(1000), 0.25)
    now[0] = NOON
    left.frame("s", plain, contribution(10, round=1), 0.5)
    left.frame("s", plain, contribution(20, run="other"))
    left.frame("s", plain, refusal())
    for _ in range(2):
        left.refused("s", "third", RecipeError("E-FLOOR", "the owner of this device asks for more."))
    found = device_record_summary(device_record_lines(tmp_path), NOON + 60.0)
    sizes = {1: len(contribution(10, round=1)) + len(contribution(20, run="other")) + len(refusal())}
    assert (found["today"]["frames"], found["today"]["bytes"]) == (3, sizes[1])
    assert (found["all"]["frames"], found["all"]["rounds"]) == (4, 3)
    assert {run["run"]: run["rounds"] for run in found["runs"]} == {"r": 2, "other": 1}
    assert [(one["run"], one["reason"].split(":")[0], one["times"]) for one in found["refusals"]] == [
        ("r", "E-BUDGET", 1), ("third", "E-FLOOR", 1),
    ]  # fmt: skip
    assert found["epsilon"] == 0.5


def test_a_line_that_was_not_finished_is_cut_off_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    plain, path = plan(PLAIN), tmp_path / record.FILE
    Record(tmp_path).frame("s", plain, contribution())
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-9])
    assert len(device_record_lines(tmp_path)) == 1
    assert path.stat().st_size > len(whole), "who only reads changes nothing"
    Record(tmp_path).frame("s", plain, contribution(5))
    assert len(device_record_lines(tmp_path)) == 2
    assert all(json.loads(line) for line in path.read_bytes().splitlines())
    path.write_bytes(b"?\n" + whole)
    with pytest.raises(EdgewiseError, match="line 1 of") as caught:
        Record(tmp_path)
    assert caught.value.code == "E-CHECKPOINT"


def test_a_frame_that_cannot_be_written_down_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = Record(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EdgewiseError, match="No space left") as caught:
        left.frame("s", plan(PLAIN), contribution())
    assert caught.value.code == "E-DISK"
    monkeypatch.undo()
    left.frame("s", plan(PLAIN), contribution(5))
    assert [row.size for row in device_record_lines(tmp_path)] == [len(contribution(5))], "what was cut short is gone"
