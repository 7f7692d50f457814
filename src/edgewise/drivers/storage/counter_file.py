"""The file that counts the frames of an enrolled device, ``HOME/ledgers/NAME.counter``.

It lies beside the privacy ledger. An owner who puts back the folder of the ledger puts back both. What the numbers are
for: ``drivers.http.frame_counter``.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from edgewise.core.errors import StoreError, TransportError
from edgewise.drivers.storage.files import FOLDER, sync_folder, write_durably

LEDGERS = "ledgers"  # folder of the privacy ledgers and of this file, in the home folder of a device
FIX = "`edgewise explain E-OLDER` says what to do."


class SentFrames(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of the file.

    Attributes:
        number: of the last frame. 0: none has left.
        digest: its SHA-256, in hexadecimal. None for number 0.
        remembered: the number of the frame that the server remembers instead. None where it remembers this one.
    """

    number: int = 0
    digest: str | None = None
    remembered: int | None = None


def path(home: Path, name: str) -> Path:
    """Return the path of the counter of an enrolment. ``name``: id of the device."""
    return home / LEDGERS / f"{name}.counter"


def earlier(home: Path, name: str) -> tuple[str, ...]:
    """Return the ids of the earlier enrolments of a home folder whose records were kept.

    Raises:
        TransportError: E-OLDER where one of them was stopped, because its privacy ledger lacks charges.
        StoreError: E-CHECKPOINT.
    """
    paths = sorted((home / LEDGERS).glob("*.counter"))
    for place in paths:
        if place.stem != name and load(place).remembered is not None:
            what = f"{place.parent} holds the privacy ledger of an earlier enrolment that lacks charges."
            fix = "set budget.epsilon to what may be spent beside all of the old limit, and delete that folder."
            raise TransportError("E-OLDER", what, fix)
    return tuple(place.stem for place in paths if place.stem != name)


def load(path: Path) -> SentFrames:
    """Load a counter. A device without a file has sent nothing.

    Raises:
        StoreError: E-CHECKPOINT.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=SentFrames)
    except FileNotFoundError:
        return SentFrames()
    except (OSError, msgspec.DecodeError) as e:
        what = f"the counter of this device's frames cannot be read ({path}): {e}."
        raise StoreError(
            "E-CHECKPOINT", what, "put the newest copy of the folder in its place, or join anew."
        ) from None


def save(path: Path, sent: SentFrames) -> None:
    """Replace a counter. It is on the disk when this returns. Raises StoreError(E-DISK)."""
    path.parent.mkdir(FOLDER, parents=True, exist_ok=True)
    write_durably(path, msgspec.json.encode(sent), owner_only=True)
    sync_folder(path.parent)


def older(sent: SentFrames) -> TransportError | None:
    """Make the error for a folder that is an older copy. None where the server has not said so."""
    if sent.remembered is None:
        return None
    what = (
        f"this device's folder is an older copy, or another copy of it is in use. The folder counts {sent.number} sent "
        f"frames, and the server remembers another frame with number {sent.remembered}."
    )
    return TransportError("E-OLDER", what, FIX)
