"""The routes of runs: stage blobs, submit, list, show, watch, pause, resume, cancel.

A device sees the runs that it takes part in. About other runs it gets the same answer as about unknown ones. A device
that gets mail of an unknown run asks ``GET /v1/runs/RUN`` for the facts and the server's signature on them. Nothing in
the answer has to be believed. ``GET /v1/runs/RUN/rounds/ROUND`` tells a device about its own contribution. That is the
server's word, as is ``accepted`` in the next invitation.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import suppress
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from annotated_types import Ge, Lt
from fastapi import FastAPI, Request
from pydantic import BaseModel

from edgewise.apps.server import sharing, splitting, submission
from edgewise.apps.server.hosting import Hosting
from edgewise.apps.server.submission import Submission
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import mailboxes, served
from edgewise.drivers.fleet.members import Member
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http.guard import caller
from edgewise.drivers.http.service import Service
from edgewise.drivers.storage import run_record
from edgewise.plan.facts import parse

VERBS = {"pause": served.PAUSED, "resume": served.RUNNING, "cancel": served.CANCELLED}
TOLD_AT_ONCE = 500
Whole = Annotated[int, Ge(0), Lt(2**63)]  # SQLite compares numbers up to this.


class Staged(BaseModel):
    """The size of the part of a blob that is on the server."""

    received: int


class ShownRun(BaseModel):
    """A run in a list."""

    run: str
    name: str
    state: str
    why: str | None
    rounds: int
    made_by: str
    made_s: float


class BegunRun(ShownRun):
    """A run that was submitted, and sentences about what will go badly with it."""

    warnings: list[str]


class PublishedRun(ShownRun):
    """A run as devices get it.

    ``facts`` is canonical JSON as text. ``signature`` is the server's signature on it, in hexadecimal. ``shares`` has,
    with two servers, the keys to which devices seal, each signed by its server. ``released`` is the digest of the
    parameters of a finished run's model, a blob that its devices may download. It is empty before.
    ``sessions`` has, with a split model, the port of its sessions, signed by the server.
    """

    facts: str
    signature: str
    released: str
    shares: dict[str, dict[str, Any]] | None
    sessions: dict[str, str | int] | None = None


class Told(BaseModel):
    """Committed events of a run, in order. Ask for the next ones with ``after``."""

    after: int
    state: str
    events: list[dict[str, Any]]


class RoundOutcome(BaseModel):
    """The outcome of a round, also for the device that asks.

    ``state``: ``open``, ``released`` (a model was made of it), ``abandoned``, or ``halted`` (its run was cancelled or
    failed before). ``yours``: whether the device's contribution is in the released model. ``code``, ``reason``: why the
    device gave nothing, or why the round has no sum. null: that is unknown.
    """

    state: str
    yours: bool = False
    code: str | None = None
    reason: str | None = None


class RunRoutes:
    """The routes of runs of one service."""

    def __init__(self, service: Service, hosting: Hosting) -> None:
        self._service, self._hosting = service, hosting

    def add_to(self, api: FastAPI) -> None:
        """Register the routes."""
        api.add_api_route("/v1/staged/{digest}", self.staged, methods=["GET"])
        api.add_api_route("/v1/staged/{digest}", self.stage, methods=["PUT"])
        api.add_api_route("/v1/runs", self.runs, methods=["GET"])
        api.add_api_route("/v1/runs", self.submit, methods=["POST"], status_code=201)
        api.add_api_route("/v1/runs/{run}", self.run, methods=["GET"])
        api.add_api_route("/v1/runs/{run}/events", self.told, methods=["GET"])
        api.add_api_route("/v1/runs/{run}/rounds/{round}", self.outcome, methods=["GET"])
        api.add_api_route("/v1/runs/{run}/{verb}", self.ask, methods=["POST"])

    async def staged(self, digest: str) -> Staged:
        """Tell how much of a blob is on the server."""
        return Staged(received=await self._service.aside(lambda: self._service.staging.received(digest)))

    async def stage(self, request: Request, digest: str, offset: Whole, size: Whole) -> Staged:
        """Append a piece to a blob that a run will need."""
        piece = caller(request).body
        await self._spent(request)
        return Staged(
            received=await self._service.aside(lambda: self._service.staging.put(digest, offset, size, piece))
        )

    async def runs(self) -> list[ShownRun]:
        """List all runs, the oldest first."""
        return [self._shown(run) for run in await self._service.read(served.listed)]

    async def submit(self, request: Request) -> BegunRun:
        """Begin a run. Its blobs were staged before."""
        found = caller(request)
        member, _ = found.signed()
        try:
            wanted = msgspec.json.decode(found.body, type=Submission)
        except msgspec.DecodeError as e:
            raise TransportError("E-REQUEST", f"the submission is malformed: {e}.", "use `edgewise run`.") from None
        await self._spent(request)
        made = asyncio.get_running_loop().run_in_executor(None, self._hosting.submit, wanted, member.id)
        row = await made
        deadline_s = json.loads(parse(row.facts).recipe)["round"]["deadline_s"]
        warnings = await self._service.aside(lambda: submission.warnings(self._service, deadline_s))
        return BegunRun(**self._shown(row).model_dump(), warnings=warnings)

    async def run(self, request: Request, run: str) -> PublishedRun:
        """Show a run, with the facts that devices need to join it."""
        member, _ = caller(request).signed()
        found = await self._service.read(lambda c: _seen(c, run, member))
        known = await self._service.aside(lambda: sharing.load_arranged_helper(submission.folder(self._service, run)))
        port = splitting.served_split_port(self._service, run, found.facts)
        return PublishedRun(
            **self._shown(found).model_dump(), facts=found.facts.decode("ascii"), signature=found.signature.hex(),
            released=await self._service.aside(lambda: _released(self._service, found)),
            shares=None if known is None else msgspec.to_builtins(known.shares),
            sessions=None if port is None else msgspec.to_builtins(port),
        )  # fmt: skip

    async def told(self, run: str, after: Whole = 0) -> Told:
        """List the events of a run after the event of that number."""
        found = await self._service.read(lambda c: served.find(c, run))
        rows = await self._service.aside(lambda: _events(self._service, run, after))
        last = rows[-1][0] if rows else after
        return Told(after=last, state=found.state, events=[json.loads(body) for _, body in rows])

    async def outcome(self, request: Request, run: str, round: Whole, wait: Whole = 0) -> RoundOutcome:
        """Tell the outcome of a round, also for the caller. Waits up to ``wait`` seconds for its end."""
        member, _ = caller(request).signed()
        service, wait_s = self._service, min(float(wait), self._service.limits.wait_s)

        async def now() -> RoundOutcome:
            found = await service.read(lambda c: _seen(c, run, member))
            return await service.aside(lambda: _outcome(service, found, round, member.id))

        with service.listening(run, member.id) as bell:
            found = await now()
            if found.state == "open" and bell is not None and wait_s > 0.0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await bell.wait()
                found = await now()
        return found

    async def ask(self, request: Request, run: str, verb: str) -> ShownRun:
        """Pause a run after its round, resume it, or cancel it."""
        if verb not in VERBS:
            raise TransportError("E-ROUTE", f"a run cannot {verb:.20}.", "pause, resume or cancel it.")
        member, _ = caller(request).signed()
        await self._spent(request)
        done = asyncio.get_running_loop().run_in_executor(None, self._hosting.ask, run, VERBS[verb], member.id)
        return self._shown(await done)

    def _shown(self, run: ServedRun) -> ShownRun:
        return ShownRun(
            run=run.run, name=run.name, state=run.state, why=self._hosting.why(run), rounds=run.rounds,
            made_by=run.made_by, made_s=run.made_s,
        )  # fmt: skip

    async def _spent(self, request: Request) -> None:
        """Spend the request's nonce before the work is done."""
        _, proof = caller(request).signed()
        await self._service.write(lambda c: self._service.spend(c, proof))


def _seen(c: sa.Connection, run: str, member: Member) -> ServedRun:
    """Return a run that this member may see. Raises TransportError(E-UNKNOWN-ID) for others."""
    if member.role == "device":
        mailboxes.check_part(c, run, member.id)
    return served.find(c, run)


def _outcome(service: Service, run: ServedRun, round: int, device: str) -> RoundOutcome:
    query = "SELECT body FROM events WHERE round = ? AND kind "
    end = [json.loads(body) for (body,) in _rows(service, run.run, f"{query} = 'round_finished'", round)]
    if not end:
        halted = run.state in (served.CANCELLED, served.FAILED)
        return RoundOutcome(state="halted", reason=f"the run is {run.state}") if halted else RoundOutcome(state="open")
    of_device = f"{query} IN ('accepted', 'lost') AND json_extract(body, '$.device') = ?"
    found = [json.loads(body) for (body,) in _rows(service, run.run, of_device, round, device)]
    yours = end[0]["met"] and any(one["event"] == "accepted" for one in found)
    why: dict[str, str] = next((one for one in found if one["event"] == "lost"), {})
    return RoundOutcome(
        state="released" if end[0]["met"] else "abandoned",
        yours=yours,
        code=None if yours else why.get("code") or end[0].get("code") or None,
        reason=None if yours else why.get("reason") or None,
    )


def _released(service: Service, run: ServedRun) -> str:
    """Return the digest of a finished run's model. Empty for another run."""
    if run.state != served.FINISHED:
        return ""
    record = run_record.read_run_record(submission.folder(service, run.run))
    return str(record.models[record.counts].params)


def _events(service: Service, run: str, after: int) -> list[tuple[int, str]]:
    """Read the committed events of a run."""
    query = "SELECT number, body FROM events WHERE number > ? ORDER BY number LIMIT ?"
    return [(int(n), str(b)) for n, b in _rows(service, run, query, after, TOLD_AT_ONCE)]


def _rows(service: Service, run: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    """Read rows of a run's store while another thread plays the run."""
    path = submission.folder(service, run) / "run.db"
    try:
        c = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5.0)
        try:
            return list(c.execute(query, values))
        finally:
            c.close()
    except sqlite3.Error as e:
        raise TransportError("E-UNKNOWN-ID", f"the events of run {run:.12} cannot be read: {e}.", "try again.") from e
