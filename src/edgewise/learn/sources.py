"""Where text comes from: each source finds its documents as byte ranges of files, without keeping any text.

Non-UTF-8 bytes: in text files (people's notes, old source code) each bad byte becomes U+FFFD, because one stray byte
must not lock a device out; in a table they are an error with the line, because a table is an export and a bad byte
there means that the export is wrong.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.foreign import foreign
from edgewise.core.vector import Array
from edgewise.plan.recipe import DataSection

STDLIB_PACKAGES = (
    "asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib", "json", "logging",
    "multiprocessing", "re", "unittest", "urllib", "wsgiref", "xml", "xmlrpc",
)  # fmt: skip
STDLIB_LEAST_BYTES = 8192  # a package with less source than this (about 2,400 tokens) is not a device
TEST_FOLDERS = {"test", "tests", "idle_test", "__pycache__"}
PIECE_BYTES = 2048  # where files are dealt out to devices in pieces ("dirichlet", "iid"): at least this, whole lines


@dataclass(frozen=True)
class Found:
    """``m`` documents in time order: document i is bytes ``start[i]:stop[i]`` of
    ``files[file[i]]``.

    ``owner`` and ``label`` are codes into ``owners`` (sorted names) and of the label column (None where there is none).
    ``rows`` says that a document is a line of JSON with the columns of the recipe, else it is plain text.
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


def find(section: DataSection, recipe_dir: Path, cache_dir: Path) -> Found:
    """The documents of a data section.

    Raises:
        DataError: E-DATA-MISSING, E-DATA-FORMAT, E-DATA-COLUMN, E-DATA-EMPTY.
    """
    if section.source == "python-stdlib":
        return _plain(*_stdlib(), whole=section.partition == "owner")
    with foreign(DataError, "E-DATA-MISSING", f"data.path = {section.path!r}", "check the path."):
        path = (recipe_dir / Path(section.path).expanduser()).resolve()
        found = path.exists()
    if not found:
        raise DataError("E-DATA-MISSING", f"data.path = {section.path!r}: there is no {path}.", "check the path.")
    try:
        if section.source == "text":
            return _plain(*_folder(path), whole=section.partition == "owner")
        from edgewise.learn import tables

        return tables.find(section, path, cache_dir)
    except OSError as e:
        what = f"{e.filename or path} cannot be read: {e.strerror or e}."
        raise DataError("E-DATA-MISSING", what, "give permission, or take it out of data.path.") from None


def _stdlib() -> tuple[Path, dict[str, list[Path]]]:
    root = Path(sysconfig.get_path("stdlib"))
    owners = {name: sorted(_files(root / name, ".py")) for name in STDLIB_PACKAGES}
    owners = {n: f for n, f in owners.items() if sum(p.stat().st_size for p in f) >= STDLIB_LEAST_BYTES}
    if len(owners) < 2:
        what = f"{root} has source text of {len(owners)} of the {len(STDLIB_PACKAGES)} demo packages, needs 2."
        raise DataError("E-DATA-EMPTY", what, "use a Python with its library's source, or your own text.")
    return root, owners


def _folder(path: Path) -> tuple[Path, dict[str, list[Path]]]:
    """Sub-folders are devices; without any, files are; a single file is one device."""
    if path.is_file():
        return path.parent, {path.stem: [path]}
    folders = sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if folders:
        return path, {p.name: sorted(_files(p)) for p in folders}
    return path, {p.name: [p] for p in sorted(_files(path))}


def _files(folder: Path, suffix: str = "") -> Iterator[Path]:
    """Regular files below, without hidden ones; ``suffix`` limits to source files outside of tests."""

    def unreadable(e: OSError) -> None:
        raise e

    for at, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [f for f in folders if not f.startswith(".") and not (suffix and f in TEST_FOLDERS)]
        yield from (Path(at, n) for n in names if not n.startswith(".") and n.endswith(suffix))


def _plain(root: Path, by_owner: dict[str, list[Path]], whole: bool) -> Found:
    owners = tuple(sorted(by_owner))
    files = [(path, code) for code, name in enumerate(owners) for path in by_owner[name]]
    pieces = [
        (number, start, stop, code)
        for number, (path, code) in enumerate(files)
        for start, stop in ([(0, path.stat().st_size)] if whole else _pieces(path))
        if stop > start
    ]
    if not pieces:
        raise DataError("E-DATA-EMPTY", f"no text in {root}.", "put text files there, one sub-folder per device.")
    file, start, stop, owner = np.array(pieces, np.int64).T
    paths = tuple(p for p, _ in files)
    names = tuple(p.relative_to(root).as_posix() for p in paths)
    return Found(paths, names, file.astype(np.int32), start, stop, owners, owner.astype(np.int32), None, rows=False)


def _pieces(path: Path) -> Iterator[tuple[int, int]]:
    start = at = 0
    with path.open("rb") as f:
        for line in f:
            at += len(line)
            if at - start >= PIECE_BYTES:
                yield start, at
                start = at
    yield start, at
