"""The index of a data source's documents, as byte ranges of files. It holds no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.core.vector import Array


@dataclass(frozen=True)
class DocumentIndex:
    """The places of ``m`` documents in time order. Document i is bytes ``start[i]:stop[i]`` of ``files[file[i]]``.

    Attributes:
        files: paths of the files.
        names: names of the files for messages and fingerprints, the same on every machine.
        file, start, stop: each document's file and bytes.
        owners: names of the owners, sorted.
        owner: each document's owner, as a code into ``owners``.
        label: each document's code of the label column. None without one.
        rows: True where a document is a line of JSON with the recipe's columns. False for plain text.
        ends: True for each document that is the end of its text, not a piece from its middle.
        broken: number of a file -> the reason that it cannot be read. Its document is one byte that does not exist.
        left_out: reason -> number of files that are not data.
        rows_left_out: reason -> number of rows that are not data.
        window: each document's window of time (``data.stream``). None without windows.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]
    file: Array
    start: Array
    stop: Array
    owners: tuple[str, ...]
    owner: Array
    label: Array | None
    rows: bool
    ends: Array
    broken: Mapping[int, str] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    rows_left_out: Mapping[str, int] = field(default_factory=dict)
    window: Array | None = field(default=None, repr=False)
