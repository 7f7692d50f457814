"""States of the server's side of secure aggregation, one frozen dataclass per step, in their order.

``secagg.server`` moves from one to the next. A state holds digests and public keys beside the running sum. It holds no
secret of a device until ``Unmasking``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgewise.core.append_map import AppendMap
from edgewise.secagg import recovery
from edgewise.secagg.client import Registry
from edgewise.secagg.events import Device
from edgewise.secagg.messages import SessionKeys
from edgewise.secagg.params import Params
from edgewise.secagg.secrets import Body, Head, Hidden


@dataclass(frozen=True, slots=True)
class SecAggSession:
    """Constants of one session. ``registry``: device -> its enrolled Ed25519 key."""

    params: Params
    sid: bytes
    registry: Registry = field(repr=False)


@dataclass(frozen=True)
class Advertising:
    """State that collects keys. ``seen``: all public keys among them."""

    session: SecAggSession
    keys: AppendMap[Device, SessionKeys] = field(default_factory=AppendMap)
    seen: AppendMap[bytes, None] = field(default_factory=AppendMap, repr=False)


@dataclass(frozen=True)
class Sharing:
    """State that collects sealed shares. ``roster``: its digest. ``near``: device -> its neighbours. ``boxes``: dealer
    -> neighbour -> box. Once boxes have been passed on, only their dealers' digests of the shares remain in ``boxes``.
    ``signatures``: dealer -> its signature on all its boxes, and their digest."""

    session: SecAggSession
    roster: bytes
    keys: Mapping[Device, SessionKeys]
    near: Mapping[Device, tuple[Device, ...]]
    threshold: int
    boxes: AppendMap[Device, Mapping[Device, bytes]] = field(default_factory=AppendMap, repr=False)
    signatures: AppendMap[Device, tuple[bytes, bytes]] = field(default_factory=AppendMap, repr=False)
    gone: AppendMap[Device, None] = field(default_factory=AppendMap)


@dataclass(frozen=True)
class Masking:
    """State that collects masked updates. ``total`` is their running sum and must not be used after the next step.
    ``boxes_sent``: device -> digest of its boxes. ``folded``: device -> dealers whose boxes it reports failed."""

    shared: Sharing
    boxes_sent: Mapping[Device, bytes] = field(repr=False)
    total: Hidden = field(repr=False)
    folded: AppendMap[Device, tuple[Device, ...]] = field(default_factory=AppendMap)
    gone: AppendMap[Device, None] = field(default_factory=AppendMap)


@dataclass(frozen=True)
class Signing:
    """State that collects signatures on ``survivors``, the sorted devices of ``masked.folded``, by their ``digest``."""

    masked: Masking
    survivors: tuple[Device, ...]
    digest: bytes = field(repr=False)
    signatures: AppendMap[Device, bytes] = field(default_factory=AppendMap)
    gone: AppendMap[Device, None] = field(default_factory=AppendMap)


@dataclass(frozen=True)
class Unmasking:
    """State that collects shares from every device that signed."""

    signed: Signing
    revealed: AppendMap[Device, recovery.CheckedShares] = field(default_factory=AppendMap)
    gone: AppendMap[Device, None] = field(default_factory=AppendMap)


@dataclass(frozen=True)
class Released:
    """End state with the sum of the survivors' bodies (uint32[d] mod 2^bits) and heads (uint64[h]), and no more."""

    body: Body = field(repr=False)
    head: Head = field(repr=False)
    survivors: tuple[Device, ...]


@dataclass(frozen=True)
class Aborted:
    """End state without a sum. ``why`` is one sentence."""

    code: str
    why: str


State = Advertising | Sharing | Masking | Signing | Unmasking | Released | Aborted
