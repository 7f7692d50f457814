"""Pick the settings with which a training step fits into a device's memory.

    pick = picked_memory(900e6, recipe, folder, torch.float32)
    pick.accumulate, pick.checkpointing, pick.arithmetic

The settings leave the meaning of an update as it is: the same gradient in smaller parts, with activations computed
again, or in 16 bits. They are tried in the order of their cost, and the first that fits is picked:

1. the recipe's own;
2. micro-batches: the divisors of ``training.batch``, from larger to smaller parts;
3. ``training.checkpointing`` beside them, which costs one more forward pass;
4. bfloat16 beside them, which rounds.

Where devices may train fewer blocks (``trainable.blocks_by = "memory"``), all of these are tried with the most blocks
first, and then with fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from edgewise.core.errors import ModelError
from edgewise.core.training import FitRequest, Update
from edgewise.learn.models.memory import forecast
from edgewise.plan.recipe.recipe import Recipe
from edgewise.plan.recipe.trainable import TrainableSection

MB = 1e6


class MemoryPick(NamedTuple):
    """Settings of a device's training, and the memory that they need.

    Attributes:
        accumulate: ``training.accumulate``.
        checkpointing: ``training.checkpointing``.
        arithmetic: dtype of a step's products.
        bytes: the forecast.
        blocks: number of last blocks that the device trains. 0: all that the recipe trains.
    """

    accumulate: int
    checkpointing: bool
    arithmetic: torch.dtype
    bytes: float
    blocks: int = 0

    def differs(self, recipe: Recipe, arithmetic: torch.dtype) -> str:
        """Write the settings that are not the recipe's. Empty where all are."""
        own = (recipe.training.accumulate, recipe.training.checkpointing, arithmetic)
        parts = [
            f"training.accumulate = {self.accumulate}",
            "training.checkpointing = true",
            'model.precision = "bfloat16"',
        ]
        found = [part for part, one, other in zip(parts, self, own, strict=False) if one != other]
        if self.blocks and self.blocks != recipe.trainable.last_blocks:
            found.insert(0, f"the last {self.blocks} of {recipe.trainable.last_blocks} blocks")
        return ", ".join(found)


def picked_memory(limit: float, recipe: Recipe, folder: Path, arithmetic: torch.dtype) -> MemoryPick:
    """Pick the training settings that fit a limit of memory.

    Args:
        limit: bytes of a training device, beside Python and torch.
        folder: the model's folder. Its config.json is read, and no weights.
        arithmetic: dtype that the recipe's precision means here.
    Raises:
        ModelError: E-MEMORY where nothing fits. It names what would. Others as ``memory.forecast``.
    """
    section = recipe.trainable
    depths = reversed(section.depths) if section.blocks_by == "memory" else (0,)
    smallest: MemoryPick | None = None
    for blocks, parts in ((k, parts) for k in depths for parts in _candidates(recipe, arithmetic)):
        pick = partial(_pick, recipe, folder, blocks)
        try:
            least = pick(*parts[-1])
        except ModelError as e:  # This architecture cannot compute its activations again.
            if not parts[-1][1] or recipe.training.checkpointing or e.code != "E-MODEL":
                raise
            continue
        smallest = least if smallest is None or least.bytes < smallest.bytes else smallest
        if least.bytes <= limit:
            return next(p for p in (pick(*one) for one in parts) if p.bytes <= limit)
    assert smallest is not None
    with_all = smallest.differs(recipe, arithmetic)
    what = (
        f"a training step needs {smallest.bytes / MB:,.0f} MB{' with ' * bool(with_all)}{with_all}, and the limit is "
    )
    raise ModelError("E-MEMORY", f"{what}{limit / MB:,.0f} MB.", _remedy(limit, recipe, folder, smallest))


class MemoryPicks:
    """The settings of all devices with a limit.

    Args:
        devices: the population.
        recipe, folder, arithmetic: as in ``picked_memory``.
    Raises:
        ModelError: as ``picked_memory``, for the device with the lowest limit that nothing fits.
    """

    def __init__(self, devices: Sequence[str], recipe: Recipe, folder: Path, arithmetic: torch.dtype) -> None:
        self._recipe, self._arithmetic = recipe, arithmetic
        self._limits = {device: limit for device in devices if (limit := recipe.engine.memory_mb(device))}
        self._picks = {
            limit: picked_memory(limit * MB, recipe, folder, arithmetic) for limit in sorted(set(self._limits.values()))
        }
        self._unlimited = len(devices) - len(self._limits)

    def of(self, device: str) -> MemoryPick | None:
        """Return the settings of a device. None without a limit."""
        limit = self._limits.get(device)
        return None if limit is None else self._picks[limit]

    @property
    def arithmetics(self) -> set[torch.dtype]:
        """The dtypes of all devices."""
        found = {pick.arithmetic for pick in self._picks.values()}
        return found | {self._arithmetic} if self._unlimited or not found else found

    @property
    def largest(self) -> float:
        """The most bytes that a device with a limit needs. 0 without limits, or where a device has none."""
        return 0.0 if self._unlimited else max((pick.bytes for pick in self._picks.values()), default=0.0)

    def pass_tokens(self, device: str, default: int) -> int:
        """Return the tokens of a pass of an evaluation: no more than a micro-batch has, with a limit."""
        pick, recipe = self.of(device), self._recipe
        at_once = default if pick is None else recipe.training.batch // pick.accumulate * recipe.data.sequence_len
        return min(default, at_once)

    def notes(self) -> tuple[str, ...]:
        """Write for each limit what was picked, and why."""
        sentences = []
        for limit, pick in self._picks.items():
            n = sum(1 for one in self._limits.values() if one == limit)
            who = f"{n} device{'s' * (n != 1)} with at most {limit:,.0f} MB"
            if settings := pick.differs(self._recipe, self._arithmetic):
                why = "the first settings that fit, since the recipe's own need more"
                sentences.append(f"{who}: {settings} ({pick.bytes / MB:,.0f} MB), {why}.")
            else:
                sentences.append(f"{who}: the recipe's own settings fit ({pick.bytes / MB:,.0f} MB).")
        return tuple(sentences)


def with_choice(
    pick: MemoryPick | None,
    section: TrainableSection,
    requests: Sequence[FitRequest],
    fit: Callable[[Sequence[FitRequest]], Sequence[Update | Exception]],
) -> list[Update | Exception]:
    """Train devices with the blocks of a pick, where their requests leave them to the device.

    Args:
        fit: trains them. It returns for each an update, which then carries the choice, or an error.
    """
    if pick is None or not pick.blocks or not requests[0].choices:
        return list(fit(requests))
    choice = section.depths.index(pick.blocks)
    found = fit([one.chosen(choice) for one in requests])
    return [one if isinstance(one, Exception) else replace(one, choice=choice) for one in found]


def _candidates(recipe: Recipe, arithmetic: torch.dtype) -> Iterator[list[tuple[int, bool, torch.dtype]]]:
    """Give lists of settings in order. The last of each needs the least memory."""
    own, batch = recipe.training, recipe.training.batch
    divisors = [n for n in range(own.accumulate, batch + 1) if batch % n == 0]
    if recipe.dp.example:  # Each record is a batch of its own, whatever is asked for.
        divisors = [batch]
    for dtype in dict.fromkeys((arithmetic, torch.bfloat16)):
        for checkpointing in dict.fromkeys((own.checkpointing, True)):
            yield [(n, checkpointing, dtype) for n in divisors]


def _pick(
    recipe: Recipe, folder: Path, blocks: int, accumulate: int, checkpointing: bool, dtype: torch.dtype
) -> MemoryPick:
    needed = _needed(recipe, folder, blocks, accumulate, checkpointing, dtype)
    return MemoryPick(accumulate, checkpointing, dtype, needed, blocks)


def _needed(
    recipe: Recipe, folder: Path, blocks: int, accumulate: int, checkpointing: bool, dtype: torch.dtype
) -> float:
    training = recipe.training.model_copy(update={"accumulate": accumulate, "checkpointing": checkpointing})
    length = recipe.data.sequence_len
    return _total(
        folder, recipe.trainable.model_dump_json(), training.model_dump_json(), length, dtype, recipe.model.quantize,
        recipe.personal.own_adapter, blocks,
    )  # fmt: skip


@cache
def _total(
    folder: Path,
    section: str,
    training: str,
    length: int,
    dtype: torch.dtype,
    quantize: str,
    own: str | None,
    blocks: int,
) -> float:
    from edgewise.plan.recipe.sections import TrainingSection

    made = TrainingSection.model_validate_json(training)
    read = made.batch // made.accumulate * length
    trained = TrainableSection.model_validate_json(section)
    return forecast(folder, trained, made, length, dtype, quantize, read, own, blocks).total


def _remedy(limit: float, recipe: Recipe, folder: Path, least: MemoryPick) -> str:
    """Name changes of the recipe that would fit. They change the model that is trained, so none is made here."""
    length, found = recipe.data.sequence_len, []
    updates: list[tuple[str, dict[str, object]]] = [
        (f"data.sequence_len = {length // k}", {"data": recipe.data.model_copy(update={"sequence_len": length // k})})
        for k in (2, 4, 8)
        if length // k >= 8
    ]
    if not recipe.trainable.adapts:
        lora = TrainableSection(kind="lora", rule="ffa")
        updates.insert(0, ('trainable.kind = "lora"', {"trainable": lora}))
    elif recipe.trainable.keeps_base and not recipe.model.quantized:
        coded = recipe.model.model_copy(update={"quantize": "nf4"})
        updates.insert(0, ('model.quantize = "nf4"', {"model": coded}))
    for words, update in updates:
        needed = _needed(recipe.model_copy(update=update), folder, 0, *least[:3])
        if needed <= limit:
            found.append(f"{words} ({needed / MB:,.0f} MB)")
            break
    smaller = f"{found[0]} would fit" if found else "take a smaller model"
    return f"{smaller}; or raise the limit."
