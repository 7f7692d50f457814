"""A device whose training is a script's: ``edgewise.Device``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

from edgewise.apps.device import control, policy, record
from edgewise.apps.device.agent import work
from edgewise.apps.device.handover import Desk, Stopped, handover
from edgewise.apps.device.task import Left, Task
from edgewise.core.errors import EdgewiseError
from edgewise.core.training import DeviceId
from edgewise.core.vector import Spec
from edgewise.drivers.http.attend import RunPart, Watch
from edgewise.drivers.http.link import Link
from edgewise.engine.trainer import Registered
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe

HOME = "~/.edgewise"
POLL_S = 5.0  # of a long poll, which a script that ends waits for
WAIT_S = 10  # of a question for the end of a round; a loop that failed meanwhile is found out after it
APPROVAL_S = 5.0  # between two looks whether the operator has approved the device
PATIENCE_S = 86400.0  # with a server that cannot be reached


class Device:
    """This machine as a device of a federation, for a script that trains with its own loop.

        device = edgewise.Device.join("https://federation.example:8443", token="fedtok1_...")   # the first time
        device = edgewise.Device.open()                                                        # afterwards
        for task in device.tasks():
            task.load_into(model)
            loss = train(model, my_texts)                  # own epochs, own optimizer, texts that stay here
            print(task.submit(model, examples=len(my_texts), metrics={"loss": loss}))

    The home folder is that of the commands: its ``policy.toml`` is the owner's, ``edgewise device status`` tells what
    left, ``edgewise device pause`` holds it. Only [data] of the policy is not read: the texts are the script's.

    Attributes:
        home: the folder. refusals: run -> why this device takes no part in it.
    """

    def __init__(self, home: Path, poll_s: float = POLL_S) -> None:
        self.home, self._poll_s = home, poll_s
        self.refusals: dict[str, EdgewiseError] = {}
        self._link = Link(home, PATIENCE_S, open=self._may_send)

    @classmethod
    def join(cls, url: str, token: str, home: str | Path = HOME, label: str = "", plain: bool = False) -> Device:
        """Enrol this machine at a server, and open the device. The same call again is harmless.

        Makes a key that never leaves the home folder, and writes the owner's first ``policy.toml``.
        Args:
            token: from the server's operator. label: what you call this device. plain: plain HTTP, to this machine.
        Raises:
            TransportError: E-TOKEN, E-SERVER-KEY, E-CONNECT, E-REVOKED, E-IDENTITY as ``drivers.http.link.Link.join``.
        """
        folder = Path(home).expanduser()
        Link.join(url, token, folder, label, plain).close()
        policy.first_policy(folder)
        return cls(folder)

    @classmethod
    def open(cls, home: str | Path = HOME) -> Device:
        """Open a device that is enrolled. Raises TransportError(E-IDENTITY) where the folder holds no enrolment."""
        return cls(Path(home).expanduser())

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Device({str(self.home)!r}, {self.name[:12]})"

    def close(self) -> None:
        """Close the connection."""
        self._link.close()

    @property
    def name(self) -> DeviceId:
        """The id by which server and fleet know this device: the fingerprint of its key."""
        return self._link.name

    def tasks(self, examples: int = 0) -> Iterator[Task]:
        """The rounds that the server asks this device for, one after the other; waits for them, without end.

        A thread answers the server meanwhile: it keeps the device's place while the loop trains, and does its part in
        secure aggregation. A round whose task is not submitted is refused when the loop goes on; one that the loop
        leaves (``break``, an error, a killed process) comes again at the next start, if it is still open.
        Args:
            examples: on this device, for recipes that count passes (training.local_epochs).
        Raises:
            StoreError(E-RUN-EXISTS) while another process works in the home folder; RecipeError where the policy cannot
            be read; TransportError: E-REVOKED, E-CONNECT after a day.
        """
        desk = Desk()
        inbox = _Inbox(self, desk, examples)
        thread = Thread(target=inbox.work, name="edgewise-device", daemon=True)
        thread.start()
        try:
            while True:
                request = desk.next()
                plan = inbox.plan
                assert plan is not None  # an invitation came before it
                task = Task(plan, inbox.files, request, desk, self._end(plan.run), self._left(plan.run))
                yield task
                task.refuse("the script gave no update")
        finally:
            desk.close()
            thread.join()

    def _may_send(self) -> bool:
        return not control.order(self.home, time.time()).pause

    def _end(self, run: str) -> Any:
        return lambda round: self._link.call("GET", f"/v1/runs/{run}/rounds/{round}", {"wait": WAIT_S})

    def _left(self, run: str) -> Any:
        def left(round: int) -> Left:
            rows = [row for row in record.rows(self.home) if (row.run, row.round) == (run, round)]
            refusal = next((row.reason for row in rows if row.kind == record.REFUSAL), "")
            return Left(sum(row.size for row in rows), rows[-1].epsilon if rows else None, refusal)

        return left


class _Inbox(Watch):
    """The thread that answers the server; it leaves training to the desk."""

    def __init__(self, device: Device, desk: Desk, examples: int) -> None:
        self._device, self._desk, self._examples = device, desk, examples
        self.plan: Plan | None = None
        self.files: Path | None = None  # of the model

    def declines(self, part: RunPart) -> str:
        self.plan = part.devices.plan
        return ""

    def refused(self, run: str, error: EdgewiseError) -> None:
        self._device.refusals[run] = error

    def make(self, recipe: Recipe, folder: Path, device: DeviceId, spec: Spec) -> Registered:
        base = Path(recipe.model.base)
        self.files = base if base.is_absolute() else None
        metrics = [metric.name for metric in recipe.metric]
        return handover(spec, device, self._desk, self._examples, recipe.training.local_epochs, metrics)

    def work(self) -> None:
        """Answer until the desk is closed."""
        closed = self._desk.closed
        try:
            self._approved(closed)
            work(self._device.home, closed.is_set, self.make, self._device._poll_s, follow=self, sleep=self._pause)
        except Stopped:
            return
        except BaseException as e:  # boundary: raised again in the script's thread
            self._desk.fail(e)

    def _pause(self, seconds: float) -> None:
        if self._desk.closed.wait(seconds):  # also between two attempts at a server that is gone
            raise Stopped

    def _approved(self, closed: Event) -> None:
        """Wait until the operator has approved this device."""
        while not closed.is_set() and self._standing()["status"] == "pending":
            closed.wait(APPROVAL_S)

    def _standing(self) -> Mapping[str, Any]:
        return self._device._link.standing()
