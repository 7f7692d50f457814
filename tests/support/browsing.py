"""Chromium on this machine, and what it says of a page. Pictures of the dashboard for docs: python browsing.py OUT"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LAYOUTS = {"light": ("light", 1280, 800), "dark": ("dark", 1280, 800), "phone": ("light", 390, 844)}

# Text without the contrast of WCAG AA, fields and buttons without a name, and what is wider than the window.
FAULTS = r"""() => {
  const parts = (c) => { const m = c.match(/[\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
  const light = (c) => { const f = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(c[0]) + 0.7152 * f(c[1]) + 0.0722 * f(c[2]); };
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parts(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
  const seen = (e) => { const b = e.getBoundingClientRect();
    return b.width > 1 && b.height > 1 && e.checkVisibility(); };
  const out = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walk.nextNode()); ) {
    const e = node.parentElement;
    if (!node.data.trim() || !seen(e) || e.closest("script, option, button:disabled")) continue;
    const svg = e.namespaceURI.endsWith("svg"), style = getComputedStyle(e);
    const a = light(parts(svg ? style.fill : style.color)), b = light(ground(e));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) out.push(`contrast ${ratio.toFixed(2)}: ${node.data.trim().slice(0, 40)}`);
  }
  for (const e of document.querySelectorAll("input:not([type=hidden]), select, textarea"))
    if (!(e.labels && e.labels.length) && !e.getAttribute("aria-label"))
      out.push(`no label: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("button, a"))
    if (!e.textContent.trim() && !e.getAttribute("aria-label")) out.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("svg:not(.qr):not([aria-hidden])"))
    if (!e.getAttribute("aria-label")) out.push("a picture without words");
  if (document.querySelectorAll("h1").length !== 1) out.push("not one h1");
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 0) out.push(`${wide} px wider than the window`);
  return out;
}"""


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield made
        finally:
            made.close()


@contextmanager
def window(
    browser: Any, layout: str = "light", scripts: bool = True, session: str = "", url: str = ""
) -> Iterator[Any]:
    """A page, and ``problems`` on it: what its console said. ``session``: the secret of a session at ``url``."""
    scheme, width, height = LAYOUTS[layout]
    context = browser.new_context(
        ignore_https_errors=True, color_scheme=scheme, viewport={"width": width, "height": height},
        java_script_enabled=scripts, reduced_motion="reduce",
    )  # fmt: skip
    if session:
        place = {"url": url, "secure": True, "httpOnly": True, "sameSite": "Strict"}
        context.add_cookies([{"name": "__Host-edgewise", "value": session, **place}])
    page = context.new_page()
    page.problems = []
    page.on("console", lambda message: page.problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    try:
        yield page
    finally:
        context.close()


def _pictures(out: Path) -> None:
    from shown_runs import filled, login

    from edgewise.apps.server.start import HttpServer

    with tempfile.TemporaryDirectory() as folder, HttpServer(Path(folder)) as server, browser() as chromium:
        ids = filled(server)
        secret = login(server, ids["operator"])
        run = f"/runs/{ids['smart-home']}"
        wanted = [
            ("overview", "", "light"),
            ("run", run, "light"),
            ("run", run, "dark"),
            ("run", run, "phone"),
            ("enrol", "/enrol", "light"),
        ]
        for name, path, layout in wanted:
            with window(chromium, layout, session=secret, url=server.url) as page:
                page.goto(f"{server.url}/dashboard{path}")
                if name == "enrol":
                    page.click("text=Make the token")
                    page.wait_for_selector(".qr")
                page.wait_for_timeout(700)  # charts are drawn
                page.screenshot(path=out / f"dashboard-{name}-{layout}.png")


def _owner_picture(out: Path) -> None:
    import time
    from hashlib import sha256

    import msgspec
    from served import joined, running

    from edgewise.apps.device import policy
    from edgewise.apps.device.owner_page import OwnerPage
    from edgewise.apps.device.record import FILE, RecordLine

    promise = "epsilon 8 at delta 1e-05 for all text of this device in the whole run, against the server"
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as server:
        home = Path(folder) / "home"
        joined(server, home).close()
        policy.first_policy(home)
        lines = [
            RecordLine(time.time() - 600 * (12 - i), "s", sha256(b"plays" if i < 8 else b"pumps").hexdigest(), i % 8,
                       "masked update", 1_223_567 + 1000 * (i % 8), "d", 0.1 * (i + 1), promise=promise)
            for i in range(12)
        ]  # fmt: skip
        (home / FILE).write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        with OwnerPage(home) as made, browser() as chromium, window(chromium) as page:
            page.goto(made.url)
            page.screenshot(path=out / "owner-page.png")


if __name__ == "__main__":
    _pictures(Path(sys.argv[1]))
    _owner_picture(Path(sys.argv[1]))
