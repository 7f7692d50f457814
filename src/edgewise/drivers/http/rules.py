"""Permissions of all routes, one line each. A path that is not here does not exist.

A test checks that the server's routes and these lines are the same, and walks every line with every role.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgewise.drivers.fleet.uploads import CHUNK_BYTES
from edgewise.drivers.storage.store_place import CODES as STORE

ANYONE = frozenset({"anyone"})  # needs no signature
LOCAL = frozenset({"local"})  # needs no signature, from this machine only
JOINING = frozenset({"joining"})  # signed by the key in the request itself
MEMBERS = frozenset({"device", "viewer", "operator", "admin", "gateway", "pending"})
GATEWAY = frozenset({"gateway"})
DEVICE = frozenset({"device"})
VIEWER = frozenset({"viewer", "operator", "admin"})
OPERATOR = frozenset({"operator", "admin"})
SMALL_BYTES = 2**14


@dataclass(frozen=True, slots=True)
class Rule:
    """A route: its method and path, the roles that may call it, and the largest body in bytes.

    ``path``: with ``{name}`` for one segment, as in the routers. ``refuses``: the error codes of this route itself,
    beside those of all routes (``codes``). ``session``: people call it with the cookie of a session, and nobody signs.
    """

    method: str
    path: str
    roles: frozenset[str]
    body_bytes: int = 0
    refuses: tuple[str, ...] = ()
    session: bool = False
    pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        parts = re.split(r"(\{\w+\})", self.path)
        segments = ("[0-9A-Za-z_-]{1,80}" if part.startswith("{") else re.escape(part) for part in parts)
        object.__setattr__(self, "pattern", re.compile("".join(segments)))

    @property
    def changes(self) -> bool:
        """True where a replay of the request would change something. Its nonce is then spent with the change."""
        return self.method not in ("GET", "HEAD")

    @property
    def codes(self) -> frozenset[str]:
        """The codes of all errors that this route may answer with."""
        found = {"E-RATE", "E-REQUEST", "E-QUOTA", "E-STALL", "E-SERVER", *self.refuses}
        if self.roles == LOCAL:
            found |= {"E-ROLE"}
        if self.roles not in (ANYONE, LOCAL):
            found |= {"E-DISK", "E-DATABASE", "E-CHECKPOINT"}
            found |= {"E-SESSION"} if self.session else {"E-SIGNATURE", "E-CLOCK"}
        if self.roles not in (ANYONE, LOCAL, JOINING):
            found |= {"E-ROLE", "E-REVOKED"} | (set() if "pending" in self.roles else {"E-PENDING"})
        if self.body_bytes:
            found |= {"E-BUSY"}
        if self.changes:
            found |= {"E-SESSION" if self.session else "E-REPLAY", "E-LEASE", "E-BUSY"}
        return frozenset(found)


_FRAME = ("E-FRAME", "E-FRAME-SIZE", "E-SEAL")
_REPLAYED = ("E-VERIFY", "E-RESUME", "E-FACTS", "E-EXTENSION")
_UPLOAD = ("E-UNKNOWN-ID", "E-CLOSED", "E-OUTDATED", "E-OFFSET")
RECIPE = (  # codes of faults in a submitted recipe
    "E-KEY", "E-TYPE", "E-VALUE", "E-MISSING", "E-COMBO", "E-NAME", "E-UNKNOWN", "E-EXTENSION", "E-SEGMENT",
    "E-NO-BOUND", "E-NOISE-NOCLIP", "E-WEIGHT", "E-NOT-SUMMABLE", "E-TOPK-SECAGG", "E-NOT-REAL", "E-NOT-INTEGER",
    "E-SPARSE-TWICE", "E-WRAP", "E-RUNG", "E-ORDER", "E-NORM-AFTER", "E-AMP-VISIBLE", "E-BN", "E-ADJ-MIX", "E-BUDGET",
    "E-STATS", "E-PERTENSOR", "E-PRECISION", "E-MF-LOCAL", "E-MF-GAP", "E-DIV-N", "E-DROWNED", "E-ROBUST-SECAGG",
    "E-NMIN", "E-QUORUM", "E-FACTS", "E-MODEL",
)  # fmt: skip

RULES = (
    Rule("GET", "/healthz", ANYONE),
    Rule("GET", "/readyz", ANYONE),
    Rule("GET", "/metrics", LOCAL),
    Rule("GET", "/openapi.json", ANYONE),
    Rule("GET", "/v1/server", ANYONE),
    Rule("POST", "/v1/join", JOINING, SMALL_BYTES, ("E-TOKEN", "E-REVOKED")),
    Rule("GET", "/v1/me", MEMBERS),
    Rule("POST", "/v1/me/leave", DEVICE | {"pending"}, SMALL_BYTES),
    Rule("GET", "/v1/inbox", DEVICE),
    Rule("POST", "/v1/counter", DEVICE, SMALL_BYTES, ("E-OLDER",)),
    Rule("POST", "/v1/outbox", DEVICE, CHUNK_BYTES, (*_FRAME, *_UPLOAD, "E-CONFLICT", "E-BLOB", "E-COUNTER")),
    Rule("POST", "/v1/uploads", DEVICE, SMALL_BYTES, ("E-CLOSED", "E-OUTDATED", "E-BUSY")),
    Rule("GET", "/v1/uploads/{upload}", DEVICE, 0, ("E-UNKNOWN-ID",)),
    Rule("PUT", "/v1/uploads/{upload}", DEVICE, CHUNK_BYTES, _UPLOAD),
    Rule("GET", "/v1/blobs/{digest}", DEVICE | GATEWAY | VIEWER, 0, ("E-BLOB", "E-OFFSET", *STORE)),
    Rule("GET", "/v1/devices", VIEWER | GATEWAY),
    Rule("POST", "/v1/devices/{member}/approve", OPERATOR, SMALL_BYTES, ("E-UNKNOWN-ID",)),
    Rule("POST", "/v1/devices/{member}/revoke", OPERATOR, SMALL_BYTES, ("E-UNKNOWN-ID",)),
    Rule("GET", "/v1/tokens", OPERATOR),
    Rule("POST", "/v1/tokens", OPERATOR, SMALL_BYTES),
    Rule("POST", "/v1/tokens/{token}/revoke", OPERATOR, SMALL_BYTES, ("E-UNKNOWN-ID",)),
    Rule("POST", "/v1/logins", VIEWER, SMALL_BYTES),
    Rule("GET", "/v1/staged/{digest}", OPERATOR),
    Rule("PUT", "/v1/staged/{digest}", OPERATOR, CHUNK_BYTES, ("E-OFFSET", "E-BLOB")),
    Rule("GET", "/v1/models", VIEWER),
    Rule("GET", "/v1/models/promoted", DEVICE | GATEWAY | VIEWER, 0, ("E-UNKNOWN-ID",)),
    Rule("POST", "/v1/models", OPERATOR, SMALL_BYTES, ("E-UNKNOWN-ID", *_REPLAYED, *STORE)),
    Rule("POST", "/v1/models/rollback", OPERATOR, SMALL_BYTES, ("E-CONFLICT", *_REPLAYED, *STORE)),
    Rule("GET", "/v1/runs", VIEWER),
    Rule("POST", "/v1/runs", OPERATOR, CHUNK_BYTES, ("E-BLOB", *RECIPE, *STORE)),
    Rule("GET", "/v1/runs/{run}", DEVICE | VIEWER, 0, ("E-UNKNOWN-ID", "E-FACTS")),
    Rule("GET", "/v1/runs/{run}/events", VIEWER, 0, ("E-UNKNOWN-ID",)),
    Rule("GET", "/v1/runs/{run}/verification", VIEWER, 0, ("E-UNKNOWN-ID", *_REPLAYED)),
    Rule("GET", "/v1/runs/{run}/statistics", VIEWER, 0, ("E-UNKNOWN-ID", "E-COMBO", "E-RESUME", "E-FACTS")),
    Rule("GET", "/v1/runs/{run}/rounds/{round}", DEVICE, 0, ("E-UNKNOWN-ID",)),
    Rule("POST", "/v1/runs/{run}/{verb}", OPERATOR, SMALL_BYTES, ("E-UNKNOWN-ID", "E-CONFLICT", "E-ROUTE")),
)


def matched(method: str, path: str, rules: Sequence[Rule] = RULES) -> Rule | None:
    """Find the rule of a request. None where there is no such route."""
    return next((rule for rule in rules if rule.method == method and rule.pattern.fullmatch(path)), None)


STATUS: Mapping[str, int] = dict.fromkeys(
    RECIPE, 422
) | {  # error code -> status of the answer; other codes are failures of the server
    "E-REQUEST": 400,
    "E-SIGNATURE": 401,
    "E-CLOCK": 401,
    "E-REPLAY": 401,
    "E-SESSION": 401,
    "E-TOKEN": 403,
    "E-ROLE": 403,
    "E-PENDING": 403,
    "E-REVOKED": 403,
    "E-ROUTE": 404,
    "E-UNKNOWN-ID": 404,
    "E-BLOB": 404,
    "E-STALL": 408,
    "E-CONFLICT": 409,
    "E-VERIFY": 409,
    "E-OFFSET": 409,
    "E-OLDER": 409,
    "E-COUNTER": 409,
    "E-CLOSED": 410,
    "E-OUTDATED": 410,
    "E-QUOTA": 413,
    "E-FRAME": 422,
    "E-FRAME-SIZE": 413,
    "E-RATE": 429,
    "E-SERVER": 500,
    "E-BUSY": 503,
}
