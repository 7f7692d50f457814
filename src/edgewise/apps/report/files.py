"""The files of a report: summary.json, devices.json, report.html and the plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgewise.apps.report import page, summary
from edgewise.drivers.storage.run_store import RunStore


def write_report(store: RunStore, out: Path, plots: bool = True) -> dict[str, Any]:
    """Write the report of a run into ``out`` and return its summary.

    With differential privacy also devices.json is written. The plots come last, because more can fail in them.
    Without ``plots`` the caller needs no matplotlib; `edgewise report` draws them later.
    """
    data = summary.build(store)
    summary.write(out, data)
    summary.write_devices(store, data, out)
    page.write_run_page(data, out)
    if plots:
        from edgewise.apps.report import png

        png.write_report_plots(data, out)
    return data
