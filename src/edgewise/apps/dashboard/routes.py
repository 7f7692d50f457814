"""The routes of the dashboard: pages, their data as JSON, forms, and the events of a run.

    DashboardRoutes(service, server).routes()      # for a router behind the guard

The guard has checked session, role and form before a route is called.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from edgewise.apps.dashboard import fleet_data, rendering, run_data
from edgewise.apps.dashboard.shown_server import ShownServer
from edgewise.core.errors import TransportError
from edgewise.drivers.fleet import audit, members, served, sessions
from edgewise.drivers.fleet.members import Grant
from edgewise.drivers.fleet.served import ServedRun
from edgewise.drivers.http import browser
from edgewise.drivers.http.guard import caller
from edgewise.drivers.http.page_rules import FILES, HOME, LOGIN
from edgewise.drivers.http.rules import OPERATOR, VIEWER
from edgewise.drivers.http.service import Service

LIVE_S, BEAT_S = 300.0, 15.0  # a browser asks again after the first; the second keeps proxies from hanging up
COMPARED = 8  # runs side by side
RECENT = 10
REFUSALS, REFUSALS_S = 10, 3600.0  # refused log-ins that get a row each, in that time
Data = Callable[[Request], Awaitable[dict[str, Any]]]


class DashboardRoutes:
    """The routes of the pages of one service."""

    def __init__(self, service: Service, server: ShownServer) -> None:
        self._service, self._server = service, server
        self._reader = run_data.RunReader()
        self._refusals_s, self._refused, self._unlisted = -REFUSALS_S, 0, 0
        self._ended: dict[str, dict[str, Any]] = {}  # progress of runs that do not move any more

    def routes(self) -> list[Route]:
        """Return the routes for a router behind the guard."""
        made = [Route(f"{HOME}/{name}", _file(name), methods=["GET"]) for name in FILES]
        pages: list[tuple[str, str, Data]] = [
            ("", "overview.html", self.overview),
            ("/runs", "runs.html", self.runs),
            ("/compare", "compare.html", self.compare),
            ("/devices", "devices.html", self.devices),
            ("/enrol", "enrol.html", self.enrolment),
            ("/models", "models.html", self.models),
            ("/privacy", "privacy.html", self.privacy),
            ("/audit", "audit.html", self.audit),
            ("/runs/{run}", "run.html", self.run),
        ]
        for path, template, data in pages:  # The path with .json stands first: {run} matches it too.
            made.append(Route(f"{HOME}{path}.json", _as_json(data), methods=["GET"]))
            made.append(Route(f"{HOME}{path}", self._as_page(template, data), methods=["GET"]))
        made.append(Route(f"{HOME}/runs/{{run}}/live", self.live, methods=["GET"]))
        forms: list[tuple[str, Callable[[Request], Awaitable[Response]]]] = [
            ("/login", self.log_in),
            ("/logout", self.log_out),
            ("/devices/{member}/approve", self.decide),
            ("/devices/{member}/revoke", self.decide),
            ("/enrol", self.make_token),
            ("/enrol/{token}/revoke", self.revoke_token),
            ("/models/promote", self.promote),
            ("/models/rollback", self.roll_back),
            ("/runs/{run}/{verb}", self.ask),
        ]
        made += [Route(f"{HOME}{path}", act, methods=["POST"]) for path, act in forms]
        return [*made, Route(LOGIN, self.login_page, methods=["GET"])]

    # -- pages -----------------------------------------------------------------------------------------------------

    async def overview(self, request: Request) -> dict[str, Any]:
        """Show the state of the server, its newest runs, and everything that needs a person."""
        service = self._service
        recent = service.presence.recent()
        runs, members_by_role, present = await service.read(
            lambda c: (served.listed(c), fleet_data.dashboard_member_counts(c), fleet_data.devices_among(c, recent))
        )
        newest = sorted(runs, key=lambda run: (run.state != served.RUNNING, -run.made_s))[:RECENT]
        shown = await service.aside(lambda: [self._shown(run) for run in newest])
        devices = members_by_role.get("device", {})
        checks = await service.aside(service.checks)
        return {
            "runs": shown,
            "running": sum(run.state == served.RUNNING for run in runs),
            "all_runs": len(runs),
            "devices": devices,
            "present": present,
            "free_bytes": await service.aside(service.free_bytes),
            "checks": checks,
            "alerts": _alerts(shown, devices, checks),
        }

    async def runs(self, request: Request) -> dict[str, Any]:
        """List all runs, the newest first."""
        found = await self._service.read(served.listed)
        return {"runs": await self._service.aside(lambda: [self._shown(run) for run in reversed(found)])}

    async def run(self, request: Request) -> dict[str, Any]:
        """Show a run: curves, funnel, rounds, budget, and the round under way."""
        name = request.path_params["run"]
        row, here = await self._service.read(
            lambda c: (served.find(c, name), fleet_data.dashboard_round_under_way(c, name))
        )
        found = await self._service.aside(lambda: self._reader.figures(self._server.folder(row.run)))
        own = {"run": row.run, "name": row.name, "state": row.state, "why": self._server.why(row), "rounds": row.rounds}
        return {
            **own,
            "made_by": row.made_by,
            "made_s": row.made_s,
            "budget": fleet_data.dashboard_budget(row),
            "now": here,
            **found,
        }

    async def compare(self, request: Request) -> dict[str, Any]:
        """Put the runs that the query names side by side."""
        names = list(dict.fromkeys(request.query_params.getlist("run")))[:COMPARED]
        rows = await self._service.read(lambda c: [served.find(c, name) for name in names])
        folders = {row.run: (row, self._server.folder(row.run)) for row in rows}
        everything = await self._service.read(served.listed)
        listed = [{"run": row.run, "name": row.name, "state": row.state} for row in reversed(everything)]
        return {
            **await self._service.aside(lambda: fleet_data.dashboard_comparison(self._reader, folders)),
            "all": listed,
            "chosen": names,
        }

    async def devices(self, request: Request) -> dict[str, Any]:
        """List members, a page at a time."""
        status, after = request.query_params.get("status", ""), request.query_params.get("after", "")
        rows, counted = await self._service.read(
            lambda c: (
                fleet_data.dashboard_devices(c, self._service, status, after),
                fleet_data.dashboard_member_counts(c),
            )
        )
        more = rows[-1]["id"] if len(rows) == fleet_data.PAGE else ""
        return {"members": rows, "counts": counted, "status": status, "more": more}

    async def enrolment(self, request: Request) -> dict[str, Any]:
        """List enrolment tokens without their texts."""
        found = await self._service.read(members.list_tokens)
        url = (self._service.public_url or str(request.base_url)).rstrip("/")
        return {"tokens": found[::-1], "url": url, "now_s": self._service.now_s()}

    async def models(self, request: Request) -> dict[str, Any]:
        """Show the promoted model and its lineage."""
        found, runs = await self._service.read(
            lambda c: (fleet_data.dashboard_models(c), served.listed(c, served.FINISHED))
        )
        return {**found, "finished": [{"run": run.run, "name": run.name} for run in reversed(runs)]}

    async def privacy(self, request: Request) -> dict[str, Any]:
        """Show the budgets of all runs, and the ledger of the one that the query names."""
        runs, name = await self._service.read(served.listed), request.query_params.get("run", "")
        chosen = next((run for run in runs if run.run == name), None)

        def work() -> dict[str, Any]:
            budgets = fleet_data.dashboard_privacy(runs, {run.run: self._progress(run) for run in runs})
            rows = None if chosen is None else fleet_data.dashboard_charges(self._server.folder(chosen.run))
            return {"runs": budgets, "ledger": rows, "chosen": None if chosen is None else chosen.name}

        return await self._service.aside(work)

    async def audit(self, request: Request) -> dict[str, Any]:
        """List the rows of the audit log, the newest first."""
        before, verify = _whole(request.query_params.get("before", "")), "verify" in request.query_params
        return await self._service.read(lambda c: fleet_data.dashboard_audit_rows(c, before, verify))

    async def live(self, request: Request) -> Response:
        """Send an event whenever a round of a run has ended or its state has changed."""
        name, found = request.path_params["run"], caller(request)
        await self._service.read(lambda c: served.find(c, name))
        headers = {**browser.HEADERS, "x-accel-buffering": "no"}
        return StreamingResponse(
            self._changes(name, found.person().id, found.form()), media_type="text/event-stream", headers=headers
        )

    async def _changes(self, run: str, member: str, session: str) -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        seen, until_s, rang = "", time.monotonic() + LIVE_S, False
        while time.monotonic() < until_s:
            with self._service.listening(run, member) as bell:
                person = await self._service.member(member)
                if bell is None or person is None or person.status != members.APPROVED or person.role not in VIEWER:
                    return
                if session and not await self._service.person(session):
                    return  # logged out in another tab
                row = await self._service.read(lambda c: served.find(c, run))
                played = await self._service.aside(
                    lambda: run_data.shown_run_progress(self._server.folder(run))["played"]
                )
                now = json.dumps({"state": row.state, "played": played})
                if now != seen:
                    seen = now
                    yield f"event: changed\ndata: {now}\n\n"
                elif rang:  # The server ends, or the member has too many open pages. A browser asks again.
                    return
                try:
                    async with asyncio.timeout(BEAT_S):
                        rang = await bell.wait()
                except TimeoutError:
                    rang = False
                    yield ": nothing new\n\n"

    # -- forms -----------------------------------------------------------------------------------------------------

    async def login_page(self, request: Request) -> Response:
        """Show the form that takes a login token."""
        return rendering.dashboard_page("login.html", {"title": "Log in"})

    async def log_in(self, request: Request) -> Response:
        """Exchange a login token for a session. A cookie of a session before it ends that session."""
        try:
            return await self._logged_in(request)
        except TransportError as e:
            await self._note_refusal(e.code)
            raise

    async def _logged_in(self, request: Request) -> Response:
        browser.check_origin(request.scope, self._service.public_url)
        text, old, now_s = (
            browser.form_fields(caller(request).body).get("token", ""),
            browser.session_secret(request.scope),
            self._service.now_s(),
        )

        def change(c: sa.Connection) -> str:
            secret, name = sessions.enter_session(c, text, now_s)
            member = members.find(c, name)
            if member is None or member.status != members.APPROVED or member.role not in VIEWER:
                raise TransportError("E-ROLE", "this member may not see the dashboard.", "ask an administrator.")
            if old is not None:
                sessions.leave_session(c, old)
            audit.note(c, name, "log in", name, now_s)
            return secret

        secret = await self._service.write(change)
        return _to(HOME, {"set-cookie": browser.cookie(secret)})

    async def _note_refusal(self, code: str) -> None:
        """Note a refused log-in: ``REFUSALS`` in ``REFUSALS_S`` seconds at most, so that no flood fills the log.

        Those beyond are counted, and the next row has their number. What is past its time is deleted on the way.
        """
        passed_s = time.monotonic() - self._refusals_s
        if passed_s >= REFUSALS_S:
            self._refusals_s, self._refused = time.monotonic(), 0
        self._refused += 1
        if self._refused > REFUSALS:
            self._unlisted += 1
            return
        before, self._unlisted, now_s = self._unlisted, 0, self._service.now_s()
        what = f"{code}, and {before} more before" if before else code

        def change(c: sa.Connection) -> None:
            sessions.sweep_sessions(c, now_s)
            audit.note(c, "server", "refuse log in", what, now_s)

        await self._service.write(change)

    async def log_out(self, request: Request) -> Response:
        """End the session."""
        found, now_s = caller(request), self._service.now_s()

        def change(c: sa.Connection) -> None:
            sessions.leave_session(c, found.form())
            audit.note(c, found.person().id, "log out", found.person().id, now_s)

        await self._service.write(change)
        return _to(LOGIN, {"set-cookie": browser.cookie("")})

    async def decide(self, request: Request) -> Response:
        """Approve or revoke a member."""
        name, verb = request.path_params["member"], request.url.path.rpartition("/")[2]
        await self._server.decide(caller(request).person(), name, verb)
        return _to(f"{HOME}/devices")

    async def make_token(self, request: Request) -> Response:
        """Make an enrolment token, and show it once with its QR code."""
        form = browser.form_fields(caller(request).body)
        try:
            uses, hours = int(form.get("uses", "1")), float(form.get("hours", "1"))
        except ValueError:
            raise TransportError("E-REQUEST", "uses and hours are numbers.", "correct the form.") from None
        tags = tuple(form.get("tags", "").replace(",", " ").split())
        grant = Grant(form.get("role", "device"), tags, uses, form.get("approved") == "on", 3600.0 * hours)
        text = await self._server.make_token(caller(request).person(), grant)
        data = {**await self.enrolment(request), "made": text, "grant": grant}
        return rendering.dashboard_page("enrol.html", {**self._around(request, "enrol.html"), **data})

    async def revoke_token(self, request: Request) -> Response:
        """Revoke an enrolment token."""
        await self._server.revoke_token(caller(request).person(), request.path_params["token"])
        return _to(f"{HOME}/enrol")

    async def promote(self, request: Request) -> Response:
        """Verify a run and promote its model."""
        run = browser.form_fields(caller(request).body).get("run", "")
        await self._server.promote(run, caller(request).person().id)
        return _to(f"{HOME}/models")

    async def roll_back(self, request: Request) -> Response:
        """Return to the previously promoted model."""
        await self._server.rollback(caller(request).person().id)
        return _to(f"{HOME}/models")

    async def ask(self, request: Request) -> Response:
        """Pause, resume or cancel a run."""
        run = request.path_params["run"]
        await self._server.ask(run, request.path_params["verb"], caller(request).person().id)
        return _to(f"{HOME}/runs/{run}")

    # -- parts -----------------------------------------------------------------------------------------------------

    def _as_page(self, template: str, data: Data) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            found = await data(request)
            around = self._around(request, template)
            return await self._service.aside(lambda: rendering.dashboard_page(template, {**around, **found}))

        return answer

    def _around(self, request: Request, template: str) -> dict[str, Any]:
        """Return what every page needs: who is logged in, and the token of its forms."""
        found = caller(request)
        member = found.person()
        return {
            "title": TITLES[template], "here": template.removesuffix(".html"), "person": member,
            "operates": member.role in OPERATOR, "form_token": browser.form_token(found.form()), "made": "",
        }  # fmt: skip

    def _progress(self, run: ServedRun) -> dict[str, Any]:
        if (known := self._ended.get(run.run)) is not None:
            return known
        found = run_data.shown_run_progress(self._server.folder(run.run))
        if run.state in (served.FINISHED, served.CANCELLED):
            self._ended[run.run] = found
        return found

    def _shown(self, run: ServedRun) -> dict[str, Any]:
        return {
            "run": run.run, "name": run.name, "state": run.state, "why": self._server.why(run), "rounds": run.rounds,
            "made_by": run.made_by, "made_s": run.made_s, "budget": fleet_data.dashboard_budget(run),
                **self._progress(run),
        }  # fmt: skip


TITLES = {
    "overview.html": "Overview", "runs.html": "Runs", "run.html": "Run", "compare.html": "Compare runs",
    "devices.html": "Devices", "enrol.html": "Enrol devices", "models.html": "Models", "privacy.html": "Privacy ledger",
    "audit.html": "Audit log",
}  # fmt: skip


def _as_json(data: Data) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return JSONResponse(await data(request), headers=dict(browser.HEADERS))

    return answer


def _file(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        return rendering.dashboard_file(name)

    return answer


def _to(path: str, headers: Mapping[str, str] | None = None) -> Response:
    """Send the browser to a page after a form, so that a reload does not send the form again."""
    return RedirectResponse(path, 303, {**browser.HEADERS, **(headers or {})})


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 2**62


def _alerts(runs: list[dict[str, Any]], devices: Mapping[str, int], checks: Mapping[str, bool]) -> list[str]:
    """List in words what needs a person."""
    found = [f"The check {name} fails: see /readyz." for name, holds in checks.items() if not holds]
    found += [f"{run['name']} failed: {run['why']}" for run in runs if run["state"] == served.FAILED]
    found += [f"{run['name']}: {run['why']}" for run in runs if run["state"] == served.RUNNING and run["why"]]
    if waiting := devices.get(members.PENDING, 0):
        found.append(f"{waiting} device{'s wait' if waiting > 1 else ' waits'} for your approval.")
    return found
