"""A device's secrets from what others told, of whom some may lie; and who did.

A dealer says of each share what it is (``messages.share_check``), so a share that a holder reveals is the one that it
was dealt, or is known not to be. Each secret is checked against what its device signed at the start. So
    a share that is not the one of its check      its holder lied: an honest one took no other from its box
    right shares that do not give the secret      their dealer lied
    no share, where the box was passed on         one of the two lies, and which of them is not known; but of a device's
                                                  neighbours no more than ``Policy.lying`` do, so who is at odds with
                                                  more of them lies
and nothing that the others do makes an honest device one of these, while the policy's assumption holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from edgewise.core.errors import DecodeError
from edgewise.crypto import agree, shamir
from edgewise.secagg.messages import DIGEST_BYTES, Keys, Revealed, fits
from edgewise.secagg.secrets import commitment

LIED = "E-SECAGG-REVEAL"  # reported of who revealed something else than it knows; "E-SHARE" of who dealt wrong shares
Checks = Mapping[str, Mapping[str, bytes]]  # dealer -> holder -> its two checks


def seed(sid: bytes, device: str, keys: Keys, shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The seed of a device's own mask. ``shares``: point -> 33 bytes. Raises DecodeError(E-SHARE)."""
    return _right(secret := shamir.combine(shares, threshold), commitment(sid, device, secret) == keys.commitment)


def key(keys: Keys, shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret behind a device's pairwise masks. Raises as ``seed``."""
    return _right(secret := shamir.combine(shares, threshold), agree.public(secret) == keys.mask)


def _right(secret: bytes, is_right: bool) -> bytes:
    if not is_right:
        raise DecodeError("E-SHARE", "shares of another secret than their device committed to.")
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


def told(sid: bytes, roster: bytes, device: str, keys: Keys, message: Revealed, checks: Checks) -> Told:
    """What a device revealed, held against its commitment and the ``checks`` of the dealers."""

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
    lied = not is_own or len(seeds) + len(others) < len(of_others) + len(message.keys)
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
    said: Mapping[str, Told], threshold: int, most: int,
) -> Found:  # fmt: skip
    """The secrets that open a sum.

    Args:
        holders: dealer -> who was dealt its shares, in the order of their points. alive: whose updates are in the sum.
        said: what those revealed who did. most: how many of a device's neighbours may lie.
    """
    secrets, named, lacking, missing = dict[str, bytes](), dict[str, str](), list[str](), list[tuple[str, str]]()
    for dealer in holders:
        shares = dict[int, bytes]()
        for point, holder in enumerate(holders[dealer], 1):
            if holder == dealer or holder not in said:
                continue
            of_it = said[holder].seeds if dealer in alive else said[holder].keys
            if dealer in of_it:
                shares[point] = of_it[dealer]
            elif not said[holder].lied:
                missing.append((dealer, holder))
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
    return Found(secrets, _at_odds(missing, most) | named, tuple(lacking))


def _at_odds(pairs: Sequence[tuple[str, str]], most: int) -> dict[str, str]:
    """Who lies, of pairs (dealer, holder) whose box did not open, as the holder has it; nobody where only two are."""
    dealers, holders = Counter(dealer for dealer, _ in pairs), Counter(holder for _, holder in pairs)
    named = {device: LIED for device, n in holders.items() if n > max(1, most)}
    return named | {device: "E-SHARE" for device, n in dealers.items() if n > max(1, most)}
