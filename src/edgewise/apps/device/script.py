"""A device whose training is done by a script: ``edgewise.Device``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event, Thread
from typing import Any

from edgewise.apps.device import control, policy, record
from edgewise.apps.device.agent import present, work
from edgewise.apps.device.handover import Desk, Stopped, handover
from edgewise.apps.device.personal import download_released_model, find
from edgewise.apps.device.personal_task import PersonalTask
from edgewise.apps.device.task import FramesThatLeft, Task
from edgewise.core.errors import EdgewiseError
from edgewise.core.training import DeviceId
from edgewise.core.vector import Spec
from edgewise.drivers.http.attend import RunPart, Watch
from edgewise.drivers.http.link import Link
from edgewise.engine.trainer import Registered
from edgewise.plan.plan import Plan
from edgewise.plan.recipe.recipe import Recipe

HOME = "~/.edgewise"
POLL_S = 5.0  # duration of a long poll; a script that ends waits for it
WAIT_S = 10  # duration of a question for a round's end; a failed loop is noticed after it
APPROVAL_S = 5.0  # wait between two checks for approval
PATIENCE_S = 86400.0  # time to keep trying a server that cannot be reached


class Device:
    """This machine as a device of a federation, for a script that trains with its own loop.

        device = edgewise.Device.join("https://federation.example:8443", token="fedtok1_...")   # the first time
        device = edgewise.Device.open()                                                        # afterwards
        for task in device.tasks():
            task.load_into(model)
            loss = train(model, my_texts)                  # own epochs, own optimizer, texts that stay here
            print(task.submit(model, examples=len(my_texts), metrics={"loss": loss}))

    The home folder is shared with the commands. Its ``policy.toml`` is the owner's, ``edgewise device status`` shows
    what was sent, and ``edgewise device pause`` holds it. Only [data] of the policy is not read, because the script has
    its texts.

    Attributes:
        home: the folder.
        refusals: run -> the reason why this device takes no part in it.
    """

    def __init__(self, home: Path, poll_s: float = POLL_S) -> None:
        self.home, self._poll_s = home, poll_s
        self.refusals: dict[str, EdgewiseError] = {}
        self._link = Link(home, PATIENCE_S, open=self._may_send)

    @classmethod
    def join(cls, url: str, token: str, home: str | Path = HOME, label: str = "", plain: bool = False) -> Device:
        """Enrol this machine at a server, and open the device. Calling it again is harmless.

        Makes a key that never leaves the home folder, and writes the owner's first ``policy.toml``.

        Args:
            token: from the server's operator.
            label: your name for this device.
            plain: use plain HTTP, only for a server on this machine.
        Raises:
            TransportError: E-TOKEN, E-SERVER-KEY, E-CONNECT, E-REVOKED, E-IDENTITY as ``drivers.http.link.Link.join``.
        """
        folder = Path(home).expanduser()
        Link.join(url, token, folder, label, plain).close()
        policy.first_policy(folder)
        return cls(folder)

    @classmethod
    def open(cls, home: str | Path = HOME) -> Device:
        """Open an enrolled device. Raises TransportError(E-IDENTITY) for a folder without an enrolment."""
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
        """The id of this device at the server: the fingerprint of its key."""
        return self._link.name

    def tasks(self, examples: int = 0) -> Iterator[Task]:
        """Wait for the rounds that the server asks this device for, and yield them one after the other, without end.

        A thread answers the server meanwhile. It keeps the device's place while the loop trains, and takes the device's
        part in secure aggregation. A round whose task is not submitted is refused when the loop continues. A round that
        the loop leaves (``break``, an error, a killed process) comes again at the next start, if it is still open.

        Args:
            examples: the number of examples on this device, for recipes that count passes (training.local_epochs).
        Raises:
            StoreError(E-RUN-EXISTS): while another process works in the home folder.
            RecipeError: for an unreadable policy.
            TransportError: E-REVOKED, and E-CONNECT after a day.
        """
        desk = Desk()
        inbox = _Inbox(self, desk, examples)
        thread = Thread(target=inbox.work, name="edgewise-device", daemon=True)
        thread.start()
        try:
            while True:
                request = desk.next()
                plan = inbox.plan
                assert plan is not None  # An invitation came before.
                task = Task(plan, inbox.files, request, desk, self._end(plan.run), self._left(plan.run))
                yield task
                task.refuse("the script gave no update")
        finally:
            desk.close()
            thread.join()

    def personal(self, run: str) -> PersonalTask:
        """Get the released model of a finished run, to make this device's personal model with a loop of one's own.

        It needs a recipe with a section [personal]. A run that keeps a private part on its devices has no scripts.

        Args:
            run: the run's id, or the beginning of it.
        Raises:
            RecipeError(E-PERSONAL): the run has not finished, or asks for no personal models.
            StoreError(E-RUN-EXISTS): another process, or ``tasks`` of this one, works in the home folder.
            TransportError: E-UNKNOWN-ID, E-CONNECT, E-BLOB.
        """
        inbox = _Inbox(self, Desk(), 1)
        with present(self.home, inbox.make, PATIENCE_S, personal=False) as (link, parts, _):
            found = download_released_model(link, parts, find(self.home, run))
            return PersonalTask(found.part.devices.plan, inbox.files, self.home, found, link.name)

    def _may_send(self) -> bool:
        return not control.read_owner_order(self.home, time.time()).pause

    def _end(self, run: str) -> Any:
        return lambda round: self._link.call("GET", f"/v1/runs/{run}/rounds/{round}", {"wait": WAIT_S})

    def _left(self, run: str) -> Any:
        def left(round: int) -> FramesThatLeft:
            rows = [row for row in record.device_record_lines(self.home) if (row.run, row.round) == (run, round)]
            refusal = next((row.reason for row in rows if row.kind == record.REFUSAL), None)
            return FramesThatLeft(sum(row.size for row in rows), rows[-1].epsilon if rows else None, refusal)

        return left


class _Inbox(Watch):
    """The thread that answers the server. It passes training to the desk."""

    def __init__(self, device: Device, desk: Desk, examples: int) -> None:
        self._device, self._desk, self._examples = device, desk, examples
        self.plan: Plan | None = None
        self.files: Path | None = None  # folder of the model's files

    def declines(self, part: RunPart, round: int) -> str | None:
        self.plan = part.devices.plan
        return None

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
            work(
                self._device.home,
                closed.is_set,
                self.make,
                self._device._poll_s,
                follow=self,
                sleep=self._pause,
                personal=False,
            )
        except Stopped:
            return
        except BaseException as e:  # boundary: it is raised again in the script's thread
            self._desk.fail(e)

    def _pause(self, seconds: float) -> None:
        if self._desk.closed.wait(seconds):  # This also waits between two attempts to reach a server.
            raise Stopped

    def _approved(self, closed: Event) -> None:
        """Wait until the operator has approved this device."""
        while not closed.is_set() and self._standing()["status"] == "pending":
            closed.wait(APPROVAL_S)

    def _standing(self) -> Mapping[str, Any]:
        return self._device._link.standing()
