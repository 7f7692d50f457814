"""Evidence of real machines is accepted; each changed bit of what is signed is refused."""

from __future__ import annotations

import dataclasses
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509

from edgewise.core.errors import DecodeError
from edgewise.crypto import sign
from edgewise.crypto.attest import simulated
from edgewise.crypto.attest.accept import Reference, accepted, verify
from edgewise.crypto.attest.evidence import Evidence, bound, dump, parse

VECTORS = Path(__file__).parent / "vectors"
KEY = bytes(range(32))


def read(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def snp(who: str = "virtee") -> Evidence:
    chain = (read(f"snp_{who}_vcek.der"), read("snp_milan_ask.der"), read("snp_milan_ark.der"))
    return Evidence(platform="snp", document=read(f"snp_{who}_report.bin"), certificates=chain)


def quote(platform: str) -> Evidence:
    collateral = read(f"{platform}_quote_collateral.json").decode()
    return Evidence(platform=platform, document=read(f"{platform}_quote.bin"), collateral=collateral)


def nitro() -> Evidence:
    return Evidence(platform="nitro", document=read("nitro_document.cbor"))


def software() -> Evidence:
    return simulated.made(KEY, bytes(48), bound("helper", "run", b"key"))


NOW = datetime(2025, 6, 20, 12, tzinfo=UTC)
THEN = datetime(2024, 12, 20, 1, tzinfo=UTC)
REAL = {"snp": (snp(), NOW), "tdx": (quote("tdx"), NOW), "sgx": (quote("sgx"), NOW), "nitro": (nitro(), THEN)}
ALL = {**REAL, "simulated": (software(), NOW)}
SIGNED = {"snp": (0, 672), "tdx": (0, 632), "sgx": (0, 432), "nitro": (8, 4455), "simulated": (1, 200)}


def refuses(evidence: Evidence, now: datetime) -> str:
    with pytest.raises(DecodeError) as refusal:
        verify(evidence, now)
    assert refusal.value.code == "E-ATTEST"
    return str(refusal.value)


@pytest.mark.parametrize("platform", ALL)
def test_evidence_is_accepted_also_as_it_travels(platform):
    evidence, now = ALL[platform]
    facts = verify(parse(dump(evidence)), now)
    assert facts == verify(evidence, now)
    assert facts.platform == platform


def test_facts_of_real_machines():
    chip = verify(snp(), NOW)
    assert chip.registers["measurement"].startswith("7a1e5c266c0108db")
    assert not chip.debug
    assert chip.versions == {"bootloader": 3, "tee": 0, "snp": 8, "microcode": 0x73}
    assert chip.bound.hex().startswith("d447b55d197491bf")
    assert verify(snp("gsg"), NOW).debug
    domain = verify(quote("tdx"), NOW)
    assert (domain.status, domain.debug) == ("UpToDate", False)
    assert domain.registers["mr_td"].startswith("91eb2b44d141d4ec")
    enclave = verify(quote("sgx"), NOW)
    assert enclave.bound.startswith(b"Hello, world!")
    assert enclave.status == "ConfigurationAndSWHardeningNeeded"
    assert verify(nitro(), THEN).debug  # PCR0 is zero


@pytest.mark.parametrize("platform", ALL)
def test_any_changed_bit_of_what_is_signed_is_refused(platform):
    evidence, now = ALL[platform]
    first, last = SIGNED[platform]
    some = random.Random(5).sample(range(8 * first, 8 * last), 40)
    for bit in [8 * first, 8 * last - 1, *some]:
        changed = bytearray(evidence.document)
        changed[bit // 8] ^= 1 << bit % 8
        refuses(msgspec.structs.replace(evidence, document=bytes(changed)), now)


@pytest.mark.long(sample=0)
@pytest.mark.parametrize("platform", REAL)
def test_all_changed_bits_of_what_is_signed_are_refused(platform):
    evidence, now = REAL[platform]
    for bit in range(8 * SIGNED[platform][0], 8 * SIGNED[platform][1]):
        changed = bytearray(evidence.document)
        changed[bit // 8] ^= 1 << bit % 8
        refuses(msgspec.structs.replace(evidence, document=bytes(changed)), now)


@pytest.mark.parametrize("at", range(2))
def test_any_changed_bit_of_what_is_signed_in_a_certificate_is_refused(at):
    evidence, ders = snp(), list(snp().certificates)
    size = len(x509.load_der_x509_certificate(ders[at]).tbs_certificate_bytes)
    for bit in [8 * 4, *random.Random(at).sample(range(8 * 4, 8 * (4 + size)), 60)]:
        changed = bytearray(ders[at])
        changed[bit // 8] ^= 1 << bit % 8
        refuses(msgspec.structs.replace(evidence, certificates=(*ders[:at], bytes(changed), *ders[at + 1 :])), NOW)


def test_a_certificate_that_states_an_unknown_version_is_refused():
    document = bytearray(nitro().document)
    at = document.index(bytes.fromhex("a003020102")) + 4  # version 3 of X.509
    document[at] ^= 1
    assert "chain" in refuses(msgspec.structs.replace(nitro(), document=bytes(document)), THEN)


@pytest.mark.parametrize("platform", ALL)
def test_any_cut_of_a_document_is_refused(platform):
    evidence, now = ALL[platform]
    for size in (0, 1, 100, len(evidence.document) // 2):
        refuses(msgspec.structs.replace(evidence, document=evidence.document[:size]), now)


def test_a_chip_is_refused_with_the_certificate_of_another():
    """The report's signature is of its own chip."""
    refuses(msgspec.structs.replace(snp(), certificates=snp("gsg").certificates), NOW)


@pytest.mark.parametrize("which", range(3))
def test_a_changed_certificate_is_refused(which):
    chain = [bytearray(one) for one in snp().certificates]
    for at in (200, len(chain[which]) // 2, len(chain[which]) - 1):
        changed = [bytes(one) for one in chain]
        changed[which] = bytes(chain[which][:at]) + bytes([chain[which][at] ^ 1]) + bytes(chain[which][at + 1 :])
        refuses(msgspec.structs.replace(snp(), certificates=tuple(changed)), NOW)


def test_a_root_of_their_own_is_refused():
    certificates = snp().certificates
    assert "pinned" in refuses(msgspec.structs.replace(snp(), certificates=(*certificates[:2], certificates[1])), NOW)


@pytest.mark.parametrize("platform", REAL)
def test_evidence_is_refused_when_its_certificates_are_not_valid(platform):
    evidence, _ = REAL[platform]
    for now in (datetime(2019, 1, 1, tzinfo=UTC), datetime(2060, 1, 1, tzinfo=UTC)):
        refuses(evidence, now)


def test_a_nitro_document_lives_for_hours():
    refuses(nitro(), THEN + timedelta(hours=4))


def test_a_quote_of_the_other_platform_is_refused():
    refuses(msgspec.structs.replace(quote("tdx"), platform="sgx"), NOW)
    refuses(msgspec.structs.replace(quote("sgx"), platform="tdx"), NOW)
    refuses(msgspec.structs.replace(quote("tdx"), collateral=None), NOW)


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b'{"platform":"tpm","document":""}', b"\xff", b'{"platform":"snp"}']
)
def test_what_is_no_evidence_is_refused(raw):
    with pytest.raises(DecodeError) as refusal:
        parse(raw)
    assert refusal.value.code == "E-ATTEST"


STATED = verify(snp(), NOW)
MEASURED = {"measurement": STATED.registers["measurement"]}


def check(evidence: Evidence, *references: Reference, to: bytes = STATED.bound) -> str | None:
    """The refusal, or None."""
    try:
        accepted(evidence, references, to, NOW)
    except DecodeError as e:
        return str(e)
    return None


def test_a_program_is_accepted_by_its_measurement_and_versions():
    assert check(snp(), Reference("snp", MEASURED, versions={"snp": 8, "microcode": 0x73})) is None
    assert check(snp(), Reference("tdx", {"mr_td": "00"}), Reference("snp", MEASURED)) is None


def test_what_an_owner_does_not_accept_is_refused():
    good = Reference("snp", MEASURED)
    assert re.match(r"E-ATTEST.*bound", check(snp(), good, to=bytes(64)) or "")
    assert "measurement" in check(snp(), Reference("snp", {"measurement": "ab" * 48}))
    assert "microcode" in check(snp(), Reference("snp", MEASURED, versions={"microcode": 0x74}))
    assert "platform" in check(snp(), Reference("tdx", {"mr_td": "00"}))
    assert "no program" in check(snp())
    assert "debug" in check(snp("gsg"), good, to=verify(snp("gsg"), NOW).bound)


def test_a_platform_that_is_not_up_to_date_is_refused_unless_its_owner_accepts_it():
    facts = verify(quote("sgx"), NOW)
    reference = Reference("sgx", {"mr_enclave": facts.registers["mr_enclave"]})
    assert facts.status in check(quote("sgx"), reference, to=facts.bound)
    assert check(quote("sgx"), dataclasses.replace(reference, statuses=[facts.status]), to=facts.bound) is None


def test_a_simulated_statement_is_accepted_only_from_a_named_key():
    to, measured = bound("helper", "run", b"key"), {"measurement": "00" * 48}
    named = Reference("simulated", measured, signer=sign.pair(KEY).public.hex())
    assert check(software(), named, to=to) is None
    assert "simulated" in check(software(), Reference("simulated", measured), to=to)
    other = sign.pair(bytes(32)).public.hex()
    assert "simulated" in check(software(), dataclasses.replace(named, signer=other), to=to)


def test_a_key_is_bound_to_its_role_and_run():
    named = {bound("leader", "run", b"key"), bound("helper", "run", b"key"), bound("helper", "runs", b"key")}
    assert len(named | {bound("helper", "run", b"keys")}) == 4
    assert all(len(one) == 64 for one in named)
