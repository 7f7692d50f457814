"""Evidence of this machine, obtained by a command of its operator.

    attest = EvidenceCommand(["/usr/local/bin/evidence"])
    attest(bound)                       # runs `/usr/local/bin/evidence 3f9a...`, and reads evidence as JSON

Machines differ in how evidence is obtained (a device file, a socket, a cloud's agent), and in where certificates and
collateral come from. So a small program of the operator does it, and nothing of it has to be trusted: whoever asks for
evidence verifies it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from edgewise.core.errors import TransportError
from edgewise.crypto.attest import evidence
from edgewise.crypto.attest.evidence import Evidence

TIMEOUT_S = 60.0


class EvidenceCommand:
    """A command that prints evidence.

    Args:
        command: program and arguments. The 64 bytes to bind are added as one argument, 128 hexadecimal digits.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)

    def __call__(self, bound: bytes) -> Evidence:
        """Obtain evidence for 64 bytes.

        Raises TransportError(E-ATTEST) where the command fails, DecodeError(E-ATTEST) where it prints something else.
        """
        try:
            ended = subprocess.run(
                [*self._command, bound.hex()], stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired) as e:
            raise self._failed(str(e)) from None
        if ended.returncode:
            raise self._failed(f"exit status {ended.returncode}: {ended.stderr.decode(errors='replace')[-300:]}")
        return evidence.parse(ended.stdout)

    def _failed(self, why: str) -> TransportError:
        what = f"the command for evidence, {self._command[0]}, failed: {why:.500}."
        return TransportError("E-ATTEST", what, "try it by hand with 128 hexadecimal digits as its last argument.")
