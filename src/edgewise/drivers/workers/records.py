"""Counts of devices' records, and example-level privacy of them where devices train."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from edgewise.core.errors import RecipeError, StoreError
from edgewise.core.frame import LocalRule
from edgewise.core.training import DeviceId, RecordSums, StepNoise
from edgewise.engine.trainer import Registered
from edgewise.plan.noise import PlannedSpend
from edgewise.plan.plan import Plan
from edgewise.privacy import rules
from edgewise.privacy.record_noise import record_step

LOG = logging.getLogger("edgewise")
SHOWN = 5  # number of device names in a line of the log


def records(trainer: Registered, device: DeviceId) -> int | None:
    """Count the records that a device trains on. None where they cannot be read, or where the trainer does not count.

    Raises:
        StoreError: where they cannot be stored.
    """
    if trainer.counts is None:
        return None
    try:
        return int(trainer.counts.records(device))
    except StoreError:
        raise
    except Exception:  # boundary: a shard is foreign code; training reports the error
        LOG.warning("device %.60r: its records cannot be counted", device, exc_info=True)
        return None


def in_steps(trainer: Registered, plan: Plan, device: DeviceId, rule: LocalRule) -> LocalRule:
    """Turn a rule's passes over the device's records into steps, as ``Trainer.fit`` takes them."""
    if not rule.epochs:
        return rule
    return rule.counted(records(trainer, device) or 0, plan.batch)  # training reports records that cannot be read


def from_either_end(devices: Sequence[DeviceId]) -> Iterable[DeviceId]:
    """Return all devices, in order or in reverse.

    Workers that share a cache begin at opposite ends and meet in the middle.
    """
    return devices if os.getpid() % 2 else reversed(devices)


def protect_records(plan: Plan, trainer: Registered) -> None:
    """Let a trainer noise every step, or sum clipped records, as ``plan`` accounts it.

    Does nothing where the plan's unit of privacy is the device.

    Epsilon and delta are about one record, so delta is compared with the number of all records that the trainer holds.
    In a simulation these are the records of all devices, on a device its own. A plan knows only the number of devices.
    A device whose records cannot be read is left out of the count; the log gives the number of such devices and names
    some.
    Call it before the first step, in everything that trains, checks or audits a plan.

    Raises:
        RecipeError: E-COMBO for a trainer that cannot do it; E-VALUE as ``privacy.rules.refuse_delta``.
        TrainingError, StoreError: as ``TorchTrainer.noise_steps`` and ``records``.
    """
    summing = plan.promise.sums_records
    if plan.spend is None or not (plan.promise.noises_steps or summing):
        return
    able = trainer.sums is not None if summing else trainer.noises is not None
    if not able or trainer.counts is None:
        does = "sums its clipped records" if summing else "noises its steps"
        what = f'dp.unit = "example" needs a trainer that {does} and counts its records.'
        raise RecipeError("E-COMBO", what, "build it on learn.torch_task.TorchTrainer.")
    counts = {device: records(trainer, device) for device in from_either_end(trainer.trainer.devices())}
    if missing := sorted(device for device, count in counts.items() if count is None):
        shown = ", ".join(f"{device:.60}" for device in missing[:SHOWN])
        template = "dp.delta is compared with the records of %d of %d devices; those of %d are missing: %s"
        LOG.warning(template, len(counts) - len(missing), len(counts), len(missing), shown)
    rules.refuse_delta(plan.spend.delta, sum(count or 0 for count in counts.values()), "example")
    if trainer.sums is not None and summing:
        trainer.sums.sum_records(record_sums(plan))
    elif trainer.noises is not None:
        trainer.noises.noise_steps(steps_noise(plan.spend))


def steps_noise(spend: PlannedSpend) -> StepNoise:
    """Make the noise of training steps, for a trainer, from the spend that accounts it."""
    return StepNoise(spend.clipping.l2, spend.z, spend.events[0].rate)


def record_sums(plan: Plan) -> RecordSums:
    """Make the clip and the grid of sums of records, for a trainer, from the plan that accounts them."""
    assert plan.spend is not None, "only a plan with an epsilon sums records"
    clipping = plan.spend.clipping
    return RecordSums(clipping.l2, record_step(clipping.l2, plan.spec.dim), clipping.records)


@contextmanager
def without_noise(trainer: Registered) -> Iterator[None]:
    """Train with plain steps inside. A device that trains alone sends nothing, so its records need no noise."""
    protecting = trainer.noises or trainer.sums
    if protecting is None:
        yield
        return
    with protecting.without_noise():
        yield
