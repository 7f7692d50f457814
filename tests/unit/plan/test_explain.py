"""The trace tells what each part does, from the spaces alone; costs and forecasts are plain arithmetic."""

from __future__ import annotations

import json
from math import isclose
from typing import Any

from edgewise.plan import explain
from edgewise.plan.held_memory import device_bytes, server_bytes
from edgewise.plan.plan import Plan
from unit.made_run import made_plan

SPARSE = [
    {"kind": "weigh"},
    {"kind": "feedback"},
    {"kind": "top_k", "fraction": 0.05},
    {"kind": "clip", "l2": 1.0},
    {"kind": "quantize", "bits": 8},
]


def test_rows_follow_the_pipeline_and_are_json() -> None:
    rows = explain.trace(made_plan())
    assert [r["role"] for r in rows] == ["start", "stage", "stage", "merge", "strategy"]
    ends = ("plain_sum", "fedavgm(0.3, 0.9)")
    assert [r["name"] for r in rows] == ["trained update", "weigh(65536)", "quantize(4, block)", *ends]
    json.dumps(rows, allow_nan=False)
    assert rows[0]["l2"] is None, "an unknown bound is null, never infinity"
    assert rows[1]["does"] == "multiplies by the device's weight, which travels as an exact scalar"
    assert rows[2]["does"] == "rounds to 4-bit integers, one scale per 64 coordinates"
    assert rows[2]["summable"] is False
    assert rows[2]["unbiased"] is True
    assert rows[-2]["does"].endswith("one device can move the total without limit")
    assert rows[-1]["does"] == "moves the model by 0.3 of a sum of mean updates, which keeps 0.9 of itself each round"


def test_last_bytes_are_the_upload() -> None:
    plan = made_plan(stage=SPARSE)
    stages = [r for r in explain.trace(plan) if r["role"] == "stage"]
    assert stages[-1]["bytes"] == plan.upload_bytes(0)


def test_stages_inside_feedback_are_shown_and_agree_with_it() -> None:
    rows = explain.trace(made_plan(stage=SPARSE))
    inner = [r for r in rows if r["role"] == "inner"]
    assert [r["name"] for r in inner] == ["top_k(0.05)", "clip(1)", "quantize(8, block)"]
    outer = next(r for r in rows if r["name"].startswith("feedback"))
    assert inner[-1]["bytes"] == outer["bytes"]
    assert inner[-1]["l2"] == outer["l2"]
    assert outer["memory"] is True
    assert "remembers on the device" in outer["does"]
    assert inner[0]["does"] == "keeps 5 % of the coordinates, the largest, and sends their positions"


def test_noise_is_named_with_its_size() -> None:
    plan = made_plan(stage=[{"kind": "clip", "l2": 1.0}], post=[{"kind": "noise", "z": 1.5}], metrics="none")
    row = explain.trace(plan)[-2]
    assert row["role"] == "post"
    assert isclose(row["noise_std"], 1.5, rel_tol=1e-3)
    assert "std 1.5" in row["does"]


def test_public_support_and_ring_are_told_apart() -> None:
    stages = [
        {"kind": "random_k", "fraction": 0.1},
        {"kind": "clip", "l2": 1.0},
        {"kind": "quantize", "bits": 8, "grid": "shared"},
        {"kind": "wrap", "bits": 24},
    ]
    does = [r["does"] for r in explain.trace(made_plan(stage=stages)) if r["role"] == "stage"]
    assert does[0] == "keeps 10 % of the coordinates, drawn anew each round, the same on all devices"
    assert does[1] == "L2 norm at most 1"
    assert does[2] == "rounds to 8-bit integers, one public grid"
    assert does[3] == "residues modulo 2^24"
    own = explain.trace(made_plan(stage=[{"kind": "random_k", "fraction": 0.1, "each": True}]))
    assert own[1]["does"] == "keeps 10 % of the coordinates, drawn anew each round, by each device for itself"


def test_cost_compares_with_the_whole_model() -> None:
    plan = made_plan()
    cost = explain.cost(plan, parameters=2.0 * plan.spec.dim)
    assert cost["float32_model"] == 2 * cost["float32_update"] == 8 * plan.spec.dim
    assert isclose(cost["up_ratio"], cost["float32_model"] / cost["up"])
    assert cost["up_payload"] == plan.upload_bytes(0)
    assert 100 < cost["up"] - cost["up_payload"] < 300, "address and frame"
    unknown = explain.cost(plan)
    assert unknown["float32_model"] is None
    assert isclose(unknown["down_ratio"], 1.0, rel_tol=1e-3)


DOWN = [{"kind": "top_k", "fraction": 0.01}, {"kind": "quantize", "bits": 4}]


def test_the_way_down_is_a_trace_of_its_own() -> None:
    rows = explain.trace_down(made_plan(downlink=DOWN))
    assert [(r["role"], r["name"]) for r in rows] == [
        ("start", "change of the model"), ("stage", "top_k(0.01)"), ("stage", "quantize(4, block)")
    ]  # fmt: skip
    assert rows[1]["does"] == "keeps 1 % of the coordinates, the largest, and sends their positions"
    json.dumps(rows, allow_nan=False)
    assert explain.trace_down(made_plan()) == []


def test_cost_of_a_device_that_is_there_every_round_and_of_one_that_was_not() -> None:
    plan = made_plan(downlink=[{"kind": "quantize", "bits": 4}])
    cost = explain.cost(plan)
    assert plan.delta_bytes is not None
    assert cost["down"] == plan.delta_bytes + cost["down_frames"]
    assert 200 < cost["down_frames"] < 800, "the invitation"
    assert cost["snapshot"] == 4 * plan.spec.dim
    assert cost["down_missed"] == 6, "32 bits are 7.1 times 4.5"
    assert isclose(cost["down_ratio"], 4 * plan.spec.dim / cost["down"])
    plain = explain.cost(made_plan())
    assert (plain["down"] - plain["down_frames"], plain["down_missed"]) == (plain["snapshot"], None)


def test_downloads_of_a_whole_run() -> None:
    plain, everybody = made_plan(), made_plan(downlink=DOWN)
    snapshot, delta = float(plain.snapshot_bytes), everybody.delta_bytes
    assert delta is not None
    assert isclose(explain.down_total(plain, 0.0), 17 * 12 * snapshot)
    assert isclose(explain.down_total(plain, 9.0), 17 * 12 * (snapshot + 9))
    assert isclose(explain.down_total(everybody, 0.0), 17 * (snapshot + 11 * delta)), "the model once, then deltas"
    some = made_plan(downlink=DOWN, round={"rounds": 3, "sampling": "poisson", "cohort": 4})
    p = 4 / 17
    second = p * delta + (1 - p) * snapshot
    third = p * delta + p * (1 - p) * 2 * delta + (1 - p) ** 2 * snapshot
    assert isclose(explain.down_total(some, 0.0), 4 * (snapshot + second + third))


def seconds(plan: Plan, workers: int) -> tuple[float, float]:
    f = explain.forecast(plan, 0.5, workers)
    return f["federated_s"], f["compare_s"]


def plain(**changes: Any) -> Plan:
    return made_plan(**{"personal": {"method": "none"}, **changes})


def test_forecast_is_the_work_over_the_workers() -> None:
    work = 0.5 * 8 * 17 * 12  # step_s x steps x devices x rounds
    assert seconds(plain(), 1) == (work, 2 * work)
    assert seconds(plain(), 2) == (work / 2, work), "the chain beside the devices"
    assert seconds(plain(compare={"centralised": False}), 4) == (work / 4, work / 4)
    assert seconds(plain(compare={"local_only": False}), 4) == (work / 4, work), "a chain cannot be split"
    assert seconds(plain(compare={"local_only": False, "centralised": False}), 1) == (work, 0.0)


def test_forecast_counts_the_steps_of_personal_models_also_of_training_alone() -> None:
    further = 0.5 * 30 * 17
    only, own = {"local_only": False, "centralised": False}, {"personal": {"method": "fine_tune", "steps": 30}}
    assert seconds(made_plan(compare=only, **own), 2)[1] == further / 2
    compared = seconds(made_plan(compare={"centralised": False}, **own), 2)[1]
    assert compared == seconds(plain(compare={"centralised": False}), 2)[1] + 2 * further / 2


def test_forecast_counts_what_a_method_repeats() -> None:
    only = {"local_only": False, "centralised": False}
    once, each_round = 0.5 * 30 * 17, 0.5 * 30 * 17 * 12
    chooses = {"personal": {"method": "interpolate", "weight": 0.0, "steps": 30}}
    ditto = {"personal": {"method": "ditto", "steps": 30}}
    assert seconds(made_plan(compare=only, **chooses), 1)[1] == 2 * once, "without and with the held-back text"
    work = seconds(plain(compare=only), 1)[0]
    assert seconds(made_plan(compare=only, **ditto), 1) == (work + each_round, 0.0), "beside the rounds"
    alone = seconds(made_plan(compare={"centralised": False}, **ditto), 1)[1]
    assert alone == seconds(plain(compare={"centralised": False}), 1)[1] + each_round


def test_forecast_counts_the_passes_of_personal_models() -> None:
    passes, steps = (
        {"personal": {"method": "interpolate", "weight": 0.5, key: n}} for key, n in (("epochs", 2.0), ("steps", 30))
    )
    counted = explain.forecast(made_plan(**passes), 0.5, 1, personal_steps=30.0)
    assert counted["compare_s"] == explain.forecast(made_plan(**steps), 0.5, 1)["compare_s"]


def test_a_run_holds_the_sum_the_model_and_what_server_and_codec_keep() -> None:
    plan = plain(strategy={"kind": "fedavg"})
    d = plan.spec.dim
    assert server_bytes(plan) == 20 * d
    assert server_bytes(plain(strategy={"kind": "fedadam"})) == 36 * d
    robust = plain(strategy={"kind": "fedavg"}, merge={"kind": "robust_mean"})
    assert server_bytes(robust) == (12 + 20 * robust.at(0).spaces[0].quorum.n_max) * d
    clipping = plain(strategy={"kind": "fedavg"}, merge={"kind": "centred_clip"})
    assert server_bytes(clipping) == server_bytes(robust) + 8 * d, "the centre, as it was and as it becomes"
    remembers = plain(stage=[{"kind": "weigh"}, {"kind": "feedback"}, {"kind": "top_k", "fraction": 0.5}])
    assert device_bytes(remembers) - device_bytes(plan) == 2 * (2 * d + 8), "the residual in bfloat16 and its round"


def test_forecast_counts_encoding_and_training_alone_for_longer() -> None:
    alone = {"local_only": False, "centralised": False}
    f = explain.forecast(plain(compare=alone), 0.5, 2, encode_s=0.25)
    assert f["federated_s"] == (0.5 * 8 + 0.25) * 17 * 12 / 2
    assert f["compare_s"] == 0.0
    plan = plain(compare={**alone, "longer": 3, "longer_devices": 4})
    assert seconds(plan, 2)[1] == 0.5 * 8 * 12 * 3 * 4 / 2
    assert seconds(plan, 8)[1] == 0.5 * 8 * 12 * 3, "a device's steps cannot be split"


def test_forecast_invents_nothing() -> None:
    f = explain.forecast(made_plan(), None, 2)
    assert f["total_s"] is f["federated_s"] is f["compare_s"] is None
    assert f["contributions_per_round"] == 17
