"""Programs that an owner accepts by attestation, and the check of a key against them.

    reference = Reference("snp", {"measurement": "d1cd82..."}, versions={"snp": 8})
    facts = accepted(evidence, (reference,), bound("helper", run, key), now)

Reference values come from whoever built the image, by another way than evidence. Without them, evidence says only that
some program runs on some machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from edgewise.crypto.attest import nitro, simulated, snp, tdx
from edgewise.crypto.attest.evidence import LARGEST_BYTES, Evidence, Facts, Platform, refused

UP_TO_DATE = "UpToDate"


@dataclass(frozen=True)
class Reference:
    """A program that an owner accepts.

    Attributes:
        platform: where it runs.
        registers: name -> hexadecimal digits that its evidence must state, the register of its identity among them.
        versions: name -> the least version of the platform's firmware (SEV-SNP).
        statuses: those of the platform that are accepted (TDX, SGX).
        signer: the key of simulated statements, which is accepted by this alone.
    """

    platform: Platform
    registers: Mapping[str, str]
    versions: Mapping[str, int] = field(default_factory=dict)
    statuses: Sequence[str] = (UP_TO_DATE,)
    signer: str | None = None

    def lacks(self, facts: Facts) -> str | None:
        """Say what facts lack of this program. None: nothing."""
        if facts.platform != self.platform:
            return f"its platform is {facts.platform}"
        for name, digits in self.registers.items():
            if facts.registers.get(name) != digits.lower():
                return f"its {name} is {facts.registers.get(name, 'not stated')}"
        for name, least in self.versions.items():
            if facts.versions.get(name, -1) < least:
                return f"its {name} has version {facts.versions.get(name)}"
        if facts.status is not None and facts.status not in self.statuses:
            return f"its platform's status is {facts.status}"
        return None if facts.signer == self.signer else "its statement is simulated, by a key that is not named"


def verify(evidence: Evidence, now: datetime) -> Facts:
    """Verify the signature of evidence and its chain to the root that is pinned for its platform.

    Args:
        now: time, with its zone, at which certificates and collateral must be valid.
    Raises:
        DecodeError: E-ATTEST for evidence that does not verify. E-MISSING without the package for its platform.
    """
    sizes = [len(evidence.document), *map(len, evidence.certificates), len(evidence.collateral or "")]
    if max(sizes) > LARGEST_BYTES or len(evidence.certificates) > 8:
        raise refused("it is larger than any evidence")
    by = {"snp": snp.verify, "tdx": tdx.verify, "sgx": tdx.verify, "nitro": nitro.verify}
    return by.get(evidence.platform, simulated.verify)(evidence, now)


def accepted(evidence: Evidence, references: Sequence[Reference], bound: bytes, now: datetime) -> Facts:
    """Return the facts of evidence that verifies, is bound to what it should be, and of an accepted program.

    Raises DecodeError(E-ATTEST), with what each reference lacks.
    """
    facts = verify(evidence, now)
    if facts.bound != bound:
        raise refused("it is bound to another key, run or role")
    if facts.debug:
        raise refused("the machine's operator can read the program's memory (debug)")
    lacking = []
    for reference in references:
        why = reference.lacks(facts)
        if why is None:
            return facts
        lacking.append(why)
    raise refused("; ".join(dict.fromkeys(lacking)) or "the owner accepts no program")
