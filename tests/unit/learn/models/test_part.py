"""One side of a model by itself: the weights of the other side are never read."""

from __future__ import annotations

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from edgewise.core.errors import ModelError
from edgewise.learn.models import quantized
from edgewise.learn.models.cut import cut_model
from edgewise.learn.models.part import load_part
from edgewise.learn.models.weights import read_weights

IDS = torch.randint(0, 300, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("kind", "shape"), [("llama", "U"), ("llama", "head"), ("qwen2-tied", "U"), ("gpt2", "U")]
)  # fmt: skip
def test_both_sides_together_are_the_model_and_each_has_its_own_weights_only(tmp_path, kind, shape):
    folder = tiny_models.save(kind, tmp_path)
    whole = read_weights(folder, dtype=torch.float32)
    device, server = (load_part(folder, 1, shape, side) for side in ("device", "server"))
    for part in (device, server):
        part.model.eval()
    with torch.no_grad():
        out = server.stages.server(device.stages.device(IDS))
        out = out if device.stages.top is None else device.stages.top(out)
        torch.testing.assert_close(out, whole.eval()(input_ids=IDS, use_cache=False).logits)
    sizes = [sum(p.numel() for p in part.model.parameters() if p.device.type != "meta") for part in (device, server)]
    assert sum(sizes) == sum(p.numel() for p in whole.parameters())
    assert sizes == [sum(p.numel() for _, p in part.named) for part in (device, server)]


def test_weights_without_the_prefix_of_the_model_are_found_and_missing_ones_are_named(tmp_path):
    folder = tiny_models.save("gpt2", tmp_path)
    path = folder / "model.safetensors"
    bare = {name.removeprefix("transformer."): x for name, x in load_file(path).items()}
    save_file(bare, path, {"format": "pt"})
    load_part(folder, 1, "U", "device")
    del bare["h.0.ln_1.weight"]
    save_file(bare, path, {"format": "pt"})
    load_part(folder, 1, "U", "server")
    with pytest.raises(ModelError, match=r"h\.0\.ln_1\.weight") as refused:
        load_part(folder, 1, "U", "device")
    assert refused.value.code == "E-MODEL"


def test_a_part_in_4_bits_has_the_codes_of_the_whole_model_and_no_more_memory(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = tiny_models.save("llama-wide", tmp_path / "llama")
    whole = quantized.load_quantized(folder, "nf4", torch.float32)
    part = load_part(folder, 1, "U", "device", quantize="nf4")
    coded, expected = quantized.quantized_layers(part.model), quantized.quantized_layers(whole)
    assert set(coded) == {name for name in expected if ".layers.0." in name}
    for name, layer in coded.items():
        torch.testing.assert_close(quantized.decoded_weight(layer), quantized.decoded_weight(expected[name]))
    with torch.no_grad():
        torch.testing.assert_close(part.stages.device(IDS), cut_model(whole, 1, "U").device(IDS))
    assert not {name for name, _ in part.named} & {f"{name}.weight" for name in coded}
    with pytest.raises(ModelError, match=r"E-QUANTIZE: .* is a Conv1D"):
        load_part(tiny_models.save("gpt2-wide", tmp_path / "gpt2"), 1, "U", "device", quantize="nf4")
