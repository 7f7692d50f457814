"""Records of devices: how many there are, and example-level privacy of them where devices train."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from edgewise.core.errors import RecipeError, StoreError
from edgewise.core.training import DeviceId, StepNoise
from edgewise.engine.trainer import Registered
from edgewise.plan.noise import Spend
from edgewise.plan.plan import Plan
from edgewise.privacy import rules

LOG = logging.getLogger("edgewise")
SHOWN = 5  # names of devices in a line of the log


def records(trainer: Registered, device: DeviceId) -> int | None:
    """Records that a device trains on; None where they cannot be read, and by a trainer that does not count them.

    Raises StoreError where they cannot be stored.
    """
    if trainer.counts is None:
        return None
    try:
        return int(trainer.counts.records(device))
    except StoreError:
        raise
    except Exception:  # boundary: a shard is foreign code; training says what is wrong
        LOG.warning("device %.60r: its records cannot be counted", device, exc_info=True)
        return None


def from_either_end(devices: Sequence[DeviceId]) -> Iterable[DeviceId]:
    """All devices, in order or in reverse: workers that share a cache begin at either end, and meet in the middle."""
    return devices if os.getpid() % 2 else reversed(devices)


def noise_steps(plan: Plan, trainer: Registered) -> None:
    """Let a trainer noise every step as ``plan`` accounts it. Nothing is done where steps carry no noise.

    Epsilon and delta are about one record, so delta is compared with the number of all records that the trainer holds:
    in a simulation those of all devices, on a device its own. A device whose records cannot be read is missing from it,
    and the log says how many are and names some. A plan knows how many devices there are, and no more.
    Call it before the first step: by whatever trains, checks or audits a plan.
    Raises:
        RecipeError: E-COMBO for a trainer that cannot do it; E-VALUE as ``privacy.rules.delta``.
        TrainingError, StoreError: as ``TorchTrainer.noise_steps`` and ``records``.
    """
    if plan.spend is None or not plan.promise.noises_steps:
        return
    if trainer.noises is None or trainer.counts is None:
        what = 'dp.unit = "example" needs a trainer that noises its steps and counts its records.'
        raise RecipeError("E-COMBO", what, "build it on learn.torch_task.TorchTrainer.")
    held = {device: records(trainer, device) for device in from_either_end(trainer.trainer.devices())}
    if missing := sorted(device for device, count in held.items() if count is None):
        shown = ", ".join(f"{device:.60}" for device in missing[:SHOWN])
        said = "dp.delta is compared with the records of %d of %d devices; those of %d are missing: %s"
        LOG.warning(said, len(held) - len(missing), len(held), len(missing), shown)
    rules.delta(plan.spend.delta, sum(count or 0 for count in held.values()), "example")
    trainer.noises.noise_steps(steps_noise(plan.spend))


def steps_noise(spend: Spend) -> StepNoise:
    """The noise of training steps as a spend accounts it, for a trainer."""
    return StepNoise(spend.clipping.l2, spend.z, spend.events[0].rate)


@contextmanager
def without_noise(trainer: Registered) -> Iterator[None]:
    """Plain steps inside. A device that trains alone sends nothing, so there is nobody to hide its records from."""
    if trainer.noises is None:
        yield
        return
    with trainer.noises.without_noise():
        yield
