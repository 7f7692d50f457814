"""Choice of the processor that trains, and of its arithmetic.

    processor = chosen("auto")                      # torch.device("cuda", 0) where torch finds a GPU, else the CPU
    batch = moved(batch, processor)

All simulated devices of a process share one processor. Worker processes share out several GPUs, one after another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.core.errors import RecipeError

CPU = torch.device("cpu")
SMALL = 4_000_000  # Parameters below which bfloat16 gains nothing. See ``autocast_dtype``.
_CPUINFO = Path("/proc/cpuinfo")


def chosen(asked: str, worker: int = 0) -> torch.device:
    """Return the processor of ``engine.device``.

    Args:
        asked: "auto", "cpu", "cuda" or "mps". "auto" takes a GPU where torch finds one.
        worker: number of this worker process. It takes GPU ``worker`` modulo their number.
    Raises:
        RecipeError: E-HARDWARE for a GPU that torch does not find.
    """
    gpus, mps = torch.cuda.device_count() if torch.cuda.is_available() else 0, torch.backends.mps.is_available()
    if asked == "auto":
        asked = "cuda" if gpus else "mps" if mps else "cpu"
    if asked == "cuda" and gpus:
        return torch.device("cuda", worker % gpus)
    if (asked == "mps" and mps) or asked == "cpu":
        return torch.device(asked)
    why = "this torch is built without CUDA" if asked == "cuda" and torch.version.cuda is None else "torch finds none"
    what = f'engine.device = "{asked}" asks for a GPU, but {why}.'
    fix = 'write engine.device = "auto" or "cpu", or install a driver and a build of torch for this GPU.'
    raise RecipeError("E-HARDWARE", what, fix)


def move_model(model: nn.Module, processor: torch.device) -> None:
    """Move the parameters and buffers of a model to a processor. Those without storage stay as they are."""
    if processor.type != "cpu":
        model._apply(lambda x: x if x.is_meta else x.to(processor))


def moved(batch: Any, processor: torch.device) -> Any:
    """Copy the tensors of a batch to a processor, in tuples, lists and dicts too. Other values stay as they are."""
    if processor.type == "cpu":
        return batch
    if isinstance(batch, Tensor):
        return batch.to(processor)
    if isinstance(batch, dict):
        return {key: moved(value, processor) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [moved(value, processor) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch


def bfloat16_gains(processor: torch.device = CPU) -> bool:
    """Tell whether large models train faster in bfloat16 on this processor. False if unknown.

    On a CPU these are AMX, Arm's BF16, and AVX512-BF16 of AMD. AVX512-BF16 of Intel is slower than float32 (see
    ``autocast_dtype``).
    """
    if processor.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    if processor.type != "cpu":
        return False
    try:
        words = set(_CPUINFO.read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return bool(words & {"amx_bf16", "bf16"}) or {"avx512_bf16", "AuthenticAMD"} <= words


def autocast_dtype(precision: str, parameters: int, processor: torch.device = CPU) -> torch.dtype:
    """Return the arithmetic of a recipe's ``model.precision``.

    ``auto`` is bfloat16 for models of at least ``SMALL`` parameters on hardware where ``bfloat16_gains``. Small models
    compute in float32 everywhere, so that they have the same bits on more machines.

    Measured on one core as the ratio of the seconds of a training step, float32 / bfloat16 (above 1: bfloat16 is
    faster), with float32 attention, for Llamas of 4 layers (``benchmarks/precision.py``):

        parameters                          0.5 M    1.4 M    4.5 M    16 M
        AMD AVX512-BF16, 8 x 128 tokens     1.3      1.0-1.6  1.9      2.2
        Intel AVX512-BF16, 8 x 128          0.8      0.8      0.7      0.7-1.1
        Intel AVX512-BF16, 1 x 64           0.7      0.6      0.7      0.7-0.9

    GPUs and AMX were not measured. The threshold for them is that of the CPU.

    Args:
        parameters: number of parameters of the whole model.
    """
    fast = precision == "bfloat16" or (precision == "auto" and parameters >= SMALL and bfloat16_gains(processor))
    return torch.bfloat16 if fast else torch.float32
