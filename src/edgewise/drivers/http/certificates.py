"""TLS for a server without its own certificate: a certificate authority that is made on the first start.

The authority signs only this server's certificate. Devices do not trust it because a file names it. They trust it
because the server signs it with its identity key, whose fingerprint is in every enrolment token (``pinned_authority``).
An operator may supply another certificate. Devices then check it as they check that of any web page.
"""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgewise.core.errors import TransportError
from edgewise.crypto import sign
from edgewise.drivers.http.identity import Identity, key_fingerprint
from edgewise.drivers.storage.files import write_durably

AUTHORITY_DAYS, CERTIFICATE_DAYS, RENEW_DAYS = 3650, 397, 30
_PIN = b"edgewise/server-certificate/v1\n"


def statement(authority: bytes, nonce: bytes) -> bytes:
    """Return the bytes that the server's identity key signs: this authority, for a device that has just sent
    ``nonce``.
    """
    return _PIN + nonce + b"\n" + authority


def pinned_authority(server: str, public: bytes, authority: bytes, nonce: bytes, signature: bytes) -> None:
    """Check that an authority (PEM; empty: the public ones of the web) belongs to the server that a token names.

    Raises:
        TransportError: E-SERVER-KEY where it does not. The device then sends nothing more.
    """
    if key_fingerprint(public) != server or not sign.verify(public, signature, statement(authority, nonce)):
        raise TransportError(
            "E-SERVER-KEY",
            "the server at this address is not the one that the enrolment token names.",
            "check the address. If it is right, somebody intercepts the connection, or the server was set up again.",
        )


def authority_and_certificate(folder: Path, names: Sequence[str], now: datetime.datetime) -> tuple[Path, Path, Path]:
    """Make or renew the files for TLS in ``folder``: ``ca.pem``, ``tls.pem`` and ``tls.key``.

    The authority is made once. The certificate is made again when it ends within 30 days or lacks a name.

    Args:
        names: host names and addresses under which devices reach the server. ``localhost`` always works as well.
    Returns:
        The paths of authority, certificate and key.
    """
    ca, ca_key = folder / "ca.pem", folder / "ca.key"
    if not ca.exists():
        _make_authority(ca, ca_key, now)
    issuer = x509.load_pem_x509_certificate(ca.read_bytes())
    signer = load_pem_private_key(ca_key.read_bytes(), None)
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise TransportError("E-IDENTITY", f"{ca_key} is not the key of {ca}.", "restore both from a backup.")
    wanted = sorted({"localhost", "127.0.0.1", "::1", *names})
    certificate, key = folder / "tls.pem", folder / "tls.key"
    if not certificate.exists() or not _usable(x509.load_pem_x509_certificate(certificate.read_bytes()), wanted, now):
        _issue(certificate, key, issuer, signer, wanted, now)
    return ca, certificate, key


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _usable(certificate: x509.Certificate, names: Sequence[str], now: datetime.datetime) -> bool:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    lasts = certificate.not_valid_after_utc - now > datetime.timedelta(days=RENEW_DAYS)
    return lasts and set(map(_alternative, names)) <= set(found)


def _make_authority(path: Path, key_path: Path, now: datetime.datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(_name("edgewise server authority"))
        .issuer_name(_name("edgewise server authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_durably(key_path, _private(key), owner_only=True)
    write_durably(path, made.public_bytes(Encoding.PEM))


def _issue(
    path: Path,
    key_path: Path,
    issuer: x509.Certificate,
    signer: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    now: datetime.datetime,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(_name("edgewise server"))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.BasicConstraints(False, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    write_durably(key_path, _private(key), owner_only=True)
    write_durably(path, made.public_bytes(Encoding.PEM))


def client_context(authority: bytes) -> ssl.SSLContext:
    """Make a context for clients: TLS 1.2 or newer, with a checked host name.

    It trusts only this authority (PEM); empty: those of the system.
    """
    context = ssl.create_default_context(cadata=authority.decode() if authority else None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Make a context for the server: TLS 1.2 or newer.

    Raises:
        TransportError: E-IDENTITY where the files are not a certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as e:
        what = f"{certificate} and {key} are not a certificate and its key: {e.strerror or e}."
        raise TransportError("E-IDENTITY", what, "name PEM files that belong together.") from None
    return context


def identity_statement(server: Identity, authority: bytes, nonce: bytes) -> dict[str, str]:
    """Describe the server to a device that wants to join: public key and authority, signed for the device's nonce."""
    signature = server.sign(statement(authority, nonce))
    return {"key": server.public.hex(), "authority": authority.decode(), "signature": signature.hex()}


def introduced_server(server: Identity, authority: bytes, nonce: str) -> dict[str, str]:
    """Make the ``identity_statement`` for a caller who sent ``nonce`` (hexadecimal).

    Raises:
        TransportError: E-REQUEST.
    """
    try:
        raw = bytes.fromhex(nonce)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise TransportError("E-REQUEST", "nonce is not 32 bytes.", "send it in hexadecimal.")
    return identity_statement(server, authority, raw)
