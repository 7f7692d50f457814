"""A device's text as one's own training loop and metrics take it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch

from edgewise.core.training import DeviceId
from edgewise.learn.own_work import Loop, Metric, OwnWork
from edgewise.learn.text.trainer import TextTrainer


class Passage(NamedTuple):
    """Held-out text: ``prompt`` is read (empty without one), ``text`` goes on from it."""

    prompt: str
    text: str


def own_text(trainer: TextTrainer, loop: Loop | None, metrics: Mapping[str, Metric]) -> OwnWork:
    """Loop and metrics for a text trainer. A loop is given int64[n, sequence_len + 1], a row for each block, in which a
    negative number ~id is a token that is read and not learnt; a metric is given a list of ``Passage``."""

    def blocks(device: DeviceId) -> torch.Tensor:
        return torch.from_numpy(np.array(trainer.text(device).blocks.train_NS, np.int64))

    def passages(device: DeviceId) -> list[Passage]:
        decode = trainer.loaded.tokens.decode
        found = []
        for row in np.array(trainer.text(device).blocks.held_NS, np.int64):
            starts = np.flatnonzero((row[1:] < 0) & (row[:-1] >= 0)) + 1  # a prompt behind an answer
            for part in np.split(row, starts):
                said = decode(part[part >= 0])
                if said:
                    found.append(Passage(decode(~part[part < 0]), said))
        return found

    return OwnWork(blocks, passages, loop, metrics)
