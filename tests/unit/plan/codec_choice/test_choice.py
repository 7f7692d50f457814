"""codec = "adaptive" from the recipe to the bytes: what is compiled, refused, sent, and shown."""

from __future__ import annotations

import json
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invited import invited

from edgewise.apps.simulate import check_screen
from edgewise.codecs.ladder import rung_bytes
from edgewise.codecs.wire import pack
from edgewise.core import frame
from edgewise.core.errors import DataError, RecipeError
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.drivers.simulation.cohort import World
from edgewise.drivers.simulation.link_traces import read_traces
from edgewise.engine import device as machine
from edgewise.engine import device_events
from edgewise.engine import device_state as states
from edgewise.plan import explain
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.codec_choice.rungs import RUNGS
from edgewise.plan.compile import compile
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import from_plain, load
from edgewise.plan.recipe.sections import SimulationSection

SPEC = Spec.of([("a", (50_000,), "float32"), ("b", (50_000,), "float32"), ("c", (20_000,), "float32")])
PLAIN: dict[str, Any] = {"privacy": "none", "codec": "adaptive", "round": {"deadline_s": 20.0}}
EXAMPLE = {"unit": "example", "epsilon": 4.0, "delta": 1e-5, "clip_l2": 1.0, "sample_rate": 0.1}


def plan_of(**changes: Any) -> Plan:
    return compile(from_plain({**PLAIN, **changes}), SPEC, 5, BUILT_IN)


def test_rungs_are_in_order_of_their_bytes_and_all_named_once() -> None:
    names = [rung.name for rung in RUNGS]
    assert len(set(names)) == len(names)
    for dim in (100_000, 5_000_000):
        spec = Spec.of([("w", (dim,), "float32")])
        plan = compile(from_plain({**PLAIN, "adaptive": {"max_upload_mb": 100.0}}), spec, 5, BUILT_IN)
        sizes = rung_bytes(plan.at(0).encoded)
        assert list(plan.rungs) == names
        assert all(a > b for a, b in pairwise(sizes))


def test_rungs_above_the_limit_are_left_out_and_said_to_be() -> None:
    plan = plan_of(adaptive={"max_upload_mb": 0.1})
    assert plan.rungs[0] == "4 bit"
    assert plan.upload_bytes(0) <= 1e5
    found = explain.ladder(plan)
    assert found is not None
    assert [r["number"] for r in found["rungs"]] == [None, None, *range(len(RUNGS) - 2)]
    assert found["rungs"][2]["bytes"] == plan.upload_bytes(0)


def test_segments_before_the_ladder_make_it_smaller() -> None:
    stages = [{"kind": "segments", "names": ["a", "c"]}, {"kind": "weigh"}]
    plan = plan_of(stage=stages)
    assert len(plan.rungs) == len(RUNGS)
    assert plan.upload_bytes(0) == pytest.approx(4 * 70_000, rel=0.01)
    assert explain.ladder(plan)["rungs"][0]["bytes"] == plan.upload_bytes(0)  # type: ignore[index]


@pytest.mark.parametrize(
    ("code", "said", "changes"),
    [
        ("E-RUNG", "5.92e-05 MB|smallest rung", {"adaptive": {"max_upload_mb": 1e-5}}),
        ("E-RUNG", '"8 bit"', {"adaptive": {"max_upload_mb": 0.1, "ladder": ["float32", "8 bit"]}}),
        ("E-NAME", 'did you mean "8 bit"', {"adaptive": {"ladder": ["8 bits"]}}),
        ("E-VALUE", "twice", {"adaptive": {"ladder": ["8 bit", "8 bit"]}}),
        ("E-ORDER", "feedback", {"stage": [{"kind": "feedback"}, {"kind": "top_k", "fraction": 0.1}]}),
        ("E-ORDER", "ladder chooses", {"stage": [{"kind": "quantize"}]}),
        (
            "E-ORDER",
            "ladder chooses",
            {"stage": [{"kind": "random_k", "fraction": 0.5}], "adaptive": {"ladder": ["4 bit"]}},
        ),
        ("E-COMBO", "adaptive", {"codec": "stages", "adaptive": {"slack": 0.2}}),
        ("E-COMBO", "deadline_s", {"adaptive": {"deadline_s": 21.0}}),
        ("E-COMBO", "patience", {"privacy": "hidden", "merge": {"kind": "secure_sum"}, "adaptive": {"patience": 0.2}}),
        ("E-COMBO", "patience", {"privacy": "local_dp", "dp": EXAMPLE, "adaptive": {"patience": 0.2}}),
        ("E-COMBO", "link_mbit", {"simulation": {"link_mbit": 50.0}}),
        ("E-COMBO", "link_trace", {"simulation": {"link_trace": "a.csv", "link_mbit": 2.0}}),
    ],
)
def test_refused(code: str, said: str, changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        plan_of(**changes)
    assert caught.value.code == code


def trained(plan: Plan, elapsed_s: float, up_mbit: float, round: int = 0) -> tuple[int, int]:
    """The rung and the bytes of what a device sends that measured this."""
    state, _ = machine.step(plan, states.join(plan, "d"), invited(plan, round))
    x = np.random.default_rng(0).standard_normal(SPEC.dim).astype(np.float32)
    update = Update(x, {"loss_first": 1.0, "loss_last": 1.0}, 10.0)
    _, effects = machine.step(plan, state, device_events.Trained(update, elapsed_s, up_mbit))
    assert isinstance(effects[-1], device_events.SendFrame)
    sent = frame.load(effects[-1].frame)
    assert isinstance(sent, frame.Contribution)
    return pack.unpack(sent.payload, plan.at(0).encoded).rung, len(sent.payload)


@pytest.mark.parametrize(("elapsed_s", "up_mbit"), [(1, 20), (1, 0.3), (10, 0.1), (17, 0.1), (17.9, 0.02), (2, 0.05)])
def test_a_device_sends_what_it_has_time_for(elapsed_s: float, up_mbit: float) -> None:
    plan = plan_of(adaptive={"patience": 0.0})
    rung, size = trained(plan, elapsed_s, up_mbit)
    budget = up_mbit * 1e6 / 8 * (18.0 - elapsed_s)
    sizes = rung_bytes(plan.at(0).encoded)
    assert sizes[rung] <= budget
    assert rung == 0 or sizes[rung - 1] > budget
    assert size == pytest.approx(sizes[rung], rel=0.05)
    assert plan.expected_bytes(0, elapsed_s, up_mbit) == sizes[rung], "a simulation knows the size before"


@pytest.mark.slow
def test_with_noise_on_records_the_rung_says_nothing_of_training() -> None:
    """The time of a step follows from the number of blocks that it drew, which is secret. The link still counts."""
    plan = plan_of(
        privacy="local_dp", dp=EXAMPLE, stage=[], metrics="none", adaptive={"slack": 0.0, "deadline_s": 10.0}
    )
    by_time = {trained(plan, elapsed_s, 0.05) for elapsed_s in (0.0, 0.1, 5.0, 9.9, 17.0, 19.9, 30.0)}
    assert len(by_time) == 1
    assert {plan.expected_bytes(0, elapsed_s, 0.05) for elapsed_s in (0.0, 5.0, 19.9)} == {plan.sizes[by_time.pop()[0]]}
    assert trained(plan, 5.0, 20.0)[0] < trained(plan, 5.0, 0.05)[0] < trained(plan, 5.0, 0.0)[0]
    found = explain.ladder(plan)
    assert found is not None
    assert found["patience"] == 0.0
    assert "the rung that a device chose tells the server roughly how fast its link is" in plan.claims
    assert (
        "the rung that a device chose tells the server roughly how fast its link and training were" in plan_of().claims
    )


def test_without_time_or_knowledge_it_sends_the_smallest() -> None:
    plan = plan_of()
    assert trained(plan, 19.0, 20.0)[0] == len(RUNGS) - 1
    assert trained(plan, 0.0, 0.0)[0] == len(RUNGS) - 1
    assert plan_of(codec="stages").budget_bytes(19.0, 0.0) == float("inf"), "a fixed codec has no budget"


def test_the_earlier_of_two_deadlines_counts() -> None:
    plan = plan_of(adaptive={"deadline_s": 10.0, "slack": 0.0, "patience": 0.0})
    assert plan.budget_bytes(8.0, 0.8) == pytest.approx(2e5)


def test_an_upload_takes_a_share_of_the_time_until_then() -> None:
    """Rounds last as long as their slowest device: a tenth of its 8 s, and less where the deadline is near."""
    plan = plan_of(adaptive={"deadline_s": 10.0, "slack": 0.0})
    assert plan.budget_bytes(8.0, 0.8) == pytest.approx(0.8e6 / 8 * 0.8)
    assert plan.budget_bytes(9.5, 0.8) == pytest.approx(0.8e6 / 8 * 0.5)
    assert plan_of(adaptive={"patience": 0.5}).budget_bytes(8.0, 0.8) == pytest.approx(0.8e6 / 8 * 4.0)
    assert plan.budget_bytes(None, 0.8) == pytest.approx(1e6), "nothing measured: all of the deadline"
    assert plan.budget_bytes(1e-9, 0.8) < 1.0, "hardly any time passed, so hardly any is left for the upload"
    assert plan.budget_bytes(0.0, 0.8) == 0.0


def test_the_table_of_links_is_what_devices_do() -> None:
    found = explain.ladder(plan_of(simulation={"step_s": 1.0}))
    assert found is not None
    json.dumps(found, allow_nan=False)
    by_link = {r["mbit"]: r for r in found["links"]}
    assert by_link[20.0]["rung"] == "float32"
    assert by_link[0.1]["late"], "the download alone takes 38 s"
    assert by_link[0.1]["rung"] == "top 0.02 %, 2 bit"
    assert by_link[0.3]["total_s"] == pytest.approx(12.8 + 10 + 8 * by_link[0.3]["bytes"] / 3e5)
    assert explain.ladder(plan_of(codec="stages")) is None
    for table in check_screen.ladder_tables(found):
        assert table.row_count in (len(RUNGS), len(by_link))


def test_the_trace_says_what_a_ladder_does() -> None:
    plan = plan_of()
    outer, row = (r for r in explain.trace(plan) if "ladder" in r["name"])
    assert [r["role"] for r in (outer, row)] == ["stage", "inner"]
    assert outer["bytes"] == row["bytes"] == plan.upload_bytes(0)
    assert f"one of {len(RUNGS)} rungs" in row["does"]
    assert any("the rung that a device chose" in claim for claim in plan.claims)


def test_the_recipe_for_slow_links_compiles() -> None:
    path = Path(str(resources.files("edgewise"))) / "assets" / "recipes" / "tiny-link.toml"
    plan = compile(load(path), SPEC, 17, BUILT_IN)
    assert len(plan.rungs) == len(RUNGS)


def test_traces_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "links.csv"
    path.write_text("second,trace,mbit\n0,b,2\n1,a,0.5\n2,b,1e1\n")
    traces, digest = read_traces(path)
    assert traces == ((0.5,), (2.0, 10.0))
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("E-DATA-COLUMN", "trace,speed\na,1\n"),
        ("E-DATA-COLUMN", ""),
        ("E-DATA-EMPTY", "trace,mbit\n"),
        *[("E-DATA-FORMAT", f"trace,mbit\na,1\na,{bad}\n") for bad in ("0", "-1", "nan", "inf", "fast", "")],
        ("E-DATA-FORMAT", "trace,mbit\na\n"),
        ("E-DATA-FORMAT", 'trace,mbit\n"a,1\n'),
    ],
)
def test_bad_traces_are_refused(tmp_path: Path, code: str, text: str) -> None:
    path = tmp_path / "links.csv"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_traces(path)
    assert caught.value.code == code


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="E-DATA-MISSING"):
        read_traces(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="E-DATA-FORMAT"):
        read_traces(tmp_path / "b.csv")


def test_links_stay_within_their_limits_and_belong_to_devices() -> None:
    world = World(SimulationSection(link_mbit=1.0, link_spread=3.0, link_low_mbit=0.5, link_high_mbit=4.0), b"k" * 32)
    samples = [world.uplink_mbit(f"d{i}", range(3)) for i in range(60)]
    flat = np.array(samples)
    assert flat.min() == 0.5
    assert flat.max() == 4.0
    assert samples[7] == [*world.uplink_mbit("d7", [0, 1]), *world.uplink_mbit("d7", [2])]


def test_a_trace_starts_anywhere_and_goes_around() -> None:
    traces = ((1.0, 2.0, 3.0, 4.0), (7.0,))
    world = World(SimulationSection(), b"k" * 32, traces)
    seen = {tuple(world.uplink_mbit(f"d{i}", range(8))) for i in range(200)}
    assert (7.0,) * 8 in seen
    assert len(seen) == 5
    assert all(s == (7.0,) * 8 or s[:4] == s[4:] for s in seen)


def test_a_device_does_not_know_the_link_that_its_upload_meets() -> None:
    """Two worlds that differ in the next sample only give the same budget, and another arrival."""
    fates = []
    for last in (8.0, 0.1):
        world = World(SimulationSection(speed_spread=0.0), b"k" * 32, ((2.0, 2.0, 2.0, last),))
        device = next(
            d for d in map(str, range(99)) if world.uplink_mbit(d, [3]) == [last] != world.uplink_mbit(d, [2])
        )
        fates.append(world.fate(device, 2, 4, 1e5, lambda elapsed_s, up_mbit: 1e5 * up_mbit))
    assert fates[0].up_mbit == fates[1].up_mbit > 1.0
    assert fates[1].after_s > fates[0].after_s + 5.0
    upload_s = 8 * 1e5 * fates[0].up_mbit / 8e6
    assert fates[0].after_s == pytest.approx(fates[0].elapsed_s + upload_s)


def test_segments_without_names_may_stand_before_the_ladder() -> None:
    plan = plan_of(stage=[{"kind": "segments"}, {"kind": "weigh"}])
    assert "mixed 3 bit" in plan.rungs
