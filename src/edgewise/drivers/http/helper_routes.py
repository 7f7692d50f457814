"""The routes of a gateway as the second server of shared sums. All but the first are for its server alone.

server                                      gateway
GET  /v1/gateway?nonce=       ──►           its identity, signed for the nonce
POST /v1/shares/run           facts ──►     the run's own HPKE key, signed; or the reason why it does not help
POST /v1/shares/round         invite ──►    begun, if the gateway accepts the invitation, and its cohort was drawn
POST /v1/shares/ticket        ticket ──►    {"code"}: empty where the report counts
POST /v1/shares/batch         devices ──►   the gateway's share of the sum, once a round

The gateway compiles its own plan from the facts. Smallest sum, ring and sizes are its own, and it refuses facts with
other values. It counts only reports of the devices on its operator's list. Every step is on its disk before it is
answered. A repeated question gets the same answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from threading import Lock
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from edgewise.core import vector
from edgewise.core.errors import DecodeError, RecipeError, TransportError
from edgewise.core.training import DeviceId
from edgewise.core.vector import Spec
from edgewise.crypto.agree import public_half
from edgewise.crypto.attest.evidence import Evidence
from edgewise.drivers import extension_packages
from edgewise.drivers.fleet import helped, roster
from edgewise.drivers.fleet.helped import Enlisted, HelpedRun
from edgewise.drivers.fleet.uploads import CHUNK_BYTES
from edgewise.drivers.http import certificates, share_keys
from edgewise.drivers.http.allowed import Allowed
from edgewise.drivers.http.guard import caller, parsed_body
from edgewise.drivers.http.health import Health
from edgewise.drivers.http.rules import ANYONE, LOCAL, SMALL_BYTES, Rule
from edgewise.drivers.http.service import Service
from edgewise.drivers.http.share_keys import ShareKey
from edgewise.drivers.simulation.local_helper import LocalHelper
from edgewise.engine.ports import Trust
from edgewise.plan import facts
from edgewise.plan.acceptance import OwnerFloor, accept_facts
from edgewise.plan.plan import Plan
from edgewise.secagg import two_server

T = TypeVar("T")
LEADER = "orchestrator"  # the role of the server that a gateway helps
_LEADER = frozenset({LEADER})
RULES = (
    Rule("GET", "/healthz", ANYONE),
    Rule("GET", "/readyz", ANYONE),
    Rule("GET", "/metrics", LOCAL),
    Rule("GET", "/v1/gateway", ANYONE),
    Rule("POST", "/v1/shares/run", _LEADER, CHUNK_BYTES),
    Rule("POST", "/v1/shares/round", _LEADER, CHUNK_BYTES),
    Rule("POST", "/v1/shares/ticket", _LEADER, SMALL_BYTES),
    Rule("POST", "/v1/shares/batch", _LEADER, CHUNK_BYTES),
)


class _Wanted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request to help with a run. ``facts``: canonical JSON. ``signature``, ``roster``: hexadecimal."""

    facts: str
    signature: str
    layout: list[tuple[str, list[int], str]]
    roster: str


class _Registry:
    """The keys of a run's devices that are on the operator's list.

    ``every``: all keys, for reports that were counted before.
    """

    def __init__(self, keys: Mapping[DeviceId, bytes], allowed: Allowed) -> None:
        self._keys, self._allowed, self.every = keys, allowed, True

    def __call__(self, device: DeviceId) -> bytes | None:
        return self._keys.get(device) if self.every or device in self._allowed.ids() else None


def _no_identity(device: DeviceId) -> bytes:
    raise ValueError("a gateway has no device's secret key")


class HelperPlane:
    """The routes of one gateway.

    Args:
        leader: Ed25519 key of its server.
        allowed: the devices that count.
        floor: the demands of the gateway's operator on every run.
        packages: name -> digest of the installed packages that runs may use.
        attest: obtains this machine's evidence for 64 bytes. None: the gateway's keys come without.
    """

    def __init__(
        self,
        service: Service,
        leader: bytes,
        allowed: Allowed,
        floor: OwnerFloor,
        packages: Mapping[str, str],
        attest: Callable[[bytes], Evidence] | None = None,
    ) -> None:
        self._service, self._leader, self._allowed, self._floor = service, leader, allowed, floor
        self._packages, self._attest = packages, attest
        self._lock = Lock()  # one step at a time, because a step reads and writes its run's state and sweeps blobs
        self._helpers: dict[str, LocalHelper] = {}

    def routes(self) -> list[Route]:
        """Return the routes for a router behind the guard."""
        return [
            *Health(self._service).routes(),
            Route("/v1/gateway", self.gateway, methods=["GET"]),
            Route("/v1/shares/run", self.run, methods=["POST"]),
            Route("/v1/shares/round", self.round, methods=["POST"]),
            Route("/v1/shares/ticket", self.ticket, methods=["POST"]),
            Route("/v1/shares/batch", self.batch, methods=["POST"]),
        ]

    async def gateway(self, request: Request) -> Response:
        """Tell the gateway's identity, signed for a nonce of the caller."""
        service = self._service
        return JSONResponse(
            certificates.introduced_server(service.identity, service.authority, request.query_params.get("nonce", ""))
        )

    async def run(self, request: Request) -> Response:
        """Help with a run: compile its plan, and give the key to which its devices seal."""
        share_key = await self._step(request, lambda id, body: self._enlist(id, parsed_body(body)))
        return JSONResponse(msgspec.to_builtins(share_key))

    async def round(self, request: Request) -> Response:
        """Begin a round. Where the invitation is refused, its tickets and batch are refused with the same code."""

        def begin(run: str, body: bytes) -> None:
            helper = self._helper(run)
            helper.begin(*helped.read_helped_round(body, verified=bool(helper.plan.contributors)))

        await self._step(request, begin)
        return JSONResponse({})

    async def ticket(self, request: Request) -> Response:
        """Add a report to the round's batch by its ticket."""
        code = await self._step(request, lambda run, body: self._helper(run).admit(body))
        return JSONResponse({"code": code or ""})

    async def batch(self, request: Request) -> Response:
        """Open the batch of these devices, given as a JSON list."""

        def open(run: str, body: bytes) -> bytes:
            devices = parsed_body(body)
            if not isinstance(devices, list) or not all(isinstance(device, str) for device in devices):
                raise TransportError("E-REQUEST", "a batch is a list of devices.", "send their ids as a JSON list.")
            return two_server.dump_share(self._helper(run).open(devices))

        return Response(await self._step(request, open), media_type="application/octet-stream")

    async def _step(self, request: Request, work: Callable[[str, bytes], T]) -> T:
        """Do one step, in a thread, for the run that the request is signed for.

        The request's nonce is spent before. So a recorded request does nothing, and a repeated step that is signed
        again changes nothing that has happened.
        """
        service, found = self._service, caller(request)
        _, proof = found.signed()
        run = proof.run
        if run is None:
            raise TransportError("E-REQUEST", "a share belongs to a run.", "sign for the run.")
        await service.write(lambda c: service.spend(c, proof))

        def alone() -> T:
            with self._lock:
                return work(run, found.body)

        return await service.aside(alone)

    def _enlist(self, run: str, document: Any) -> ShareKey:
        """Enlist a run.

        Raises DecodeError(E-FACTS), RecipeError and others as ``acceptance.accept_facts``; TransportError(E-REQUEST).
        """
        service = self._service
        try:
            wanted = msgspec.convert(document, _Wanted)
            raw, signature, keys = wanted.facts.encode(), bytes.fromhex(wanted.signature), bytes.fromhex(wanted.roster)
            spec = Spec.of(wanted.layout)
        except (msgspec.ValidationError, ValueError) as e:
            raise TransportError(
                "E-REQUEST", f"the request does not hold the facts of a run: {e}.", "see the transport page."
            ) from None
        known = self._known(run)
        if known is None or (known.facts, known.layout, known.roster) != (raw, wanted.layout, keys):
            new = Enlisted(run, raw, signature, wanted.layout, keys, secrets.token_bytes(32))
            plan = self._plan(new, spec)
            counted, n_min = len(self._devices(plan, new).keys() & self._allowed.ids()), plan.facts.n_min
            if counted < n_min:
                what = (
                    f"this gateway's operator lists {counted} of the run's devices, and its smallest sum has {n_min}."
                )
                raise DecodeError("E-SECAGG-FEW", what, "ask the gateway's operator (`edgewise gateway approve`).")
            service.database.write(lambda c: helped.enlist_helped_run(c, new, service.now_s()))
            known = self._known(run)
        assert known is not None
        return share_keys.made_share_key(
            service.identity, share_keys.HELPER, run, public_half(known.secret), self._attest
        )

    def _plan(self, run: Enlisted, spec: Spec) -> Plan:
        """Compile the gateway's own plan of a run from facts that its server signed."""
        if not facts.signed(self._leader, run.signature, run.facts):  # checked before any code of a package is imported
            raise facts.refused("they are not signed by this gateway's server")
        catalogue = extension_packages.catalogue(facts.parse(run.facts).packages, self._packages)
        plan = accept_facts(run.facts, run.signature, self._leader, spec, self._floor, catalogue)
        if plan.run != run.run:
            raise DecodeError("E-FACTS", "the facts are those of another run than the request is signed for.")
        if plan.hides is None or plan.hides.servers != 2:
            what = 'a gateway is the second server of [merge] kind = "shared_sum" alone.'
            raise RecipeError("E-COMBO", what, "run this recipe without a gateway.")
        return plan

    def _devices(self, plan: Plan, run: Enlisted) -> Mapping[DeviceId, bytes]:
        """Read the keys of the run's devices. The facts name them by their digest."""
        assert plan.facts.instance is not None  # ``accept`` refuses facts without an instance
        if vector.digest(run.roster) != plan.facts.instance.roster:
            raise DecodeError("E-FACTS", "the devices' keys are not those that the facts name.")
        return roster.parse_roster(run.roster, plan.facts.population)

    def _known(self, run: str) -> Enlisted | None:
        with self._service.database.read() as c:
            return helped.find_helped_run(c, run)

    def _helper(self, run: str) -> LocalHelper:
        """Load the helper of a run from the disk. Raises TransportError(E-UNKNOWN-ID) for an unknown run."""
        if run not in self._helpers:
            service, known = self._service, self._known(run)
            if known is None:
                raise TransportError("E-UNKNOWN-ID", f"this gateway does not help with the run {run:.12}.", "send it.")
            plan = self._plan(known, Spec.of(known.layout))
            keys = self._devices(plan, known)
            registry, trust = _Registry(keys, self._allowed), Trust(keys.get, _no_identity, roster=tuple(sorted(keys)))
            record = HelpedRun(service.database, service.blobs, run)
            self._helpers[run] = LocalHelper(plan, known.secret, trust, registry, record)
            registry.every = False
        return self._helpers[run]
