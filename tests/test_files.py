"""datasets/files.py: tables and image files, and errors that name file, row, value and fix."""

import io
import json
import re
import struct
import tarfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import benchmark_files
import pytest

from safer_jax.datasets import DataError, RowError, files

ROWS = [{"id": 1, "question": "Is the café open?"}, {"id": 2, "question": "Où est l’échelle ?"}]
CSV = '﻿id,question\r\n1,Is the café open?\r\n2,"A comma, a ""quote"" and\r\na line"\r\n'


def table(tmp_path, name, data):
    return files.table(benchmark_files.write_file(tmp_path / name, data if isinstance(data, bytes) else data.encode()))


def test_json_jsonl_and_csv_are_the_same_rows(tmp_path):
    by_id = {str(row["id"]): row for row in ROWS}
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    written = {"a.json": json.dumps(ROWS), "b.json": json.dumps(by_id, ensure_ascii=False), "c.jsonl": lines}
    written["d.csv"] = "id,question\n" + "".join(f"{row['id']},{row['question']}\n" for row in ROWS)
    tables = {name: table(tmp_path, name, text) for name, text in written.items()}
    for name, rows in tables.items():
        assert [(row.own_id("id"), row.text("question")) for row in rows] == [
            ("1", ROWS[0]["question"]),
            ("2", ROWS[1]["question"]),
        ], name
    assert [row.key for row in tables["b.json"]] == ["1", "2"]
    places = [rows[1].where.removeprefix(f"{tmp_path}/") for rows in tables.values()]
    assert places == ["a.json, row 1", "b.json, key '2'", "c.jsonl, line 3", "d.csv, line 3"]


def test_mark_of_utf8_and_lines_inside_cells(tmp_path):
    first, second = table(tmp_path, "a.csv", CSV)
    assert first.fields == {"id": "1", "question": "Is the café open?"}
    assert second.text("question") == 'A comma, a "quote" and\r\na line'
    assert table(tmp_path, "a.json", json.dumps(ROWS).encode("utf-8-sig"))[0].values == ROWS[0]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.json",
            b'[{"id": 1},\n{"question": "caf\xe9"}]',
            r"line 2: byte 0xe9 at offset 29 is not UTF-8 .* CP1252 -t",
        ),
        ("a.csv", b"\xef\xbb\xbfid\ncaf\xe9", r"line 2: byte 0xe9 at offset 9 is not UTF-8 text; convert .* CP1252"),
        ("a.json", json.dumps(ROWS).encode("utf-16"), r"line 1: byte 0xff at offset 0 is not UTF-8 .* -f UTF-16 -t"),
        (
            "a.csv",
            "id,q\n1,a".encode("utf-16-le"),
            r"line 1: byte 0x00 at offset 1 is not UTF-8 text; .* -f UTF-16 -t",
        ),
        ("a.json", json.dumps(ROWS, indent=0)[:-9], r"line \d, column \d+: not JSON \(.*\); get the file again"),
        ("a.json", "[" * 100_000, r"objects nested deeper than Python reads; get the file again"),
        ("a.json", '{"1": {"q": "a"}, "1": {"q": "b"}}', r"the key '1' stands twice in one object; keep one"),
        ("a.json", "17", r"holds 17, want a list of rows or an object of rows by id; get it again"),
        ("a.csv", 'id,q\n1,"open', r"line 2: not CSV \(.*\); get the file again"),
        ("a.json", b"version https://git-lfs.github.com/spec/v1\n", r"a Git LFS pointer, .*`git lfs pull`"),
    ],
)
def test_table_that_cannot_be_read_is_named(tmp_path, name, data, message):
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path / name))}(, |: ){message}") as error:
        table(tmp_path, name, data)
    assert not isinstance(error.value, RowError)


def test_another_sets_file_is_refused_at_once(tmp_path):
    path = benchmark_files.write_json(tmp_path / "a.json", [{"question": "a"}, {"question": "b", "image": "c"}])
    assert len(files.table(path, ("question", "image"))) == 2
    with pytest.raises(DataError, match="a.json: no row has the field query, type; they have question, image: this is"):
        files.table(path, ("query", "question", "type"))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '[{"q": "a"}, "b"]', "row 1: 'b' has no named fields; mend or drop the row"),
        ("a.jsonl", '{"q": "a"}\n{"q": "b', 'line 2: \'{"q": "b\' has no named fields'),
        ("a.csv", "q,r\na,b\nc\n", r"line 3: \['c'\] has no named fields"),
        ("a.csv", "q,r\na,b\nc,d,e\n", r"line 3: \['c', 'd', 'e'\] has no named fields"),
        ("a.json", '[{"q": "a"}, {"r": "b"}]', "row 1: no field 'q', it has r; mend"),
        ("a.json", '[{"q": "a"}, {"q": null}]', "row 1, field 'q': None: want a text; write one or drop the row"),
        ("a.json", '[{"q": "a"}, {"q": " "}]', "row 1, field 'q': ' ': want a text"),
        ("a.json", '[{"q": "a"}, {"q": ["b"]}]', r"row 1, field 'q': \['b'\]: want a text"),
        ("a.json", '[{"q": "a"}, {"q": "\\ud83d"}]', "row 1, field 'q': '.*': half a surrogate pair is no character"),
    ],
)
def test_broken_row_leaves_the_others(tmp_path, name, text, message):
    first, second = table(tmp_path, name, text)
    assert first.text("q") == "a"
    with pytest.raises(RowError, match=f"^{re.escape(str(tmp_path / name))}, {message}"):
        second.text("q")


def test_fields_of_a_row():
    row = files.Row("a.json, row 3", {"n": 7, "yes": True, "one": 1, "list": ["a", 2], "none": None, "in": {"x": "y"}})
    assert (row.own_id("n"), row.of("yes", {True: "safe"}), row.row("in").text("x")) == ("7", "safe", "y")
    assert [row.text_if_any(field) for field in ("none", "absent")] == ["", ""]
    for call, message in [
        (lambda: row.own_id("yes"), "field 'yes': True: want a text"),
        (lambda: row.of("one", {True: "safe"}), "field 'one': 1: want one of True; correct it"),
        (lambda: row.of("list", {True: "safe"}), "field 'list': .*: want one of True"),
        (lambda: row.texts("list"), r"field 'list\[1\]': 2: want a text"),
        (lambda: row.rows("in"), "field 'in': {'x': 'y'}: want a list of at least one"),
        (lambda: row.row("in").text("z"), "in: no field 'z', it has x"),
        (lambda: row.text_if_any("n"), "field 'n': 7: want a text"),
    ]:
        with pytest.raises(RowError, match=f"^a.json, row 3, {message}"):
            call()


FILES = {f"set/{folder}/{number}.png": f"{folder}{number}".encode() * 50 for folder in "ab" for number in range(20)}


@pytest.fixture(params=["folder", "zip", "tar"])
def store(request, tmp_path):
    """FILES in one of the three ways that images are kept."""
    if request.param == "folder":
        for name, data in FILES.items():
            benchmark_files.write_file(tmp_path / "images" / name, data)
        return tmp_path / "images"
    write = benchmark_files.write_zip if request.param == "zip" else benchmark_files.write_tar
    return write(tmp_path / f"images.{request.param}", FILES)


def test_images_by_name_from_several_threads(store):
    images = files.Images(store)
    names = list(FILES) * 5
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda name: images.read(name, "row 0"), names)) == [FILES[name] for name in names]
    assert images.read("a/7.png", "row 0") == images.read("./set//a/7.png", "row 0") == FILES["set/a/7.png"]
    assert images.read("set\\b\\1.png", "row 0") == FILES["set/b/1.png"]


def test_zip_is_read_by_one_thread_at_a_time(tmp_path, monkeypatch):
    """zipfile counts the users of its handle without a lock."""
    images = files.Images(benchmark_files.write_zip(tmp_path / "a.zip", FILES))
    inside, most, read = [], [], images._store._zip.read

    def watched(member):
        inside.append(member)
        time.sleep(0.001)  # lets another thread in
        most.append(len(inside))
        inside.pop()
        return read(member)

    monkeypatch.setattr(images._store._zip, "read", watched)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: images.read(name, "row 0"), FILES))
    assert set(most) == {1}


@pytest.mark.parametrize(
    "name", ["../secret.png", "set/../../secret.png", "/etc/hostname", "a\0.png", "", "..\\secret.png"]
)
def test_names_never_lead_outside(store, name):
    benchmark_files.write_file(store.parent / "secret.png", b"secret")
    with pytest.raises(RowError, match=f"^row 4, image .*: leads out of {re.escape(str(store))}; correct the name"):
        files.Images(store).read(name, "row 4")


def test_missing_image_and_large_image_are_named(store):
    images = files.Images(store, max_bytes=100)
    assert len(images.read("set/a/1.png", "row 0")) == 100
    at = re.escape(str(store))
    with pytest.raises(RowError, match=f"^row 4, image 'set/a/99.png': not in {at}; get the images again or drop"):
        images.read("set/a/99.png", "row 4")
    with pytest.raises(RowError, match=f"^row 4, image 'set/a': not in {at}"):
        images.read("set/a", "row 4")
    with pytest.raises(RowError, match=f"^row 4, image 'set/a/10.png': 150 bytes in {at}, more than the limit of 100"):
        images.read("set/a/10.png", "row 4")


def test_size_is_known_before_a_byte_is_read(store, monkeypatch):
    images = files.Images(store, max_bytes=10)
    monkeypatch.setattr(type(images._store), "read", lambda *_: pytest.fail("read"))
    with pytest.raises(RowError, match="100 bytes in .*, more than the limit of 10"):
        images.read("set/a/1.png", "row 4")


def test_zip_that_lies_about_a_size_gives_no_more_than_it_says(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(10_000_000))
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<I", 10_000_000), struct.pack("<I", 50)))
    with pytest.raises(RowError, match=r"image 'a.png': damaged in .*bomb.zip \(BadZipFile: Bad CRC-32"):
        files.Images(path, max_bytes=100).read("a.png", "row 4")


def test_damaged_member_is_one_bad_row(tmp_path):
    path = benchmark_files.write_zip(tmp_path / "a.zip", {"x/1.png": b"one" * 99, "x/2.png": b"two" * 99})
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("x/1.png").header_offset + 30 + len("x/1.png")
    data = bytearray(path.read_bytes())
    data[start : start + 4] = b"\xff" * 4
    path.write_bytes(data)
    images = files.Images(path)
    assert images.read("x/2.png", "row 1") == b"two" * 99
    with pytest.raises(RowError, match=r"^row 0, image 'x/1.png': damaged in .*a.zip \(.*\); get the images again"):
        images.read("x/1.png", "row 0")


@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_truncated_archive_is_refused(tmp_path, kind, share):
    write = benchmark_files.write_zip if kind == "zip" else benchmark_files.write_tar
    path = write(tmp_path / f"a.{kind}", {f"x/{i}.png": bytes([i]) * 3000 for i in range(20)})
    if kind == "tar":  # without the padding behind its end mark
        with tarfile.open(path) as tar:
            tar.getmembers()
            whole = tar.offset
    else:
        whole = path.stat().st_size
    path.write_bytes(path.read_bytes()[: int(whole * share)])
    with pytest.raises(DataError, match=rf"a.{kind}: (not a whole|ends or is broken behind \d+ files|holds no file)"):
        files.Images(path)


def test_empty_archive_is_refused(tmp_path):
    for write, name in ((benchmark_files.write_zip, "a.zip"), (benchmark_files.write_tar, "a.tar")):
        with pytest.raises(DataError, match=f"{name}: holds no file; get it again"):
            files.Images(write(tmp_path / name, {}))


def test_tar_cut_between_two_files_is_refused(tmp_path):
    path = benchmark_files.write_tar(tmp_path / "a.tar", {"x/1.png": b"1" * 512, "x/2.png": b"2" * 512})
    path.write_bytes(path.read_bytes()[:1024])
    with pytest.raises(DataError, match="a.tar: ends or is broken behind 1 files; get it again"):
        files.Images(path)


def test_tar_links_and_compressed_tars_are_no_images(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind, target in [("x/1.png", tarfile.SYMTYPE, "/etc/hostname"), ("x/2.png", tarfile.REGTYPE, "")]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member, io.BytesIO())
    with pytest.raises(RowError, match="image 'x/1.png': not in"):
        files.Images(tmp_path / "a.tar").read("x/1.png", "row 0")
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x/1.png"))
    with pytest.raises(DataError, match="b.tar: not a whole, uncompressed tar file .*unpack it into a folder"):
        files.Images(tmp_path / "b.tar")
    with pytest.raises(DataError, match=r"b.tar.gz: want a folder, a .zip or a .tar of images; unpack it"):
        files.Images((tmp_path / "b.tar").rename(tmp_path / "b.tar.gz"))


def test_encrypted_member_and_pointers(tmp_path):
    path = benchmark_files.write_zip(
        tmp_path / "a.zip", {"x/1.png": b"one", "x/2.png": files.POINTER + b".com/spec/v1"}
    )
    with pytest.raises(RowError, match="image 'x/2.png': a Git LFS pointer lies in .*`git lfs pull`"):
        files.Images(path).read("x/2.png", "row 0")
    data = path.read_bytes()
    first = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)  # of x/1.png; the folder's entry is before it
    path.write_bytes(data[: first + 8] + b"\x01" + data[first + 9 :])
    with pytest.raises(RowError, match=r"image 'x/1.png': damaged in .*RuntimeError: .* is encrypted"):
        files.Images(path).read("x/1.png", "row 0")
    path.write_bytes(files.POINTER + b".com/spec/v1")
    with pytest.raises(DataError, match="a.zip: a Git LFS pointer, not the file"):
        files.Images(path)


def test_find_tells_what_lies_there(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder; name the folder that holds a.json"):
        files.find(tmp_path / "nowhere", "a.json")
    with pytest.raises(DataError, match="holds none of a.json, data/a.json, but nothing; correct the folder"):
        files.find(tmp_path, "a.json", "data/a.json")
    for number in range(14):
        benchmark_files.write_file(tmp_path / f"{number:02d}.txt", b"")
    with pytest.raises(DataError, match="but 00.txt, .*, 11.txt and 2 more; correct the folder"):
        files.find(tmp_path, "a.json")
