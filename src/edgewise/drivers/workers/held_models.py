"""What the devices of a host have downloaded: blobs, and the model that deltas lead to as they are published.

A real device keeps two models: the one that its last invitation started from, and the one that it led to; the next
invitation starts from either. Simulated devices of one host hold the same models, so the host decodes every delta once
for all of them, when it is published, and remembers which model it led from and to. A device whose invitation starts
from a model further back has applied the same deltas one by one: the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Collection

from edgewise.core import frame, vector
from edgewise.core.errors import DecodeError
from edgewise.core.pipeline import Pipeline
from edgewise.core.vector import Buffer, Vector
from edgewise.engine import broadcast

LOG = logging.getLogger("edgewise")


class Following:
    """The newest model of the downlink ``pipe`` (None: there are no deltas), and the way to it."""

    def __init__(self, pipe: Pipeline | None) -> None:
        self._pipe = pipe
        self._round: int | None = None
        self._digest: str | None = None
        self._model: Vector | None = None
        self._steps: dict[str, tuple[str | None, str]] = {}  # digest of a delta -> of the models before and after it

    def put(self, round: int, digest: str, model: Vector) -> None:
        """The devices have this model of that round; an older one than what they have already is of no use."""
        if self._pipe is not None and (self._round is None or round > self._round):
            self._round, self._digest, self._model = round, digest, model

    def take(self, digest: str, blob: Buffer) -> None:
        """A blob was published: if it is the delta to the next round's model, apply it.

        One that cannot be decoded leads nowhere: the devices then have no model of its round, and say so.
        """
        if self._pipe is None or self._model is None or self._round is None or blob[: len(frame.MAGIC)] != frame.MAGIC:
            return
        try:
            message = frame.delta(blob)
            if message.round != self._round + 1:
                return
            model = broadcast.follow(self._pipe, self._model, blob)
        except DecodeError:
            return
        after = vector.digest(vector.to_bytes(model))
        self._steps[digest] = (self._digest, after)
        self._round, self._digest, self._model = message.round, after, model

    def find(self, invite: frame.Invite) -> Vector | None:
        """The model that an invitation's deltas lead to, float32[d]; None where they start from another model than
        devices here have had, or do not lead to the one that the invitation names by its digest."""
        at = invite.base
        for delta in invite.deltas:
            step = self._steps.get(delta)
            if step is None or step[0] != at:
                return None
            at = step[1]
        return self._model if at == invite.model == self._digest else None


class Downloads:
    """The blobs that the server has published, by digest, and the models that invitations name."""

    def __init__(self, dim: int, deltas: Pipeline | None) -> None:
        """``dim``: of what devices are given (``plan.layout``). ``deltas``: the plan's downlink."""
        self._dim = dim
        self._blobs: dict[str, Buffer] = {}
        self._following = Following(deltas)

    def put(self, digest: str, blob: Buffer, keep: Collection[str] = ()) -> None:
        """A blob was published; of the others those that ``keep`` names stay. One that does not have its digest is
        logged and left out."""
        self._blobs = {d: b for d, b in self._blobs.items() if d in keep}
        if vector.digest(blob) != digest:
            LOG.warning("a blob is not the one that its name says: %.64r", digest)
            return
        self._blobs[digest] = blob
        self._following.take(digest, blob)

    def hold(self, round: int, model: Vector) -> None:
        """The devices have this model of that round already."""
        self._following.put(round, vector.digest(vector.to_bytes(model)), model)

    def blob(self, digest: str) -> Buffer:
        """A blob. Raises DecodeError(E-BLOB) where it was not published here."""
        if digest not in self._blobs:
            raise DecodeError("E-BLOB", f"blob {digest[:12]} was never published here.")
        return self._blobs[digest]

    def snapshot(self, digest: str, dim: int) -> Vector:
        """The vector in a blob, float32[dim]. Raises DecodeError(E-BLOB) as ``blob``, or for another length."""
        return vector.from_bytes(self.blob(digest), dim)

    def model(self, invite: frame.Invite) -> Vector | None:
        """What an invitation names, float32 of ``dim``, from its snapshot or by its deltas; None where the deltas
        start from a model that the devices here do not have. Raises DecodeError as ``snapshot``."""
        if invite.base is not None:
            return self._following.find(invite)
        model = self.snapshot(invite.model, self._dim)
        self._following.put(invite.round, invite.model, model)
        return model
