"""Codec memory of simulated devices: one safetensors file each, bound to its run and checked for damage.

Beside the device's arrays a file holds ``of`` (run, instance of the run directory, device, as JSON) and ``digest``, the
SHA-256 of all the rest. The folder's name changes whenever the run directory is opened (``RunStore.memory_dir``), and
only the store makes folders. So a worker process that outlives its run cannot replace newer memory, however late it
writes: the name it writes to is gone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from edgewise.core.errors import StoreError
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.drivers.files import write_durably
from edgewise.engine import device as machine

RESTORE = "put a whole copy of the folder in its place, or start again with another --out."


@dataclass(frozen=True)
class Memories:
    """The codec memory of the devices of one run directory.

    Attributes:
        folder: of this opening of the run directory. run: identity of the run. instance: of the run directory.
    """

    folder: Path
    run: str
    instance: str

    def path(self, device: DeviceId) -> Path:
        """Where a device's memory is."""
        return self.folder / (hashlib.sha256(device.encode()).hexdigest()[:32] + ".safetensors")

    def load(self, device: DeviceId) -> machine.Idle | None:
        """A device's memory; None for a device that has none yet.

        Raises StoreError(E-CHECKPOINT) where the file cannot be read, is damaged, or belongs to another run.
        """
        path = self.path(device)
        if not path.exists():
            return None
        try:
            arrays = load(path.read_bytes())
            stored, of = arrays.pop("digest").tobytes(), bytes(arrays["of"])
            whole = stored == _digest(arrays)
            names = json.loads(of) if whole else None
            state = machine.restore(device, arrays) if whole else None
        except Exception as e:  # boundary: damaged bytes break parsers in ways that no list of errors is complete for
            raise self._unusable(device, f"cannot be read: {e}") from e
        if state is None:
            raise self._unusable(device, "is damaged")
        if names != self._of(device):
            raise self._unusable(device, "belongs to another run, run directory or device")
        return state

    def save(self, state: machine.Idle) -> None:
        """Replace a device's memory, whole or not at all, before its frame leaves.

        Raises StoreError: E-WORKER where the run directory was opened anew since; E-DISK.
        """
        if not self.folder.exists():
            raise StoreError("E-WORKER", "the run that this process worked for has ended.", "go on with --resume.")
        arrays = {k: np.ascontiguousarray(v) for k, v in machine.save(state).items()}
        arrays["of"] = np.frombuffer(json.dumps(self._of(state.device)).encode(), np.uint8)
        arrays["digest"] = np.frombuffer(_digest(arrays), np.uint8)
        write_durably(self.path(state.device), save(arrays), private=True)

    def out_of_step(self, state: machine.Idle, accepted: int) -> StoreError:
        """The error for a device whose memory is not of the round that the server last took a contribution to."""
        has = "none" if state.committed_round < 0 else f"that after round {state.committed_round}"
        return self._unusable(state.device, f"is not that after round {accepted}: it is {has}")

    def _of(self, device: DeviceId) -> list[str]:
        return [self.run, self.instance, device]

    def _unusable(self, device: DeviceId, how: str) -> StoreError:
        what = f"the codec memory of device {device:.60} {how} ({self.path(device)})."
        return StoreError("E-CHECKPOINT", what, RESTORE)


def _digest(arrays: Mapping[str, Array]) -> bytes:
    whole = hashlib.sha256()
    for name, x in sorted(arrays.items()):
        whole.update(f"{name} {x.dtype.str} {x.shape}\n".encode())
        whole.update(np.ascontiguousarray(x).data.cast("B") if x.size else b"")
    return whole.digest()
