"""The report and the plots: self-contained, well-formed, truthful for every kind of run, safe against its own data."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgewise.apps.cli import result
from edgewise.apps.report import cost, numbers, png, settings, summary, svg
from edgewise.apps.report import page as report
from edgewise.apps.runs.toml_text import toml
from edgewise.core.errors import StoreError
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe.recipe import from_plain, parse
from unit import made_run
from unit.made_run import PLAIN, make_run

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checker(HTMLParser):
    """Balanced tags, unique ids, links that lead somewhere, and what the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.links += [found["href"] or ""] if tag == "a" else []
        self.loads += [v or "" for k, v in attrs if k in ("src", "srcset", "data") or (k == "href" and tag != "a")]
        assert tag not in ("script", "iframe", "object"), tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(page: str) -> Checker:
    found = Checker()
    found.feed(page)
    assert found.open == []
    assert len(set(found.ids)) == len(found.ids)
    assert {link.lstrip("#") for link in found.links} <= set(found.ids)
    assert found.loads == []
    assert "url(" not in page
    assert not re.search(r"(?<!xmlns=.)https?://", page)
    for word in ("nan", "inf", "None"):
        assert not re.search(rf'"{word}"|>{word}<|[ ,]{word}[ ,"]', page), f"{word} on the page"
    return found


def made(out: Path, **options: Any) -> tuple[dict[str, Any], str]:
    make_run(out, **options)
    with RunStore(out) as store:
        s = summary.build(store)
        return s, report.write_run_page(s, out).read_text(encoding="utf-8")


CASES: dict[str, dict[str, Any]] = {
    "full": {},
    "nothing yet": {"rounds_played": 0},
    "stopped early": {"rounds_played": 4},
    "no comparisons": {"compare": {"local_only": False, "centralised": False}},
    "many devices": {"devices": 300, "round": {"rounds": 3, "sampling": "fixed", "cohort": 20}},
    "feedback": {"stage": [{"kind": "feedback"}, {"kind": "top_k", "fraction": 0.01}, {"kind": "clip", "l2": 1.0}]},
    "downlink": {"downlink": [{"kind": "quantize", "bits": 4}]},
    "one device": {"devices": 1},
    "no metrics": {"metrics": "none"},
    "bare facts": {"facts": {"plan": {}, "devices": None, "parameters": None, "versions": {}, "started_at": None}},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_run_has_a_sound_page_and_plots(case: str, tmp_path: Path) -> None:
    s, page = made(tmp_path, **CASES[case])
    found = checked(page)
    assert {p.lower() for p in report.PARTS} <= set(found.ids)
    assert ("is not complete" in page) == (not s["complete"])
    written = png.write_report_plots(s, tmp_path)
    assert written, "the quality of the base is always measured"
    for path in written:
        assert path.parent == tmp_path / "plots"
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_says_the_summarys_numbers(tmp_path: Path) -> None:
    s, page = made(tmp_path)
    for q in s["perplexity"].values():
        assert f">{numbers.perplexity(q['weighted_mean'])}<" in page
    for x in (s["recipe_sha256"], s["model_sha256"], s["facts"]["fingerprint"]):
        assert x in page
    for claim in s["plan"]["claims"]:
        assert claim.replace('"', "&quot;").replace("'", "&#x27;") in page


@pytest.mark.slow
def test_the_way_down_is_shown_where_there_is_one(tmp_path: Path) -> None:
    _, plain = made(tmp_path / "a")
    s, page = made(tmp_path / "b", downlink=[{"kind": "quantize", "bits": 8}])
    for said in ("The broadcast pipeline", "quantize(8, block)", "devices behind by"):
        assert said in page
        assert said not in plain
    down = s["bytes"]["down_per_device_round"]
    assert s["bytes"]["float32_update"] / 4 < down < s["bytes"]["float32_update"] / 2, "the model once, then a quarter"
    assert s["per_round"][3]["lag_l2"] == 0.25
    devices = [d for d in s["per_device"] if d["rounds"]]
    assert sum(d["bytes_down"] for d in devices) < s["bytes"]["down_total"]


@pytest.mark.slow
def test_what_says_nothing_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run without losses has neither a funnel of equal bars, nor reasons, nor a map of one colour."""
    titles = ("Funnel", "Lost contributions", "Participation by device")
    _, page = made(tmp_path / "lossy")
    assert all(f"<h3>{title}</h3>" in page for title in titles)
    monkeypatch.setattr(made_run, "FATES", (0.0, 0.0))
    s, page = made(tmp_path / "calm")
    assert s["participation"]["accepted"] == s["participation"]["invited"]
    assert not any(f"<h3>{title}</h3>" in page for title in titles)
    assert "Nothing was lost. All 204 invitations" in page
    assert "participation.png" not in {path.name for path in png.write_report_plots(s, tmp_path / "calm")}


@pytest.mark.slow
def test_the_page_says_how_the_model_was_trained(tmp_path: Path) -> None:
    s, page = made(tmp_path, facts={"model_fingerprint": hashlib.sha256(b"").hexdigest()})
    for said in (
        "adamw, learning rate 0.002, falling to a tenth",
        "8 local steps of 8 blocks of 128 tokens",
        "fedavgm",
    ):
        assert said in page
    own = settings.settings_not_default(s["recipe"])
    assert toml(own) in page.replace("&quot;", '"')
    assert parse(toml(own)).resolved() == s["recipe"], "what is left out has its default"
    assert "frozen weights" not in page, "the digest of no bytes says nothing"


@pytest.mark.slow
def test_the_bytes_of_the_text_stand_beside_what_was_sent(tmp_path: Path) -> None:
    s, page = made(tmp_path / "a")
    b = s["bytes"]
    assert b["text_total"] == pytest.approx(3.1 * sum(r["tokens"] for r in s["per_device"]))
    assert b["up_per_device"] == pytest.approx(b["up_total"] / 17)
    assert b["up_per_device"] > b["text_per_device"]
    assert "Sending the text itself would have taken fewer bytes" in page
    s, page = made(tmp_path / "b", facts={"bytes_per_token": 3100.0})
    assert s["bytes"]["up_per_device"] < s["bytes"]["text_per_device"]
    assert "A device trains on about <b>" in page
    assert "would have taken fewer bytes" not in page
    s, page = made(tmp_path / "c", **made_run.RECIPES["central_dp"])
    assert s["bytes"]["text_total"] is s["bytes"]["text_per_device"] is None, "no epsilon is about them"
    assert "bytes_per_token" not in s["facts"]


@pytest.mark.slow
def test_the_rounds_are_a_table_for_other_programs(tmp_path: Path) -> None:
    s, _ = made(tmp_path)
    rows = list(csv.DictReader((tmp_path / "rounds.csv").read_text(encoding="utf-8").splitlines()))
    assert [int(r["round"]) for r in rows] == list(range(1, 13))
    assert sum(int(r["bytes_up"]) for r in rows) == s["bytes"]["up_total"]
    measured = {c["played"]: c["weighted_mean"] for c in s["curve"]}
    assert float(rows[2]["perplexity_weighted_mean"]) == measured[3]
    assert rows[1]["perplexity_weighted_mean"] == ""


def _drawn(draw: Callable[[Any, Any], bool], s: Any) -> Any:
    """A plot's figure, laid out."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    assert draw(figure, s)
    figure.canvas.draw()
    return figure


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "gap"), [(1, 0.25), (2, 0.0), (5, 0.001), (20, 0.0), (23, 0.05)])
def test_plots_count_rounds_in_whole_numbers_and_labels_stay_apart(tmp_path: Path, rounds: int, gap: float) -> None:
    s, _ = made(tmp_path, round={"rounds": rounds}, eval={"every": 1})
    for r in s["per_round"]:
        r["loss_first"] = r["loss_last"] + gap
    figure = _drawn(png._draw_quality, s)
    for axes in figure.axes:
        assert all(t == int(t) for t in axes.get_xticks())
        boxes = [t.get_window_extent() for t in axes.texts]
        assert len(boxes) >= 2
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_names_from_data_cannot_become_markup(tmp_path: Path) -> None:
    make_run(tmp_path)
    with RunStore(tmp_path) as store:
        s = summary.build(store)
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    for row in s["per_device"]:
        row["device"] = evil + row["device"]
    s["facts"].update(model=evil, fingerprint=evil, note={"x": evil})
    s["plan"]["claims"] = [evil]
    s["plan"]["trace"][1].update(name=evil, does=evil)
    s["participation"]["lost_by_code"] = {evil: 3}
    s["name"] = evil
    page = report.run_page(s)
    checked(page)
    assert "<img" not in page


@pytest.mark.slow
def test_names_from_data_are_no_mathematics_and_fit(tmp_path: Path) -> None:
    make_run(tmp_path)
    with RunStore(tmp_path) as store:
        s = summary.build(store)
        for i, row in enumerate(s["per_device"]):
            row["device"] = ["$\\alice_$", "a$b", "\\$x$", "long" * 200][i % 4]
        s["plan"]["trace"][1]["name"] = "$_^$"
        assert len(png.write_report_plots(s, tmp_path)) == 5


@pytest.mark.slow
def test_quality_is_drawn_over_bytes_one_way_and_both_ways(tmp_path: Path) -> None:
    s, page = made(tmp_path)
    series = s["quality_for_bytes"]
    lines = {name: points for name, _, points in cost.curves_of_bytes(s)}
    assert lines["sent"] == [(p["up"] / 1e6, p["perplexity"]) for p in series[1:]], "nothing was sent before round 1"
    assert lines["both ways"] == [((p["up"] + p["down"]) / 1e6, p["perplexity"]) for p in series[1:]]
    assert "Quality for bytes" in page
    for p in s["quality_for_bytes"]:
        p["down"] = 0.0
    assert "both ways" not in report.run_page(s), "the same line twice"
    for p in s["quality_for_bytes"]:
        p["perplexity"] = None
    page = report.run_page(s)
    checked(page)
    assert "Quality for bytes" not in page
    assert "quality_for_bytes" not in {path.stem for path in png.write_report_plots(s, tmp_path)}


@pytest.mark.slow
def test_an_old_figure_that_stays_is_a_named_error(tmp_path: Path) -> None:
    """A figure that this report leaves out would be shown as one of it."""
    s, _ = made(tmp_path)
    for p in s["quality_for_bytes"]:
        p["perplexity"] = None
    (tmp_path / "plots" / "quality_for_bytes.png").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot remove") as e:
        png.write_report_plots(s, tmp_path)
    assert e.value.code == "E-DISK"


@pytest.mark.slow
def test_a_line_of_two_points_says_why(tmp_path: Path) -> None:
    s, page = made(tmp_path)
    assert "The model was measured only after" not in page
    s["quality_for_bytes"] = [p for p in s["quality_for_bytes"] if p["played"] in (0, 6, 12)]
    assert "The model was measured only after round 6 and 12 (eval.every = 3)" in report.run_page(s)
    s["quality_for_bytes"] = s["quality_for_bytes"][-1:]
    page = report.run_page(s)
    checked(page)
    assert "Held-out perplexity by megabytes moved" not in page, "one point is no line"
    assert "At perplexity 184" in page
    assert "a device had uploaded 8.22 MB and downloaded 66.1 MB" in page


def test_a_log_axis_puts_equal_factors_at_equal_distances() -> None:
    series = [svg.Series("a", "federated", [(1.0, 3.0), (10.0, 2.0), (100.0, 1.0)], dots=True)]
    drawn = svg.lines("t", series, x_name="x", unit=str, whole_x=False, log_x=True)
    at = [float(x) for x in re.findall(r'<circle cx="([0-9.]+)"', drawn)]
    assert at[2] - at[1] == pytest.approx(at[1] - at[0], abs=0.11), "written with one decimal"


def test_the_lead_tells_what_was_measured_and_abandoned(tmp_path: Path) -> None:
    s, page = made(tmp_path, rounds_played=4)
    assert "training together for 3 rounds lowered" in page, "the shown perplexity is the one after three"
    s["rounds"]["abandoned"] = 1
    s["facts"]["extensions"] = ["my.parts"]
    page = report.run_page(s)
    assert "1 of 4 rounds were abandoned" in page
    assert "--extension my.parts" in page
    s["perplexity"]["federated"]["weighted_mean"] = s["change_percent"]["federated"] = None
    page = report.run_page(s)
    assert "too large for a number" in page
    checked(page)


@pytest.mark.slow
def test_the_saved_recipe_is_the_same_run(tmp_path: Path) -> None:
    plan = make_run(tmp_path, stage=[{"kind": "weigh"}, {"kind": "clip", "l2": 0.5}])
    with RunStore(tmp_path) as store:
        report.write_run_page(summary.build(store), tmp_path)
    again = parse((tmp_path / "recipe.toml").read_text(encoding="utf-8"))
    assert compile(again, plan.spec, plan.sampling.population, BUILT_IN).run == plan.run


@pytest.mark.parametrize(
    "more",
    [
        {"trainable": {"kind": "layers", "layers": ["a.*", 'quo"te', "naïve\\path"]}},
        {"stage": [], "post": []},
        {"training": {"lr": 1e-7, "local_steps": 3}},
        {"stage": [{"kind": "x", "table": {"a b": [1, 2.5, True]}}]},
    ],
)
def test_toml_reads_back_as_the_same_recipe(more: dict[str, Any]) -> None:
    recipe = from_plain({**PLAIN, **more})
    assert parse(toml(recipe.resolved())) == recipe


def test_ticks_are_round_and_inside() -> None:
    assert svg.svg_ticks(0, 1000) == [0, 200, 400, 600, 800, 1000]
    assert svg.svg_ticks(4.9, 6.3) == [5.0, 5.5, 6.0]
    assert svg.svg_ticks(3, 3) == [3]
    assert svg.log_ticks(60, 1100) == [100, 200, 500, 1000]
    assert len(svg.log_ticks(21, 49)) > 1


def test_labels_are_moved_apart_and_stay_inside() -> None:
    out = svg.spread_labels([50, 51, 52, 10], 16, 0, 100)
    ordered = sorted(out)
    assert all(b - a >= 16 for a, b in pairwise(ordered))
    assert ordered[0] >= 0
    assert ordered[-1] <= 100
    assert svg.spread_labels([99, 100], 16, 0, 100) == [84, 100]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (3100, "3.10 kB"),
        (732_002, "0.732 MB"),
        (5_509_632, "5.51 MB"),
        (1.124e9, "1.12 GB"),
    ],
)
def test_sizes_as_people_read_them(value: float, said: str) -> None:
    assert numbers.size(value) == said


def test_numbers_as_people_read_them() -> None:
    assert [numbers.percent(x) for x in (-70.95, -1.94, 0.0, 12.3, None)] == ["−71 %", "−1.9 %", "0 %", "+12 %", "–"]
    assert [numbers.percent(x) for x in (-99.97, -99.4, 99.96, 100.0)] == ["−99.9 %", "−99 %", "+99.9 %", "+100 %"]
    assert [numbers.duration(x) for x in (0.41, 9.96, 64, 3725)] == ["0.41 s", "10.0 s", "1:04", "1:02:05"]
    assert [numbers.figures(x) for x in (0, 1314, 634.5, 6.3519, 0.0635)] == ["0", "1,314", "634", "6.35", "0.0635"]
    assert [numbers.smaller_in_words(x) for x in (7.53, 1.0, 0.5, None)] == [
        "7.5× smaller",
        "same size",
        "2.0× larger",
        "–",
    ]
    assert numbers.sparkline([3, 2, 1]) == "█▅▁"
    assert numbers.sparkline([]) == ""
    assert numbers.sparkline([1.0, float("inf"), 2.0]) == "▁█"
    assert numbers.perplexity(float("inf")) == "too large"
    assert (
        numbers.against(12.0, 7.53)
        == "12× smaller than the whole model in float32, 7.5× smaller than the float32 update"
    )
    assert numbers.against(1.0, 1.0) == "same size as the whole model in float32"
    assert numbers.sparkline([1.0, 1.0]) == "▄▄"
    assert numbers.loss_reason("E-NAN") == "training produced a value that is not finite"


@pytest.mark.slow
def test_codecs_that_devices_chose_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path, codec="adaptive", stage=[{"kind": "weigh"}])
    with RunStore(tmp_path) as store:
        s = summary.build(store)
        report.write_run_page(s, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    checked(page)
    assert "Codecs that devices chose" in page
    assert "mixed 3 bit" in page
    console = Console(width=200, record=True, file=io.StringIO())
    result.show(console, s, tmp_path)
    assert re.search(r"rungs +\d+ × 8 bit, \d+ × 4 bit", console.export_text())


@pytest.mark.slow
def test_a_model_of_ones_own_is_called_the_base(tmp_path: Path) -> None:
    """The shipped model's name stands nowhere in the figures of a run that starts from another one."""
    s, page = made(tmp_path, model={"base": "own-model"}, facts={"model": "own-model"})
    assert list(s["perplexity"]) == [*numbers.MODELS]
    for row in s["perplexity"].values():
        assert {"weighted_mean", "median", "worst_decile"} <= row.keys()
    screen = Console(width=120, record=True, file=io.StringIO())
    result.show(screen, s, tmp_path)
    for said in (page, screen.export_text(), str({k: v for k, v in s.items() if k != "recipe"})):
        assert "bundled" not in said
    assert "against the base" in page


@pytest.mark.parametrize("base", [20.0, 1345.0])
def test_a_wide_fall_is_drawn_on_a_log_axis_that_says_so(base: float) -> None:
    """On a linear one training alone and federated would be one line on the axis."""
    lines = [svg.Series(name, "base", [(0, base), (4, low)]) for name, low in (("alone", 2.6), ("federated", 1.3))]
    drawn = svg.lines("x", lines, x_name="round", unit=numbers.perplexity, log_y=True)
    ends = [float(y) for y in re.findall(r'points="[^"]*,([\d.]+)"', drawn)][:2]
    assert ("log scale" in drawn) == (base > 1000)
    assert abs(ends[0] - ends[1]) > 10
    assert "log scale" not in svg.lines("x", lines, x_name="round", unit=numbers.perplexity)
