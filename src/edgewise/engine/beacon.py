"""Beacon of a run: random values of several devices, committed to before any is revealed, which draw the run's cohorts.

    server    asks devices for commitments, fixes a list of ``Plan.contributors`` of them, and asks those for reveals
    device    commits to a fresh value and reveals it once, with a signature over the one list that it has seen
    everybody checks the reveals, derives the seed of a round from them and the server's key of the round, and draws

    commitment = H("beacon value", run, device, value)
    list       = H("beacon list", run, anchor, device 1, commitment 1, device 2, ...)
    signature  = Ed25519 over H("beacon reveal", list, device, value)
    joint      = H("beacon", list, value 1, value 2, ...)
    key r - 1  = H("beacon key", key r),  anchor = H("beacon key", key 0)
    seed r     = H("cohort", joint, r, key r), or H("turns", joint) where groups take turns
    ticket     = SHA-256(seed, device). The cohort has the smallest tickets.

H is ``secagg.messages.secagg_digest``. The list binds the server's keys of all rounds (``anchor``), and the run binds
the roster. At least one contributor is honest and reveals for one list only. Nobody knew its value when that list was
fixed, so nobody chose ``joint``. A contributor that withholds its reveal ends the list, and no cohort is drawn from the
others' values. The gain of a server that throws lists away is counted (``plan.trust``).

A seed is public to the devices of its round. Where privacy rests on cohorts that nobody knows, none is verified.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

from edgewise.core import frame, vector
from edgewise.core.errors import DecodeError
from edgewise.core.keys import Key
from edgewise.core.training import DeviceId
from edgewise.crypto import sign
from edgewise.engine.ports import Trust
from edgewise.plan.plan import Plan
from edgewise.plan.sampling import Sampling
from edgewise.secagg.client import Registry
from edgewise.secagg.messages import secagg_digest

_FIX = "do not trust this server before its operator has explained it."


def key(top: Key, rounds: int, round: int) -> Key:
    """Derive the server's key of a round. ``top``: the key of the last round, 32 secret bytes."""
    current = top
    for _ in range(rounds - 1 - round):
        current = _earlier_key(current)
    return current


def anchor(top: Key, rounds: int) -> bytes:
    """Compute the server's commitment to its keys of all rounds."""
    return _earlier_key(key(top, rounds, 0))


def _earlier_key(later: Key) -> Key:
    """Compute the key before this one in the hash chain."""
    return secagg_digest(b"beacon key", later)


def commitment(run: str, device: DeviceId, value: bytes) -> bytes:
    """Compute a device's commitment to its value."""
    return secagg_digest(b"beacon value", run.encode(), device.encode(), value)


def list_digest(run: str, committed_to: bytes, listed: Sequence[frame.Committed]) -> bytes:
    """Digest of a list of commitments, which a reveal is bound to."""
    return secagg_digest(
        b"beacon list",
        run.encode(),
        committed_to,
        *(part for c in listed for part in (c.device.encode(), c.commitment)),
    )


def reveal_digest(fixed: bytes, device: DeviceId, value: bytes) -> bytes:
    """Digest that a device signs when it reveals its value. ``fixed``: ``list_digest``."""
    return secagg_digest(b"beacon reveal", fixed, device.encode(), value)


def check_list(contributors: int, trust: Trust, listed: Sequence[frame.Committed]) -> None:
    """Check a list of commitments. ``contributors``: as in ``Plan``.

    Raises DecodeError(E-BEACON) for fewer devices than one honest one needs, for more, each of which costs a device the
        check of a signature, for unknown devices, and for a device that stands on the list twice.
    """
    if not contributors or len(listed) != contributors:
        raise _unusable_beacon(
            f"{len(listed)} devices are on its list, and {contributors} are needed for one to be honest"
        )
    known = _roster_members(trust.roster)
    if any(a.device >= b.device for a, b in pairwise(listed)) or not all(c.device in known for c in listed):
        raise _unusable_beacon("its list is not sorted, or names devices that are not on the run's roster")


def valid_reveal(trust: Trust, fixed: bytes, listed: frame.Committed, run: str, value: bytes, signature: bytes) -> bool:
    """Tell whether a device on a list has revealed the value that it committed to, for this list."""
    public = trust.registry(listed.device)
    same = commitment(run, listed.device, value) == listed.commitment
    return same and public is not None and sign.verify(public, signature, reveal_digest(fixed, listed.device, value))


def cohort(plan: Plan, trust: Trust, draw: frame.Draw | None, round: int, blob: bytes | None) -> frozenset[DeviceId]:
    """Verify a beacon and draw the cohort of a round. ``draw``: of its invitation. ``blob``: the beacon that it names.

    Raises DecodeError(E-BEACON) where the blob is not the one named or not a beacon of this run, where a reveal is
        missing or is not the one committed to, and where the round's key does not lead to the anchor.
    """
    if draw is None or blob is None or vector.digest(blob) != draw.beacon:
        raise _unusable_beacon("the blob is not the one that the invitation names")
    value, committed_to = joint(plan.run, plan.contributors, trust, blob)
    first = draw.key
    for _ in range(round + 1):
        first = _earlier_key(first)
    if first != committed_to:
        raise _unusable_beacon("the round's key is not the one that the server committed to")
    return drawn(plan.sampling, trust.roster, seed(plan.sampling, value, round, draw.key), round)


@lru_cache(maxsize=8)
def joint(run: str, contributors: int, trust: Trust, blob: bytes) -> tuple[bytes, bytes]:
    """Verify a beacon. Returns its joint value and the server's anchor.

    Raises DecodeError: E-BEACON as ``cohort``, and E-FRAME where the bytes are no beacon at all.
    """
    beacon = frame.beacon(blob)
    if beacon.run != run:
        raise _unusable_beacon("it is of another run")
    check_list(contributors, trust, beacon.listed)
    if not len(beacon.listed) == len(beacon.values) == len(beacon.signatures):
        raise _unusable_beacon("not every device on its list has revealed")
    fixed = list_digest(run, beacon.anchor, beacon.listed)
    for listed, value, signature in zip(beacon.listed, beacon.values, beacon.signatures, strict=True):
        if not valid_reveal(trust, fixed, listed, run, value, signature):
            raise _unusable_beacon("a device on its list has not revealed, for this list, what it committed to")
    return secagg_digest(b"beacon", fixed, *beacon.values), beacon.anchor


def verified(
    plan: Plan, trust: Trust | None, device: DeviceId, invite: frame.Invite, blob: bytes | None
) -> frozenset[DeviceId] | None:
    """Verify the cohort of an invitation, with this device in it. None where the server draws cohorts alone.

    Raises DecodeError: E-BEACON as ``cohort``, and E-COHORT where the device was not drawn.
    """
    if not plan.contributors:
        return None
    if trust is None:
        raise ValueError("verifying a cohort needs to know who is enrolled")
    found = cohort(plan, trust, invite.draw, invite.round, blob)
    if device not in found:
        raise DecodeError("E-COHORT", "this device is not in the round's cohort.", _FIX)
    return found


def within(registry: Registry, members: frozenset[DeviceId] | None) -> Registry:
    """Restrict a registry to a cohort that the device has verified. With None it stays as it is.

    The returned registry raises DecodeError(E-COHORT) for a device outside, which has no place on a roster of keys.
    """
    if members is None:
        return registry

    def enrolled(device: DeviceId) -> bytes | None:
        if device not in members:
            raise DecodeError("E-COHORT", "the roster names a device that is not in the round's cohort.", _FIX)
        return registry(device)

    return enrolled


def seed(sampling: Sampling, value: bytes, round: int, key: Key) -> bytes:
    """Derive the seed that draws a round's cohort.

    Args: value: ``joint``. key: of the round. Groups that take turns are dealt once, without it.
    """
    if sampling.kind == "cyclic":
        return secagg_digest(b"turns", value)
    return secagg_digest(b"cohort", value, round.to_bytes(8, "little"), key)


@lru_cache(maxsize=8)
def drawn(sampling: Sampling, roster: tuple[DeviceId, ...], seed: bytes, round: int) -> frozenset[DeviceId]:
    """Draw the cohort of a seed: the devices with the ``invite`` smallest tickets.

    Where groups take turns, it is every ``groups``-th device in the order of tickets, from the round's turn on.
    """
    order = sorted(roster, key=lambda device: hashlib.sha256(seed + device.encode()).digest())
    if sampling.kind == "cyclic":
        return frozenset(order[round % sampling.groups :: sampling.groups])
    return frozenset(order[: sampling.invite])


@lru_cache(maxsize=8)
def _roster_members(roster: tuple[DeviceId, ...]) -> frozenset[DeviceId]:
    """Collect the devices of a roster, once for each roster."""
    return frozenset(roster)


def _unusable_beacon(why: str) -> DecodeError:
    """Make the error for a beacon that cannot be used."""
    return DecodeError("E-BEACON", f"the run's beacon cannot be used: {why}.", _FIX)
