"""Which parameters are trained and travel: all of them, named layers, or low-rank adapters (LoRA, Hu et al. 2021)."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
from torch import nn

from edgewise.core.errors import ModelError
from edgewise.core.keys import Key, derive, generator
from edgewise.learn.flat import Flat
from edgewise.learn.seeded import seeded
from edgewise.plan.recipe import TrainableSection

FACTOR_A = "lora_A"
PEFT_PREFIX = "base_model.model."  # what peft puts before each name in memory and in a saved adapter


def trainable(model: nn.Module, section: TrainableSection, key: Key, frozen: torch.dtype) -> tuple[nn.Module, Flat]:
    """Choose, freeze, lay out.

    Args:
        key: decides the start of LoRA A (Kaiming uniform, as peft does); B starts at zero, so the adapted model equals
            the base. Equal keys, equal starts.
        frozen: dtype of everything that is not trained; the trained parameters are float32.
    Returns:
        The model to run (wrapped for LoRA) and its flat parameters. Segment names are the model's own parameter names;
        an adapter's are the ones of a saved PEFT file without ``base_model.model.``:
        ``model.layers.0.self_attn.q_proj.lora_A.weight``.
    Raises:
        ModelError: E-TARGETS where a target or pattern matches nothing.
    """
    if section.adapts:
        model = _with_lora(model, section, key)
        if section.kind == "ffa_lora":
            _fix_a(model, key)
        named = [((n + ".").replace(PEFT_PREFIX, "").replace(".default.", ".")[:-1], p) for n, p in _trained(model)]
    else:
        if section.kind == "layers":
            _freeze_others(model, section.layers)
        named = _trained(model)
    kept = {p for n, p in model.named_parameters() if FACTOR_A in n}  # half of an adapter, as exact as the other half
    for p in model.parameters():
        if not p.requires_grad and p.is_floating_point() and p not in kept:
            p.data = p.data.to(frozen)
    return model, Flat(named)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in model.named_parameters() if p.requires_grad]  # tied weights come once


def _freeze_others(model: nn.Module, patterns: list[str]) -> None:
    names = [n for n, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatchcase(n, pattern) for n in names):
            raise _no_match("trainable.layers", pattern, names)
    for name, p in model.named_parameters():
        p.requires_grad_(any(fnmatchcase(name, pattern) for pattern in patterns))


def _with_lora(model: nn.Module, section: TrainableSection, key: Key) -> nn.Module:
    from peft import LoraConfig, get_peft_model  # seconds to import, and only LoRA needs it

    everything = "all-linear" in section.targets
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding) or _is_conv1d(m)]
    for target in [] if everything else section.targets:
        if not any(n == target or n.endswith(f".{target}") for n in names):
            raise _no_match("trainable.targets", target, {n.rsplit(".", 1)[-1] for n in names})
    config = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=0.0,
        target_modules="all-linear" if everything else list(section.targets),
        fan_in_fan_out=any(_is_conv1d(m) for m in model.modules()),
        task_type="CAUSAL_LM",
    )
    with seeded(derive(key, "lora")), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft calls a deprecated name of transformers
        return get_peft_model(model, config)


def _fix_a(model: nn.Module, key: Key) -> None:
    """FFA-LoRA: A with orthonormal rows, the same on all devices, is never trained; only B moves and travels.

    Then mean(B_i A) = mean(B_i) A exactly, noise on B enters the product once instead of squared, and half as much
    travels. Rows are orthonormal (columns where the rank is larger than the layer is wide), so B's noise reaches the
    product undistorted.
    Source: Sun et al. 2024, arXiv:2403.12313 (FFA-LoRA).
    """
    with torch.no_grad():
        for name, p in model.named_parameters():
            if FACTOR_A not in name:
                continue
            rng = generator(derive(key, "ffa", name.replace(PEFT_PREFIX, "")))
            draw = torch.from_numpy(rng.standard_normal((max(p.shape), min(p.shape))))
            q, r = torch.linalg.qr(draw)
            q = q * torch.sign(torch.diagonal(r))  # one answer, whatever signs the library chooses
            p.copy_(q.T if p.shape[0] <= p.shape[1] else q)
            p.requires_grad_(False)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"  # GPT-2's transposed linear layer


def _no_match(where: str, asked: str, known: Iterable[str]) -> ModelError:
    known = sorted(set(known))
    near = difflib.get_close_matches(asked, known, n=1, cutoff=0.4)
    hint = f"did you mean `{near[0]}`?" if near else f"the model has: {', '.join(known[:12])}."
    return ModelError("E-TARGETS", f"{where}: `{asked}` matches nothing in the model.", hint)
