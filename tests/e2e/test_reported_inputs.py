"""Inputs with which a program of this kind lost data or gave wrong figures, each through the real commands.

Some come as a generator from the folder of evidence beside a clone. Where that is absent, the same kind of input is
made here. A case in that folder that has no test here is a failure.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from commands import call, command, done, sim

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # whole runs
EVIDENCE = Path(__file__).parents[3] / "shared" / "cases" / "use"
BUNDLED = tiny_models.RECIPE.format(base="bundled")
WORDS = "cow barn milk river stone blue night old small goes walks finds ".split() * 12


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def text(path: str, words: int = 120) -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(" ".join(WORDS[:words]) + ".", encoding="utf-8")
    return file


def recipe(file: str = "recipe.toml", **data: Any) -> None:
    lines = "".join(f"{key} = {json.dumps(value)}\n" for key, value in data.items())
    made = BUNDLED.replace('source = "text"\npath = "text"\n', lines) if data else BUNDLED
    Path(file).write_text(made, encoding="utf-8")


def generated(case: str, make: Callable[[], object]) -> None:
    """The inputs of a case: of its generator where there is one, else of ``make``."""
    files = [EVIDENCE / case / name for name in ("gen.py", "recipe.toml")]
    if not files[0].is_file():
        make()
        return
    for file in filter(Path.is_file, files):
        shutil.copyfile(file, file.name)
    subprocess.run([sys.executable, "gen.py"], check=True)
    Path("gen.py").unlink()


def model(name: str = "llama-tied") -> Path:
    tiny_models.project(Path())
    return tiny_models.save(name, Path("model"))


def refused(found: dict[str, Any], code: str, *said: str) -> None:
    assert found.get("code") == code, found
    assert all(one in found["what"] + found["fix"] for one in said), found


def a_folder_of_somebody_else(case: str) -> None:
    def make() -> None:
        for name in ("blobs/photo.jpg", "journal/2024-05-01.log", ".notes.tmp", "report.html", "text/ann/n.txt"):
            text(f"mine/{name}")
        recipe("mine/recipe.toml")

    generated(case, make)
    os.chdir("mine")
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    refused(command("sim", "recipe.toml", "--out", "."), "E-FOLDER")
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


def tied_embeddings(case: str) -> None:
    def make() -> None:
        model()
        made = Path("recipe.toml").read_text(encoding="utf-8")
        adapter = '[trainable]\nkind = "lora"\nrank = 4\ntargets = ["lm_head"]\n[data]'
        Path("recipe.toml").write_text(made.replace("[data]", adapter), encoding="utf-8")

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    generated(case, make)
    assert "ok" in sim()
    for to in ("merged", "peft"):
        done("export", "run", "--to", to, "--dest", to)
    ids = torch.arange(80).reshape(2, 40) * 7 % 290
    plain = [AutoModelForCausalLM.from_pretrained(f) for f in ("model", "merged")]
    adapted = PeftModel.from_pretrained(plain[0], "peft")
    with torch.no_grad():
        one, other = (m.eval()(input_ids=ids).logits for m in (adapted, plain[1]))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def not_causal(_: str) -> None:
    model("bert")
    for found in (command("check", "recipe.toml", "--fast"), sim()):
        refused(found, "E-MODEL", "is not causal")


def truncation_and_padding(_: str) -> None:
    from tokenizers import Tokenizer

    model()
    keys = ("device", "tokens", "held_out_tokens", "base", "federated")

    def measured(out: str) -> list[list[Any]]:
        return [[row[key] for key in keys] for row in sim(out=out)["summary"]["per_device"]]

    whole = measured("whole")
    tokenizer = Tokenizer.from_file("model/tokenizer.json")
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=512)
    tokenizer.save("model/tokenizer.json")
    assert measured("again") == whole


def binary_columns(case: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def make() -> None:
        owners = [b"ann", b"bob", b"cyd"] * 4
        column = pyarrow.array([" ".join(WORDS).encode()] * 12, pyarrow.binary())
        owner = pyarrow.array(owners, pyarrow.binary())
        parquet.write_table(pyarrow.table({"owner": owner, "text": column}), "t.parquet")
        recipe(source="parquet", path="t.parquet", owner="owner")

    generated(case, make)
    assert [row["device"] for row in sim()["summary"]["per_device"]] == ["ann", "bob", "cyd"]


def times_in_other_forms(_: str) -> None:
    forms = {"10": "numbers", "2024-01-31": "ISO", "12/30/2023": "", "30.11.2023": "", "Jan 2024": ""}
    for number, (form, reading) in enumerate(forms.items()):
        rows = [{"who": "ann", "text": " ".join(WORDS), "at": form}] * 12
        Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        recipe(source="jsonl", path="t.jsonl", owner="who", time="at")
        found = command("check", "recipe.toml", "--fast")
        if reading:
            assert found["population"] == 1, (number, found)
        else:
            refused(found, "E-DATA-FORMAT", "t.jsonl:1", "data.time_format")


def text_beside_the_recipe(case: str) -> None:
    def make() -> None:
        for name in ("ann", "bob", "cyd", "dan"):
            text(f"{name}.txt")
        recipe(source="text", path=".")

    generated(case, make)
    for out in ("runs/case", "again"):
        assert command("check", "recipe.toml", "--fast")["population"] == 4
        assert sim(out=out)["summary"]["population"] == 4


def loose_files(case: str) -> None:
    def make() -> None:
        for name in ("ann/n.txt", "bob/n.txt", "cyd.txt", "dan.txt"):
            text(f"text/{name}")
        recipe()

    generated(case, make)
    assert command("check", "recipe.toml", "--fast")["population"] == 4


def lora_of_mamba(_: str) -> None:
    model("mamba")
    assert "ok" in sim(trainable__kind="lora")
    refused(sim(out="x", trainable__kind="lora", trainable__targets='["out_proj"]'), "E-TARGETS", "in_proj")


def nested_configs(_: str) -> None:
    model("gemma3")
    assert "ok" in sim()


def nanoseconds(_: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    at = pyarrow.array([2**62 + i for i in range(12)], pyarrow.timestamp("ns"))
    columns = {"who": ["ann"] * 12, "text": [" ".join(WORDS)] * 12, "at": at}
    parquet.write_table(pyarrow.table(columns), "t.parquet")
    recipe(source="parquet", path="t.parquet", owner="who", time="at")
    assert command("check", "recipe.toml", "--fast")["population"] == 1
    recipe(source="parquet", path="t.parquet", owner="who", text="at")
    assert "ok" in command("check", "recipe.toml", "--fast")  # written as text, to the nanosecond


def odd_entries(_: str) -> None:
    for name in ("ann.txt", "bob.txt"):
        text(f"text/{name}", 140)
    Path("text/dead.txt").symlink_to("nowhere")
    os.mkfifo("text/pipe")
    (Path("text") / os.fsdecode(b"caf\xe9.txt")).write_bytes(" ".join(WORDS).encode())
    recipe()
    summary = sim()["summary"]
    assert (summary["population"], summary["participation"]["lost_by_code"]) == (4, {"E-DEVICE-DATA": 1})
    dealt = {"data__partition": "iid", "data__devices": 2}
    assert sim(out="dealt", **dealt)["summary"]["population"] == 2


def a_hub_list(_: str) -> None:
    from huggingface_hub.utils import filter_repo_objects

    from edgewise.learn.models import hub

    weights = ["model.safetensors"]
    usual = ["chat_template.jinja", "additional_chat_templates/tool.jinja", "config.json", "tokenizer.json", *weights]
    waste = ["consolidated.safetensors", "original/consolidated.00.safetensors"]
    kept = filter_repo_objects([*usual, *waste], allow_patterns=[*hub.SMALL, hub.WEIGHTS], ignore_patterns=hub.APART)
    assert sorted(kept) == sorted(usual)


def export_where_it_cannot_be(_: str) -> None:
    import resource

    model()
    Path("model/tokenizer_backup").mkdir()
    assert "ok" in sim()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        refused(command("export", "run", "--dest", "full"), "E-DISK")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "tokenizer.json" in done("export", "run", "--dest", "out")["files"]


def a_moved_project(_: str) -> None:
    Path("proj").mkdir()
    os.chdir("proj")
    model()
    assert "ok" in sim()
    os.chdir("..")
    Path("proj").rename("proj2")
    done("export", "proj2/run", "--dest", "out")


def a_delta_that_promises_nothing(_: str) -> None:
    for name in ("ann", "bob", "cyd"):
        text(f"text/{name}.txt")
    made = BUNDLED.replace('privacy = "none"', 'privacy = "central_dp"')
    for delta in (0.5, 0.999, 1 / 3):
        Path("recipe.toml").write_text(f"{made}[dp]\nepsilon = 8.0\nclip_l2 = 1.0\ndelta = {delta}\n", encoding="utf-8")
        found = command("check", "recipe.toml", "--fast")
        assert "delta" in found["what"] + found["fix"], found


def the_end_of_a_cut_text(_: str) -> None:
    from edgewise.core.keys import root
    from edgewise.learn.text import blocks, corpus
    from edgewise.learn.text.tokens import load_tokenizer
    from edgewise.plan.recipe.data import DataSection

    model()
    text("text/ann/n.txt", 140)
    tokens = load_tokenizer(Path("model"))
    for most, ends in ((100, False), (0, True)):
        section = DataSection(source="text", path="text", sequence_len=64, max_tokens=most)
        found = corpus.load(section, Path(), Path("cache"), root(0))
        built = blocks.build(found.documents("ann"), tokens, section, found.cut_each)
        assert (tokens.end in built.held_NS) is ends


def a_clip_that_overflows(_: str) -> None:
    for name in ("ann", "bob", "cyd"):
        text(f"text/{name}.txt")
    recipe()
    found = command(
        "sim", "recipe.toml", "--out", "run", *("--set", 'privacy="central_dp"'), *("--set", "dp.epsilon=8.0"),
        *("--set", "dp.delta=1e-3"), *("--set", "dp.clip_l2=1e20"),
    )  # fmt: skip
    assert found.get("code") in ("E-NAN", "E-VALUE", "E-RANGE"), found


def small_ones(_: str) -> None:
    def csv(content: bytes) -> dict[str, Any]:
        Path("t.csv").write_bytes(content)
        recipe(source="csv", path="t.csv", owner="who")
        return command("check", "recipe.toml", "--fast")

    refused(csv(b"who,text,text\na,x,y\n"), "E-DATA-FORMAT", "more than once")
    refused(csv(b"who,text\n" + b"a,x\n" * 12 + b"a,\xff\n"), "E-DATA-FORMAT", "t.csv:14")
    refused(csv(b""), "E-DATA-EMPTY", "is empty")
    row = json.dumps({"who": "ann", "text": " ".join(WORDS)})[:-1] + ', "score": NaN}\n'
    Path("t.jsonl").write_text(row * 4, encoding="utf-8")
    recipe(source="jsonl", path="t.jsonl", owner="who")
    assert command("check", "recipe.toml", "--fast")["population"] == 1
    recipe()
    text("text/ann.txt").write_bytes(b"\xef\xbb\xbf" + " ".join(WORDS).encode())
    assert call("sim", "recipe.toml", "--resume").exit_code == 2
    assert not Path("runs").exists()


def an_adapter_beside_the_weights(_: str) -> None:
    model()
    assert "ok" in sim(trainable__kind="lora")
    done("export", "run", "--to", "peft", "--dest", "adapter")
    for file in Path("adapter").glob("adapter_*"):
        shutil.copy(file, "model")
    for kind in ("full", "lora"):
        refused(sim(out="next", trainable__kind=kind), "E-MODEL", "adapter")


CASES = {
    "01-out-deletes-user-files": a_folder_of_somebody_else,
    "02-tied-embeddings-merged-export": tied_embeddings,
    "03-not-causal-models-accepted": not_causal,
    "04-tokenizer-truncation-and-padding": truncation_and_padding,
    "05-parquet-binary-is-trained-as-base64": binary_columns,
    "06-time-column-in-the-wrong-order": times_in_other_forms,
    "07-text-beside-the-recipe": text_beside_the_recipe,
    "08-loose-files-beside-folders-are-dropped": loose_files,
    "09-mamba-lora-is-a-crash": lora_of_mamba,
    "10-gemma3-and-other-nested-configs-crash": nested_configs,
    "11-parquet-values-that-crash": nanoseconds,
    "12-links-pipes-and-names": odd_entries,
    "13-hub-download-leaves-the-chat-template": a_hub_list,
    "14-export-errors-misnamed": export_where_it_cannot_be,
    "15-moved-project-cannot-export": a_moved_project,
    "16-delta-that-promises-nothing": a_delta_that_promises_nothing,
    "17-end-of-text-after-a-cut": the_end_of_a_cut_text,
    "18-clip-so-large-that-a-metric-overflows": a_clip_that_overflows,
    "19-small-ones": small_ones,
    "20-adapter-beside-the-weights": an_adapter_beside_the_weights,
}


@pytest.mark.long(sample=5)
@pytest.mark.parametrize("case", CASES)
def test_a_reported_input_has_its_outcome(case: str) -> None:
    CASES[case](case)


@pytest.mark.skipif(not EVIDENCE.is_dir(), reason="the folder of evidence is not beside this clone")
def test_every_reported_input_is_tried() -> None:
    assert {folder.name for folder in EVIDENCE.iterdir()} == set(CASES)


def test_perplexity_of_equally_likely_letters_is_not_below_their_number() -> None:
    """The figure that gave the models away which see what they predict."""
    import random

    draw = random.Random(0)
    model("bert-decoder")
    for owner in ("ann", "bob", "cyd"):
        file = Path("text") / owner / "n.txt"
        file.write_text(" ".join(draw.choice("abcdefgh") for _ in range(400)), encoding="utf-8")
    figure = sim(training__local_steps=20)["summary"]["perplexity"]["federated"]["weighted_mean"]
    assert figure > math.sqrt(8)  # the space between two letters is certain
