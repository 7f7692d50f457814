"""Two links counted apart: from nodes to the edge server of their site, and from edge servers to the hub.

    simulation.run(recipe, ..., wrap=lambda cohort: EdgeLinks(cohort, site_of, out / "links.json"))

An edge server passes each frame of its nodes on as it is, up and down. It fetches a blob once, and each of its nodes
fetches it from there (as ``apps.gateway`` does). Every frame and blob is counted where it passes. The first model,
which the first round's invitations name, is counted apart: it can come with the machines.

Frames of measurements (``Probe``) are the simulator's and count nowhere.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgewise.core import frame
from edgewise.core.errors import StoreError
from edgewise.core.foreign import foreign
from edgewise.core.training import DeviceId
from edgewise.core.vector import Buffer
from edgewise.drivers.storage.files import write_durably
from edgewise.engine.broadcast import downloads
from edgewise.engine.ports import Absent, Arrived, Cohort, Sent

NODE, HUB = "node_edge", "edge_hub"
_KINDS = ("up", "down", "first_model", "frames")
Counts = dict[str, dict[str, int]]


class EdgeLinks:
    """A Cohort port that counts what passes both links, by round.

    Args:
        inner: the cohort of nodes, or of edge servers.
        site_of: device -> its site. None where the devices are the edge servers, and there is no link to a node.
        path: file of the counts. It is written when a round ends, so a resumed run goes on with it.
        limit_bytes: of a frame.
    Raises:
        StoreError: E-CHECKPOINT for a damaged file.
    """

    def __init__(
        self, inner: Cohort, site_of: Callable[[DeviceId], str] | None, path: Path, limit_bytes: int = 1 << 30
    ) -> None:
        self._inner, self._site_of, self._path, self._limit = inner, site_of, path, limit_bytes
        self._sizes: dict[str, int] = {}
        self._round: int | None = None
        kept = read_link_file(path) if path.is_file() else {"rounds": {}, "held": {}}
        self._rounds: dict[str, Counts] = kept["rounds"]
        self._held = {holder: set(digests) for holder, digests in kept["held"].items()}
        self._open: Counts = _no_counts()

    def now_s(self) -> float:
        """See Clock."""
        return self._inner.now_s()

    def publish(self, blobs: Sequence[Buffer]) -> Sequence[str]:
        """See Cohort."""
        digests = self._inner.publish(blobs)
        self._sizes = dict(zip(digests, map(len, blobs), strict=True))
        return digests

    def send(self, to: DeviceId, frame: bytes) -> None:
        """See Cohort."""
        self._count_down(to, frame)
        self._inner.send(to, frame)

    def resume(self, sent: Sequence[Sent], at_s: float) -> None:
        """See Cohort. The frames of the round that was stopped are counted again, and its counts begin anew."""
        for one in sent:
            self._count_down(one.device, one.frame)
        self._inner.resume(sent, at_s)

    def receive(self, timeout_s: float) -> Arrived | Absent | None:
        """See Cohort."""
        found = self._inner.receive(timeout_s)
        if isinstance(found, Arrived) and not isinstance(
            frame.from_device(bytes(found.frame), self._limit), frame.Measurement
        ):
            for link in self._links():
                self._open[link]["up"] += len(found.frame)
                self._open[link]["frames"] += 1
        return found

    def close_round(self, keep: Collection[DeviceId] = ()) -> None:
        """See Cohort. The counts of the round are durable when this returns."""
        self._inner.close_round(keep)
        self._write()

    def carry(self, at_work: Mapping[DeviceId, int]) -> None:
        """See Cohort."""
        self._inner.carry(at_work)
        self._write()

    def _links(self) -> tuple[str, ...]:
        return (HUB,) if self._site_of is None else (NODE, HUB)

    def _count_down(self, to: DeviceId, raw: bytes) -> None:
        """Count a frame to a device, and the blobs that it makes the device fetch."""
        message = frame.from_server(raw, self._limit)
        if isinstance(message, frame.Probe):
            return
        if isinstance(message, frame.Invite) and message.round != self._round:
            self._round, self._open = message.round, _no_counts()
        for link in self._links():
            self._open[link]["down"] += len(raw)
            self._open[link]["frames"] += 1
        if isinstance(message, frame.Invite):
            kind = "first_model" if message.base is None and not self._rounds else "down"
            for digest in downloads(message):
                for link, holder in self._holders(to):
                    held = self._held.setdefault(holder, set())
                    if digest not in held:
                        held.add(digest)
                        self._open[link][kind] += self._sizes[digest]

    def _holders(self, device: DeviceId) -> list[tuple[str, str]]:
        """List the links that a blob passes, each with the holder at its lower end."""
        if self._site_of is None:
            return [(HUB, f"site:{device}")]
        return [(NODE, f"node:{device}"), (HUB, f"site:{self._site_of(device)}")]

    def _write(self) -> None:
        """Write the counts of the round that ended."""
        if self._round is None:
            return
        self._rounds[str(self._round)] = self._open
        held = {holder: sorted(digests & self._sizes.keys()) for holder, digests in self._held.items()}
        write_durably(self._path, json.dumps({"rounds": self._rounds, "held": held}).encode())


def read_link_file(path: Path) -> Any:
    """Read the counts of a run. Raises StoreError(E-CHECKPOINT) for a damaged file."""
    with foreign(StoreError, "E-CHECKPOINT", f"{path} is damaged", "start again with another --out."):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert set(found) == {"rounds", "held"}
    return found


def link_totals(path: Path) -> Counts:
    """Add up the counts of all rounds, by link and kind. Raises as ``read_link_file``."""
    out: Counts = _no_counts()
    for counts in read_link_file(path)["rounds"].values():
        for link, each in counts.items():
            for kind, n in each.items():
                out[link][kind] += n
    return out


def _no_counts() -> Counts:
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for link in (NODE, HUB):
        found[link] = dict.fromkeys(_KINDS, 0)
    return dict(found)
