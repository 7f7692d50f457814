"""The facts of a run: signed data from which a device compiles the plan that the server compiled.

    run = SHA-256(canonical JSON of the facts)

    raw = facts.canonical(plan.facts)                      # server: published once, beside its signature
    signature = facts.sign(secret, raw)
    plan = acceptance.accept(raw, signature, server, spec, floor, catalogue)      # device

The facts hold everything that decides the model and the protocol: the recipe without what only measures or
simulates, the layout of the trained vector, how many devices exist, the numbers that follow from them, and the
versions of the program's protocols. Two sides with equal run ids have compiled the same bounds, thresholds, noise,
rings and layout, and masks of sides with different ones cancel with nobody's. A served run also names its instance, so
a second run of one recipe is another run.

Calibrated numbers are stated, and never computed again to be compared: the last digit of a noise multiplier depends on
processor and library. Integers follow from the rest, so each side derives them and refuses facts that state others.

Canonical JSON: keys sorted, no spaces, ASCII, numbers as the shortest decimal that reads back to the same float64.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from edgewise.core import frame
from edgewise.core.errors import DecodeError
from edgewise.crypto import sign as ed25519
from edgewise.secagg import messages

FORMAT = 1
LIMIT_BYTES = 1 << 20
MOST_DEVICES = 10**9
CONTEXT = b"edgewise plan facts 1\0"  # what a signature is for; no other signature of a server begins so
NAME, DIGEST = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", r"[0-9a-f]{64}"  # of a package
_FIX = "ask the operator of the server for the facts of a run that it still serves."


class StatedNoise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The numbers of a run's noise, of which the recipe gives one and the server derives the other.

    Attributes:
        multiplier: noise multiplier. epsilon: budget of all rounds together, at the recipe's delta.
    """

    multiplier: float
    epsilon: float


class Instance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which of the runs of one recipe it is; all hexadecimal.

    Attributes:
        server: its Ed25519 key. nonce: 32 bytes.
        roster: digest of the devices' public keys, 32 bytes each, sorted and joined. A device is named by the digest of
            its key, so who knows this run knows all keys of its devices.
    """

    server: str
    nonce: str
    roster: str


class ExtensionPackage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, order=True):
    """An installed package with parts that a run uses. Facts carry no code: who takes part has the package.

    Attributes:
        name: as pip knows it. sha256: digest of its files (``drivers.extension_packages``), 64 hexadecimal digits.
    """

    name: str
    sha256: str


class PlanFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The facts that decide a run's model and protocol.

    Attributes:
        format: version of this record.
        recipe: canonical JSON of the resolved recipe without the sections that only simulate, compare, measure or
            store. In the JSON of the facts it is a table.
        spec: digest of the trained vector's layout.
        population: number of devices that exist, at most ``MOST_DEVICES``. Smallest sums, thresholds and noise shares
            are sized by it.
        n_min: devices of the smallest sum that a round may open. corrupt: devices of a sum that may be corrupt.
        ring_bits: of the ring that each pipeline or rung sums in; 0 where updates are not in a ring.
        noise: None without an epsilon.
        secagg: name and version of the protocol for secure aggregation.
        wire: version of frames and of the payloads in them.
        instance: None in a simulation.
        packages: those that bring parts which do not ship with edgewise, sorted; not in the JSON where there are none.
    """

    format: int
    recipe: str
    spec: str
    population: int
    n_min: int
    corrupt: int
    ring_bits: tuple[int, ...]
    noise: StatedNoise | None
    secagg: str
    wire: int
    instance: Instance | None = None
    packages: tuple[ExtensionPackage, ...] = ()

    def digest(self) -> str:
        """The run id, 64 hexadecimal digits."""
        return hashlib.sha256(canonical(self)).hexdigest()

    def settings(self) -> dict[str, Any]:
        """The recipe's tables, for ``plan.recipe.from_plain``."""
        tables: dict[str, Any] = json.loads(self.recipe)
        return tables


def decisive(resolved: Mapping[str, Any]) -> str:
    """Canonical JSON of what a resolved recipe decides about the model and the protocol.

    Left out are [simulation], [compare], [report] and [store], and [eval] unless held-out losses decide which model
    counts or come with the updates; of [trust] ``cohorts`` where the server draws them.
    """
    told = resolved["round"]["patience"] or resolved["round"]["keep"] == "best" or resolved["eval"]["on_devices"]
    left_out = {"simulation", "compare", "report", "store"} | (set() if told else {"eval"})
    kept = {key: value for key, value in resolved.items() if key not in left_out}
    if resolved["trust"]["cohorts"] == "server":  # who draws them decides nothing then that the protocol has
        kept["trust"] = {key: value for key, value in resolved["trust"].items() if key != "cohorts"}
    return _json(kept)


def canonical(facts: PlanFacts) -> bytes:
    """The facts as bytes: what is hashed, signed and published."""
    plain = {**msgspec.to_builtins(facts), "recipe": json.loads(facts.recipe)}
    return _json({key: value for key, value in plain.items() if value or key != "packages"}).encode("ascii")


def parse(raw: bytes) -> PlanFacts:
    """Inverse of ``canonical``, for facts from elsewhere.

    Raises DecodeError(E-FACTS): anything that ``canonical`` does not write, more than ``LIMIT_BYTES``, and facts of
        another version of the record, of secure aggregation or of frames.
    """
    if len(raw) > LIMIT_BYTES:
        raise refused(f"they have {len(raw):,} bytes, the limit is {LIMIT_BYTES:,}")
    try:
        plain = json.loads(raw.decode("ascii"))
        if isinstance(plain, dict) and plain.get("format") != FORMAT:
            raise refused(f"they are of format {plain.get('format')!r:.20}, this program reads format {FORMAT}")
        facts = msgspec.convert({**plain, "recipe": _json(plain["recipe"])}, PlanFacts, strict=True)
        same = canonical(facts) == raw
    except (ValueError, TypeError, KeyError, RecursionError, msgspec.ValidationError) as e:
        raise refused(f"they cannot be read ({type(e).__name__})") from None
    if not 1 <= facts.population <= MOST_DEVICES:
        raise refused(f"they are for {facts.population} devices")
    _check_packages(facts.packages)
    if not same:
        raise refused("they are not in their canonical form")
    for what, theirs, own in (
        ("secure aggregation", facts.secagg, messages.PROTOCOL.decode()),
        ("frames", facts.wire, frame.VERSION),
    ):
        if theirs != own:
            raise refused(f"they are of version {theirs!r:.40} of {what}, this program speaks {own!r}")
    return facts


def _check_packages(packages: tuple[ExtensionPackage, ...]) -> None:
    names = [package.name for package in packages]
    if names != sorted(set(names)):
        raise refused("they do not name each package once, in order")
    for package in packages:
        if not (re.fullmatch(NAME, package.name) and re.fullmatch(DIGEST, package.sha256)):
            raise refused(f"they name the package {package.name!r:.120} with the digest {package.sha256!r:.80}")


def stated_noise(raw: str) -> StatedNoise | None:
    """The noise of facts that this program wrote down itself, of whatever version."""
    return msgspec.convert(json.loads(raw)["noise"], StatedNoise | None, strict=True)


def sign(secret: bytes, raw: bytes) -> bytes:
    """A server's Ed25519 signature on canonical facts, 64 bytes. ``secret``: 32 bytes."""
    return ed25519.sign(secret, CONTEXT + raw)


def signed(server: bytes, signature: bytes, raw: bytes) -> bool:
    """Whether the server with this public key (32 bytes) signed these facts; False for anything malformed."""
    return ed25519.verify(server, signature, CONTEXT + raw)


def refused(why: str) -> DecodeError:
    """The error for facts that a device does not take."""
    return DecodeError("E-FACTS", f"the run's facts are refused: {why}.", _FIX)


def _json(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
