"""Find the files that ``data.path`` names.

Some files are never data. These are hidden files and folders, pipes, sockets and devices, and the files of edgewise
itself: recipes, folders of runs and audits, and model folders. All of them are counted (``Listing.left_out``).
"""

from __future__ import annotations

import glob
import os
import stat
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edgewise.core.errors import DataError
from edgewise.core.foreign import foreign, reason

HIDDEN = "hidden"
SPECIAL = "pipes, sockets or devices"
TWICE = "links in a circle, or to a folder that is read already"
OWN = "recipes, runs or models of edgewise"
OTHER = "files of another kind"
EMPTY = "empty files"
UNREADABLE = "files that cannot be read"
NOT_TEXT = "files that are not text"

LONGEST_RECIPE = 1 << 20  # Bytes. A longer .toml file is somebody's text.


@dataclass
class DataListing:
    """The listing of files and folders as data. ``left_out`` counts those that are not data, by reason."""

    left_out: Counter[str] = field(default_factory=Counter)

    def below(self, folder: Path) -> Iterator[Path]:
        """Iterate over the files below ``folder`` in the order of their names.

        Links are followed, except those to a folder around ``folder`` or to one that was read already. A link that
        leads nowhere counts as a file, which cannot be read. Raises OSError for a folder that cannot be read.
        """
        return self._walk_folder(folder, {_folder_identity(p) for p in folder.resolve().parents})

    def _walk_folder(self, folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
        """Walk a folder, and each folder once that several links lead to."""
        identity = _folder_identity(folder)
        if identity in seen:
            self.left_out[TWICE] += 1
            return
        seen.add(identity)
        for path, is_folder in self.entries(folder):
            if is_folder:
                yield from self._walk_folder(path, seen)
            else:
                yield path

    def entries(self, folder: Path) -> list[tuple[Path, bool]]:
        """List the entries of ``folder`` that may be data, by name: (path, True for a folder)."""
        found = []
        with os.scandir(folder) as listed:
            names = sorted(entry.name for entry in listed)
        for name in names:
            path = folder / name
            if name.startswith("."):
                self.left_out[HIDDEN] += 1
                continue
            kind = kind_of_data_path(path)
            if kind == "special":
                self.left_out[SPECIAL] += 1
            elif is_own(path, kind):
                self.left_out[OWN] += 1
            else:
                found.append((path, kind == "folder"))
        return found


def _folder_identity(folder: Path) -> tuple[int, int]:
    """Identify a folder by its device and number, whatever its name."""
    at = folder.stat()
    return at.st_dev, at.st_ino


def kind_of_data_path(path: Path) -> str:
    """Return ``"folder"``, ``"file"``, ``"special"``, or ``"lost"`` for a link that leads nowhere. Follows links."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "lost"
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "special"


def is_own(path: Path, kind: str) -> bool:
    """Tell whether a path is edgewise's own: a recipe, or the folder of a run, an audit or a model."""
    if kind == "file":
        return path.suffix == ".toml" and _is_recipe(path)
    if kind != "folder":
        return False
    try:
        names = set(os.listdir(path))
    except OSError:
        return False
    model = names & {"config.json", "adapter_config.json"} and any(n.endswith(".safetensors") for n in names)
    return bool(names & {"edgewise.json", "run.db"} or {"audit.json", "audit.html"} <= names or model)


def _is_recipe(path: Path) -> bool:
    try:
        if path.stat().st_size > LONGEST_RECIPE:
            return False
        plain = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return {"schema", "privacy"} <= plain.keys()


def named_data_paths(
    path: str | Sequence[str], recipe_dir: Path, begins: str = "the folder of the recipe"
) -> tuple[list[Path], bool]:
    """Return the paths that ``data.path`` names, and True where it may name several (a list or a pattern).

    A text with ``*``, ``?`` or ``[`` is a pattern, unless a file or folder has that very name. ``**`` matches folders
    of any depth. Matches come in the order of their names, each once. A pattern never matches edgewise's own files.

    Args:
        begins: description of ``recipe_dir`` for messages.
    Raises:
        DataError: E-DATA-MISSING where there is no such file or folder, or nothing matches.
    """
    folder = recipe_dir.absolute()
    fix = f"write the path from {folder}, {begins}, or from the root."
    several = not isinstance(path, str)
    found: dict[Path, None] = {}
    for one in path if several else [path]:
        with foreign(DataError, "E-DATA-MISSING", f"data.path = {one!r}", "check the path."):
            at = (recipe_dir / Path(one).expanduser()).absolute()
            exists, pattern = os.path.lexists(at), glob.has_magic(one)
            matches = [at] if exists or not pattern else _pattern_matches(one, recipe_dir.absolute())
        if not exists and not pattern:
            raise DataError("E-DATA-MISSING", f"data.path = {one!r}: there is no {at}.", fix)
        if not exists:
            several = True
        if not matches:
            raise DataError("E-DATA-MISSING", f"data.path = {one!r}: nothing matches {at}.", fix)
        found.update(dict.fromkeys(matches))
    return list(found), several


def _pattern_matches(pattern: str, base: Path) -> list[Path]:
    """Return the matches of a pattern by name, without edgewise's own files and folders."""
    pattern = str(Path(pattern).expanduser())
    fixed = base / Path(pattern)
    while glob.has_magic(str(fixed.relative_to(base)) if fixed.is_relative_to(base) else str(fixed)):
        fixed = fixed.parent
    depth = len(fixed.parts)

    def own(path: Path) -> bool:
        around = (p for p in (path, *path.parents) if len(p.parts) > depth)
        return any(is_own(p, kind_of_data_path(p)) for p in around)

    found = sorted(base / match for match in glob.glob(pattern, root_dir=base, recursive=True))
    return [path for path in found if not own(path)]


def printable_file_name(name: str) -> str:
    r"""Return a file's name as text, the same on every machine. Bytes that are not UTF-8 become ``\xe9``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def unreadable_reason(e: OSError | DataError) -> str:
    """Return in few words the reason that a file cannot be read."""
    return e.what if isinstance(e, DataError) else reason(e)
