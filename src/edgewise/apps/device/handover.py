"""Training by a script: the device's loop asks for an update in one thread, and the script makes it in another.

    desk = Desk()
    Handover(spec, device, desk)               # the Trainer port of the device's loop
    request = desk.next()                      # script: what is asked for; waits
    desk.answer(update)                        # or an error, with which the device refuses the round

The machines of rounds and of secure aggregation stay as they are: to them this is a trainer that takes its time.
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
    """The script is gone. Nothing is answered, so that the round can be gone on with at the next start.

    No Exception: whatever a trainer raises besides would be told to the server.
    """


class Desk:
    """Where one request at a time waits for its update. Used by two threads: the device's loop and the script."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[FitRequest | BaseException] = SimpleQueue()
        self._answers: SimpleQueue[Update | BaseException] = SimpleQueue()
        self.closed = Event()
        self.failure: BaseException | None = None  # of the device's loop

    def update(self, request: FitRequest) -> Update:
        """The update that the script makes. Raises what it answers instead; Stopped where it is gone."""
        self._asked.put(request)
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def next(self) -> FitRequest:
        """The next request; waits for it. Raises what ended the device's loop."""
        asked = self._asked.get()
        if isinstance(asked, BaseException):
            raise asked
        return asked

    def answer(self, answer: Update | EdgewiseError) -> None:
        """Give the update, or an error for the server: its code and sentence."""
        self._answers.put(answer)

    def close(self) -> None:
        """The script asks for nothing more."""
        self.closed.set()
        self._answers.put(Stopped())

    def fail(self, error: BaseException) -> None:
        """The device's loop has ended by an error."""
        self.failure = error
        self._asked.put(error)


class Handover:
    """The Trainer port over a desk, for a run of this layout. ``examples``: that the script's device trains on.
    ``metrics``: names of those that the recipe declares."""

    def __init__(self, spec: Spec, device: DeviceId, desk: Desk, examples: int, metrics: Sequence[str] = ()) -> None:
        self._spec, self._device, self._desk, self._examples = spec, device, desk, examples
        self._metrics = tuple(metrics)

    @property
    def spec(self) -> Spec:
        """The run's layout."""
        return self._spec

    def initial(self) -> Vector:
        """Zeros: a device gets its first model from the server."""
        return np.zeros(self._spec.dim, np.float32)

    def devices(self) -> Sequence[DeviceId]:
        """This one."""
        return (self._device,)

    def fit(self, request: FitRequest) -> Update:
        """Wait for the script's update."""
        return self._desk.update(request)

    def metrics(self) -> Sequence[str]:
        """What a script gives beside losses: all that the recipe declares (``Task.submit``)."""
        return self._metrics

    def evaluate(self, device: DeviceId, params: Vector) -> HeldOut:
        """A script is not asked. Raises TrainingError(E-TRAIN)."""
        raise TrainingError("E-TRAIN", "a script measures no held-out loss for the server.")

    def sizes(self) -> Mapping[str, float]:
        """See Trainer; nothing is known of the rest of the script's model."""
        return {"parameters": float(self._spec.dim), "trainable": float(self._spec.dim), "memory_bytes": 0.0}

    def records(self, device: DeviceId) -> int:
        """How many examples the script says that there are."""
        return self._examples


def handover(
    spec: Spec, device: DeviceId, desk: Desk, examples: int, passes: float, metrics: Sequence[str] = ()
) -> Registered:
    """A handover, registered; it counts records where the script says how many examples it has.

    Raises RecipeError(E-COMBO) where the recipe counts ``passes`` and the script does not say it.
    """
    if passes and not examples:
        what = f"the recipe asks for {passes:g} passes over a device's examples, and the script does not say how many."
        raise RecipeError("E-COMBO", what, "give their number: device.tasks(examples=n).")
    made = registered(Handover(spec, device, desk, examples, metrics))
    return made if examples else replace(made, counts=None)
