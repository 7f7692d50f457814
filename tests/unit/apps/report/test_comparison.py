"""`edgewise compare`: figures and differing settings of several runs, on the screen, as JSON and on one page."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from edgewise.apps.cli import main
from edgewise.apps.report import comparison, comparison_page, summary
from edgewise.apps.runs import run_dirs
from edgewise.core import events
from unit.made_run import RECIPES, make_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    make_run(Path("runs/plain"))
    make_run(Path("runs/slow"), training={"local_steps": 8, "lr": 5e-4}, stage=[{"kind": "weigh"}])
    return tmp_path


def call(*args: str) -> Result:
    return CliRunner().invoke(main.app, ["compare", *args])


@pytest.mark.slow
def test_figures_are_those_of_the_summaries_and_only_what_differs_is_told(folder: Path) -> None:
    done = call("runs/plain", "runs/slow", "--json")
    found = json.loads(done.stdout)
    for row in found["runs"]:
        with run_dirs.opened(Path(row["run_dir"])) as store:
            one = summary.build(store)
        assert row["perplexity"] == {m: q and q["weighted_mean"] for m, q in one["perplexity"].items()}
        assert (row["up_total"], row["rounds"]) == (one["bytes"]["up_total"], one["rounds"]["played"])
        assert row["curve"][-1]["up"] == pytest.approx(one["quality_for_bytes"][-1]["up"])
    assert found["settings"] == {
        "stage": ["weigh, quantize(bits=4)", "weigh"],
        "training.lr": [2e-3, 5e-4],
    }
    assert found["not_comparable"] == {}
    shown = call("runs/plain", "runs/slow").stdout
    for said in ("federated", "plain", "slow", "training.lr", "0.0005", "weigh, quantize(bits=4)", "compare.html"):
        assert said in shown
    assert "cannot be compared" not in shown


@pytest.mark.slow
def test_runs_of_other_data_models_or_text_are_named_and_never_win(folder: Path) -> None:
    make_run(Path("runs/text"), facts={"fingerprint": "aa" * 32})
    make_run(Path("runs/model"), worse=0.05)
    make_run(Path("runs/adapter"), facts={"model_fingerprint": "bb" * 32})  # weights that it does not train
    make_run(Path("runs/fewer"), devices=5)
    found = comparison.build_comparison(
        [Path("runs") / name for name in ("plain", "slow", "text", "model", "adapter", "fewer")]
    )
    assert found["not_comparable"] == {
        "text": ["other data"],
        "model": ["another base model"],
        "fewer": ["other held-out text"],
    }
    assert comparison.best_run(found) in ("plain", "slow", "adapter")
    said = "model has another base model than the first run. Their perplexities cannot be compared."
    assert said in comparison_page.comparison_page(found)
    assert said in " ".join(call("runs/plain", "runs/model").stdout.split())
    assert comparison.best_run(comparison.build_comparison([Path("runs/plain"), Path("runs/text")])) is None


@pytest.mark.slow
def test_own_metrics_are_compared_on_the_screen_and_on_the_page(folder: Path) -> None:
    for round, mean in ((4, 0.25), (9, 0.75)):
        with run_dirs.opened(Path("runs/slow")) as store:
            each = {"d0": mean - 0.125, "d1": mean + 0.125}
            store.append(events.OwnMeasured(round=round, model="federated", metrics={"<accuracy>": each}))
    found = comparison.build_comparison([Path("runs/plain"), Path("runs/slow")])
    plain, slow = (row["metrics"] for row in found["runs"])
    assert (plain, slow) == ({}, {"<accuracy>": [{"played": 5, "mean": 0.25}, {"played": 10, "mean": 0.75}]})
    assert comparison.metric_rows(found) == [("<accuracy>", ["–", "0.75"])]
    shown = call("runs/plain", "runs/slow").stdout
    assert re.search(r"<accuracy> +– +0\.75", shown)
    page = comparison_page.comparison_page(found)
    assert "<accuracy>" not in page
    assert page.count("&lt;accuracy&gt; by rounds played") >= 1
    assert "own metrics" not in call("runs/plain", "runs/plain").stdout


@pytest.mark.slow
def test_an_unfinished_run_and_one_with_a_budget(folder: Path) -> None:
    make_run(Path("runs/half"), rounds_played=5, finished=False)
    make_run(Path("runs/dp"), **RECIPES["central_dp"])
    found = comparison.build_comparison([Path("runs/half"), Path("runs/dp")])
    half, _ = found["runs"]
    assert (half["complete"], half["rounds"], half["perplexity"]["centralised"]) == (False, 5, None)
    assert {"privacy", "dp.epsilon"} <= set(found["settings"])
    assert "5 *" in comparison.run_figures(half)
    assert "* not complete" in call("runs/half", "runs/dp").stdout


@pytest.mark.slow
def test_names_tell_runs_apart_and_faults_are_said(folder: Path) -> None:
    make_run(Path("other/plain"))
    assert [r["name"] for r in comparison.build_comparison([Path("runs/plain"), Path("other/plain")])["runs"]] == [
        "runs/plain",
        "other/plain",
    ]
    assert len({r["name"] for r in comparison.build_comparison([Path("runs/plain")] * 2)["runs"]}) == 2
    assert "E-MISSING" in call("runs/plain").stderr
    assert "E-RESUME" in call("runs/plain", "nowhere").stderr
    assert not Path("nowhere").exists()


@pytest.mark.slow
def test_the_page_stands_alone_and_writes_over_its_own_kind_only(folder: Path) -> None:
    assert call("runs/plain", "runs/slow").exit_code == 0
    html = Path("compare.html").read_text(encoding="utf-8")

    class Page(HTMLParser):
        links: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.links += [v or "" for k, v in attrs if k in ("src", "href") and not (v or "").startswith("#")]

    page = Page()
    page.links = []
    page.feed(html)
    assert page.links == []
    assert "<script" not in html
    assert html.count("<svg") >= 4
    used = set(re.findall(r"var\(--(run\d(?:-text)?)\)", html))
    assert used
    assert used <= set(re.findall(r"--(run\d(?:-text)?):#", html))
    assert call("runs/slow", "runs/plain").exit_code == 0
    Path("mine.html").write_text("<p>mine</p>", encoding="utf-8")
    done = call("runs/slow", "runs/plain", "--out", "mine.html")
    assert (done.exit_code, "E-FILE-EXISTS" in done.stderr) == (2, True)
    assert Path("mine.html").read_text(encoding="utf-8") == "<p>mine</p>"
    assert "E-DISK" in call("runs/slow", "runs/plain", "--out", "runs").stderr


@pytest.mark.slow
def test_names_and_values_that_look_like_markup_are_text(folder: Path) -> None:
    make_run(Path("runs/<b>[red]x"))
    done = call("runs/plain", "runs/<b>[red]x")
    assert "<b>[red]x" in done.stdout
    assert "<b>[red]" not in Path("compare.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_it_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from edgewise.apps.cli.main import app\n"
        "try: app(['compare', 'runs/plain', 'runs/slow', '--json'])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == "False", done.stderr
