"""Training by a script: the device's loop asks for an update in one thread, and the script makes it in another.

    desk = Desk()
    Handover(spec, device, desk)               # the Trainer port of the device's loop
    request = desk.next()                      # the script waits for a request
    desk.answer(update)                        # or an error, with which the device refuses the round

The machines of rounds and of secure aggregation do not change. They see a trainer that takes its time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from queue import SimpleQueue
from threading import Event

import numpy as np

from edgewise.core.errors import EdgewiseError, RecipeError, TrainingError
from edgewise.core.training import DeviceId, FitRequest, HeldOut, Update
from edgewise.core.vector import Spec, Vector
from edgewise.engine.trainer import Registered, registered


class Stopped(BaseException):
    """Raised when the script has ended. Nothing is answered, so the round can be continued at the next start.

    It is no Exception, because the server is told of every Exception of a trainer.
    """


class Desk:
    """A place where one request at a time waits for its update. Device loop and script use it in two threads."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[FitRequest | BaseException] = SimpleQueue()
        self._answers: SimpleQueue[Update | BaseException] = SimpleQueue()
        self.closed = Event()
        self.failure: BaseException | None = None  # the error that ended the device's loop

    def update(self, request: FitRequest) -> Update:
        """Wait for the script's update. Raises the error that it answers instead, or Stopped if it has ended."""
        self._asked.put(request)
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def next(self) -> FitRequest:
        """Wait for the next request. Raises the error that ended the device's loop."""
        asked = self._asked.get()
        if isinstance(asked, BaseException):
            raise asked
        return asked

    def answer(self, answer: Update | EdgewiseError) -> None:
        """Answer with the update, or with an error whose code and sentence the server gets."""
        self._answers.put(answer)

    def close(self) -> None:
        """Tell the loop that the script asks for nothing more."""
        self.closed.set()
        self._answers.put(Stopped())

    def fail(self, error: BaseException) -> None:
        """Tell the script that the device's loop has ended with an error."""
        self.failure = error
        self._asked.put(error)


class Handover:
    """The Trainer port over a desk, for a run of this layout.

    ``examples`` is the number of examples that the script's device trains on. ``metrics`` names the metrics that the
    recipe declares.
    """

    def __init__(self, spec: Spec, device: DeviceId, desk: Desk, examples: int, metrics: Sequence[str] = ()) -> None:
        self._spec, self._device, self._desk, self._examples = spec, device, desk, examples
        self._metrics = tuple(metrics)

    @property
    def spec(self) -> Spec:
        """The run's layout."""
        return self._spec

    def initial(self) -> Vector:
        """Return zeros. A device gets its first model from the server."""
        return np.zeros(self._spec.dim, np.float32)

    def devices(self) -> Sequence[DeviceId]:
        """List this device only."""
        return (self._device,)

    def fit(self, request: FitRequest) -> Update:
        """Wait for the script's update."""
        return self._desk.update(request)

    def metrics(self) -> Sequence[str]:
        """Name the numbers that a script gives beside losses: all that the recipe declares (``Task.submit``)."""
        return self._metrics

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """Refuse: a script does not evaluate. Raises TrainingError(E-TRAIN)."""
        raise TrainingError("E-TRAIN", "a script measures no held-out loss for the server.")

    def sizes(self) -> Mapping[str, float]:
        """See Trainer. The rest of the script's model is unknown here."""
        return {"parameters": float(self._spec.dim), "trainable": float(self._spec.dim), "memory_bytes": 0.0}

    def records(self, device: DeviceId) -> int:
        """Return the number of examples that the script gave."""
        return self._examples


def handover(
    spec: Spec, device: DeviceId, desk: Desk, examples: int, passes: float, metrics: Sequence[str] = ()
) -> Registered:
    """Make a registered handover. It counts records if the script gave its number of examples.

    Raises RecipeError(E-COMBO) if the recipe counts ``passes`` and the script gave no number.
    """
    if passes and not examples:
        what = (
            f"the recipe asks for {passes:g} passes over a device's examples, and the script did not give their number."
        )
        raise RecipeError("E-COMBO", what, "give their number: device.tasks(examples=n).")
    made = registered(Handover(spec, device, desk, examples, metrics))
    return made if examples else replace(made, counts=None)
