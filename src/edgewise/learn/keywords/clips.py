"""Read the clips of keywords from a file of spectrograms, and share them out to the public set, devices and the test.

    clips = read(Path("logmel_u8.npz"))
    shared = dealt(clips, recipe.keywords, key)       # public clips, each device's clips, and the test

Two forms of file (numpy ``npz``, without pickles):

- one array for each keyword, its name the keyword: [clips, frames, bands]. The seed decides who holds which clip.
- ``x`` [n, frames, bands], ``keyword`` [n] and ``owner`` [n] as text, and optionally ``test`` [n] as bool. A clip with
  an empty owner is public.

Values are log powers, or bytes b that stand for the log power b / 255 x 22 - 14.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.core.errors import DataError
from edgewise.core.foreign import foreign
from edgewise.core.keys import Key, derive, generator
from edgewise.core.safe_repr import outline
from edgewise.core.training import POOLED, DeviceId
from edgewise.core.vector import Array
from edgewise.plan.recipe.keywords import KeywordsSection

LOWEST, RANGE = -14.0, 22.0  # log power of byte 0, and the distance to that of byte 255
MOST_VALUES = 1 << 31  # values of a file's spectrograms
_COLUMNS = ("x", "keyword", "owner", "test")
_FIX = "write it in one of the two forms of `edgewise explain keywords`."


@dataclass(frozen=True, eq=False)
class Clips:
    """Spectrograms of spoken keywords.

    Attributes:
        names: the keywords, sorted.
        x: [n, frames, bands], log powers as uint8 or float32.
        label: int64[n], places in ``names``.
        owner: who holds each clip, "" = public. None where the seed decides.
        test: bool[n], the clips of the test. None where the seed decides.
    """

    names: tuple[str, ...]
    x: Array
    label: Array
    owner: Array | None = None
    test: Array | None = None

    __repr__ = outline

    def of(self, rows: Array) -> Clips:
        """Return the clips of some rows, without owners."""
        return Clips(self.names, self.x[rows], self.label[rows])

    def powers(self) -> Array:
        """Return the log powers, float32[n, frames, bands]."""
        if self.x.dtype != np.uint8:
            return self.x.astype(np.float32)
        return self.x.astype(np.float32) * np.float32(RANGE / 255.0) + np.float32(LOWEST)

    def fingerprint(self) -> str:
        """Return the SHA-256 of all clips, labels, owners and marks of the test."""
        digest = hashlib.sha256(repr((self.names, self.x.shape, self.x.dtype.str)).encode())
        for part in (self.x, self.label, self.owner, self.test):
            digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class DealtClips:
    """Clips by their holder: the public ones, those of each device, and those of the test. Any may be empty."""

    public: Clips
    devices: Mapping[DeviceId, Clips]
    test: Clips

    __repr__ = outline


def read(path: Path, words: Sequence[str] = ()) -> Clips:
    """Read a file of clips.

    Args:
        words: the keywords that a model scores, in order. The file may have clips of some of them. Empty: those of the
            file, sorted.
    Raises:
        DataError: E-DATA-MISSING where there is no such file, E-DATA-FORMAT for any other content than the module
            describes, or for a keyword that is not among ``words``; E-DATA-EMPTY for fewer than two keywords.
    """
    if not path.is_file():
        raise DataError("E-DATA-MISSING", f"there is no file {path}.", "check data.path.")
    with (
        foreign(DataError, "E-DATA-FORMAT", str(path), _FIX),
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as opened,
    ):
        arrays = {name: np.asarray(opened[name]) for name in opened.files}
    owned = "x" in arrays and "keyword" in arrays
    clips = _owned(arrays, path) if owned else _by_keyword(arrays, path)
    if words:
        clips = _named(clips, words, path)
    elif len(clips.names) < 2:
        what = f"{path} has {len(clips.names)} keyword, and a keyword is told from others."
        raise DataError("E-DATA-EMPTY", what, "add clips of other words.")
    if clips.x.dtype != np.uint8 and not np.isfinite(clips.x).all():
        raise DataError("E-DATA-FORMAT", f"{path} has values that are not finite.", _FIX)
    return clips


def _named(clips: Clips, words: Sequence[str], path: Path) -> Clips:
    """Number the keywords as a model does."""
    if strange := sorted(set(clips.names) - set(words)):
        what = f"{path} has clips of {strange[0]!r:.60}, which the model does not score: {', '.join(words):.200}."
        raise DataError("E-DATA-FORMAT", what, "leave them out, or name them as the model does.")
    place = np.array([words.index(name) for name in clips.names], np.int64)
    return replace(clips, names=tuple(words), label=place[clips.label])


def _by_keyword(arrays: Mapping[str, Array], path: Path) -> Clips:
    """Make clips of one array for each keyword."""
    if strange := sorted(set(arrays) & set(_COLUMNS)):
        what = f"{path} has {strange[0]!r}, and a file with owners has x, keyword and owner."
        raise DataError("E-DATA-FORMAT", what, _FIX)
    names = tuple(sorted(arrays))
    for name in names:
        _check_spectrograms(arrays[name], f"{path}: {name!r:.60}")
    if len({arrays[name].shape[1:] for name in names} | {arrays[name].dtype for name in names}) > 2:
        what = f"{path}: its keywords have clips of different shapes or types of number."
        raise DataError("E-DATA-FORMAT", what, _FIX)
    label = np.repeat(np.arange(len(names)), [len(arrays[name]) for name in names])
    return Clips(names, np.concatenate([arrays[name] for name in names]) if names else np.zeros((0, 1, 1)), label)


def _owned(arrays: Mapping[str, Array], path: Path) -> Clips:
    """Make clips of rows with keywords and owners."""
    x, n = arrays["x"], len(arrays["x"])
    _check_spectrograms(x, f"{path}: 'x'")
    for name, kinds in (("keyword", "U"), ("owner", "U"), ("test", "b")):
        given = arrays.get(name)
        if given is None and name == "test":
            continue
        if given is None or given.dtype.kind not in kinds or given.shape != (n,):
            kind = "text" if kinds == "U" else "bool"
            raise DataError("E-DATA-FORMAT", f"{path}: {name!r} is not {kind}[{n}].", _FIX)
    names, label = np.unique(arrays["keyword"], return_inverse=True)
    return Clips(
        tuple(map(str, names)), x, label.astype(np.int64), arrays["owner"], arrays.get("test", np.zeros(n, bool))
    )


def _check_spectrograms(x: Any, where: str) -> None:
    """Refuse what is no array of spectrograms. Raises DataError(E-DATA-FORMAT)."""
    if x.ndim != 3 or 0 in x.shape or x.dtype not in (np.uint8, np.float32, np.float16, np.float64):
        what = f"{where} is {x.dtype}{list(x.shape)}, not bytes or floats [clips, frames, bands]."
        raise DataError("E-DATA-FORMAT", what, _FIX)
    if x.size > MOST_VALUES:
        raise DataError("E-DATA-FORMAT", f"{where} has {x.size:,} values, the most are {MOST_VALUES:,}.", _FIX)


def dealt(clips: Clips, section: KeywordsSection, key: Key) -> DealtClips:
    """Share out clips to the public set, devices and the test.

    Without owners, each keyword's clips are permuted by the key. The first ``section.test`` are for the test, the next
    ``section.public`` are public, and each device holds the next ``section.clips`` of one keyword. Clips that are left
    over are not used.

    Raises:
        DataError: E-DATA-EMPTY where public clips, a device or a keyword's test would have none.
    """
    if clips.owner is None:
        clips = _with_owners(clips, section, key)
    assert clips.owner is not None
    assert clips.test is not None
    rows = np.arange(len(clips.label))
    public = clips.of(rows[(clips.owner == "") & ~clips.test])
    test = clips.of(rows[clips.test])
    held = {str(d): rows[(clips.owner == d) & ~clips.test] for d in np.unique(clips.owner) if d}
    devices = {device: clips.of(found) for device, found in held.items() if len(found)}
    if POOLED in devices:
        raise DataError("E-DATA-FORMAT", f"no device is called {POOLED!r}.", "give it another name.")
    lacking = {"public clips": len(public.label), "clips of a device": len(devices)}
    tested = np.bincount(test.label, minlength=len(clips.names))
    lacking |= {f"clips of {name!r:.60} for the test": int(n) for name, n in zip(clips.names, tested, strict=True)}
    if empty := [what for what, n in lacking.items() if not n]:
        fix = "give more clips, or lower keywords.test, keywords.public and keywords.clips."
        raise DataError("E-DATA-EMPTY", f"there are no {empty[0]}.", fix)
    return DealtClips(public, devices, test)


def of_one(clips: Clips, device: DeviceId) -> DealtClips:
    """Take the clips of an enrolled device from its own file.

    All clips with an owner are its own, whatever the owner is called. Without owners, all are.

    Raises:
        DataError: E-DATA-EMPTY where it has none to train on.
    """
    n = len(clips.label)
    test = np.zeros(n, bool) if clips.test is None else clips.test
    public = np.zeros(n, bool) if clips.owner is None else (clips.owner == "") & ~test
    own = clips.of(np.flatnonzero(~public & ~test))
    if not len(own.label):
        raise DataError("E-DATA-EMPTY", "the file has no clips of this device.", "give clips with an owner.")
    return DealtClips(clips.of(np.flatnonzero(public)), {device: own}, clips.of(np.flatnonzero(test)))


def public_of(clips: Clips, section: KeywordsSection, key: Key) -> DealtClips:
    """Take the public clips alone, as ``dealt`` deals them. Raises DataError(E-DATA-EMPTY) without any."""
    if clips.owner is None:
        clips = _with_owners(clips, section, key)
    assert clips.owner is not None
    assert clips.test is not None
    public = clips.of(np.flatnonzero((clips.owner == "") & ~clips.test))
    if not len(public.label):
        raise DataError("E-DATA-EMPTY", "the file has no public clips.", "leave the owner of some clips empty.")
    nothing = clips.of(np.zeros(0, np.int64))
    return DealtClips(public, {}, nothing)


def _with_owners(clips: Clips, section: KeywordsSection, key: Key) -> Clips:
    """Let the key decide who holds which clip. Clips that are left over are left out."""
    owner: dict[int, str] = {}
    test = np.zeros(len(clips.label), bool)
    for number, name in enumerate(clips.names):
        rows = generator(derive(key, "clips", name)).permutation(np.flatnonzero(clips.label == number))
        test[rows[: section.test]] = True
        owner |= dict.fromkeys(rows[: section.test + section.public].tolist(), "")
        rest = rows[section.test + section.public :]
        for home in range(len(rest) // section.clips):
            held = rest[home * section.clips : (home + 1) * section.clips]
            owner |= dict.fromkeys(held.tolist(), f"{name}-{home:02d}")
    used = np.array(sorted(owner), np.int64)
    names = np.array([owner[row] for row in used.tolist()])
    return replace(clips, x=clips.x[used], label=clips.label[used], owner=names, test=test[used])
