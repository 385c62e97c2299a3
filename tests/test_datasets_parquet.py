"""The sets in parquet: records of the published layouts, what is done about their traps, and memory that stays bounded."""

import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import benchmark_files
import hub_files
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetag_files

from safer_jax import data, images
from safer_jax.datasets import DataError, RowError, adapters, beavertails_v, files, mm_safetybench, parquet, siuo_json
from safer_jax.shapes import EXPECTED, SAFE, TAGS, UNKNOWN, UNSAFE

# name -> its splits with their rows, as hub_files writes them
SPLITS = {
    "spa_vl": {"train": 6, "validation": 2, "test": 4, "harm": 2, "help": 2},
    "beavertails_v": {"train": 12, "evaluation": 12},
    "mm_safetybench": {"SD": 26, "SD_TYPO": 26, "TYPO": 26, "Text_only": 26},
    "siuo": {"test": 4},
    "siuo_mcqa": {"test": 4},
    "holisafe": {"test": 10},
    "mmstar": {"val": 5},
}
LIMITS = images.Limits(min_pixels=28 * 28, max_pixels=56 * 56, max_bytes=1 << 20, max_source_pixels=1 << 20)
GEOMETRY = images.Geometry(patch=14, merge=2, window=56)


def opened(name, folder, split):
    return adapters.load(name, str(folder), split)


def records(name, folder, split):
    source = opened(name, folder, split)
    return [source[index] for index in range(len(source))]


def size(record):
    """As prompts.Processor.size does, without a tokenizer."""
    grids = [images.size(image, LIMITS, GEOMETRY, record.id) for image in record.images]
    return len(record.prompt.split()), sum(rows * columns for rows, columns in grids)


# --- the registry


def test_every_adapter_states_its_licence_and_can_be_called():
    for name, adapter in adapters.ADAPTERS.items():
        assert adapter.licence and adapter.use in ("train", "eval") and adapter.about, name
        assert callable(getattr(adapter._module(), adapter.opens)), name


def test_opening_a_set_needs_its_name_and_a_folder(tmp_path):
    with pytest.raises(DataError, match="data.name 'spavl' is not known; write one of demo, safetag, .*spa_vl"):
        opened("spavl", tmp_path, "train")
    with pytest.raises(DataError, match=r"data.path is empty: set it to the folder of 'spa_vl' \(SPA-VL"):
        adapters.load("spa_vl", "", "train")


# --- every set


@pytest.mark.parametrize("name", SPLITS)
def test_every_split_is_whole_named_and_usable(name, tmp_path):
    folder, adapter, seen = hub_files.write(name, tmp_path), adapters.ADAPTERS[name], set()
    assert set(SPLITS[name]) == set(adapter.splits)
    for split, rows in SPLITS[name].items():
        source, found = opened(name, folder, split), records(name, folder, split)
        assert len(found) == rows and source.name == f"{name}/{split}"
        assert len(data.usable(source, size, 999, 999, 0).rows) == rows, "pictures of every form can be decoded"
        for record in found:
            assert record.id.startswith(f"{name}/{split}/") and record.source == name
            assert record.licence == adapter.licence and record.prompt.strip()
            assert record.use == ("train" if split == "train" else "eval")
            assert {record.image_tag, record.text_tag, record.combine_tag} <= set(TAGS)
            assert record.expected in EXPECTED
            assert len(record.images) == (split != "Text_only")
        ids = {record.id for record in found}
        assert len(ids) == rows and not ids & seen
        seen |= ids
        with pytest.raises(IndexError):
            source[rows]
    assert (adapter.use == "train") == ("train" in adapter.splits)


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_or_a_folder_that_is_not_there_is_named(name, tmp_path):
    split = next(iter(SPLITS[name]))
    with pytest.raises(DataError, match=f"{name} has no split 'dev'; write one of .*{split}"):
        opened(name, hub_files.write(name, tmp_path / "set"), "dev")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        opened(name, tmp_path / "nowhere", split)
    (tmp_path / "file").write_text("{}")
    with pytest.raises(DataError, match=f"{tmp_path}/file: is a file; "):
        opened(name, tmp_path / "file", split)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=f"{tmp_path}/empty: "):
        opened(name, tmp_path / "empty", split)


@pytest.mark.parametrize("name", SPLITS)
def test_a_file_cut_anywhere_is_named(name, tmp_path):
    folder, split = hub_files.write(name, tmp_path), next(iter(SPLITS[name]))
    path = next(
        path
        for path in sorted(folder.rglob("*.parquet"))
        if split in f"{path.parent.name}/{path.name}" or path.stem == name
    )
    path = path if name != "siuo_mcqa" else folder / "siuo_mcqa" / path.name
    whole = path.read_bytes()
    for end in (0, 3, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: not a whole parquet file .*; download it again"):
            opened(name, folder, split)


@pytest.mark.parametrize("name", SPLITS)
def test_an_image_that_cannot_be_decoded_passes_and_is_counted(name, tmp_path):
    folder, split = hub_files.write(name, tmp_path), next(iter(SPLITS[name]))
    for path in folder.rglob("*.parquet"):
        table = pq.read_table(path)
        rows = table.to_pylist()
        rows[1]["image"] = hub_files.embedded(b"not a picture")
        pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    source = opened(name, folder, split)
    bad = [index for index in range(len(source)) if source[index].images == (b"not a picture",)]
    assert bad and bad[0] == 1
    found = data.usable(source, size, 999, 999, len(bad))
    assert len(found.dropped) == len(bad) and len(found.rows) == len(source) - len(bad)
    assert f"{source[1].id}: 13 bytes beginning b'not a pi' have no header" in found.dropped[0]
    with pytest.raises(DataError, match=f"{len(bad)} bad rows in the first .*, data.bad_rows allows {len(bad) - 1}"):
        data.usable(source, size, 999, 999, len(bad) - 1)


# --- SPA-VL


def test_spa_vl_pairs_answers_and_says_nothing_of_the_inputs(tmp_path):
    folder = hub_files.write("spa_vl", tmp_path)
    train = records("spa_vl", folder, "train")
    assert [record.id for record in train[2:4]] == ["spa_vl/train/000002", "spa_vl/train/000003"], "over the shards"
    assert (train[4].reference, train[4].flawed) == ("Ladder 4 is high.", "Climb ladder 4 blindfold.")
    assert {(r.image_tag, r.text_tag, r.combine_tag, r.expected) for r in train} == {(UNKNOWN,) * 3 + ("any",)}
    assert train[0].category == ""
    assert [r.category for r in records("spa_vl", folder, "validation")] == [
        "Harm to self / Ladders / Steps",
        "Harm to self / Ladders",
    ]
    test, halves = records("spa_vl", folder, "test"), [records("spa_vl", folder, half) for half in ("harm", "help")]
    assert [record.prompt for record in test] == [record.prompt for half in halves for record in half]
    assert [record.id for record in test] == [f"spa_vl/test/{h}/{n:06d}" for h in ("harm", "help") for n in (0, 1)]
    assert {record.reference for record in test} == {""}


def test_spa_vl_takes_images_without_a_path_and_wants_answers_in_training(tmp_path):
    path = hub_files.write("spa_vl", tmp_path) / "data" / "train-00000-of-00002.parquet"
    table, before = pq.read_table(path), records("spa_vl", tmp_path, "train")
    plain = pa.array([image["bytes"] for image in table["image"].to_pylist()], pa.large_binary())
    pq.write_table(table.set_column(0, "image", plain), path)
    assert records("spa_vl", tmp_path, "train") == before
    pq.write_table(table.drop_columns(["rejected"]), path)
    with pytest.raises(
        DataError, match="00000-of-00002.parquet: no column rejected; it has image, .* data.name 'spa_vl'"
    ):
        opened("spa_vl", tmp_path, "train")
    pq.write_table(table.set_column(0, "image", pa.array(["a.jpg"] * len(table))), path)
    with pytest.raises(
        DataError, match=r"column image holds string, want struct<bytes: binary, ...> or binary; correct"
    ):
        opened("spa_vl", tmp_path, "train")


# --- BeaverTails-V


@pytest.mark.parametrize("is_pair", [True, False])
def test_beavertails_v_is_told_by_its_columns(tmp_path, is_pair):
    folder = hub_files.beavertails_v(tmp_path, is_pair=is_pair)
    found = records("beavertails_v", folder, "train")
    assert [record.id for record in found[3:5]] == [
        "beavertails_v/train/animal_abuse/000003",
        "beavertails_v/train/dangerous_behavior/000000",
    ]
    if is_pair:
        expected = [("First answer 0.", "Second answer 0."), ("Second answer 1.", "First answer 1.")]
    else:
        expected = [("Only answer 0.", ""), ("", "Only answer 1.")]
    assert [(record.reference, record.flawed) for record in found[:2]] == expected
    assert [record.category for record in found[:4]] == [f"animal_abuse / {severity}" for severity in range(4)]
    assert {(r.image_tag, r.text_tag, r.combine_tag, r.expected) for r in found} == {(UNKNOWN,) * 3 + ("any",)}


@pytest.mark.parametrize(
    ("first", "second", "safer", "pair"),
    [
        ("yes", "yes", "2", ("two", "")),
        ("yes", "yes", "1", ("one", "")),
        ("no", "no", "1", ("", "two")),  # the safer of two unsafe ones is no reference
        ("no", "yes", "2", ("two", "one")),
        ("no", "yes", "1", ("", "")),  # the marks contradict one another
        ("no", "yes", "0", ("", "one")),  # the safer one is not told
        (True, False, 1, ("one", "two")),
    ],
)
def test_beavertails_v_reference_is_the_safer_answer_where_it_is_safe(first, second, safer, pair):
    values = {"response_1": "one", "response_2": "two", "is_response_1_safe": first, "is_response_2_safe": second}
    assert beavertails_v._pair(files.Row("row", values | {"safer_response_id": safer})) == pair


def test_beavertails_v_traps(tmp_path):
    folder = hub_files.beavertails_v(tmp_path)
    single = [hub_files.beavertails_v_row(safetag_files.picture("png"), "animal_abuse", number) for number in range(2)]
    path = folder / "data" / "animal_abuse" / "train.parquet"
    severity = {"image_severity": None, "is_response_safe": "perhaps"}
    hub_files.write_rows(path, hub_files.SINGLE, [single[0], single[1] | severity])
    source = opened("beavertails_v", folder, "train")
    assert len(source) == 10 and source[0].reference == "Only answer 0." and source[2].flawed == "Second answer 0."
    with pytest.raises(
        RowError, match=r"train.parquet, row 1, field 'is_response_safe': 'perhaps': want one of 'yes', 'no'"
    ):
        source[1]
    hub_files.write_rows(path, hub_files.SINGLE, [single[0] | {"image_severity": None}])
    assert opened("beavertails_v", folder, "train")[0].category == "animal_abuse"
    hub_files.write_rows(path, hub_files.BEAVERTAILS_V, single)
    with pytest.raises(DataError, match="no column response_1, response_2, is_response_1_safe, .*safer_response_id"):
        opened("beavertails_v", folder, "train")
    with pytest.raises(DataError, match=r"no category's folder holds train\*.parquet"):
        opened("beavertails_v", folder / "data" / "animal_abuse", "train")
    assert len(opened("beavertails_v", folder / "data", "evaluation")) == 12, "the folder of the categories does too"


# --- MM-SafetyBench and SIUO, each in two forms


@pytest.mark.parametrize(
    ("name", "split"),
    [("mm_safetybench", split) for split in mm_safetybench.SPLITS]
    + [("siuo", "test"), ("siuo_mcqa", "test"), ("holisafe", "test")],
)
def test_two_forms_of_a_set_give_equal_records(name, split, tmp_path):
    theirs = records(name, hub_files.write(name, tmp_path / "hub"), split)
    authors = records(name, benchmark_files.write(name, tmp_path / "authors"), split)
    plain = [[record._replace(images=()) for record in form] for form in (theirs, authors)]
    assert plain[0] == plain[1]
    if name != "mm_safetybench":  # the makers draw those pictures in another order
        assert theirs == authors


def test_mm_safetybench_keeps_its_names_and_is_whole(tmp_path):
    folder = hub_files.write("mm_safetybench", tmp_path)
    found = records("mm_safetybench", folder, "SD")
    assert (found[0].id, found[0].category) == ("mm_safetybench/SD/01-0", "Illegal_Activitiy")
    assert {record.category for record in found} == set(hub_files.SCENARIOS)
    assert {(record.combine_tag, record.expected) for record in found} == {(UNSAFE, "refuse")}
    text = records("mm_safetybench", folder, "Text_only")
    assert {(record.images, record.image_tag, record.text_tag) for record in text} == {((), UNKNOWN, UNSAFE)}
    (folder / "data" / "Illegal_Activitiy").rename(folder / "data" / "Illegal_Activity")
    with pytest.raises(DataError, match="split 'SD' has no Illegal_Activitiy, it has EconomicHarm, .* under the names"):
        opened("mm_safetybench", folder, "SD")


def test_mm_safetybench_text_needs_no_image_column(tmp_path):
    folder = hub_files.write("mm_safetybench", tmp_path)
    path = folder / "data" / "Fraud" / "Text_only.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["image"]), path)
    assert len(records("mm_safetybench", folder, "Text_only")) == 26


def test_siuo_is_safe_alone_and_not_together(tmp_path):
    folder = hub_files.write("siuo", tmp_path)
    record, choice = records("siuo", folder, "test")[1], records("siuo_mcqa", folder, "test")[1]
    assert (record.id, record.expected, record.reference) == ("siuo/test/1002", "warn", "Please climb down first.")
    assert (record.image_tag, record.text_tag, record.combine_tag) == (SAFE, SAFE, UNSAFE)
    assert (choice.id, choice.choice, choice.reference) == ("siuo_mcqa/test/1002", "B", "Run before you jump.")
    assert siuo_json.with_options("Why?", {"A": "x"}) == "Why?\n(A) x" and "\n(D) Take a photo." in choice.prompt
    path = folder / "siuo_mcqa" / "test-00000-of-00001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["options"]["C"], rows[1]["correct_option"] = None, "E"
    hub_files.write_rows(path, hub_files.SIUO_MCQA, rows)
    source = opened("siuo_mcqa", folder, "test")
    with pytest.raises(RowError, match="row 0, options, field 'C': None: want a text"):
        source[0]
    with pytest.raises(RowError, match="row 1, field 'correct_option': 'E': want one of 'A', 'B', 'C', 'D'"):
        source[1]


def test_holisafe_of_the_hub(tmp_path):
    folder = hub_files.write("holisafe", tmp_path)
    found = records("holisafe", folder, "test")
    assert records("holisafe", folder / "default", "test") == found
    assert [(r.image_tag, r.text_tag, r.combine_tag) for r in found[1:3]] == [
        (SAFE, SAFE, UNSAFE),
        (SAFE, UNSAFE, UNSAFE),
    ]
    path = folder / "default" / "test" / "0000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["image_safe"], rows[1]["image_safe"] = False, None
    hub_files.write_rows(path, hub_files.HOLISAFE, rows)
    source = opened("holisafe", folder, "test")
    with pytest.raises(RowError, match="0000.parquet, row 0, field 'image_safe': False: type is SSS; correct one"):
        source[0]
    assert source[1] == found[1]


def test_mmstar_is_its_question_with_options(tmp_path):
    record = records("mmstar", hub_files.write("mmstar", tmp_path), "val")[2]
    assert (record.id, record.choice, record.expected) == ("mmstar/val/2", "C", "comply")
    assert record.prompt == "Which colour has ladder 2?\nOptions: A: red, B: blue, C: green, D: none"
    assert record.category == "coarse perception / image scene and topic"
    (tmp_path / "val").mkdir()
    (tmp_path / "mmstar.parquet").rename(tmp_path / "val" / "0000.parquet")  # the hub's own conversion
    assert records("mmstar", tmp_path, "val")[2] == record


# --- where files lie


@pytest.mark.parametrize(
    ("names", "config"),
    [
        (["train.parquet"], ""),
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"], ""),
        (["train/0000.parquet", "train/0001.parquet"], ""),
        (["gen/train-00000-of-00001.parquet"], "gen"),
        (["data/gen/train.parquet"], "gen"),
        (["gen-train-00000-of-00001.parquet"], "gen"),
        (["data/gen-train.parquet"], "gen"),
        (["gen/train/0000.parquet"], "gen"),
    ],
)
def test_files_are_found_where_people_have_them(names, config, tmp_path):
    for name in [*names, "data/trained.parquet", "test.parquet", "other/train.parquet", "data/other-train.parquet"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert parquet.paths(tmp_path, "train", config) == [tmp_path / name for name in names]
    assert parquet.is_in(tmp_path) and not parquet.is_in(tmp_path / "nowhere")


def test_files_that_are_missing_or_there_twice_are_named(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("data/train-00000-of-00003.parquet", "data/train-00002-of-00003.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match="'train' is not complete, it holds train-00000-of-00003.parquet, train-00002"):
        parquet.paths(tmp_path, "train")
    with pytest.raises(
        DataError, match=r"no val-\*.parquet for split 'val' of 'gen', it holds data/train-00000-of.* data/"
    ):
        parquet.paths(tmp_path, "val", "gen")
    (tmp_path / "train.parquet").touch()
    with pytest.raises(
        DataError, match="'train' is there twice, as .*/train.parquet and .*data/train-00000.* move one"
    ):
        parquet.paths(tmp_path, "train")
    (tmp_path / "dev.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(DataError, match="dev.parquet: a Git LFS pointer, not the file; get it with `git lfs pull`"):
        parquet.Table({"": [tmp_path / "dev.parquet"]}, lambda path, schema: [])


# --- reading


def table(path, rows, group, size=1 << 10, **options):
    """A file of numbered rows with incompressible images of `size` bytes, and its table."""
    random = np.random.default_rng(0)
    made = {"index": range(rows), "image": [random.bytes(size) for _ in range(rows)]}
    schema = pa.schema([("index", pa.int64()), ("image", pa.binary())])
    pq.write_table(pa.table(made, schema), path, row_group_size=group, **options)
    return parquet.Table({"": [path]}, parquet.wants("x", {"index": parquet.NAME, "image": parquet.IMAGE}))


@pytest.fixture
def reads(monkeypatch):
    """How often the reading of a row group began."""
    began, original = [], pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda self, *args, **kwargs: began.append(args) or original(self, *args, **kwargs),
    )
    return began


def test_a_large_row_group_is_read_in_pieces_and_in_order_once(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(parquet, "PIECE", 10 << 10)
    monkeypatch.setattr(parquet, "CACHE", 25 << 10)
    rows = table(tmp_path / "x.parquet", 100, 100)
    assert [row.values["index"] for row in rows] == list(range(100)) and len(reads) == 1
    assert rows._cached <= 25 << 10 < rows._cached + (10 << 10), "as many pieces as fit"
    assert rows._cached == sum(piece.get_total_buffer_size() for piece in rows._cache.values())
    assert rows[99].values["index"] == 99 and len(reads) == 1, "kept"
    assert rows[30].values["index"] == 30 and len(reads) == 2, "read again up to there"
    assert rows[31].values["index"] == 31 and rows[60].values["index"] == 60 and len(reads) == 2, "went on"
    assert rows[0].values["index"] == 0 and len(reads) == 3


def test_pieces_of_several_files_in_any_order_by_many_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "PIECE", 4 << 10)
    monkeypatch.setattr(parquet, "CACHE", 20 << 10)
    for part, rows, group in (("a", 37, 16), ("b", 0, 5), ("c", 12, 5)):
        table(tmp_path / f"{part}.parquet", rows, group)
    check = parquet.wants("x", {"index": parquet.NAME})
    rows = parquet.Table({part: [tmp_path / f"{part}.parquet"] for part in "abc"}, check)
    order, inside, most = np.random.default_rng(1).permutation(49).tolist(), [], []
    original = rows._piece

    def piece(*which):
        inside.append(which)
        most.append(len(inside))
        time.sleep(0.001)
        read = original(*which)
        inside.remove(which)
        return read

    monkeypatch.setattr(rows, "_piece", piece)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(rows.__getitem__, order))
    assert max(most) == 1, "a ParquetFile reads for one thread at a time"
    for index, row in zip(order, found, strict=True):
        part, number = ("a", index) if index < 37 else ("c", index - 37)
        assert (row.values, row.key) == ({"index": number}, f"{part}/{number:06d}")
        assert row.where == f"{tmp_path / part}.parquet, row {number}"


@pytest.mark.parametrize("at", [(40, 2000), (6000, 6100)], ids=["header", "content"])
def test_a_damaged_row_group_is_named_and_the_others_are_read(at, tmp_path):
    path = tmp_path / "x.parquet"
    table(path, 40, 10, use_dictionary=False, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    begin, end = at
    page = pq.ParquetFile(path).metadata.row_group(1).column(1).data_page_offset
    content[page + begin : page + end] = bytes(end - begin)
    path.write_bytes(content)
    rows = parquet.Table({"": [path]}, parquet.wants("x", {"image": parquet.IMAGE}))
    for index in (5, 15, 25, 15):
        if index == 15:
            with pytest.raises(DataError, match="x.parquet, row group 1: damaged .*; download it again"):
                rows[index]
        else:
            assert len(rows[index].values["image"]) == 1 << 10


MEASURE = """
import sys
import pyarrow as pa
from safer_jax.datasets import parquet
parquet.PIECE, parquet.CACHE = 1 << 18, 1 << 21
rows = parquet.Table({"": [sys.argv[1]]}, parquet.wants("x", {"index": parquet.NAME, "image": parquet.IMAGE}))
order = range(0, len(rows), 7) if sys.argv[2] == "in order" else [i * 7919 % len(rows) for i in range(0, len(rows), 97)]
assert all(rows[i].values["index"] == i for i in order)
print(len(rows), pa.default_memory_pool().max_memory())
"""


def peak(path, order):
    """(rows, most bytes that Arrow held) of a process that reads a table within 2 MiB in pieces of 256 KiB."""
    command = [sys.executable, "-c", MEASURE, str(path), order]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return tuple(map(int, ended.stdout.split()))


@pytest.mark.parametrize("order", ["in order", "at random"])
def test_a_hundred_thousand_rows_are_read_within_the_bound(order, tmp_path):
    path = tmp_path / "x.parquet"
    table(path, 100_000, 1000, size=256)
    rows, most = peak(path, order)
    assert rows == 100_000 and path.stat().st_size > 20 << 20
    assert most < (2 << 20) + (2 << 18) + 4.5 * 1000 * 256, "the cache, two pieces, the reading of a row group"


def test_a_row_group_larger_than_the_cache_is_not_held(tmp_path):
    table(tmp_path / "x.parquet", 320, 320, size=100 << 10)
    rows, most = peak(tmp_path / "x.parquet", "in order")
    assert rows == 320 and most < (2 << 20) + (1 << 18) + 3.5 * 320 * (100 << 10)
