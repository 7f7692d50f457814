"""The recorded examples of docs/reference/transport.md: written by this code once, and read by it ever since."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgewise.crypto import sign
from edgewise.drivers.http import certificates, identity, share_keys, signatures, tokens
from edgewise.drivers.http.identity import Identity

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "vectors" / "transport.json").read_text(encoding="utf-8"))
SECRET = bytes.fromhex(VECTORS["secret"])
ME = Identity(sign.pair(SECRET).public, SECRET)


def test_the_name_of_a_key() -> None:
    assert ME.public.hex() == VECTORS["public"]
    assert identity.key_fingerprint(ME.public) == VECTORS["name"]


def test_a_token() -> None:
    one = VECTORS["token"]
    token = tokens.parse(one["text"])
    assert (token.id, token.secret.hex(), token.server) == (one["id"], one["secret"], one["server"])
    assert token.text == one["text"]


def test_the_statement_of_a_server() -> None:
    one = VECTORS["statement"]
    nonce, authority = bytes.fromhex(one["nonce"]), one["authority"].encode()
    told = certificates.identity_statement(ME, authority, nonce)
    assert told["signature"] == one["signature"]
    certificates.pinned_authority(VECTORS["name"], ME.public, authority, nonce, bytes.fromhex(one["signature"]))


@pytest.mark.parametrize("one", VECTORS["requests"], ids=lambda one: f"{one['method']} {one['path']}")
def test_a_signed_request(one: dict[str, Any]) -> None:
    body = signatures.sha256(bytes.fromhex(one["body"]))
    request = signatures.Request(one["method"], one["path"], one["query"], body, one["run"], one["round"])
    headers = signatures.headers(ME, request, one["server"], one["created"], bytes.fromhex(one["nonce"]))
    assert headers == one["headers"]
    where, now = (one["method"], one["path"], one["query"]), float(one["created"])
    assert signatures.verify_request(where, headers, one["server"], now, lambda _: ME.public).sender == VECTORS["name"]


@pytest.mark.parametrize("one", VECTORS["share_keys"], ids=lambda one: one["role"])
def test_the_signed_key_of_a_run_with_two_servers(one: dict[str, str]) -> None:
    said = {name: one[name] for name in ("server", "key", "signature")}
    assert share_keys.checked_share_key(said, one["role"], one["run"], VECTORS["name"]).hex() == one["key"]
    assert (
        msgspec.to_builtins(share_keys.made_share_key(ME, one["role"], one["run"], bytes.fromhex(one["key"]))) == said
    )
