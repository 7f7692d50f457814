"""Tables as people have them: read as they mean it, or refused with the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgewise.core.errors import DataError, RecipeError
from edgewise.core.keys import root
from edgewise.learn.text.corpus import Corpus, load
from edgewise.learn.text.tables import BLANK, EMPTY
from edgewise.plan.recipe.recipe import DataSection, from_plain


def corpus(folder: Path, source: str, **section: object) -> Corpus:
    given = {"path": f"t.{source}", "owner": "who", **section}
    return load(DataSection(source=source, **given), folder, folder / "cache", root(0))  # type: ignore[arg-type]


def texts(c: Corpus, device: str) -> list[str]:
    return [d.text for d in c.documents(device)]


# CSV


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_the_one_that_fits_the_header(tmp_path: Path, separator: str) -> None:
    rows = [["who", "note,date", "text"], ["ann", "x", 'a, b; c"'], ["bob", "", "d|e\tf"]]
    quoted = "".join(separator.join('"' + f.replace('"', '""') + '"' for f in r) + "\r\n" for r in rows)
    (tmp_path / "t.csv").write_text("\ufeff\r\n" + quoted, encoding="utf-8", newline="")
    for given in ({}, {"separator": separator}):
        c = corpus(tmp_path, "csv", **given)
        assert (texts(c, "ann"), texts(c, "bob")) == (['a, b; c"'], ["d|e\tf"])
    if separator != "|":
        with pytest.raises(DataError, match=r"E-DATA-COLUMN|E-DATA-FORMAT"):
            corpus(tmp_path, "csv", separator="|")


def test_a_separator_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who~text\nann~a,b\n")
    assert texts(corpus(tmp_path, "csv", separator="~"), "ann") == ["a,b"]
    with pytest.raises(DataError, match=r"E-DATA-COLUMN: t\.csv:1: data\.text = `text` is not a column.*who~text"):
        corpus(tmp_path, "csv")


@pytest.mark.parametrize(
    "data",
    [{"source": "jsonl", "separator": ";"}, {"source": "csv", "separator": ";;"}, {"source": "jsonl", "header": False}],
)
def test_what_is_no_separator_or_no_csv(data: dict[str, Any]) -> None:
    plain = {"schema": 1, "name": "x", "privacy": "none", "data": {"path": "t", "owner": "who", **data}}
    with pytest.raises(RecipeError, match=r"data\.(separator|header)"):
        from_plain(plain)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"who,text\n" + b"a,x\n" * 12 + b"a,\xff\n", r"E-DATA-FORMAT: t\.csv:14: .*0xff"),
        (b"\xef\xbb\xbf", "E-DATA-EMPTY: t.csv is empty: it has no header"),
        (b"who,text\n", "E-DATA-EMPTY.*no row with text"),
        (b"who,text,what we all did there\n", "E-DATA-EMPTY.*no row with text"),
        (b'who,text\na,"x\ny"\nb,x,y\n', r"E-DATA-FORMAT: t\.csv:4: 3 fields, the header has 2"),
        (b'who,text\n\na,"x\ny"\n,z\n', r"E-DATA-FORMAT: t\.csv:5: `who` = '' cannot name anything"),
        (b"who,text,text\na,x,y\n", "E-DATA-FORMAT: t.csv:1: the header names text more than once"),
        (
            b'who,text\na,x\nb,"x\nc,y\n',
            r't\.csv:3-4: in the row that begins in line 3.*opens with " and never closes',
        ),
        (
            b'who,text\na,"x\nb,y\nc,"z"\n',
            r't\.csv:2-4: .*closes in line 4 and goes on.*\(""\)',
        ),
        (
            b'who,text\na,"so" he said\n',
            r't\.csv:2: .*closes in line 2 and goes on.*\(""\)',
        ),
        (b"who,text\na,x\nwho,text\n", r"t\.csv:3: the header stands here again.*take this line out"),
        (b"who,text\na,x\nwho,y\n", r"t\.csv:3: 'who' is an owner here, and the name of the column in t\.csv:1"),
        (
            b"ann,I like cats\nbob,I like dogs\n",
            r'`text` is not a column.*write header = false and text = "NUMBER", owner',
        ),
        (b"PK\x03\x04 xl/worksheets", r"t\.csv: a Zip archive, as \.docx, \.xlsx.*not text"),
    ],
)
def test_refusals_of_csv_name_the_line(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    for _ in range(2):  # nothing that was refused comes from the cache
        with pytest.raises(DataError, match=match):
            corpus(tmp_path, "csv")


FIRST_ROWS = {
    "an owner that comes again": b"ann,hi\nbob,ho\n" + b"bob,ha\n" * 300 + b"ann,hu\n",
    "an owner of a family": b"user_1,hi\nuser_2,ho\n",
    "a number": b"7,hi\n8,ho\n",
    "a text that comes again": b"ann,hi\nbob,hi\n",
    "a text as long as the others": b"ann,the cat sat there\nbob,the dog sat there\n",
    "a long text": b"ann," + b"long " * 20 + b"\nbob,short\n",
    "a sentence": b"ann,Come in.\nbob,So it rains once more this evening.\ncyd,No.\n",
}


@pytest.mark.parametrize("content", FIRST_ROWS.values(), ids=FIRST_ROWS)
def test_a_recipe_that_names_columns_by_the_first_row_is_told_what_to_write(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    owner, text = content.decode().splitlines()[0].split(",")
    with pytest.raises(DataError, match=r'E-DATA-FORMAT: t\.csv:.*write header = false and text = "2", owner = "1"'):
        corpus(tmp_path, "csv", owner=owner, text=text)
    rows = content.count(b"\n")
    without = corpus(tmp_path, "csv", owner="1", text="2", header=False)
    assert (texts(without, owner)[0], without.found["rows"]["read"]) == (text, rows)
    assert corpus(tmp_path, "csv", owner=owner, text=text, header=True).found["rows"]["read"] == rows - 1


@pytest.mark.parametrize(
    ("header", "content"),
    [
        ("user_id,text", b"7,7\n8,text\n"),
        ("Autor,Nachricht", b"ann,Komm bitte herein.\nbob,Es regnet schon wieder\n"),
        ("site,What should we do in another way?", b"a,fine as it is\nb,more light would be good\n"),
        ("2023,2024", b"ann,warm\nbob,cold\n"),
    ],
)
def test_names_of_columns_are_not_taken_for_data(tmp_path: Path, header: str, content: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(header.encode() + b"\n" + content)
    owner, text = header.split(",")
    assert len(corpus(tmp_path, "csv", owner=owner, text=text).devices) == 2


@pytest.mark.parametrize(
    ("content", "separator"),
    [(b'ann;"so, then";x\nbob;"no, not";y\n', ";"), (b"ann\tone, two\nbob\tthree\n", "\t"), (b"ann,a;b\nbob,c\n", ",")],
)
def test_without_a_header_the_separator_is_the_one_that_fits_all_rows(
    tmp_path: Path, content: bytes, separator: str
) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    given = {"owner": "1", "text": "2", "header": False}
    assert corpus(tmp_path, "csv", **given).devices == ("ann", "bob")
    (tmp_path / "t.csv").write_bytes(b"ann;so, then\nbob;no, not\n")
    with pytest.raises(DataError, match=r"separated by ',' and by ';'.*data\.separator"):
        corpus(tmp_path, "csv", **given)
    assert texts(corpus(tmp_path, "csv", separator=";", **given), "ann") == ["so, then"]


@pytest.mark.parametrize("data", [{"owner": "who", "text": "2"}, {"owner": "1"}, {"owner": "0", "text": "2"}])
def test_columns_without_a_header_have_numbers(data: dict[str, str]) -> None:
    plain = {
        "schema": 1,
        "name": "x",
        "privacy": "none",
        "data": {"source": "csv", "path": "t", "header": False, **data},
    }
    with pytest.raises(RecipeError, match=r"E-VALUE.*data\.header = false.*write the number of the column"):
        from_plain(plain)


def test_columns_that_nobody_asks_for_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("who,text,,\na,x,1,2\n")
    assert texts(corpus(tmp_path, "csv"), "a") == ["x"]


@pytest.mark.parametrize("source", ["csv", "jsonl"])
def test_rows_that_are_left_out_are_counted_also_from_the_cache(tmp_path: Path, source: str) -> None:
    csv, jsonl = (
        "who,text\n\na,x\n\na,\nb,y\n",
        '\n{"who": "a", "text": "x"}\n \n{"who": "a", "text": ""}\n{"who": "b", "text": "y"}',
    )
    (tmp_path / f"t.{source}").write_text(csv if source == "csv" else jsonl)
    for _ in range(2):
        assert corpus(tmp_path, source).found["rows"] == {"read": 3, "left_out": {BLANK: 2, EMPTY: 1}}


# JSON lines


def test_nested_values_are_named_by_their_path(tmp_path: Path) -> None:
    rows = [
        {"meta": {"who": "ann", "at": 2}, "said": {"text": "later"}},
        {"meta": {"who": "ann", "at": 1}, "said": {"text": "first"}},
        {"meta.who": "bob", "meta": {"who": "not this", "at": 3}, "said": {"text": "x"}},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    c = corpus(tmp_path, "jsonl", owner="meta.who", text="said.text", time="meta.at")
    assert (c.devices, texts(c, "ann"), texts(c, "bob")) == (("ann", "bob"), ["first", "later"], ["x"])
    with (tmp_path / "t.jsonl").open("a", encoding="utf-8") as f:
        f.write(json.dumps({"meta": {"who": "ann", "at": 4}, "said": "no object"}) + "\n")
    with pytest.raises(DataError, match=r"E-DATA-FORMAT: t\.jsonl:4: `said\.text` is missing or null"):
        corpus(tmp_path, "jsonl", owner="meta.who", text="said.text")


def test_not_a_number_in_a_column_that_nobody_asks_for(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(
        '{"who": "a", "text": "x NaN", "score": NaN}\n{"who": "a", "text": "y", "l": [Infinity, -Infinity]}\n'
    )
    assert texts(corpus(tmp_path, "jsonl"), "a") == ["x NaN", "y"]
    path.write_text('{"who": "a", "text": "x"}\n{"who": NaN, "text": "y"}\n')
    with pytest.raises(DataError, match=r"E-DATA-FORMAT: t\.jsonl:2: `who` is missing or null"):
        corpus(tmp_path, "jsonl")
    for broken in ('{"who": "a", "text": "NaN" x}', '{"who": "\\ud800", "text": "x", "s": NaN}', "NaN"):
        path.write_text(broken + "\n")
        with pytest.raises(DataError, match=r"E-DATA-FORMAT: t\.jsonl:1: not a JSON object"):
            corpus(tmp_path, "jsonl")


def test_messages_of_a_chat_are_refused_with_what_to_do(tmp_path: Path) -> None:
    row = '{"who": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]}\n'
    (tmp_path / "t.jsonl").write_text(row)
    with pytest.raises(
        DataError, match=r"E-DATA-FORMAT: t\.jsonl:1: `messages` is the messages of a chat.*data\.prompt"
    ):
        corpus(tmp_path, "jsonl", text="messages")


@pytest.mark.parametrize("source", ["jsonl", "csv"])
def test_a_prompt_of_several_columns_is_joined(tmp_path: Path, source: str) -> None:
    rows = [
        {"who": "a", "do": "sum up", "on": "a text", "text": "x"},
        {"who": "a", "do": "greet", "on": "", "text": "y"},
    ]
    lines = "who,do,on,text\na,sum up,a text,x\na,greet,,y\n"
    jsonl = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / f"t.{source}").write_text(lines if source == "csv" else jsonl)
    c = corpus(tmp_path, source, prompt=["do", "on"])
    assert [d.prompt for d in c.documents("a")] == ["sum up\n\na text", "greet"]
    with pytest.raises(DataError, match=r"data\.prompt = `onn` is not a column.*did you mean `on`"):
        corpus(tmp_path, source, prompt=["do", "onn"])
    plain = {"privacy": "none", "data": {"source": source, "path": "t", "owner": "who", "prompt": ["do", ""]}}
    with pytest.raises(RecipeError, match=r"E-VALUE.*data\.prompt lists a column without a name"):
        from_plain(plain)


# Parquet


def parquet(folder: Path, **columns: Any) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), folder / "t.parquet")


@pytest.mark.parametrize("kind", ["binary", "large_binary", "dictionary"])
def test_text_in_binary_columns_is_decoded(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    types = {
        "binary": pyarrow.binary(),
        "large_binary": pyarrow.large_binary(),
        "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()),
    }

    def array(values: list[bytes]) -> Any:
        plain = pyarrow.array(values, pyarrow.binary())
        return plain.dictionary_encode() if kind == "dictionary" else plain.cast(types[kind])

    parquet(tmp_path, who=array([b"ann", "bö".encode()]), text=array(["ü text".encode(), b"words"]))
    c = corpus(tmp_path, "parquet")
    assert c.devices == ("ann", "bö")
    assert texts(c, "ann") == ["ü text"]
    for column in ("who", "text"):
        good, bad = array([b"ann"] * 3), array([b"ann", b"bob", b"\x89PNG"])
        parquet(tmp_path, **{"who": good, "text": good, column: bad})
        with pytest.raises(
            DataError, match=rf"E-DATA-FORMAT: t\.parquet row 3: `{column}` holds bytes that are not UTF-8"
        ):
            corpus(tmp_path, "parquet")


def test_bad_utf8_in_a_column_of_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    bad = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0\5\0\0\0"), pyarrow.py_buffer(b"okb\xffd")]
    )
    parquet(tmp_path, who=["a", "b"], text=bad)
    with pytest.raises(DataError, match=r"E-DATA-FORMAT: t\.parquet row 2: `text`"):
        corpus(tmp_path, "parquet")


def test_values_that_python_cannot_hold_are_refused_or_written_as_they_are(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    far = pyarrow.array([2**62, 5], pyarrow.timestamp("us"))
    near = pyarrow.array([1, 1_700_000_000_123_456_789], pyarrow.timestamp("ns"))
    for other in (far, near, pyarrow.array([1, 2], pyarrow.duration("ns"))):
        parquet(tmp_path, who=["a", "b"], text=["x", "y"], other=other)  # nobody asks for it
        assert texts(corpus(tmp_path, "parquet"), "a") == ["x"]
    parquet(tmp_path, who=near, text=["x", "y"])
    assert corpus(tmp_path, "parquet").devices[1] == "2023-11-14 22:13:20.123456789"
    lists = pyarrow.array([[b"\xff"], [b"x"]])
    for column in ({"who": far}, {"text": far}, {"text": lists}, {"text": pyarrow.array([1.5, 2.5])}, {"who": lists}):
        parquet(tmp_path, **{"who": ["a", "b"], "text": ["x", "y"], **column})
        with pytest.raises(DataError, match=r"E-DATA-FORMAT: t\.parquet row 1: "):
            corpus(tmp_path, "parquet")


@pytest.mark.parametrize("column", ["text", "prompt", "owner", "time", "label"])
def test_columns_are_for_tables(column: str) -> None:
    plain = {"schema": 1, "name": "x", "privacy": "none", "data": {"source": "text", "path": "t", column: "some"}}
    with pytest.raises(RecipeError, match=rf"E-COMBO.*data\.{column} names a column"):
        from_plain(plain)
    with pytest.raises(RecipeError, match=r"E-COMBO.*data\.path is not read"):
        from_plain({**plain, "data": {"path": "t"}})
