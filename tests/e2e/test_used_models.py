"""A trained model in use, through the real commands: of a run, exported, fetched; alone and in a chat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from commands import app, call, command, done, sim
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # whole runs

GREEDY = ("--prompt", "the quick brown", "--max-tokens", "12", "--temperature", "0")
TEMPLATE = "{% for m in messages %}<|pad|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|pad|>{% endif %}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of a LoRA and of a whole model, and what they export."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_models.project(folder)
    tiny_models.save("llama-tied", folder / "model")
    with pytest.MonkeyPatch.context() as m:
        m.chdir(folder)
        sim(out="lora", trainable__kind="lora", training__lr=0.3)
        sim(out="full", training__lr=0.3)
        for run, to, dest in (
            ("lora", "peft", "adapter"),
            ("lora", "merged", "merged"),
            ("full", "tensors", "fetched"),
        ):
            done("export", run, "--to", to, "--dest", dest)
    return folder


@pytest.fixture(autouse=True)
def _there(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)


def text(place: str, *options: str, name: str = "global") -> str:
    return str(done("generate", place, "--model", name, *GREEDY, *options)["answers"][name]["text"])


def test_a_run_and_what_it_exports_say_the_same() -> None:
    said = text("lora")
    assert said != text("lora", name="base")
    assert said == text("merged") == text("adapter", "--base", "model")
    assert text("adapter", "--base", "model", name="base") == text("lora", name="base") == text("full", name="base")
    assert text("lora", "--round", "0") == text("lora", name="base")


def test_a_fetched_model_says_what_its_run_says(tmp_path: Path) -> None:
    from edgewise.drivers.storage import run_record

    shutil.copytree("fetched", tmp_path / "fetched")
    shutil.copytree("model", tmp_path / "fetched" / "base")
    known = run_record.read_run_record(Path("full")).run
    (tmp_path / "fetched" / "facts.json").write_text(known["facts"]["plan_facts"], encoding="utf-8")
    lineage = json.dumps({"run": known["id"], "name": "tiny", "played": 1})
    (tmp_path / "fetched" / "lineage.json").write_text(lineage, encoding="utf-8")
    assert text(str(tmp_path / "fetched")) == text("full") != text("full", name="base")


def test_answers_of_several_models_stream_one_after_the_other() -> None:
    shown = call("generate", "lora", "--model", "global", "--model", "base", *GREEDY).stdout
    assert shown == f"\n[global]\n{text('lora')}\n\n[base]\n{text('lora', name='base')}\n"


def test_a_personal_model_stands_beside_the_global_one(tmp_path: Path) -> None:
    from edgewise.apps.models import released
    from edgewise.drivers.storage.personal_models import PersonalModel, keep_personal

    shutil.copytree("full", tmp_path / "run")
    base = released.released_model(Path("full"), 0).params
    keep_personal(tmp_path / "run", PersonalModel("ann", "", "fine_tune", base))
    run, moved = str(tmp_path / "run"), ("--base", "model")
    both = done("generate", run, "--device", "ann", *GREEDY, *moved)["answers"]
    assert {name: one["text"] for name, one in both.items()} == {
        "global": text("full"),
        "personal": text("full", name="base"),
    }
    unknown = command("generate", run, "--device", "bob", *GREEDY, *moved)
    assert (unknown["code"], "ann" in unknown["fix"]) == ("E-USE", True)
    assert "no personal model" in command("generate", run, "--model", "personal", *GREEDY, *moved)["what"]


@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_a_model_with_a_part_of_the_device_is_used_and_exported(tmp_path: Path, method: str) -> None:
    from edgewise.drivers.storage.personal_models import personal_models

    out = str(tmp_path / "run")
    personal = {"method": method, "steps": 2, "lr": 0.3}
    sim(out=out, training__lr=0.3, **{f"personal__{key}": value for key, value in personal.items()})
    one = next(personal_models(Path(out)))
    used = ("--device", one.device)
    both = done("generate", out, *used, *GREEDY)["answers"]
    assert both["global"]["text"] != both["personal"]["text"]
    for to in ("merged", "tensors"):
        done("export", out, *used, "--to", to, "--dest", str(tmp_path / to))
        assert one.device in (tmp_path / to / "README.md").read_text(encoding="utf-8")
    assert text(str(tmp_path / "merged")) == both["personal"]["text"]
    done("export", out, "--dest", str(tmp_path / "global"))
    assert text(str(tmp_path / "global")) == both["global"]["text"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": tiny_models.tiny_model.LINES[0]}), encoding="utf-8")
    found = done("eval", out, "--on", str(file), *used)["models"]
    assert found["global"]["all"]["perplexity"] != found["personal"]["all"]["perplexity"]
    unknown = command("export", out, "--device", "nobody", "--dest", str(tmp_path / "none"))
    assert unknown["code"] == "E-EXPORT"


@pytest.mark.parametrize("gate", ["token", "none"])
def test_an_adapter_of_the_devices_own_stays_beside_the_shared_one(tmp_path: Path, gate: str) -> None:
    """The run's vector is that of one adapter. A gate depends on each token, so no file holds a gated model."""
    from edgewise.apps.models import released
    from edgewise.drivers.storage.personal_models import personal_models

    out = str(tmp_path / "run")
    sim(
        out=out, trainable__kind="lora", trainable__rule="fedit", training__lr=0.3, personal__method="dual",
        personal__gate=gate, personal__steps=3, personal__lr=0.5,
    )  # fmt: skip
    assert (
        released.released_model(Path(out), None).params.size == released.released_model(Path("lora"), None).params.size
    )
    one, other = list(personal_models(Path(out)))[:2]
    shared = released.released_model(Path(out), None).params.size
    assert one.params.size > 2 * shared - 1
    assert one.params.size == 2 * shared or gate == "token"
    assert one.params.tobytes() != other.params.tobytes()
    used = ("--device", one.device)
    both = done("generate", out, *used, *GREEDY)["answers"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"text": tiny_models.tiny_model.LINES[0]}), encoding="utf-8")
    found = done("eval", out, "--on", str(file), *used)["models"]
    assert found["global"]["all"]["perplexity"] != found["personal"]["all"]["perplexity"]
    for to in ("merged", "peft"):
        done("export", out, "--to", to, "--dest", str(tmp_path / to))
    assert text(str(tmp_path / "merged")) == both["global"]["text"]
    for to in ("merged", "peft"):
        into = ("--to", to, "--dest", str(tmp_path / f"own-{to}"))
        if gate == "token":
            refused = command("export", out, *used, *into)
            assert (refused["code"], "gates" in refused["what"]) == ("E-EXPORT", True)
        else:
            done("export", out, *used, *into)
    if gate == "none":
        assert text(str(tmp_path / "own-merged")) == both["personal"]["text"]


def test_an_evaluation_shows_models_and_owners(tmp_path: Path) -> None:
    rows = [
        {"owner": "ann", "text": tiny_models.tiny_model.LINES[0]},
        {"owner": "bob", "prompt": "the quick", "text": "brown fox"},
        {"question": "the quick brown", "choices": ["fox", "idea"], "answer": "fox"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "my_scores.py").write_text("def short(row, answer):\n    return len(answer) < 99\n", encoding="utf-8")
    Path("my_scores.py").write_text((tmp_path / "my_scores.py").read_text(encoding="utf-8"), encoding="utf-8")
    options = ("--on", str(file), "--model", "global", "--model", "base", "--metric", "my_scores:short")
    found = done("eval", "lora", *options, "--max-tokens", "4", "--csv", str(tmp_path / "table.csv"))
    assert found["length"] == 16, "as in training"
    trained, base = found["models"]["global"], found["models"]["base"]
    assert trained["ann"]["perplexity"] != base["ann"]["perplexity"]
    assert (trained["all"]["rows"], trained["all"]["short"], set(trained)) == (3, 1.0, {"all", "ann", "bob"})
    table = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "model,device,rows,tokens,perplexity,bits_per_byte,accuracy,accuracy_by_byte,short"
    assert len(table) == 7
    assert "bits per byte" in call("eval", "lora", "--on", str(file)).stdout
    for bad, code in (
        (("--metric", "my_scores:long"), "E-EXTENSION"),
        (("--devices", "cyd"), "E-USE"),
        (("--devices", "ann", "--devices", "cyd"), "E-USE"),
        (("--length", "65"), "E-USE"),
        (("--column", "text=body"), "E-DATA-COLUMN"),
        (("--devices", "ann", "--rouge"), "E-USE"),
        (("--model", "personal", "--devices", "ann"), "E-USE"),
    ):
        assert command("eval", "lora", "--on", str(file), *bad)["code"] == code, bad


def test_a_gguf_file_is_the_model(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    found = done("export", "lora", "--to", "gguf", "--dest", str(tmp_path / "whole"), "--dtype", "float32")
    assert found["logits"]["rounding"] == 0 < found["logits"]["moved"]
    assert "llama-cli -m model.gguf" in (tmp_path / "whole" / "README.md").read_text(encoding="utf-8")
    adapter = done("export", "lora", "--to", "gguf-adapter", "--dest", str(tmp_path / "adapter"))
    assert (adapter["rounding"], adapter["files"]) == (0, ["README.md", "adapter.gguf"])
    for run, to, dtype, why in (
        ("full", "gguf-adapter", "base", "an adapter needs"),
        ("lora", "gguf-adapter", "q8_0", "no dtype 'q8_0'"),
        ("lora", "merged", "q8_0", "no dtype 'q8_0'"),
    ):
        refused = command("export", run, "--to", to, "--dtype", dtype, "--dest", str(tmp_path / "none"))
        assert (refused["code"], why in refused["what"]) == ("E-EXPORT", True), refused
    unread = command("export", "full", "--to", "tensors", "--base", "model", "--dest", str(tmp_path / "none"))
    assert (unread["code"], "reads no base" in unread["what"]) == ("E-EXPORT", True)
    assert not (tmp_path / "none").exists()


def chat(*options: str, said: str) -> Any:
    Path("chat.jinja").write_text(TEMPLATE, encoding="utf-8")
    return CliRunner().invoke(app, ["chat", "lora", "--max-tokens", "8", *options], input=said)


def test_a_chat_answers_each_line_until_the_input_ends() -> None:
    result = chat("--template", "chat.jinja", "--temperature", "0", said="hello\n\nwhy?\n")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) >= 2
    both = chat("--template", "chat.jinja", "--model", "global", "--model", "base", said="hello\n")
    assert both.stdout.startswith("[global]\n")
    assert "\n[base]\n" in both.stdout


def test_a_chat_drops_what_no_longer_fits_and_says_so() -> None:
    result = chat("--template", "chat.jinja", said="a long message of many tokens\n" * 6)
    assert result.exit_code == 0
    assert "old messages no longer fit" in result.stderr
    over = chat("--template", "chat.jinja", said="a very long message " * 20 + "\nhello\n")
    assert over.exit_code == 0
    assert "E-USE" in over.stderr


def test_what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    bare = chat(said="hello\n")
    assert bare.exit_code == 2
    assert "no chat template" in bare.stderr
    assert "--template" in bare.stderr
    forged = chat("--template", "chat.jinja", said="<|endoftext|>\n")
    assert forged.exit_code == 0
    assert "spells" in forged.stderr
    for place, options, why in (
        (tmp_path, (), "holds no model"),
        ("adapter", (), "the base of this adapter"),
        ("merged", ("--round", "1"), "--round is for"),
        ("merged", ("--model", "base"), "no base model"),
        ("merged", ("--base", "model"), "is a whole model"),
        ("lora", ("--model", "best"), "no model 'best'"),
        ("lora", ("--round", "9"), "no round 9"),
    ):
        refused = command("generate", str(place), *options, *GREEDY)
        assert (refused["code"], why in refused["what"]) == ("E-USE", True), refused
    long = command("generate", "lora", "--prompt", "word " * 200)
    assert (long["code"], "at most 64" in long["what"]) == ("E-USE", True)
