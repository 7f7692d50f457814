"""Facts of a round, decided once from the plan and the checkpoint before any device is invited.

facts = decide(plan, checkpoint, began, standings, trust)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from edgewise.codecs.wire import pack
from edgewise.core import frame, vector
from edgewise.core.keys import Turn
from edgewise.core.memory import Memory
from edgewise.core.pipeline import Pipeline
from edgewise.core.training import DeviceId
from edgewise.core.vector import Segment
from edgewise.engine import broadcast, outstanding
from edgewise.engine.broadcast import Letters
from edgewise.engine.checkpoint import Checkpoint, Standing
from edgewise.engine.outstanding import Outstanding
from edgewise.engine.ports import Began, Trust
from edgewise.engine.round_states import Masks, Protocol, RoundPolicy, TwoServers
from edgewise.plan.plan import Plan
from edgewise.plan.sampling import Buffer
from edgewise.privacy.adaptive import CLIP
from edgewise.secagg import server_states
from edgewise.secagg.params import Params


@dataclass(frozen=True)
class RoundFacts:
    """Facts of one round.

    Attributes:
        run: identity of the run. round: the number. began: the values that the server drew for the round.
        asked: the cohort is invited. A cohort that sampling drew below the minimum is not.
        policy: goal, minimum and deadline. protocol: secure aggregation, if any.
        turn: the codec's view of the round. frozen: segments that are neither trained nor moved.
        pipe: the update pipeline. rungs: pipelines by rung under secure aggregation. Empty where the codec is fixed.
        memory: the server's codec memory of the round's phase.
        invite: fields that all invitations share. letters: the invitations.
        secagg, session: parameters and id of secure aggregation with two servers, or of masks with a fixed codec. None
            where the server sees each contribution.
        frame_limit_bytes: size of the largest honest frame of a device.
        beacon: the blob that the cohort is drawn from. None where the server draws it alone.
        carried, outdated: in asynchronous rounds, earlier invitations that may count in this round, and those that are
            too old. older: the codec's view of each round of ``carried``. buffer: the rule of asynchronous rounds.
    """

    run: str
    round: int
    began: Began
    asked: bool
    policy: RoundPolicy
    protocol: Protocol
    turn: Turn
    frozen: tuple[Segment, ...]
    pipe: Pipeline
    rungs: tuple[Pipeline, ...]
    memory: Memory = field(repr=False)
    invite: frame.Invite
    letters: Letters
    secagg: Params | None
    session: bytes | None = field(repr=False)
    frame_limit_bytes: int
    beacon: bytes | None = field(default=None, repr=False)
    carried: tuple[Outstanding, ...] = ()
    outdated: tuple[Outstanding, ...] = ()
    older: Mapping[int, Turn] = field(default_factory=dict)
    buffer: Buffer | None = None

    @cached_property
    def versions(self) -> Mapping[DeviceId, int]:
        """Devices of ``carried`` -> the rounds of their invitations."""
        return outstanding.versions(self.carried)

    def version(self, device: DeviceId) -> int:
        """Return the round of a device's invitation."""
        return self.versions.get(device, self.round)

    def share(self, version: int) -> tuple[Turn, float]:
        """Return the codec's view of a contribution to ``version``, and its weight by staleness."""
        if version == self.round or self.buffer is None:
            return self.turn, 1.0
        return self.older[version], self.buffer.weight(self.round - version)

    def started(self, at_s: float) -> RoundFacts:
        """Set the beginning of the round to ``at_s`` on the cohort's clock."""
        deadline_at_s = self.policy.deadline_at_s - self.began.at_s + at_s
        policy = replace(self.policy, deadline_at_s=deadline_at_s)
        return replace(self, began=replace(self.began, at_s=at_s), policy=policy)

    def at(self, rung: int | None) -> Pipeline:
        """Select the update pipeline of a rung. None: the codec is fixed."""
        return self.pipe if rung is None else self.rungs[rung]


def decide(
    plan: Plan,
    checkpoint: Checkpoint,
    began: Began,
    standings: Mapping[DeviceId, Standing],
    trust: Trust | None = None,
    draw: frame.Draw | None = None,
    beacon: bytes | None = None,
) -> RoundFacts:
    """Decide the facts of round ``checkpoint.next_round``.

    Args:
        standings: of the devices that get an invitation, in order. trust: needed under secure aggregation.
        draw: values that devices draw the cohort from. None where the server draws it. beacon: the blob that it names.
    """
    number, sampling = checkpoint.next_round, plan.sampling
    pipe, memory = plan.at(number), plan.phase_memory(checkpoint.memory, number)
    turn = Turn(number, plan.public(number), support=_turn_support(pipe, memory), clip=_turn_clip(pipe, memory))
    named = None
    if turn.support is not None and turn.support.size:
        named = pack.pack_support(turn.support, plan.layout.sent.dim)
    model = broadcast.snapshot(plan, checkpoint)
    invite = frame.Invite(
        run=plan.run,
        round=number,
        spec=plan.spec.digest(),
        model=vector.digest(model) if checkpoint.down is None else checkpoint.down.model,
        public=turn.public,
        accepted=None,
        deadline_s=sampling.deadline_s,
        rule=plan.rule(number),
        support=None if named is None else vector.digest(named),
        nonce=began.nonce,
        clip=turn.clip,
        draw=draw,
    )
    secagg = session = None
    protocol: Protocol = None
    if (hides := plan.hides) is not None:
        if trust is None:
            raise ValueError("hiding contributions needs to know who is enrolled")
        secagg, session, protocol = plan.secagg(number), plan.session(invite), TwoServers()
        if hides.interactive:
            rungs = tuple(plan.secagg(number, rung) for rung in range(len(plan.rung_pipelines)))
            protocol = Masks(
                session=server_states.SecAggSession(secagg, session, trust.registry),
                rungs=rungs,
                sizes=plan.sizes if rungs else (),
                groups=plan.most_rung_groups if rungs else hides.groups,
                least=hides.minimum,
                deadline_s=sampling.deadline_s,
                dealing=began.dealing,
            )
    work, buffer = outstanding.load(checkpoint.memory), sampling.buffer
    carried, outdated = outstanding.sorted_out(work, number, buffer) if buffer is not None else ((), ())
    goal = max(sampling.minimum, min(sampling.goal, len(began.invited) + len(carried)))
    return RoundFacts(
        run=plan.run,
        round=number,
        began=began,
        asked=bool(standings) or bool(carried),
        policy=RoundPolicy(goal, sampling.minimum, began.at_s + sampling.deadline_s),
        protocol=protocol,
        turn=turn,
        frozen=plan.frozen(number),
        pipe=pipe,
        rungs=plan.rung_pipelines,
        memory=memory,
        invite=invite,
        letters=broadcast.letters(invite, model, named, checkpoint.down, standings, beacon),
        secagg=secagg,
        session=session,
        frame_limit_bytes=plan.frame_limit_bytes,
        beacon=beacon,
        carried=carried,
        outdated=outdated,
        older={one.version: Turn(one.version, plan.public(one.version)) for one in carried},
        buffer=buffer,
    )


def _turn_support(pipe: Pipeline, memory: Memory) -> vector.Array | None:
    """Find ``Turn.support``. None where no stage of the pipeline asks for it, empty before the first release.

    Where stages take turns over rounds, the last release of the same phase counts, because it moved the same
    coordinates.
    """
    if not pipe.encoded.announced:
        return None
    support = memory.child("release").get(broadcast.SUPPORT)
    return np.zeros(0, np.int64) if support is None else support


def _turn_clip(pipe: Pipeline, memory: Memory) -> float | None:
    """Find ``Turn.clip``. None where the clip is fixed."""
    clip = None if pipe.served is None else memory.child("stage", pipe.served).get(CLIP)
    return None if clip is None else float(clip[0])
