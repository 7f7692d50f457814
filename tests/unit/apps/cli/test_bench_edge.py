"""`edgewise bench edge-llm`: each row is a recipe that runs, differs by its step, and is read from its folder again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from edgewise.apps.cli import bench_edge, main
from edgewise.apps.cli.shipped import FOLDER
from edgewise.plan.catalogue import BUILT_IN
from edgewise.plan.recipe.loading import load

READ = {
    row.name: load(FOLDER / "edge-llm.toml", {"model.base": row.model, **row.changes}, BUILT_IN)
    for row in bench_edge.ROWS
}


def test_each_row_takes_one_step_more() -> None:
    ladder = ["adapters", "fixed", "four-bit", "shares", "whole"]
    facts = [
        (r.trainable.rule, r.model.quantize, r.merge["kind"], r.privacy, r.personal.method)
        for r in (READ[name] for name in ladder)
    ]
    assert facts == [
        ("fedit", "none", "sum", "none", "none"),
        ("ffa", "none", "sum", "none", "none"),
        ("ffa", "nf4", "sum", "none", "none"),
        ("ffa", "nf4", "shared_sum", "hidden", "none"),
        ("ffa", "nf4", "shared_sum", "distributed_dp", "interpolate"),
    ]
    assert READ["split"].split.server_parts == "frozen"
    assert READ["coordinates"].stage[0] == {"kind": "shared_top_k", "fraction": 0.005}


def test_an_unknown_row_is_refused(tmp_path: Path) -> None:
    ran = CliRunner().invoke(main.app, ["bench", "edge-llm", "--out", str(tmp_path / "b"), "--row", "noize", "--json"])
    assert json.loads(ran.stdout)["error"]["code"] == "E-UNKNOWN"
    assert not (tmp_path / "b").exists()


def test_the_table_names_each_step_and_no_missing_figure_is_a_number() -> None:
    row: dict[str, Any] = dict.fromkeys(("bytes_up", "bytes_down", "epsilon", "delta", "memory_bytes", "seconds"))
    rows = [
        {**row, "name": r.name, "says": r.says, "perplexity": 50.0, "change_percent": -2.0} for r in bench_edge.ROWS
    ]
    console = Console(file=io.StringIO(), width=100)
    bench_edge.show_edge_bench(console, {"baseline": 51.0, "baseline_nf4": None, "rounds": 4, "rows": rows})
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(r.says in shown for r in bench_edge.ROWS)
    assert shown.count("none") == len(rows)


@pytest.mark.slow
@pytest.mark.long(sample=0)
def test_a_finished_row_is_read_and_another_number_of_rounds_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    lines: list[str] = []
    first = bench_edge.bench_edge(tmp_path / "b", 1, 1, ("adapters",), lines.append)
    assert [line.split(":")[0] for line in lines] == ["teacher", "student", "longer", "adapters"]
    assert first["rows"][0]["bytes_up"] > 0
    assert first["rows"][0]["memory_bytes"] > 50e6
    assert bench_edge.bench_edge(tmp_path / "b", 1, 1, ("adapters",), lines.append) == first
    assert len(lines) == 4
    command = ["bench", "edge-llm", "--out", str(tmp_path / "b"), "--row", "adapters", "--steps", "1", "--rounds", "2"]
    ran = CliRunner().invoke(main.app, [*command, "--json"])
    assert json.loads(ran.stdout)["error"]["code"] == "E-RUN-EXISTS"
