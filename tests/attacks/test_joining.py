"""A server that lies about a run to a device that would join it: the device refuses, by name, before it trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from toy import ToyTrainer
from toy_recipe import make_recipe

from edgewise.apps.device.joining import Owner, Parts
from edgewise.core import vector
from edgewise.core.errors import EdgewiseError
from edgewise.crypto import sign
from edgewise.drivers.fleet import roster
from edgewise.drivers.http import package
from edgewise.drivers.http.identity import Identity, key_fingerprint
from edgewise.engine.trainer import registered
from edgewise.plan import facts
from edgewise.plan.acceptance import OwnerFloor
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.compile import compile
from edgewise.plan.recipe.split import SplitSection

SERVER, STRANGER, ME, OTHER = (sign.pair(bytes([i]) * 32) for i in (1, 2, 3, 4))
HIDDEN = {
    "privacy": "hidden",
    "stage": [{"kind": "clip", "l2": 4.0}, {"kind": "quantize", "bits": 8, "grid": "shared"}, {"kind": "wrap"}],
    "trust.malicious_fraction": 0.0,
    "trust.dropout_fraction": 0.0,
    "round.minimum": 1.0,
}


class Lying:
    """Answers of a server to a device that are not an honest server's."""

    def __init__(self, folder: Path, signer: Any = SERVER, keys: tuple[bytes, ...] = (ME.public, OTHER.public)) -> None:
        recipe = make_recipe({"data.devices": 2, **HIDDEN})
        self._trainer = ToyTrainer(recipe)
        listing = roster.dump(list(keys))
        instance = facts.Instance(server=signer.public.hex(), nonce="ab" * 32, roster=vector.digest(listing))
        plan = compile(recipe, self._trainer.spec, 2, BUILT_IN, None, instance)
        self.raw = facts.canonical(plan.facts)
        self.signature, self.run = facts.sign(signer.secret, self.raw), plan.run
        self._folder, self._listing = folder, listing
        self.home, self.identity = (
            SimpleNamespace(server=key_fingerprint(SERVER.public)),
            Identity(ME.public, ME.secret),
        )
        self.name = self.identity.name

    def call(self, method: str, path: str) -> dict[str, Any]:
        return {"facts": self.raw.decode(), "signature": self.signature.hex(), "shares": None}

    def download(self, digest: str, folder: Path, most: int) -> Path:
        path = self._folder / "listing"
        path.write_bytes(self._listing)
        return path

    def joined(self, run: str = "") -> str:
        """The code with which the device refuses; empty where it joins."""
        make = lambda recipe, folder, device, spec: registered(self._trainer)  # noqa: E731
        with Parts(self, self._folder, Owner({}, self._folder, OwnerFloor()), make) as parts:  # type: ignore[arg-type]
            parts._layout = lambda *_: self._trainer.spec  # type: ignore[method-assign]
            parts._model = lambda tables, *_: {**tables["model"], "base": "bundled"}  # type: ignore[method-assign]
            parts._data = lambda tables: tables["data"]  # type: ignore[method-assign]
            try:
                parts(run or self.run)
            except EdgewiseError as e:
                return e.code
        return ""


def test_an_honest_server_is_joined(tmp_path: Path) -> None:
    assert Lying(tmp_path).joined() == ""


def test_a_run_that_the_owner_never_takes_is_refused_before_anything_is_fetched_for_it(tmp_path: Path) -> None:
    lying, fetched = Lying(tmp_path), list[object]()
    lying.download = lambda *what: fetched.append(what)  # type: ignore[method-assign, assignment, return-value]
    floor = OwnerFloor(words=("local_dp",))
    with Parts(lying, tmp_path, Owner({}, tmp_path, floor)) as parts:  # type: ignore[arg-type]
        parts._model = lambda tables, *_: fetched.append(tables)  # type: ignore[method-assign, assignment, return-value]
        with pytest.raises(
            EdgewiseError, match="E-FLOOR: the owner of this device asks that privacy is one of local_dp"
        ):
            parts(lying.run)
    assert fetched == []


def test_facts_of_another_run_are_refused(tmp_path: Path) -> None:
    assert Lying(tmp_path).joined("0" * 64) == "E-FACTS"


def test_facts_signed_by_another_server_are_refused(tmp_path: Path) -> None:
    assert Lying(tmp_path, signer=STRANGER).joined() == "E-FACTS"


def test_facts_with_another_signature_are_refused(tmp_path: Path) -> None:
    lying = Lying(tmp_path)
    lying.signature = facts.sign(STRANGER.secret, lying.raw)
    assert lying.joined() == "E-FACTS"


def test_a_roster_without_the_device_is_refused(tmp_path: Path) -> None:
    assert Lying(tmp_path, keys=(STRANGER.public, OTHER.public)).joined() == "E-FACTS"


def test_files_of_an_earlier_run_are_looked_at_before_they_are_used(tmp_path: Path) -> None:
    """Frozen weights are in no digest of a round: with a damaged file a device would train another model unseen."""
    weights, settings = b"frozen weights", b"{}"
    files = {"config.json": vector.digest(settings), "model.safetensors": vector.digest(weights)}
    blobs = {vector.digest(raw): raw for raw in (weights, settings, package.dump_package(files))}
    fetched: list[str] = []

    def download(digest: str, folder: Path, most: int) -> Path:
        fetched.append(digest)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / digest).write_bytes(blobs[digest])
        return folder / digest

    lying = Lying(tmp_path)
    lying.download = download  # type: ignore[method-assign]
    with Parts(lying, tmp_path, Owner({}, tmp_path, OwnerFloor())) as parts:  # type: ignore[arg-type]
        manifest = vector.digest(package.dump_package(files))
        model = parts._unpacked(manifest, tmp_path / "run", SplitSection())
        assert fetched == [manifest, *files.values()]
        (model / "model.safetensors").write_bytes(bytes(len(weights)))
        assert parts._unpacked(manifest, tmp_path / "run", SplitSection()) == model
        assert fetched[3:] == [manifest, files["model.safetensors"]]
        assert (model / "model.safetensors").read_bytes() == weights


def test_a_damaged_roster_is_fetched_again(tmp_path: Path) -> None:
    lying = Lying(tmp_path)
    assert lying.joined() == ""
    (path,) = (tmp_path / "runs").glob("*/roster")
    path.write_bytes(roster.dump([ME.public, STRANGER.public]))  # two keys, in order: nothing else would tell
    assert lying.joined() == ""
    assert path.read_bytes() == roster.dump([ME.public, OTHER.public])
