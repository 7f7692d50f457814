"""From a recipe's ``model.base`` to a causal language model and its tokenizer. Safetensors only, no remote code.

Shape suffixes: B = batch, S = block length + 1, T = block length, V = vocabulary.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgewise.core.errors import ModelError
from edgewise.learn import tokens

FP32_ATTENTION = "edgewise_fp32_sdpa"


class Loaded(NamedTuple):
    """A model in the asked dtype, its tokenizer, a name for reports, and the folder that it came from."""

    model: nn.Module
    tokens: tokens.Tokens
    name: str
    folder: Path


def load(base: str, recipe_dir: Path, dtype: torch.dtype = torch.float32) -> Loaded:
    """``"bundled"``, ``"hub:owner/name"``, or a folder (relative to the recipe's).

    Raises:
        ModelError: E-MODEL (missing, damaged, pickled, incomplete, needs remote code), E-MODEL-REMOTE.
    """
    if base == "bundled":
        folder, name = Path(str(resources.files("edgewise"))) / "assets" / "student", "bundled student"
        if not folder.is_dir():
            raise ModelError("E-MODEL", f"the bundled model is missing from {folder}.", "reinstall edgewise.")
    elif base.startswith("hub:"):
        folder, name = _from_hub(base[4:]), base[4:]
    else:
        folder = (recipe_dir / Path(base).expanduser()).resolve()
        name = folder.name
    _check(folder)
    return Loaded(_model(folder, dtype), tokens.load(folder), name, folder)


def _from_hub(repo: str) -> Path:
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    wanted = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=offline, etag_timeout=10))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as e:
        why = "HF_HUB_OFFLINE is set and the model is not in the cache" if offline else tokens.first_line(e)
        fix = "download it where there is a network and give the folder as model.base, or use the bundled model."
        raise ModelError("E-MODEL-REMOTE", f"hub:{repo}: {why}.", fix) from None


def _check(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError("E-MODEL", f"no model folder at {folder}.", 'check model.base; "bundled" always works.')
    if not (folder / "config.json").is_file():
        raise ModelError("E-MODEL", f"{folder} has no config.json.", "point model.base at a saved transformers model.")
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern))
        what = f"only has pickled weights ({pickled[0]}), which can run code" if pickled else "has no *.safetensors"
        raise ModelError("E-MODEL", f"{folder} {what}.", "save it with save_pretrained(...) as safetensors.")


def _model(folder: Path, dtype: torch.dtype) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError, SafetensorError) as e:
        raise ModelError(
            "E-MODEL", f"{folder} cannot be loaded: {tokens.first_line(e)}.", "check that it is complete."
        ) from None
    for kind in ("missing_keys", "mismatched_keys"):  # transformers would fill these with random numbers
        if info.get(kind):
            odd = ", ".join(map(str, sorted(info[kind], key=str)[:3]))
            raise ModelError(
                "E-MODEL", f"{folder}: {len(info[kind])} {kind.replace('_', ' ')} ({odd}).", "save it again."
            )
    return model


def bfloat16_in_hardware() -> bool:
    """Whether this CPU multiplies bfloat16 matrices natively (AVX512-BF16, AMX, Arm BF16); False where unknown."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def autocast_dtype(precision: str) -> torch.dtype:
    """The arithmetic of a recipe's ``model.precision``: ``auto`` is bfloat16 where the CPU has it in hardware.

    Measured on one Zen 4 core, training steps of 8 x 128 tokens, tokens per second, float32 / bfloat16 autocast /
    bfloat16 autocast with float32 attention (what we do): hidden 64: 11.7k / 9.6k / 15.5k; 128 (the bundled model):
    5.9k / 7.4k / 9.2k; 256: 1.5k / 2.6k / 2.8k; 512: 0.48k / 0.99k / 1.07k. So ``auto`` needs no smallest size.
    """
    fast = precision == "bfloat16" or (precision == "auto" and bfloat16_in_hardware())
    return torch.bfloat16 if fast else torch.float32


def float32_attention(model: nn.Module) -> None:
    """Let a model under autocast compute attention itself in float32.

    torch's fused CPU attention is slow backwards in bfloat16 (14.8 ms against 3 ms in float32 for 8 x 4 heads of 128
    tokens, a third of the whole step); the projections around it stay in bfloat16.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def attention(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **more: Any) -> Any:
        if mask is not None and mask.is_floating_point():
            mask = mask.float()
        with torch.autocast("cpu", enabled=False):
            out, weights = sdpa_attention_forward(module, q.float(), k.float(), v.float(), mask, **more)
        return out.to(q.dtype), weights

    if getattr(model.config, "_attn_implementation", "") == "sdpa":
        AttentionInterface.register(FP32_ATTENTION, attention)
        AttentionMaskInterface.register(FP32_ATTENTION, sdpa_mask)
        model.set_attn_implementation(FP32_ATTENTION)


class TextLoss:
    """Next-token loss of a causal LM on blocks in which ``~id`` marks a token that is read but never predicted."""

    def __init__(self, autocast: torch.dtype) -> None:
        self.autocast = autocast

    def __call__(self, model: nn.Module, batch: tuple[Tensor, int]) -> tuple[Tensor, float]:
        """(mean nll in nats over the batch's n predictions, n); ``batch = (s_BS, n)``, int64 and n >= 1."""
        s_BS, n = batch
        y_BT = s_BS[:, 1:]
        x_BT = torch.where(s_BS < 0, ~s_BS, s_BS)[:, :-1]
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast is torch.bfloat16):
            logits_BTV = model(input_ids=x_BT, use_cache=False).logits
        logp_BTV = F.log_softmax(logits_BTV.flatten(0, 1), -1, dtype=torch.float32)
        return F.nll_loss(logp_BTV, y_BT.clamp(min=-1).flatten(), ignore_index=-1), n
