"""Folders and files as people have them: what is a device, what is left out and counted, what is refused."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from edgewise.core.errors import DataError
from edgewise.core.keys import root
from edgewise.drivers.storage.folder import MARKER
from edgewise.learn.text import files as listing
from edgewise.learn.text.corpus import Corpus, load
from edgewise.plan.recipe.recipe import DataSection

RECIPE = 'schema = 1\nname = "mine"\nprivacy = "none"\n[data]\nsource = "text"\npath = "."\n'


def corpus(folder: Path, **section: object) -> Corpus:
    return load(DataSection(**section), folder, folder / "out" / "cache", root(0))  # type: ignore[arg-type]


def write(folder: Path, **files: str) -> None:
    """``ann__1_txt="..."`` is the file ann/1.txt."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def texts(c: Corpus, device: str) -> list[str]:
    return [d.text for d in c.documents(device)]


def left_out(c: Corpus) -> dict[str, int]:
    return c.found["files"]["left_out"]


def test_folders_and_the_files_beside_them_are_devices(tmp_path: Path) -> None:
    write(tmp_path, n__ann__1_txt="of ann", n__bob__1_txt="of bob", n__cyd_txt="of cyd", n__dan_txt="of dan")
    c = corpus(tmp_path, source="text", path="n")
    assert c.devices == ("ann", "bob", "cyd.txt", "dan.txt")
    assert texts(c, "cyd.txt") == ["of cyd"]
    assert c.found == {"files": {"read": 4, "left_out": {}}, "rows": None, "pieces": False}


def test_what_edgewise_wrote_or_reads_is_no_data(tmp_path: Path) -> None:
    write(tmp_path, ann_txt="of ann", bob_txt="of bob", recipe_toml=RECIPE, pyproject_toml="[project]\nname = 'x'\n")
    write(tmp_path, runs__mine__run_db="x", runs__mine__log_txt="many words", runs__mine__cache__a_txt="words again")
    write(tmp_path, out__run_db="x", model__config_json="{}", model__model_safetensors="x", model__README_md="card")
    write(tmp_path, audit__audit_json="{}", audit__audit_html="x", begun__a_txt="words")
    (tmp_path / "begun" / MARKER).write_text("{}")
    c = corpus(tmp_path, source="text", path=".")
    assert c.devices == ("ann.txt", "bob.txt", "pyproject.toml")
    assert left_out(c) == {listing.OWN: 6}
    write(tmp_path, data__a_jsonl=json.dumps({"who": "a", "text": "x y"}) + "\n")
    write(tmp_path, runs__mine__cache__tables__b_jsonl=json.dumps({"who": "b", "text": "x y"}) + "\n")
    assert corpus(tmp_path, source="jsonl", path="**/*.jsonl", owner="who").devices == ("a",)
    assert corpus(tmp_path, source="jsonl", path=".", owner="who").devices == ("a",)


def test_hidden_files_and_empty_ones_are_counted(tmp_path: Path) -> None:
    write(tmp_path, n__ann_txt="of ann", n__bob_txt="")
    (tmp_path / "n" / ".cache").mkdir()
    c = corpus(tmp_path, source="text", path="n")
    assert (c.devices, texts(c, "bob.txt")) == (("ann.txt", "bob.txt"), [])
    assert left_out(c) == {listing.EMPTY: 1, listing.HIDDEN: 1}


def test_a_dead_link_is_a_file_that_its_device_cannot_read(tmp_path: Path) -> None:
    write(tmp_path, n__ann__1_txt="of ann", n__bob__1_txt="of bob")
    (tmp_path / "n" / "bob" / "2.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "n" / "ring").symlink_to(tmp_path / "n" / "ring")
    c = corpus(tmp_path, source="text", path="n")
    assert texts(c, "ann") == ["of ann"]
    for device, name in (("bob", "2.txt"), ("ring", "ring")):
        with pytest.raises(DataError, match=f"E-DEVICE-DATA.*{name}: "):
            texts(c, device)
    assert left_out(c) == {listing.UNREADABLE: 2}
    assert c.fingerprint() == corpus(tmp_path, source="text", path="n").fingerprint()
    dealt = corpus(tmp_path, source="text", path="n", partition="iid", devices=2)
    assert sorted(t for d in dealt.devices for t in texts(dealt, d)) == ["of ann", "of bob"]
    assert left_out(dealt) == {listing.UNREADABLE: 2}


def test_a_path_that_leads_nowhere_or_to_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"E-DATA-EMPTY|E-DEVICE-DATA"):
        texts(corpus(tmp_path, source="text", path="ring"), "ring")
    for source in ({"source": "text"}, {"source": "csv", "owner": "who"}):
        with pytest.raises(DataError, match=r"E-DATA-MISSING.*neither a file nor a folder"):
            corpus(tmp_path, path="pipe", **source)


@pytest.mark.parametrize("partition", [{}, {"partition": "iid", "devices": 2}])
def test_pipes_and_links_to_them_are_left_out_and_never_opened(tmp_path: Path, partition: dict[str, object]) -> None:
    write(tmp_path, n__ann__1_txt="of ann", n__bob__1_txt="of bob")
    os.mkfifo(tmp_path / "n" / "ann" / "pipe")
    (tmp_path / "n" / "bob" / "link").symlink_to(tmp_path / "n" / "ann" / "pipe")
    c = corpus(tmp_path, source="text", path="n", **partition)
    assert sorted(t for d in c.devices for t in texts(c, d)) == ["of ann", "of bob"]
    assert left_out(c) == {listing.SPECIAL: 2}


def test_links_to_folders_are_followed_once_and_circles_are_not(tmp_path: Path) -> None:
    write(tmp_path, n__ann__1_txt="of ann", n__bob__1_txt="of bob", elsewhere__2_txt="kept elsewhere")
    (tmp_path / "n" / "ann" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "n" / "ann" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "n" / "bob" / "up").symlink_to(tmp_path / "n")
    (tmp_path / "n" / "bob" / "self").symlink_to(tmp_path / "n" / "bob")
    (tmp_path / "n" / "cyd").symlink_to(tmp_path / "elsewhere")
    c = corpus(tmp_path, source="text", path="n")
    assert {d: texts(c, d) for d in c.devices} == {
        "ann": ["of ann", "kept elsewhere"],
        "bob": ["of bob"],
        "cyd": ["kept elsewhere"],
    }
    assert left_out(c) == {listing.TWICE: 3}


def test_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path / "n" / "caf") + b"\xe9"
    try:
        os.makedirs(folder)
    except OSError:
        pytest.skip("this file system has no such names")
    with open(folder + b"/\xe9.txt", "w") as f:
        f.write("of the cafe")
    write(tmp_path, n__ann_txt="of ann")
    c = corpus(tmp_path, source="text", path="n")
    assert c.devices == ("ann.txt", "caf\\xe9")
    (document,) = c.documents("caf\\xe9")
    assert document.name == "caf\\xe9/\\xe9.txt@0"
    assert len(c.fingerprint()) == 64
    write(tmp_path, **{"n__caf\\xe9__1_txt": "another"})
    with pytest.raises(DataError, match=r"E-DATA-FORMAT.*two devices are called"):
        corpus(tmp_path, source="text", path="n")


def test_no_folder_is_called_as_all_devices_together(tmp_path: Path) -> None:
    (tmp_path / "n" / "*").mkdir(parents=True)
    with pytest.raises(DataError, match=r"E-DATA-FORMAT.*the name is reserved"):
        corpus(tmp_path, source="text", path="n")


def test_a_folder_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "d" / "a").mkdir(parents=True)
    monkeypatch.setattr(listing.os, "scandir", refuse)
    with pytest.raises(DataError, match=r"E-DATA-MISSING.*cannot be read: Permission denied"):
        corpus(tmp_path, source="text", path="d")


@pytest.mark.parametrize(
    ("path", "devices"),
    [
        (["n/ann", "n/cyd.txt"], ("ann", "cyd.txt")),
        ("n/*", ("ann", "bob", "cyd.txt")),
        ("n/*.txt", ("cyd.txt",)),
        (["n/b*", "n/bob", "n/cyd.txt"], ("bob", "cyd.txt")),
        ("n/cyd.txt", ("cyd",)),
    ],
)
def test_several_paths_and_patterns(tmp_path: Path, path: str | list[str], devices: tuple[str, ...]) -> None:
    home = tmp_path / "notes [2024]"  # a folder's own name is no pattern
    write(home, n__ann__1_txt="of ann", n__ann__deep__2_txt="more", n__bob__1_txt="of bob", n__cyd_txt="of cyd")
    c = corpus(home, source="text", path=path)
    assert c.devices == devices
    if "ann" in devices:
        assert texts(c, "ann") == ["of ann", "more"]


def test_a_name_with_pattern_letters_is_that_file(tmp_path: Path) -> None:
    write(tmp_path, **{"a[1]_txt": "with brackets", "a1_txt": "without"})
    c = corpus(tmp_path, source="text", path="a[1].txt")
    assert texts(c, c.devices[0]) == ["with brackets"]
    for missing in ("b[1]*.txt", "nowhere"):  # a recipe that was copied without its data
        with pytest.raises(DataError, match=rf"E-DATA-MISSING.*from {tmp_path}, the folder of the recipe"):
            corpus(tmp_path, source="text", path=missing)


def test_tables_of_several_files_are_one(tmp_path: Path) -> None:
    rows = [{"who": "ann", "text": f"number {i}", "at": t} for i, t in enumerate([5, 1, 4, 2])]
    (tmp_path / "t" / "deep").mkdir(parents=True)
    for name, part in (("t/b.jsonl", rows[:2]), ("t/deep/a.jsonl", rows[2:])):
        (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in part))
    write(tmp_path, t__notes_md="not a table", t___SUCCESS="")
    for path in ("t", ["t/b.jsonl", "t/deep/a.jsonl"], "t/**/*.jsonl"):
        c = corpus(tmp_path, source="jsonl", path=path, owner="who", time="at")
        assert texts(c, "ann") == ["number 1", "number 3", "number 2", "number 0"]
        assert c.found["files"]["read"] == 2
        assert c.found["rows"] == {"read": 4, "left_out": {}}
    found = left_out(corpus(tmp_path, source="jsonl", path="t", owner="who"))
    assert found == {listing.HIDDEN: 1, listing.OTHER: 1}
    with pytest.raises(DataError, match=r"E-DATA-MISSING.*no file that ends in \.csv.*endings there: \.jsonl"):
        corpus(tmp_path, source="csv", path="t", owner="who")
    (tmp_path / "t" / "c.jsonl").write_text('{"who": "bob", "txt": "x"}\n')
    with pytest.raises(DataError, match=r"E-DATA-COLUMN: c\.jsonl:1"):
        corpus(tmp_path, source="jsonl", path="t", owner="who")


def zst(raw: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.compress(raw, codec="zstd", asbytes=True)


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zst}


@pytest.mark.parametrize("ending", PACK)
def test_compressed_files_are_read(tmp_path: Path, ending: str) -> None:
    rows = [{"who": "ann", "text": f"number {i}\nä"} for i in range(3)]
    whole = "".join(json.dumps(r) + "\n" for r in rows).encode()
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / f"t.jsonl{ending}").write_bytes(PACK[ending](whole))
    for path in ("t", f"t/t.jsonl{ending}"):
        c = corpus(tmp_path, source="jsonl", path=path, owner="who")
        assert texts(c, "ann") == [r["text"] for r in rows]
    (tmp_path / f"t.csv{ending}").write_bytes(PACK[ending]("who,text\nann,ü b\n".encode()))
    assert texts(corpus(tmp_path, source="csv", path=f"t.csv{ending}", owner="who"), "ann") == ["ü b"]
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / f"ann.txt{ending}").write_bytes(PACK[ending]("of ann ü".encode()))
    assert texts(corpus(tmp_path, source="text", path="n"), f"ann.txt{ending}") == ["of ann ü"]


@pytest.mark.parametrize("ending", PACK)
def test_a_damaged_compressed_file_is_named(tmp_path: Path, ending: str) -> None:
    packed = PACK[ending](os.urandom(5000).hex().encode())
    for raw in (packed[: len(packed) // 2], b"not packed at all"):
        write(tmp_path, n__bob_txt="of bob")
        (tmp_path / "n" / f"ann.txt{ending}").write_bytes(raw)
        c = corpus(tmp_path, source="text", path="n")
        assert texts(c, "bob.txt") == ["of bob"]
        with pytest.raises(DataError, match=rf"E-DEVICE-DATA.*ann\.txt\{ending} cannot be unpacked"):
            texts(c, f"ann.txt{ending}")
        (tmp_path / f"t.csv{ending}").write_bytes(raw)
        with pytest.raises(DataError, match=rf"E-DATA-FORMAT.*t\.csv\{ending} cannot be unpacked"):
            corpus(tmp_path, source="csv", path=f"t.csv{ending}", owner="who")


def test_the_mark_of_utf8_is_no_text_and_bad_bytes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / "ann.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 \xef\xbf\xbd \xff\r\n")
    (tmp_path / "n" / "bob.txt").write_bytes("words".encode("utf-16"))
    c = corpus(tmp_path, source="text", path="n")
    (document,) = c.documents("ann.txt")
    assert document.text == "caf\ufffd \ufffd \ufffd\r\n"
    assert document.replaced == 2  # one stands in the file as it is
    with pytest.raises(DataError, match=r"E-DATA-FORMAT.*UTF-16.*UTF-8"):
        texts(c, "bob.txt")
