"""Any data set turned once into a tensorflow-datasets array_record set, which pods read row by row (host code).

A folder holds tensorflow-datasets' own files (`dataset_info.json`, `features.json`, `prepared-SPLIT.array_record-*`) and
`prepared-SPLIT.jsonl`: what the split was made of, then a line for every finished shard with its bytes, its SHA-256 and the
rows that were left out. A shard is written beside its place and moved there whole, its line follows: a preparation that is
killed between any two steps goes on with the first shard that has no line, and ends with the same files byte for byte.
A folder in a bucket is copied shard by shard to the machine's own disk when it is first opened.
"""

import collections
import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safer_jax.datasets import DataError, RowError, reading
from safer_jax.datasets import Source as Rows
from safer_jax.shapes import Record

LICENCE = "those of the rows"
SHARD_ROWS = 1000
LISTS = ("images", "history")
ORIGIN = ("name", "split", "rows", "shard_rows", "first", "fields")
METADATA = ("features.json", "dataset_info.json")  # the latter makes it a set
AGAIN = "prepare it again with tools/prepare.py, or copy it again"


class Shard(NamedTuple):
    """A finished shard: row numbers of the source that it covers, those left out, and the file."""

    number: int
    rows: int  # rows in it
    bytes: int
    sha256: str
    bad: list[str]  # why each other row of its range is left out
    uses: dict[str, int]  # rows by "use, licence"


def prepare(
    source: Rows,
    origin: dict[str, str],
    folder: str | Path,
    check: Callable[[Record], Any] = lambda record: None,
    bad_rows: int = 0,
    shard_rows: int = SHARD_ROWS,
    threads: int = 4,
) -> list[Shard]:
    """Write the rows of `source` to `folder`, or go on where an earlier call stopped; its shards.

    `origin` tells what the rows are: name and split; what is in the folder must have been made of the same. `check` raises
    RowError for a row that cannot be used. Such rows, and those that the adapter refuses, are named on stderr and left
    out. Raises DataError beyond `bad_rows` of them, for a folder made of something else, and where another process is
    preparing the same split.
    """
    folder, split = Path(folder).expanduser(), origin["split"]
    if not split.isidentifier():
        raise DataError(f"split {split!r}: shards are named by it; a prepared split is letters, digits and _")
    origin = {**origin, "rows": len(source), "shard_rows": shard_rows, "first": _fingerprint(source)}
    origin["fields"] = list(Record._fields)
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-len(source) // shard_rows)
    with _journal(folder, origin) as journal:
        done = {shard.number: shard for shard in _shards(folder, split)}
        done = {n: shard for n, shard in done.items() if _is_there(folder / _file(split, n, count), shard)}
        if done:
            _say(f"{source.name}: {len(done)} of {count} shards are there already")
        progress = reading.Progress(source.name, len(source), sum(_length(n, shard_rows, len(source)) for n in done))
        for number in range(count):
            if number in done:
                continue
            first = number * shard_rows
            indices = range(first, min(first + shard_rows, len(source)))
            bad = sum(len(shard.bad) for shard in done.values())
            read = functools.partial(_read, source, check)
            records = progress.of(reading.ahead(read, indices, threads))
            path = folder / _file(split, number, count)
            done[number] = _write(path, number, _good(records, source.name, bad, bad_rows))
            journal(done[number])
        shards = [done[number] for number in range(count)]
        if not sum(shard.rows for shard in shards):
            raise DataError(f"{source.name}: no usable row of {len(source)}; correct --path or --split")
        with _alone(folder):
            _describe(folder, split)
    return shards


def is_in(folder: Path) -> bool:
    """True where `folder` holds a prepared set."""
    return (folder / METADATA[1]).is_file()


class Source:
    """The rows of one split of a prepared set, each read when it is asked for; threads may share it.

    `of` is the name of the set that it was made of. Raises DataError for a set that is missing, not complete or damaged.
    An index beyond the end raises IndexError.
    """

    def __init__(self, folder: str | Path, split: str):
        import tensorflow_datasets as tfds  # here: whoever reads another set does without it
        from tensorflow_datasets.core import example_parser

        folder = Path(folder).expanduser()
        if not is_in(folder):
            known = (
                ", ".join(sorted(path.name for path in folder.iterdir())[:5] if folder.is_dir() else ()) or "nothing"
            )
            raise DataError(f"{folder}: no prepared set (dataset_info.json), it holds {known}; {AGAIN}")
        try:
            builder = tfds.builder_from_directory(folder)
        except Exception as error:  # a broken file of metadata may raise nearly anything; what it was is told
            raise DataError(f"{folder}: metadata cannot be read ({type(error).__name__}: {error}); {AGAIN}") from error
        if split not in builder.info.splits:
            known = ", ".join(builder.info.splits)
            raise DataError(
                f"{folder}: no split {split!r} is prepared, there is {known}; correct the split or prepare it"
            )
        shards = _shards(folder, split)
        for shard in shards:
            path = folder / _file(split, shard.number, len(shards))
            if not _is_there(path, shard):
                found = f"has {path.stat().st_size} bytes" if path.is_file() else "is missing"
                raise DataError(f"{path}: {found}, want {shard.bytes}; copy the set again")
        self.name, self._folder = f"prepared/{split}", folder
        self.of = _origin(folder / _journal_name(split))["name"]
        raw = tfds.decode.DeserializeMethod.RAW_BYTES  # decoding is for images.decode, which has limits
        self._rows = builder.as_data_source(split=split, deserialize_method=raw)
        self._parser = example_parser.ExampleParserNp(builder.info.features.get_serialized_info())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: row {index} of {len(self)}")
        try:
            row = self._parser.parse_example(self._rows[index])
        except Exception as error:  # array_record raises its own kinds for bits that do not match their checksum
            raise DataError(f"{self._folder}, {self.name} row {index}: damaged ({error}); {AGAIN}") from error
        texts = {name: row[name].decode() for name in Record._fields if name in row and name not in LISTS}
        history = tuple(turn.decode() for turn in row["history"])
        return Record(**texts, images=tuple(bytes(image) for image in row["images"]), history=history)


def stage(uri: str, split: str, root: str | Path) -> Path:
    """Copy a prepared split from a bucket (any address that etils.epath reads) to `root`, once; the local folder.

    Every shard is checked against its SHA-256; a copy that was interrupted goes on with the next shard.
    Raises DataError where something is missing, differs, or the bucket cannot be read.
    """
    from etils import epath

    try:
        remote = epath.Path(uri)
        listed = (remote / _journal_name(split)).read_bytes()
        target = Path(root).expanduser() / "staged" / hashlib.sha256(uri.encode() + listed).hexdigest()[:16]
        target.mkdir(parents=True, exist_ok=True)
        shards = _shards(remote, split)
        progress = reading.Progress(f"copying {uri} to {target}", sum(shard.bytes for shard in shards), 0, "bytes")
        for shard in shards:
            name = _file(split, shard.number, len(shards))
            if not _is_there(target / name, shard):
                _copy(remote / name, target / name, shard)
            progress.add(shard.bytes)
        for name, content in ((_journal_name(split), listed), *((n, (remote / n).read_bytes()) for n in METADATA)):
            _put(target / name, content)
    except DataError:
        raise
    except Exception as error:  # every bucket has its own errors; what it was is told
        raise DataError(
            f"{uri}: split {split!r} cannot be copied from there ({type(error).__name__}: {error}); correct the address, "
            "which is that of a folder that tools/prepare.py wrote, install the bucket's file system (gs://: gcsfs, "
            "s3://: s3fs), or mount it and give the folder"
        ) from error
    return target


def _read(source: Rows, check: Callable[[Record], Any], index: int) -> Record | str:
    try:
        record = source[index]
        check(record)
    except RowError as error:
        return str(error)
    return record


def _good(records: Iterator[Record | str], name: str, bad: int, budget: int) -> Iterator[Record | str]:
    """The same; a reason to leave a row out is said on stderr, and one too many ends the preparation."""
    for record in records:
        if isinstance(record, str):
            bad += 1
            _say(f"{name}: left out, {record}")
            if bad > budget:
                raise DataError(
                    f"{name}: {bad} bad rows, --bad-rows allows {budget}; mend them or raise it, the same command then "
                    f"goes on. The last: {record}"
                )
        yield record


def _write(path: Path, number: int, records: Iterator[Record | str]) -> Shard:
    """Write one shard and give it its name when it is whole."""
    from array_record.python import array_record_module

    bad, uses, rows, partial = [], collections.Counter(), 0, path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")  # any row is read alone
    try:
        for record in records:
            if isinstance(record, str):
                bad.append(record)
                continue
            writer.write(_serialise(record))
            uses[f"{record.use}, {record.licence or 'no licence named'}"] += 1
            rows += 1
    finally:
        writer.close()
    sha256, size = _digest(partial)
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    return Shard(number, rows, size, sha256, bad, dict(sorted(uses.items())))


@functools.cache
def _features() -> Any:
    import tensorflow_datasets as tfds

    features = tfds.features
    texts = {name: features.Text() for name in Record._fields if name not in LISTS}
    lists = {
        "images": features.Sequence(features.Image(shape=(None, None, None))),
        "history": features.Sequence(features.Text()),
    }
    return features.FeaturesDict({**texts, **lists})


@functools.cache
def _serialiser() -> Any:
    from tensorflow_datasets.core import example_serializer

    return example_serializer.ExampleSerializer(_features().get_serialized_info())


def _serialise(record: Record) -> bytes:
    row = {**record._asdict(), "images": list(record.images), "history": list(record.history)}
    example = _serialiser().get_tf_example(_features().encode_example(row))
    return example.SerializeToString(deterministic=True)  # else its fields stand in another order in every process


def _describe(folder: Path, by: str) -> None:
    """Write tensorflow-datasets' own files for the splits of `folder` that are complete; each appears whole. `by`: the split
    that was just prepared, whose journal is held."""
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core import dataset_info, naming, splits

    infos, told = [], []
    for path in sorted(folder.glob(_journal_name("*"))):
        origin, shards = _origin(path), _shards(folder, split := _split_of(path))
        count = -(-origin["rows"] // origin["shard_rows"])
        if origin["fields"] != list(Record._fields):
            raise DataError(
                f"{path}: rows of another version of this program; prepare both splits anew in another --out"
            )
        if len(shards) < count or not all(_is_there(folder / _file(split, s.number, count), s) for s in shards):
            continue
        template = naming.ShardedFileTemplate(
            data_dir=epath.Path(folder),
            template=naming.DEFAULT_FILENAME_TEMPLATE,
            dataset_name="prepared",
            split=split,
            filetype_suffix="array_record",
        )
        size, lengths = sum(shard.bytes for shard in shards), [shard.rows for shard in shards]
        infos.append(splits.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=template))
        uses = sum((collections.Counter(shard.uses) for shard in shards), collections.Counter())
        rows = "; ".join(f"{count:,} rows ({use})" for use, count in uses.items())
        told.append(f"{split} was made of {origin['name']}, split {origin['split']}: {rows}.")
    identity = dataset_info.DatasetIdentity("prepared", tfds.core.Version("1.0.0"), str(folder), "")
    info = dataset_info.DatasetInfo(
        builder=identity, features=_features(), description=" ".join(told), disable_shuffling=True
    )
    info.set_file_format("array_record")
    info.set_splits(splits.SplitDict(infos))
    made = folder / f".info-{by}"
    shutil.rmtree(made, ignore_errors=True)  # of a call that was killed here
    made.mkdir()
    info.write_to_directory(made)
    for name in METADATA:
        os.replace(made / name, folder / name)
    shutil.rmtree(made)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process does this with the folder: two splits may be complete at once, and each tells of both."""
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


@contextlib.contextmanager
def _journal(folder: Path, origin: dict[str, Any]) -> Iterator[Callable[[Shard], None]]:
    """A function that notes a finished shard. A line that a kill cut short is taken away."""
    path = folder / _journal_name(origin["split"])
    with open(path, "ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{path}: another process is preparing this split; wait for it, or end it") from error
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))

        def note(line: dict[str, Any]) -> None:
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

        if not whole:
            note({name: origin[name] for name in ORIGIN})
        found = json.loads(whole.splitlines()[0]) if whole else origin
        changed = [
            f"{name} {found.get(name)!r} -> {origin[name]!r}" for name in ORIGIN if found.get(name) != origin[name]
        ]
        if changed:
            raise DataError(
                f"{path}: this split is made of something else ({', '.join(changed)}); choose another --out, or remove it"
            )
        yield lambda shard: note(shard._asdict())


def _shards(folder: Any, split: str) -> list[Shard]:
    """The finished shards of a split, in order; of two lines about one the later counts."""
    path = folder / _journal_name(split)
    try:
        lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")][1:]
        found = {shard.number: shard for shard in (Shard(**json.loads(line)) for line in lines)}
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path}: is no list of shards ({error}); {AGAIN}") from error
    return [found[number] for number in sorted(found)]


def _origin(journal: Path) -> dict[str, Any]:
    """What a split was made of."""
    return json.loads(journal.read_bytes().partition(b"\n")[0])


def _is_there(path: Path, shard: Shard) -> bool:
    return path.is_file() and path.stat().st_size == shard.bytes


def _copy(remote: Any, path: Path, shard: Shard) -> None:
    digest = hashlib.sha256()
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            with remote.open("rb") as theirs:
                while block := theirs.read(1 << 23):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != shard.sha256:
                raise DataError(f"{remote}: its SHA-256 is not that of the set; {AGAIN}")
            os.replace(file.name, path)  # of two processes that copy at once either copy will do
        finally:
            Path(file.name).unlink(missing_ok=True)


def _put(path: Path, content: bytes) -> None:
    """Write a small file that appears whole, whoever else writes it."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    os.replace(file.name, path)


def _journal_name(split: str) -> str:
    return f"prepared-{split}.jsonl"


def _split_of(path: Path) -> str:
    return path.name.removeprefix("prepared-").removesuffix(".jsonl")


def _file(split: str, number: int, count: int) -> str:
    return f"prepared-{split}.array_record-{number:05d}-of-{count:05d}"


def _length(number: int, shard_rows: int, rows: int) -> int:
    return min(shard_rows, rows - number * shard_rows)


def _fingerprint(source: Rows) -> str:
    """Of the first row that can be read: what another set in the same folder would change."""
    for index in range(min(len(source), 100)):
        try:
            return hashlib.sha256(_serialise(source[index])).hexdigest()[:16]
        except RowError:
            continue
    return ""


def _digest(path: Path) -> tuple[str, int]:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
