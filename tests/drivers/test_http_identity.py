"""Keys, tokens, certificates and signatures: what is accepted, and that everything else is not."""

from __future__ import annotations

import base64
import datetime
import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from edgewise.core.errors import TransportError
from edgewise.crypto import sign
from edgewise.drivers.http import certificates, home, identity, signatures, tokens
from edgewise.drivers.http.identity import Identity

SECRET = bytes(range(32))
ME = Identity(sign.pair(SECRET).public, SECRET)
SERVER = "0123456789abcdef" * 2
NOW = 1_800_000_000
REQUEST = signatures.Request("POST", "/v1/outbox", "upload=a%20b", signatures.sha256(b"body"), "run-1", "3")


def refused(call: object, *arguments: object) -> str:
    with pytest.raises(TransportError) as e:
        call(*arguments)  # type: ignore[operator]
    return e.value.code


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_made_once_and_is_for_its_owner_only(tmp_path: Path) -> None:
    made = identity.make(tmp_path / "home" / "device.key")
    assert identity.make(tmp_path / "home" / "device.key") == made == identity.load(tmp_path / "home" / "device.key")
    assert made.name == identity.key_fingerprint(made.public)
    assert len(made.name) == 32
    if os.name != "nt":
        assert stat.S_IMODE((tmp_path / "home" / "device.key").stat().st_mode) == 0o600


def test_a_key_whose_making_was_cut_short_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, or a kill, before the key is on the disk: no part of it stands in its place."""
    folder = tmp_path / "home"

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refused(identity.make, folder / "device.key") == "E-IDENTITY"
    assert list(folder.iterdir()) == []
    monkeypatch.undo()
    made = identity.make(folder / "device.key")
    assert [path.name for path in folder.iterdir()] == ["device.key"]
    assert identity.load(folder / "device.key") == made


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    identity.make(tmp_path / "device.key")
    (tmp_path / "device.key").chmod(0o640)
    assert refused(identity.load, tmp_path / "device.key") == "E-IDENTITY"


def test_what_is_not_an_ed25519_key_is_refused(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for name, raw in (("other", other), ("junk", b"junk"), ("empty", b"")):
        (tmp_path / name).write_bytes(raw)
        (tmp_path / name).chmod(0o600)
        assert refused(identity.load, tmp_path / name) == "E-IDENTITY"
    assert refused(identity.load, tmp_path / "none") == "E-IDENTITY"


# -- tokens ------------------------------------------------------------------------------------------------------------


def test_a_token_is_read_as_it_was_made() -> None:
    token = tokens.make_token_for_server(SERVER)
    assert tokens.parse(f"  {token.text}\n") == token
    assert token.server == SERVER
    assert token.secret.hex() not in repr(token)


@given(st.integers(0, 200), st.sampled_from("abcdefghijklmnopqrstuvwxyz234567A19-=_ "))
def test_a_token_with_any_other_character_is_refused(at: int, character: str) -> None:
    text = tokens.make_token_for_server(SERVER).text
    at %= len(text)
    changed = text[:at] + character + text[at + 1 :]
    if changed != text and changed.strip() != text:
        assert refused(tokens.parse, changed) == "E-TOKEN"


def test_a_token_that_is_cut_or_longer_is_refused() -> None:
    text = tokens.make_token_for_server(SERVER).text
    for changed in ("", "fedtok1_", text[:-1], text + "a", text.upper(), text + "="):
        assert refused(tokens.parse, changed) == "E-TOKEN"


# -- signatures --------------------------------------------------------------------------------------------------------


def test_the_signature_base_is_that_of_rfc_9421() -> None:
    """Appendix B.2.6, its key and its signature."""
    secret = base64.b64decode("MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF")[-32:]
    parts = (
        ("date", "Tue, 20 Apr 2021 02:07:55 GMT"), ("@method", "POST"), ("@path", "/foo"),
        ("@authority", "example.com"), ("content-type", "application/json"), ("content-length", "18"),
    )  # fmt: skip
    names = " ".join(f'"{name}"' for name, _ in parts)
    signed = signatures.base(parts, f'({names});created=1618884473;keyid="test-key-ed25519"')
    expected = "wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw=="
    assert base64.b64encode(sign.sign(secret, signed)).decode() == expected


def verified(
    headers: dict[str, str], method: str = "POST", path: str = "/v1/outbox", query: str = "upload=a%20b",
    server: str = SERVER, now: float = NOW, key: bytes | None = ME.public,
) -> signatures.Proof:  # fmt: skip
    return signatures.verify_request((method, path, query), headers, server, now, lambda _: key)


def signed(request: signatures.Request = REQUEST, created: int = NOW) -> dict[str, str]:
    return signatures.headers(ME, request, SERVER, created, bytes(16))


def test_a_signed_request_is_accepted_for_what_it_is() -> None:
    proof = verified(signed())
    assert (proof.sender, proof.run, proof.round) == (ME.name, "run-1", 3)
    assert proof.body == signatures.sha256(b"body")
    about_nothing = signatures.Request("GET", "/v1/me", "", signatures.sha256(b""))
    assert verified(signed(about_nothing), "GET", "/v1/me", "").run is None


@pytest.mark.parametrize(
    "other",
    [
        {"method": "PUT"}, {"path": "/v1/inbox"}, {"path": "/v1/outbox/"}, {"query": ""}, {"query": "upload=a+b"},
        {"server": "f" * 32}, {"key": None}, {"key": sign.pair(bytes(32)).public},
    ],
    ids=str,
)  # fmt: skip
def test_a_signature_for_anything_else_is_refused(other: dict[str, object]) -> None:
    assert refused(lambda: verified(signed(), **other)) == "E-SIGNATURE"  # type: ignore[arg-type]


def test_each_header_is_covered_and_has_one_form() -> None:
    good = signed()
    other = signed(signatures.Request("POST", "/v1/outbox", "upload=a%20b", signatures.sha256(b"other"), "run-2", "4"))
    for name in good:
        assert refused(verified, {k: v for k, v in good.items() if k != name}) == "E-SIGNATURE"
        assert refused(verified, {**good, name: good[name] + " "}) == "E-SIGNATURE"
    for name in ("content-digest", "edgewise-run", "edgewise-round", "signature"):
        assert refused(verified, {**good, name: other[name]}) == "E-SIGNATURE"
    for old, new in (
        (";alg=", "; alg="), ("ed25519", "rsa-v1_5"), (signatures.TAG, "other"), ('"@query" ', ""), ("sig=", "sig2="),
        (f"created={NOW}", f"created={NOW + 1}"), ("0" * 32, "1" * 32),
    ):  # fmt: skip
        changed = {**good, "signature-input": good["signature-input"].replace(old, new)}
        assert changed != good
        assert refused(verified, changed) == "E-SIGNATURE"


@pytest.mark.parametrize(("skew", "code"), [(-61, "E-CLOCK"), (61, "E-CLOCK"), (-60, ""), (60, "")])
def test_a_signature_is_of_now(skew: int, code: str) -> None:
    if code:
        assert refused(verified, signed(created=NOW + skew)) == code
    else:
        assert verified(signed(created=NOW + skew)).created_s == NOW + skew


@given(st.dictionaries(st.sampled_from(sorted(signed())), st.text(max_size=300)))
def test_no_junk_is_a_signature(junk: dict[str, str]) -> None:
    headers = {**signed(), **junk}
    if headers != signed():
        assert refused(verified, headers) in ("E-SIGNATURE", "E-CLOCK")


# -- certificates ------------------------------------------------------------------------------------------------------


def test_the_certificate_is_made_once_and_renewed_in_time(tmp_path: Path) -> None:
    now = datetime.datetime(2026, 12, 1, tzinfo=datetime.UTC)
    ca, certificate, key = certificates.authority_and_certificate(tmp_path, ["fed.example", "10.0.0.7"], now)
    first, authority = certificate.read_bytes(), ca.read_bytes()
    certificates.authority_and_certificate(tmp_path, ["fed.example"], now + datetime.timedelta(days=300))
    assert certificate.read_bytes() == first
    certificates.authority_and_certificate(tmp_path, ["other.example"], now)
    renamed = certificate.read_bytes()
    assert renamed != first
    certificates.authority_and_certificate(tmp_path, ["other.example"], now + datetime.timedelta(days=380))
    assert certificate.read_bytes() != renamed
    assert ca.read_bytes() == authority
    x509.load_pem_x509_certificate(certificate.read_bytes()).verify_directly_issued_by(
        x509.load_pem_x509_certificate(authority)
    )
    if os.name != "nt":
        assert {stat.S_IMODE(path.stat().st_mode) for path in (key, tmp_path / "ca.key")} == {0o600}


def test_only_the_server_of_the_token_can_name_its_authority() -> None:
    nonce, authority = bytes(32), b"PEM"
    told = certificates.identity_statement(ME, authority, nonce)
    key, signature = bytes.fromhex(told["key"]), bytes.fromhex(told["signature"])
    certificates.pinned_authority(ME.name, key, authority, nonce, signature)
    other = sign.pair(bytes(32))
    forged = sign.sign(other.secret, certificates.statement(authority, nonce))
    for changed in (
        (SERVER, key, authority, nonce, signature), (ME.name, other.public, authority, nonce, forged),
        (ME.name, key, b"other", nonce, signature), (ME.name, key, b"", nonce, signature),
        (ME.name, key, authority, bytes(31) + b"1", signature), (ME.name, key, authority, nonce, forged),
    ):  # fmt: skip
        assert refused(certificates.pinned_authority, *changed) == "E-SERVER-KEY"


# -- the folder of an identity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "plain", "secure"),
    [
        ("https://fed.example:8443", False, True), ("http://127.0.0.1:80", True, False),
        ("http://localhost", True, False), ("http://127.0.0.1:80", False, None), ("http://fed.example", True, None),
        ("https://fed.example/path", False, None),
        ("fed.example", False, None), ("https://", False, None),
        ("ftp://fed.example", True, None),
    ],
)  # fmt: skip
def test_plain_http_is_for_this_machine_and_only_when_said(url: str, plain: bool, secure: bool | None) -> None:
    if secure is None:
        assert refused(home.check_url, url, plain) == "E-REQUEST"
    else:
        assert home.check_url(url, plain) is secure


def test_a_folder_belongs_to_one_server(tmp_path: Path) -> None:
    assert refused(home.load, tmp_path) == "E-IDENTITY"
    home.save(tmp_path, home.Home("https://a", SERVER, "", ME.name))
    home.check_free(tmp_path, SERVER)
    assert refused(home.check_free, tmp_path, "f" * 32) == "E-IDENTITY"
    (tmp_path / home.SERVER).write_text("{}")
    assert refused(home.load, tmp_path) == "E-IDENTITY"
