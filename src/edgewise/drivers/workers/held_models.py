"""The downloads of a host's devices: blobs, and the models that the broadcast deltas lead to.

A real device keeps two models: the one from which its last invitation started, and the one to which it led. The next
invitation starts from either. All simulated devices of a host hold the same models. So the host decodes every delta
once for all of them, when it is published, and remembers the models before and after it. A device whose invitation
starts from an older model has applied the same deltas one by one, with the same bytes as result.
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
    """The newest model of the broadcast ``pipe``, and the deltas that led to it. None: there are no deltas."""

    def __init__(self, pipe: Pipeline | None) -> None:
        self._pipe = pipe
        self._round: int | None = None
        self._digest: str | None = None
        self._model: Vector | None = None
        self._steps: dict[
            str, tuple[str | None, str]
        ] = {}  # digest of a delta -> digests of the models before and after it

    def put(self, round: int, digest: str, model: Vector) -> None:
        """Set the devices' model of a round. A model older than the current one is ignored."""
        if self._pipe is not None and (self._round is None or round > self._round):
            self._round, self._digest, self._model = round, digest, model

    def take(self, digest: str, blob: Buffer) -> None:
        """Apply a published blob if it is the delta to the next round's model.

        A delta that cannot be decoded is skipped. The devices then have no model of its round and report that.
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
        new_digest = vector.digest(vector.to_bytes(model))
        self._steps[digest] = (self._digest, new_digest)
        self._round, self._digest, self._model = message.round, new_digest, model

    def find(self, invite: frame.Invite) -> Vector | None:
        """Return the model that an invitation's deltas lead to, float32[d].

        None where the deltas start from a model that the devices here never had, or lead to another model than the
        invitation names by its digest.
        """
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
        """Begin without blobs.

        Args:
            dim: length of the model's vector (``plan.layout``).
            deltas: the plan's broadcast pipeline.
        """
        self._dim = dim
        self._blobs: dict[str, Buffer] = {}
        self._following = Following(deltas)

    def put(self, digest: str, blob: Buffer, keep: Collection[str] = ()) -> None:
        """Add a published blob, and drop the other blobs that ``keep`` does not name.

        A blob that does not have its digest is logged and left out.
        """
        self._blobs = {d: b for d, b in self._blobs.items() if d in keep}
        if vector.digest(blob) != digest:
            LOG.warning("a blob has other bytes than its name says: %.64r", digest)
            return
        self._blobs[digest] = blob
        self._following.take(digest, blob)

    def hold(self, round: int, model: Vector) -> None:
        """Set the model that the devices have of that round already."""
        self._following.put(round, vector.digest(vector.to_bytes(model)), model)

    def blob(self, digest: str) -> Buffer:
        """Return a blob.

        Raises:
            DecodeError: E-BLOB where it was not published here.
        """
        if digest not in self._blobs:
            raise DecodeError("E-BLOB", f"blob {digest[:12]} was never published here.")
        return self._blobs[digest]

    def snapshot(self, digest: str, dim: int) -> Vector:
        """Return the vector in a blob, float32[dim].

        Raises:
            DecodeError: E-BLOB where the blob was not published here or has another length.
        """
        return vector.from_bytes(self.blob(digest), dim)

    def model(self, invite: frame.Invite) -> Vector | None:
        """Return the model of an invitation, float32[dim], from its snapshot or by its deltas.

        None where the deltas start from a model that the devices here do not have. Raises DecodeError as ``snapshot``.
        """
        if invite.base is not None:
            return self._following.find(invite)
        model = self.snapshot(invite.model, self._dim)
        self._following.put(invite.round, invite.model, model)
        return model
