"""Files of split learning's sessions in a run's folder, and the rest of the model that follows from them.

    OUT/split/000003/<device>.safetensors    the session of a device in round 3, durable before its contribution leaves
    OUT/split/cache/<device>.safetensors     the activations of a device, where they go up once

A file holds what ``engine.split_rest.SessionResult`` has. The committed rest is in the checkpoint
(``RunStore.commit``). So a run that was killed in a round has the rest of its begin, and the sessions of every device
that has answered.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load, save

from edgewise.core import events
from edgewise.core.errors import StoreError
from edgewise.core.foreign import foreign
from edgewise.core.training import DeviceId
from edgewise.core.vector import Vector
from edgewise.drivers.storage.files import sync_folder, write_durably
from edgewise.engine.split_rest import SessionResult, rest_after

FOLDER, CACHE = "split", "cache"
NOTHING = np.zeros(0, np.float32)
RESTORE = "put a whole copy of the folder in its place, or start again with another --out."


class SessionFiles:
    """The sessions of one process's devices (``engine.split_rest.Sessions``), in the folder of a run.

    Args:
        run_dir: the folder of the run.
        in_turn: True lets each session begin where the one before it in the round ended.
    """

    def __init__(self, run_dir: Path, in_turn: bool) -> None:
        self._folder, self._in_turn = run_dir / FOLDER, in_turn
        self._round, self._rest = 0, np.zeros(0, np.float32)

    @property
    def current(self) -> Vector:
        """The rest of the round's model."""
        return self._rest

    def use(self, round: int, rest: Vector) -> None:
        """Set the rest of the round's model."""
        self._round, self._rest = round, rest

    def begin(self, round: int, device: DeviceId) -> Vector:
        """Return the rest that a session begins with. A session that is repeated begins as it did the first time.

        Raises StoreError(E-CHECKPOINT) for another round than that of the rest, and for damaged files.
        """
        if round != self._round:
            what = f"a session of round {round} with the rest of the model of round {self._round}."
            raise StoreError("E-CHECKPOINT", what, RESTORE)
        if not self._in_turn:
            return self._rest
        sessions = read_sessions(self._folder, round)
        before = _place(sessions, device) - 1
        last = next((name for name, one in sessions.items() if one.place == before), None)
        return self._rest if last is None else read_rest(self._folder, round, last)

    def end(self, round: int, device: DeviceId, result: SessionResult) -> None:
        """Write a session's file. It is on the disk when this returns. Raises StoreError(E-DISK)."""
        place = _place(read_sessions(self._folder, round), device) if self._in_turn else 0
        numbers = np.array([result.count, result.steps, result.up_bytes, result.down_bytes, place], np.float64)
        name = np.frombuffer(device.encode(), np.uint8)
        raw = save({"rest": np.ascontiguousarray(result.rest), "numbers": numbers, "device": name})
        _write(_round_folder(self._folder, round), device, raw)

    def ended(self, round: int, device: DeviceId) -> bool:
        """Tell whether a session's file is there."""
        return _path(_round_folder(self._folder, round), device).is_file()

    def cached(self, device: DeviceId, version: bytes) -> list[bytes] | None:
        """Read the activations of a device. Raises StoreError(E-CHECKPOINT) for a damaged file."""
        path = _path(self._folder / CACHE, device)
        if not path.is_file():
            return None
        with foreign(StoreError, "E-CHECKPOINT", f"{path} is damaged", RESTORE):
            arrays = load(path.read_bytes())
            if arrays["version"].tobytes() != version:
                return None
            raw, stops = arrays["messages"].tobytes(), np.cumsum(arrays["lengths"]).tolist()
            return [raw[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]

    def cache(self, device: DeviceId, version: bytes, messages: list[bytes]) -> None:
        """Write the activations of a device. Raises StoreError(E-DISK)."""
        arrays = {
            "version": np.frombuffer(version, np.uint8),
            "lengths": np.array([len(one) for one in messages], np.int64),
            "messages": np.frombuffer(b"".join(messages), np.uint8),
        }
        _write(self._folder / CACHE, device, save(arrays))


class SimulatedRest:
    """The rest of a split model in a simulation (``engine.split_rest.RestOfModel``).

    Args:
        initial: float32[s], the rest before round 0.
        kind: ``split.server_parts``.
        cap: of the recipe's ``weigh``. None without one.
        give: takes (round, rest) to the processes that train.
    """

    def __init__(
        self, run_dir: Path, initial: Vector, kind: str, cap: float | None, give: Callable[[int, Vector], None]
    ) -> None:
        self._folder, self._initial, self._kind, self._cap, self._give = run_dir / FOLDER, initial, kind, cap, give

    def start(self) -> Vector:
        """Return the rest before round 0."""
        self._clear(-1)
        return self._initial

    def use(self, round: int, rest: Vector) -> None:
        """Give the sessions of this round their rest, and remove those of other rounds."""
        self._clear(round)
        self._give(round, rest)

    def closed(
        self, round: int, rest: Vector, accepted: Collection[DeviceId], met: bool
    ) -> tuple[Vector, Sequence[events.SplitSession]]:
        """Return the rest after a round, and the events of its sessions.

        Raises StoreError(E-CHECKPOINT) where the session of an accepted device is missing.
        """
        sessions = read_sessions(self._folder, round)
        told = [
            events.SplitSession(round=round, device=d, steps=s.steps, bytes_up=s.up_bytes, bytes_down=s.down_bytes)
            for d, s in sorted(sessions.items())
        ]
        if not met:
            return rest, told
        if self._kind != "frozen" and (missing := sorted(set(accepted) - sessions.keys())):
            what = f"{self._folder} lacks the session of {missing[0]!r:.60} in round {round}."
            raise StoreError("E-CHECKPOINT", what, RESTORE)
        read = partial(read_rest, self._folder, round)
        return rest_after(self._kind, rest, sessions, read, accepted, self._cap), told

    def _clear(self, keep: int) -> None:
        """Remove the sessions of all rounds but one."""
        if self._folder.is_dir():
            for one in self._folder.iterdir():
                if one != _round_folder(self._folder, keep) and (keep < 0 or one.name != CACHE):
                    shutil.rmtree(one, ignore_errors=True)


def read_sessions(folder: Path, round: int) -> dict[DeviceId, SessionResult]:
    """Read the sessions of a round without their rests. Raises StoreError(E-CHECKPOINT) for a damaged file."""
    found = dict[DeviceId, SessionResult]()
    for path in sorted(_round_folder(folder, round).glob("*.safetensors")):
        numbers, name = _read(path, "numbers"), _read(path, "device")
        count, *others = numbers.tolist()
        steps, up, down, place = map(int, others)
        found[name.tobytes().decode()] = SessionResult(NOTHING, count, steps, up, down, place)
    return found


def read_rest(folder: Path, round: int, device: DeviceId) -> Vector:
    """Read the rest after a device's session: float32[s]. Raises as ``read_sessions``."""
    rest: Vector = _read(_path(_round_folder(folder, round), device), "rest")
    return rest


def _read(path: Path, name: str) -> Any:
    """Read one array of a file, and no other."""
    with foreign(StoreError, "E-CHECKPOINT", f"{path} is damaged", RESTORE), safe_open(path, "numpy") as f:
        return f.get_tensor(name)


def _place(sessions: dict[DeviceId, SessionResult], device: DeviceId) -> int:
    """Return a device's place among the sessions of a round: its own, or the next free one."""
    return sessions[device].place if device in sessions else len(sessions)


def _write(folder: Path, device: DeviceId, raw: bytes) -> None:
    """Write the file of a device durably. Raises StoreError(E-DISK)."""
    if not folder.is_dir():
        with foreign(StoreError, "E-DISK", f"{folder} cannot be made", "free some space."):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for one in (folder.parent.parent, folder.parent):
            sync_folder(one)
    write_durably(_path(folder, device), raw, owner_only=True)
    sync_folder(folder)  # The session's update may leave now, and the name must outlive a power cut.


def _path(folder: Path, device: DeviceId) -> Path:
    return folder / f"{hashlib.sha256(device.encode()).hexdigest()[:32]}.safetensors"


def _round_folder(folder: Path, round: int) -> Path:
    return folder / f"{round:06d}"
