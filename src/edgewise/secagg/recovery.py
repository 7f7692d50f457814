"""A device's secrets from what others told, of whom some may lie; and who did.

A dealer says of each share what it is (``messages.share_check``), so a share that a holder reveals is the one that it
was dealt, or is known not to be. A holder says with its masked update which boxes failed, and so which shares it has.
Each secret is checked against what its device signed at the start. So
    a share that is not the one of its check      its holder lied: an honest one took no other from its box
    no share, where the holder accused nobody     its holder lied
    right shares that do not give the secret      their dealer lied
    a holder that accuses a dealer                one of the two lies, and which of them is not known; but of a device's
                                                  neighbours no more than ``TrustPolicy.lying`` do, so who is at odds
                                                  with more of them lies
and nothing that the others do makes an honest device one of these, while the policy's assumption holds. A dealer that
is accused by fewer, and of whom fewer shares are left than open its secret, is *suspect*. It lies where no more devices
dropped out than the policy says: the thresholds leave enough shares of an honest one (``params``, condition 5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgewise.core.errors import DecodeError
from edgewise.crypto import agree, shamir
from edgewise.secagg.messages import DIGEST_BYTES, Keys, Revealed, fits
from edgewise.secagg.secrets import commitment

LIED = "E-SECAGG-REVEAL"  # reported of who accused too many, or revealed something else than it knows
DEALT = "E-SHARE"  # of who dealt wrong shares
SUSPECT = "E-SECAGG-ODDS"  # of who is accused, and of whom too few shares are left
NAMED = (LIED, DEALT, SUSPECT)
Checks = Mapping[str, Mapping[str, bytes]]  # dealer -> holder -> its two checks


def seed(sid: bytes, device: str, keys: Keys, shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The seed of a device's own mask. ``shares``: point -> 33 bytes. Raises DecodeError(E-SHARE)."""
    return _right(secret := shamir.combine(shares, threshold), commitment(sid, device, secret) == keys.commitment)


def key(keys: Keys, shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind a device's pairwise masks. Raises as ``seed``."""
    return _right(secret := shamir.combine(shares, threshold), agree.public(secret) == keys.mask)


def _right(secret: bytes, is_right: bool) -> bytes:
    if not is_right:
        raise DecodeError(DEALT, "shares of another secret than their device committed to.")
    return secret


@dataclass(frozen=True)
class Told:
    """What one device revealed, without what is not true.

    Attributes:
        own: the seed of its own mask; empty where it told another one, or none. seeds, keys: dealer -> share.
        lied: it told something else than it knows.
    """

    own: bytes = field(repr=False)
    seeds: Mapping[str, bytes] = field(repr=False)
    keys: Mapping[str, bytes] = field(repr=False)
    lied: bool


def told(sid: bytes, roster: bytes, device: str, keys: Keys, message: Revealed, checks: Checks, held: int) -> Told:
    """What a device revealed, held against its commitment and the ``checks`` of the dealers. ``held``: of how many
    dealers it has shares, by its own account."""

    def right(shares: Mapping[str, bytes], kind: bytes) -> dict[str, bytes]:
        at = slice(0, DIGEST_BYTES) if kind == b"seed" else slice(DIGEST_BYTES, None)
        return {
            dealer: share
            for dealer, share in shares.items()
            if fits(checks[dealer][device][at], roster, dealer, device, kind, share)
        }

    of_others = {dealer: share for dealer, share in message.seeds.items() if dealer != device}
    seeds, others = right(of_others, b"seed"), right(message.keys, b"key")
    own = message.seeds.get(device, b"")[: shamir.SECRET_BYTES]
    is_own = shamir.element(own) == message.seeds.get(device) and commitment(sid, device, own) == keys.commitment
    lied = not is_own or len(seeds) + len(others) < held
    return Told(own if is_own else b"", seeds, others, lied)


@dataclass(frozen=True)
class Found:
    """Attributes:
    secrets: of each dealer that is in the sum the seed of its own mask, of the others that of their pairwise masks.
    named: device -> code, of those who lied. lacking: the dealers whose secret cannot be found.
    """

    secrets: Mapping[str, bytes] = field(repr=False)
    named: Mapping[str, str]
    lacking: tuple[str, ...]


def recover(
    sid: bytes, keys: Mapping[str, Keys], holders: Mapping[str, Sequence[str]], alive: Collection[str],
    said: Mapping[str, Told], threshold: int,
) -> Found:  # fmt: skip
    """The secrets that open a sum.

    Args:
        holders: dealer -> who was dealt its shares, in the order of their points. alive: whose updates are in the sum.
        said: what those revealed who did.
    """
    secrets, named, lacking = dict[str, bytes](), dict[str, str](), list[str]()
    for dealer in holders:
        shares = dict[int, bytes]()
        for point, holder in enumerate(holders[dealer], 1):
            if holder == dealer or holder not in said:
                continue
            of_it = said[holder].seeds if dealer in alive else said[holder].keys
            if dealer in of_it:
                shares[point] = of_it[dealer]
        own = said[dealer].own if dealer in said else b""
        if len(shares) >= threshold:  # also where the seed is known: this is how wrong shares come to light
            try:
                own = (
                    seed(sid, dealer, keys[dealer], shares, threshold)
                    if dealer in alive
                    else key(keys[dealer], shares, threshold)
                )
            except DecodeError as e:
                named[dealer] = e.code
        if own:
            secrets[dealer] = own
        else:
            lacking.append(dealer)
    return Found(secrets, named, tuple(lacking))


@dataclass(frozen=True)
class Accused:
    """Attributes:
    named: device -> code, of those who lied. lacking: dealers that are in no sum, and of whose secret too few others
    have shares.
    """

    named: Mapping[str, str]
    lacking: tuple[str, ...]


def accused(
    holders: Mapping[str, Sequence[str]], failed: Mapping[str, Sequence[str]], threshold: int, most: int
) -> Accused:
    """Who lied about boxes, and which secrets are lost already, before anything is revealed.

    Args:
        holders: dealer -> who was dealt its shares. failed: holder -> the dealers that it accuses, of all whose masked
        updates came. most: how many of a device's neighbours may lie. One accusation names nobody, whatever ``most``.
    """
    pairs = [(dealer, holder) for holder, dealers in failed.items() for dealer in dealers]
    by_dealer, by_holder = Counter(dealer for dealer, _ in pairs), Counter(holder for _, holder in pairs)
    named = {device: LIED for device, n in by_holder.items() if n > max(1, most)}
    named |= {device: DEALT for device, n in by_dealer.items() if n > max(1, most)}
    lacking = tuple(
        dealer
        for dealer in holders
        if dealer not in failed and sum(h in failed and dealer not in failed[h] for h in holders[dealer]) < threshold
    )
    return Accused(suspects(lacking, failed) | named, lacking)


def suspects(lacking: Iterable[str], failed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Of dealers whose secrets are lost those that some holder accuses."""
    by_any = {dealer for dealers in failed.values() for dealer in dealers}
    return {dealer: SUSPECT for dealer in lacking if dealer in by_any}
