"""The result of verifying a run, in words and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Verified:
    """The result of verifying a run.

    Attributes:
        run, name: the run.
        rounds: rounds that were played.
        released: how many of them made a model.
        first: the first round whose total was replayed.
        replayed: the number of replayed totals.
        server: what the server does with a total.
        lines, chain: the number of lines in the record of rounds, and the digest of the last one.
        charges: lines of the privacy ledger.
        epsilon: recomputed from the charges. None without differential privacy.
        budget: the epsilon that the run may spend.
        files: models on the disk that have their digests.
        model: digest of the newest model.
        open: sentences that say what was not verified, and why.
        ok: True if a model was replayed, or if there was none to replay.
    """

    run: str
    name: str
    rounds: int
    released: int
    first: int
    replayed: int
    server: str
    lines: int
    chain: str
    charges: int
    epsilon: float | None
    budget: float | None
    files: int
    model: str
    open: tuple[str, ...]
    ok: bool

    def to_plain(self) -> dict[str, Any]:
        """Convert to plain JSON."""
        return asdict(self)


def verified_from_plain(plain: Mapping[str, Any]) -> Verified:
    """Convert from plain JSON, as the inverse of ``Verified.to_plain``."""
    known = {field.name: plain[field.name] for field in fields(Verified)}
    return Verified(**{**known, "open": tuple(known["open"])})


def counted(n: int, what: str) -> str:
    """Write a number with its noun."""
    return f"{n} {what}{'s' * (n != 1)}"


def verified_lines(found: Verified) -> list[str]:
    """Write the verification of a run in words."""
    gone = found.rounds - found.released
    replay = f"{found.replayed} of {counted(found.released, 'released total')}, from round {found.first} on"
    out = [f"run {found.run[:12]} of {found.name}: {'verified' if found.ok else 'not verified'}"]
    if found.replayed:
        out.append(f"  replayed    {replay}: each gives the model that was released")
        out.append(f"  server      {found.server}")
    else:
        reason = "the folder keeps no totals" if found.released else "no model was released"
        out.append(f"  replayed    nothing: {reason}")
    if gone:
        out.append(f"  abandoned   {counted(gone, 'round')}: no total, and the model stayed")
    out.append(f"  chain       {found.lines} lines, each names the one before; the last is {found.chain}")
    if found.epsilon is None:
        out.append("  ledger      empty: the run promises no differential privacy")
    else:
        charges = f"{counted(found.charges, 'charge')} in one chain, epsilon {found.epsilon:.4g}"
        out.append(f"  ledger      {charges} of {found.budget:.4g}, recomputed")
    out.append(f"  on disk     {counted(found.files, 'model')} with the right digest; the newest is {found.model[:16]}")
    return [*out, "what this does not show", *(f"  {sentence}" for sentence in found.open)]
