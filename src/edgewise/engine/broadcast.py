"""The way down: what devices hold of the model, the deltas that lead there, and what each invitation makes download.

    m = C(w - v),  v' = v + decode(m)      w: the server's model, v: the one that devices hold ("shadow")

Devices train from v, the server adds the aggregate to w. The difference w - v holds all that earlier deltas left out,
so this is error feedback with its memory on the server: where C contracts, v stays near w.

A device that took part in round s holds the v of that round, and gets the deltas since then where they are fewer bytes
than a snapshot of v. Decoding and adding is float32 in one fixed order, so both ways give the same bytes, and the
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
from edgewise.core.errors import DecodeError, TrainingError
from edgewise.core.keys import KEY_BYTES, Turn
from edgewise.core.memory import Memory
from edgewise.core.pipeline import Pipeline, undo
from edgewise.core.training import DeviceId
from edgewise.core.vector import Vector
from edgewise.engine.ports import Change, Checkpoint, DeltaBlob, Downlink, Standing
from edgewise.engine.round_states import Closed
from edgewise.plan.plan import Plan

STALE = "E-STALE"
BEACON_BYTES = 512  # of one device in a run's beacon, at most
SUPPORT = "support"  # in the child ``release`` of a phase's memory: int64[], increasing positions


def start(initial: Vector) -> Downlink:
    """Before the first round: devices will be given ``initial`` itself."""
    return Downlink(0, initial, vector.digest(vector.to_bytes(initial)), (), initial)


def advance(plan: Plan, pipe: Pipeline, down: Downlink, model: Vector) -> Downlink:
    """After a round: one delta more, towards ``model`` (float32[d], or more of it: ``Layout.given``).

    Drops the oldest deltas while the ring is at least as large as a snapshot. A device that far behind downloads the
    snapshot instead. The newest delta always stays, so that a device with the model before it can go on.
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
            "E-NAN", f"what devices hold of the model left float32 in round {turn.round}.", "compress less."
        )
    ring, anchor = [*down.ring, DeltaBlob(turn.round, vector.digest(blob), down.model, blob)], down.anchor
    while len(ring) > 1 and sum(len(d.blob) for d in ring) >= plan.snapshot_bytes:
        anchor = follow(pipe, anchor, ring.pop(0).blob)
    return Downlink(turn.round, shadow, vector.digest(vector.to_bytes(shadow)), tuple(ring), anchor)


def follow(pipe: Pipeline, model: Vector, blob: vector.Buffer) -> Vector:
    """Apply one delta, on a device or on the server: float32[d], new.

    Raises DecodeError (E-FRAME, E-PAYLOAD) on a blob that is no delta of this plan.
    """
    message = frame.delta(blob)
    if len(message.public) != KEY_BYTES:
        raise DecodeError("E-FRAME", "not a delta.")
    payload = pack.unpack(message.payload, pipe.encoded)
    step = undo(pipe.stages, pipe.spaces, payload, Turn(message.round, message.public))
    out: Vector = np.array(model, np.float32)
    if step.support is None:
        out += step.body
    else:
        out[step.support] += step.body
    return out


def since(down: Downlink, held: int) -> tuple[DeltaBlob, ...]:
    """The deltas from the model of round ``held`` to the shadow; empty where the ring does not reach back so far."""
    if not down.anchor_round <= held < down.round:
        return ()
    return down.ring[held - down.anchor_round :]


@dataclass(frozen=True)
class Letters:
    """A round's invitations.

    Attributes:
        frames: device -> its invitation, in the order of the cohort.
        sizes: device -> bytes that it has to download, invitation and blobs.
        blobs: what must be available, without double.
    """

    frames: Mapping[DeviceId, bytes] = field(repr=False)
    sizes: Mapping[DeviceId, int]
    blobs: tuple[vector.Buffer, ...] = field(repr=False)


def snapshot(plan: Plan, checkpoint: Checkpoint) -> vector.Buffer:
    """What devices are given in the next round, the model to train from first, as a blob."""
    down = checkpoint.down
    return vector.to_bytes(plan.layout.broadcast(checkpoint.state) if down is None else down.shadow)


def letters(
    common: frame.Invite,
    model: vector.Buffer,
    support: bytes,
    down: Downlink | None,
    devices: Mapping[DeviceId, Standing],
    beacon: bytes = b"",
) -> Letters:
    """The invitations of ``devices``, each by the way down that is fewer bytes for its device.

    All of the ring is among the blobs: a device that nobody asks may follow the model all the same.

    Args:
        common: what all invitations say. model: ``snapshot``. support: the blob that ``common.support`` names; empty
            where it names none. beacon: likewise; a device whose update was accepted has it.
    """
    frames: dict[DeviceId, bytes] = {}
    sizes: dict[DeviceId, int] = {}
    whole = down is None  # somebody needs the snapshot
    for device, standing in devices.items():
        letter = msgspec.structs.replace(common, accepted=standing.accepted)
        raw = frame.dump(letter)
        beside = len(support) + (len(beacon) if standing.accepted is None else 0)
        size = len(raw) + len(model) + beside
        if down is not None and standing.held is not None and (way := since(down, standing.held)):
            letter = msgspec.structs.replace(letter, base=way[0].base, deltas=tuple(d.digest for d in way))
            shorter = frame.dump(letter)
            if (least := len(shorter) + sum(len(d.blob) for d in way) + beside) < size:
                raw, size = shorter, least
            else:
                whole = True
        else:
            whole = True
        frames[device], sizes[device] = raw, size
    ring = () if down is None else tuple(d.blob for d in down.ring)
    named = tuple(blob for blob in (support, beacon) if blob)
    return Letters(frames, sizes, (*((model,) if whole else ()), *ring, *named))


def downloads(letter: frame.Invite) -> tuple[str, ...]:
    """Digests of the blobs that an invited device has to download."""
    named = tuple(digest for digest in (letter.support, letter.draw and letter.draw.beacon) if digest)
    return (*(letter.deltas if letter.base else (letter.model,)), *named)


def most_bytes(plan: Plan) -> int:
    """Bytes that all blobs of an invitation have at most, with room to spare: a snapshot is float32, deltas are smaller
    together or one of them is the newest, and positions have 8 bytes each where they have most. A beacon has an entry
    for each of its contributors."""
    return 16 * plan.layout.given.dim + 2**17 + BEACON_BYTES * plan.contributors


def change(closed: Closed) -> Change:
    """What a round changes in who has what: those who sent an update of its model had it, and those who refused with
    E-STALE have nothing to start from any more."""
    stale = tuple(device for device, code in closed.lost if code == STALE)
    return Change(closed.accepted if closed.met else (), closed.accepted, stale)


def released(pipe: Pipeline, memory: Memory, mean: Vector) -> Memory:
    """``memory`` with the positions of the release ``mean`` (float32[d]) that stages ask for."""
    n = pipe.encoded.announced
    return memory.put("release", None, Memory({SUPPORT: largest(mean, n)})) if n else memory


def largest(x: Vector, n: int) -> NDArray[np.int64]:
    """Increasing positions of the n coordinates of largest magnitude, fewer where fewer are not zero; equal ones go to
    the lowest positions."""
    n = min(n, int(np.count_nonzero(x)))
    if n == 0:
        return np.zeros(0, np.int64)
    magnitude = np.abs(x)
    threshold = np.partition(magnitude, x.size - n)[x.size - n]
    above = np.flatnonzero(magnitude > threshold)
    level = np.flatnonzero(magnitude == threshold)[: n - above.size]
    return np.sort(np.concatenate([above, level])).astype(np.int64)
