"""`edgewise new`: whatever the data and the privacy word, the recipe that it writes can be checked and run."""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import Result

from edgewise.apps.cli import guides, new_recipe, new_text
from edgewise.plan.recipe import recipe
from edgewise.plan.recipe.privacy import Privacy
from support.commands import call

WORDS = get_args(Privacy)
LINE = "the quick brown fox jumps over the lazy dog and sees number {} of {} by the river. "


def rows(devices: int, each: int = 4) -> list[dict[str, object]]:
    return [
        {"id": 100 * d + i, "ward": f"ward {d}", "note": LINE.format(i, d) * 6, "date": f"2024-01-{i + 1:02d}"}
        for d in range(devices)
        for i in range(each)
    ]


def jsonl(folder: Path, devices: int) -> str:
    (folder / "notes.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows(devices)), encoding="utf-8")
    return "notes.jsonl"


def table(folder: Path, devices: int) -> str:
    with (folder / "notes.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, rows(1)[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows(rows(devices))
    return "notes.csv"


def packed(folder: Path, devices: int) -> str:
    jsonl(folder, devices)
    (folder / "notes.jsonl.gz").write_bytes(gzip.compress((folder / "notes.jsonl").read_bytes()))
    return "notes.jsonl.gz"


def parquet(folder: Path, devices: int) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as files

    files.write_table(pyarrow.Table.from_pylist(rows(devices)), folder / "notes.parquet")
    return "notes.parquet"


def texts(folder: Path, devices: int) -> str:
    for row in rows(devices):
        at = folder / "texts" / str(row["ward"])
        at.mkdir(parents=True, exist_ok=True)
        (at / f"{row['id']}.txt").write_text(str(row["note"]), encoding="utf-8")
    return "texts"


def tables(folder: Path, devices: int) -> str:
    (folder / "parts").mkdir()
    jsonl(folder / "parts", devices)
    (folder / "parts" / "more.jsonl").write_text(json.dumps(rows(1)[0]) + "\n", encoding="utf-8")
    return "parts"


FORMS = [jsonl, table, packed, parquet, texts, tables]


def new(*args: str) -> Result:
    done = call("new", *args)
    assert done.exit_code == 0, done.output
    return done


@pytest.mark.long(sample=3)
@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("word", WORDS)
def test_what_it_writes_passes_the_check(folder: Path, word: str, form: Callable[[Path, int], str]) -> None:
    new("mine", "--data", form(folder, 6), "--privacy", word)
    done = call("check", "mine.toml", "--fast", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["population"], found["privacy"]["word"]) == (6, word)


@pytest.mark.long(sample=6)
@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3, 5, 17, 40, 41, 60, 127, 400, 2000])
@pytest.mark.parametrize("word", WORDS)
def test_any_number_of_devices_composes(folder: Path, word: str, devices: int) -> None:
    """``new`` itself compiles what it writes for the whole bundled model."""
    done = new("mine", "--data", jsonl(folder, devices), "--privacy", word)
    assert f"{devices:,} devices" in done.stdout


def test_columns_are_proposed_and_every_key_is_explained(folder: Path) -> None:
    (folder / "own").mkdir()
    done = new("own/mine", "--data", jsonl(folder, 3), "--privacy", "none")
    assert "by `ward`, text from `note`" in done.stdout
    text = (folder / "own" / "mine.toml").read_text(encoding="utf-8")
    read = recipe.load(folder / "own" / "mine.toml")
    assert (read.name, read.data.owner, read.data.text, read.data.path) == ("mine", "ward", "note", "../notes.jsonl")
    assert '# time = "date"' in text
    keys = re.findall(r"^(?:# )?(\w+) = ", text, re.MULTILINE)
    commented = re.findall(r"^(?:# )?\w+ = .*# \S", text, re.MULTILINE)
    assert len(commented) >= len(keys) - 1  # `rounds` says it itself
    assert set(new_text.WORD) == set(WORDS) == set(guides.WORDS)


@pytest.mark.long(sample=1)
@pytest.mark.slow
@pytest.mark.parametrize(("unit", "exponent"), [("device", -5), ("example", -6)])
def test_delta_is_small_beside_the_number_of_what_it_is_about(folder: Path, unit: str, exponent: int) -> None:
    """Of three devices, or of 5,000 rows, each of which is a block of its own."""
    lines = (json.dumps({"ward": f"ward {i % 3}", "note": f"seen {i}"}) + "\n" for i in range(5_000))
    (folder / "short.jsonl").write_text("".join(lines), encoding="utf-8")
    new("mine", "--data", "short.jsonl", "--privacy", "local_dp", "--unit", unit, "--owner", "ward", "--text", "note")
    assert recipe.load("mine.toml").dp.delta == pytest.approx(10.0**exponent)


@pytest.mark.slow
def test_named_columns_win_and_wrong_ones_are_suggested(folder: Path) -> None:
    data = jsonl(folder, 3)
    new("a", "--data", data, "--privacy", "none", "--owner", "date", "--text", "ward")
    read = recipe.load("a.toml")
    assert (read.data.owner, read.data.text) == ("date", "ward")
    for given, hint in ((("--owner", "wrd"), "`ward`"), (("--text", "x"), "columns: id, ward, note, date")):
        done = call("new", "b", "--data", data, "--privacy", "none", *given)
        assert (done.exit_code, "E-DATA-COLUMN" in done.stderr, hint in done.stderr) == (2, True, True)


@pytest.mark.slow
def test_nothing_is_asked_in_a_pipe_and_nothing_written_over(folder: Path) -> None:
    data = jsonl(folder, 3)
    assert "--data" in call("new").stderr
    assert "--privacy" in call("new", "--data", data).stderr
    assert "write --privacy local_dp --unit example." in call("new", "--data", data, "--privacy", "record").stderr
    assert "did you mean `hidden`?" in call("new", "--data", data, "--privacy", "hiden").stderr
    assert "E-DATA-MISSING" in call("new", "--data", "nowhere", "--privacy", "none").stderr
    assert not Path("mine.toml").exists()
    new("--data", data, "--privacy", "none")
    before = Path("mine.toml").read_bytes()
    again = call("new", "--data", data, "--privacy", "hidden")
    assert (again.exit_code, "E-FILE-EXISTS" in again.stderr) == (2, True)
    assert Path("mine.toml").read_bytes() == before


def talk(i: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"what is {i}?"}, {"role": "assistant", "content": LINE.format(i, i)}]


SHAPES: dict[str, tuple[list[dict[str, object]], tuple[str, ...], dict[str, object]]] = {
    "alpaca": (
        [{"instruction": "Sum up.", "input": LINE.format(i, 0), "output": f"no {i}"} for i in range(6)],
        ("--devices", "3"),
        {"prompt": ["instruction", "input"], "text": "output", "owner": "", "partition": "iid", "devices": 3},
    ),
    "answers": (
        [{"client": f"c{i % 2}", "question": LINE.format(i, 0), "answer": str(i)} for i in range(6)],
        (),
        {"prompt": "question", "text": "answer", "owner": "client"},
    ),
    "short": (
        [{"user": f"u{i % 2}", "text": "yes" if i % 3 else "no"} for i in range(6)],
        (),
        {"owner": "user", "text": "text"},
    ),
    "twice": (
        [{"branch": f"b{i % 4}", "sentence": LINE.format(0, i % 2)} for i in range(8)],
        (),
        {"owner": "branch", "text": "sentence"},
    ),
    "nested": (
        [
            {"id": i, "meta": {"site": {"user": f"u{i % 2}"}, "day": "2024-01-01"}, "said": {"en": LINE.format(i, 0)}}
            for i in range(6)
        ],
        (),
        {"owner": "meta.site.user", "text": "said.en"},
    ),
    "chats": (
        [{"user": f"u{i % 2}", "messages": talk(i)} for i in range(6)],
        ("--base", "hub:owner/chat-model"),
        {"owner": "user", "messages": "messages", "text": "text"},
    ),
}


@pytest.mark.quick(sample=3)
@pytest.mark.parametrize("shape", SHAPES)
def test_tables_of_known_shapes_are_read_as_they_are_meant(folder: Path, shape: str) -> None:
    table, options, keys = SHAPES[shape]
    (folder / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in table), encoding="utf-8")
    said = new("--data", "t.jsonl", "--privacy", "none", *options).stdout
    read = recipe.load("mine.toml").data.model_dump()
    assert {key: read[key] for key in keys} == keys
    assert ("prompts from `instruction` and `input`" in said) == (shape == "alpaca")


@pytest.mark.slow
def test_blocks_are_long_enough_for_most_prompts(folder: Path) -> None:
    for words, tokens in ((2, 64), (60, 128), (900, 512)):
        rows = [{"client": f"c{i % 2}", "question": "word " * words, "answer": f"answer {i}"} for i in range(6)]
        (folder / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        new(f"m{words}", "--data", "t.jsonl", "--privacy", "none")
        assert recipe.load(f"m{words}.toml").data.sequence_len == tokens


@pytest.mark.quick(sample=3)
@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("chat.jsonl", json.dumps({"user": "a", "messages": talk(1)}), "the bundled one has none"),
        ("chat.jsonl", json.dumps({"user": "a", "turns": [{"speaker": "human", "said": "x"}]}), "messages of `turns`"),
        ("alpaca.jsonl", json.dumps({"instruction": "x", "output": "a longer text"}), "--devices 20"),
        (
            "t.csv",
            "Absender;Kanal;Tag;Nachricht\n"
            + "".join(f"P{i % 4};K{i % 2};01.02.24;es regnet {i}\n" for i in range(16)),
            "the owner of a row: `Absender` (4 values), `Kanal` (2 values). fix say --owner COLUMN",
        ),
        ("t.csv", "".join(f"ann{i % 2},I like cats {i}\n" for i in range(6)), "no header: 'I like cats 0'"),
        ("t.csv", "".join(f"ann{i % 2},{'long ' * 30}{i}\n" for i in range(6)), "it has 151 characters"),
        ("t.csv", "user,text,text\n" + "ann,some words,others\nbob,some,others\n" * 3, "names text more than once"),
        ("t.txt", "%PDF-1.4 words", "a PDF"),
        ("t.json", '[\n {"user": "a", "text": "b"}\n]', "jq -c '.[]'"),
        ("t.json", '{\n "user": "a"\n}', "one JSON object per line"),
    ],
)
def test_tables_that_cannot_be_read_are_refused_with_why(folder: Path, name: str, content: str, hint: str) -> None:
    (folder / name).write_text(content + "\n", encoding="utf-8")
    done = call("new", "--data", name, "--privacy", "none")
    assert (done.exit_code, list(folder.glob("*.toml"))) == (2, [])
    assert hint in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_table_without_a_header_is_read_by_the_numbers_of_its_columns(folder: Path) -> None:
    rows = [f'ann{i % 2};"I like cats {i}, and ""dogs"" too"' for i in range(6)]
    (folder / "t.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    refused = call("new", "--data", "t.csv", "--privacy", "none")
    assert (refused.exit_code, "say --no-header; or --header" in refused.stderr) == (2, True)
    new("mine", "--data", "t.csv", "--privacy", "none", "--no-header")
    data = recipe.load("mine.toml").data
    assert (data.header, data.owner, data.text) == (False, "1", "2")
    assert '# time = "4"' in Path("mine.toml").read_text(encoding="utf-8")
    assert "by `1`, text from `2`" in new("again", "--data", "t.csv", "--privacy", "none", "--no-header").stdout
    assert "E-COMBO" in call("new", "j", "--data", jsonl(folder, 2), "--privacy", "none", "--header").stderr


@pytest.mark.parametrize(("answer", "header"), [("no", False), ("", False), ("yes", True)])
def test_a_person_is_asked_whether_the_first_line_is_a_header(folder: Path, answer: str, header: bool) -> None:
    (folder / "t.csv").write_text("".join(f"ann{i % 2},I like cats {i}\n" for i in range(6)), encoding="utf-8")
    asked = []

    def ask(question: str, proposed: str) -> str:
        asked.append(question)
        return answer or proposed

    found, named = new_recipe.first_look_at_data("t.csv", "auto", ask)
    assert (named, [c.name for c in found.columns]) == (header, ["ann0", "I like cats 0"] if header else ["1", "2"])
    assert ["I like cats 0" in question for question in asked] == [True]
    chosen = new_recipe.columns_for_recipe(
        found, "t.csv", new_recipe.DataOptions(header=named), lambda _, proposed: proposed
    )
    assert chosen["header"] is header


@pytest.mark.parametrize(
    ("header", "vouched"), [("How is the new service?", "auto"), ("What you liked most here", True)]
)
def test_a_header_of_sentences_is_one_where_a_person_says_so(folder: Path, header: str, vouched: object) -> None:
    rows = "".join(f"site {i % 2},fine {i} as it is\n" for i in range(6))
    (folder / "t.csv").write_text(f'site,"{header}"\n{rows}', encoding="utf-8")
    new("mine", "--data", "t.csv", "--privacy", "none", "--text", header)
    data = recipe.load("mine.toml").data
    assert (data.text, data.header) == (header, vouched)


@pytest.mark.slow
def test_what_cannot_be_is_refused_before_a_file_is_there(folder: Path) -> None:
    assert "E-NMIN" in call("new", "--data", jsonl(folder, 1), "--owner", "ward", "--privacy", "hidden").stderr
    (folder / "one.jsonl").write_text('{"a": 1.5}\n', encoding="utf-8")
    assert "columns: a" in call("new", "--data", "one.jsonl", "--privacy", "none").stderr
    assert "E-COMBO" in call("new", "--data", texts(folder, 2), "--owner", "x", "--privacy", "none").stderr
    assert not list(folder.glob("*.toml"))


@pytest.mark.slow
def test_few_devices_are_told_what_noise_does_to_them(folder: Path) -> None:
    done = new("--data", jsonl(folder, 5), "--privacy", "central_dp")
    assert "note: 5 devices are few for noise" in done.stdout
    assert tomllib.loads(Path("mine.toml").read_text(encoding="utf-8"))["dp"]["epsilon"] == 8.0


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")
def test_a_person_is_asked(folder: Path) -> None:
    import pty

    jsonl(folder, 3)
    pid, terminal = pty.fork()
    if not pid:
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
        os.execv(sys.executable, [sys.executable, "-m", "edgewise.apps.cli.main", "new", "asked"])
    os.write(terminal, b"notes.jsonl\n\nward\nnone\n")  # the text as proposed
    said = b""
    while True:
        try:
            said += os.read(terminal, 4096)
        except OSError:
            break
    assert os.waitpid(pid, 0)[1] == 0, said
    for asked in (b"data: a folder of text", b"[note]", b"[ward]", b"[hidden]"):
        assert asked in said
    assert recipe.load("asked.toml").privacy == "none"
