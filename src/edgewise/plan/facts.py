"""The facts of a run: signed data from which a device compiles the same plan as the server.

    run = SHA-256(canonical JSON of the facts)

    raw = facts.canonical(plan.facts)                      # server: published once, beside its signature
    signature = facts.sign(secret, raw)
    plan = acceptance.accept(raw, signature, server, spec, floor, catalogue)      # device

The facts hold everything that decides the model and the protocol. These are the recipe without the sections that only
measure or simulate, the layout of the trained vector, the number of devices, the numbers that follow from them, and
the versions of the protocols. Two sides with equal run ids have compiled the same bounds, thresholds, noise, rings and
layout. Masks of sides with different run ids do not cancel. A served run also names its instance, so a second run of
one recipe has another id.

Facts state calibrated numbers, and no device compares them with its own. The last digit of a noise multiplier depends
on processor and library. Integers follow from the rest, so each side derives them and refuses facts with others.

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
from edgewise.core.digests import is_digest
from edgewise.core.errors import DecodeError
from edgewise.crypto import sign as ed25519
from edgewise.secagg import messages

FORMAT = 1
LIMIT_BYTES = 1 << 20
MOST_DEVICES = 10**9
CONTEXT = b"edgewise plan facts 1\0"  # what a signature is for; no other signature of a server begins so
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"  # of a package
_FIX = "ask the operator of the server for the facts of a run that it still serves."


class StatedNoise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The two numbers of a run's noise. The recipe gives one and the server derives the other.

    Attributes:
        multiplier: noise multiplier.
        epsilon: budget of all rounds together, at the recipe's delta.
    """

    multiplier: float
    epsilon: float


class Instance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The identity of one of the runs of a recipe. All fields are hexadecimal.

    Attributes:
        server: the server's Ed25519 public key, 32 bytes.
        nonce: random, 32 bytes.
        roster: digest of the devices' public keys, 32 bytes each, sorted and joined. The digest of its key names a
            device, so the run fixes the keys of all its devices.
    """

    server: str
    nonce: str
    roster: str


class ExtensionPackage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, order=True):
    """An installed package with parts that a run uses. Facts carry no code, so each device must have the package.

    Attributes:
        name: the name that pip knows.
        sha256: digest of its files (``drivers.extension_packages``), 64 hexadecimal digits.
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
        population: number of devices that exist, at most ``MOST_DEVICES``. It sizes the smallest sum, thresholds and
            noise shares.
        n_min: number of devices in the smallest sum that a round may open.
        corrupt: largest number of corrupt devices in a sum.
        ring_bits: bits of the ring of each pipeline or rung; 0 where updates are not in a ring.
        noise: noise multiplier and epsilon. None without an epsilon.
        secagg: name and version of the protocol for secure aggregation.
        wire: version of frames and of the payloads in them.
        instance: the run among those of its recipe. None in a simulation.
        packages: packages with parts that do not ship with edgewise, sorted. The JSON leaves out an empty list.
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
        """Return the run id, 64 hexadecimal digits."""
        return hashlib.sha256(canonical(self)).hexdigest()

    def settings(self) -> dict[str, Any]:
        """Return the recipe's tables, for ``plan.recipe.recipe.from_plain``."""
        tables: dict[str, Any] = json.loads(self.recipe)
        return tables

    @property
    def max_staleness(self) -> int | None:
        """The number of rounds that a contribution to an asynchronous run may lag. None where rounds wait."""
        buffer = self.settings().get("buffer")
        return None if buffer is None else int(buffer["max_staleness"])


def decisive(resolved: Mapping[str, Any]) -> str:
    """Return canonical JSON of the part of a resolved recipe that decides a run's model and protocol.

    It leaves out [simulation], [engine], [compare], [report] and [store]. It leaves out [eval], unless held-out losses
    decide which model counts or come with the updates. It leaves out ``trust.cohorts`` where the server draws cohorts,
    and ``personal.keep_mb``.
    """
    evaluated = resolved["round"]["patience"] or resolved["round"]["keep"] == "best" or resolved["eval"]["on_devices"]
    left_out = {"simulation", "engine", "compare", "report", "store"} | (set() if evaluated else {"eval"})
    tables = {key: value for key, value in resolved.items() if key not in left_out}
    if personal := tables.get("personal"):
        tables["personal"] = {key: value for key, value in personal.items() if key != "keep_mb"}
    if resolved["trust"]["cohorts"] == "server":  # The protocol without verified cohorts does not depend on this key.
        tables["trust"] = {key: value for key, value in resolved["trust"].items() if key != "cohorts"}
    return _canonical_json(tables)


def canonical(facts: PlanFacts) -> bytes:
    """Return the facts as bytes, in the form that is hashed, signed and published."""
    plain = {**msgspec.to_builtins(facts), "recipe": json.loads(facts.recipe)}
    return _canonical_json({key: value for key, value in plain.items() if value or key != "packages"}).encode("ascii")


def parse(raw: bytes) -> PlanFacts:
    """Read facts from elsewhere. The inverse of ``canonical``.

    Raises:
        DecodeError: E-FACTS for anything that ``canonical`` does not write, for more than ``LIMIT_BYTES``, and for
            facts of another version of the record, of secure aggregation or of frames.
    """
    if len(raw) > LIMIT_BYTES:
        raise refused(f"they have {len(raw):,} bytes, the limit is {LIMIT_BYTES:,}")
    try:
        plain = json.loads(raw.decode("ascii"))
        if isinstance(plain, dict) and plain.get("format") != FORMAT:
            raise refused(f"they are of format {plain.get('format')!r:.20}, this program reads format {FORMAT}")
        facts = msgspec.convert({**plain, "recipe": _canonical_json(plain["recipe"])}, PlanFacts, strict=True)
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
        if not (re.fullmatch(NAME, package.name) and is_digest(package.sha256)):
            raise refused(f"they name the package {package.name!r:.120} with the digest {package.sha256!r:.80}")


def stated_noise(raw: str) -> StatedNoise | None:
    """Read the noise from facts that this program stored itself, of any version."""
    return msgspec.convert(json.loads(raw)["noise"], StatedNoise | None, strict=True)


def sign(secret: bytes, raw: bytes) -> bytes:
    """Sign canonical facts with a server's Ed25519 key of 32 bytes. Returns 64 bytes."""
    return ed25519.sign(secret, CONTEXT + raw)


def signed(server: bytes, signature: bytes, raw: bytes) -> bool:
    """Verify a server's signature on facts by its public key of 32 bytes. False for anything malformed."""
    return ed25519.verify(server, signature, CONTEXT + raw)


def refused(why: str) -> DecodeError:
    """Return the error for facts that a device refuses."""
    return DecodeError("E-FACTS", f"the run's facts are refused: {why}.", _FIX)


def _canonical_json(plain: Any) -> str:
    """Write plain values as the one JSON text that is signed."""
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
