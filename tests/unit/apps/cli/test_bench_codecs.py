"""The ladder descends, and `edgewise bench codecs` measures it: sizes, errors and memory, checkable by hand."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from toy import ToyTrainer
from toy_recipe import PLAIN
from typer.testing import CliRunner

from edgewise.apps.cli import bench_codecs, main
from edgewise.codecs.wire import pack
from edgewise.core.errors import DataError, TrainingError
from edgewise.core.metric import LOSSES
from edgewise.core.training import Update
from edgewise.core.vector import Spec
from edgewise.plan.codec_choice.rungs import RUNGS
from edgewise.plan.recipe.recipe import parse

TOY = ["toy"]
NAMES, DIM = [f"d{i:05d}" for i in range(6)], 50
NORMAL = np.random.default_rng(5).normal(size=4096).astype(np.float32)


def spec(d: int) -> Spec:
    return Spec.of([("w", (d,), "float32")])


def measured(tables: list[dict[str, Any]], x: np.ndarray[Any, Any], count: float = 1.0) -> bench_codecs.Measured:
    return bench_codecs.bench_chain_once(
        bench_codecs.bench_chain(tables, spec(x.size)), Update(x, dict.fromkeys(LOSSES, 1.0), count), 1
    )


@pytest.mark.parametrize("d", [100_000, 1_000_000, 1_000_000_000])
def test_every_rung_needs_fewer_bytes_than_the_one_before(d: int) -> None:
    sizes = [
        pack.size_bytes(bench_codecs.bench_chain(bench_codecs.rung_tables(r, spec(d)), spec(d)).encoded) for r in RUNGS
    ]
    assert all(a > b for a, b in pairwise(sizes)), sizes
    assert len({r.name for r in RUNGS}) == len(RUNGS) > 1


def test_a_rung_stands_inside_feedback_exactly_where_it_is_biased() -> None:
    for rung in RUNGS:
        encoded = bench_codecs.bench_chain([bench_codecs.WEIGH, *rung.stages], spec(1000)).encoded
        kinds = [t["kind"] for t in bench_codecs.rung_tables(rung, spec(1000))]
        assert kinds[0] == "weigh"
        assert ("feedback" in kinds) == (not encoded.unbiased)
        assert kinds[-len(rung.stages) :] == [t["kind"] for t in rung.stages] or not rung.stages


def test_error_is_of_the_update_whatever_it_weighs() -> None:
    weigh = {"kind": "weigh", "cap": 100.0}
    exact = measured([weigh], NORMAL, count=25.0)
    assert exact.nmse < 1e-12
    assert exact.memory_bytes == 0
    assert len(exact.payload) == 4 * NORMAL.size + 8 * (len(LOSSES) + 1)
    tables = [weigh, {"kind": "feedback"}, {"kind": "top_k", "fraction": 0.25}]
    part = measured(tables, NORMAL, count=25.0)
    squares = np.sort(np.square(NORMAL.astype(np.float64)))
    assert part.nmse == pytest.approx(squares[: 3 * NORMAL.size // 4].sum() / squares.sum(), rel=1e-5)
    assert part.memory_bytes == 2 * NORMAL.size + 8, "the residual in bfloat16 and the round it is from"


def test_a_zero_update_has_no_error_and_one_that_is_not_finite_is_refused() -> None:
    assert measured([bench_codecs.WEIGH, {"kind": "quantize", "bits": 4}], np.zeros(128, np.float32)).nmse == 0.0
    with pytest.raises(TrainingError) as e:
        measured([bench_codecs.WEIGH], np.full(4, np.nan, np.float32))
    assert e.value.code == "E-NAN"


def test_the_table_is_of_a_real_update_or_of_normal_numbers() -> None:
    recipe = parse(PLAIN)
    found = bench_codecs.bench_codecs(recipe, Path(), TOY, repeats=1)
    assert (found["device"], found["dim"]) == (NAMES[0], DIM)
    assert [r["name"] for r in found["rungs"]] == [*(r.name for r in RUNGS), bench_codecs.OWN]
    for r in found["rungs"]:
        assert r["times_smaller"] == pytest.approx(32 / r["bits_per_parameter"])
        assert r["seconds_at_1_mbit_s"] == pytest.approx(8 * r["bytes"] / 1e6)
        assert r["bytes"] > len(found["recipe_sha256"]), "the whole frame, not the payload alone"
        assert min(r["encode_mb_s"], r["decode_mb_s"]) > 0
    assert found["rungs"][-1]["stages"] == recipe.stage
    other = bench_codecs.bench_codecs(recipe, Path(), TOY, random=True, repeats=1)
    assert other["device"] is None
    errors = [[r["nmse"] for r in f["rungs"]] for f in (found, other)]
    assert errors[0] != errors[1]


def test_a_device_without_enough_text_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = ToyTrainer.fit

    def refuse(self: ToyTrainer, request: Any) -> Update:
        if request.device in poor:
            raise DataError("E-DEVICE-DATA", "too short.", "more text.")
        return fit(self, request)

    monkeypatch.setattr(ToyTrainer, "fit", refuse)
    poor = set(NAMES[:2])
    assert bench_codecs.bench_codecs(parse(PLAIN), Path(), TOY, repeats=1)["device"] == NAMES[2]
    poor = set(NAMES)
    with pytest.raises(DataError) as e:
        bench_codecs.bench_codecs(parse(PLAIN), Path(), TOY, repeats=1)
    assert e.value.code == "E-DEVICE-DATA"


@pytest.mark.slow
def test_the_command_prints_a_table_or_one_envelope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.toml").write_text(PLAIN, encoding="utf-8")
    command = ["bench", "codecs", "toy.toml", "--extension", *TOY, "--repeats", "1"]
    envelope = json.loads(CliRunner().invoke(main.app, [*command, "--json"]).stdout)
    assert (envelope["ok"], envelope["command"]) == (True, "bench codecs")
    assert len(envelope["rungs"]) == len(RUNGS) + 1
    text = CliRunner().invoke(main.app, command).stdout
    assert f"{DIM} trained parameters" in text
    assert "\033" not in text
    assert [p.name for p in tmp_path.iterdir()] == ["toy.toml"]
    wrong = CliRunner().invoke(main.app, ["bench", "codecs", "toy.toml", "--set", "training.lrr=1", "--json"])
    assert json.loads(wrong.stdout)["error"]["code"] == "E-KEY"


def test_nothing_is_cut_off_in_eighty_columns() -> None:
    found = bench_codecs.bench_codecs(parse(PLAIN), Path(), TOY, repeats=1)
    for r in found["rungs"]:
        r.update(bytes=3_411_968_000, memory_bytes=3_411_968_000, seconds_at_1_mbit_s=27_300.0, nmse=7.2e-05)
    console = Console(width=80, record=True, file=io.StringIO())
    bench_codecs.show_codec_bench(console, found)
    text = console.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    for said in ("3.41 GB", "7:35:00", "7.2e-05", *(r.name for r in RUNGS)):
        assert said in text
