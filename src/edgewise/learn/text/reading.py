"""Count the text that was read and left out, once for ``check``, the run and its report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from unicodedata import normalize

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.training import DeviceId
from edgewise.learn.text.blocks import Blocks
from edgewise.learn.text.corpus import Corpus
from edgewise.learn.text.counts import Counts
from edgewise.plan.recipe.recipe import DataSection

MOST_DEVICES = 1000  # Up to so many devices are all tokenized to be counted.
SOME_DEVICES = 200  # Of more devices, so many are counted, spread evenly over their names.


def reading(
    corpus: Corpus, section: DataSection, blocks: Callable[[DeviceId], Blocks], most_bytes: int = 0
) -> dict[str, Any]:
    """Count the text that was read and left out, as plain JSON.

    Args:
        blocks: device -> its blocks.
        most_bytes: about the largest amount of text to tokenize. 0 takes the text of up to 1,000 devices, and that of
            200 where there are more.
    Returns:
        ``files``, ``rows``, ``pieces``: as ``Corpus.found``. ``devices``: number of devices.
        ``examined``: number of devices behind the counts that follow. ``text``: ``Counts``.
        ``train_tokens``, ``held_tokens``: predicted tokens. ``unread_documents``: documents that are left out.
        ``cannot``: reason -> number of devices that cannot train (``too_little``, ``unreadable``) or cannot be measured
        (``no_holdout``). ``example``: the error and fix of one unreadable device.
        ``alike``: ``names``, the number of devices whose names differ only in case, spaces or Unicode form, and
        ``example``, a list of such names. Some keys of the recipe: ``sequence_len``, ``max_tokens``, ``holdout``,
        ``time``, ``stream``, and ``prompt``, True for instruction data and chats.
    """
    examined = _counted_devices(corpus, most_bytes)
    total, train, held, lost = Counts(), 0, 0, 0
    cannot = {"too_little": 0, "unreadable": 0, "no_holdout": 0}
    example = ""
    for device in examined:
        try:
            of = blocks(device)
            lost += corpus.lost(device)
        except DataError as e:
            cannot["unreadable"] += 1
            example = example or f"{device}: {e.what} Fix: {e.fix}"
            continue
        total += Counts(*map(int, of.counts))
        train, held = train + of.train_tokens, held + of.held_tokens
        cannot["too_little"] += not of.train_tokens
        cannot["no_holdout"] += bool(of.train_tokens) and not of.held_tokens
    return {
        **corpus.found,
        "devices": len(corpus.devices),
        "examined": len(examined),
        "text": total._asdict(),
        "train_tokens": train,
        "held_tokens": held,
        "unread_documents": lost,
        "cannot": cannot,
        "example": example,
        "alike": _similar_devices(corpus.devices),
        "sequence_len": section.sequence_len,
        "max_tokens": section.max_tokens,
        "holdout": section.holdout,
        "time": section.time,
        "stream": section.stream,
        "prompt": bool(section.prompt or section.rendered),
    }


def _similar_devices(devices: Sequence[DeviceId]) -> dict[str, Any]:
    """Find devices that may be one owner, whose name is written in several ways."""
    spelt: dict[str, list[DeviceId]] = {}
    for device in devices:
        spelt.setdefault(" ".join(normalize("NFKC", device).casefold().split()), []).append(device)
    several = [names for names in spelt.values() if len(names) > 1]
    return {"names": sum(map(len, several)), "example": several[0] if several else []}


def _counted_devices(corpus: Corpus, most_bytes: int) -> Sequence[DeviceId]:
    """Choose the devices whose text is counted."""
    devices = corpus.devices
    n = len(devices) if len(devices) <= MOST_DEVICES else SOME_DEVICES
    if most_bytes:
        n = min(n, max(1, most_bytes * len(devices) // max(1, corpus.size_bytes)))
    return [devices[i] for i in np.unique(np.arange(n) * len(devices) // n)]
