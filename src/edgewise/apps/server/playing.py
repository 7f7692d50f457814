"""One run of a server, played from where it is: its store, its coordinator, and its devices' mail.

    player = Player(service, tell, evaluator, gateway, halted, rests)
    if player.play(run):                               # False: the run paused
        ...                                            # its last round is played, its report written

Randomness comes from the system. The cohorts follow from a secret key in the run's folder. Noise, nonces and the
randomness of secure aggregation are drawn afresh.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from itertools import chain, repeat

import msgspec

from edgewise.apps.runs.chosen import chosen_model
from edgewise.apps.server import distilling, sharing, splitting, submission
from edgewise.core import events, vector
from edgewise.core.errors import StoreError
from edgewise.core.training import DeviceId
from edgewise.core.vector import Spec
from edgewise.drivers import extension_packages
from edgewise.drivers.fleet import roster
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http.cohort import Halted, HttpCohort
from edgewise.drivers.http.service import Service
from edgewise.drivers.storage.run_store import RunStore
from edgewise.engine import beacon_server
from edgewise.engine.coordinator import Coordinator
from edgewise.engine.ports import Distiller, Evaluator, Trust
from edgewise.plan.acceptance import planned
from edgewise.plan.facts import parse
from edgewise.plan.plan import Plan

Tell = Callable[[str, events.AnyEvent], None]


class Player:
    """Plays runs of a service, each in the thread that calls.

    Args:
        tell: called with a run's id and each of its events.
        evaluator: measures models on text of this machine. None: nothing is measured here.
        gateway: the second server of runs with shared sums. None: there is none.
        halted: tells whether a run must stop at once.
        rests: waits until a run may play its next round, from its id, its devices and the least number of them that
            must be present. Returns whether the run pauses instead.
    """

    def __init__(
        self,
        service: Service,
        tell: Tell,
        evaluator: Evaluator | None,
        gateway: sharing.Address | None,
        halted: Callable[[str], bool],
        rests: Callable[[str, Collection[DeviceId], int], bool],
    ) -> None:
        self._service, self._tell, self._evaluator = service, tell, evaluator
        self._gateway, self._halted, self._rests = gateway, halted, rests

    def play(self, run: ServedRun) -> bool:
        """Play a run from where it is. Return whether it reached its end.

        Raises:
            Halted: it must stop at once, or this server does not lead.
            EdgewiseError: it cannot go on.
        """
        out = submission.folder(self._service, run.run)
        database = self._service.database
        number = database.number if database.shared else 0
        if database.shared and not number:
            raise Halted  # A run without a number is fenced against nobody.
        with RunStore(out, fence=number) as store, ExitStack() as links:
            known = store.run()
            if known is None:
                raise StoreError("E-CHECKPOINT", f"{out} holds no run.", "restore it from a backup.")
            facts = parse(run.facts)
            plan = planned(facts, Spec.of(known["facts"]["spec"]), extension_packages.catalogue(facts.packages))
            stop = partial(self._stop, run.run)
            distiller = distilling.distiller_of(self._service, store, dict(known["recipe"]), stop)
            if distiller is not None:
                distiller.check(known["facts"])
            coordinator = self._coordinator(run, plan, store, links, distiller)
            checkpoint = store.load()
            if checkpoint is None:
                raise StoreError("E-CHECKPOINT", f"{out} has no checkpoint.", "restore it from a backup.")
            coordinator.privacy_budget.verify(checkpoint)
            resumed = checkpoint.next_round or None
            cohort = plan.sampling.goal
            self._told(run.run, events.RunStarted(
                run=plan.run, name=run.name, rounds=plan.rounds, population=plan.facts.population, cohort=cohort,
                dim=plan.spec.dim, resumed_round=resumed,
            ))  # fmt: skip
            under_way = store.journal_path(checkpoint.next_round).exists()
            devices = coordinator.population
            # A round that has begun continues, whichever devices are present.
            first = [max(plan.contributors, plan.sampling.minimum)] * (beacon_server.stored(store.beacon) is None)
            least = chain([0] * under_way, first, repeat(max(1, plan.sampling.minimum)))
            reached = coordinator.run(checkpoint, lambda: self._rests(run.run, devices, next(least)))
            if reached.next_round < plan.rounds:
                return False
            coordinator.cohort.publish([vector.to_bytes(store.blob(chosen_model(store).digest))])
            from edgewise.apps.report.files import write_report

            write_report(store, store.out, plots=False)  # so a server needs no matplotlib
            store.finish()
            return True

    def _coordinator(
        self, run: ServedRun, plan: Plan, store: RunStore, links: ExitStack, distiller: Distiller | None
    ) -> Coordinator:
        service, instance = self._service, plan.facts.instance
        assert instance is not None
        listing = service.blobs.get(instance.roster)
        keys = roster.parse_roster(listing, plan.facts.population)
        shares, helper = sharing.load_arranged_helper(store.out), None
        if shares is not None:
            stop = partial(self._stop, run.run)
            helper = links.enter_context(
                sharing.connect_run_helper(service, self._gateway, plan, listing, shares, stop)
            )
        cohort = HttpCohort(
            service, run.run, plan.frame_limit_bytes, kept=run.kept, halted=lambda: self._halted(run.run)
        )
        return Coordinator(
            plan=plan, population=tuple(sorted(keys)), cohort=cohort, store=store,
            tell=lambda event: self._told(run.run, event), now_s=time.perf_counter,
            entropy=lambda round: secrets.token_bytes(32),
            sampling_key=(store.out / submission.SAMPLING_KEY).read_bytes(),
            trust=Trust(registry=keys.get, identity=_no_secret, roster=tuple(sorted(keys))), evaluator=self._evaluator,
            secret=None if shares is None else shares.secret, helper=helper, distiller=distiller,
            rest=splitting.rest_of(service, plan, store, keys, links),
        )  # fmt: skip

    def _stop(self, run: str) -> None:
        if self._halted(run):
            raise Halted

    def _told(self, run: str, event: events.AnyEvent) -> None:
        self._tell(run, msgspec.structs.replace(event, at_s=self._service.now_s()))
        if isinstance(event, events.RoundFinished):
            self._service.ring(run)


def _no_secret(device: DeviceId) -> bytes:
    raise ValueError(f"a server has no secret key of {device}")
