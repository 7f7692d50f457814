"""The agent: a process that works for a device's owner until told to end. It imports torch when it first trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import ceil
from pathlib import Path

from edgewise.apps.device import control, policy
from edgewise.apps.device.conditions import Conditions
from edgewise.apps.device.joining import Make, Owner, Parts
from edgewise.apps.device.personal import WaitingRuns, find, personalise
from edgewise.apps.device.record import Record
from edgewise.core.compiled import interpret_loops
from edgewise.core.errors import EdgewiseError, StoreError
from edgewise.drivers.http import home as homes
from edgewise.drivers.http.attend import RunPart, Watch, attend
from edgewise.drivers.http.link import WAIT_S, Link
from edgewise.drivers.storage import counter_file
from edgewise.drivers.storage.counter_file import LEDGERS
from edgewise.drivers.storage.device_ledgers import FileLedgers
from edgewise.drivers.storage.files import FOLDER
from edgewise.drivers.storage.personal_models import PersonalModel
from edgewise.plan.frames import largest_upload

DAY_S = 86400.0
TIDY_S = 3600.0  # interval at which an idle agent looks for old models and blobs
PATIENCE_S = 86400.0  # time to keep trying a server, which may be down for long
APPROVAL_S = 10.0  # wait between two checks for approval
SUM_S = 120.0  # The next message of a hidden sum comes within this time, or never.


class _Owner(Watch):
    """The owner's conditions and record, applied in the device's loop."""

    def __init__(
        self,
        agent: control.Agent,
        link: Link,
        owner: Owner,
        conditions: Conditions,
        record: Record,
        follow: Watch,
        sleep: Callable[[float], None],
    ) -> None:
        self._personal: WaitingRuns | None = None  # the runs whose personal model this agent makes
        self._tidy: Callable[[], None] = lambda: None
        self._tidied_s = time.monotonic()
        self._agent, self._link, self._owner = agent, link, owner
        self._conditions, self._record = conditions, record
        self._follow, self._sleep = follow, sleep
        self._in_a_sum_until_s = 0.0

    def doing(self, state: str, run: str | None = None) -> None:
        self._agent.say(state, f"run {run[:12]}" if run is not None else "for the server's mail")

    def declines(self, part: RunPart, round: int) -> str | None:
        largest = largest_upload(part.devices.plan)
        if (again := self._record.too_much_again(part.devices.plan.run, round, largest)) is not None:
            return again
        return self._follow.declines(part, round) if (why := self.refusal(largest)) is None else why

    def leaving(self, part: RunPart | None, frame: bytes) -> None:
        budget, plan = self._owner.budget, None if part is None else part.devices.plan
        spent = None if budget is None else budget.spent(self._link.name)
        self._record.frame(self._link.home.server, plan, frame, spent)
        if plan is not None and plan.hides is not None:
            self._in_a_sum_until_s = time.monotonic() + SUM_S

    def disk_full(self, error: StoreError, wait_s: float) -> None:
        """Tell the owner, and wait. Raises Interrupted(E-INTERRUPTED) if the owner leaves."""
        self._agent.say("waiting", f"{error.code}: {error.what}")
        for _ in range(ceil(wait_s / control.POLL_S)):
            self._agent.open()
            self._sleep(control.POLL_S)

    def refused(self, run: str, error: EdgewiseError) -> None:
        self._record.refused(self._link.home.server, run, error)
        self._follow.refused(run, error)

    def makes(self, personal: WaitingRuns) -> None:
        """Make the personal models of finished runs when there is no mail."""
        self._personal = personal

    def refusal(self, next_bytes: float = 0.0) -> str | None:
        """Return the reason why the device does not work now. None: it may work."""
        now_s = time.time()
        return self._conditions.refusal(now_s, self._record.today(now_s), next_bytes)

    def tidies(self, tidy: Callable[[], None]) -> None:
        """Call ``tidy`` every ``TIDY_S`` seconds when there is no mail."""
        self._tidy = tidy

    def idle(self) -> None:
        if time.monotonic() - self._tidied_s >= TIDY_S:
            self._tidied_s = time.monotonic()
            self._tidy()
        if self._personal is not None:
            self._agent.say("training", "the personal models of finished runs")
            self._personal()

    def approved(self, until: Callable[[], bool]) -> bool:
        """Wait until the operator has approved this device. Returns whether to continue."""
        self._agent.say("waiting", "for the server")
        while self._link.standing()["status"] == "pending":
            self._agent.say("waiting", "for the operator of the server to approve this device")
            for _ in range(round(APPROVAL_S / control.POLL_S)):
                if until():
                    return False
                self._sleep(control.POLL_S)
        return True

    def rest(self, until: Callable[[], bool]) -> bool:
        """Wait while the owner's conditions or a pause forbid work. Returns whether to end.

        A device finishes a hidden sum that it takes part in. Leaving in the middle would cost the others their round.
        """
        while not until():
            why = None if self._agent.open() else "paused by the owner"
            if why is None and (time.monotonic() < self._in_a_sum_until_s or (why := self.refusal()) is None):
                return False
            self._agent.say("waiting", why)
            self._sleep(control.POLL_S)
        return True


def _may_send(agent: control.Agent, conditions: Conditions, record: Record) -> bool:
    """Return whether anything may leave now: no pause, and the day's limit is not used up by what is sent again.

    A server that refuses an update again and again could have it sent without end. Raises Interrupted as
    ``control.Agent.open``.
    """
    if not agent.open():
        return False
    now_s = time.time()
    why = conditions.too_much(record.today(now_s)) if record.again(now_s) else None
    if why is not None:
        agent.say("waiting", why)
    return why is None


def work(
    home: Path,
    until: Callable[[], bool] = lambda: False,
    make: Make | None = None,
    wait_s: float = WAIT_S,
    patience_s: float = PATIENCE_S,
    follow: Watch = Watch(),  # noqa: B008 (it has no state)
    sleep: Callable[[float], None] = time.sleep,
    began: Callable[[], None] = lambda: None,
    personal: bool = True,
) -> None:
    """Take part in the runs of the server that ``home`` is enrolled at, as its policy allows, until ``until()``.

    The device waits until its operator has approved it.

    Args:
        home: folder of the enrolment.
        until: tells whether to end.
        make: as in ``Parts``. Its trainer reads its own text, so the policy need not name any. None: the recipe's
            trainer.
        wait_s: duration of one poll.
        patience_s: time to keep trying a server that cannot be reached.
        follow: called with invitations and refusals, after the owner's conditions and record.
        sleep: waits that many seconds.
        began: called when nothing stands in the way of work.
        personal: make the personal models that runs ask for. False for a script, which trains itself.
    Raises:
        RecipeError: as ``policy.load``.
        TransportError, StoreError: as ``drivers.http.attend`` and ``counter_file.earlier``.
        Interrupted: the owner leaves the server.
        StoreError(E-RUN-EXISTS): another agent works in ``home``.
    """
    own = _policy(home, make)
    conditions = Conditions(own, text=make is None)
    with ExitStack() as held:
        agent = held.enter_context(control.Agent(home))
        # The record is read under the agent's lock, since another agent may just have ended.
        record = Record(home, round_bytes=own.limits.upload_mb * policy.MB)
        may_send = partial(_may_send, agent, conditions, record)
        link = held.enter_context(
            Link(home, patience_s, sleep=sleep, open=may_send, troubled=agent.troubled, sends=record.sends)
        )
        ledgers = held.enter_context(FileLedgers(home / LEDGERS, counter_file.earlier(home, link.name)))
        owner = _owner(home, own, link, ledgers, make)
        watch = _Owner(agent, link, owner, conditions, record, follow, sleep)
        with Parts(link, home, owner, make, personal, partial(record.crosses, link.home.server)) as parts:
            watch.tidies(parts.tidy)
            if personal:
                watch.makes(WaitingRuns(link, parts, home, own.limits.local_steps))
            began()
            if watch.approved(until):
                attend(link, parts, lambda: watch.rest(until), wait_s, watch)


def personalise_run(home: Path, run: str, make: Make | None = None, patience_s: float = PATIENCE_S) -> PersonalModel:
    """Make the personal model of a finished run now. ``run`` may be the beginning of its id.

    Args:
        make: as in ``Parts``.
    Raises:
        StoreError(E-RUN-EXISTS): an agent works in ``home``. It makes the model by itself.
        EdgewiseError: as ``apps.device.personal.personalise``.
    """
    with present(home, make, patience_s) as (link, parts, own):
        return personalise(link, parts, home, find(home, run), own.limits.local_steps)


@contextmanager
def present(
    home: Path, make: Make | None, patience_s: float = PATIENCE_S, personal: bool = True
) -> Iterator[tuple[Link, Parts, policy.Policy]]:
    """Work in ``home`` for a personal model, as its only agent. Yields the link, the parts in runs and the policy.

    Raises:
        StoreError(E-RUN-EXISTS): another agent works there.
        RecipeError: as ``policy.load``.
    """
    own = _policy(home, make)
    with (
        control.Agent(home) as agent,
        Link(home, patience_s, open=agent.open, troubled=agent.troubled) as link,
        FileLedgers(home / LEDGERS) as ledgers,
        Parts(link, home, _owner(home, own, link, ledgers, make), make, personal) as parts,
    ):
        agent.say("training", "a personal model")
        yield link, parts, own


def _policy(home: Path, make: Make | None) -> policy.Policy:
    """Load the owner's policy of an enrolled device. Raises as ``work``."""
    homes.load(home)
    own = policy.load(home)
    if not own.limits.compiled:
        interpret_loops()
    if make is None:
        own.data_keys(home)  # It refuses a policy without text before anything begins.
    (home / LEDGERS).mkdir(FOLDER, exist_ok=True)
    return own


def _owner(home: Path, own: policy.Policy, link: Link, ledgers: FileLedgers, make: Make | None) -> Owner:
    return Owner(
        data=own.data_keys(home) if make is None else {},
        folder=home,
        floor=own.floor(),
        budget=own.owner_budget(ledgers),
        packages=own.packages(),
        always=own.always(),
        gateway=own.privacy.gateway or link.home.gateway,
        attested=tuple(one.reference() for one in own.attested),
        engine=own.engine_keys(),
        evaluates=own.privacy.evaluation,
        room_bytes=own.limits.cache_mb * policy.MB,
        room_s=own.limits.cache_days * DAY_S,
    )
