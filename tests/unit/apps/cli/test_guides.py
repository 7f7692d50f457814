"""Help for a start: shipped recipes, explanations, suggestions, completion, and where faults stand."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgewise.apps.cli import guides, manual, recipe_schema, shipped
from edgewise.apps.runs import recipe_file
from edgewise.apps.terminal import sessions
from edgewise.core.errors import REGISTRY, EdgewiseError, Interrupted, RecipeError
from edgewise.plan.recipe import recipe
from edgewise.plan.recipe.rules import SettingError
from support.commands import call

ROOT = Path(__file__).resolve().parents[4]


def fault(text: str, **overrides: object) -> RecipeError:
    with pytest.raises(RecipeError) as e:
        recipe.parse(text, "mine.toml", {key.replace("__", "."): value for key, value in overrides.items()})
    return e.value


@pytest.mark.slow
def test_every_code_page_and_key_can_be_explained() -> None:
    for code in REGISTRY:
        found = manual.find_topic(code.lower())
        assert (found.kind, found.name) == ("code", code)
        assert "*What to do:*" in found.text
        assert "---" not in found.text
    assert set(manual.documented_error_codes()) == set(REGISTRY)
    files = [p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "adr" and p.stem != "index"]
    assert sorted(manual.manual_pages()) == sorted(path.stem for path in files), "each page has a name of its own"
    assert manual.find_topic("threat-model").kind == manual.find_topic("docs/howto/operate.md").kind == "page"
    for key in recipe_schema.schema_paths():
        assert manual.find_topic(key).kind == ("page" if key in manual.manual_pages() else "key")
    assert manual.find_topic("quorum").name == "E-QUORUM"


@pytest.mark.slow
def test_words_of_the_field_are_explained_and_what_they_name_exists() -> None:
    asked = [
        *"masks LoRA adapters perplexity cohort epsilon delta FedAvg FedAvgM DP-SGD dp_sgd top-k topk ring".split(),
        *"rung ladder Krum Byzantine dropout stragglers Shamir EF21 PowerSGD quantization sensitivity clipping".split(),
        *"non-IID sigma ldp client".split(),
        *("error feedback", "Secure-Aggregation", "differential privacy", "two servers"),
    ]
    assert {word: manual.find_topic(word).kind for word in asked} == dict.fromkeys(asked, "word")
    assert (manual.find_topic("masks").name, manual.find_topic("rung").name) == ("secure aggregation", "ladder rung")
    page = (manual.manual_folder() / "glossary.md").read_text(encoding="utf-8")
    for named in re.findall(r"`([a-z_0-9.]+\.[a-z_0-9.]+|E-[A-Z-]+)`", page):
        assert manual.find_topic(named).kind in ("key", "code"), named
    assert set(re.findall(r'`privacy = "(\w+)"`', page)) <= set(guides.WORDS)
    terms = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert terms == sorted(terms, key=str.casefold)
    assert all(term in manual.manual_overview() for term in terms)


@pytest.mark.quick(sample=2)
@pytest.mark.parametrize(
    ("asked", "hint"),
    [("E-QUORUN", "`E-QUORUM`"), ("secag", "E-SECAGG"), ("threat-modl", "`threat-model`"), ("lr", "`training.lr`"),
     ("perplexty", "`perplexity`"), ("aggregation", "`secure aggregation`"), ("training.lrr", "`training.lr`"),
     ("zzzzzz", "lists all")],
)  # fmt: skip
def test_a_near_miss_is_answered_with_what_was_meant(asked: str, hint: str) -> None:
    done = call("explain", asked)
    assert done.exit_code == 2
    assert "E-UNKNOWN" in done.stderr
    assert hint in done.stderr


def test_explain_lists_all_there_is() -> None:
    text = call("explain").stdout
    assert all(re.search(rf"^{re.escape(name)} ", text, re.MULTILINE) for name in [*REGISTRY, *manual.manual_pages()])
    assert json.loads(call("explain", "E-KEY", "--json").stdout)["kind"] == "code"


def test_every_error_says_where_to_read_more() -> None:
    for code in REGISTRY:
        more = (
            sessions.error_for_terminal(EdgewiseError(code, "what happened.", "what to do.")).splitlines()[-1].split()
        )
        assert more == ["more", "edgewise", "explain", code]
    assert call(*more[2:]).exit_code == 0


def test_messages_name_no_page_that_a_wheel_lacks() -> None:
    """A path below docs/ is there in a clone only; `edgewise explain PAGE` works everywhere."""
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for page in re.findall(r"edgewise explain ([a-z-]+)`", text):
            assert page in manual.manual_pages(), f"{path.name}: {page}"
        if "docs/" not in text:
            continue
        tree = ast.parse(text)
        prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
                assert not re.search(r"docs/[\w/-]+\.md", node.value), f"{path.name}:{node.lineno}: {node.value}"


@pytest.mark.slow
def test_shipped_recipes_are_listed_and_copied_and_nothing_is_written_over(folder: Path) -> None:
    listed = call("recipes").stdout.splitlines()
    assert [line.split()[0] for line in listed] == shipped.shipped_recipe_names()
    assert all(len(line.split()) > 4 for line in listed)
    for name in shipped.shipped_recipe_names():
        assert call("recipes", name, "--to", f"{name}-copy.toml").exit_code == 0
        assert recipe.load(folder / f"{name}-copy.toml") == recipe.load(shipped.FOLDER / f"{name}.toml")
    again = call("recipes", "private", "--to", "private-copy.toml")
    assert (again.exit_code, "E-FILE-EXISTS" in again.stderr) == (2, True)
    assert call("recipes", "private", "--to", ".").exit_code == 0
    assert (folder / "private.toml").read_text(encoding="utf-8") == call("recipes", "private").stdout
    assert "did you mean `private`?" in call("recipes", "privat").stderr
    assert "E-MISSING" in call("recipes", "--to", "x.toml").stderr
    assert "E-DISK" in call("recipes", "private", "--to", "no/such/folder.toml").stderr


@pytest.mark.quick(sample=3)
@pytest.mark.parametrize(
    ("asked", "hint"),
    [("lr", "training.lr"), ("training.lrr", "training.lr"), ("learning_rate", "training.lr"),
     ("epsilon", "dp.epsilon"), ("stage.quantise.bits", "stage.quantize.bits"),
     ("local_step", "training.local_steps"), ("zz", "known here")],
)  # fmt: skip
def test_a_key_in_the_wrong_place_is_found(asked: str, hint: str) -> None:
    done = call("schema", "--field", asked)
    assert done.exit_code == 2
    assert hint in done.stderr.split("fix")[1]


def test_a_fault_is_blamed_on_who_put_it_there() -> None:
    text = 'privacy = "none"\n[training]\nlr = 0.1\n[round]\nrounds = 2\n'
    assert fault(text.replace("0.1", '"x"')).what.startswith("mine.toml:3: `training.lr` = 'x'")
    assert fault(text, training__lr="abc").what.startswith("--set training.lr: `training.lr` = 'abc'")
    assert fault(text, training={"lr": "abc"}).what.startswith("--set training: ")
    assert fault(text, round__cohort=3).what.startswith("--set round.cohort: ")
    assert fault(text, round__sampling="cyclic").what.startswith("--set round.sampling: ")
    assert fault(text + "cohort = 3\n", training__lr=0.2).what.startswith("mine.toml:6: round.cohort = 3 is not read")
    table = fault(text + '[data]\nsource = "jsonl"\n').faults
    assert [one.what[:30] for one in table] == ["mine.toml:6: data.owner is req", "mine.toml:7: data.path is requ"]


@pytest.mark.parametrize(
    ("tables", "sets", "place"),
    [
        (
            '[[stage]]\nkind = "weigh"\n[[stage]]\nkind = "quantize"\nbits = 4\nbitz = 3\n',
            (),
            "mine.toml:7: [[stage]] 2",
        ),
        ('[[stage]]\nkind = "weigh"\n[[downlink]]\nkind = "quantise"\n', [], "mine.toml:5: [[downlink]] 1"),
        ("[[stage]]\nl2 = 1.0\n", [], "mine.toml:2: [[stage]] 1"),
        ('[[stage]]\nkind = "clip"\n', [], "mine.toml:3: [[stage]] 1 (clip)"),
        ('stage = [{ kind = "clop" }]\n', [], "mine.toml:2: [[stage]] 1"),
        ('[strategy]\nkind = "fedadam"\n\nlrr = 1.0\n', [], "mine.toml:5: [strategy] (fedadam)"),
        ('[[stage]]\nkind = "clip"\nl2 = 1.0\n', ["stage.0.l2=x"], "--set stage.0.l2: [[stage]] 1 (clip)"),
    ],
)
def test_faults_of_parts_carry_file_and_line(folder: Path, tables: str, sets: list[str], place: str) -> None:
    (folder / "mine.toml").write_text(f'privacy = "none"\n{tables}', encoding="utf-8")
    with pytest.raises(RecipeError) as e:
        recipe_file.read(Path("mine.toml"), recipe_file.assignments(sets), ())
    assert f"{e.value.what}:".startswith(f"{place}:") or e.value.what.startswith(f"{place} (")


def test_a_cohort_that_nothing_reads_is_named_as_that() -> None:
    unread = fault('privacy = "none"\nround = { cohort = 10, sampling = "all" }')
    assert (unread.code, unread.what.split(": ", 1)[1][:24]) == ("E-COMBO", "round.cohort = 10 is not")
    assert "leave out round.cohort" in unread.fix
    missing = fault('privacy = "none"\nround = { sampling = "fixed" }')
    assert 'sampling = "fixed" needs round.cohort' in missing.what


@pytest.mark.parametrize(
    "data",
    ['path = "x.jsonl"', 'owner = "ward"', 'time = "date"', 'source = "text"\npath = "x"\nprompt = "q"'],
)
def test_data_keys_that_nothing_reads_are_refused(data: str) -> None:
    found = fault(f'privacy = "none"\n[data]\n{data}\n')
    assert (found.code, "leave it out" in found.fix) == ("E-COMBO", True)


def test_all_faults_are_told_at_once_in_the_order_of_lines() -> None:
    found = fault('privacy = "none"\n[training]\nlr = "x"\nbatsh = 3\n[round]\nrounds = 0\nminimum = 2.0\n')
    others = found.fix.split("\n")[1:]
    assert found.code == "E-TYPE"
    assert [line.split(":")[0] for line in others] == ["also E-KEY", "also E-VALUE", "also E-VALUE"]
    assert [one.line for one in found.faults] == [3, 4, 6, 7]
    lines = sessions.error_for_terminal(found).splitlines()
    assert [line.split()[0] for line in lines] == ["E-TYPE:", "fix", "also", "also", "also", "more"]


def test_every_refusal_of_a_section_says_what_to_do() -> None:
    """A plain ValueError has no place for the fix, and a rule that raises hides those after it."""
    for name in ("recipe", "sections", "data"):
        text = (ROOT / "src" / "edgewise" / "plan" / "recipe" / f"{name}.py").read_text(encoding="utf-8")
        assert "raise ValueError" not in text
        assert "raise SettingError" not in text
    assert SettingError("E-COMBO", "what", "fix").fix == "fix"


def test_words_stay_whole_at_the_end_of_a_line_and_commands_on_theirs() -> None:
    what = "stopped. All complete rounds are saved, and the contributions that arrived in the current one."
    command = "continue with: edgewise sim mine.toml --set round.rounds=60 --set eval.every=0 --out cut --resume"
    lines = sessions.error_for_terminal(Interrupted("E-INTERRUPTED", what, command), 60).splitlines()
    assert f"  fix   {command}" in lines
    assert all(len(line) <= 60 for line in lines if "fix" not in line)
    assert " ".join(" ".join(lines).split()).startswith(f"E-INTERRUPTED: {what}")
    assert (
        sessions.error_for_terminal(Interrupted("E-INTERRUPTED", what, command))
        .splitlines()[0]
        .endswith("current one.")
    )


@pytest.mark.slow
def test_help_is_whole_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for arguments in (["--help"], ["bench", "--help"]):
        assert "..." not in call(*arguments).stdout.split("\n", 1)[1]
        assert "--install-completion" in call("--help").stdout


def complete(line: str) -> list[str]:
    """List the words that bash is offered after ``line``."""
    words = line.split(" ")
    env = {**os.environ, "_EDGEWISE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "edgewise.apps.cli.main"], env=env, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split()


@pytest.mark.slow
def test_the_shell_completes_commands_recipes_codes_and_words() -> None:
    assert {"recipes", "report"} <= set(complete("edgewise re"))
    assert complete("edgewise recipes tiny") == ["tiny-link"]
    assert "E-QUORUM" in complete("edgewise explain E-Q")
    assert complete("edgewise sim x.toml --engine p") == ["pool"]
