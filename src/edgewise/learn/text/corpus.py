"""The corpus of a run: an index of each device's documents. It holds places, not text; 10,000 devices take a few MB."""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.keys import Key
from edgewise.core.training import DeviceId
from edgewise.core.vector import Array
from edgewise.learn.text import containers, partition, sources, tables
from edgewise.learn.text.documents import DocumentIndex
from edgewise.plan.recipe.data import WHOLE, DataSection

LOG = logging.getLogger("edgewise")


class Document(NamedTuple):
    """A document of a device.

    Attributes:
        name: its place (``asyncio/base_events.py@0``, ``notes.jsonl@5120``).
        prompt: text that is read and not learnt. All messages of a chat (``chat.pack``).
        text: text that is learnt. The answers of a chat.
        replaced: number of bad bytes that ``text`` has as U+FFFD.
        ends: True where the text ends here. False for a piece that another document continues.
        window: number of its window of time (``data.stream``). None without windows.
    """

    name: str
    prompt: str
    text: str
    replaced: int = 0
    ends: bool = True
    window: int | None = None

    def __repr__(self) -> str:
        return (
            f"Document(name={self.name!r}, prompt=<{len(self.prompt)} characters>, text=<{len(self.text)} characters>)"
        )


@dataclass(frozen=True)
class Corpus:
    """Devices, and the places of their documents. ``documents`` reads one device's text in time order.

    Attributes:
        devices: names of the devices, sorted.
        cut_each: True takes the hold-out from the end of each document (files), False from the end of the device (rows
            of a table).
        lenient: True leaves out a document that cannot be read, and the others stay as they are. False lets its device
            refuse to train.
    """

    devices: tuple[DeviceId, ...]
    cut_each: bool
    _found: DocumentIndex
    _order: Array  # It lists documents by device, and by time within a device.
    _first: Array  # int64[n + 1]. Device i has _order[_first[i] : _first[i + 1]].
    _section: DataSection
    lenient: bool = False
    _digests: dict[DeviceId, str] = field(default_factory=dict, repr=False)
    _lost: dict[DeviceId, int] = field(default_factory=dict, repr=False)

    def of(self, device: DeviceId) -> Corpus:
        """Return the corpus with an enrolled device as the owner of all text (``partition = "whole"``)."""
        if len(self.devices) != 1:
            raise ValueError(f"a corpus of {len(self.devices)} devices is not that of one")
        return replace(self, devices=(device,))

    def documents(self, device: DeviceId, lost: list[Exception] | None = None) -> Iterator[Document]:
        """Read the text of one device, document by document.

        Args:
            lost: receives the errors of documents that ``lenient`` leaves out.
        Raises:
            DataError: E-DEVICE-DATA for an unknown device. Unless ``lenient``, also E-DEVICE-DATA for a file that is
                gone, and E-DATA-FORMAT for a binary file or a row without text.
        """
        i = bisect_left(self.devices, device)
        if i == len(self.devices) or self.devices[i] != device:
            raise DataError("E-DEVICE-DATA", f"no device {device!r:.60} in the data.", "see the list of devices.")
        found = self._found
        for number, places in groupby(self._order[self._first[i] : self._first[i + 1]], found.file.__getitem__):
            path = found.files[number]
            if number in found.broken:
                e = DataError("E-DEVICE-DATA", found.broken[number], "restore the file, or remove it.")
                self._left_out(e, lost)
                continue
            try:
                with path.open("rb") as f:
                    for d in places:
                        try:
                            f.seek(found.start[d])
                            raw = f.read(found.stop[d] - found.start[d])
                            document = self._document_at(f"{found.names[number]}@{found.start[d]}", raw, d)
                        except (DataError, OSError) as e:
                            self._left_out(e, lost)
                            continue
                        yield document
            except OSError as e:
                self._left_out(DataError("E-DEVICE-DATA", f"{path}: {e.strerror}.", "restore the file."), lost)

    def _left_out(self, e: DataError | OSError, lost: list[Exception] | None) -> None:
        if not self.lenient:
            raise e from None
        if lost is not None:
            lost.append(e)
        LOG.warning("a document cannot be read and is left out: %s", e)

    def _document_at(self, name: str, raw: bytes, at: int) -> Document:
        """Read one document from its place in a file."""
        if self._found.rows:
            row = tables.lifted_columns(self._section, tables.decode_table_row(raw, name))
            window = None if self._found.window is None else int(self._found.window[at])
            return Document(name, *tables.check_row_text(self._section, row, name), window=window)
        containers.refuse_text(name, raw, first=not self._found.start[at])
        if not self._found.start[at]:
            raw = raw.removeprefix(tables.BOM)
        text = raw.decode("utf-8", errors="replace")
        replaced = text.count("\ufffd") - raw.count("\ufffd".encode())
        return Document(name, "", text, replaced, bool(self._found.ends[at]))

    @property
    def found(self) -> dict[str, Any]:
        """The files and rows that were found before any text was read.

        ``files`` and ``rows`` (None for text) are {"read": number, "left_out": {reason: number}}. ``pieces`` is True
        where files are dealt out in pieces.
        """
        found = self._found
        files = {"read": len(found.files) - len(found.broken), "left_out": _found_counts(found.left_out)}
        rows = {"read": len(found.start), "left_out": _found_counts(found.rows_left_out)} if found.rows else None
        return {"files": files, "rows": rows, "pieces": not found.rows and self._section.partition not in WHOLE}

    def digest(self, device: DeviceId) -> str:
        """Return the SHA-256 of names, lengths and contents of a device's documents. The result is remembered."""
        if device not in self._digests:
            h, lost = hashlib.sha256(), []
            for document in self.documents(device, lost):
                for part in document[:3]:
                    raw = part.encode("utf-8", errors="surrogatepass")
                    h.update(len(raw).to_bytes(8, "little") + raw)
                if not document.ends:
                    h.update(b"a piece")
                if document.window is not None:
                    h.update(b"window" + document.window.to_bytes(8, "little"))
            self._digests[device], self._lost[device] = h.hexdigest(), len(lost)
        return self._digests[device]

    @property
    def last_window(self) -> int | None:
        """The number of the last window of time that has text of any device. None without windows."""
        return None if self._found.window is None else int(self._found.window.max(initial=0))

    def lost(self, device: DeviceId) -> int:
        """Count a device's documents that are left out as unreadable; 0 unless ``lenient``. Raises as ``documents``."""
        self.digest(device)
        return self._lost[device]

    @property
    def size_bytes(self) -> int:
        """The bytes of all documents in their files. Rows count with all the columns that the recipe needs."""
        return int((self._found.stop - self._found.start).sum())

    def fingerprint(self) -> str:
        """Return the SHA-256 of all devices' names and digests, which identifies the text of a run. It reads all text.

        A device with unreadable text counts with the error's code. It will refuse to train, and the run continues.
        """
        h = hashlib.sha256()
        for device in self.devices:
            try:
                digest = self.digest(device)
            except DataError as e:
                digest = e.code
            h.update(f"{len(device)} {device} {digest}\n".encode())
        return h.hexdigest()


def _found_counts(found: Mapping[str, int]) -> dict[str, int]:
    """Sort the reasons, and leave out those that were not met."""
    return {reason: n for reason, n in sorted(found.items()) if n}


def load(section: DataSection, recipe_dir: Path, cache_dir: Path, key: Key, lenient: bool = False) -> Corpus:
    """Find the documents of a data section, share them out to devices, and index them.

    Args:
        recipe_dir: the folder where relative paths start.
        cache_dir: folder for normalised copies of CSV and Parquet files.
        key: decides the partition.
        lenient: as in ``Corpus``.
    Raises:
        DataError: E-DATA-MISSING, E-DATA-FORMAT, E-DATA-COLUMN, E-DATA-EMPTY. A device with too little text is not an
            error here. It refuses when it is asked to train.
    """
    found = sources.find_documents(section, recipe_dir, cache_dir)
    if not (found.stop - found.start > 1).any():
        raise DataError("E-DATA-EMPTY", "no document has two characters.", "give devices some text.")
    names, device = partition.assign_documents(found, section, key)
    order = np.argsort(device, kind="stable")
    first = np.searchsorted(device[order], np.arange(len(names) + 1))
    cut_each = not found.rows
    return Corpus(names, cut_each, found, order.astype(np.int32), first, section, lenient)
