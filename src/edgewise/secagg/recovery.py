"""Recovery of devices' secrets from revealed shares, some of them false, and identification of the liars.

A dealer publishes a digest of each share (``messages.share_check``). So a revealed share is the dealt one, or is known
to be another. A holder reports with its masked update which boxes failed, and so which shares it has. Each secret is
checked against its device's signed commitment. The rules are
    a share that does not fit its digest          its holder lied: an honest one took no other from its box
    no share of a dealer that it did not accuse   the holder lied
    right shares that do not give the secret      their dealer lied
    a holder that accuses a dealer                one of the two lies, and which one is not known. At most
                                                  ``TrustPolicy.lying`` of a device's neighbours lie, so a device that
                                                  is at odds with more of them lies
While the policy's assumption holds, nothing that others do makes an honest device fall under one of these rules.
A dealer that fewer holders accuse, and of whose secret too few shares remain, is *suspect*. It lies where no more
devices dropped out than the policy says: the thresholds leave enough shares of an honest one (``params``, condition 5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from edgewise.core.errors import DecodeError
from edgewise.crypto import agree, shamir
from edgewise.secagg.messages import DIGEST_BYTES, RevealedMessage, SessionKeys, share_fits
from edgewise.secagg.secrets import mask_commitment

LIED = "E-SECAGG-REVEAL"  # for a device that accused too many dealers, or revealed something else than it knows
DEALT = "E-SHARE"  # for a device that dealt wrong shares
SUSPECT = "E-SECAGG-ODDS"  # for an accused device of whose secret too few shares remain
NAMED = (LIED, DEALT, SUSPECT)
Checks = Mapping[str, Mapping[str, bytes]]  # dealer -> holder -> its two checks


def recover_seed(sid: bytes, device: str, keys: SessionKeys, shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Recover the seed of a device's own mask.

    Args: shares: point -> 33 bytes. threshold: shares that give a secret back.
    Raises DecodeError(E-SHARE) for too few or other shares than its device committed to.
    """
    return _right_secret(
        secret := shamir.combine_shares(shares, threshold), mask_commitment(sid, device, secret) == keys.commitment
    )


def recover_key(keys: SessionKeys, shares: Mapping[int, bytes], threshold: int) -> bytes:
    """Recover the secret key of a device's pairwise masks. Raises as ``recover_seed``."""
    return _right_secret(secret := shamir.combine_shares(shares, threshold), agree.public_half(secret) == keys.mask)


def _right_secret(secret: bytes, is_right: bool) -> bytes:
    """Return a secret that is the committed one. Raises DecodeError for another."""
    if not is_right:
        raise DecodeError(DEALT, "the shares give another secret than their device committed to.")
    return secret


@dataclass(frozen=True)
class CheckedShares:
    """Shares that one device revealed and that passed their checks.

    Attributes:
        own: the seed of its own mask, None where it revealed another one or none. seeds, keys: dealer -> share.
        lied: it revealed something else than it knows.
    """

    own: bytes | None = field(repr=False)
    seeds: Mapping[str, bytes] = field(repr=False)
    keys: Mapping[str, bytes] = field(repr=False)
    lied: bool


def check_revealed(
    sid: bytes, roster: bytes, device: str, keys: SessionKeys, message: RevealedMessage, checks: Checks, dealers: int
) -> CheckedShares:
    """Check the shares that a device revealed against its commitment and the dealers' digests.

    Args: checks: the dealers' digests. dealers: number of dealers whose shares the device has, by its own report.
    """

    def fitting(shares: Mapping[str, bytes], kind: bytes) -> dict[str, bytes]:
        half = slice(0, DIGEST_BYTES) if kind == b"seed" else slice(DIGEST_BYTES, None)
        return {
            dealer: share
            for dealer, share in shares.items()
            if share_fits(checks[dealer][device][half], roster, dealer, device, kind, share)
        }

    seeds_of_others = {dealer: share for dealer, share in message.seeds.items() if dealer != device}
    seeds, key_shares = fitting(seeds_of_others, b"seed"), fitting(message.keys, b"key")
    own = message.seeds.get(device, b"")[: shamir.SECRET_BYTES]
    is_own = (
        shamir.field_element(own) == message.seeds.get(device) and mask_commitment(sid, device, own) == keys.commitment
    )
    lied = not is_own or len(seeds) + len(key_shares) < dealers
    return CheckedShares(own if is_own else None, seeds, key_shares, lied)


@dataclass(frozen=True)
class RecoveredSecrets:
    """Recovered secrets of a session.

    Attributes:
        secrets: dealer -> the seed of its own mask if it is in the sum, otherwise the key of its pairwise masks.
        named: liar -> code. lacking: dealers whose secret cannot be recovered.
    """

    secrets: Mapping[str, bytes] = field(repr=False)
    named: Mapping[str, str]
    lacking: tuple[str, ...]


def recover_secrets(
    sid: bytes, keys: Mapping[str, SessionKeys], holders: Mapping[str, Sequence[str]], alive: Collection[str],
    revealed: Mapping[str, CheckedShares], threshold: int,
) -> RecoveredSecrets:  # fmt: skip
    """Recover the secrets that open a sum.

    Args:
        holders: dealer -> holders of its shares, in the order of their points. alive: devices in the sum.
        revealed: device -> the shares that it revealed. A device that revealed nothing is not in it.
    """
    secrets, named, lacking = dict[str, bytes](), dict[str, str](), list[str]()
    for dealer in holders:
        shares = dict[int, bytes]()
        for point, holder in enumerate(holders[dealer], 1):
            if holder == dealer or holder not in revealed:
                continue
            by_dealer = revealed[holder].seeds if dealer in alive else revealed[holder].keys
            if dealer in by_dealer:
                shares[point] = by_dealer[dealer]
        own = revealed[dealer].own if dealer in revealed else None
        if len(shares) >= threshold:  # Combine even where the seed is known: this brings wrong shares to light.
            try:
                own = (
                    recover_seed(sid, dealer, keys[dealer], shares, threshold)
                    if dealer in alive
                    else recover_key(keys[dealer], shares, threshold)
                )
            except DecodeError as e:
                named[dealer] = e.code
        if own is not None:
            secrets[dealer] = own
        else:
            lacking.append(dealer)
    return RecoveredSecrets(secrets, named, tuple(lacking))


@dataclass(frozen=True)
class AccusedDealers:
    """Liars and lost secrets, known before any share is revealed.

    Attributes:
        named: liar -> code. lacking: dealers that are in no sum, and of whose secret too few others have shares.
    """

    named: Mapping[str, str]
    lacking: tuple[str, ...]


def accused_devices(
    holders: Mapping[str, Sequence[str]], failed: Mapping[str, Sequence[str]], threshold: int, most: int
) -> AccusedDealers:
    """Name the devices that lied about boxes, and the secrets that are lost already, before any share is revealed.

    Args:
        holders: dealer -> holders of its shares. failed: holder -> the dealers that it accuses, for every holder whose
        masked update came. most: how many of a device's neighbours may lie.
    Edge case: one accusation names nobody, whatever ``most``.
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
    return AccusedDealers(suspect_dealers(lacking, failed) | named, lacking)


def suspect_dealers(lacking: Iterable[str], failed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Select, of the dealers whose secrets are lost, those that some holder accuses."""
    accused_dealers = {dealer for dealers in failed.values() for dealer in dealers}
    return {dealer: SUSPECT for dealer in lacking if dealer in accused_dealers}
