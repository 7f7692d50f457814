"""The hold-out is the latest text: times are compared as times, or the row is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.errors import DataError, RecipeError
from edgewise.core.keys import root
from edgewise.learn.text.corpus import load
from edgewise.plan.recipe.recipe import DataSection, from_plain


def order(folder: Path, times: list[Any], source: str = "jsonl", **more: object) -> list[Any]:
    """The times as the rows of a table with them come out; each row's text is its number."""
    rows = [{"who": "a", "text": f"row {i}", "at": t} for i, t in enumerate(times)]
    path = folder / f"t.{source}"
    if source == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif source == "csv":
        with path.open("w", newline="") as f:
            writer = csv.DictWriter(f, ["who", "text", "at"])
            writer.writeheader()
            writer.writerows(rows)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    section = DataSection(source=source, path=path.name, owner="who", time="at", **more)  # type: ignore[arg-type]
    c = load(section, folder, folder / "cache", root(0))
    return [times[int(d.text.split()[1])] for d in c.documents("a")]


IN_ORDER = {
    "numbers as text": ["8", "9", "10", "11", "1e2"],
    "numbers of many digits": ["1700000000000000001", "1700000000000000002", "1700000000000000003.5"],
    "days": ["2023-12-31", "2024-01-01", "2024-01-02"],
    "months": ["2023-12", "2024-01", "2024-10"],
    "weeks": ["2023-W52", "2024-W01-2", "2024-W11"],
    "days and moments": ["2023-12-31", "2023-12-31T10:00", "2023-12-31 10:00:00.5", "2024-01-01"],
    "nanoseconds": ["2024-01-01T00:00:00.000000001", "2024-01-01T00:00:00.000000002", "2024-01-01T00:00:00.0000001"],
    "zones": ["2024-01-02T00:30:00+05:00", "2024-01-01T23:00:00Z", "2024-01-01 23:30 UTC", "2024-01-01T20:00-05"],
}


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("kind", IN_ORDER)
def test_times_are_compared_as_what_they_mean(tmp_path: Path, kind: str, source: str) -> None:
    times = IN_ORDER[kind]
    assert order(tmp_path, times[::-1], source) == times
    assert order(tmp_path, [*times[1:], times[0]], source) == times


@pytest.mark.quick(sample=12)
@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    ("times", "fix"),
    [
        (["12/30/2023", "12/31/2023", "01/01/2024"], "%m/%d/%Y"),
        (["01/02/2024"], "'%m/%d/%Y' or '%d/%m/%Y'"),
        (["30.11.2023", "01.12.2023"], "%d.%m.%Y"),
        (["Jan 2024", "Feb 2024"], "%b %Y"),
        (["9:00", "10:00"], "%H:%M"),
        (["1 day, 2:00:00"], "data.time_format"),
        (["1:02:03.5"], "data.time_format"),
        (["Mon, 01 Jan 2024 10:00:00 +0000"], "%a, %d %b %Y"),
        (["2024/01/31"], "%Y/%m/%d"),
        (["2024-01-02-05:00"], "data.time_format"),
        (["2024-02-30"], "data.time_format"),
        (["1,000"], "data.time_format"),
        (["1_000"], "data.time_format"),
        (["2024-01-01T10:00.5"], "data.time_format"),
        (["soon"], "data.time_format"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_with_the_row(
    tmp_path: Path, times: list[str], fix: str, source: str
) -> None:
    place = {"jsonl": "t.jsonl:1", "csv": "t.csv:2", "parquet": "t.parquet row 1"}[source]
    with pytest.raises(DataError, match="neither a number nor a date") as e:
        order(tmp_path, times, source)
    assert (e.value.code, e.value.what.startswith(f"{place}: `at`")) == ("E-DATA-FORMAT", True)
    assert fix in e.value.fix


@pytest.mark.parametrize(
    ("times", "kinds"),
    [
        ([5, "2024-01-01"], "dates without a zone; from t.jsonl:1 on they are numbers"),
        (["2024-01-01", "2024-01-02T00:00Z"], "dates with a zone; from t.jsonl:1 on they are dates without a zone"),
    ],
)
def test_kinds_are_not_mixed(tmp_path: Path, times: list[Any], kinds: str) -> None:
    with pytest.raises(DataError, match=f"t.jsonl:2: .* is one of {kinds}"):
        order(tmp_path, times)


@pytest.mark.parametrize("value", [True, [1], {"a": 1}, None])
def test_what_is_no_time_at_all(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"E-DATA-FORMAT: t\.jsonl:2"):
        order(tmp_path, [1, value])


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
def test_a_declared_form(tmp_path: Path, source: str) -> None:
    german = ["30.11.2023", "01.12.2023", "02.01.2024"]
    assert order(tmp_path, german[::-1], source, time_format="%d.%m.%Y") == german
    american = ["11/30/2023 9:00 PM", "12/01/2023 1:00 AM", "01/02/2024 12:00 PM"]
    assert order(tmp_path, american[::-1], source, time_format="%m/%d/%Y %I:%M %p") == american
    zones = ["01.12.2023 01:00 +0500", "30.11.2023 23:00 +0000"]
    assert order(tmp_path, zones[::-1], source, time_format="%d.%m.%Y %H:%M %z") == zones
    for form in ("%d.%m.%Y", "%Q nonsense"):
        with pytest.raises(DataError, match=r"E-DATA-FORMAT.*is not written as data\.time_format"):
            order(tmp_path, ["2023-11-30"], source, time_format=form)


def test_times_of_parquet_are_exact_and_of_any_year(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def read(*parts: Any, **more: str) -> list[str]:
        (tmp_path / "t").mkdir(exist_ok=True)
        for i, part in enumerate(parts):
            names = [f"{i}{j}" for j in range(len(part))]
            table = pyarrow.table({"who": ["a"] * len(part), "text": names, "at": part})
            parquet.write_table(table, tmp_path / "t" / f"{i}.parquet")
        section = DataSection(source="parquet", path="t", owner="who", time="at", **more)  # type: ignore[arg-type]
        c = load(section, tmp_path, tmp_path / "cache", root(0))
        return [d.text for d in c.documents("a")]

    now = 1_700_000_000_000_000_000
    for unit in ("ns", "us", "ms", "s"):
        assert read(pyarrow.array([now + 2, now + 1, now + 3], pyarrow.timestamp("ns", "UTC"))) == ["01", "00", "02"]
        assert read(pyarrow.array([2**50, -(2**50), 0], pyarrow.timestamp(unit))) == ["01", "02", "00"]
        assert read(pyarrow.array([10, 9, 100], pyarrow.duration(unit))) == ["01", "00", "02"]
    assert read(pyarrow.array([40_000_000, -1, 5], pyarrow.date32())) == ["01", "02", "00"]
    assert read(pyarrow.array([d * 86_400_000 for d in (3, 1, 2)], pyarrow.date64())) == ["01", "02", "00"]
    assert read(pyarrow.array([3, 1, 2], pyarrow.time32("s"))) == ["01", "02", "00"]
    seconds, nanoseconds = (
        pyarrow.array([3, 1], pyarrow.timestamp("s")),
        pyarrow.array([2 * 10**9], pyarrow.timestamp("ns")),
    )
    assert read(seconds, nanoseconds) == ["01", "10", "00"]
    with pytest.raises(DataError, match=r"1\.parquet row 1.*one of dates with a zone"):
        read(seconds, pyarrow.array([2], pyarrow.timestamp("s", "Europe/Berlin")))
    with pytest.raises(DataError, match=r"0\.parquet: `at` holds times already"):
        read(seconds, nanoseconds, time_format="%Y")
    with pytest.raises(DataError, match=r"0\.parquet row 2: `at`.*null"):
        read(pyarrow.array([3, None], pyarrow.timestamp("s")), seconds)


def test_a_form_without_a_column_is_refused() -> None:
    plain = {"schema": 1, "name": "x", "privacy": "none"}
    data = {"source": "jsonl", "path": "t", "owner": "who", "time_format": "%Y"}
    with pytest.raises(RecipeError, match=r"E-COMBO.*data\.time_format"):
        from_plain({**plain, "data": data})
