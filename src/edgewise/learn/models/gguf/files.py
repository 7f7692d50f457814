"""Write a model or an adapter as a GGUF file, and compare the file with the model through the reference reader.

    write_model(model, folder_of_the_base, Path("model.gguf"), "q8_0", {"general.name": "plays"})
    load_gguf_into(model, Path("model.gguf"))                    # the model has the file's rounded numbers

Rows of a matrix are never transposed but for GPT-2, whose matrices transformers keeps as [in, out].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edgewise.core.errors import EdgewiseError
from edgewise.core.vector import Array
from edgewise.learn.models.architecture import sizes
from edgewise.learn.models.gguf import architectures, vocabulary
from edgewise.learn.models.gguf.architectures import FLOAT32, KnownArchitecture
from edgewise.learn.models.modules import plain_parameter_name

TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
Q8_BLOCK = 32  # Q8_0 has a scale for so many numbers of a row.


class WrittenTensors(NamedTuple):
    """Tensors of a written file: their number by type, and the largest difference of a value by rounding."""

    types: dict[str, int]
    rounding: float


def write_model(
    model: nn.Module, tokenizer: Path, path: Path, dtype: str, facts: Mapping[str, str | int]
) -> WrittenTensors:
    """Write a whole model. Adapters have been merged into it.

    Args:
        tokenizer: the folder of its tokenizer.
        dtype: of matrices, one of ``TYPES``. Vectors and normalisations are float32. A matrix whose rows Q8_0 cannot
            divide is float16.
        facts: further keys of the file.
    Raises:
        EdgewiseError: E-EXPORT for an architecture or a tokenizer that is not written, or a file that does not hold the
            model.
    """
    import gguf

    known = architectures.recognised_architecture(model.config)
    writer = _writer(path, known, facts)
    writer.add_type(gguf.GGUFType.MODEL)
    architectures.write_settings(writer, known)
    vocabulary.write_gguf_vocabulary(writer, tokenizer, sizes(model).vocabulary)
    writer.add_file_type(_file_type(dtype))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    return _written(writer, path, {**dict(known.tensor(*one) for one in _parameters(model)), **known.extra()}, dtype)


def write_adapter(model: nn.Module, path: Path, dtype: str, facts: Mapping[str, str | int]) -> WrittenTensors:
    """Write the LoRA adapter of a peft model: y = W x + alpha / rank B A x, where llama.cpp takes rank from B.

    Args:
        dtype: ``float32`` or ``float16``.
    Raises:
        EdgewiseError: E-EXPORT as ``write_model``, and for adapters of embeddings, of the output head, or with a
            magnitude (DoRA).
    """
    import gguf

    known = architectures.recognised_architecture(model.get_base_model().config)
    factors, alpha = _factors(model)
    writer = _writer(path, known, facts)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
    written = {}
    for name, (a, b) in factors.items():
        owner = known.named(f"{name}.weight")
        written[f"{owner}.lora_a"], written[f"{owner}.lora_b"] = a, known.reordered(f"{name}.weight", b)
    return _written(writer, path, written, dtype)


def _writer(path: Path, known: KnownArchitecture, facts: Mapping[str, str | int]) -> Any:
    import gguf

    writer = gguf.GGUFWriter(path, known.name)
    for key, value in facts.items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    return writer


def _written(writer: Any, path: Path, tensors: Mapping[str, Array], dtype: str) -> WrittenTensors:
    """Write the tensors, close the file, and read it back."""
    import gguf

    for name, x in tensors.items():
        kind = gguf.GGMLQuantizationType[_type(name, x.shape, dtype)]
        writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(x), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _compared(path, tensors, dtype)


def _file_type(dtype: str) -> int:
    import gguf

    kinds = gguf.LlamaFileType
    named = {"float32": kinds.ALL_F32, "float16": kinds.MOSTLY_F16, "bfloat16": kinds.MOSTLY_BF16}
    return int(named.get(dtype, kinds.MOSTLY_Q8_0))


def _type(name: str, shape: tuple[int, ...], dtype: str) -> str:
    if len(shape) < 2 or FLOAT32.search(name):
        return "F32"
    return "F16" if dtype == "q8_0" and shape[-1] % Q8_BLOCK else TYPES[dtype]


def _parameters(model: nn.Module) -> Iterator[tuple[str, Array]]:
    """Yield each parameter once, in float32. A head that is tied to the embeddings is left out, as in llama.cpp."""
    for name, p in model.named_parameters():
        yield name, p.detach().float().numpy()


def _factors(model: Any) -> tuple[dict[str, tuple[Array, Array]], float]:
    """Return (A float32[rank, in], B float32[out, rank]) of each adapted module, and alpha.

    A file has one alpha. Where modules differ in alpha / rank, B takes the ratio.
    """
    found: dict[str, tuple[Array, Array, float]] = {}
    for name, module in model.get_base_model().named_modules():
        if not hasattr(module, "lora_A"):
            continue
        if not len(module.lora_A) or getattr(module, "lora_magnitude_vector", None):
            what = f"the adapter of {name} is not a plain LoRA of a linear layer."
            raise EdgewiseError("E-EXPORT", what, 'export the whole model: "--to gguf".')
        # Several adapters (ReFFA) are one of their summed rank, because all have one scale.
        each = [
            [side[n].weight.detach().float().numpy() for n in module.lora_A] for side in (module.lora_A, module.lora_B)
        ]
        a, b = np.concatenate(each[0]), np.concatenate(each[1], axis=1)
        found[plain_parameter_name(name)] = a, b, float(module.scaling["default"]) * b.shape[1]
    head = [name for name in found if name.endswith(("lm_head", "embed_tokens", "wte"))]
    if head:
        what = f"llama.cpp applies no adapter to {head[0]}, which may be tied to another matrix."
        raise EdgewiseError("E-EXPORT", what, 'export the whole model: "--to gguf".')
    alpha = next(iter(found.values()))[2]
    return {name: (a, b * np.float32(own / alpha)) for name, (a, b, own) in found.items()}, alpha


def read(path: Path) -> dict[str, Array]:
    """Read all tensors of a GGUF file with the reference reader: name -> float32[rows, columns]."""
    import gguf

    found = {}
    for t in gguf.GGUFReader(path).tensors:
        shape = tuple(int(n) for n in reversed(t.shape))
        found[t.name] = gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32).reshape(shape)
    return found


def load_gguf_into(model: nn.Module, path: Path) -> None:
    """Give a model the parameters of its file, rounded as they are there."""
    known, tensors = architectures.recognised_architecture(model.config), read(path)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(np.array(known.original(name, tensors[known.named(name)]))))


def _compared(path: Path, wanted: Mapping[str, Array], dtype: str) -> WrittenTensors:
    """Compare the tensors of a file with those that were to be written. Raises EdgewiseError(E-EXPORT)."""
    found, types, largest = read(path), Counter[str](), 0.0
    if found.keys() != wanted.keys():
        raise EdgewiseError("E-EXPORT", f"{path.name} has other tensors than were written.", "please report it.")
    for name, x in wanted.items():
        kind = _type(name, x.shape, dtype)
        gap = np.abs(found[name] - x)
        if not (gap <= _rounding(x, kind)).all():
            what = f"{path.name} does not hold {name} as {kind}: it differs by {gap.max():.3g}."
            raise EdgewiseError("E-EXPORT", what, "please report it.")
        types[kind] += 1
        largest = max(largest, float(gap.max(initial=0.0)))
    return WrittenTensors(dict(types), largest)


def _rounding(x: Array, kind: str) -> Array | float:
    """Return the largest difference that rounding to a type makes, for each number.

    Q8_0 has 8 bits a number and a float16 scale d for 32: half a step of d, and the rounding of d at 127 steps.
    """
    if kind == "Q8_0":
        blocks = np.abs(x).reshape(*x.shape[:-1], -1, Q8_BLOCK)
        d = blocks.max(-1, keepdims=True) / 127
        return np.broadcast_to(d * (0.5 + 127 * 2.0**-10) + 1e-7, blocks.shape).reshape(x.shape)
    return {"F32": 0.0, "F16": np.abs(x) * 2.0**-11 + 2.0**-25, "BF16": np.abs(x) * 2.0**-8}[kind]
