"""Coordinator of a run: plays one round after the other over a Cohort and a Store. No torch, sockets or wall clock.

Crash safety: each arrival is written to the round's log before it takes effect. A finished round is one transaction
(model, strategy state, contributors, events). After a crash the same pure machine (``engine.round``) replays the log.
Only devices without an answer are asked again, and they answer with the same bytes as before. So the final model is
bit-identical to an undisturbed run. That holds under secure aggregation too, as long as devices keep their sessions.
Where they do not, the round is abandoned, and nothing is charged twice.

Devices train on the broadcast model, which may lag behind the server's (``engine.broadcast``). Evaluations measure the
server's model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from edgewise.core import events, frame, vector
from edgewise.core.errors import RoundError
from edgewise.core.keys import Key, derive
from edgewise.core.pipeline import Pipeline
from edgewise.core.stage import Aggregate
from edgewise.core.training import DeviceId
from edgewise.engine import after_round, broadcast, outstanding
from edgewise.engine.aggregation import aggregation
from edgewise.engine.checkpoint import Checkpoint
from edgewise.engine.cohort_draw import CohortDraw
from edgewise.engine.distilled_round import distilled
from edgewise.engine.loop import receive
from edgewise.engine.measured_models import MeasuredModels
from edgewise.engine.open_round import OpenRound, Tell, first_record
from edgewise.engine.outstanding import OlderModels
from edgewise.engine.ports import Began, Cohort, Distiller, Evaluator, Helper, Store, Trust
from edgewise.engine.privacy_budget import PrivacyBudget
from edgewise.engine.round_facts import decide
from edgewise.engine.split_rest import RestOfModel
from edgewise.plan.plan import Plan
from edgewise.plan.split_part import PART, REST

UNMET_LIMIT = 3  # The run stops after this many abandoned rounds in a row, instead of trying for ever.


def first(plan: Plan, initial: vector.Vector, rest: vector.Vector | None = None) -> Checkpoint:
    """Make the checkpoint of a run before its first round, from initial parameters float32[d], and a model's rest."""
    state = plan.strategy.init(initial)
    down = None if plan.downlink is None else broadcast.start(plan.layout.broadcast(state))
    made = Checkpoint(0, state, memory=plan.initial_memory(Pipeline.start_memory), down=down)
    return made if rest is None else after_round.with_rest(made, rest)


@dataclass(frozen=True)
class Coordinator:
    """One run: the plan and its ports.

    Attributes:
        population: sorted device ids. cohort, store: the ports. tell: event sink.
        now_s: wall clock for durations in events. It is injected, because the engine has no clock.
        entropy: round -> 32 secret bytes, for noise that is added at release and for fresh values of secure
            aggregation. A resumed round may get other bytes, because its log has all that must stay the same.
        sampling_key: 32 bytes that decide which devices are invited, in all rounds. Secret where sampling amplifies
            privacy.
        trust, secret, helper: for secure aggregation: the enrolled devices, and with two servers the leader's secret
            HPKE key and the other server.
        evaluator: measures models where the recipe asks for it. With None no model is measured.
        rest: with a split model, the part of it that is not the run's vector. Each checkpoint holds it in its memory.
        distiller: distils the model again where the recipe's section [distill] asks for it. None where it does not.
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
    secret: Key | None = field(default=None, repr=False)
    helper: Helper | None = None
    evaluator: Evaluator | None = None
    rest: RestOfModel | None = None
    distiller: Distiller | None = None
    _loss_reasons: Counter[str] = field(default_factory=Counter, init=False, repr=False)

    @cached_property
    def privacy_budget(self) -> PrivacyBudget:
        """Privacy budget of the run."""
        return PrivacyBudget(self.plan, self.store)

    @cached_property
    def _draw(self) -> CohortDraw:
        """Draw of the run's cohorts."""
        return CohortDraw(self.plan, self.population, self.sampling_key, self.trust, self.store)

    @cached_property
    def _older(self) -> OlderModels:
        """Models of earlier rounds that devices still train from, in asynchronous rounds."""
        return OlderModels(self.plan, self.store)

    @cached_property
    def _measured(self) -> MeasuredModels:
        """Evaluations of the run's models."""
        return MeasuredModels(self.plan, self.store, self.evaluator, self.tell)

    def begin(self, initial: vector.Vector) -> Checkpoint:
        """Load the stored checkpoint, or commit a fresh one from ``initial`` (float32[d])."""
        if (stored := self.store.load()) is not None:
            self.privacy_budget.verify(stored)
            self._use_rest(stored)
            return stored
        fresh = first(self.plan, initial, None if self.rest is None else self.rest.start())
        self.store.commit(fresh, ())
        self._use_rest(fresh)
        return fresh

    def _use_rest(self, checkpoint: Checkpoint) -> None:
        """Give sessions and measurements the rest of a checkpoint's model."""
        if self.rest is not None:
            self.rest.use(checkpoint.next_round, checkpoint.memory.child(REST)[PART])

    def run(self, checkpoint: Checkpoint, until: Callable[[], bool] = lambda: False) -> Checkpoint:
        """Play the remaining rounds and the evaluations that are due.

        The run ends after the last round, where ``round.patience`` ends it, or when ``until()`` is true. ``until()`` is
        asked between two rounds.
        Raises:
            RoundError: E-ROUND where ``UNMET_LIMIT`` rounds in a row ended below their minimum, and the run can be
                resumed. E-ROUND also where all rounds did, so that nothing was trained. E-BEACON as
                ``CohortDraw.gather``.
        """
        latest = checkpoint
        for after in self.rounds(checkpoint, until):
            latest = after
        return latest

    def rounds(self, checkpoint: Checkpoint, until: Callable[[], bool] = lambda: False) -> Iterator[Checkpoint]:
        """Yield the checkpoint after each round, once it is committed and measured. Otherwise as ``run``."""
        self._measured.keep_best(checkpoint)
        self._measured.evaluate_if_due(checkpoint)
        while checkpoint.next_round < self.plan.rounds and not self._measured.kept(checkpoint).stopped and not until():
            self._draw.gather(self.cohort, self.tell)
            checkpoint = self.round(checkpoint)
            self._measured.evaluate_if_due(checkpoint)
            yield checkpoint
        best, played = self._measured.kept(checkpoint), checkpoint.next_round
        if checkpoint.unmet == played and (played == self.plan.rounds or best.stopped):
            raise self._unmet_rounds_error(played)
        if played < self.plan.rounds and best.stopped:
            self.tell(events.StoppedEarly(played=played, evaluations=best.waited, kept=best.played))

    def round(self, checkpoint: Checkpoint) -> Checkpoint:
        """Play one round and commit it, met or abandoned."""
        began_s = self.now_s()
        open_round = self.open(checkpoint)
        receive(self.cohort, open_round)
        return self.close(checkpoint, open_round, began_s)

    def open(self, checkpoint: Checkpoint) -> OpenRound:
        """Begin the next round, or resume it where its log ends. The caller feeds it until it is closed."""
        number = checkpoint.next_round
        log = self.store.journal(number)
        records = iter(log.replay())
        logged = next(records, None)
        blob = self._draw.blob()
        draw = self._draw.message(number, blob)
        began = self._drawn_cohort(checkpoint, draw, blob) if logged is None else first_record(logged)
        # A sampled cohort may be below the minimum. Then no device is asked.
        buffered = self.plan.sampling.buffer is not None
        asked = began.invited if buffered or len(began.invited) >= max(1, self.plan.sampling.minimum) else ()
        facts = decide(self.plan, checkpoint, began, self.store.standing(asked), self.trust, draw, blob)
        self.cohort.publish((*self._older.blobs(checkpoint, facts), *facts.letters.blobs))
        if logged is None:
            self._older.go_on(self.cohort, checkpoint, facts)
            facts = facts.started(self.cohort.now_s())
            log.append(facts.began)
            if facts.session is not None or self.plan.spend is not None:
                log.sync()  # The record names the session, or the attempt that the ledger is charged for.
        attempt = facts.began.attempt
        self.privacy_budget.begin_round(number, attempt)
        sums = aggregation(facts, self.trust, self.secret, self.helper)
        charge = partial(self.privacy_budget.charge, number, attempt)
        open_round = OpenRound(facts, self.cohort, log, sums, charge, self.tell, self.now_s)
        open_round.begin(None if logged is None else records)
        self._older.goes_on |= open_round.until_s is not None
        return open_round

    def _drawn_cohort(self, checkpoint: Checkpoint, draw: frame.Draw | None, blob: bytes | None) -> Began:
        """Draw the random values and the cohort of a round. Its time is set when the round starts."""
        number = checkpoint.next_round
        entropy, secure = self.entropy(number), self.plan.hides is not None
        nonce = derive(entropy, "nonce") if secure else None
        invited = self._draw.invited(checkpoint, draw, blob)
        return Began(0.0, derive(entropy, "attempt").hex(), nonce, derive(entropy, "groups"), invited)

    def close(self, checkpoint: Checkpoint, open_round: OpenRound, began_s: float) -> Checkpoint:
        """Release the sum of a closed round, step the model, and commit. ``began_s``: by ``now_s``.

        Raises:
            TrainingError(E-NAN): the step gave values that are not finite.
            RoundError(E-ROUND): ``UNMET_LIMIT`` rounds in a row are abandoned. This one is committed.
        """
        started_s, facts = self.now_s(), open_round.facts
        if facts.session is None and facts.buffer is None:  # Frames that are under way are not needed any more.
            self.cohort.close_round()
        sums = open_round.sums()
        released = after_round.released_mean(self.plan, self.entropy, checkpoint, facts, sums) if sums else None
        del sums  # It frees 8 bytes a coordinate before the server's step.
        epsilon = self.privacy_budget.epsilon()
        after = after_round.checkpoint_after(self.plan, checkpoint, facts, released, epsilon)
        after = outstanding.recorded(after, checkpoint, facts, open_round.closed, open_round.last_s)
        if self.rest is not None:
            after, sessions = after_round.rest_after(self.rest, after, open_round, released is not None)
            for event in sessions:
                self.tell(event)
        open_round.books.aggregate_s += self.now_s() - started_s
        aggregate = None if released is None else released[0]
        if aggregate is not None and self.plan.distils(facts.round):
            assert self.distiller is not None  # The driver of a run with [distill] gives one.
            after, aggregate, verdict = distilled(self.plan, self.distiller, after, aggregate)
            open_round.books.events.append(verdict)
        measured = [] if aggregate is None else self._measured.by_cohort(checkpoint, aggregate.head)
        self._commit_round(after, open_round, aggregate, began_s, measured)
        self._use_rest(after)
        self._measured.keep_best(after)
        if facts.session is not None:  # Devices do not reveal shares twice, so a crash before here may need the frames.
            self.cohort.close_round()
        self._older.carry(self.cohort, after)  # The log may need what has come, as above.
        self._loss_reasons.update(_loss_reasons(open_round.books.events))
        if after.unmet >= UNMET_LIMIT:
            raise self._unmet_rounds_error(after.unmet)
        return after

    def _unmet_rounds_error(self, rounds: int) -> RoundError:
        """Make the error that ends a run after rounds with too few devices."""
        what = f"{rounds} rounds in a row" if rounds > 1 else "the only round"
        causes = [why for why, _ in self._loss_reasons.most_common(1)]
        lost = f"; most devices were lost by {causes[0]}" if causes else ""
        return RoundError(
            "E-ROUND",
            f"{what} ended below their minimum of {self.plan.sampling.minimum} contributions{lost}.",
            "see the lost devices in the report; lower round.minimum, raise round.deadline_s or overselect.",
        )

    def _commit_round(
        self, after: Checkpoint, open_round: OpenRound, aggregate: Aggregate | None, began_s: float,
        measured: Sequence[events.Evaluated],
    ) -> None:  # fmt: skip
        """Store the checkpoint with the round's events, in one transaction. ``measured``: by the round's devices."""
        books = open_round.books
        finished = after_round.finished(self.plan, after, open_round, aggregate, self.now_s() - began_s)
        change = broadcast.change(open_round.closed, open_round.facts.versions)
        self.store.commit(after, [*books.events, finished, *measured], change, aggregate)
        for event in books.events:
            if isinstance(event, events.Redistilled):
                self.tell(event)
        self.tell(finished)  # It follows the commit, so that nobody sees two noisy results of a round played twice.
        for evaluation in measured:
            self.tell(evaluation)


def _loss_reasons(round_events: Sequence[events.AnyEvent]) -> list[str]:
    """List the reasons that lost devices of a round gave."""
    return [f"{e.code}: {e.reason.rstrip('.')}" for e in round_events if isinstance(e, events.Lost) and e.reason]
