"""Jobs of a simulation and their bytes, the same in this process and over pipes.

A job's ``id`` identifies its answer. Frames of devices are carried unchanged. A blob is sent once to each worker and
named by its digest afterwards. The bytes are length-prefixed MessagePack, decoded strictly. Nothing is pickled.
"""

from __future__ import annotations

from math import inf
from typing import Any, BinaryIO

import msgspec

from edgewise.core.errors import DecodeError
from edgewise.core.safe_repr import outline

LIMIT_BYTES = 4 * 1024**3


class _Base(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", kw_only=True):
    id: int = 0

    __repr__ = outline


class Setup(_Base, frozen=True, tag="setup"):
    """Make the trainer for this recipe (resolved, as JSON) and describe it. It is the first job of a worker.

    ``memory_dir``, ``instance``: of the run directory as it is open now (``RunStore``).
    """

    recipe: str
    recipe_dir: str
    run_dir: str
    memory_dir: str
    instance: str
    extensions: tuple[str, ...]


class Compile(_Base, frozen=True, tag="compile"):
    """Compile the plan that follows from these facts (``plan.facts.canonical``). It is the second job."""

    facts: bytes


class Blob(_Base, frozen=True, tag="blob"):
    """Store this blob and drop all blobs that ``keep`` does not name. It has no answer."""

    digest: str
    data: memoryview
    keep: tuple[str, ...] = ()


class Held(_Base, frozen=True, tag="held"):
    """Set the model (raw float32) that this run's devices have of that round already. It has no answer.

    The disks of real devices would give it back after a restart.
    """

    round: int
    data: memoryview


class Rest(_Base, frozen=True, tag="rest"):
    """Set the rest of a split model (raw float32) for the sessions of that round. It has no answer."""

    round: int
    data: memoryview


class Handle(_Base, frozen=True, tag="handle"):
    """Give a server's frame to a device and return its answer.

    ``elapsed_s``, ``up_mbit``: the device's measurements in the simulated world after training
    (``engine.device.Trained``).
    """

    device: str
    frame: bytes
    elapsed_s: float | None = None
    up_mbit: float = inf


class HandleMany(_Base, frozen=True, tag="handle_many"):
    """Give frames to several devices, which train together (``engine.batch_devices``)."""

    items: tuple[Handle, ...]


class Solo(_Base, frozen=True, tag="solo"):
    """Train without a federation, from ``params`` (raw float32), over the given rounds of the schedule in order.

    ``scale`` multiplies the steps. ``epochs`` replaces them where it is given. A round that is given again takes other
    batches. ``measure``: return the device's held-out loss instead of the parameters. ``personal``: measure also after
    the further steps of the recipe's [personal] section.
    """

    device: str
    params: memoryview
    rounds: tuple[int, ...]
    scale: int = 1
    epochs: float | None = None
    measure: bool = False
    personal: bool = False


class Personalise(_Base, frozen=True, tag="personalise"):
    """Make the personal model of a device from ``params`` (raw float32), and measure it.

    ``elsewhere``: other devices, on whose held-out text the model is measured too.
    """

    device: str
    params: memoryview
    elsewhere: tuple[str, ...] = ()


class Count(_Base, frozen=True, tag="count"):
    """Count the records that a device trains on."""

    device: str


class Sample(_Base, frozen=True, tag="sample"):
    """Continue the beginning of a device's held-out text with a model (raw float32)."""

    device: str
    params: memoryview


class Time(_Base, frozen=True, tag="time"):
    """Measure the time of a training step and of encoding an update here."""


class TakeMetrics(_Base, frozen=True, tag="take_metrics"):
    """Collect a person's own metrics that the trainer measured since the last such job."""


Job = (
    Setup
    | Compile
    | Blob
    | Held
    | Rest
    | Handle
    | HandleMany
    | Solo
    | Personalise
    | Count
    | Sample
    | Time
    | TakeMetrics
)
SILENT = Blob | Held | Rest  # jobs without an answer


class Described(_Base, frozen=True, tag="described"):
    """Answer to Setup: layout, population, and provenance facts. ``initial`` is the raw initial vector.

    ``rest``: with a split model, the raw float32 of its rest before round 0. None for a whole model.
    """

    spec: list[Any]
    devices: list[str]
    initial: memoryview
    facts: dict[str, Any]
    rest: memoryview | None = None


class Handled(_Base, frozen=True, tag="handled"):
    """Answer to Handle: the device's frame, None where it sends nothing, and the time that it took."""

    frame: bytes | None
    train_s: float = 0.0
    encode_s: float = 0.0


class HandledMany(_Base, frozen=True, tag="handled_many"):
    """Answer to HandleMany: one answer for each of its items, with the item's ``id``."""

    items: tuple[Handled, ...]


class TrainedAlone(_Base, frozen=True, tag="trained"):
    """Answer to Solo: the parameters (raw float32), or, where they are None, the held-out measure.

    ``personal``: (summed loss, tokens) after the further steps. ``metrics`` and ``personal_metrics``: the trainer's own
    metrics on the same held-out data, by name.
    """

    device: str
    params: memoryview | None = None
    nll: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    personal: tuple[float, int] = (0.0, 0)
    metrics: dict[str, float] = {}
    personal_metrics: dict[str, float] = {}


class Personalised(_Base, frozen=True, tag="personalised"):
    """Answer to Personalise: the parameters (raw float32), and two measures (summed loss, tokens).

    ``own`` is on the device's own held-out text, and ``elsewhere`` on that of the devices ``elsewhere`` of the job.
    ``metrics``: the trainer's own metrics on the device's held-out data, by name.
    """

    device: str
    params: memoryview
    own: tuple[float, int]
    elsewhere: tuple[float, int]
    metrics: dict[str, float] = {}


class CountedRecords(_Base, frozen=True, tag="counted"):
    """Answer to Count. None where the device's text cannot be read. Its training reports the reason."""

    records: int | None = None


class Continued(_Base, frozen=True, tag="continued"):
    """Answer to Sample: the beginning, its true continuation, and the model's continuation."""

    prompt: str
    actual: str
    text: str


class Timed(_Base, frozen=True, tag="timed"):
    """Answer to Time. ``step_s`` is None where it is not known. ``encode_s`` is then left out."""

    step_s: float | None = None
    encode_s: float = 0.0


class MetricNotes(_Base, frozen=True, tag="metric_notes"):
    """Answer to TakeMetrics: one (kind, round, device, name, value) for each note (``core.training.Note``)."""

    notes: list[tuple[str, int | None, str, str, float]] = []


class Ready(_Base, frozen=True, tag="ready"):
    """Answer to Compile."""


class Broken(_Base, frozen=True, tag="broken"):
    """Answer to a job that failed with an edgewise error.

    ``stops``: the fault lies in the run directory and not in the device, so the run cannot continue.
    """

    code: str
    what: str
    fix: str
    stops: bool = False


Result = (
    Described
    | Handled
    | HandledMany
    | TrainedAlone
    | Personalised
    | CountedRecords
    | Continued
    | Timed
    | MetricNotes
    | Ready
    | Broken
)


class CarriedJob(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job for a worker that shares no folder with the run, and the files of its devices (``StateFiles``), by name."""

    job: Job
    files: dict[str, bytes] = {}

    __repr__ = outline


class CarriedAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Answer of such a worker.

    Attributes:
        result: of the job. None where it has no answer.
        changes: files that the job changed, in order. None removes one.
        notes: as in ``MetricNotes``, of this job.
        peak_bytes: largest memory of the worker so far. None where its system does not tell it.
    """

    result: Result | None
    changes: dict[str, bytes | None] = {}
    notes: list[tuple[str, int | None, str, str, float]] = []
    peak_bytes: int | None = None

    __repr__ = outline


_encoder = msgspec.msgpack.Encoder()
_jobs: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Job)
_results: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Result)
_tasks = msgspec.msgpack.Decoder(CarriedJob)
_done = msgspec.msgpack.Decoder(CarriedAnswer)


def encode(item: CarriedJob | CarriedAnswer) -> bytes:
    """Write a task or its answer as bytes."""
    return _encoder.encode(item)


def read_task(raw: bytes) -> CarriedJob:
    """Read a task. Raises DecodeError."""
    try:
        return _tasks.decode(raw)
    except msgspec.DecodeError as e:
        raise DecodeError("E-FRAME", f"malformed task: {e}.") from None


def read_done(raw: bytes) -> CarriedAnswer:
    """Read the answer to a task. Raises DecodeError."""
    try:
        return _done.decode(raw)
    except msgspec.DecodeError as e:
        raise DecodeError("E-FRAME", f"malformed answer: {e}.") from None


def write(stream: BinaryIO, item: Job | Result) -> None:
    """Write one length-prefixed item and flush."""
    raw = _encoder.encode(item)
    stream.write(len(raw).to_bytes(8, "little"))
    stream.write(raw)
    stream.flush()


def _read(stream: BinaryIO) -> bytes | None:
    header = stream.read(8)
    if not header:
        return None
    size = int.from_bytes(header, "little")
    if len(header) < 8 or size > LIMIT_BYTES:
        raise DecodeError("E-FRAME-SIZE", "a worker stream is out of step.")
    raw = stream.read(size)
    if len(raw) < size:
        raise DecodeError("E-FRAME", "a worker stream ended in the middle of an item.")
    return raw


def read_job(stream: BinaryIO) -> Job | None:
    """Read the next job; None at the end of the stream. Raises DecodeError on other bytes."""
    raw = _read(stream)
    try:
        job: Job | None = None if raw is None else _jobs.decode(raw)
    except msgspec.DecodeError as e:
        raise DecodeError("E-FRAME", f"malformed job: {e}.") from None
    return job


def read_result(stream: BinaryIO) -> Result | None:
    """Read the next result; None at the end of the stream. Raises DecodeError on other bytes."""
    raw = _read(stream)
    try:
        result: Result | None = None if raw is None else _results.decode(raw)
    except msgspec.DecodeError as e:
        raise DecodeError("E-FRAME", f"malformed result: {e}.") from None
    return result
