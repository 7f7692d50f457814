"""Privacy ledgers of devices over all their runs, on the owner's disk (port ``engine.owner_budget.DeviceLedgers``).

Each device has one file of JSON lines. Lines are only added. A line holds the run, the round, the event, and a digest
over the previous line and itself. So a line that was changed, removed or moved is detected. A line without its end was
being written when the process died. Its charge never returned, so no frame had left the device, and the line is cut
off.

A ledger belongs to a device and not to a run, so it lies beside the run directories. It is not protected from its
owner: an owner who deletes the file starts again from zero.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from edgewise.core.errors import StoreError
from edgewise.core.training import DeviceId
from edgewise.drivers.storage import files
from edgewise.drivers.storage.device_store import ONE_PROCESS
from edgewise.privacy.device_ledger import DeviceCharge
from edgewise.privacy.spend import PrivacyEvent

FIX = "put the newest copy of the file in its place. Without one, delete it: the device then counts from zero."


class FileLedgers:
    """The ledgers of all devices in ``folder``, which must exist. Use as a context manager, or close it.

    One process has the folder at a time.

    Args:
        earlier: ids that the owner's device had in earlier enrolments. Their charges count for each device of the
            folder, because they are about the same text.
    Guarantees: a charge survives a crash and a power cut once ``charge`` has returned.
    Raises:
        StoreError: E-RUN-EXISTS while another process has the folder, E-DISK.
    """

    def __init__(self, folder: Path, earlier: Sequence[DeviceId] = ()) -> None:
        self._folder, self._earlier = folder, earlier
        self._release = files.lock(folder / "lock", ONE_PROCESS)
        self._known: dict[DeviceId, tuple[tuple[DeviceCharge, ...], str]] = {}

    def __enter__(self) -> FileLedgers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder for other processes."""
        self._release()

    def charges(self, device: DeviceId) -> tuple[DeviceCharge, ...]:
        """See DeviceLedgers.

        Raises:
            StoreError: E-CHECKPOINT where the file is damaged or belongs to another device.
        """
        names = (*(name for name in self._earlier if name != device), device)
        return tuple(charge for name in names for charge in self._known_charges(name)[0])

    def charge(self, device: DeviceId, new: DeviceCharge) -> None:
        """See DeviceLedgers.

        Raises:
            StoreError: E-DISK.
        """
        charges, previous = self._known_charges(device)
        if new in charges:
            return
        row = {"run": new.run, "round": new.round, "event": new.event.to_plain()}
        digest, path = _chain_link(previous, row), self._ledger_path(device)
        fresh = not path.exists()
        try:
            with open(path, "ab", opener=files.for_owner) as f:
                f.write(json.dumps({**row, "digest": digest}).encode() + b"\n")
                f.flush()
                os.fsync(f.fileno())
        except OSError as e:
            self._known.pop(device, None)  # the disk may hold part of the line, so the file is read again
            raise StoreError("E-DISK", f"cannot write {path}: {e.strerror}.", "free some space.") from None
        if fresh:
            files.sync_folder(self._folder)
        self._known[device] = ((*charges, new), digest)

    def _known_charges(self, device: DeviceId) -> tuple[tuple[DeviceCharge, ...], str]:
        """Charges of a device and the last link of their chain."""
        if device not in self._known:
            self._known[device] = self._load_ledger(device)
        return self._known[device]

    def _load_ledger(self, device: DeviceId) -> tuple[tuple[DeviceCharge, ...], str]:
        """Read a device's ledger and check its chain."""
        path, charges, previous = self._ledger_path(device), list[DeviceCharge](), _chain_link("", {"device": device})
        try:
            raw = path.read_bytes() if path.exists() else b""
            complete, end, torn = raw.rpartition(b"\n")
            if torn:
                os.truncate(path, len(complete) + len(end))
        except OSError as e:
            raise StoreError("E-DISK", f"cannot read {path}: {e.strerror}.", "check the disk.") from None
        for number, line in enumerate(complete.split(b"\n") if end else [], 1):
            try:
                row = json.loads(line)
                stored = row.pop("digest")
                charges.append(DeviceCharge(str(row["run"]), int(row["round"]), PrivacyEvent.from_plain(row["event"])))
            except Exception as e:  # boundary: damaged bytes make parsers raise many types of errors
                raise StoreError("E-CHECKPOINT", f"line {number} of {path} cannot be read.", FIX) from e
            previous = _chain_link(previous, row)
            if stored != previous:
                raise StoreError("E-CHECKPOINT", f"line {number} of {path} is not the one written there.", FIX)
        return tuple(charges), previous

    def _ledger_path(self, device: DeviceId) -> Path:
        """Name the file of a device's ledger."""
        return self._folder / f"{hashlib.sha256(device.encode()).hexdigest()[:32]}.ledger"


def _chain_link(previous: str, row: object) -> str:
    """Hash a row together with the link before it."""
    return hashlib.sha256(json.dumps([previous, row], sort_keys=True).encode()).hexdigest()
