"""Personal models of devices, a file each: in the folder of a simulated run, or in the folder of a device's own state.

    FOLDER/personal/DEVICE.safetensors      DEVICE is a digest of the device's name

A file holds ``params`` (float32[d], the layout of the trained vector) and, as metadata, the device, the digest of the
federated model that it was made from, the method, and a SHA-256 of all these, which every reader checks. Only the owner
can read the files. No message names them, and nothing that answers a server reads them.

    model = personal_params(Path("runs/plays"), "HAMLET")       # None where the device has no personal model
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from edgewise.core.errors import StoreError
from edgewise.core.training import DeviceId
from edgewise.core.vector import Vector, to_bytes
from edgewise.drivers.storage import files

FOLDER_NAME = "personal"


@dataclass(frozen=True, slots=True)
class PersonalModel:
    """The personal model of a device.

    Attributes:
        device: the device.
        made_from: digest of the federated model's parameters that it was made from.
        method: ``personal.method`` of the recipe.
        params: float32[d], in the layout of the run's trained vector.
    """

    device: DeviceId
    made_from: str
    method: str
    params: Vector = field(repr=False)


def keep_personal(folder: Path, model: PersonalModel) -> Path:
    """Write a personal model under ``folder``, durably, for its owner only. Replaces an earlier one of the device.

    Raises:
        StoreError: E-DISK.
    """
    path = personal_path(folder, model.device)
    try:
        path.parent.mkdir(files.FOLDER, exist_ok=True)
    except OSError as e:
        raise StoreError("E-DISK", f"cannot make {path.parent}: {e.strerror}.", "free some space.") from None
    about = {"device": model.device, "made_from": model.made_from, "method": model.method}
    params = np.ascontiguousarray(model.params)
    kept = {"about": json.dumps(about)}
    raw = save({"params": params}, {**kept, "sha256": _digest(kept["about"], params)})
    files.write_durably(path, raw, owner_only=True)
    files.sync_folder(path.parent)
    return path


def personal_model(folder: Path, device: DeviceId) -> PersonalModel | None:
    """Read a device's personal model. None where it has none. Raises StoreError(E-CHECKPOINT) for a damaged file."""
    path = personal_path(folder, device)
    return _read_model(path) if path.is_file() else None


def personal_params(folder: Path, device: DeviceId) -> Vector | None:
    """Read the parameters of a device's personal model, float32[d]. None where it has none.

    Args:
        folder: the folder of a run, or of a device's own state.
    Raises:
        StoreError: E-CHECKPOINT for a damaged file.
    """
    model = personal_model(folder, device)
    return None if model is None else model.params


def personal_models(folder: Path) -> Iterator[PersonalModel]:
    """Iterate over all personal models under ``folder``. Raises StoreError(E-CHECKPOINT) for a damaged file."""
    for path in personal_files(folder):
        yield _read_model(path)


def personal_files(folder: Path) -> list[Path]:
    """List the files of personal models under ``folder``."""
    return sorted((folder / FOLDER_NAME).glob("*.safetensors"))


def personal_path(folder: Path, device: DeviceId) -> Path:
    """Name the file of a device's personal model."""
    return folder / FOLDER_NAME / f"{hashlib.sha256(device.encode()).hexdigest()[:32]}.safetensors"


def _digest(about: str, params: Vector) -> str:
    """Compute the SHA-256 of a personal model and of what is known of it, in hexadecimal."""
    text = about.encode()
    made = hashlib.sha256(len(text).to_bytes(8, "big") + text)
    made.update(to_bytes(params))
    return made.hexdigest()


def _read_model(path: Path) -> PersonalModel:
    """Read a personal model and what is known of it. None where the file is not one."""
    try:
        with safe_open(path, "numpy") as file:
            kept = file.metadata()
            about = json.loads(kept["about"])
            params = file.get_tensor("params")
        if params.dtype != np.float32 or params.ndim != 1:
            raise ValueError("no vector float32[d]")
        if kept["sha256"] != _digest(kept["about"], params):
            raise ValueError("other bytes than were written")
        return PersonalModel(about["device"], about["made_from"], about["method"], params)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
        what = f"the personal model {path} cannot be read ({type(e).__name__})."
        raise StoreError("E-CHECKPOINT", what, "delete the file, and make the model again.") from None
