"""Find the documents of each data source as byte ranges of files. It stores no text.

Bytes that are not UTF-8 become U+FFFD in text files (people's notes, old source code), because one stray byte must not
lock a device out. The report counts them. In a table they are an error with the line, because a table is an export, and
a bad byte there means that the export is wrong.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import msgspec
import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.training import POOLED
from edgewise.learn.text import containers, packed, tables
from edgewise.learn.text.cache import write_atomically
from edgewise.learn.text.documents import DocumentIndex
from edgewise.learn.text.files import (
    EMPTY,
    NOT_TEXT,
    UNREADABLE,
    DataListing,
    kind_of_data_path,
    named_data_paths,
    printable_file_name,
)
from edgewise.plan.recipe.data import OWN, WHOLE, DataSection

STDLIB_PACKAGES = (
    "asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib", "json", "logging",
    "multiprocessing", "re", "unittest", "urllib", "wsgiref", "xml", "xmlrpc",
)  # fmt: skip
STDLIB_LEAST_BYTES = 8192  # A package with less source than this (about 2,400 tokens) is not a device.
TEST_FOLDERS = {"test", "tests", "idle_test", "__pycache__"}
PLAYS = {"source": "jsonl", "owner": "speaker", "text": "text"}  # The plays as a table.
YEARS = {  # By tradition the plays of these characters were first played then.
    1591: ("WARWICK", "KING EDWARD IV", "KING HENRY VI"),
    1592: ("TRANIO",),
    1593: ("KING RICHARD III", "BUCKINGHAM", "QUEEN ELIZABETH"),
    1595: ("HENRY BOLINGBROKE", "DUKE OF YORK", "FRIAR LAURENCE", "CAPULET", "MERCUTIO", "Nurse"),
    1604: ("ISABELLA", "ANGELO", "LUCIO"),
    1608: ("VOLUMNIA", "AUFIDIUS", "COMINIUS"),
    1610: ("PAULINA", "AUTOLYCUS", "CAMILLO", "POLIXENES"),
    1611: ("PROSPERO",),
}
PIECE_BYTES = 2048  # Pieces of files ("dirichlet", "iid") have at least so many bytes, in whole lines.


def find_documents(section: DataSection, recipe_dir: Path, cache_dir: Path) -> DocumentIndex:
    """Find the documents of a data section.

    Args:
        recipe_dir: the folder where relative paths start.
        cache_dir: folder for unpacked and normalised copies.
    Raises:
        DataError: E-DATA-MISSING, E-DATA-FORMAT, E-DATA-COLUMN, E-DATA-EMPTY.
    """
    whole = section.partition in WHOLE
    listing = DataListing()
    if section.source == OWN:
        what = 'data.source = "own" is for enrolled devices, each of which reads the text that its owner names.'
        raise DataError("E-DATA-MISSING", what, "name data of this machine, or submit the recipe to a server.")
    if section.source == "python-stdlib":
        return _plain_documents(*_stdlib_documents(), whole, cache_dir, listing)
    if section.source in ("plays", "plays-public"):
        path = _dated_plays(cache_dir) if section.stream else shipped_plays(section.source)
        times = {"time": "year"} if section.stream else {}
        section, paths, several = section.model_copy(update={**PLAYS, **times}), [path], False
    else:
        paths, several = named_data_paths(section.path, recipe_dir)
    try:
        if section.source == "text":
            return _plain_documents(*_text_files(paths, several, listing), whole, cache_dir, listing)
        return tables.find_table_documents(section, paths, cache_dir, listing)
    except OSError as e:
        what = f"{e.filename or paths[0]} cannot be read: {e.strerror or e}."
        raise DataError("E-DATA-MISSING", what, "give permission, or take it out of data.path.") from None


def _stdlib_documents() -> tuple[Path, dict[str, list[Path]]]:
    """Find the source files of Python's standard library. A package is a device."""
    root = Path(sysconfig.get_path("stdlib"))
    owners = {name: sorted(_python_files(root / name)) for name in STDLIB_PACKAGES}
    owners = {n: f for n, f in owners.items() if sum(p.stat().st_size for p in f) >= STDLIB_LEAST_BYTES}
    if len(owners) < 2:
        what = f"{root} has source text of {len(owners)} of the {len(STDLIB_PACKAGES)} demo packages, needs 2."
        raise DataError("E-DATA-EMPTY", what, "use a Python with its library's source, or your own text.")
    return root, owners


def shipped_plays(source: str = "plays") -> Path:
    """Return the path of the demo's text or of the public text, which ship with edgewise (``assets/plays``)."""
    name = {"plays": "plays.jsonl.gz", "plays-public": "public.jsonl.gz"}[source]
    return Path(str(resources.files("edgewise"))) / "assets" / "plays" / name


def _dated_plays(cache_dir: Path) -> Path:
    """Write the demo's text with the year of each speech's play into the cache, and return its path."""
    years = {speaker: year for year, speakers in YEARS.items() for speaker in speakers}
    target = cache_dir / "tables" / "plays-by-year.jsonl"
    if not target.is_file():
        rows = (msgspec.json.decode(line) for line in packed.lines(shipped_plays()))
        lines = [msgspec.json.encode({**row, "year": years[row["speaker"]]}) + b"\n" for row in rows]
        write_atomically(target, lambda f: f.writelines(lines))
    return target


def _python_files(folder: Path) -> Iterator[Path]:
    """Iterate over Python source below a folder, without hidden files and tests."""

    def unreadable(e: OSError) -> None:
        raise e

    for at, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in TEST_FOLDERS]
        yield from (Path(at, n) for n in names if not n.startswith(".") and n.endswith(".py"))


def _text_files(paths: list[Path], several: bool, listing: DataListing) -> tuple[Path, dict[str, list[Path]]]:
    """Return the root, and the files of each device.

    In a folder, each sub-folder and each file is a device. Each of several paths is a device too. A single file is one
    device, named without its ending.

    Raises:
        DataError: E-DATA-FORMAT where two devices would have one name.
    """
    if several:
        root = Path(os.path.commonpath([p.parent for p in paths]))
        entries = [(p, kind_of_data_path(p) == "folder") for p in paths]
    elif kind_of_data_path(paths[0]) == "folder":
        root, entries = paths[0], listing.entries(paths[0])
    elif kind_of_data_path(paths[0]) == "special":
        raise DataError("E-DATA-MISSING", f"{paths[0]} is neither a file nor a folder.", "check data.path.")
    else:
        root, entries = paths[0].parent, [(paths[0], False)]
    single = len(entries) == 1 and entries[0][0] == paths[0]
    devices: dict[str, list[Path]] = {}
    for path, is_folder in entries:
        before = sum(listing.left_out.values())
        files = list(listing.below(path)) if is_folder else [path]
        if not files and sum(listing.left_out.values()) > before:
            continue  # A folder with nothing but runs, or the like, is not a device.
        name = printable_file_name(path.stem if single and not several else path.name)
        if name in devices or name == POOLED:
            what = f"{root}: two devices are called {name!r}." if name in devices else f"{path}: the name is reserved."
            raise DataError("E-DATA-FORMAT", what, "rename one of the folders or files.")
        devices[name] = files
    return root, devices


def _plain_documents(
    root: Path, by_owner: dict[str, list[Path]], whole: bool, cache_dir: Path, listing: DataListing
) -> DocumentIndex:
    """Find the documents of plain files, in pieces of bounded size."""
    owners = tuple(sorted(by_owner))
    listed = [(path, code) for code, name in enumerate(owners) for path in by_owner[name]]
    files, broken, pieces = [], {}, []
    for path, code in listed:
        try:
            file = packed.unpacked_text(path, cache_dir)
            size = file.stat().st_size
            if not whole and _is_container(file):  # A whole file's own device would refuse it. Pieces have none.
                listing.left_out[NOT_TEXT] += 1
                continue
            cuts = [(0, size)] if whole else list(_file_pieces(file))
        except (OSError, DataError) as e:
            listing.left_out[UNREADABLE] += 1
            if not whole:
                continue  # The file would go to a random device.
            broken[len(files)] = (
                e.what if isinstance(e, DataError) else f"{printable_file_name(str(path))}: {e.strerror or e}."
            )
            file, size, cuts = path, 1, [(0, 1)]
        pieces += [(len(files), start, stop, code, stop == size) for start, stop in cuts if stop > start]
        files.append((file, path))
        listing.left_out[EMPTY] += not size
    if not pieces:
        reasons = "".join(f"; {n} {reason}" for reason, n in listing.left_out.items() if n)
        raise DataError(
            "E-DATA-EMPTY", f"no text in {root}{reasons}.", "put text files there, one sub-folder per device."
        )
    number, start, stop, owner, ends = np.array(pieces, np.int64).T
    return DocumentIndex(
        files=tuple(file for file, _ in files),
        names=tuple(printable_file_name(path.relative_to(root).as_posix()) for _, path in files),
        file=number.astype(np.int32),
        start=start,
        stop=stop,
        owners=owners,
        owner=owner.astype(np.int32),
        label=None,
        rows=False,
        ends=ends.astype(bool),
        broken=broken,
        left_out=listing.left_out,
    )


def _is_container(path: Path) -> bool:
    try:
        containers.refuse_container_file(path, path.name)
    except DataError:
        return True
    return False


def _file_pieces(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of the pieces of a file, cut at line ends."""
    start = at = 0
    with path.open("rb") as f:
        for line in f:
            at += len(line)
            if at - start >= PIECE_BYTES:
                yield start, at
                start = at
    yield start, at
