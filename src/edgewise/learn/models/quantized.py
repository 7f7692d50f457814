"""Store the frozen linear layers of a base model in 4 bits (NF4) or 8 bits a weight, for adapters on top (QLoRA).

    model = load_quantized(folder, "nf4", torch.bfloat16, cache_dir)

The output head, embeddings and norms stay as they are. Weights are quantized as the folder stores them, so the codes
do not depend on the arithmetic of a run. A quantized copy is kept in the cache folder, because quantizing takes much
longer than reading: 40 s for 600 million weights on one thread.

NF4: a block of 64 weights is a scale and 64 codes of 4 bits. The scales are codes of 8 bits themselves. That is 4.13
bits a weight.
Int8: a row is a float32 scale and codes of 8 bits. The product is that of the decoded weights in the run's arithmetic.
The product of bitsandbytes is not used. It casts activations to float16, which has no values above 65,504, and picks
columns of large activations over a whole batch, so logits of a token would depend on later tokens.

Source: Dettmers et al. 2023, arXiv:2305.14314 (QLoRA, NF4); Dettmers et al. 2022, arXiv:2208.07339 (row-wise int8).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.core.errors import EdgewiseError, ModelError, StoreError
from edgewise.core.foreign import foreign
from edgewise.learn.models.weights import read_weights

LOG = logging.getLogger("edgewise")
Kind = Literal["nf4", "int8"]
BLOCK, TILE = 64, 32  # Weights of one scale, and outputs that the CPU kernel of bitsandbytes computes together.
SUPERBLOCK = 256  # Scales of NF4 that share a scale of their own.
FORMAT = 1  # It is part of the cache key. Raise it when the codes of the same weights change.
DESCRIBING = ("__nf4", "weight_format")  # Tensors that describe the others. They hold no scale.
DIGESTS = "edgewise_digests.json"  # SHA-256 of each file of a cached copy.


def load_quantized(folder: Path, kind: Kind, dtype: torch.dtype, cache_dir: Path | None = None) -> nn.Module:
    """Load a model with quantized linear layers.

    Args:
        folder: a model of ``transformers``, in safetensors. It may be quantized already, in the same way.
        dtype: dtype of the arithmetic, and of all weights that are not quantized.
        cache_dir: folder for a quantized copy. Several processes may share it. A copy in the user's folder
            (``user_cache``) is read too. None reads and keeps no copy.
    Returns:
        The model in evaluation mode. No weight of a quantized layer takes a gradient.
    Raises:
        EdgewiseError: E-DEPENDENCY without bitsandbytes.
        ModelError: E-QUANTIZE where a layer cannot be quantized, E-MODEL where the folder cannot be loaded.
        StoreError: E-DISK where the cache folder cannot be written.
    """
    _need_bitsandbytes()
    model = _read(folder) if quantized_kind(folder) == kind else _quantized(folder, kind, cache_dir)
    for p in model.parameters():
        if p.is_floating_point():
            p.data = p.data.to(dtype)
    for layer in quantized_layers(model).values():
        if kind == "nf4":
            _compute_in(layer, dtype)
        else:
            _weight_only(layer)
    return model


def nf4_layer(layer: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    """Quantize one linear layer in NF4, as ``load_quantized`` does it: the same codes, and arithmetic in ``dtype``.

    Raises:
        EdgewiseError: E-DEPENDENCY without bitsandbytes.
        ModelError: E-QUANTIZE for a size that the kernel does not accept.
    """
    _need_bitsandbytes()
    from bitsandbytes.nn import Linear4bit, Params4bit

    outputs, inputs = layer.weight.shape
    _check_size("a linear layer", outputs, inputs)
    made: Any = Linear4bit(inputs, outputs, layer.bias is not None, quant_type="nf4", device="meta")
    weight = layer.weight.detach()
    made.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=made)
    made.bias = layer.bias
    found: nn.Linear = made.to("cpu")
    _compute_in(found, dtype)
    return found


def _compute_in(layer: Any, dtype: torch.dtype) -> None:
    """Set the arithmetic of a layer in NF4."""
    layer.compute_dtype, layer.compute_type_is_set = dtype, True
    # With this flag the first forward pass in evaluation mode would repack the weights for a kernel without a
    # derivative. Training after an evaluation would then leave out gradients, without an error.
    layer.support_avx512bf16_for_cpu = False


def write_quantized(folder: Path, dest: Path, kind: Kind) -> None:
    """Write a quantized copy of a model into a folder that ``from_pretrained`` reads. Raises as ``load_quantized``."""
    _need_bitsandbytes()
    model: Any = _quantized(folder, kind, None)
    model.save_pretrained(dest)


def quantized_layers(model: nn.Module) -> dict[str, Any]:
    """Return the quantized layers of a model by name. Empty for a model that is not quantized."""
    return {n: m for n, m in model.named_modules() if type(m).__name__ in ("Linear4bit", "Linear8bitLt", "_Int8Linear")
            and isinstance(m, nn.Linear)}  # fmt: skip


def decoded_weight(layer: Any) -> Tensor:
    """Decode the weight of a quantized layer: float32[out, in]."""
    if getattr(layer.weight, "quant_state", None) is not None:
        from bitsandbytes import functional

        out: Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return out.float()
    return layer.weight.data.float() * (_scales(layer).float() / 127)[:, None]


def load_decoded_model(folder: Path, kind: Kind, cache_dir: Path | None = None) -> nn.Module:
    """Load the model that a quantized base is: decoded weights in float32, in layers of ordinary types.

    Args:
        cache_dir: as in ``load_quantized``.
    Raises:
        EdgewiseError, ModelError, StoreError: as ``load_quantized``.
    """
    return decode_quantized(folder, load_quantized(folder, kind, torch.float32, cache_dir))


def decode_quantized(folder: Path, coded: nn.Module) -> nn.Module:
    """Decode a quantized model, which was loaded from ``folder`` in float32, as ``load_decoded_model``."""
    already = quantized_kind(folder) != "none"
    plain = _empty(folder) if already else read_weights(folder, dtype=torch.float32)
    layers_by_name, rest = quantized_layers(coded), dict(coded.named_parameters())
    with torch.no_grad():
        for name, p in plain.named_parameters():
            owner, _, key = name.rpartition(".")
            if key != "weight" or owner not in layers_by_name:
                p.copy_(rest[name])
                continue
            weight_OI = decoded_weight(layers_by_name[owner])
            p.copy_(weight_OI.T if type(plain.get_submodule(owner)).__name__ == "Conv1D" else weight_OI)
    return plain


def count(p: Tensor) -> int:
    """Count the weights of a parameter. A byte of NF4 holds two."""
    state = getattr(p, "quant_state", None)
    return p.numel() if state is None else int(torch.Size(state.shape).numel())


def quantized_scale_bytes(model: nn.Module) -> int:
    """Return the bytes of the scales of all quantized layers, which are no parameters."""
    parts = (t for name, t in quantized_scales(model) if not name.endswith(DESCRIBING))
    return sum(t.numel() * t.element_size() for t in parts)


def quantized_scales(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, by name, that decode the codes of quantized layers."""
    for name, layer in quantized_layers(model).items():
        for key, tensor in layer.state_dict().items():
            if key not in ("weight", "bias"):
                yield f"{name}.{key}", tensor


def quantized_layer_bytes(kind: Kind, outputs: int, inputs: int) -> int:
    """Return the bytes of a quantized linear layer without its bias. No weights are needed, so forecasts can use it."""
    if kind == "int8":
        return outputs * inputs + 4 * outputs
    blocks = -(-outputs * inputs // BLOCK)
    return -(-outputs * inputs // 2) + blocks + 4 * -(-blocks // SUPERBLOCK) + 4 * (16 + 256)


def quantized_kind(folder: Path) -> str:
    """Return the way in which a folder is quantized: ``none``, ``nf4``, ``int8``, or the name of another method."""
    with foreign(ModelError, "E-MODEL", f"{folder / 'config.json'} cannot be read", "save the model again."):
        found = json.loads((folder / "config.json").read_bytes()).get("quantization_config")
        if not found:
            return "none"
        if found.get("load_in_4bit"):
            return str(found.get("bnb_4bit_quant_type"))
        return "int8" if found.get("load_in_8bit") else str(found.get("quant_method"))


def check_quantized_kind(folder: Path, kind: str) -> None:
    """Refuse a folder that is quantized in another way than the recipe says. Raises ModelError(E-QUANTIZE)."""
    stored = quantized_kind(folder)
    other = kind != "none" or stored in ("nf4", "fp4", "int8")  # transformers decodes the rest, such as MXFP4.
    if stored in ("none", kind) or not other:
        return
    what = f'{folder} is quantized already ({stored}), and model.quantize = "{kind}".'
    usable = f'write model.quantize = "{stored}", with trainable.kind = "lora".'
    fix = "take the model with weights of 16 or 32 bits, and let model.quantize round them."
    raise ModelError("E-QUANTIZE", what, usable if stored in ("nf4", "int8") else fix)


def import_bitsandbytes() -> None:
    """Import bitsandbytes before peft or transformers do. Raises ImportError where it is not installed.

    On a CPU with AVX512-BF16 it would fetch compiled code from the hub while it is imported, where the package
    ``kernels`` is installed. That package is hidden meanwhile, so no code is fetched or run.
    """
    if "bitsandbytes" in sys.modules:
        return
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    installed = sys.modules.pop("kernels", None)
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401  (transformers and peft use it)
    finally:
        del sys.modules["kernels"]
        if installed is not None:
            sys.modules["kernels"] = installed


def _need_bitsandbytes() -> None:
    try:
        import_bitsandbytes()
    except ImportError:
        what = "model.quantize needs bitsandbytes."
        raise EdgewiseError("E-DEPENDENCY", what, 'pip install "edgewise[quant]".') from None


def _quantized(folder: Path, kind: Kind, cache_dir: Path | None) -> nn.Module:
    """Read the cached copy of a quantized model, or quantize the model and keep a copy."""
    skipped = _check_layers(folder, kind)
    if cache_dir is None:
        return _rounded(folder, kind, skipped)
    key = _key(folder, kind)
    for place in (cache_dir, user_cache()):
        if _whole(place / "quantized" / key):
            return _read(place / "quantized" / key)
    model: Any = _rounded(folder, kind, skipped)
    try:
        _keep(model, cache_dir / "quantized" / key)
    except StoreError as e:
        if cache_dir != user_cache():
            raise
        LOG.warning("no quantized copy is kept, so the next command quantizes again: %s", e)
    return model


def user_cache() -> Path:
    """Return the folder for copies that are of no run: EDGEWISE_CACHE, or edgewise in XDG_CACHE_HOME or ~/.cache."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(os.environ.get("EDGEWISE_CACHE") or Path(home) / "edgewise")


def _keep(model: Any, copy: Path) -> None:
    """Save a quantized model with the digests of its files. Raises StoreError(E-DISK)."""
    with foreign(StoreError, "E-DISK", f"{copy.parent} cannot be written", "free space, or choose another folder."):
        copy.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{copy.name}.", dir=copy.parent))
        try:
            model.save_pretrained(made)
            digests = {path.name: _sha256(path) for path in sorted(made.iterdir())}
            (made / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
            if not _whole(copy):  # Another process may have been faster.
                shutil.rmtree(copy, ignore_errors=True)
                os.replace(made, copy)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _check_layers(folder: Path, kind: Kind) -> list[str]:
    """Check the sizes of the layers before any is quantized, and return the names of those that are not.

    Raises:
        ModelError: E-QUANTIZE for a size that the kernel does not accept, or a model without a linear layer.
    """
    with torch.device("meta"):
        model = _empty(folder)
    head = model.get_output_embeddings()
    linear = [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear or type(m).__name__ == "Conv1D"]
    sized = {
        n: (m.weight.shape if isinstance(m, nn.Linear) else m.weight.shape[::-1]) for n, m in linear if m is not head
    }
    if not sized:
        what = f"{folder} has no linear layer beside its output head, so nothing of it can be quantized."
        raise ModelError("E-QUANTIZE", what, "leave out model.quantize.")
    for name, (outputs, inputs) in sized.items() if kind == "nf4" else ():
        _check_size(f"{folder}: {name}", outputs, inputs)
    return [n for n, m in linear if m is head]


def _check_size(name: str, outputs: int, inputs: int) -> None:
    """Check that the kernel of NF4 accepts a layer. Raises ModelError(E-QUANTIZE)."""
    if inputs % BLOCK or outputs % TILE:
        fits = f"{-(-outputs // TILE) * TILE} x {-(-inputs // BLOCK) * BLOCK}"
        what = (
            f"{name} has {outputs} outputs and {inputs} inputs. NF4 needs outputs in multiples of {TILE} "
            f"and inputs in multiples of {BLOCK}. The next size that works is {fits}."
        )
        raise ModelError("E-QUANTIZE", what, 'write model.quantize = "int8", or take another model.')


def _empty(folder: Path) -> Any:
    """Make the model of a folder's configuration, with random weights and without quantization."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with foreign(ModelError, "E-MODEL", f"{folder} cannot be loaded", "check that it is complete."):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False, dtype=torch.float32)


def _rounded(folder: Path, kind: Kind, skipped: list[str]) -> nn.Module:
    from transformers import BitsAndBytesConfig

    if kind == "nf4":
        how = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=skipped,
        )  # fmt: skip
    else:
        how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return _read(folder, quantization_config=how)


def _read(folder: Path, **more: Any) -> nn.Module:
    return read_weights(folder, dtype="auto", device_map={"": "cpu"}, **more)


def _key(folder: Path, kind: Kind) -> str:
    """Return the name of a cached copy: a digest of the way, the library and the model's files."""
    import bitsandbytes

    h = hashlib.sha256(json.dumps([FORMAT, kind, bitsandbytes.__version__]).encode())
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors*")]):
        h.update(f"{path.name} {_sha256(path)}\n".encode())
    return h.hexdigest()[:40]


def _whole(copy: Path) -> bool:
    """Tell whether a cached copy has all of its files, with the contents that were written."""
    try:
        digests = json.loads((copy / DIGESTS).read_bytes())
        return bool(digests) and all(_sha256(copy / name) == digest for name, digest in digests.items())
    except (OSError, ValueError, AttributeError):
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _scales(layer: Any) -> Tensor:
    found: Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return found


class _WeightOnly(torch.autograd.Function):
    """The product with decoded int8 weights. The backward pass decodes them again, so no decoded copy stays alive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes_OI: Tensor, scales_O: Tensor) -> Tensor:
        ctx.save_for_backward(codes_OI, scales_O)
        return F.linear(x, _decoded_as(x.dtype, codes_OI, scales_O))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        codes_OI, scales_O = ctx.saved_tensors
        return grad @ _decoded_as(grad.dtype, codes_OI, scales_O), None, None


def _decoded_as(dtype: torch.dtype, codes_OI: Tensor, scales_O: Tensor) -> Tensor:
    return codes_OI.to(dtype).mul_((scales_O / 127).to(dtype)[:, None])


def _weight_only(layer: Any) -> None:
    """Let a layer of bitsandbytes compute with decoded weights (module docstring)."""
    from bitsandbytes.nn import Linear8bitLt

    class _Int8Linear(Linear8bitLt):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = _WeightOnly.apply(x, self.weight.data, _scales(self).to(x.device))
            return out if self.bias is None else out + self.bias

    layer.__class__ = _Int8Linear
