"""Documents that a server publishes of a run beside its facts, or stages for it: only the one form of each is read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgewise.core.errors import EdgewiseError
from edgewise.drivers.fleet import roster
from edgewise.drivers.http import package
from edgewise.drivers.http.identity import key_fingerprint
from edgewise.drivers.http.staging import KEPT_S, Staging

DIGEST = "5f" * 32
FILES = {"config.json": DIGEST, "model-00001-of-00002.safetensors": DIGEST, "tokenizer.json": DIGEST}
KEYS = [bytes([i]) * 32 for i in (3, 1, 2)]


def code(call: Callable[[], object]) -> str:
    with pytest.raises(EdgewiseError) as e:
        call()
    return e.value.code


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert package.parse(package.dump_package(FILES)) == FILES


@pytest.mark.parametrize(
    "name",
    ["../config.json", "/etc/config.json", "a/config.json", ".config.json", "config.json\n", "model.bin", "run.py",
     "", "config.json/..", "c" * 130 + ".json", "modèle.json"],
)  # fmt: skip
def test_a_manifest_names_nothing_outside_its_folder_and_nothing_that_runs(name: str) -> None:
    assert not package.is_packed_file(name)
    assert code(lambda: package.parse(package.dump_package({**FILES, name: DIGEST}))) == "E-FACTS"


@pytest.mark.parametrize(
    "raw",
    [b"", b"{}", b"[]", b"null", b'{"config.json": "' + DIGEST.encode() + b'"}',
     b'{"config.json":"' + b"5F" * 32 + b'"}',
     b'{"config.json":1}', package.dump_package(FILES) + b"\n", b"{" * 100_000, b"\xff",
         b" " * (package.MANIFEST_BYTES + 1),
     b'{"a.json":"%b","a.json":"%b"}' % (DIGEST.encode(), DIGEST.encode())],
)  # fmt: skip
def test_a_manifest_has_one_form(raw: bytes) -> None:
    assert code(lambda: package.parse(raw)) == "E-FACTS"


@pytest.mark.parametrize("base", ["bundled", "sha256:", f"sha256:{DIGEST}0", f"sha256:{DIGEST.upper()}", DIGEST])
def test_only_a_digest_names_a_package(base: str) -> None:
    assert package.package_digest_in(base) is None
    assert package.package_digest_in(f"sha256:{DIGEST}") == DIGEST


def test_a_roster_gives_each_name_its_own_key() -> None:
    found = roster.parse_roster(roster.dump(KEYS), 3)
    assert found == {key_fingerprint(key): key for key in KEYS}


@pytest.mark.parametrize(
    "raw",
    [b"", b"".join(KEYS), roster.dump(KEYS)[:-1], roster.dump(KEYS) + b"\0", roster.dump([KEYS[0], KEYS[0], KEYS[1]]),
     roster.dump([*KEYS, bytes(32)])],
    ids=["empty", "unsorted", "short", "long", "a key twice", "one more"],
)  # fmt: skip
def test_a_roster_has_one_form_for_a_population(raw: bytes) -> None:
    assert code(lambda: roster.parse_roster(raw, 3)) == "E-FACTS"


def test_a_staged_blob_goes_on_where_it_broke_off_and_is_whole_or_nothing(tmp_path: Path) -> None:
    staging, raw = Staging(tmp_path / "staged", time.time), b"first values" * 100
    digest = hashlib.sha256(raw).hexdigest()
    assert staging.put(digest, 0, len(raw), raw[:700]) == 700
    assert code(lambda: staging.put(digest, 0, len(raw), raw[:700])) == "E-OFFSET"
    assert code(lambda: staging.take(digest)) == "E-BLOB"
    again = Staging(tmp_path / "staged", time.time)  # the server was restarted
    assert again.received(digest) == 700
    assert again.put(digest, 700, len(raw), raw[700:]) == len(raw)
    assert again.take(digest) == raw
    assert code(lambda: again.put(digest, len(raw), len(raw) + 1, b"x")) == "E-OFFSET"
    later = Staging(tmp_path / "staged", lambda: time.time() + KEPT_S + 60.0)
    assert later.received(digest) == 0, "nobody submitted it within a day"


def test_staged_bytes_that_are_not_those_of_the_digest_are_dropped(tmp_path: Path) -> None:
    staging, digest = Staging(tmp_path / "staged", time.time), hashlib.sha256(b"asked").hexdigest()
    assert code(lambda: staging.put(digest, 0, 5, b"other")) == "E-BLOB"
    assert staging.received(digest) == 0
    assert code(lambda: staging.received("../secret")) == "E-REQUEST"


def test_a_staged_blob_that_a_power_cut_damaged_is_sent_again(tmp_path: Path) -> None:
    staging, raw = Staging(tmp_path / "staged", time.time), b"first values" * 100
    digest = hashlib.sha256(raw).hexdigest()
    staging.put(digest, 0, len(raw), raw)
    (tmp_path / "staged" / digest).write_bytes(bytes(len(raw)))
    assert code(lambda: staging.take(digest)) == "E-BLOB"
    assert staging.put(digest, 0, len(raw), raw) == len(raw)
    assert staging.take(digest) == raw
