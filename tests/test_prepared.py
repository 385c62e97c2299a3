"""datasets/prepared.py and tools/prepare.py: every field comes back, kills lose nothing, bad rows, a bucket that is a fake."""

import concurrent.futures
import hashlib
import io
import json
import pathlib
import subprocess
import sys

import fsspec
import pytest
import safetag_files
import tensorflow_datasets as tfds
from etils import epath
from fake_rows import Rows
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from safer_jax.datasets import DataError, RowError, adapters, prepared
from safer_jax.shapes import Record

ROOT = pathlib.Path(__file__).parents[1]
TOOL = ROOT / "tools" / "prepare.py"


def record(number: int, **fields) -> Record:
    """Every field differs from its default and from its neighbours."""
    texts = {name: f"{name} {number} é\n" for name in Record._fields if name not in ("images", "history")}
    lists = {
        "images": tuple(bytes([number, image, 0, 0]) for image in range(number % 3)),
        "history": ("a", "") * (number % 2),
    }
    return Record(**{**texts, **lists, "use": "train", "licence": "MIT", **fields})


def prepare(folder, rows, **options):
    return prepared.prepare(Rows(rows), {"name": "rows", "split": "train"}, folder, **options)


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_every_field_comes_back(tmp_path):
    rows = [record(number) for number in range(7)]
    shards = prepare(tmp_path, rows, shard_rows=3)
    assert [(shard.number, shard.rows, shard.uses) for shard in shards] == [
        (number, count, {"train, MIT": count}) for number, count in enumerate((3, 3, 1))
    ]
    source = prepared.Source(tmp_path, "train")
    assert [source[index] for index in range(len(source))] == rows
    with pytest.raises(IndexError, match="row 7 of 7"):
        source[7]


def test_others_read_it_as_any_set_of_tensorflow_datasets(tmp_path):
    files = [safetag_files.picture(form, number) for number, form in enumerate(("png", "jpeg"))]
    prepare(tmp_path, [record(number, images=(file,)) for number, file in enumerate(files)])
    builder = tfds.builder_from_directory(tmp_path)
    assert builder.info.splits["train"].num_examples == 2 and "2 rows (train, MIT)" in builder.info.description
    rows = builder.as_data_source("train")
    for file, row in zip(files, rows, strict=True):
        picture = Image.open(io.BytesIO(file))
        assert row["images"][0].shape == (picture.height, picture.width, 3)


def test_splits_stand_beside_each_other_and_unfinished_ones_are_not_seen(tmp_path):
    prepare(tmp_path, [record(1)])
    prepared.prepare(Rows([record(2, use="eval")]), {"name": "rows", "split": "test"}, tmp_path)
    with pytest.raises(DataError):
        prepared.prepare(Rows([RowError("bad")]), {"name": "rows", "split": "dev"}, tmp_path)
    assert prepared.Source(tmp_path, "train")[0].id == record(1).id
    assert prepared.Source(tmp_path, "test")[0].use == "eval"
    with pytest.raises(DataError, match="no split 'dev' is prepared, there is test, train"):
        prepared.Source(tmp_path, "dev")


def test_bad_rows_are_named_and_counted_and_too_many_stop(tmp_path, capsys):
    rows = [RowError(f"row {number} is bad") if number in (0, 1, 5) else record(number) for number in range(8)]
    with pytest.raises(
        DataError, match="rows/train: 3 bad rows, --bad-rows allows 2; .* goes on. The last: row 5 is bad"
    ):
        prepare(tmp_path, rows, bad_rows=2, shard_rows=2)
    assert not (tmp_path / "dataset_info.json").exists()
    shards = prepare(tmp_path, rows, bad_rows=3, shard_rows=2)  # the same call goes on
    assert [shard.rows for shard in shards] == [0, 2, 1, 2] and shards[2].bad == ["row 5 is bad"]
    assert "rows/train: left out, row 1 is bad" in (said := capsys.readouterr().err)
    assert "2 of 4 shards are there already" in said
    source = prepared.Source(tmp_path, "train")
    assert [source[index] for index in range(len(source))] == [row for row in rows if isinstance(row, Record)]
    with pytest.raises(DataError, match="no usable row of 1"):
        prepare(tmp_path / "none", [RowError("bad")], bad_rows=1)


def test_a_folder_of_something_else_is_refused(tmp_path):
    prepare(tmp_path, [record(1), record(2)])
    for rows, changed in (([record(1)], "rows 2 -> 1"), ([record(3), record(2)], "first ")):
        with pytest.raises(DataError, match=f"made of something else .{changed}.*choose another --out"):
            prepare(tmp_path, rows)
    with pytest.raises(DataError, match=r"split 'train\[:5\]'.*letters, digits"):
        prepared.prepare(Rows([record(1)]), {"name": "rows", "split": "train[:5]"}, tmp_path)


def test_one_process_at_a_time(tmp_path):
    origin = {"name": "rows", "split": "train", "rows": 1, "shard_rows": 1000, "first": "", "fields": []}
    with prepared._journal(tmp_path, origin), pytest.raises(DataError, match="another process is preparing this split"):
        prepare(tmp_path, [record(1)])


def test_splits_that_are_done_at_once_are_told_one_after_the_other(tmp_path):
    prepare(tmp_path, [record(1)])
    with concurrent.futures.ThreadPoolExecutor(1) as pool, prepared._alone(tmp_path):
        test = pool.submit(prepared.prepare, Rows([record(2)]), {"name": "rows", "split": "test"}, tmp_path)
        with pytest.raises(TimeoutError):
            test.result(timeout=1)
        assert (tmp_path / "prepared-test.jsonl").is_file()
        assert not tfds.builder_from_directory(tmp_path).info.splits.get("test")
    assert test.result()[0].rows == 1 and len(prepared.Source(tmp_path, "test")) == 1


def test_damage_is_named(tmp_path):
    shards = prepare(tmp_path, [record(number, prompt="x" * 2000) for number in range(4)], shard_rows=2)
    path = tmp_path / prepared._file("train", 1, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        DataError, match=f"00001-of-00002: has {shards[1].bytes - 1} bytes, want {shards[1].bytes}; copy"
    ):
        prepared.Source(tmp_path, "train")
    path.unlink()
    with pytest.raises(DataError, match="00001-of-00002: is missing"):
        prepared.Source(tmp_path, "train")
    path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
    source = prepared.Source(tmp_path, "train")
    assert source[0] == record(0, prompt="x" * 2000)
    with pytest.raises(DataError, match="prepared/train row 3: damaged"):
        source[3]
    with pytest.raises(DataError, match="no prepared set .dataset_info.json., it holds nothing; prepare"):
        prepared.Source(tmp_path / "nowhere", "train")
    (tmp_path / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="metadata cannot be read"):
        prepared.Source(tmp_path, "train")


def tool(folder, out, *more, **options):
    command = [sys.executable, str(TOOL), "--name=safetag", f"--path={folder}", "--split=train", f"--out={out}", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)


def test_the_command_decodes_every_image(tmp_path):
    folder = safetag_files.write_set(tmp_path / "set", 6, 2)
    rows = safetag_files.rows(6)
    picture = safetag_files.picture("jpeg", size=(280, 280))
    rows[2]["images"] = [{"bytes": picture[: len(picture) // 2], "path": None}]
    safetag_files.write(folder / "data" / "train-00000-of-00001.parquet", rows)
    refused = tool(folder, tmp_path / "out")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "row 'safetag/train/000002', image 1: JPEG file" in refused.stderr.splitlines()[-1]
    done = tool(folder, tmp_path / "out", "--bad-rows=1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 rows in 1 file, ") and "; 1 left out\n       5 train, none stated\n" in done.stdout
    source = adapters.load("safetag", str(tmp_path / "out"), "train")
    assert [source[index].id[-1] for index in range(5)] == list("01345")
    trusting = tool(folder, tmp_path / "trusting", "--check=header")
    assert trusting.returncode == 0 and trusting.stdout.startswith("6 rows")


# In one process that has imported everything and started no thread: the killed ones are its forks. A moment is a number of
# calls into C that the main thread makes, first before each that touches a file: the machine's pace is no matter.
KILLED = """
import json, os, random, runpy, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
import pyarrow.parquet, test_prepared
from safer_jax.datasets import prepared, safetag

TOUCHES = (os.replace, os.fsync, os.mkdir, os.rmdir)

def command(out, moment=-1):
    if (process := os.fork()) == 0:
        made, touching, told = 0, [], open(sys.argv[1] + "/calls", "w")

        def count(frame, event, called):
            nonlocal made
            made += event == "c_call"
            if event == "c_call" and called in TOUCHES:
                touching.append(made)
            if made == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.argv[1:] = [*sys.argv[2:], "--out=" + out]
        sys.setprofile(count)
        try:
            runpy.run_path({tool!r}, run_name="__main__")
        except SystemExit as ended:
            sys.setprofile(None)
            json.dump([made, touching], told)
            told.close()
            os._exit(ended.code)
    return os.waitpid(process, 0)[1]

prepared._serialise(test_prepared.record(0))
folder, kills = sys.argv[1], []
assert command(folder + "/whole") == 0
calls, touching = json.load(open(folder + "/calls"))
first = [*touching[2:9], *touching[-6:], 0, 0, 0]  # before each step of a shard, and of the end; 0: anywhere
for number, moment in enumerate(first):
    chance, out = random.Random(number), f"{{folder}}/torn{{number}}"
    moment = moment or chance.randrange(1, calls)
    while (status := command(out, moment)) != 0:
        assert os.WTERMSIG(status) == signal.SIGKILL, status
        kills.append(moment)
        moment = chance.randrange(1, calls)
        if os.path.exists(journal := out + "/prepared-train.jsonl") and chance.random() < 0.5:
            with open(journal, "ab") as file:
                file.write(b'{{"number": 1, "rows": 5, "by')  # as a machine that loses its power may leave it
print(json.dumps([calls, kills]))
"""


def test_the_command_killed_at_random_moments_ends_with_the_same_files(tmp_path):
    rows = safetag_files.rows(60)
    for number in (3, 4, 41):
        rows[number]["images"] = [{"bytes": b"no picture", "path": None}]
    safetag_files.write(tmp_path / "set" / "train.parquet", rows)
    program = KILLED.format(root=str(ROOT), tests=str(ROOT / "tests"), tool=str(TOOL))
    words = ["--name=safetag", "--split=train", f"--path={tmp_path / 'set'}", "--bad-rows=3", "--shard-rows=5"]
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    calls, kills = json.loads(done.stdout.splitlines()[-1])
    assert len(kills) >= 16 and max(kills) > 7 / 8 * calls, "in its last stretch too"
    whole = hashes(tmp_path / "whole")
    for number in range(16):
        torn = tmp_path / f"torn{number}"
        assert hashes(torn) == whole, "the files of a preparation that was let be, and none beside them"
    numbers = [json.loads(line)["number"] for line in (torn / "prepared-train.jsonl").read_text().splitlines()[1:]]
    assert numbers == list(range(12))
    source = prepared.Source(torn, "train")
    assert [int(source[index].id[-6:]) for index in range(len(source))] == [n for n in range(60) if n not in (3, 4, 41)]


class Bucket(MemoryFileSystem):
    """What fsspec finds under gs:// in a test."""

    protocol = "gs"

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/")


@pytest.fixture
def bucket(monkeypatch):
    """gs:// kept in memory: all code that reads a bucket runs, only the network is not there."""
    made = Bucket(skip_instance_cache=True)
    backend = epath.backend.fsspec_backend
    backend._get_filesystem.cache_clear()
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **options: {"gcs": made}[name])
    yield made
    backend._get_filesystem.cache_clear()
    made.store.clear()


def test_a_set_in_a_bucket_is_copied_once_and_checked(tmp_path, bucket):
    rows = [record(number) for number in range(5)]
    prepared.prepare(Rows(rows), {"name": "safetag", "split": "train"}, tmp_path / "set", shard_rows=2)
    for path in (tmp_path / "set").iterdir():
        bucket.pipe_file(f"gs://sets/mine/{path.name}", path.read_bytes())
    load = lambda: adapters.load("safetag", "gs://sets/mine", "train", str(tmp_path / "root"))
    name = prepared._file("train", 1, 3)
    whole = bucket.cat_file(f"gs://sets/mine/{name}")
    bucket.pipe_file(f"gs://sets/mine/{name}", whole[:-1] + b"x")
    with pytest.raises(DataError, match=f"gs://sets/mine/{name}: its SHA-256 is not that of the set"):
        load()
    bucket.pipe_file(f"gs://sets/mine/{name}", whole)
    bucket.rm_file(f"gs://sets/mine/{prepared._file('train', 0, 3)}")  # was copied before, and is not asked for again
    source = load()
    assert [source[index] for index in range(5)] == rows
    (folder,) = (tmp_path / "root" / "staged").iterdir()
    assert {path.name for path in folder.iterdir()} == {path.name for path in (tmp_path / "set").iterdir()}
    with pytest.raises(
        DataError, match="gs://sets/yours: split 'train' cannot be copied from there .FileNotFound.*gcsfs"
    ):
        adapters.load("safetag", "gs://sets/yours", "train", str(tmp_path / "root"))
    with pytest.raises(
        DataError,
        match="gs://sets/mine: was prepared from 'safetag', not from 'vlguard'; correct the name or the folder",
    ):
        adapters.load("vlguard", "gs://sets/mine", "train", str(tmp_path / "root"))


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    """100,000 small rows; the peak is that of the imports, 64 rows in flight and array_record's buffers."""
    program = (
        f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n"
        "import fake_rows, memory, test_prepared\nfrom safer_jax.datasets import prepared\n"
        "class Many(fake_rows.Rows):\n"
        "    def __getitem__(self, i): return test_prepared.record(i % 250, id=str(i), images=(bytes([i % 256]) * 20000,))\n"
        "before = memory.peak()\n"
        f"prepared.prepare(Many(range(100_000)), {{'name': 'many', 'split': 'train'}}, {str(tmp_path)!r})\n"
        "print(before / 2**20, memory.peak() / 2**20)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    before, peak = map(float, done.stdout.split())
    print(f"{before:.0f} MiB before, {peak:.0f} MiB at the peak")
    assert peak < 500
