"""What `edgewise device evidence` prints of evidence, and that a policy takes it."""

from __future__ import annotations

import tomllib
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgewise.apps.cli.main import app
from edgewise.apps.device.evidence import ShownEvidence
from edgewise.apps.device.policy import Policy
from edgewise.core.errors import DecodeError
from edgewise.crypto.attest import simulated
from edgewise.crypto.attest.evidence import Evidence, bound, dump

VECTORS = Path(__file__).parents[2] / "crypto" / "attest" / "vectors"
REGISTER = b"\xab" * 48


@pytest.fixture
def snp(tmp_path: Path) -> Path:
    ders = tuple((VECTORS / f"snp_{name}.der").read_bytes() for name in ("virtee_vcek", "milan_ask", "milan_ark"))
    made = Evidence(platform="snp", document=(VECTORS / "snp_virtee_report.bin").read_bytes(), certificates=ders)
    (tmp_path / "evidence.json").write_bytes(dump(made))
    return tmp_path / "evidence.json"


def test_the_printed_table_is_one_that_a_policy_accepts(snp: Path) -> None:
    shown = ShownEvidence.of(snp, datetime(2025, 6, 20))
    table = tomllib.loads("\n".join(shown.lines()))
    (reference,) = (one.reference() for one in Policy.model_validate(table).attested)
    assert reference.lacks(shown.facts) is None
    assert reference.registers == {"measurement": shown.facts.registers["measurement"]}


def test_simulated_evidence_says_so(tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    file.write_bytes(dump(simulated.made(bytes(32), REGISTER, bound("helper", "run", b"key"))))
    printed = CliRunner().invoke(app, ["device", "evidence", str(file)])
    assert printed.exit_code == 0
    assert "proves nothing" in printed.output
    assert REGISTER.hex() in printed.output
    assert "attestation verified" not in printed.output


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(DecodeError) as refusal:
            ShownEvidence.of(path)
        assert refusal.value.code == "E-ATTEST"
    (tmp_path / "one.json").write_text("{}")
    assert CliRunner().invoke(app, ["device", "evidence", str(tmp_path / "one.json")]).exit_code == 4
