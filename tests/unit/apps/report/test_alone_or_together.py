"""First sentence of a report: whether training together is better than training alone, on how many devices."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgewise.apps.cli import result
from edgewise.apps.report import alone_or_together, quality, summary
from edgewise.apps.report import page as report
from edgewise.core import events
from edgewise.drivers.storage.run_store import RunStore
from unit.made_run import make_run

TOKENS = 100


def held(**nats: float) -> dict[str, tuple[float, int]]:
    """Device -> held-out loss, from nats per token."""
    return {device: (TOKENS * value, TOKENS) for device, value in nats.items()}


def told(federated: dict[str, Any], single: dict[str, Any], local_only: bool = True) -> str:
    recipe = {"compare": {"local_only": local_only}}
    return alone_or_together.sentence(
        {"against_alone": alone_or_together.against_alone(federated, single), "recipe": recipe}
    )


def test_better_worse_and_equal_are_said_with_their_devices() -> None:
    low, high = held(a=1.0, b=2.0, c=3.0), held(a=1.5, b=2.5, c=3.0)
    better = told(low, high)
    assert re.fullmatch(
        r"Training together did better than training alone: held-out perplexity 7\.4 against 10\.3 \(−28 %\)\. "
        r"It is better on 2 of 3 devices, and equal on 1\.",
        better,
    )
    worse = told(high, low)
    assert worse.startswith(
        "Training together did worse than training alone: held-out perplexity 10.3 against 7.4 (+40 %)"
    )
    assert worse.endswith("It is better on 0 of 3 devices, and equal on 1.")
    same = told(low, held(a=3.0, b=2.0, c=1.0))
    assert same.startswith("Training together did as well as training alone: held-out perplexity 7.4 both ways.")
    assert same.endswith("It is better on 1 of 3 devices, and equal on 1.")


def test_only_devices_that_were_measured_both_ways_count() -> None:
    found = alone_or_together.against_alone(held(a=1.0, b=9.0), held(a=2.0, c=0.1))
    assert found is not None
    assert (found["devices"], found["better"], found["worse"], found["equal"]) == (1, 1, 0, 0)
    assert found["federated"] < found["local_only"]


def test_a_device_without_held_out_tokens_is_equal_and_no_error() -> None:
    found = alone_or_together.against_alone({"a": (0.0, 0)}, {"a": (0.0, 0)})
    assert found is not None
    assert (found["equal"], found["change_percent"]) == (1, None)


def test_what_was_not_compared_is_said() -> None:
    assert "was not compared with training alone: compare.local_only is false" in told(held(a=1.0), {}, False)
    assert "is not compared with training alone yet" in told(held(a=1.0), {})


@pytest.mark.parametrize(("federated", "single", "word"), [(1.0, 900.0, "better"), (900.0, 1.0, "worse")])
def test_what_no_number_holds_is_still_better_or_worse(federated: float, single: float, word: str) -> None:
    said = alone_or_together.sentence(
        {"against_alone": _finite(alone_or_together.against_alone(held(a=federated), held(a=single))), "recipe": {}}
    )
    assert said.startswith(f"Training together did {word} than training alone: held-out perplexity")
    assert "too large" in said
    assert "%" not in said


def test_with_a_part_on_each_device_personal_models_are_compared() -> None:
    """No device uses the federated model then."""
    models: dict[str, Any] = {"personal": {"weighted_mean": 90.0}, "local_personal": {"weighted_mean": 120.0}}
    s = {"recipe": {"personal": {"method": "fedrep"}}, "perplexity": models}
    said = alone_or_together.sentence({**s, "personal": {"share_improved": {"over_local_personal": 0.75}}})
    assert said.startswith("Training a shared part together did better than training alone")
    assert "90.0 against 120.0" in said
    assert said.endswith("They are better on 75 % of devices.")
    models["personal"] = None
    assert "was not compared" in alone_or_together.sentence({**s, "personal": None})


def _finite(found: dict[str, Any] | None) -> dict[str, Any]:
    assert found is not None
    return {k: None if v == float("inf") else v for k, v in found.items()}


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ({}, r"Training together did better than training alone: .* It is better on \d+ of 17 devices"),
        ({"compare": {"local_only": False}}, "Training together was not compared with training alone"),
        ({"rounds_played": 4}, "Training together is not compared with training alone yet"),
    ],
)
def test_page_and_terminal_begin_with_it(tmp_path: Path, options: dict[str, Any], begins: str) -> None:
    make_run(tmp_path, **options)
    with RunStore(tmp_path) as store:
        s = summary.build(store)
    lead = re.search(r'<p class="lead">(.*?)</p>', report.run_page(s))
    assert lead is not None
    assert re.match(begins, re.sub("<.*?>", "", lead[1]))
    screen = io.StringIO()
    result.show(Console(file=screen, width=200), s, tmp_path)
    assert re.match(begins, screen.getvalue().strip())


def test_data_whose_owners_have_words_of_their_own_is_said_to_favour_training_alone(tmp_path: Path) -> None:
    make_run(tmp_path)  # packages of the standard library, one an owner
    with RunStore(tmp_path) as store:
        s = summary.build(store)
    said = "Such vocabularies favour training alone"
    assert said not in report.run_page(s), "it did not win"
    s["against_alone"]["change_percent"] = 3.0
    assert said in report.run_page(s)
    own = {**s["facts"], "extensions": ["mine"]}
    assert alone_or_together.alone_won_reason({**s, "facts": own}) == "", "a trainer of one's own reads data of its own"
    for other in ({"source": "plays"}, {"partition": "iid"}):
        assert alone_or_together.alone_won_reason({**s, "recipe": {"data": {**s["recipe"]["data"], **other}}}) == ""


@pytest.mark.slow
def test_training_alone_for_longer_is_drawn_beside_the_same_devices(tmp_path: Path) -> None:
    make_run(tmp_path, compare={"longer": 3, "longer_devices": 2})
    with RunStore(tmp_path) as store:
        assert summary.build(store)["complete"] is False, "it was not run yet"
        devices = sorted(store.measures("federated"))[:2]
        tokens = {d: store.measures("federated")[d][1] for d in devices}
        nll = {d: 7.0 * n for d, n in tokens.items()}
        store.append(events.Evaluated(round=11, model="longer", nll=nll, tokens=tokens, seconds=1.0))
        s = summary.build(store)
        means = {m: quality.figures({d: store.measures(m)[d] for d in devices}) for m in ("local_only", "federated")}
    assert s["complete"] is True
    assert (s["longer"]["times"], s["longer"]["devices"]) == (3, 2)
    assert s["longer"]["perplexity"] == pytest.approx(1096.63, rel=1e-4)
    for model, q in means.items():
        assert q is not None
        assert s["longer"][model] == pytest.approx(q["weighted_mean"])
    page = report.run_page(s)
    assert "Training alone for longer" in page
    assert "2 of 17 devices" in page
    assert "2 devices alone, 3 times the steps: 1,097" in alone_or_together.going_on(s)


def test_nothing_is_drawn_of_what_was_not_run(tmp_path: Path) -> None:
    make_run(tmp_path)
    with RunStore(tmp_path) as store:
        s = summary.build(store)
    assert s["longer"] is None
    assert alone_or_together.going_on(s) == ""
    assert "train longer alone" not in report.run_page(s)
