"""Students of a teacher: their size, their configuration, and what the teacher gives them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_model
import tiny_models

from edgewise.core.errors import EdgewiseError
from edgewise.core.keys import root

torch = pytest.importorskip("torch")

from edgewise.learn.compress import student  # noqa: E402
from edgewise.learn.models.load import load  # noqa: E402

KEY = root(0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    folder = tiny_model.save(tmp_path_factory.mktemp("teacher"))
    config = LlamaConfig.from_pretrained(folder, num_hidden_layers=6, hidden_size=64, intermediate_size=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load(str(folder), Path())


def parameters(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_size_takes_evenly_spaced_layers_of_the_teacher(teacher: Any) -> None:
    whole = parameters(teacher.model)
    each = parameters(teacher.model.model.layers[0])
    made = student.make_student(teacher, str(whole - 3 * each), Path(), KEY)
    assert parameters(made.model) == whole - 3 * each == made.copied
    assert "layers 0, 2, 5 of the teacher's 6" in made.origin
    given = teacher.model.model.layers
    for own, source in zip(made.model.model.layers, (given[0], given[2], given[5]), strict=True):
        assert torch.equal(own.mlp.up_proj.weight, source.mlp.up_proj.weight)
    assert torch.equal(made.model.lm_head.weight, teacher.model.lm_head.weight)


def test_another_size_is_a_new_llama_near_it_with_the_teacher_s_vocabulary(teacher: Any) -> None:
    made = student.make_student(teacher, "36K", Path(), KEY)
    assert abs(parameters(made.model) - 36_000) < 0.05 * 36_000
    config = made.model.config
    assert (config.vocab_size, config.tie_word_embeddings, config.max_position_embeddings) == (300, True, 128)
    assert (config.eos_token_id, made.copied) == (0, 0)
    again = student.make_student(teacher, "36k", Path(), KEY)
    assert all(torch.equal(a, b) for a, b in zip(made.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.parametrize(("vocabulary", "wanted"), [(4096, 2**22), (32_000, 5 * 10**7), (150_000, 3 * 10**8)])
def test_sizes_are_met_within_five_percent(vocabulary: int, wanted: int) -> None:
    near = [c for c in student._llamas(vocabulary, 10**12) if abs(c[0] - wanted) <= 0.05 * wanted]
    assert near
    count, width, layers = near[0]
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=student._inner(width), num_hidden_layers=layers,
        num_attention_heads=width // 32, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    assert student._parameters(config) == count


def test_a_configuration_takes_the_layers_that_fit(teacher: Any, tmp_path: Path) -> None:
    plain = {**teacher.model.config.to_dict(), "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    for place in ("config.json", "."):
        made = student.make_student(teacher, place, tmp_path, KEY)
        assert "layers 0, 5 of the teacher's 6" in made.origin
    narrow = {**plain, "intermediate_size": 96}
    (tmp_path / "config.json").write_text(json.dumps(narrow), encoding="utf-8")
    made = student.make_student(teacher, "config.json", tmp_path, KEY)
    assert 0 < made.copied < parameters(made.model)
    assert "no layer of the teacher" in made.origin


def test_lists_with_an_entry_for_each_layer_are_shortened() -> None:
    from transformers import Qwen2Config

    config = Qwen2Config(num_hidden_layers=4, layer_types=["full_attention", "sliding_attention"] * 2)
    made = student.shortened_config(config, [0, 3])
    assert made.layer_types == ["full_attention", "sliding_attention"]
    assert (made.num_hidden_layers, config.num_hidden_layers) == (2, 4)


def test_a_trained_student_keeps_its_weights(teacher: Any, tmp_path: Path) -> None:
    own = tiny_model.save(tmp_path / "own")
    made = student.make_student(teacher, "own", tmp_path, KEY)
    assert made.copied == 0
    assert torch.equal(made.model.lm_head.weight, load(str(own), Path()).model.lm_head.weight)


def test_students_of_other_tokens_are_refused_by_name(teacher: Any, tmp_path: Path) -> None:
    own = tiny_model.save(tmp_path / "own")
    raw = json.loads((own / "tokenizer.json").read_text(encoding="utf-8"))
    raw["model"]["merges"].pop()
    (own / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    plain = {**teacher.model.config.to_dict(), "vocab_size": 301}
    (tmp_path / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    for to, words in (
        ("own", "another tokenizer"),
        ("config.json", "vocabulary of 301"),
        ("9M", "9,000,000 parameters"),
        ("4K", "take 36,384"),
        ("small", "neither"),
    ):
        with pytest.raises(EdgewiseError, match=words) as e:
            student.make_student(teacher, to, tmp_path, KEY)
        assert e.value.code == "E-DISTILL"


@pytest.mark.parametrize("name", ["gpt2", "qwen2-tied", "mamba"])
def test_other_architectures_give_their_layers(name: str, tmp_path: Path) -> None:
    teacher = load(str(tiny_models.save(name, tmp_path / name)), Path())
    one = sum(p.numel() for n, p in teacher.model.named_parameters() if ".1." not in n)
    made = student.make_student(teacher, str(one), Path(), KEY)
    assert parameters(made.model) == one == made.copied
