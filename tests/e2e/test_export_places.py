"""Places of an export: inputs, outputs, and what a failed one leaves behind."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from commands import command, sim
from safetensors.numpy import load_file, save_file

from edgewise.drivers.storage.run_store import RunStore

pytest.importorskip("torch")
pytestmark = pytest.mark.slow  # whole runs
SUPPORT = Path(__file__).parents[1] / "support"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a model of its own, in the working folder."""
    folder = tmp_path / "project"
    tiny_models.project(folder)
    tiny_models.save("llama-tied", folder / "model")
    monkeypatch.chdir(folder)
    return folder


def left(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if ".part" in p.name or p.name == "out")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_project_that_moved_exports(
    kind: str, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim(trainable__kind=kind)
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    project.rename(moved)
    assert command("export", "elsewhere/moved/run", "--dest", "a")["rounds"] == 1
    assert str(tmp_path) not in (moved / "run" / "summary.json").read_text(encoding="utf-8")

    (moved / "run").rename(tmp_path / "run")  # the run alone: its base has to be named
    refused = command("export", "run", "--dest", "b")
    assert (refused["code"], "--base" in refused["fix"]) == ("E-EXPORT", True)
    assert command("export", "run", "--dest", "b", "--base", "elsewhere/moved/model")["rounds"] == 1
    tiny_models.save("llama", tmp_path / "other")
    refused = command("export", "run", "--dest", "c", "--base", "other")
    assert refused["code"] == "E-EXPORT", "another model is not taken for the base"


def test_a_run_that_is_resumed_elsewhere_knows_its_new_place(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim(out="../run")
    shutil.copytree(project, tmp_path / "far" / "copy")
    shutil.rmtree(project)
    monkeypatch.chdir(tmp_path / "far" / "copy")
    assert command("export", "../../run", "--dest", "out")["code"] == "E-EXPORT"
    sim("--resume", out="../../run")
    assert command("export", "../../run", "--dest", "out")["rounds"] == 1


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more into one file fails, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing_but_the_run(project: Path) -> None:
    sim(model__base="bundled")
    for to in ("merged", "tensors"):
        with files_of_at_most(1_000_000):
            refused = command("export", "run", "--to", to, "--dest", "out")
        assert (refused["code"], "free some space" in refused["fix"]) == ("E-DISK", True), refused
        assert not left(project)
    assert command("export", "run", "--dest", "out")["rounds"] == 1


def test_folders_named_like_files_of_a_tokenizer_are_none(project: Path) -> None:
    (project / "model" / "tokenizer_backup").mkdir()
    (project / "model" / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (project / "model" / "additional_chat_templates").mkdir()
    (project / "model" / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}", encoding="utf-8")
    sim()
    (project / "file").touch()
    assert command("export", "run", "--dest", "file/out")["code"] == "E-DISK"
    files = command("export", "run", "--dest", "out")["files"]
    assert {"chat_template.jinja", "additional_chat_templates/tool.jinja"} <= set(files)
    assert not any("backup" in name for name in files)
    assert (project / "out" / "model.safetensors").stat().st_mode & 0o044, "others may read what the umask lets them"


def test_a_model_that_is_not_the_trained_one_is_no_export(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgewise.learn.models import exported

    sim(trainable__kind="lora", trainable__targets='["embed_tokens"]')
    monkeypatch.setattr(exported, "_untie", lambda model: None)
    refused = command("export", "run", "--dest", "out")
    assert (refused["code"], "not the trained one" in refused["what"]) == ("E-EXPORT", True)
    assert not left(project)


@pytest.mark.parametrize("to", ["merged", "peft"])
def test_what_is_read_back_has_to_be_the_trained_model(to: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder, and not what was in memory: here its weights are written wrong."""
    from edgewise.learn.models import exported

    write_tokenizer = exported.write_tokenizer

    def damaged(loaded: exported.Loaded, folder: Path) -> None:
        write_tokenizer(loaded, folder)
        (file,) = folder.glob("*model.safetensors")
        save_file({name: 1.5 * x for name, x in load_file(file).items()}, file, metadata={"format": "pt"})

    sim(trainable__kind="lora")
    monkeypatch.setattr(exported, "write_tokenizer", damaged)
    refused = command("export", "run", "--to", to, "--dest", "out")
    assert (refused["code"], "not the trained one" in refused["what"]) == ("E-EXPORT", True), refused
    assert not left(project)


def test_what_a_trainer_of_ones_own_trained_is_written_by_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import toy_recipe

    monkeypatch.syspath_prepend(str(SUPPORT))
    (project / "recipe.toml").write_text(toy_recipe.TEXT, encoding="utf-8")
    summary = sim("--extension", "toy")["summary"]
    refused = command("export", "run", "--dest", "out")
    assert (refused["code"], "--to tensors" in refused["fix"]) == ("E-EXPORT", True)
    written = command("export", "run", "--dest", "out", "--to", "tensors")
    assert written["model_sha256"] == summary["model_sha256"]
    tensors = load_file(project / "out" / "trained.safetensors")
    with RunStore(project / "run") as store:
        params = store.blob(summary["model_sha256"])
    np.testing.assert_array_equal(np.sort(np.concatenate([x.ravel() for x in tensors.values()])), np.sort(params))
    card = (project / "out" / "README.md").read_text(encoding="utf-8")
    assert "trained.safetensors" in card


def test_tensors_of_a_text_run_are_named_as_the_modules_are(project: Path) -> None:
    from transformers import AutoModelForCausalLM

    sim(trainable__kind="layers", trainable__layers='["model.layers.1.*"]')
    command("export", "run", "--dest", "out", "--to", "tensors")
    command("export", "run", "--dest", "merged")
    state = AutoModelForCausalLM.from_pretrained("merged").state_dict()
    tensors = load_file(project / "out" / "trained.safetensors")
    assert tensors
    assert all(name.startswith("model.layers.1.") and (state[name].numpy() == x).all() for name, x in tensors.items())
    facts = json.loads((project / "run" / "summary.json").read_text(encoding="utf-8"))["facts"]
    assert "spec" not in facts
