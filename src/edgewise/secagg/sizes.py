"""Bytes that one device's session takes where nobody drops out, measured on real messages with zeros for contents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edgewise.crypto.shamir import SHARE_BYTES
from edgewise.crypto.sign import SIGNATURE_BYTES
from edgewise.kernels.bits import packed_bytes
from edgewise.secagg import messages
from edgewise.secagg.client import share_holders
from edgewise.secagg.params import Params

_SIGNATURE, _WORD, _BOX, _SHARE = bytes(SIGNATURE_BYTES), bytes(32), bytes(messages.BOX_BYTES), bytes(SHARE_BYTES)


def secagg_letter_bytes(params: Params, names: Sequence[str], framed: Callable[[bytes], int]) -> tuple[int, int]:
    """Count the bytes that a device sends and receives in a session, over all messages of all steps.

    Args:
        names: devices of the session, 2 or more. framed: length of the frame around a message.
    Returns: bytes sent, the masked update included, and bytes received.
    Raises CompositionError as ``TrustPolicy.shape``.
    """
    n, everybody = len(names), sorted(names)
    k, _ = params.policy.shape(n)
    near = everybody[1 : k + 1]
    keys = messages.SessionKeys(seal=_WORD, mask=_WORD, commitment=_WORD, signature=_SIGNATURE)
    dealt = messages.DealtBox(box=_BOX, all=_WORD, signature=_SIGNATURE)
    body, head = bytes(packed_bytes(params.dim, params.bits)), bytes(8 * params.heads)
    sent = (
        messages.AdvertiseMessage(keys=keys),
        messages.SharesMessage(boxes=dict.fromkeys(near, _BOX), signature=_SIGNATURE),
        messages.MaskedMessage(body=body, head=head, failed=(), signature=_SIGNATURE),
        messages.ConsistentMessage(signature=_SIGNATURE),
        messages.RevealedMessage(seeds=dict.fromkeys(everybody[: k + 1], _SHARE), keys={}, signature=_SIGNATURE),
    )
    received = (
        messages.RosterMessage(keys=dict.fromkeys(everybody, keys)),
        messages.BoxesMessage(boxes=dict.fromkeys(near, dealt)),
        messages.SurvivorsMessage(devices=tuple(everybody)),
        messages.ProofsMessage(signatures=dict.fromkeys(share_holders(everybody[0], tuple(near), n), _SIGNATURE)),
    )
    up_bytes, down_bytes = (sum(framed(messages.dump(message)) for message in side) for side in (sent, received))
    return up_bytes, down_bytes
