"""Sources, partitions and their errors: whose text is it, and is it found without being kept."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from edgewise.core.errors import DataError
from edgewise.core.keys import root
from edgewise.learn.text.corpus import Corpus, Document, load
from edgewise.learn.text.files import NOT_TEXT
from edgewise.learn.text.sources import STDLIB_PACKAGES
from edgewise.plan.recipe.recipe import DataSection


def corpus(folder: Path, seed: int = 0, **section: object) -> Corpus:
    return load(DataSection(**section), folder, folder / "cache", root(seed))  # type: ignore[arg-type]


def table(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def texts(c: Corpus, device: str) -> list[str]:
    return [d.text for d in c.documents(device)]


def test_stdlib_packages_are_devices(tmp_path: Path) -> None:
    c = corpus(tmp_path)
    assert set(c.devices) <= set(STDLIB_PACKAGES)
    assert len(c.devices) >= 2
    assert list(c.devices) == sorted(c.devices)
    names = [d.name for d in c.documents("json")]
    assert "json/decoder.py@0" in names
    assert all(n.startswith("json/") for n in names)
    assert not any("/test" in d.name for d in c.documents("unittest"))


def test_text_folders_are_devices_and_files_where_there_are_none(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a/1.txt", "a/deep/3.txt", "a/.hidden"):
        (tmp_path / "notes" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notes" / name).write_text(f"text of {name}")
    c = corpus(tmp_path, source="text", path="notes")
    assert c.devices == ("a", "b")
    assert texts(c, "a") == ["text of a/1.txt", "text of a/deep/3.txt"]
    flat = corpus(tmp_path, source="text", path="notes/a/deep")
    assert flat.devices == ("3.txt",)
    single = corpus(tmp_path, source="text", path="notes/b/2.txt")
    assert single.devices == ("2",)


def test_bad_bytes_are_replaced_in_text_but_binary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "latin").write_bytes("caf\xe9 au lait".encode("latin-1"))
    (tmp_path / "notes" / "other").write_bytes(b"a\0b")
    c = corpus(tmp_path, source="text", path="notes")
    assert texts(c, "latin") == ["caf\ufffd au lait"]
    with pytest.raises(DataError, match=r"E-DATA-FORMAT.*NUL"):
        texts(c, "other")
    assert c.fingerprint() == c.fingerprint()  # one unreadable device does not stop a run


@pytest.mark.parametrize(
    ("start", "kind"),
    [(b"%PDF-1.4 (words)", "a PDF.*pdftotext"), (b"\xef\xbb\xbf\n{\\rtf1 words}", "a Rich Text file"),
     (b"PK\x03\x04word/document.xml", r"a Zip archive, as \.docx"), (b"\x89PNG", "a picture"),
     (b"\xff\xfe\x01N", "UTF-16"), (b"\x1f\x8b\x08", r"packed with gzip.*ending \.gz")],
)  # fmt: skip
def test_containers_of_text_are_refused_by_their_first_bytes(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ann.txt").write_bytes(b"of ann\n" + start)  # in the middle it is text like any other
    (tmp_path / "notes" / "bob.txt").write_bytes(start + b" more words\n" * 400)
    c = corpus(tmp_path, source="text", path="notes")
    assert len(texts(c, "ann.txt")) == 1
    with pytest.raises(DataError, match=rf"E-DATA-FORMAT: bob\.txt@0: {kind}"):
        texts(c, "bob.txt")
    dealt = corpus(tmp_path, source="text", path="notes", partition="iid", devices=1)
    assert len(texts(dealt, dealt.devices[0])) == 1
    assert dealt.found["files"]["left_out"] == {NOT_TEXT: 1}


ROWS = [
    {"who": "ann", "text": "third", "at": "2024-03-01", "kind": "x"},
    {"who": "bob", "text": "only, with \"quotes\"\nand a line", "at": "2024-01-05", "kind": "y"},
    {"who": "ann", "text": "first ü", "at": "2024-01-01", "kind": "x"},
    {"who": "ann", "text": "second", "at": "2024-02-01", "kind": "y"},
]  # fmt: skip


@pytest.mark.parametrize("source", ["jsonl", "csv", "parquet"])
def test_tables_agree_and_time_orders_rows(tmp_path: Path, source: str) -> None:
    path = tmp_path / f"t.{source}"
    if source == "jsonl":
        table(path, ROWS)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n")
    elif source == "csv":
        import csv

        with path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    c = corpus(tmp_path, source=source, path=path.name, owner="who", time="at")
    assert c.devices == ("ann", "bob")
    assert texts(c, "ann") == ["first ü", "second", "third"]
    assert texts(c, "bob") == [ROWS[1]["text"]]
    unordered = corpus(tmp_path, source=source, path=path.name, owner="who")
    assert texts(unordered, "ann") == ["third", "first ü", "second"]


def test_numeric_times_sort_as_numbers_and_mixed_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who,text,at\na,late,10\na,early,9\n")
    assert texts(corpus(tmp_path, source="csv", path="t.csv", owner="who", time="at"), "a") == ["early", "late"]
    (tmp_path / "t.csv").write_text("who,text,at\na,late,10\na,early,soon\n")
    with pytest.raises(DataError, match=r"E-DATA-FORMAT.*t\.csv:3: `at` = 'soon' is neither a number nor a date"):
        corpus(tmp_path, source="csv", path="t.csv", owner="who", time="at")


def labelled(path: Path) -> None:
    table(path, [{"text": f"row {i}", "kind": i % 4} for i in range(400)])


def kinds(c: Corpus, device: str) -> np.ndarray:
    return np.bincount([int(t.split()[1]) % 4 for t in texts(c, device)], minlength=4)


def test_dirichlet_is_deterministic_and_skewed_by_alpha(tmp_path: Path) -> None:
    labelled(tmp_path / "t.jsonl")
    section = {"source": "jsonl", "path": "t.jsonl", "label": "kind", "partition": "dirichlet", "devices": 8}

    def skew(alpha: float) -> float:
        """Mean over devices of the largest label's share; 1/4 would be even."""
        c = corpus(tmp_path, **section, alpha=alpha)
        return float(np.mean([kinds(c, d).max() / kinds(c, d).sum() for d in c.devices]))

    assert skew(0.05) > 0.75 > 0.45 > skew(100.0)
    one, two, other = (corpus(tmp_path, seed=s, **section) for s in (0, 0, 1))
    assert [texts(one, d) for d in one.devices] == [texts(two, d) for d in one.devices]
    assert [texts(one, d) for d in one.devices] != [texts(other, d) for d in one.devices]


@pytest.mark.parametrize("kind", ["dirichlet", "iid"])
def test_partitions_give_each_document_to_one_device_and_none_is_empty(tmp_path: Path, kind: str) -> None:
    labelled(tmp_path / "t.jsonl")
    c = corpus(tmp_path, source="jsonl", path="t.jsonl", partition=kind, devices=50, alpha=0.02)
    dealt = [t for d in c.devices for t in texts(c, d)]
    assert sorted(dealt) == sorted(f"row {i}" for i in range(400))
    assert all(texts(c, d) for d in c.devices)
    rows = [int(t.split()[1]) for t in texts(c, c.devices[0])]
    assert rows == sorted(rows)  # time order survives the deal


def test_files_are_dealt_out_in_pieces_of_whole_lines(tmp_path: Path) -> None:
    whole = "".join(f"line {i} of the file ü\n" for i in range(2000))
    (tmp_path / "book.txt").write_text(whole, encoding="utf-8")
    c = corpus(tmp_path, source="text", path="book.txt", partition="iid", devices=5)
    pieces = sorted((int(d.name.rsplit("@", 1)[1]), d.text) for n in c.devices for d in c.documents(n))
    assert "".join(t for _, t in pieces) == whole
    assert len(pieces) > 10
    assert all(t.endswith("\n") for _, t in pieces)


@pytest.mark.parametrize(
    ("content", "section", "match"),
    [
        (None, {"source": "text", "path": "gone"}, "E-DATA-MISSING.*gone"),
        (None, {"source": "jsonl", "path": "gone.jsonl", "owner": "who"}, "E-DATA-MISSING"),
        (b"", {"source": "jsonl", "path": "t", "owner": "who"}, "E-DATA-EMPTY"),
        (b'{"who": "a", "text": "  "}\n', {"source": "jsonl", "path": "t", "owner": "who"}, "E-DATA-EMPTY"),
        (b'{"who": "a", "text": "x"}\n{"who"\n', {"source": "jsonl", "path": "t", "owner": "who"}, "FORMAT.*t:2"),
        (b'{"who": "a", "text": "x"}\n[1]\n', {"source": "jsonl", "path": "t", "owner": "who"}, "E-DATA-FORMAT.*t:2"),
        (b'{"who": "a", "text": "\xff"}\n', {"source": "jsonl", "path": "t", "owner": "who"}, "E-DATA-FORMAT.*t:1"),
        (b'{"who": "a", "text": "x"}\n{"who": "a"}\n', {"source": "jsonl", "path": "t", "owner": "who"}, "t:2.*miss"),
        (b'{"who": "a", "text": 3}\n', {"source": "jsonl", "path": "t", "owner": "who"}, "E-DATA-FORMAT.*needs text"),
        (b'{"who": "*", "text": "x"}\n', {"source": "jsonl", "path": "t", "owner": "who"}, "cannot name"),
        (b'{"who": "a", "text": "x"}\n', {"source": "jsonl", "path": "t", "owner": "whom"}, "COLUMN.*mean `who`"),
        (b'{"who": "a", "text": "x"}\n', {"source": "jsonl", "path": "t", "owner": "who", "text": "zz"}, "who, text"),
        (b'{"text": "x"}\n', {"source": "jsonl", "path": "t", "partition": "iid", "devices": 3}, "DATA-EMPTY.*1 doc"),
        (b"who,text\na,b,c\n", {"source": "csv", "path": "t", "owner": "who"}, "E-DATA-FORMAT.*t:2.*3 fields"),
        (b"who,text\na,\xff\n", {"source": "csv", "path": "t", "owner": "who"}, "E-DATA-FORMAT.*t:2"),
        (b"who,text\na,x\n", {"source": "csv", "path": "t", "owner": "wo"}, "E-DATA-COLUMN.*mean `who`"),
        (b"who,text\n" + b"a,x\n" * 5000 + b"a,\xff\n", {"source": "csv", "path": "t", "owner": "who"}, "t:5002:"),
        (b"", {"source": "csv", "path": "t", "owner": "who"}, "E-DATA-EMPTY: t is empty: it has no header"),
        (b"who,text,who\na,x,b\n", {"source": "csv", "path": "t", "owner": "who"}, "FORMAT.*names who more"),
        (b'\xef\xbb\xbfwho,text\r\na,"x\r\n', {"source": "csv", "path": "t", "owner": "who"}, "E-DATA-FORMAT.*t:"),
        (b'{"a": ' + b"[" * 100_000, {"source": "jsonl", "path": "t", "owner": "who"}, "t:1.*RecursionError"),
        (b"", {"source": "text", "path": "a\0b"}, "E-DATA-MISSING"),
        (b"", {"source": "text", "path": "~nobody-of-that-name/x"}, "E-DATA-MISSING"),
        (b"PAR1 not", {"source": "parquet", "path": "t", "owner": "who"}, "E-DATA-FORMAT.*Parquet"),
        (b"", {"source": "text", "path": "t"}, "E-DATA-EMPTY"),
    ],
)  # fmt: skip
def test_refusals_name_the_place(tmp_path: Path, content: bytes | None, section: dict, match: str) -> None:
    if content is not None:
        (tmp_path / "t").write_bytes(content)
    with pytest.raises(DataError, match=match):
        corpus(tmp_path, **section)
    assert not list(tmp_path.rglob("*.jsonl"))  # a failed conversion leaves nothing that looks finished


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    for folder, word in (("one", "same"), ("two", "same"), ("three", "other")):
        (tmp_path / folder / "notes" / "ann").mkdir(parents=True)
        (tmp_path / folder / "notes" / "ann" / "1.txt").write_text(f"the {word} words")
    one, two, three = (corpus(tmp_path / f, source="text", path="notes") for f in ("one", "two", "three"))
    assert one.fingerprint() == two.fingerprint() != three.fingerprint()


@pytest.mark.slow
def test_ten_thousand_devices_stay_light(tmp_path: Path) -> None:
    with (tmp_path / "t.jsonl").open("w") as f:
        for i in range(30_000):
            f.write(json.dumps({"who": f"device-{i % 10_000:05d}", "text": f"message {i} " + "word " * 60}) + "\n")
    assert (tmp_path / "t.jsonl").stat().st_size > 9e6
    tracemalloc.start()
    c = corpus(tmp_path, source="jsonl", path="t.jsonl", owner="who")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(c.devices) == 10_000
    assert kept < 4e6
    assert peak < 9e6
    assert [t.split()[1] for t in texts(c, "device-00007")] == ["7", "10007", "20007"]


def test_a_document_prints_without_its_text():
    shown = repr([Document("notes.txt@0", "My PIN?", "My card is 1234")])
    assert "notes.txt@0" in shown
    assert "7 characters" in shown
    assert not any(word in shown for word in ("PIN", "1234"))


def test_parquet_columns_of_one_name(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["x"]), pa.array(["b"])], names=["who", "text", "who"])
    parquet.write_table(table, tmp_path / "t")
    with pytest.raises(DataError, match=r"E-DATA-FORMAT.*names who more than once"):
        corpus(tmp_path, source="parquet", path="t", owner="who")
