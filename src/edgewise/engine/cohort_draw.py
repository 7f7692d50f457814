"""Draw of the cohorts of a run: by the server alone, or from a beacon that devices verify (``engine.beacon``).

draw = CohortDraw(plan, population, sampling_key, trust, store)
draw.gather(cohort, tell)                               # once, before the first round
blob = draw.blob()                                      # None where the server draws alone
message = draw.message(round, blob)
invited = draw.invited(checkpoint, message, blob)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgewise.core import frame, vector
from edgewise.core.errors import StoreError
from edgewise.core.events import AnyEvent
from edgewise.core.keys import Key, derive
from edgewise.core.training import DeviceId
from edgewise.engine import beacon, beacon_server, outstanding, sampling
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.loop import receive
from edgewise.engine.ports import Cohort, Store, Trust
from edgewise.plan.plan import Plan


@dataclass(frozen=True)
class CohortDraw:
    """The draw of a run's cohorts.

    Attributes:
        population: sorted device ids. key: 32 bytes that decide which devices are invited, in all rounds.
        trust: the enrolled devices. Needed where devices verify cohorts. store: keeps the beacon.
    """

    plan: Plan
    population: Sequence[DeviceId]
    key: Key = field(repr=False)
    trust: Trust | None
    store: Store

    def gather(self, cohort: Cohort, tell: Callable[[AnyEvent], None]) -> None:
        """Run the common draw of the beacon, where devices verify cohorts and it has not been made yet.

        Raises RoundError(E-BEACON) where too few devices remain for it.
        """
        if not self.plan.contributors or beacon_server.stored(self.store.beacon) is not None:
            return
        assert self.trust is not None
        anchor = beacon.anchor(self._last_round_key, self.plan.rounds)
        gathering = beacon_server.Gathering(
            self.plan, self.population, self.trust, anchor, cohort, self.store.beacon, tell
        )
        gathering.begin()
        receive(cohort, gathering)
        cohort.close_round()

    def blob(self) -> bytes | None:
        """Load the beacon that cohorts are drawn from. None where the server draws alone."""
        if not self.plan.contributors:
            return None
        if (blob := beacon_server.stored(self.store.beacon)) is None:
            raise StoreError("E-CHECKPOINT", "the run has no beacon.", "put a whole copy of the folder in its place.")
        return blob

    def message(self, round: int, blob: bytes | None) -> frame.Draw | None:
        """Make the message by which devices verify a round's cohort. None where they do not."""
        if blob is None:
            return None
        return frame.Draw(beacon=vector.digest(blob), key=beacon.key(self._last_round_key, self.plan.rounds, round))

    def invited(self, checkpoint: Checkpoint, message: frame.Draw | None, blob: bytes | None) -> tuple[DeviceId, ...]:
        """Draw the devices that the next round invites."""
        round, buffer = checkpoint.next_round, self.plan.sampling.buffer
        if buffer is not None:
            work = outstanding.load(checkpoint.memory)
            return outstanding.replacements(buffer, self.population, work, self.key, round)
        if message is None or blob is None:
            return sampling.draw(self.plan.sampling, self.population, self.key, round)
        assert self.trust is not None
        found = beacon.cohort(self.plan, self.trust, message, round, blob)
        return tuple(device for device in self.population if device in found)

    @property
    def _last_round_key(self) -> Key:
        """Key of the last round, from which the hash chain derives those of all rounds."""
        return derive(self.key, "beacon")
