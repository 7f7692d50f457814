"""A device encrypts its share only to a gateway's key that a program attests which its owner accepts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from owned import ended, owned, seen, submitted, working
from served import joined

from edgewise.apps.device import record
from edgewise.apps.gateway.start import Gateway, join
from edgewise.apps.server.sharing import Address
from edgewise.apps.server.start import HttpServer
from edgewise.crypto import sign
from edgewise.crypto.attest import simulated
from edgewise.crypto.attest.evidence import Evidence, bound, dump
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.http import link as connection
from edgewise.drivers.http.evidence_command import EvidenceCommand
from edgewise.drivers.http.link import Link

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
SHARED = {"privacy": "hidden", "merge": {"kind": "shared_sum"}, "round.rounds": 1, "round.minimum": 1.0}
ATTESTED = f"""
[[attested]]
platform = "simulated"
registers = {{ measurement = "{"ab" * 48}" }}
signer = "{sign.pair(KEY).public.hex()}"
"""

pytestmark = pytest.mark.slow


def attest(to: bytes) -> Evidence:
    return simulated.made(KEY, b"\xab" * 48, to)


@contextmanager
def federation(folder: Path, evidence: Callable[[bytes], Evidence] | None) -> Iterator[tuple[Link, list[Path]]]:
    """A server with a gateway and two devices whose owners accept one program."""
    with HttpServer(folder / "server") as first:
        join(first.url, first.token(Grant("gateway", approved=True)), folder / "gateway").close()
        with Gateway(folder / "gateway") as gateway:
            policy = f"[privacy]\ncohort = 2\ngateway = '{gateway.name}'\n{ATTESTED}"
            homes = [owned(first, folder / f"home-{i}", policy) for i in range(2)]
            for home in homes:
                with Link(home, 5.0) as link:
                    gateway.allowed.add([link.name])
            name = gateway.name
        joined(first, folder / "admin", "admin").close()
        port = first.port
    with (
        Gateway(folder / "gateway", attest=evidence) as gateway,
        HttpServer(folder / "server", port=port, gateway=Address(name, gateway.url)) as server,
        Link(folder / "admin", 10.0) as admin,
        working(*homes),
    ):
        admin.served_by = server
        yield admin, homes


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LONGEST_PAUSE_S", 0.3)


def test_shares_go_to_an_attested_gateway(tmp_path: Path) -> None:
    with federation(tmp_path, attest) as (admin, _):
        assert ended(admin, submitted(admin.served_by, admin, **SHARED)) == "finished"


REFUSED: dict[str, Callable[[bytes], Evidence] | None] = {
    "no evidence": None,
    "another program": lambda to: simulated.made(KEY, bytes(48), to),
    "another signer": lambda to: simulated.made(OTHER, b"\xab" * 48, to),
    "another key": lambda to: attest(bound("helper", "0" * 64, bytes(32))),
}


@pytest.mark.parametrize("why", REFUSED)
def test_nothing_is_sent_to_a_gateway_that_is_not_attested(tmp_path: Path, why: str) -> None:
    with federation(tmp_path, REFUSED[why]) as (admin, homes):
        submitted(admin.served_by, admin, **SHARED)
        for home in homes:
            assert seen(
                lambda home=home: "E-ATTEST" in "".join(line.reason or "" for line in record.device_record_lines(home))
            )


def test_a_run_with_one_server_is_refused(tmp_path: Path) -> None:
    with federation(tmp_path, attest) as (admin, homes):
        submitted(admin.served_by, admin, **{"privacy": "hidden", "round.rounds": 1, "round.minimum": 1.0})
        for home in homes:
            assert seen(
                lambda home=home: "E-ATTEST" in "".join(line.reason or "" for line in record.device_record_lines(home))
            )


def test_a_command_prints_evidence(tmp_path: Path) -> None:
    program = tmp_path / "evidence.py"
    program.write_text(
        "import sys\nfrom edgewise.crypto.attest import evidence, simulated\n"
        "made = simulated.made(bytes(range(32)), b'\\xab' * 48, bytes.fromhex(sys.argv[1]))\n"
        "sys.stdout.buffer.write(evidence.dump(made))"
    )
    to = bound("helper", "run", b"key")
    assert dump(EvidenceCommand([sys.executable, str(program)])(to)) == dump(attest(to))
