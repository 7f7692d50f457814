"""States of devices on disk (port ``engine.ports.DeviceStore``), for a real device and for the devices of a simulation.

    FileDevices        one file holds a device's whole state; it is on the disk before a frame leaves
    SimulatedDevices   codec memory is on the disk as above; sessions and answered rounds end with the simulation

A state is a safetensors file. It holds the arrays of ``engine.device_state.memory_of``, ``session`` (bytes), ``of``
(the owner of the state, as JSON) and ``digest``, the SHA-256 of everything else in the file.

The folder of a simulation changes its name whenever the run directory is opened (``RunStore.memory_dir``), and only the
run's store creates folders. So a worker process that outlives its run cannot replace newer memory: the folder that it
would write to no longer exists.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import load, save

from edgewise.core.errors import StoreError
from edgewise.core.foreign import foreign
from edgewise.core.memory import Memory
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.drivers.storage import files
from edgewise.engine import device_state as states
from edgewise.engine.device_state import After, Idle, Kept

SESSIONS = "sessions"  # a folder beside the codec memory, for states that end with the simulation
RESTORE = "put a whole copy of the folder in its place, or start again with another --out."
ONE_PROCESS = "stop the other one: a device works in one process at a time."
JOIN_ANEW = (
    "put the newest copy of the file in its place. Without one leave the run: a device that begins again has forgotten "
    "which rounds it has answered."
)


class FileDevices:
    """The states of real devices in ``folder``, which must exist and belong to its owner alone.

    One process has the folder at a time, for as long as its devices work. Two processes could each send an update of
    the same round. Use as a context manager, or close it.

    Guarantees: when ``save`` returns, the state survives a crash and a power cut, and no other state does. Only the
    owner can read the files, because between two messages of secure aggregation they hold secret keys.
    Not guaranteed: that the disk erases the bytes of older states.
    Raises:
        StoreError: E-RUN-EXISTS while another process has the folder, E-DISK.
    """

    def __init__(self, folder: Path, run: str) -> None:
        """``run``: identity of the run. A state of another run is refused."""
        self.folder, self.run = folder, run
        self._release = files.lock(folder / "lock", ONE_PROCESS)

    def __enter__(self) -> FileDevices:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder for other processes."""
        self._release()

    def load(self, device: DeviceId) -> Kept | None:
        """See DeviceStore.

        Raises:
            StoreError: E-CHECKPOINT where the file is unreadable, damaged, or of another run.
        """
        path = _memory_path(self.folder, device)
        if (arrays := _read_arrays(path, device, [self.run, device], JOIN_ANEW)) is None:
            return None
        with foreign(StoreError, "E-CHECKPOINT", f"{path} is of another version of edgewise", JOIN_ANEW):
            session = arrays.pop("session").tobytes()
            return states.resumed(states.idle_of(device, arrays), session)

    def save(self, device: DeviceId, state: Kept) -> None:
        """See DeviceStore.

        Raises:
            StoreError: E-DISK.
        """
        session = np.frombuffer(states.session_of(state), np.uint8)
        _write_arrays(
            _memory_path(self.folder, device), {**states.memory_of(state), "session": session}, [self.run, device]
        )
        files.sync_folder(self.folder)


class StateFiles(Protocol):
    """The files of simulated devices by name, wherever they are: in a folder, or carried with a job."""

    def where(self, name: str) -> str:
        """Return what a message calls the file."""
        ...

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes. None where there is no file."""
        ...

    def write(self, name: str, raw: bytes) -> None:
        """Replace a file. Codec memory is on the disk when this returns. Raises StoreError (E-DISK, E-WORKER)."""
        ...

    def discard(self, name: str) -> None:
        """Remove a file if it is there."""
        ...


class FolderFiles:
    """The files of simulated devices in the folder of this opening of a run directory (``RunStore.memory_dir``)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def where(self, name: str) -> str:
        """See StateFiles."""
        return str(self._folder / name)

    def read(self, name: str) -> bytes | None:
        """See StateFiles."""
        path = self._folder / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, raw: bytes) -> None:
        """See StateFiles. The file of a session has no guarantee of durability.

        Raises:
            StoreError: E-WORKER where the run directory was opened again by another process; E-DISK.
        """
        if not self._folder.exists():
            raise StoreError("E-WORKER", "the run that this process worked for has ended.", "go on with --resume.")
        path = self._folder / name
        if path.parent == self._folder:
            files.write_durably(path, raw, owner_only=True)
            return
        try:
            path.parent.mkdir(files.FOLDER, exist_ok=True)
        except OSError as e:
            raise StoreError("E-DISK", f"cannot make {path.parent}: {e.strerror}.", "free some space.") from None
        files.replace_file(path, raw)

    def discard(self, name: str) -> None:
        """See StateFiles."""
        if not self._folder.exists():
            raise StoreError("E-WORKER", "the run that this process worked for has ended.", "go on with --resume.")
        files.discard(self._folder / name)


class CarriedFiles:
    """The files of the devices of one job after the other. They come with a job and go back with its answer.

    Attributes:
        changes: name -> its new bytes, or None where it was removed, in the order of the changes.
    """

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}
        self.changes: dict[str, bytes | None] = {}

    def begin(self, given: Mapping[str, bytes]) -> None:
        """Take the files of the next job, without changes."""
        self._files, self.changes = dict(given), {}

    def where(self, name: str) -> str:
        """See StateFiles."""
        return name

    def read(self, name: str) -> bytes | None:
        """See StateFiles."""
        return self._files.get(name)

    def write(self, name: str, raw: bytes) -> None:
        """See StateFiles."""
        self._files[name] = self.changes[name] = raw

    def discard(self, name: str) -> None:
        """See StateFiles."""
        self._files.pop(name, None)
        self.changes[name] = None


def state_names(device: DeviceId) -> tuple[str, str]:
    """Name the two files of a simulated device: its codec memory and its session."""
    name = _device_file_name(device)
    return f"{name}.safetensors", f"{SESSIONS}/{name}"


class SimulatedDevices:
    """The states of a run directory's simulated devices, shared by all worker processes of the simulation.

    Codec memory is replaced on the disk before a frame leaves, so a killed run continues with it. A session and the
    last answered round would be in the memory of a real device. Worker processes share them through files without
    durability guarantees, and ``drivers.storage.opening`` removes these files when the run directory is opened again.
    The devices are then brought back to an interrupted round by replaying the frames that they had been sent
    (``SimulatedCohort.resume``), as if they had not answered it.
    """

    def __init__(self, states: StateFiles, run: str, instance: str, remembers: bool) -> None:
        """Take the files of this opening of the run directory.

        Args:
            states: where the files are.
            run: identity of the run.
            instance: identity of the run directory.
            remembers: whether devices have codec memory (``engine.device_state.remembers``). Without it nothing is
                saved on the disk.
        """
        self._files, self._of, self._remembers = states, [run, instance], remembers
        self._disk: Idle | None = None  # the state on the disk of the device that was loaded last

    def load(self, device: DeviceId) -> Kept | None:
        """See DeviceStore.

        Raises:
            StoreError: E-CHECKPOINT as for ``FileDevices``, and where the state is of another run directory.
        """
        memory, session = state_names(device)
        place = self._files.where(memory)
        try:
            raw = self._files.read(memory) if self._remembers else None
        except OSError as e:
            raise _unusable_memory(device, f"cannot be read: {e}", place, RESTORE) from e
        arrays = None if raw is None else _decoded_arrays(raw, place, device, [*self._of, device], RESTORE)
        with foreign(StoreError, "E-CHECKPOINT", f"{place} is of another version of edgewise", RESTORE):
            self._disk = None if arrays is None else states.idle_of(device, arrays)
        if (raw := self._files.read(session)) is None:
            return self._disk
        if self._remembers and self._disk is None:
            raise _unusable_memory(device, "is missing", place, RESTORE)
        with foreign(StoreError, "E-CHECKPOINT", f"{self._files.where(session)} is damaged", RESTORE):
            return states.resumed(self._disk or Idle(device, After(None, Memory())), raw)

    def save(self, device: DeviceId, state: Kept) -> None:
        """See DeviceStore.

        Raises:
            StoreError: E-WORKER where the run directory was opened again by another process; E-DISK.
        """
        memory, session = state_names(device)
        idle = state if isinstance(state, Idle) else state.idle
        if self._remembers and not self._on_disk(idle):
            self._files.write(memory, _encoded_arrays(states.memory_of(idle), [*self._of, device]))
        self._disk = None
        if isinstance(state, Idle) and state.answered is None and state.lot is None:
            self._files.discard(session)
        else:
            self._files.write(session, states.session_of(state))

    def _on_disk(self, idle: Idle) -> bool:
        """Return whether the disk has this codec memory.

        Arrays are compared by identity, because a memory that a device did not change is the same object.
        """
        disk = self._disk
        if disk is None or disk.device != idle.device:
            return False
        return _is_same_memory(disk.committed, idle.committed) and _is_same_memory(disk.pending, idle.pending)


def out_of_step(folder: Path, state: Idle, accepted: int | None) -> StoreError:
    """Make the error for a simulated device whose memory is not of the round of its last accepted contribution.

    Such a run directory is damaged.
    """
    last = state.committed.round
    has = "none" if last is None else f"that after round {last}"
    wanted = "from before the first round" if accepted is None else f"that after round {accepted}"
    return _unusable_memory(state.device, f"is not {wanted}: it is {has}", _memory_path(folder, state.device), RESTORE)


def _is_same_memory(a: After | None, b: After | None) -> bool:
    """Tell whether two memories are the same objects."""
    if a is None or b is None:
        return a is b
    return a.round == b.round and a.memory is b.memory


def _device_file_name(device: DeviceId) -> str:
    """Derive a file name from a device's identity."""
    return hashlib.sha256(device.encode()).hexdigest()[:32]


def _memory_path(folder: Path, device: DeviceId) -> Path:
    """Name the file of a device's memory."""
    return folder / f"{_device_file_name(device)}.safetensors"


def _write_arrays(path: Path, arrays: Mapping[str, Array], of: Sequence[str]) -> None:
    """Write arrays durably, with their owner and a digest."""
    files.write_durably(path, _encoded_arrays(arrays, of), owner_only=True)


def _encoded_arrays(arrays: Mapping[str, Array], of: Sequence[str]) -> bytes:
    """Write arrays as bytes, with their owner and a digest."""
    state = {k: np.ascontiguousarray(v) for k, v in arrays.items()}
    state["of"] = np.frombuffer(json.dumps(list(of)).encode(), np.uint8)
    state["digest"] = np.frombuffer(_arrays_digest(state), np.uint8)
    raw: bytes = save(state)
    return raw


def _read_arrays(path: Path, device: DeviceId, of: Sequence[str], fix: str) -> dict[str, Array] | None:
    """Read the arrays of a file. None where there is no file.

    Raises:
        StoreError: E-CHECKPOINT.
    """
    if not path.exists():
        return None
    try:
        raw = path.read_bytes()
    except OSError as e:
        raise _unusable_memory(device, f"cannot be read: {e}", path, fix) from e
    return _decoded_arrays(raw, path, device, of, fix)


def _decoded_arrays(raw: bytes, place: Path | str, device: DeviceId, of: Sequence[str], fix: str) -> dict[str, Array]:
    """Read the arrays in the bytes of a file.

    Raises:
        StoreError: E-CHECKPOINT.
    """
    try:
        arrays: dict[str, Array] = load(raw)
        stored, owner = arrays.pop("digest").tobytes(), bytes(arrays["of"])
        intact = stored == _arrays_digest(arrays)
        names = json.loads(owner) if intact else None
    except Exception as e:  # boundary: no list of the errors that damaged bytes cause is complete
        raise _unusable_memory(device, f"cannot be read: {e}", place, fix) from e
    if not intact:
        raise _unusable_memory(device, "is damaged", place, fix)
    if names != list(of):
        raise _unusable_memory(device, "belongs to another run, run directory or device", place, fix)
    del arrays["of"]
    return arrays


def _unusable_memory(device: DeviceId, how: str, path: Path | str, fix: str) -> StoreError:
    """Make the error for a memory that a device cannot use."""
    return StoreError("E-CHECKPOINT", f"the codec memory of device {device:.60} {how} ({path}).", fix)


def _arrays_digest(arrays: Mapping[str, Array]) -> bytes:
    """Compute the digest of named arrays."""
    hasher = hashlib.sha256()
    for name, x in sorted(arrays.items()):
        hasher.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        hasher.update(np.ascontiguousarray(x).data.cast("B") if x.size else b"")
    return hasher.digest()
