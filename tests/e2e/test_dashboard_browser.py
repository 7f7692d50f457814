"""The dashboard in a real browser: with and without scripts, light and dark, and as wide as a phone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browsing import CHROMIUM, FAULTS, LAYOUTS, browser, window
from served import running
from shown_runs import filled, login, member

from edgewise.apps.server.start import HttpServer
from edgewise.drivers.fleet import served, sessions

pytest.importorskip("playwright", reason="playwright is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="this machine has no Chromium")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    with running(tmp_path_factory.mktemp("browsed")) as made:
        yield made


@pytest.fixture(scope="module")
def ids(server: HttpServer) -> dict[str, str]:
    member(server, "<img src=x onerror=console.error(1)><script>console.error(2)</script>")
    return filled(server)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as made:
        yield made


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_page_can_be_read(server: HttpServer, ids: dict[str, str], chromium: Any, layout: str) -> None:
    """Contrast, names of all fields and buttons, no error of the console, and no scrolling to the side."""
    run, other = ids["smart-home"], ids["plays"]
    with window(chromium, layout, session=login(server, ids["operator"]), url=server.url) as page:
        for path in ("", "/runs", f"/runs/{run}", f"/compare?run={run}&run={other}", "/devices", "/enrol", "/models",
                     f"/privacy?run={run}", "/audit?verify=1", "/login", "/nowhere"):  # fmt: skip
            page.goto(f"{server.url}/dashboard{path}")
            if path == "/devices":
                page.locator("th:has-text('onerror=console')").wait_for()
            if path.startswith(("/runs/", "/compare")):
                page.wait_for_selector(".uplot")
            assert page.evaluate(FAULTS) == [], path
            page.problems = [problem for problem in page.problems if "404" not in problem]
            assert page.problems == [], path


@pytest.mark.long(sample=1)
@pytest.mark.parametrize("scripts", [True, False])
def test_a_person_logs_in_and_approves_a_device(
    server: HttpServer, ids: dict[str, str], chromium: Any, scripts: bool
) -> None:
    name, now_s = member(server, f"scripts {scripts}", approved=False), server.service.now_s()
    text = server.service.database.write(lambda c: sessions.invite_to_session(c, ids["operator"], now_s))
    with window(chromium, scripts=scripts) as page:
        page.goto(f"{server.url}/dashboard/devices")
        page.fill("input[name=token]", text)
        page.click("text=Log in >> nth=-1")
        page.wait_for_selector("h1:has-text('Overview')")
        page.click("text=Devices >> nth=0")
        row = page.locator(f"tr:has-text('{name[:12]}')")
        row.get_by_role("button", name="Approve").click()
        page.locator(f"tr:has-text('{name[:12]}') .state.approved").wait_for()
        assert page.problems == []
        if scripts:
            page.on("dialog", lambda dialog: dialog.accept())
        row.get_by_role("button", name="Revoke").click()
        page.locator(f"tr:has-text('{name[:12]}') .state.revoked").wait_for()
        page.goto(f"{server.url}/dashboard/runs/{ids['plays']}")
        assert page.locator(".uplot, svg.chart").count() >= 6
        page.get_by_role("button", name="Log out").click()
        page.wait_for_selector("input[name=token]")


@pytest.mark.long(sample=1)
def test_a_run_page_follows_its_run(server: HttpServer, ids: dict[str, str], chromium: Any) -> None:
    with window(chromium, session=login(server, ids["operator"]), url=server.url) as page:
        page.goto(f"{server.url}/dashboard/runs/{ids['smart-home']}")
        page.wait_for_selector(".uplot")
        page.wait_for_timeout(300)
        server.service.database.write(lambda c: served.ask(c, ids["smart-home"], served.PAUSED))
        server.service.ring(ids["smart-home"])
        page.locator(".line .state.paused").wait_for()
        assert page.problems == []
    server.service.database.write(lambda c: served.ask(c, ids["smart-home"], served.RUNNING))
