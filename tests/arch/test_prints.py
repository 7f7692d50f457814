"""Nothing that is printed shows contents: every dataclass, struct and named tuple of the package that can hold bytes or
arrays is made with some inside, and printed."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import pkgutil
import types
import typing
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

import edgewise
from edgewise.core.safe_repr import outline

SECRET = bytes(range(0x91, 0xB1))
MARK = 1718281828
SPELLINGS = (SECRET.hex(), repr(SECRET)[2:-1], str(list(SECRET))[1:-1], str(MARK))

# What anybody may see. A field that is not here, also a new one, is taken for a secret.
PUBLIC: dict[str, set[str]] = {
    "apps.simulate.beginning.LoadedRun": {"initial", "rest"},  # a model before training
    "apps.models.released.ReleasedModel": {"params"},  # a released model
    "core.keys.Turn": {"public"},
    "core.training.FitRequest": {"params"},  # the round's model
    "crypto.agree.AgreementPair": {"public"},
    "engine.ports.Trust": {"leader", "helper"},  # public keys
    "learn.models.rebuilt.RebuiltModel": {"params"},  # a released model
    "learn.text.corpus.Corpus": {"_order", "_first"},  # which document is whose
    "learn.text.documents.DocumentIndex": {"file", "start", "stop", "owner", "label", "ends"},  # where documents are
    "secagg.messages.SessionKeys": {"seal", "mask", "commitment", "signature"},  # public keys, signed
    "secagg.server_states.SecAggSession": {"sid"},
    "secagg.server_states.Sharing": {"roster"},  # a digest of public keys
    "secagg.server_states.Signing": {"signatures"},
    "secagg.two_server.HelperState": {"context", "seen"},  # ids of reports
    "secagg.two_server.LeaderState": {"context", "counted"},
    "secagg.two_server.ShareReport": {"id", "helper", "signature"},  # the seed is sealed
    "secagg.two_server.HelperTicket": {"id", "leader", "helper", "signature"},
    "strategies.base.State": {"params", "slots"},  # the model, and averages of what was released
}


def is_record(x: object) -> bool:
    """Tell whether ``x`` is a class of records."""
    if not isinstance(x, type):
        return False
    named = issubclass(x, tuple) and hasattr(x, "_fields")
    return dataclasses.is_dataclass(x) or issubclass(x, msgspec.Struct) or named


def records() -> dict[str, type]:
    """Name -> class of records, of all modules of the package; without torch, of those that can do without."""
    found = {}
    trains = importlib.util.find_spec("torch") is not None
    for module in pkgutil.walk_packages(edgewise.__path__, "edgewise."):
        if module.name.endswith("__main__") or (module.name.startswith("edgewise.learn") and not trains):
            continue
        for x in vars(importlib.import_module(module.name)).values():
            if is_record(x) and x.__module__.startswith("edgewise."):
                found[f"{x.__module__}.{x.__qualname__}".removeprefix("edgewise.")] = x
    return found


def hints(kind: type) -> dict[str, Any]:
    """Field -> its type."""
    known: dict[str, Any] = {}
    while True:
        try:
            found = typing.get_type_hints(kind, localns=known)
            break
        except NameError as e:  # imported for type checkers only: another record
            known[e.name] = object
    if dataclasses.is_dataclass(kind):
        return {f.name: found[f.name] for f in dataclasses.fields(kind)}
    return {name: found[name] for name in getattr(kind, "__struct_fields__", ()) or getattr(kind, "_fields", ())}


def sample(hint: Any) -> Any:
    """A value of that type with a secret inside; None where bytes and arrays have no place, and for other records."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (bytes, bytearray, memoryview):
        return SECRET
    if np.ndarray in (hint, origin):
        return np.array([MARK])
    inside = next((x for x in map(sample, args) if x is not None), None)
    if inside is None or not (origin in (typing.Union, types.UnionType) or isinstance(origin, type)):
        return None
    if origin in (typing.Union, types.UnionType):
        return inside
    if issubclass(origin, dict) or hasattr(origin, "keys"):
        return {"d": inside}
    return (inside,) if issubclass(origin, Iterable) else None


def shows(kind: type, public: Iterable[str] = ()) -> list[str]:
    """The fields whose contents are seen in what is printed of that kind; those in ``public`` are not looked at."""
    wanted = hints(kind)
    found = []
    for name in wanted.keys() - set(public):
        if (inside := sample(wanted[name])) is None:
            continue
        x = kind(**{**dict.fromkeys(wanted), name: inside}) if not dataclasses.is_dataclass(kind) else blank(kind)
        if dataclasses.is_dataclass(kind):
            object.__setattr__(x, name, inside)
        if any(spelling in text for text in (repr(x), str(x), f"{x}", repr([x])) for spelling in SPELLINGS):
            found.append(name)
    return sorted(found)


def blank(kind: type) -> Any:
    """One of a dataclass with nothing in it, past the checks of its constructor."""
    x = object.__new__(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        object.__setattr__(x, field.name, None)
    return x


def test_no_record_prints_bytes_or_arrays() -> None:
    found = records()
    bearing = [name for name, kind in found.items() if any(sample(hint) is not None for hint in hints(kind).values())]
    assert len(bearing) > 60
    for name in (
        "drivers.workers.jobs.Handle",
        "core.frame.Step",
        "engine.device_state._Session",
        "secagg.client.OwnSecrets",
    ):
        assert name in bearing
    loud = {name: shows(kind, PUBLIC.get(name, ())) for name, kind in found.items()}
    assert {name: fields for name, fields in loud.items() if fields} == {}, "__repr__ = outline, or field(repr=False)"


def test_what_is_listed_as_public_is_there_and_is_printed() -> None:
    found = records()
    for name, fields in PUBLIC.items():
        if name in found or not name.startswith("learn."):
            assert shows(found[name]) == sorted(fields), name


class Loud(msgspec.Struct):
    """As a struct prints without help."""

    device: str
    shares: dict[str, tuple[bytes, bytes]]
    box: bytes | None = None


class Named(NamedTuple):
    x: np.ndarray[Any, Any]
    n: int


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    memory: typing.Mapping[str, np.ndarray[Any, Any]]
    blobs: list[bytes]
    key: bytes = dataclasses.field(repr=False)


def test_a_record_that_prints_its_contents_is_found() -> None:
    assert shows(Loud) == ["box", "shares"]
    assert shows(Named) == ["x"]
    assert shows(Held) == ["blobs", "memory"]
    assert shows(Held, {"blobs"}) == ["memory"]


def test_an_outline_says_what_and_how_much() -> None:
    class Letter(msgspec.Struct, frozen=True):
        device: str
        round: int
        box: bytes
        inner: Any = None

        __repr__ = outline

    letter = Letter("d1", 3, bytes(80), Letter("d2", 4, b"", np.zeros((2, 3), np.float32)))
    inner = "Letter(device='d2', round=4, box=<0 bytes>, inner=<float32[2, 3]>)"
    assert repr(letter) == f"Letter(device='d1', round=3, box=<80 bytes>, inner={inner})"
    assert (
        repr(Letter("d" * 101, 0, b"", [1, 2])) == "Letter(device=<101 items>, round=0, box=<0 bytes>, inner=<2 items>)"
    )
    assert outline(Held({}, [], b"key")) == "Held(memory=<0 items>, blobs=<0 items>)"
    assert outline(Named(np.zeros(2), 1)) == "Named(x=<float64[2]>, n=1)"


@pytest.mark.parametrize("value", [b"abc", bytearray(b"abc"), memoryview(b"abc")], ids=lambda v: type(v).__name__)
def test_every_kind_of_bytes_is_outlined(value: bytes) -> None:
    assert outline(Named(value, 1)) == "Named(x=<3 bytes>, n=1)"  # type: ignore[arg-type]
