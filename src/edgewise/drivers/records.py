"""Records of devices: how many there are, and record-level privacy of them where devices train."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from edgewise.core.errors import RecipeError, StoreError
from edgewise.core.training import DeviceId
from edgewise.engine.ports import Trainer
from edgewise.plan.plan import Plan
from edgewise.plan.private import Spend
from edgewise.privacy import rules

if TYPE_CHECKING:
    from edgewise.learn.dp_sgd import RecordDp

LOG = logging.getLogger("edgewise")


def records(trainer: Trainer, device: DeviceId) -> int:
    """Records that a device trains on, by a trainer that counts them; 0 where they cannot be read.

    Raises StoreError where they cannot be stored.
    """
    try:
        return int(trainer.records(device))  # type: ignore[attr-defined]
    except StoreError:
        raise
    except Exception:  # boundary: a shard is foreign code; training says what is wrong
        LOG.warning("device %.60r: its records cannot be counted", device, exc_info=True)
        return 0


def from_either_end(devices: Sequence[DeviceId]) -> Iterable[DeviceId]:
    """All devices, in order or in reverse: workers that share a cache begin at either end, and meet in the middle."""
    return devices if os.getpid() % 2 else reversed(devices)


def noise_steps(plan: Plan, trainer: Trainer) -> None:
    """Let a trainer noise every step as ``plan`` accounts it. Nothing is done where steps carry no noise.

    Epsilon and delta are about one record, so delta is compared with the number of all records that the trainer holds:
    in a simulation those of all devices, on a device its own. A plan knows how many devices there are, and no more.
    Call it before the first step: by whatever trains, checks or audits a plan.
    Raises:
        RecipeError: E-COMBO for a trainer that cannot do it; E-VALUE as ``privacy.rules.delta``.
        TrainingError, StoreError: as ``TorchTrainer.noise_steps`` and ``records``.
    """
    if plan.spend is None or not plan.promise.noises_steps:
        return
    if not (hasattr(trainer, "noise_steps") and hasattr(trainer, "records")):
        what = 'dp.unit = "example" needs a trainer that noises its steps and counts its records.'
        raise RecipeError("E-COMBO", what, "build it on learn.torch_trainer.TorchTrainer.")
    held = sum(records(trainer, device) for device in from_either_end(trainer.devices()))
    rules.delta(plan.spend.delta, held, "example")
    trainer.noise_steps(steps_noise(plan.spend))


def steps_noise(spend: Spend) -> RecordDp:
    """The noise of training steps as a spend accounts it, for a trainer."""
    from edgewise.learn.dp_sgd import RecordDp  # imports torch

    return RecordDp(spend.clipping.l2, spend.z, spend.events[0].rate)


@contextmanager
def without_noise(trainer: Trainer) -> Iterator[None]:
    """Plain steps inside. A device that trains alone sends nothing, so there is nobody to hide its records from."""
    dp = getattr(trainer, "record_dp", None)
    if dp is None:
        yield
        return
    trainer.record_dp = None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.record_dp = dp  # type: ignore[attr-defined]
