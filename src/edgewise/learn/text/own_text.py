"""Give a device's text to a user's own training loop and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from edgewise.core.errors import TrainingError
from edgewise.core.training import DeviceId
from edgewise.learn.own_work import Loop, Metric, OwnWork
from edgewise.learn.text.marks import unmarked
from edgewise.learn.text.trainer import TextTrainer


class HeldOutPassage(NamedTuple):
    """A held-out text. ``prompt`` is only read, and may be empty. ``text`` continues it."""

    prompt: str
    text: str


def own_text_work(trainer: TextTrainer, loop: Loop | None, metrics: Mapping[str, Metric]) -> OwnWork:
    """Make the loop and metrics of a text trainer.

    A loop receives int64[n, sequence_len + 1] with a row for each block. A negative number ~id stands for a token that
    is read and not learnt. A metric receives a list of ``HeldOutPassage``.

    Raises:
        TrainingError: E-TRAIN for a loop with ``data.packing = "isolated"``. Its blocks do not say where documents
            begin.
    """
    if loop is not None and trainer.loss.isolated:
        what = (
            'data.packing = "isolated" keeps documents of a block apart, but your own training loop computes the loss.'
        )
        raise TrainingError("E-TRAIN", what, 'leave out the loop, or write packing = "none".')

    def blocks(device: DeviceId) -> torch.Tensor:
        return torch.from_numpy(unmarked(np.array(trainer.text(device).blocks.train_NS, np.int64)))

    def passages(device: DeviceId) -> list[HeldOutPassage]:
        decode = trainer.loaded.tokens.decode
        found = []
        for row in unmarked(np.array(trainer.text(device).blocks.held_NS, np.int64)):
            starts = np.flatnonzero((row[1:] < 0) & (row[:-1] >= 0)) + 1  # A prompt starts here, after an answer.
            for part in np.split(row, starts):
                text = decode(part[part >= 0])
                if text:
                    found.append(HeldOutPassage(decode(~part[part < 0]), text))
        return found

    return OwnWork(blocks, passages, loop, metrics)
