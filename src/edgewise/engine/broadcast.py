"""Broadcast of the model to devices: compressed deltas or a snapshot, whichever is smaller, and the invitations.

    m = C(w - v),  v' = v + decode(m)      w: the server's model, v: the broadcast model ("shadow")

Devices train from v, and the server adds the aggregate to w. The difference w - v holds everything that earlier deltas
left out. So this is error feedback with its memory on the server: where C contracts, v stays near w.

A device that took part in round s holds the v of that round. It gets the deltas since then where they are fewer bytes
than a snapshot of v. Decoding and adding is float32 in one fixed order, so deltas and snapshot give the same bytes. The
invitation names their digest.
Source: Tang et al. 2019, arXiv:1905.05957 (DoubleSqueeze); Gruntkowska et al. 2023, arXiv:2209.15218 (EF21-P).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgewise.codecs.wire import pack
from edgewise.core import frame, vector
from edgewise.core.decoding import undo
from edgewise.core.errors import DecodeError, TrainingError
from edgewise.core.keys import KEY_BYTES, Turn
from edgewise.core.memory import Memory
from edgewise.core.pipeline import Pipeline
from edgewise.core.training import DeviceId
from edgewise.core.vector import Vector
from edgewise.engine.checkpoint import Change, Checkpoint, DeltaBlob, Downlink, Standing
from edgewise.engine.round_states import Closed
from edgewise.plan.plan import Plan

STALE = "E-STALE"
BEACON_BYTES = 512  # largest entry of one device in a run's beacon
SUPPORT = "support"  # name in the child ``release`` of a phase's memory: int64[], increasing positions


def start(initial: Vector) -> Downlink:
    """Begin the broadcast before the first round. Devices will download ``initial`` itself."""
    return Downlink(0, initial, vector.digest(vector.to_bytes(initial)), (), initial)


def advance(plan: Plan, pipe: Pipeline, down: Downlink, model: Vector) -> Downlink:
    """Add one delta after a round, towards ``model`` (float32 of ``Layout.given``).

    Drops the oldest deltas while the ring is at least as large as a snapshot. A device that far behind downloads the
    snapshot instead. The newest delta always stays, so that a device with the model before it can follow.
    Deterministic: the same inputs give the same bytes.
    Raises TrainingError(E-NAN) where the difference or the new shadow is not finite.
    """
    turn = plan.turn_down(down.round + 1)
    payload, _ = pipe.encode(model - down.shadow, {}, 1.0, Memory(), turn)
    body = pack.pack(payload, pipe.encoded)
    blob = frame.dump(frame.Delta(round=turn.round, public=turn.public, payload=memoryview(body)))
    shadow = follow(pipe, down.shadow, blob)
    if not np.isfinite(shadow).all():
        raise TrainingError(
            "E-NAN", f"the broadcast model left the range of float32 in round {turn.round}.", "compress less."
        )
    ring, anchor = [*down.ring, DeltaBlob(turn.round, vector.digest(blob), down.model, blob)], down.anchor
    while len(ring) > 1 and sum(len(d.blob) for d in ring) >= plan.snapshot_bytes:
        anchor = follow(pipe, anchor, ring.pop(0).blob)
    return Downlink(turn.round, shadow, vector.digest(vector.to_bytes(shadow)), tuple(ring), anchor)


def replace_broadcast_model(down: Downlink, model: Vector) -> Downlink:
    """Replace the broadcast model of ``down.round``. Devices download ``model`` itself, and no delta leads to it."""
    return Downlink(down.round, model, vector.digest(vector.to_bytes(model)), (), model)


def follow(pipe: Pipeline, model: Vector, blob: vector.Buffer) -> Vector:
    """Apply one delta, on a device or on the server. Returns a new float32[d].

    Raises DecodeError (E-FRAME, E-PAYLOAD) for a blob that is no delta of this plan.
    """
    message = frame.delta(blob)
    if len(message.public) != KEY_BYTES:
        raise DecodeError("E-FRAME", "the blob is no delta: its key has the wrong length.")
    payload = pack.unpack(message.payload, pipe.encoded)
    step = undo(pipe.stages, pipe.spaces, payload, Turn(message.round, message.public))
    out: Vector = np.array(model, np.float32)
    if step.support is None:
        out += step.body
    else:
        out[step.support] += step.body
    return out


def deltas_since(down: Downlink, held: int) -> tuple[DeltaBlob, ...]:
    """Select the deltas from the model of round ``held`` to the shadow. Empty where the ring does not reach so far."""
    if not down.anchor_round <= held < down.round:
        return ()
    return down.ring[held - down.anchor_round :]


@dataclass(frozen=True)
class Letters:
    """Invitations of a round.

    Attributes:
        frames: device -> its invitation, in the order of the cohort.
        sizes: device -> bytes that it has to download, invitation and blobs.
        blobs: blobs that must be available, each once.
    """

    frames: Mapping[DeviceId, bytes] = field(repr=False)
    sizes: Mapping[DeviceId, int]
    blobs: tuple[vector.Buffer, ...] = field(repr=False)


def snapshot(plan: Plan, checkpoint: Checkpoint) -> vector.Buffer:
    """Make the blob that devices download in the next round: the model that they train from, then the strategy's
    vectors beside it."""
    down = checkpoint.down
    return vector.to_bytes(plan.layout.broadcast(checkpoint.state) if down is None else down.shadow)


def letters(
    common: frame.Invite,
    model: vector.Buffer,
    support: bytes | None,
    down: Downlink | None,
    devices: Mapping[DeviceId, Standing],
    beacon: bytes | None = None,
) -> Letters:
    """Make the invitations of ``devices``, each with deltas or the snapshot, whichever is fewer bytes for the device.

    All of the ring is among the blobs, so that devices which are not invited may follow the model too.
    Args:
        common: fields that all invitations share. model: ``snapshot``. support: the blob that ``common.support`` names,
            None where it names none. beacon: likewise. A device whose update was accepted has it already.
    """
    frames: dict[DeviceId, bytes] = {}
    sizes: dict[DeviceId, int] = {}
    needs_snapshot = down is None
    for device, standing in devices.items():
        letter = msgspec.structs.replace(common, accepted=standing.accepted)
        raw = frame.dump(letter)
        beside = len(support or b"") + (len(beacon or b"") if standing.accepted is None else 0)
        size = len(raw) + len(model) + beside
        if down is not None and standing.held is not None and (deltas := deltas_since(down, standing.held)):
            letter = msgspec.structs.replace(letter, base=deltas[0].base, deltas=tuple(d.digest for d in deltas))
            shorter = frame.dump(letter)
            if (by_deltas := len(shorter) + sum(len(d.blob) for d in deltas) + beside) < size:
                raw, size = shorter, by_deltas
            else:
                needs_snapshot = True
        else:
            needs_snapshot = True
        frames[device], sizes[device] = raw, size
    ring = () if down is None else tuple(d.blob for d in down.ring)
    named = tuple(blob for blob in (support, beacon) if blob is not None)
    return Letters(frames, sizes, (*((model,) if needs_snapshot else ()), *ring, *named))


def downloads(letter: frame.Invite) -> tuple[str, ...]:
    """List the digests of the blobs that an invited device has to download."""
    named = tuple(digest for digest in (letter.support, letter.draw and letter.draw.beacon) if digest)
    return (*(letter.deltas if letter.base else (letter.model,)), *named)


def most_bytes(plan: Plan) -> int:
    """Bound the bytes of all blobs of an invitation, with room to spare.

    A snapshot is float32. Deltas are smaller together, or there is only the newest. Positions have 8 bytes each at
    most. A beacon has an entry for each of its contributors.
    """
    return 16 * plan.layout.given.dim + 2**17 + BEACON_BYTES * plan.contributors


def change(closed: Closed, versions: Mapping[DeviceId, int]) -> Change:
    """Derive the changes of devices' standing by a round. ``versions``: as in ``Change``.

    Devices that sent an update of its model had that model. Devices that refused with E-STALE have no model that a
    delta starts from any more.
    """
    stale = tuple(device for device, code in closed.lost if code == STALE)
    return Change(closed.accepted if closed.met else (), closed.accepted, stale, versions)


def released(pipe: Pipeline, memory: Memory, mean: Vector) -> Memory:
    """Put the positions of the release ``mean`` (float32[d]) into ``memory``, where stages ask for them."""
    n = pipe.encoded.announced
    return memory.put("release", None, Memory({SUPPORT: largest(mean, n)})) if n else memory


def largest(x: Vector, n: int) -> NDArray[np.int64]:
    """Find the increasing positions of the n coordinates of largest magnitude.

    Edge cases: fewer than n where fewer are not zero. Of equal magnitudes the lowest positions come first.
    """
    n = min(n, int(np.count_nonzero(x)))
    if n == 0:
        return np.zeros(0, np.int64)
    magnitude = np.abs(x)
    threshold = np.partition(magnitude, x.size - n)[x.size - n]
    above = np.flatnonzero(magnitude > threshold)
    level = np.flatnonzero(magnitude == threshold)[: n - above.size]
    return np.sort(np.concatenate([above, level])).astype(np.int64)
