"""Share documents out to devices: by owner, evenly at random, or skewed (Dirichlet over labels, Hsu et al. 2019)."""

from __future__ import annotations

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.keys import Key, derive, generator
from edgewise.core.vector import Array
from edgewise.learn.text.documents import DocumentIndex
from edgewise.plan.recipe.recipe import DataSection


def assign_documents(found: DocumentIndex, section: DataSection, key: Key) -> tuple[tuple[str, ...], Array]:
    """Assign each document to a device.

    ``dirichlet`` draws p ~ Dirichlet(alpha 1_n) for each label value, shuffles its documents, and cuts them at the
    cumulated shares of p. Without a label column, documents in order are cut into as many equal chunks as there are
    devices, and the chunk is the label. An empty device gets one document of the fullest device.

    Returns:
        The device names, sorted, and each document's device as a code, int32[m]. Both depend on the arguments only.
    Raises:
        DataError: E-DATA-EMPTY where there are fewer documents than devices.
    """
    m, n = len(found.start), section.devices
    if section.partition == "owner":
        return found.owners, found.owner
    if section.partition == "whole":
        return ("device",), np.zeros(m, np.int32)
    if m < n:
        raise DataError("E-DATA-EMPTY", f"{m} documents for {n} devices.", "lower data.devices.")
    names = tuple(f"device-{i:0{len(str(n - 1))}d}" for i in range(n))
    rng = generator(derive(key, "partition", section.partition))
    if section.partition == "iid":
        return names, (rng.permutation(m) % n).astype(np.int32)
    label = found.label if found.label is not None else np.arange(m) * n // m
    device = np.empty(m, np.int32)
    for value in np.unique(label):
        rows = rng.permutation(np.flatnonzero(label == value))
        share = rng.dirichlet(np.full(n, section.alpha))
        cuts = np.round(np.cumsum(share)[:-1] * len(rows)).astype(np.int64)
        for i, part in enumerate(np.split(rows, cuts)):
            device[part] = i
    return names, _none_empty(device, n)


def _none_empty(device: Array, n: int) -> Array:
    count = np.bincount(device, minlength=n)
    for i in np.flatnonzero(count == 0):
        rich = int(count.argmax())
        device[np.flatnonzero(device == rich)[-1]] = i
        count[rich] -= 1
        count[i] += 1
    return device
