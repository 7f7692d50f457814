"""Exceptions of edgewise, and the registry of their stable codes.

    EdgewiseError
    ├── RecipeError          the recipe is wrong: unknown key, wrong type, impossible value
    │   └── CompositionError each part is valid alone, but they do not compose soundly
    ├── DataError            a corpus is missing, empty, or not what the recipe says
    ├── ModelError           a model cannot be read or does not fit the recipe
    ├── TrainingError        local training failed on a device (the device is lost for the round)
    ├── DecodeError          bytes from elsewhere are not a valid frame, blob or payload
    ├── RoundError           a round cannot reach its minimum
    ├── BudgetError          the next round would exceed the privacy budget
    ├── AuditError           an audit measured more than is claimed
    ├── StoreError           the run directory cannot be used: exists, corrupt, full
    ├── TransportError       a request cannot be made, or the other side refuses it
    └── Interrupted          the person pressed Ctrl-C; everything up to here is saved

An error says what was asked, what is needed, and what to do. Its ``code`` is stable and has an entry in
``docs/errors.md``. Remote misbehaviour never raises out of an engine. It becomes a value: a lost device with a code.

    try:
        edgewise.simulate("recipe.toml")
    except edgewise.EdgewiseError as e:
        print(e.code, e.what, e.fix)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class Entry(NamedTuple):
    """One line of the registry: the meaning of a code, and the exit status of the process."""

    title: str
    exit_status: int


# Exit statuses: 1 failed run, 2 usage or recipe, 3 time-out, 4 not authorised, 5 cannot connect,
# 6 resources, 7 privacy budget, 8 integrity, 130 interrupted and resumable.
REGISTRY: dict[str, Entry] = {
    "E-RECIPE-READ": Entry("the recipe file cannot be read", 2),
    "E-RECIPE-SYNTAX": Entry("the recipe is not valid TOML", 2),
    "E-KEY": Entry("unknown recipe key", 2),
    "E-TYPE": Entry("a recipe value has the wrong type", 2),
    "E-VALUE": Entry("a recipe value is out of range", 2),
    "E-MISSING": Entry("a required recipe key is missing", 2),
    "E-COMBO": Entry("two recipe settings exclude each other", 2),
    "E-NAME": Entry("no part of that name in the catalogue", 2),
    "E-UNKNOWN": Entry("there is no recipe, page, code or key of that name", 2),
    "E-FILE-EXISTS": Entry("the output file already exists", 2),
    "E-EXTENSION": Entry("an extension module cannot be used", 2),
    "E-SEGMENT": Entry("a segment name matches no trainable tensor", 2),
    "E-NO-BOUND": Entry("a quantizer on a shared grid needs a bound on each coordinate", 2),
    "E-NOISE-NOCLIP": Entry("noise needs an L2 clip on the vector that is noised", 2),
    "E-WEIGHT": Entry("contribution weights are not bounded", 2),
    "E-NOT-SUMMABLE": Entry("encodings that cannot be added do not work with secure aggregation", 2),
    "E-TOPK-SECAGG": Entry("top_k cannot be combined with secure aggregation", 2),
    "E-NOT-REAL": Entry("a stage for real vectors stands after the quantizer", 2),
    "E-NOT-INTEGER": Entry("a stage for integers stands before the quantizer", 2),
    "E-SPARSE-TWICE": Entry("two stages choose a per-device support", 2),
    "E-WRAP": Entry("the ring is too small for the sum", 2),
    "E-RUNG": Entry("no rung of the ladder can be used", 2),
    "E-ORDER": Entry("a stage stands where it cannot work", 2),
    "E-NORM-AFTER": Entry("an update can become longer again after its clip", 2),
    "E-AMP-VISIBLE": Entry("privacy amplification needs sampling that the adversary cannot see", 2),
    "E-BN": Entry("a layer mixes records, so no clip bounds the influence of one record", 2),
    "E-ADJ-MIX": Entry("accountant and mechanism use different neighbouring data sets", 2),
    "E-AUDIT": Entry("an audit measured more than is claimed", 8),
    "E-BUDGET": Entry("the next round would exceed the privacy budget", 7),
    "E-STATS": Entry("metrics would leave devices without noise", 2),
    "E-PERTENSOR": Entry("clips of single tensors add up to more than the clip of the update", 2),
    "E-PRECISION": Entry("the precision is too coarse for this noise", 2),
    "E-MF-LOCAL": Entry("correlated noise cannot be added on devices", 2),
    "E-MF-GAP": Entry("correlated noise needs a minimum number of rounds between a device's rounds", 2),
    "E-DIV-N": Entry("a mean cannot be divided by a private number of contributions", 2),
    "E-DROWNED": Entry("a privacy budget asks for more noise than any mean can carry", 2),
    "E-ROBUST-SECAGG": Entry("a robust rule cannot compare updates that secure aggregation hides", 2),
    "E-BYZANTINE": Entry("too few updates for a robust rule", 2),
    "E-NMIN": Entry("too few devices for secure aggregation", 2),
    "E-QUORUM": Entry("minimum, goal and cohort of a round contradict each other", 2),
    "E-DATA-MISSING": Entry("the data path does not exist", 2),
    "E-DATA-FORMAT": Entry("the data file cannot be parsed", 2),
    "E-DATA-COLUMN": Entry("a named column is not in the data", 2),
    "E-DATA-EMPTY": Entry("no device has enough text to train on", 2),
    "E-DEVICE-DATA": Entry("this device has too little text", 1),
    "E-MODEL": Entry("the model cannot be loaded", 2),
    "E-MODEL-REMOTE": Entry("the model is not on this machine and the hub cannot be reached", 5),
    "E-INDEX": Entry("a file is no index of documents, or it is damaged", 8),
    "E-INDEX-MODEL": Entry("an index of documents was made with another model", 2),
    "E-QUANTIZE": Entry("the base model cannot be quantized as asked", 2),
    "E-LAYOUT": Entry("the layout of a module differs from the layout of the run", 2),
    "E-TARGETS": Entry("no module of the model matches the LoRA targets or layer names", 2),
    "E-CUT": Entry("the model cannot be cut there", 2),
    "E-PARTS": Entry("the two parts of a split model do not belong together", 1),
    "E-HARDWARE": Entry("the hardware that the recipe asks for is not there", 2),
    "E-MEMORY": Entry("training needs more memory than there is", 1),
    "E-NAN": Entry("training produced a value that is not finite", 1),
    "E-TRAIN": Entry("local training failed", 1),
    "E-TASK": Entry("a script uses a task in the wrong way", 2),
    "E-FRAME": Entry("a frame is not valid", 8),
    "E-FACTS": Entry("a run's facts are not valid, not signed, or contradict themselves", 8),
    "E-OWNER": Entry("the owner of this device does not allow it to take part now", 2),
    "E-PERSONAL": Entry("no personal model can be made of a run", 2),
    "E-FLOOR": Entry("a run protects a device less than its owner asks for", 2),
    "E-PACKAGE": Entry("a package of the run is not allowed on this machine, or differs", 2),
    "E-INVITE": Entry("an invitation does not follow from the run's plan", 8),
    "E-BEACON": Entry("the randomness of verified cohorts differs from the devices' commitments", 8),
    "E-COHORT": Entry("a cohort differs from the verified draw", 8),
    "E-FRAME-SIZE": Entry("a frame or blob is larger than allowed", 8),
    "E-BLOB": Entry("a blob is missing or its digest is wrong", 8),
    "E-REST": Entry("a device is invited before its rest is over", 8),
    "E-OUTDATED": Entry("a contribution starts from a model that is too old for the round", 1),
    "E-STALE": Entry("a device lacks the model or the memory that an invitation builds on", 1),
    "E-PAYLOAD": Entry("an encoded update cannot be decoded", 8),
    "E-SHARE": Entry("a device sent wrong secret shares", 8),
    "E-KEY-AGREE": Entry("a peer's public key cannot be used", 8),
    "E-SEAL": Entry("a sealed box does not open", 8),
    "E-SECAGG-ORDER": Entry("a message of secure aggregation is out of order", 8),
    "E-SECAGG-KEYS": Entry("a signature of secure aggregation is missing or wrong", 8),
    "E-SECAGG-SURVIVORS": Entry("a device cannot accept the list of survivors", 8),
    "E-SECAGG-POLICY": Entry("secure aggregation is weaker than this device's owner asks for", 2),
    "E-SECAGG-REVEAL": Entry("a device revealed wrong shares or a wrong seed", 8),
    "E-SECAGG-ODDS": Entry("a device is accused of sending bad shares, and its secret is lost", 8),
    "E-SECAGG-FEW": Entry("too few devices are left for secure aggregation", 1),
    "E-RANGE": Entry("an update is too large to be summed exactly", 1),
    "E-ROUND": Entry("a round ended below its minimum of contributions", 1),
    "E-FOLDER": Entry("the folder holds files that edgewise did not write", 2),
    "E-RUN-EXISTS": Entry("the run directory already holds a run", 2),
    "E-RESUME": Entry("there is no run to resume, or its recipe differs", 2),
    "E-CHECKPOINT": Entry("the run directory is damaged", 8),
    "E-VERIFY": Entry("a released model does not follow from the record of its run", 8),
    "E-BACKUP": Entry("the backup of a server is damaged or incomplete", 8),
    "E-RESTORED": Entry("a run restored from a backup cannot continue", 8),
    "E-DISK": Entry("the disk is full or not writable", 6),
    "E-WORKER": Entry("a worker process ended unexpectedly", 1),
    "E-CLUSTER": Entry("the Ray cluster cannot be used", 1),
    "E-EXPORT": Entry("the model cannot be exported in this format", 2),
    "E-USE": Entry("the model cannot be used that way", 2),
    "E-DISTILL": Entry("this student cannot be distilled from this teacher", 2),
    "E-SHRINK": Entry("the model cannot be made smaller that way", 2),
    "E-DEPENDENCY": Entry("an optional dependency is not installed", 2),
    "E-IDENTITY": Entry("a key, certificate or identity file cannot be used", 2),
    "E-TOKEN": Entry("an enrolment token cannot be used", 4),
    "E-CONNECT": Entry("the server cannot be reached", 5),
    "E-SERVER-KEY": Entry("the server is not the one that the enrolment token names", 4),
    "E-ATTEST": Entry("attestation evidence is missing, or is refused", 4),
    "E-SIGNATURE": Entry("a request is not signed by a known key", 4),
    "E-CLOCK": Entry("the clocks of device and server differ", 4),
    "E-REPLAY": Entry("a request was sent twice", 4),
    "E-SESSION": Entry("a browser is not logged in, or a form is not from its session", 4),
    "E-ROLE": Entry("this role may not make this request", 4),
    "E-PENDING": Entry("the operator has not approved this device yet", 4),
    "E-REVOKED": Entry("this device was revoked, or it has left", 4),
    "E-REQUEST": Entry("a request has the wrong form", 2),
    "E-ROUTE": Entry("the server has no such address", 2),
    "E-UNKNOWN-ID": Entry("the server has no member, token or upload of that name", 2),
    "E-CLOSED": Entry("the round is closed for this device", 1),
    "E-CONFLICT": Entry("the server has already accepted another frame in this place", 8),
    "E-OLDER": Entry("this device's folder is an older copy, or another copy of it is in use", 4),
    "E-COUNTER": Entry("the frames of a device are not counted on both sides", 1),
    "E-OFFSET": Entry("an upload chunk starts at the wrong offset", 1),
    "E-QUOTA": Entry("too many bytes for a size limit or a quota", 6),
    "E-RATE": Entry("too many requests or bytes in a short time", 6),
    "E-BUSY": Entry("the server has no memory for this request at the moment", 6),
    "E-STALL": Entry("a transfer stopped or was too slow", 3),
    "E-SERVER": Entry("internal error of the server", 1),
    "E-LISTEN": Entry("the server cannot listen at that address", 2),
    "E-DATABASE": Entry("the database server cannot be reached, or refuses", 6),
    "E-STORE-CONNECT": Entry("the object store of the blobs cannot be reached", 6),
    "E-STORE-ACCESS": Entry("the object store of the blobs refuses access", 4),
    "E-STORE-BUCKET": Entry("there is no bucket for the blobs, or it is not this server's", 2),
    "E-LEASE": Entry("another server uses this database, or this server is shutting down", 1),
    "E-INTERRUPTED": Entry("interrupted by the user", 130),
}


LONGEST_WORD, LONGEST_TEXT = 250, 2000  # Characters of a message. A path counts as one word.
MOST_FAULTS, LONGEST_LIST = 100, 8000  # Faults of a recipe in one error, and characters of their list.


def _terminal_safe(text: str, longest: int = LONGEST_TEXT) -> str:
    """Shorten a message and escape its control characters, so that a terminal can show it."""
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-longest // 2 :]}"
    text = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda m: f"{m[0][:120]}...{m[0][-120:]}", text)
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", lambda m: repr(m[0])[1:-1], text)


class EdgewiseError(Exception):
    """Base of all errors. ``str()`` gives one readable line: code, cause, and what to do.

    Args:
        code: a key of ``REGISTRY``.
        what: the cause in one sentence, with the evidence (file, line, value, limit).
        fix: the next step. It may be empty when the cause already says it.
    Raises:
        KeyError: ``code`` is not in the registry.
    Guarantees: quoted input cannot flood or steer a terminal. Long words and texts lose their middle. Control
    characters other than the line feed show as escapes.
    """

    def __init__(self, code: str, what: str, fix: str = "") -> None:
        if code not in REGISTRY:
            raise KeyError(f"unregistered error code {code}")
        what, fix = _terminal_safe(what), _terminal_safe(fix)
        super().__init__(code, what, fix)
        self.code, self.what, self.fix = code, what, fix

    def __str__(self) -> str:
        return f"{self.code}: {self.what}" + (f" Fix: {self.fix}" if self.fix else "")

    @property
    def exit_status(self) -> int:
        """Exit status of the process for this code."""
        return REGISTRY[self.code].exit_status


class Fault(NamedTuple):
    """One fault of a recipe. ``file`` is None for a fault of no file, and ``line`` if no line of the file has it."""

    code: str
    what: str
    fix: str
    file: str | None = None
    line: int | None = None


class RecipeError(EdgewiseError):
    """A recipe asks for something that does not exist or cannot be done.

    Args:
        faults: All faults that were found. The first is this error's own cause. Empty for other errors.
    """

    def __init__(self, code: str, what: str, fix: str = "", faults: Sequence[Fault] = ()) -> None:
        super().__init__(code, what, fix)
        if faults:
            self.fix = _terminal_safe(fix, LONGEST_LIST)
            self.args = (code, self.what, self.fix)
        shown = (
            fault._replace(what=_terminal_safe(fault.what), fix=_terminal_safe(fault.fix))
            for fault in faults[:MOST_FAULTS]
        )
        self.faults = tuple(shown)


class CompositionError(RecipeError):
    """Two parts of a pipeline that do not compose soundly. Raised before any data exists."""


class DataError(EdgewiseError):
    """A corpus is missing, empty, or not what the recipe says."""


class ModelError(EdgewiseError):
    """A model cannot be read, or does not fit the recipe."""


class TrainingError(EdgewiseError):
    """A failure of local training. The device machine turns it into a refusal, never into an update."""


class DecodeError(EdgewiseError):
    """Invalid bytes from elsewhere. Only decoders raise it, and the engine catches it."""


class RoundError(EdgewiseError):
    """A round cannot reach its minimum."""


class BudgetError(EdgewiseError):
    """The privacy budget is spent."""


class AuditError(EdgewiseError):
    """An audit measured more than the code claims."""


class StoreError(EdgewiseError):
    """The run directory cannot be used."""


class TransportError(EdgewiseError):
    """A request between a device and a server that cannot be made, or that the other side refuses."""


class Interrupted(EdgewiseError):
    """A stop by the person. Everything up to here is saved."""
