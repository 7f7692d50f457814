"""The report in a real browser: nothing is cut on a phone. Skipped where there is no browser."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from edgewise.apps.report import page as report
from edgewise.apps.report import summary
from edgewise.drivers.storage.run_store import RunStore
from unit.made_run import RECIPES, make_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs chromium or chrome")]

# What sticks out of the page, and what is cut without a way to scroll. ``.scroll`` may be wider inside, and says so.
MEASURE = """
const doc = frame.contentDocument, width = doc.documentElement.clientWidth, wrong = [];
for (const e of doc.body.querySelectorAll('*')) {
  const box = e.getBoundingClientRect(), name = e.tagName + '.' + e.getAttribute('class');
  if (!box.width || e.closest('.skip')) continue;
  const scrolls = e.parentElement.closest('.scroll');
  if (!scrolls && (box.right > width + 1 || box.left < -1)) wrong.push(name + ' ' + Math.round(box.right));
  if (e.tagName == 'text' || e.tagName == 'svg') {
    const svg = (e.ownerSVGElement || e).getBoundingClientRect();
    if (box.right > svg.right + 1 || box.left < svg.left - 1) wrong.push(name + ' of a chart: ' + e.textContent);
  }
  const over = doc.defaultView.getComputedStyle(e).overflowX;
  if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth && over == 'hidden') wrong.push(name + ' is cut');
}
const tables = [...doc.querySelectorAll('.scroll')].filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1);
const shadowed = tables.every(e => doc.defaultView.getComputedStyle(e).backgroundImage.includes('gradient'));
const shown = [...doc.querySelectorAll('svg')].filter(e => e.getBoundingClientRect().width).length;
const said = {width, scroll: doc.documentElement.scrollWidth, wrong, shown, shadowed};
document.getElementById('said').textContent = JSON.stringify(said);
"""


def measured(page: str, width: int, folder: Path) -> dict[str, Any]:
    """Measure a page in a frame of that width as a browser shows it. The page's own policy forbids scripts in it."""
    outer = folder / f"outer-{width}.html"
    source = html.escape(page.replace("<details", "<details open"), quote=True)
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><pre id="said"></pre><iframe width="{width}" height="900"'
        f' style="border:0" srcdoc="{source}"></iframe><script>const frame = document.querySelector("iframe");'
        f"frame.onload = () => {{ {MEASURE} }};</script>",
        encoding="utf-8",
    )
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=5000",
         f"--user-data-dir={folder / 'profile'}", "--dump-dom", outer.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, done.stdout[:500]
    said: dict[str, Any] = json.loads(html.unescape(found[1]))
    return said


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "many devices": {"devices": 200},
    "private": {**RECIPES["distributed_dp"], "devices": 120},
    "compressed": {"downlink": [{"kind": "quantize", "bits": 8}], "devices": 3, "round": {"rounds": 2}},
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_wider_than_the_screen(case: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run", **CASES[case])
    with RunStore(tmp_path / "run") as store:
        page = report.run_page(summary.build(store))
    for width in (360, 390, 700, 1280):
        said = measured(page, width, tmp_path)
        assert said["wrong"] == [], width
        assert said["scroll"] <= width
        assert said["shown"] >= 5, "charts are there"
        assert said["shadowed"], "what scrolls shows that it does"
