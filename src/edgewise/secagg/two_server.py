"""Secure aggregation with two servers: additive shares and one message per device, so that drop-outs need no recovery.

    x_H = PRG(k)  (k: 32 bytes),  x_L = x - PRG(k) mod 2^b;  sum x = sum x_L + sum x_H

The leader gets x_L and the helper gets k, each sealed to its own HPKE key. Neither learns anything about x unless they
work together. The device signs its report, so a leader cannot fill a batch with reports of its own (Sybils). Both
servers refuse a report that they have seen before, that belongs to another model or configuration, or whose half does
not open. The helper opens a batch once, with at least ``n_min`` reports, each of another device.
Not checked: a device may send any residues, because there are no validity proofs.
Source: the shape of DAP (draft-ietf-ppm-dap) and Prio (Corrigan-Gibbs and Boneh 2017).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from edgewise.core.append_map import AppendMap
from edgewise.core.errors import DecodeError
from edgewise.core.vector import Buffer
from edgewise.crypto import prg, seal, sign
from edgewise.crypto.agree import AgreementPair, agreement_pair
from edgewise.kernels.bits import pack_bits, packed_bytes, unpack_bits
from edgewise.secagg.client import Registry
from edgewise.secagg.messages import Device, Signature, secagg_digest
from edgewise.secagg.params import Params
from edgewise.secagg.secrets import Body, Head, Hidden, expand_mask, fresh_secret

ID_BYTES = 16
_BLOCK = 1 << 16  # Coordinates per block. A multiple of 8, so that every block ends on a byte.
_SEALED_SEED_BYTES = prg.SEED_BYTES + seal.HPKE_OVERHEAD_BYTES

Id = Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Ends = Annotated[bytes, msgspec.Meta(min_length=seal.LARGE_OVERHEAD_BYTES, max_length=seal.LARGE_OVERHEAD_BYTES)]
Sealed = Annotated[bytes, msgspec.Meta(min_length=_SEALED_SEED_BYTES, max_length=_SEALED_SEED_BYTES)]


class ShareReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """First ``_HEAD_BYTES`` of a device's report. The leader's box follows, with x_L and the head scalars.

    The signature covers the leader's box by its ends (sealed key and authentication tag), not by a digest of its
    megabytes. Without the key nobody can make another box with these ends. The leader has the key, but it could
    misstate its own share in any case.
    Attributes:
        id: 16 random bytes. helper: sealed k. signature: Ed25519 over ``share_report_digest``.
    """

    id: Id
    helper: Sealed
    signature: Signature


class HelperTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Helper's part of a report: everything except the leader's box, of which it has the ends."""

    device: Device
    id: Id
    leader: Ends
    helper: Sealed
    signature: Signature


_Record = TypeVar("_Record", ShareReport, HelperTicket)
_encoder = msgspec.msgpack.Encoder()
_reports: msgspec.msgpack.Decoder[ShareReport] = msgspec.msgpack.Decoder(ShareReport)
_tickets: msgspec.msgpack.Decoder[HelperTicket] = msgspec.msgpack.Decoder(HelperTicket)
_HEAD_BYTES = len(
    _encoder.encode(
        ShareReport(id=bytes(ID_BYTES), helper=bytes(_SEALED_SEED_BYTES), signature=bytes(sign.SIGNATURE_BYTES))
    )
)


def dump_ticket(ticket: HelperTicket) -> bytes:
    """Serialise a ticket for the helper."""
    return _encoder.encode(ticket)


def load_ticket(raw: bytes) -> HelperTicket:
    """Parse a ticket. Raises DecodeError(E-FRAME) for anything that ``dump_ticket`` cannot have produced."""
    return _strictly_decoded(raw, _tickets)


def _strictly_decoded(raw: bytes, decoder: msgspec.msgpack.Decoder[_Record]) -> _Record:
    """Decode a record, and refuse one that is not in its only form."""
    try:
        record = decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DecodeError("E-FRAME", "the report or ticket is malformed.") from None
    if _encoder.encode(record) != raw:
        raise DecodeError("E-FRAME", "the report or ticket is not in its only encoding.")
    return record


def share_report_digest(context: bytes, device: str, id: bytes, leader: bytes, helper: bytes) -> bytes:
    """Digest that a device signs. ``leader``: the ends of the leader's box."""
    return secagg_digest(b"report", context, device.encode(), id, leader, helper)


def _share_context(context: bytes, role: bytes, device: str, id: bytes) -> bytes:
    """Context that binds a sealed share to its round, role, device and report."""
    return secagg_digest(b"share", context, role, device.encode(), id)


def leader_box_ends(box: bytes | memoryview) -> bytes:
    """Ends of the leader's box: its sealed key (80 bytes) and its authentication tag (16 bytes)."""
    return bytes(box[: seal.LARGE_OVERHEAD_BYTES - seal.OVERHEAD_BYTES]) + bytes(box[-seal.OVERHEAD_BYTES :])


def share_report_bytes(params: Params) -> int:
    """Length of a device's report (``split``), in bytes."""
    return _HEAD_BYTES + packed_bytes(params.dim, params.bits) + 8 * params.heads + seal.LARGE_OVERHEAD_BYTES


def split(
    params: Params,
    context: bytes,
    device: str,
    identity: bytes,
    leader: bytes,
    helper: bytes,
    body: Body,
    head: Head,
    entropy: bytes,
) -> bytearray:
    """Split an update into two sealed shares and sign the report.

    The report is the only large copy of the update. It is masked, packed and sealed block by block.
    Args:
        context: ``messages.secagg_session_id`` of the round. identity: secret Ed25519 key. leader, helper: the servers'
        HPKE keys. body: uint32[dim] below 2^bits. head: uint64[heads]. entropy: 32 fresh secret bytes.
    """
    id, k = fresh_secret(entropy, context, "report", device)[:ID_BYTES], fresh_secret(entropy, context, "share", device)
    report = bytearray(share_report_bytes(params))
    room = memoryview(report)[_HEAD_BYTES:]
    box = seal.LargeSealedBox(
        leader, fresh_secret(entropy, context, "box", device), _share_context(context, b"leader", device, id), room
    )
    tail, stream = expand_mask(k, context, params.heads)
    np.subtract(head, tail, out=tail)
    minus, share = prg.MaskStream(stream, -1, params.bits), np.empty(_BLOCK, np.uint32)
    for start in range(0, params.dim, _BLOCK):
        part = body[start : start + _BLOCK]
        block = share[: part.size]
        block[:] = part
        minus.add(block)
        box.write(pack_bits(block, params.bits))
    box.write(tail.astype("<u8", copy=False).view(np.uint8).data)
    box.close()
    other = seal.hpke_seal(helper, k, _share_context(context, b"helper", device, id))
    signature = sign.sign(identity, share_report_digest(context, device, id, leader_box_ends(room), other))
    report[:_HEAD_BYTES] = _encoder.encode(ShareReport(id=id, helper=other, signature=signature))
    return report


def server_pair(entropy: bytes) -> AgreementPair:
    """Derive a server's HPKE key pair from its entropy."""
    return agreement_pair(entropy)


def _authentic_ticket(context: bytes, registry: Registry, t: HelperTicket) -> None:
    """Return a ticket that its enrolled device has signed. Raises DecodeError for another."""
    enrolled = registry(t.device)
    if enrolled is None or not sign.verify(
        enrolled, t.signature, share_report_digest(context, t.device, t.id, t.leader, t.helper)
    ):
        raise DecodeError("E-SECAGG-KEYS", "the report is not signed by an enrolled device for this round.")


@dataclass(frozen=True)
class LeaderState:
    """State of the leader, which adds its shares as they arrive.

    Attributes:
        secret: HPKE key. total: running sum, which must not be used after the next report.
        counted: device -> report id. ids: the same ids, for looking one up.
    """

    params: Params
    context: bytes
    secret: bytes = field(repr=False)
    registry: Registry = field(repr=False)
    total: Hidden = field(repr=False)
    counted: AppendMap[str, bytes] = field(default_factory=AppendMap)
    ids: AppendMap[bytes, None] = field(default_factory=AppendMap, repr=False)


def lead_two_servers(params: Params, context: bytes, secret: bytes, registry: Registry) -> LeaderState:
    """Begin a leader's round without reports. ``secret`` is its HPKE key."""
    return LeaderState(params, context, secret, registry, Hidden(params))


def open_share_report(leader: LeaderState, device: str, raw: Buffer) -> tuple[HelperTicket, Hidden]:
    """Open a report: the ticket for the helper, and the leader's own share, which is not counted yet.

    Raises DecodeError: E-FRAME, E-SECAGG-KEYS (signature), E-SECAGG-ORDER (a second report), E-SEAL, E-PAYLOAD.
    """
    box = memoryview(raw)[_HEAD_BYTES:]
    report = _strictly_decoded(bytes(raw[:_HEAD_BYTES]), _reports)
    if len(box) < seal.LARGE_OVERHEAD_BYTES:
        raise DecodeError("E-FRAME", "the report's box is too short for its ends.")
    ticket = HelperTicket(
        device=device, id=report.id, leader=leader_box_ends(box), helper=report.helper, signature=report.signature
    )
    if device in leader.counted or report.id in leader.ids:
        raise DecodeError("E-SECAGG-ORDER", "the device or its report is counted already.")
    _authentic_ticket(leader.context, leader.registry, ticket)
    plain = seal.open_large_box(leader.secret, box, _share_context(leader.context, b"leader", device, report.id))
    return ticket, load_share(leader.params, plain)


def dump_share(share: Hidden) -> bytes:
    """Serialise a share: the body packed in ``bits`` bits a residue, then the head in 8 bytes a residue."""
    packed = bytes(pack_bits(share.body, share.params.bits))
    return packed + share.head.astype("<u8", copy=False).tobytes()


def load_share(params: Params, raw: Buffer) -> Hidden:
    """Parse a share. Raises DecodeError(E-PAYLOAD) for another size, or bits beyond the last residue."""
    size = packed_bytes(params.dim, params.bits)
    body = unpack_bits(memoryview(raw)[:size], params.bits, params.dim)
    if body is None or len(raw) != size + 8 * params.heads:
        raise DecodeError("E-PAYLOAD", "the share has another size than the session's.")
    return Hidden(params, body.astype(np.uint32, copy=False), np.frombuffer(raw, "<u8", offset=size))


def add_leader_share(leader: LeaderState, ticket: HelperTicket, share: Hidden) -> LeaderState:
    """Add an opened share that the helper has admitted."""
    leader.total.add(share.body, share.head)
    counted, ids = leader.counted.plus(ticket.device, ticket.id), leader.ids.plus(ticket.id, None)
    return replace(leader, counted=counted, ids=ids)


@dataclass(frozen=True)
class HelperState:
    """State of the helper, which keeps 32 bytes per report until the batch is opened, and report ids for ever.

    Attributes:
        secret: HPKE key. seen: ids of all reports of earlier rounds and this one. They must survive a restart.
        seeds: device -> (report id, k) of this round. Empty once the batch is opened.
        opened: this round's batch has been opened.
    """

    params: Params
    context: bytes
    secret: bytes = field(repr=False)
    registry: Registry = field(repr=False)
    seen: AppendMap[bytes, None] = field(default_factory=AppendMap)
    seeds: AppendMap[str, tuple[bytes, bytes]] = field(default_factory=AppendMap, repr=False)
    opened: bool = False


def admit_share_report(helper: HelperState, ticket: HelperTicket) -> HelperState:
    """Admit a report to the round's batch.

    Raises DecodeError: E-SECAGG-ORDER (seen before, a second one of its device, or the batch was opened),
        E-SECAGG-KEYS (wrong signature, or another context, that is model, configuration or round), E-SEAL.
    """
    if helper.opened or ticket.id in helper.seen or ticket.device in helper.seeds:
        raise DecodeError("E-SECAGG-ORDER", "the device or its report came before, or the batch has been opened.")
    _authentic_ticket(helper.context, helper.registry, ticket)
    k = seal.hpke_open(
        helper.secret, ticket.helper, _share_context(helper.context, b"helper", ticket.device, ticket.id)
    )
    seeds = helper.seeds.plus(ticket.device, (ticket.id, k))
    return replace(helper, seen=helper.seen.plus(ticket.id, None), seeds=seeds)


def open_helper_batch(helper: HelperState, devices: Iterable[str]) -> tuple[HelperState, Hidden]:
    """Open the helper's share of the sum over these devices' reports, once.

    Guarantees: the helper then forgets all seeds of the round. So no second batch can be opened that differs by one
        report.
    Raises DecodeError: E-SECAGG-ORDER (opened already, a device without a report), E-SECAGG-FEW (below n_min).
    """
    batch = sorted(set(devices))
    if helper.opened or not all(device in helper.seeds for device in batch):
        raise DecodeError("E-SECAGG-ORDER", "the batch was opened before, or lists a device without a report.")
    if len(batch) < helper.params.n_min:
        raise DecodeError("E-SECAGG-FEW", f"the batch has {len(batch)} reports. {helper.params.n_min} are needed.")
    share = Hidden(helper.params)
    share.mask(((helper.seeds[device][1], 1) for device in batch), helper.context)
    return closed_helper_batch(helper), share


def closed_helper_batch(helper: HelperState) -> HelperState:
    """Mark a helper's batch as opened, and forget the seeds of the round."""
    return replace(helper, seeds=AppendMap(), opened=True)
