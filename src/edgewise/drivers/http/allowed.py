"""The devices whose reports a gateway counts: a file of ids, one a line, written by the gateway's operator.

An id is the fingerprint of a device's key, so the file is the whole registry. The server supplies the keys and
can neither change nor add one. The file is read again when it changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgewise.core.errors import TransportError
from edgewise.drivers.storage.files import write_durably

NAME = "devices.txt"
_ID = re.compile(r"[0-9a-f]{32}")


class Allowed:
    """The list of devices in ``folder``.

    Raises:
        TransportError: E-IDENTITY for a line that is no id.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._read: tuple[int, int] | None = None
        self._ids: frozenset[str] = frozenset()
        self.ids()

    def ids(self) -> frozenset[str]:
        """Return the ids in the file, as it is now. None where there is no file."""
        try:
            state = self._path.stat()
        except FileNotFoundError:
            return frozenset()
        if (stamp := (state.st_mtime_ns, state.st_size)) != self._read:
            lines = self._path.read_text(encoding="ascii", errors="replace").split("\n")
            named = [line.partition("#")[0].strip() for line in lines]
            for number, id in enumerate(named, 1):
                if id and not _ID.fullmatch(id):
                    what = f"line {number} of {self._path} is not the id of a device: {id:.40}."
                    raise TransportError("E-IDENTITY", what, "write one id of 32 hexadecimal digits a line.")
            self._ids, self._read = frozenset(filter(None, named)), stamp
        return self._ids

    def add(self, ids: Iterable[str]) -> None:
        """Add ids at the end of the file."""
        known = self.ids()
        old = self._path.read_text(encoding="ascii") if self._path.exists() else ""
        new = [id for id in dict.fromkeys(ids) if id not in known]
        write_durably(self._path, (old + "".join(f"{id}\n" for id in new)).encode(), owner_only=True)
