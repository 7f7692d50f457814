"""The only loop: rounds, one after the other, over a Cohort and a Store. No torch, no sockets, no wall clock.

Crash safety: what arrives is written to the round's journal before it takes effect; a finished round is one
transaction (model, strategy state, who contributed, events). After a crash the journal replays through the same pure
machine, only the devices without an answer are asked again, and their answers are the same bytes as before; so the
final model is bit-identical to an undisturbed run.

Devices train from what they are given of the model (``engine.broadcast``); evaluations measure the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from math import isfinite

import numpy as np

from edgewise.core import events, frame, vector
from edgewise.core.errors import REGISTRY, DecodeError, RoundError, TrainingError
from edgewise.core.keys import Key, Turn, derive
from edgewise.core.pipeline import Pipeline, together
from edgewise.core.stage import Aggregate, Memory, Sum
from edgewise.core.training import DeviceId
from edgewise.engine import broadcast, evaluation
from edgewise.engine import round as machine
from edgewise.engine.aggregation import Aggregation, Gathered, aggregation
from edgewise.engine.ports import Arrived, Checkpoint, Cohort, Expired, Helper, Journal, Lost, Record, Store, Trust
from edgewise.engine.purse import Purse
from edgewise.engine.sampling import draw
from edgewise.plan.compile import Plan
from edgewise.strategies.base import hold

BEST = "best"  # name under which the store keeps the model with the lowest held-out loss
UNMET_LIMIT = 3  # abandoned rounds in a row after which the run stops instead of spinning


REASON_LATER = "left secure aggregation after its keys were known, or its group came to no sum"

Tell = Callable[[events.AnyEvent], None]


@dataclass
class _Round:
    """Bookkeeping of the round in progress."""

    aggregation: Aggregation
    turn: Turn
    bytes_down: dict[DeviceId, int]
    answers: dict[DeviceId, Arrived] = field(default_factory=dict)  # of those that count, without their frames
    sent: dict[DeviceId, int] = field(default_factory=dict)  # bytes of those frames
    told: list[events.AnyEvent] = field(default_factory=list)
    rung: int = -1  # of the contribution that was folded last
    bytes_up: int = 0
    train_s: float = 0.0
    encode_s: float = 0.0
    aggregate_s: float = 0.0
    code: str = ""  # why there is no sum


@dataclass(frozen=True)
class Coordinator:
    """One run: the plan and everything at its edges.

    Attributes:
        population: sorted device ids. cohort, store: the ports. tell: event sink.
        now_s: wall clock for durations in events (injected; the engine has none).
        entropy: round -> 32 bytes for noise that is added at release, and for what secure aggregation needs fresh.
        sampling_key: 32 bytes that decide who is invited, in all rounds; secret where sampling amplifies privacy.
        trust, secret, helper: for merges that hide contributions: who is enrolled; with two servers the leader's secret
            HPKE key and the other server.
    """

    plan: Plan
    population: Sequence[DeviceId]
    cohort: Cohort
    store: Store
    tell: Tell
    now_s: Callable[[], float]
    entropy: Callable[[int], Key]
    sampling_key: Key = field(repr=False)
    trust: Trust | None = None
    secret: bytes = field(default=b"", repr=False)
    helper: Helper | None = None

    @cached_property
    def purse(self) -> Purse:
        """The privacy budget."""
        return Purse(self.plan, self.store)

    def begin(self, initial: vector.Vector) -> Checkpoint:
        """The stored checkpoint, or a fresh one from ``initial`` (float32[d]), committed."""
        if (stored := self.store.load()) is not None:
            self.purse.check(stored)
            return stored
        memory = self.plan.each(Pipeline.start_memory)
        down = None if self.plan.downlink is None else broadcast.start(initial)
        fresh = Checkpoint(0, self.plan.strategy.init(initial), memory=memory, down=down)
        self.store.commit(fresh, ())
        return fresh

    def run(self, checkpoint: Checkpoint) -> Checkpoint:
        """Play the remaining rounds and the evaluations that are due, up to the last round or to where
        ``round.patience`` ends the run.

        Raises:
            RoundError: ``UNMET_LIMIT`` rounds in a row ended below their minimum. The run can be resumed.
        """
        self.evaluate_if_due(checkpoint)
        while checkpoint.next_round < self.plan.rounds and not self.kept(checkpoint).stopped:
            checkpoint = self.round(checkpoint)
            self.evaluate_if_due(checkpoint)
        if (played := checkpoint.next_round) < self.plan.rounds:
            now = self.kept(checkpoint)
            self.tell(events.StoppedEarly(played=played, evaluations=now.waited, kept=now.played))
        return checkpoint

    def round(self, checkpoint: Checkpoint) -> Checkpoint:
        """Play one round and commit it, met or abandoned."""
        began, number, sampling = self.now_s(), checkpoint.next_round, self.plan.sampling
        attempt = derive(self.entropy(number), "attempt").hex()
        self.purse.ask(number, attempt)
        invited = draw(sampling, self.population, self.sampling_key, number)
        goal = max(sampling.minimum, min(sampling.goal, len(invited)))
        # A sampled cohort may be too small to begin with: nobody is asked then.
        asked = len(invited) >= max(1, sampling.minimum)
        hidden = self.plan.hides is not None
        nonce = derive(self.entropy(number), "nonce") if hidden else b""
        letters = broadcast.invite(self.plan, checkpoint, self.store.standing(invited if asked else ()), nonce)
        self.cohort.publish(letters.blobs)
        policy = machine.Policy(goal, sampling.minimum, self.cohort.now_s() + sampling.deadline_s)
        state, _ = machine.start(number, frozenset(invited), policy)
        turn = self.plan.turn(number, support=broadcast.support(self.plan, number, checkpoint.memory))
        turn = replace(turn, clip=letters.common.clip)
        groups = derive(self.entropy(number), "groups")
        gate = aggregation(self.plan, turn, letters.common, self.trust, self.secret, self.helper, groups)
        now = _Round(gate, turn, dict(letters.sizes))
        n_asked = len(invited) if asked else 0
        self._say(now, events.RoundStarted(round=number, invited=n_asked, goal=goal, minimum=policy.minimum))
        # Secrets of a session live in memory only, so a session that was cut off is begun anew, without a journal.
        journal = None if hidden else self.store.journal(number)
        closed = self._collect(now, state, letters.frames, policy.deadline_at_s, journal)
        gathered, closed = self._gather(now, closed, partial(self.purse.charge, number, attempt))
        self.cohort.close_round()
        now.code, released = gathered.code, self._release(checkpoint, now, gathered.sums)
        del gathered, now.aggregation, gate  # the sum, 8 bytes a coordinate, is not held beside the server's step
        return self._finish(checkpoint, now, released, closed, began, asked)

    def _collect(
        self,
        now: _Round,
        state: machine.State,
        letters: Mapping[DeviceId, bytes],
        deadline_at_s: float,
        journal: Journal | None,
    ) -> machine.Closed:
        """Take what the journal holds, ask the others, and take what comes until the round is closed."""
        for record in journal.replay() if journal else ():
            state = self._take(now, state, record)
        answered = {*state.accepted, *(device for device, _ in state.lost)}  # late mail of older rounds is no answer
        for device, raw in letters.items():
            if device not in answered and isinstance(state, machine.Collecting):
                self.cohort.send(device, raw)
        while isinstance(state, machine.Collecting):  # an answer as large as the model is not held beside the next one
            state = self._take(now, state, self._next(state, deadline_at_s, journal))
        return state

    def _next(self, state: machine.Collecting, deadline_at_s: float, journal: Journal | None) -> Record:
        """The next arrival, or the deadline: what came after it counts no more, however much else there is to read."""
        came = self.cohort.receive(max(0.0, deadline_at_s - self.cohort.now_s()))
        record: Record = Expired(deadline_at_s) if came is None or came.at_s > deadline_at_s else came
        pointless = not isinstance(record, Expired) and machine.unwanted(state, record.device, state.round)
        if journal and not pointless:  # what changes nothing must not fill the disk
            journal.append(record)
        return record

    def _gather(
        self, now: _Round, closed: machine.Closed, charge: Callable[[], None]
    ) -> tuple[Gathered, machine.Closed]:
        """The round's sum, and who is in it; a sum that hides its parts may lose some, or fail."""
        if not closed.met:
            return Gathered((), ()), closed
        began = self.now_s()
        gathered = now.aggregation.close(closed.accepted, self.cohort, charge)
        now.aggregate_s += self.now_s() - began
        now.encode_s += gathered.encode_s
        now.bytes_down |= {d: now.bytes_down[d] + n for d, n in gathered.bytes_down.items()}
        if self.plan.hides is not None:
            for device in gathered.devices:
                now.rung = gathered.rungs.get(device, -1)
                self._accepted(now, closed.round, device, gathered.bytes_up.get(device, 0))
            for device, code in gathered.lost:
                now.bytes_up += gathered.bytes_up.get(device, 0)
                self._say(now, events.Lost(round=closed.round, device=device, code=code, reason=REASON_LATER))
            for device, code in gathered.flagged:
                self._say(now, events.Flagged(round=closed.round, device=device, code=code))
        lost = closed.lost + gathered.lost
        return gathered, replace(closed, met=bool(gathered.sums), accepted=gathered.devices, lost=lost)

    def _accepted(self, now: _Round, number: int, device: DeviceId, later_bytes: int = 0) -> None:
        """Tell that a contribution is in the sum; ``later_bytes``: of the device's messages after the first."""
        record, size = now.answers[device], now.sent[device] + later_bytes
        now.bytes_up += size
        now.train_s += record.train_s
        now.encode_s += record.encode_s
        self._say(
            now,
            events.Accepted(
                round=number,
                device=device,
                bytes_up=size,
                train_s=record.train_s,
                encode_s=record.encode_s,
                rung=now.rung,
                bytes_down=now.bytes_down[device],
            ),
        )

    def _take(self, now: _Round, state: machine.State, record: Record) -> machine.State:
        """Feed one journal record to the machine, folding a usable contribution first."""
        event: machine.Input
        reason = ""
        if isinstance(record, Expired):
            event = machine.Deadline(record.at_s)
        elif isinstance(record, Lost):
            event = machine.Gone(record.device, state.round, record.code)
        else:
            event, reason = self._read(now, state, record)
        state, effects = machine.step(state, event)
        for effect in effects:
            if isinstance(effect, machine.Counted) and isinstance(record, Arrived):
                now.answers[effect.device] = replace(record, frame=b"")
                now.sent[effect.device] = len(record.frame)
                if self.plan.hides is None:
                    self._accepted(now, state.round, effect.device)
            elif isinstance(effect, machine.Report):
                lost = events.Lost(round=state.round, device=effect.device, code=effect.code, reason=reason)
                self._say(now, lost)
        return state

    def _read(self, now: _Round, state: machine.State, record: Arrived) -> tuple[machine.Input, str]:
        """Decode and fold a frame; anything unusable becomes ``Gone`` with its code and reason, never an exception."""
        number = state.round
        try:
            message = frame.from_device(record.frame, self.plan.frame_limit_bytes)
            if isinstance(message, frame.Measurement):
                raise DecodeError("E-FRAME", "not an answer to an invitation.")
            if message.device != record.device or message.run != self.plan.run:
                raise DecodeError("E-FRAME", "the frame names another device or run than its sender.")
            if isinstance(message, frame.Refusal):
                code = message.code if message.code in REGISTRY else "E-FRAME"
                return machine.Gone(record.device, message.round, code), frame.legible(message.reason)
            if not machine.unwanted(state, message.device, message.round):
                began = self.now_s()
                now.rung = now.aggregation.take(record.device, message)
                now.aggregate_s += self.now_s() - began
            return machine.Usable(message.device, message.round), ""
        except DecodeError as e:
            return machine.Gone(record.device, number, e.code), frame.legible(e.what)

    def _release(
        self, checkpoint: Checkpoint, now: _Round, sums: Sequence[tuple[int, Sum]]
    ) -> tuple[Aggregate, Memory] | None:
        """The mean of a round and what the server remembers after it; None where there is no sum."""
        if not sums:
            return None
        number, memory, began, parts = checkpoint.next_round, checkpoint.memory, self.now_s(), []
        mine = self.plan.mine(memory, number)
        mine = {name: x for name, x in mine.items() if name != broadcast.SUPPORT}  # the codec knows nothing of it
        for rung, summed in sums:
            part, mine = self.plan.at(number, rung).release(summed, now.turn, self.entropy(number), mine)
            parts.append(part)
        aggregate = together(parts)
        memory = self.plan.kept(memory, number, broadcast.released(self.plan.at(number), mine, aggregate.mean))
        now.aggregate_s += self.now_s() - began
        return aggregate, memory

    def _finish(
        self,
        checkpoint: Checkpoint,
        now: _Round,
        released: tuple[Aggregate, Memory] | None,
        closed: machine.Closed,
        began: float,
        asked: bool,
    ) -> Checkpoint:
        number, strategy_state, memory = closed.round, checkpoint.state, checkpoint.memory
        head: dict[str, float] = {}
        update_l2, started = 0.0, self.now_s()
        # A cohort that sampling drew too small says nothing about the devices: it does not count as a failure.
        unmet = checkpoint.unmet + int(asked)
        if released is not None:
            aggregate, memory = released
            with np.errstate(over="ignore", invalid="ignore"):  # looked for below, in all that they could come to
                stepped = self.plan.strategy.apply(strategy_state, aggregate)
            strategy_state = hold(strategy_state, stepped, self.plan.frozen(number))
            vectors = (aggregate.mean, strategy_state.params, *strategy_state.slots.values())
            if not (all(map(vector.finite, vectors)) and all(map(isfinite, aggregate.head.values()))):
                fix = "lower strategy.lr, and dp.clip_l2 or the l2 of clip, with which noise grows."
                raise TrainingError("E-NAN", f"round {number} gave the server values that are not finite.", fix)
            head, update_l2, unmet = dict(aggregate.head), vector.norm_l2(aggregate.mean), 0
        down, lag_l2 = checkpoint.down, 0.0
        if down is not None and self.plan.downlink is not None:
            down = broadcast.advance(self.plan, self.plan.downlink, down, strategy_state.params)
            lag_l2 = vector.norm_l2(strategy_state.params - down.shadow)
        now.aggregate_s += self.now_s() - started
        self._say(
            now,
            events.RoundFinished(
                round=number,
                met=closed.met,
                accepted=len(closed.accepted),
                lost=len(closed.lost),
                late=len(closed.late) if asked else 0,
                bytes_up=now.bytes_up,
                bytes_down=sum(now.bytes_down.values()),
                update_l2=update_l2,
                head=head,
                train_s=now.train_s,
                encode_s=now.encode_s,
                aggregate_s=now.aggregate_s,
                seconds=self.now_s() - began,
                model=vector.digest(vector.to_bytes(strategy_state.params)),
                lag_l2=lag_l2,
                code=now.code,
                epsilon=self.purse.spent(),
            ),
        )
        after = Checkpoint(number + 1, strategy_state, unmet, memory, down, self.purse.spent())
        self.store.commit(after, now.told, broadcast.change(closed))
        if unmet >= UNMET_LIMIT:
            raise RoundError(
                "E-ROUND",
                f"{unmet} rounds in a row ended below their minimum of {self.plan.sampling.minimum} contributions.",
                "see the lost devices in the report; lower round.minimum, raise round.deadline_s or overselect.",
            )
        return after

    def evaluate_if_due(self, checkpoint: Checkpoint) -> None:
        """Measure the model on held-out text when the recipe says so, and not if it is stored already."""
        played, every = checkpoint.next_round, self.plan.recipe.eval.every
        last = played == self.plan.rounds
        due = played == 0 or last or (every > 0 and played % every == 0)
        name = evaluation.BASE if played == 0 else evaluation.FEDERATED
        if due and not self.store.evaluated(name, played - 1):
            self.evaluate(name, played - 1, checkpoint.state.params)
        # Also after a crash between an evaluation and this: no round is played before it is made up for.
        if due and self.plan.recipe.round.keep == "best" and self.kept(checkpoint).played == played:
            known = self.store.kept(BEST)
            if known is None or known[1] != played:
                self.store.keep(BEST, checkpoint.state.params, played)

    def kept(self, checkpoint: Checkpoint) -> evaluation.Kept:
        """Which model counts so far, and whether the run ends with it."""
        section = self.plan.recipe.round
        told = self.store.evaluations() if section.chooses else ()
        return evaluation.kept(section, told, checkpoint.next_round)

    def evaluate(self, name: str, number: int, params: vector.Vector) -> events.Evaluated:
        """Held-out loss of ``params`` on the devices that the recipe lets measure; stored and told."""
        event = evaluation.evaluate(self.cohort, self.plan, name, number, params, self.measured(), self.now_s)
        self.store.append(event)
        self.tell(event)
        return event

    def measured(self) -> list[DeviceId]:
        """The devices that evaluations ask: all, or ``eval.devices`` spread evenly over the population."""
        limit = self.plan.recipe.eval.devices or len(self.population)
        n, limit = len(self.population), min(limit, len(self.population))
        return [self.population[i * n // limit] for i in range(limit)]

    def _say(self, now: _Round, event: events.AnyEvent) -> None:
        now.told.append(event)
        self.tell(event)
