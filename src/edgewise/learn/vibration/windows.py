"""Cut recordings into windows: those of the rig, of each factory's nodes, and of the test, which lies later in time.

Each recording is cut in time: its first ``share`` trains, ``gap`` samples are left out, and the rest is for the test.
The nodes of a factory each hold a part in time of every training part. A factory without a healthy recording of its own
holds a part in time of the rig's: machines are recorded before they carry a load.

A window has mean 0 and deviation 1, so that loudness cannot tell one recording from another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.safe_repr import outline
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.learn.vibration.recordings import Recordings
from edgewise.plan.recipe.vibration import VibrationSection


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows with their labels: ``x`` float32[n, window], ``label`` int64[n], places in ``Recordings.names``."""

    x: Array
    label: Array

    __repr__ = outline

    @classmethod
    def joined(cls, parts: Iterable[Windows]) -> Windows:
        """Put windows behind one another."""
        parts = list(parts)
        return cls(np.concatenate([p.x for p in parts]), np.concatenate([p.label for p in parts]))


@dataclass(frozen=True, eq=False)
class NodeWindows:
    """Windows of a node.

    Attributes:
        sent: side by side. Their activations go up, and their samples are the node's raw data.
        local: ``hop`` samples apart, to train on the node itself.
    """

    sent: Windows
    local: Windows

    __repr__ = outline


@dataclass(frozen=True, eq=False)
class DealtWindows:
    """Windows by their holder.

    Attributes:
        rig: of the vendor's test rig, side by side. nodes: of each node. tests: of each factory.
        factory: node -> its factory.
    """

    rig: Windows
    nodes: Mapping[DeviceId, NodeWindows]
    factory: Mapping[DeviceId, str]
    tests: Mapping[str, Windows]

    __repr__ = outline

    def nodes_of(self, factory: str) -> list[DeviceId]:
        """List the nodes of a factory, sorted."""
        return sorted(node for node, site in self.factory.items() if site == factory)

    @property
    def raw_bytes(self) -> int:
        """The bytes of all nodes' windows as int16, which sending the raw data would cost."""
        return sum(2 * held.sent.x.size for held in self.nodes.values())


def dealt(recordings: Recordings, section: VibrationSection) -> DealtWindows:
    """Share out windows to the rig, the nodes of each factory, and the test of each factory.

    Raises:
        DataError: E-DATA-EMPTY for a recording that is too short. E-DATA-FORMAT for one with a window of equal samples.
    """
    rig = recordings.sites[section.rig]
    factories = sorted(set(recordings.sites) - {section.rig})
    label = {name: i for i, name in enumerate(recordings.names)}
    nodes: dict[DeviceId, NodeWindows] = {}
    tests: dict[str, Windows] = {}
    for number, factory in enumerate(factories):
        held = dict(recordings.sites[factory])
        trains: list[tuple[Array, int]] = []
        tested: list[Windows] = []
        for name in recordings.names:
            own = name in held
            for x in held[name] if own else rig[name]:
                where = f"{factory if own else section.rig}/{name}"
                train, test = _parts(x, section, where)
                if not own:
                    train, test = (_stretch(part, number, len(factories)) for part in (train, test))
                _check_length(train, section.nodes, section, where)
                _check_length(test, 1, section, where)
                trains.append((train, label[name]))
                tested.append(_windows(test, label[name], section.window, section.window, where))
        tests[factory] = Windows.joined(tested)
        for i in range(section.nodes):
            mine = [(_whole_stretch(train, i, section.nodes, section.window), number) for train, number in trains]
            sent, local = (
                Windows.joined(_windows(x, number, section.window, hop, factory) for x, number in mine)
                for hop in (section.window, section.hop)
            )
            nodes[f"{factory}-{i}"] = NodeWindows(sent, local)
    of_rig = [
        _windows(
            _parts(x, section, f"{section.rig}/{name}")[0], label[name], section.window, section.window, section.rig
        )
        for name, recorded in rig.items()
        for x in recorded
    ]
    return DealtWindows(Windows.joined(of_rig), nodes, {n: n.rpartition("-")[0] for n in nodes}, tests)


def _parts(x: Array, section: VibrationSection, where: str) -> tuple[Array, Array]:
    """Return the part of a recording that trains and the part for the test."""
    if section.validation:
        x = x[: int(section.share * len(x))]
    end = int(section.share * len(x))
    train, test = x[:end], x[end + section.gap :]
    _check_length(train, 1, section, where)
    _check_length(test, 1, section, where)
    return train, test


def _check_length(x: Array, windows: int, section: VibrationSection, where: str) -> None:
    """Refuse a part that is too short. Raises DataError(E-DATA-EMPTY)."""
    if len(x) < windows * section.window:
        what = f"{where}: a part of the recording has {len(x):,} samples, and {windows} windows of {section.window} "
        fix = "give a longer recording, or lower vibration.window, vibration.gap or vibration.nodes."
        raise DataError("E-DATA-EMPTY", what + "are needed.", fix)


def _stretch(x: Array, i: int, n: int) -> Array:
    """Return the i-th of n parts in time."""
    return x[len(x) * i // n : len(x) * (i + 1) // n]


def _whole_stretch(x: Array, i: int, n: int, window: int) -> Array:
    """Return the i-th of n parts in time, each of whole windows."""
    count = len(x) // window
    return x[count * i // n * window : count * (i + 1) // n * window]


def _windows(x: Array, label: int, window: int, hop: int, where: str) -> Windows:
    """Cut a recording into standardised windows. Raises DataError(E-DATA-FORMAT) for equal samples."""
    cut = np.lib.stride_tricks.sliding_window_view(x, window)[::hop].astype(np.float64)
    deviation = cut.std(1, keepdims=True)
    if not deviation.all():
        what = f"{where}: the samples of a whole window are equal, as those of a sensor that is stuck."
        raise DataError("E-DATA-FORMAT", what, "leave out the recording, or the part of it.")
    cut = (cut - cut.mean(1, keepdims=True)) / deviation
    return Windows(cut.astype(np.float32), np.full(len(cut), label, np.int64))
