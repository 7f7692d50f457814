"""Where the documents of a data source are: byte ranges of files, without any text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.core.vector import Array


@dataclass(frozen=True)
class DocumentIndex:
    """``m`` documents in time order: document i is bytes ``start[i]:stop[i]`` of ``files[file[i]]``.

    ``owner`` and ``label`` are codes into ``owners`` (sorted names) and of the label column (None where there is none).
    ``rows`` says that a document is a line of JSON with the columns of the recipe, else it is plain text. ``ends[i]``
    says that document i is the end of its text, not a piece from its middle. ``broken``: number of a file -> why it
    cannot be read; its document is one byte that is not there. ``left_out``: reason -> how many files, and
    ``rows_left_out`` -> how many rows are no data.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]  # of the files, for messages and fingerprints, the same on every machine
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
