"""The privacy card says the same in `edgewise check`, in the report and in the model card: all of it, or that there is
none."""

from __future__ import annotations

import io
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from edgewise.apps.cli import result
from edgewise.apps.models import model_card
from edgewise.apps.report import privacy, summary
from edgewise.apps.simulate import check_screen
from edgewise.drivers.storage.run_store import RunStore
from edgewise.plan.disclosure import privacy_facts
from edgewise.privacy.card import card_assumptions
from unit.made_run import RECIPES, made_plan, make_run

VISIBLE = "The server sees each update. No epsilon is claimed."
HIDDEN = "Individual updates are hidden. No epsilon is claimed."


def written(out: Path, **recipe: Any) -> dict[str, str]:
    """Words of each of the three on privacy, without spaces and line breaks."""
    make_run(out, **recipe)
    with RunStore(out) as store:
        s = summary.build(store)
    screen = Console(file=io.StringIO(), width=1000)
    screen.print(check_screen.privacy_table(privacy_facts(made_plan(**recipe))))
    told = {
        "check": screen.file.getvalue(),  # type: ignore[attr-defined]
        "report": unescape(privacy.privacy_section(s)),
        "model card": privacy.privacy_markdown(s, s["rounds"]["played"]),
    }
    return {where: " ".join(text.split()) for where, text in told.items()}


@pytest.mark.slow
@pytest.mark.parametrize("word", ["central_dp", "distributed_dp", "local_dp", "example"])
def test_every_part_of_the_card_is_in_all_three(word: str, tmp_path: Path) -> None:
    recipe = RECIPES[word]
    spend = made_plan(**recipe).spend
    assert spend is not None
    card = spend.card
    told = written(tmp_path, **recipe)
    parts = [card.unit, card.adjacency, card.sampling, card.noise, f"at most {card.rounds_each} round"]
    parts += [f"{epsilon:.3g}" for _, epsilon in card.fewer]
    parts += [f"{card.delta:g}", f"{card.z:.4g}, derived from dp.epsilon"]
    if word == "distributed_dp":
        assert len(card.fewer) > 2
        assert "per coordinate; at least" in card.noise
        parts += [f"{card.honest} are counted on in every round", "If fewer of them add their noise"]
    else:
        assert card.honest == 0
    for where, text in told.items():
        for part in parts:
            assert part in text, (where, part)
    for where in ("check", "model card"):  # the report says it in large figures
        assert f"epsilon {recipe['dp']['epsilon']:g}, and the round that would exceed it is not played" in told[where]
        assert f"epsilon {card.of_release:.3g} at delta 0.001" in told[where]
        assert ("against the server nothing is promised" in told[where].replace("| ", "")) == (word == "central_dp")


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(("word", "said"), [("none", VISIBLE), ("hidden", HIDDEN)])
def test_without_epsilon_nothing_is_called_private(word: str, said: str, tmp_path: Path) -> None:
    for where, text in written(tmp_path, **RECIPES[word]).items():
        assert said in text, where
        assert "private" not in text.lower(), where
        assert "privacy card" not in text.lower(), where
        assert "who could see what" in text.lower(), where


@pytest.mark.slow
def test_a_model_card_says_what_was_spent_on_its_model(tmp_path: Path) -> None:
    make_run(tmp_path, **RECIPES["central_dp"])
    with RunStore(tmp_path) as store:
        s = summary.build(store)
    for row in s["per_round"]:
        row["epsilon"] = float(row["round"] + 1)
    assert "| spent on this model | epsilon 3, charged before each release |" in privacy.privacy_markdown(s, 3)
    assert "spent" not in privacy.privacy_markdown(s, 0)
    card = model_card.ModelCard(s, made_plan(**RECIPES["central_dp"]).recipe, "merged", 3, "0" * 64).text()
    travelled = card[card.index("## How an update travelled") :]
    noise = s["plan"]["trace"][-2]
    assert noise["role"] == "post"
    assert f"- `noise`: {noise['does']}." in travelled, "each part's own sentence"


@pytest.mark.parametrize("word", ["central_dp", pytest.param("local_dp", marks=pytest.mark.slow)])
def test_the_terminal_says_the_promise_and_what_was_spent(word: str, tmp_path: Path) -> None:
    make_run(tmp_path, **RECIPES[word])
    with RunStore(tmp_path) as store:
        s = summary.build(store)
    s["per_round"][-1]["epsilon"] = 2.5
    card = s["plan"]["privacy"]["card"]
    screen = Console(file=io.StringIO(), width=300, record=True)
    result.show(screen, s, tmp_path)
    (line,) = [line.split(maxsplit=1)[1].strip() for line in screen.export_text().splitlines() if "privacy " in line]
    assert f"of the released models epsilon {card['of_release']:.3g} at delta 0.001" in line
    assert line.endswith(f"spent 2.5 of {card['budget']:g}")
    assert ("against the server nothing is promised" in line) == (word == "central_dp")


def test_the_terminal_says_that_no_epsilon_is_claimed(tmp_path: Path) -> None:
    make_run(tmp_path, **RECIPES["hidden"])
    with RunStore(tmp_path) as store:
        assert privacy.sentence(summary.build(store)).startswith(HIDDEN)


def test_a_run_that_recorded_nothing_says_nothing() -> None:
    assert privacy.privacy_markdown({"plan": {"privacy": None}}, 1) == ""
    assert privacy.sentence({"plan": {"privacy": None}}) == ""


@pytest.mark.parametrize("word", ["local_dp", pytest.param("example", marks=pytest.mark.slow)])
def test_updates_that_devices_noise_are_not_said_to_be_without_promise(word: str) -> None:
    """The server sees each of them, and epsilon holds against it all the same."""
    plan = made_plan(**RECIPES[word])
    server = privacy_facts(plan)["seen"][0]
    assert (server["updates"], server["sum"]) == ("each, with its noise", "with noise")
    assert f"epsilon {RECIPES[word]['dp']['epsilon']:g}" in server["promised"]
    assert "with the noise that the device added" in plan.claims[0]
    assert "nothing is promised" not in plan.claims[0]


@pytest.mark.parametrize("rounds", [1, 11, 12, 13, 16, 24, 100])
def test_epsilon_is_drawn_of_a_dozen_rounds_each_once_and_of_the_last(rounds: int) -> None:
    per_round = [{"round": r, "epsilon": 1.0 + r} for r in range(rounds)]
    html = privacy._spending_chart({"per_round": per_round}, {"budget": 200.0})  # type: ignore[typeddict-item]
    wide = html.split('class="narrow')[0]  # every chart is drawn for narrow screens too
    drawn = re.findall(r">round (\d+)<", wide)
    assert len(drawn) == len(set(drawn)) <= 13
    assert (drawn[0], drawn[-1]) == ("1", str(rounds))


def test_hidden_sums_say_what_they_hide_and_distributed_noise_where_epsilon_went() -> None:
    hidden = privacy_facts(made_plan(**RECIPES["hidden"]))
    promised = {w["promised"] for w in hidden["seen"]}
    assert promised == {"sums only, no epsilon", "no epsilon", "needs TLS outside"}
    plain = privacy_facts(made_plan())
    assert plain["seen"][0]["promised"] == "nothing is promised"
    noised = privacy_facts(made_plan(**RECIPES["distributed_dp"]))["card"]
    assert 0.0 < noised["continuous"] < noised["against_server"]
    assert "continuous noise of this size would take epsilon" in dict(card_assumptions(noised))["counted"]
    assert "counted" not in dict(card_assumptions(privacy_facts(made_plan(**RECIPES["central_dp"]))["card"]))


def test_what_never_leaves_a_device_is_what_there_is() -> None:
    assert "raw text never leaves a device" in made_plan().claims
    remembered = made_plan(stage=[{"kind": "feedback"}, {"kind": "quantize", "bits": 4}])
    assert "raw text and codec memory never leave a device" in remembered.claims
