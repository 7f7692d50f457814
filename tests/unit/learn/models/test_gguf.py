"""GGUF files: another program reads the model from them, and what llama.cpp would read differently is refused."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from edgewise.core.errors import EdgewiseError

torch = pytest.importorskip("torch")
gguf = pytest.importorskip("gguf")
IDS = [[0, 17, 200, 5, 99, 7, 3, 250]]
TEXT = "Hello world, it's 12 o'clock\n\n  and a €"


def saved(name: str, folder: Path) -> Any:
    from edgewise.learn.models.load import load

    return load(str(tiny_models.save(name, folder / "model")), Path())


def write(loaded: Any, path: Path, dtype: str = "float32", **facts: Any) -> Any:
    from edgewise.learn.models.gguf import files

    return files.write_model(loaded.model, loaded.folder, path, dtype, {"general.name": "tiny", **facts})


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor(IDS)).logits


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2-tied", "gpt2"])
def test_another_reader_finds_the_model_and_its_tokenizer(name: str, tmp_path: Path) -> None:
    """transformers reads GGUF by code of its own, with the rotary order and the tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded = saved(name, tmp_path)
    assert write(loaded, tmp_path / "m.gguf").rounding == 0
    config = {"config": loaded.model.config} if name == "gpt2" else {}  # It reads no number of positions.
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32, **config)
    assert torch.equal(logits(read), logits(loaded.model))
    if name != "gpt2":
        tokenizer = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
        ids = tokenizer(TEXT, add_special_tokens=False).input_ids
        assert ids == loaded.tokens.encode([TEXT])[0].tolist()
        assert tokenizer.bos_token_id == loaded.tokens.start


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 1e-4), ("bfloat16", 1e-3), ("q8_0", 2e-3)])
def test_rounded_weights_are_close(dtype: str, largest: float, tmp_path: Path) -> None:
    from edgewise.learn.models.gguf import files

    loaded = saved("gpt2", tmp_path)
    written = write(loaded, tmp_path / "m.gguf", dtype)
    assert 0 < written.rounding < largest
    assert {"F32", files.TYPES[dtype]} <= set(written.types)
    before = logits(loaded.model)
    files.load_gguf_into(loaded.model, tmp_path / "m.gguf")
    assert 0 < float((logits(loaded.model) - before).abs().max()) < 20 * largest


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize("name", ["llama", "llama-tied", "qwen2-tied", "gpt2"])
def test_llama_cpp_computes_the_logits_of_the_model(name: str, tmp_path: Path) -> None:
    """The reference implementation itself: its rotary order, its tokenizer, its loader of adapters."""
    llama = pytest.importorskip("llama_logits")
    loaded = saved(name, tmp_path)
    plain = logits(loaded.model)[0].numpy()
    exact = 2e-3 if name == "gpt2" else 2e-6  # llama.cpp looks GELU up in a table of float16.
    for dtype, share in {"float32": exact, "float16": 2e-3, "bfloat16": 2e-2, "q8_0": 5e-2}.items():
        write(loaded, tmp_path / "m.gguf", dtype)
        read = llama.logits(tmp_path / "m.gguf", IDS[0])
        assert np.abs(read - plain).max() < share * np.abs(plain).max(), dtype
    assert llama.tokens(tmp_path / "m.gguf", TEXT) == loaded.tokens.encode([TEXT])[0].tolist()


def test_a_file_says_where_its_model_comes_from(tmp_path: Path) -> None:
    write(saved("llama-tied", tmp_path), tmp_path / "m.gguf", **{"edgewise.rounds": 8})
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    found = {name: fields[name].contents() for name in ("general.name", "edgewise.rounds", "tokenizer.ggml.pre")}
    assert found == {"general.name": "tiny", "edgewise.rounds": 8, "tokenizer.ggml.pre": "gpt-2"}
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True, "as documents begin in training"


@pytest.mark.quick(sample=1)
@pytest.mark.parametrize(("name", "modules"), [("llama", 14), ("gpt2", 8)])
def test_an_adapter_added_to_the_base_is_the_merged_model(name: str, modules: int, tmp_path: Path) -> None:
    """In the order of the files: W + alpha / rank B A, for q and k too."""
    from edgewise.core.keys import root
    from edgewise.learn.models.adapters import make_trainable
    from edgewise.learn.models.gguf import files
    from edgewise.plan.recipe.trainable import TrainableSection

    loaded = saved(name, tmp_path)
    write(loaded, tmp_path / "base.gguf")
    section = TrainableSection(kind="lora", rule="fedit", rank=3, alpha=6)
    model, flat = make_trainable(loaded.model, section, root(0), torch.float32)
    flat.write(np.random.default_rng(0).normal(0, 0.1, flat.spec.dim).astype(np.float32))
    files.write_adapter(model, tmp_path / "adapter.gguf", "float32", {})
    write(loaded._replace(model=model.merge_and_unload()), tmp_path / "merged.gguf")
    with suppress(pytest.skip.Exception):
        llama = pytest.importorskip("llama_logits")
        assert llama.adapter_facts(tmp_path / "base.gguf", tmp_path / "adapter.gguf")["adapter.type"] == "lora"
    base, adapter, merged = (files.read(tmp_path / f"{file}.gguf") for file in ("base", "adapter", "merged"))
    alpha = gguf.GGUFReader(tmp_path / "adapter.gguf").fields["adapter.lora.alpha"].contents()
    adapted = {one.removesuffix(".lora_a") for one in adapter if one.endswith(".lora_a")}
    assert len(adapted) == modules
    for tensor, w in base.items():
        if tensor in adapted:
            a, b = adapter[f"{tensor}.lora_a"], adapter[f"{tensor}.lora_b"]
            assert np.abs(b @ a).max() > 0.01
            w = w + alpha / b.shape[1] * b @ a
        np.testing.assert_allclose(w, merged[tensor], rtol=0, atol=1e-6)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaConfig

    from edgewise.apps.models import evaluating
    from edgewise.learn.models.gguf import architectures

    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    for call, extra in (
        (lambda: architectures.recognised_architecture(LlamaConfig()), "export"),
        (lambda: evaluating._answer_scores(evaluating.EvaluationRequest(rouge=True)), "eval"),
    ):
        with pytest.raises(EdgewiseError) as e:
            call()
        assert (e.value.code, f"[{extra}]" in e.value.fix) == ("E-DEPENDENCY", True)


def test_the_rotary_factors_of_llama_3_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from edgewise.learn.models.gguf import architectures

    rope = {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=rope)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = architectures.recognised_architecture(config).extra()["rope_freqs.weight"]
    plain = 5e5 ** -(np.arange(0, 32, 2) / 32)
    assert {1.0, 8.0} < set(factors.tolist())
    np.testing.assert_allclose(plain / factors, scaled.numpy(), rtol=1e-5)


def test_what_llama_cpp_would_read_differently_is_refused(tmp_path: Path) -> None:
    from edgewise.learn.models.gguf import architectures, vocabulary

    def refused(config: Any) -> str:
        with pytest.raises(EdgewiseError) as e:
            architectures.recognised_architecture(config)
        assert e.value.code == "E-EXPORT"
        return e.value.what

    import transformers as t

    assert "'mamba'" in refused(tiny_models.BUILDERS["mamba"]().config)
    assert "gelu" in refused(t.LlamaConfig(hidden_act="gelu"))
    assert "sliding_window" in refused(t.MistralConfig(sliding_window=64))
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}
    assert "'yarn'" in refused(t.LlamaConfig(rope_parameters=yarn))
    plain = json.loads((tiny_models.save("llama", tmp_path / "m") / "tokenizer.json").read_text(encoding="utf-8"))
    assert vocabulary.pretokenizer(plain) == "gpt-2"
    split = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    for change in (
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}},
        {"pre_tokenizer": {**level, "use_regex": True, "add_prefix_space": True}},
        {"normalizer": {"type": "Lowercase"}},
        {"model": {**plain["model"], "type": "Unigram"}},
    ):
        with pytest.raises(EdgewiseError, match="would read other tokens"):
            vocabulary.pretokenizer({**plain, **change})
    for pattern, name in vocabulary.PATTERNS.items():
        steps = [{**split, "pattern": {"Regex": pattern}}, level]
        assert vocabulary.pretokenizer({**plain, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}) == name
