"""summary.json says what was measured, by its own definitions, and invents nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.apps.report import numbers, summary
from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.codec_choice.rungs import RUNGS
from unit.made_run import make_run


def built(out: Path) -> dict[str, Any]:
    with RunStore(out) as store:
        return summary.build(store)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("full")
    make_run(out)
    return built(out)


def test_share_improved_looks_at_common_devices_only() -> None:
    new, old = {"a": (1.0, 1), "b": (2.0, 1), "x": (0.0, 1)}, {"a": (2.0, 1), "b": (2.0, 1), "y": (9.0, 1)}
    assert summary.share_improved(new, old) == 0.5, "equal is not better"
    assert summary.share_improved(new, {}) is None


def test_a_full_run_has_everything(full: dict[str, Any]) -> None:
    assert full["complete"] is True
    for model in ("base", "federated", "local_only", "centralised"):
        assert set(full["perplexity"][model]) >= {"weighted_mean", "median", "worst_decile"}
    assert set(full["seconds"]) >= {"total", "train", "encode", "aggregate"}
    assert full["memory"] == {"process_peak": None}, "of a store that no simulation has filled"
    assert full["change_percent"]["federated"] < 0
    assert len(full["recipe_sha256"]) == len(full["model_sha256"]) == 64
    assert [c["played"] for c in full["curve"]] == [0, 3, 6, 9, 12]
    assert full["curve"][-1]["weighted_mean"] == full["perplexity"]["federated"]["weighted_mean"]


def test_bytes_are_what_was_counted(full: dict[str, Any]) -> None:
    b, rounds = full["bytes"], full["per_round"]
    assert b["up_total"] == sum(r["bytes_up"] for r in rounds)
    assert b["up_per_device_round"] * full["participation"]["accepted"] == pytest.approx(b["up_total"])
    assert b["down_per_device_round"] * full["participation"]["invited"] == pytest.approx(b["down_total"])
    assert b["float32_model"] == 4 * 1_377_408


def test_quality_for_bytes_is_the_curve_over_what_was_counted(full: dict[str, Any]) -> None:
    series, rounds = full["quality_for_bytes"], full["per_round"]
    assert [p["played"] for p in series] == [0, 3, 6, 9, 12]
    assert [p["perplexity"] for p in series] == [c["weighted_mean"] for c in full["curve"]]
    assert (series[0]["up"], series[0]["down"]) == (0.0, 0.0)
    assert series[1]["up"] == sum(r["bytes_up"] for r in rounds[:3]) / 17
    assert series[-1]["up"] * full["population"] == pytest.approx(full["bytes"]["up_total"])
    assert series[-1]["down"] * full["population"] == pytest.approx(full["bytes"]["down_total"])


def test_invitations_add_up(full: dict[str, Any]) -> None:
    p = full["participation"]
    assert p["invited"] == p["accepted"] + p["lost"] + p["late"] == 17 * 12
    assert sum(p["lost_by_code"].values()) == p["lost"]
    for device in full["per_device"]:
        assert not {str(r) for r in device["rounds"]} & device["lost"].keys()


def test_what_was_not_run_is_null(tmp_path: Path) -> None:
    make_run(tmp_path, compare={"centralised": False})
    s = built(tmp_path)
    assert s["perplexity"]["centralised"] is None
    assert s["change_percent"]["centralised"] is None
    assert s["complete"] is True, "nobody asked for it"


def test_a_run_that_stopped_early_is_not_complete(tmp_path: Path) -> None:
    make_run(tmp_path, rounds_played=4)
    s = built(tmp_path)
    played = {"planned": 12, "played": 4, "kept": 4, "stopped": False, "waited": 0, "met": 4, "abandoned": 0}
    assert (s["complete"], s["rounds"]) == (False, played)
    assert s["perplexity"]["local_only"] is None
    assert s["share_improved"] == {"over_base": 1.0, "over_local_only": None}


def test_a_run_that_never_finished_a_round(tmp_path: Path) -> None:
    make_run(tmp_path, rounds_played=0)
    s = built(tmp_path)
    assert s["bytes"]["up_per_device_round"] is None
    assert s["perplexity"]["base"] is not None
    assert s["perplexity"]["federated"] is None


def test_every_fact_is_optional(tmp_path: Path) -> None:
    plan = make_run(tmp_path / "a")
    with RunStore(tmp_path / "b") as store:
        store.create(plan.run, "bare", plan.recipe.resolved(), {})
        s = summary.build(store)
    assert s["bytes"]["float32_model"] is s["population"] is s["model_sha256"] is None


def test_a_device_that_was_given_up_and_answered_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path, rounds_played=0)
    with RunStore(tmp_path) as store:
        store.append(events.RoundStarted(round=0, invited=1, goal=1, minimum=1))
        store.append(events.Lost(round=0, device="re", code="dropped"))
        store.append(events.Accepted(round=0, device="re", bytes_up=10, train_s=0.0, encode_s=0.0))
        s = summary.build(store)
    assert s["participation"]["lost_by_code"] == {}


def test_rungs_are_counted_by_contributions_and_devices(full: dict[str, Any], tmp_path: Path) -> None:
    assert full["rungs"] == [], "a fixed codec has no rungs"
    make_run(tmp_path, rounds_played=0, codec="adaptive", stage=[{"kind": "weigh"}])
    with RunStore(tmp_path) as store:
        for number, device, rung in ((0, "re", 0), (0, "xml", 3), (1, "re", 3), (1, "xml", 3)):
            store.append(
                events.Accepted(
                    round=number, device=device, bytes_up=100 + number, train_s=0.0, encode_s=0.0, rung=rung
                )
            )
        store.append(events.Accepted(round=2, device="re", bytes_up=7, train_s=0.0, encode_s=0.0, rung=4))
        for number, accepted in enumerate((2, 2, 1)):
            store.append(
                events.RoundFinished(
                    round=number, met=number < 2, accepted=accepted, lost=0, late=0, bytes_up=0, bytes_down=0,
                    update_l2=0.0, head={}, train_s=0.0, encode_s=0.0, aggregate_s=0.0, seconds=0.0, model="ab" * 32,
                )
            )  # fmt: skip
        s = summary.build(store)
        rows = s["rungs"]
    assert [r["name"] for r in rows] == [r.name for r in RUNGS[1:]], "float32 is above 5 MB here"
    assert [(r["accepted"], r["devices"]) for r in rows[:5]] == [(1, 1), (0, 0), (0, 0), (3, 2), (0, 0)]
    assert rows[1]["bytes_up"] is rows[4]["bytes_up"] is None, "nothing of an abandoned round counts"
    assert sum(r["accepted"] for r in rows) == s["participation"]["accepted"] == 4
    assert s["participation"]["unused"] == 1
    assert rows[3]["bytes_up"] == pytest.approx(302 / 3)


@pytest.mark.slow
def test_contributions_to_an_abandoned_round_do_not_count(tmp_path: Path) -> None:
    make_run(tmp_path)
    with RunStore(tmp_path) as store:
        before = summary.build(store)["participation"]
        last = [e for e in store.events() if isinstance(e, events.RoundFinished)][-1]
        store.append(msgspec.structs.replace(last, met=False, accepted=3))
        after = summary.build(store)
    assert (after["participation"]["accepted"], after["participation"]["unused"]) == (before["accepted"], 3)
    assert after["rounds"]["abandoned"] == 1


@pytest.mark.slow
def test_a_run_whose_last_model_was_not_measured_is_not_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path)
    with RunStore(tmp_path) as store:
        monkeypatch.setattr(store, "evaluated", lambda model, round: (model, round) != ("federated", 11))
        assert summary.build(store)["complete"] is False


def test_the_file_is_strict_json(full: dict[str, Any], tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    path = summary.write(tmp_path, full)
    assert json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse) == full


def test_a_perplexity_beyond_floats_becomes_null_and_missing_devices_are_counted(tmp_path: Path) -> None:
    make_run(tmp_path, rounds_played=0)
    with RunStore(tmp_path) as store:
        missing = {"os": "late", "io": "late", "sys": "E-NAN"}
        event = events.Evaluated(round=11, model="federated", nll={"re": 1e9}, tokens={"re": 1}, seconds=0.0)
        store.append(msgspec.structs.replace(event, missing=missing))
        s = summary.build(store)
    assert s["curve"][-1]["missing_by_code"] == {"late": 2, "E-NAN": 1}
    assert s["perplexity"]["federated"]["weighted_mean"] is None
    assert s["change_percent"]["federated"] is None


def test_no_run_is_said_with_its_code(tmp_path: Path) -> None:
    with RunStore(tmp_path) as store, pytest.raises(StoreError) as e:
        summary.build(store)
    assert e.value.code == "E-RESUME"


@pytest.mark.slow
def test_an_unfinished_run_says_which_measurement_is_missing(tmp_path: Path) -> None:
    make_run(tmp_path / "half", rounds_played=5, finished=False)
    make_run(tmp_path / "unmeasured", finished=False)
    with RunStore(tmp_path / "half") as store:
        assert numbers.unfinished(summary.build(store)).startswith(
            "5 of 12 rounds are played; not measured: local only"
        )
    with RunStore(tmp_path / "unmeasured") as store:
        said = numbers.unfinished(summary.build(store))
    assert said.startswith(
        "12 of 12 rounds are played; not measured: local only, federated, then personal, centralised (if the trainer"
    )
