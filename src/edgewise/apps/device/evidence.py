"""The statements of a file of attestation evidence, for an owner who writes a policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgewise.core.errors import DecodeError
from edgewise.core.foreign import foreign
from edgewise.crypto.attest import evidence
from edgewise.crypto.attest.accept import verify
from edgewise.crypto.attest.evidence import IDENTITY, LARGEST_BYTES, Facts


@dataclass(frozen=True)
class ShownEvidence:
    """Verified facts, as text and as a row of JSON. ``facts``: of the evidence."""

    facts: Facts

    @classmethod
    def of(cls, file: Path, at: datetime | None = None) -> ShownEvidence:
        """Verify the evidence in a file at a time, or now.

        Raises DecodeError(E-ATTEST) for a file that cannot be read, and for evidence that is refused.
        """
        fix = "give the file that the operator has sent you."
        with foreign(DecodeError, "E-ATTEST", f"{file} cannot be read", fix), file.open("rb") as opened:
            raw = opened.read(4 * LARGEST_BYTES + 1)
        if len(raw) > 4 * LARGEST_BYTES:
            raise evidence.refused("it is larger than any evidence")
        now = datetime.now(UTC) if at is None else at if at.tzinfo else at.replace(tzinfo=UTC)
        return cls(verify(evidence.parse(raw), now))

    def lines(self) -> Iterator[str]:
        """Say what was verified, then the table of a policy that accepts it."""
        facts = self.facts
        if facts.signer is None:
            yield f"# attestation verified: platform {facts.platform}"
        else:
            yield "# simulated evidence: signed in software, it proves nothing about a machine"
        yield f"# it is bound to {facts.bound.hex()[:32]}..., which each run compares with its key"
        if facts.debug:
            yield "# DEBUG: the machine's operator can read the program's memory. No policy accepts it"
        yield "# compare the values with those of whoever built the image, then copy the table into your policy"
        name = IDENTITY[facts.platform]
        yield "[[attested]]"
        yield f'platform = "{facts.platform}"'
        yield f'registers = {{ {name} = "{facts.registers[name]}" }}'
        if facts.versions:
            yield f"versions = {{ {', '.join(f'{key} = {value}' for key, value in facts.versions.items())} }}"
        if facts.status is not None:
            yield f'statuses = ["{facts.status}"]'
        if facts.signer is not None:
            yield f'signer = "{facts.signer}"'
        for other in (key for key in facts.registers if key != name):
            yield f"# {other} = {facts.registers[other]}"

    def row(self) -> dict[str, Any]:
        """Return the facts for a program."""
        facts = self.facts
        return {
            "platform": facts.platform,
            "bound": facts.bound.hex(),
            "registers": dict(facts.registers),
            "debug": facts.debug,
            "versions": dict(facts.versions),
            "status": facts.status,
            "simulated": facts.signer is not None,
            "signer": facts.signer,
        }
