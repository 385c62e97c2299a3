"""Random access to the rows of parquet files with embedded images, within a bound on memory (host code).

Row groups are read in pieces of about PIECE bytes, and of the pieces the last CACHE bytes are kept, so that neither
random access reads a row group again for every row nor a group of a thousand photographs has to be held. Reading in
order goes through a group once; a row that lies before what was read last has its group read again up to it. pyarrow
itself holds up to 3.2 times what its largest page unpacks to (4.3 times where a dictionary holds the images, as with
hundreds of bytes each), and a writer may put 1,024 images into one page. So the peak is CACHE + 2 PIECE + 3.2 to 4.3
times the largest row group: measured, the process holds 2.2 GB for a group of 600 images of 1 MB and 0.5 GB for the
hub's groups of 100 rows with images of 300 kB. 100,000 rows add 0.3 MB.
"""

import bisect
import collections
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from safer_jax.datasets import DataError, files

PIECE = 1 << 24  # bytes
CACHE = 1 << 28  # bytes
DOWNLOAD = "download it again"


class Kind(NamedTuple):
    """What a column may hold."""

    holds: Callable[[pa.DataType], bool]
    name: str


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _is_image(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_bytes(kind)
    position = kind.get_field_index("bytes")
    return position >= 0 and _is_bytes(kind.field(position).type)


def _is_images(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _is_image(kind.value_type)


TEXT = Kind(_is_text, "string")
NAME = Kind(lambda kind: _is_text(kind) or pa.types.is_integer(kind), "string or integer")
FLAG = Kind(lambda kind: _is_text(kind) or pa.types.is_boolean(kind), "string or bool")
STRUCT = Kind(pa.types.is_struct, "struct")
IMAGE = Kind(_is_image, "struct<bytes: binary, ...> or binary")
IMAGES = Kind(_is_images, "list<struct<bytes: binary, ...>>")

Check = Callable[[Path, pa.Schema], list[str]]  # the columns to be read of a file; raises DataError for another schema


def wants(name: str, columns: Mapping[str, Kind], extras: Mapping[str, Kind] | None = None) -> Check:
    """A check that every column of `columns` is there, and that they and those of `extras` that are there hold what
    they should; a column of nulls passes for an extra. `name` is the data set's, for the message."""

    def check(path: Path, schema: pa.Schema) -> list[str]:
        missing = [column for column in columns if column not in schema.names]
        if missing:
            raise DataError(
                f"{path}: no column {', '.join(missing)}; it has {', '.join(schema.names)}, and data.name {name!r} "
                f"wants {', '.join(columns)}: correct data.path or data.name"
            )
        found = {**columns, **{column: kind for column, kind in (extras or {}).items() if column in schema.names}}
        for column, kind in found.items():
            has = schema.field(column).type
            if not kind.holds(has) and not (column not in columns and pa.types.is_null(has)):
                raise DataError(
                    f"{path}: column {column} holds {has}, want {kind.name}; correct data.path or data.name"
                )
        return list(found)

    return check


class _Group(NamedTuple):
    """A row group of a file."""

    file: pq.ParquetFile
    path: Path
    columns: list[str]
    number: int  # in the file
    first: int  # its first row's number in the file
    key: str  # the part it belongs to, and
    offset: int  # its first row's number there
    rows: int
    step: int  # rows of a piece


class Table(Sequence[files.Row]):
    """The rows of several files as one sequence, each with the columns that `check` names; threads may share it.

    `parts` names lists of files, in order; a row's `key` is "PART/NUMBER" or, in a part named "", "NUMBER", six digits
    counted from the part's first row. Raises DataError for a file that is damaged (`again` tells what to do about it),
    here or when a row of it is read.
    """

    def __init__(self, parts: Mapping[str, Sequence[Path]], check: Check, again: str = DOWNLOAD):
        self._again, self._lock = again, threading.Lock()
        self._groups: list[_Group] = []
        self._starts = [0]
        for part, paths in parts.items():
            offset = 0
            for path in paths:
                for group in self._open(path, check, part, offset):
                    self._groups.append(group)
                    self._starts.append(self._starts[-1] + group.rows)
                    offset += group.rows
        self._cache: collections.OrderedDict[tuple[int, int], pa.RecordBatch] = collections.OrderedDict()
        self._cached = 0  # bytes
        self._reading: tuple[int, int, Iterator[pa.RecordBatch]] | None = None  # group, its next piece, its pieces

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> files.Row:
        number = bisect.bisect_right(self._starts, index) - 1
        group = self._groups[number]
        inside = index - self._starts[number]
        piece, at = divmod(inside, group.step)
        with self._lock:  # a ParquetFile reads for one thread at a time
            batch = self._piece(number, piece)
        values = batch.slice(at, 1).to_pylist()[0]
        key = f"{group.key}/{group.offset + inside:06d}" if group.key else f"{group.offset + inside:06d}"
        return files.Row(f"{group.path}, row {group.first + inside}", values, key)

    def _open(self, path: Path, check: Check, part: str, offset: int) -> Iterator[_Group]:
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            with path.open("rb") as raw:
                if raw.read(len(files.POINTER)) == files.POINTER:
                    raise DataError(f"{path}: a Git LFS pointer, not the file; get it with `git lfs pull`") from error
            raise DataError(f"{path}: not a whole parquet file ({error}); {self._again}") from error
        columns, first = check(path, file.schema_arrow), 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            leaves = (group.column(i) for i in range(group.num_columns))
            size = sum(leaf.total_uncompressed_size for leaf in leaves if leaf.path_in_schema.split(".")[0] in columns)
            step = max(1, min(group.num_rows, PIECE * group.num_rows // max(size, 1)))
            yield _Group(file, path, columns, number, first, part, offset + first, group.num_rows, step)
            first += group.num_rows

    def _piece(self, number: int, piece: int) -> pa.RecordBatch:
        """A piece of a row group, from the cache or read."""
        if (number, piece) in self._cache:
            self._cache.move_to_end((number, piece))
            return self._cache[number, piece]
        group = self._groups[number]
        reading, self._reading = self._reading, None  # an error leaves no half-read group behind
        try:
            if reading is None or reading[0] != number or reading[1] > piece:
                pieces = group.file.iter_batches(group.step, [group.number], group.columns, use_threads=False)
                reading = (number, 0, pieces)
            _, ahead, pieces = reading
            for _ in range(ahead, piece):
                next(pieces)
            batch = next(pieces)
        except (pa.ArrowException, OSError, StopIteration) as error:
            raise DataError(
                f"{group.path}, row group {group.number}: damaged ({error or 'rows are missing'}); {self._again}"
            ) from error
        if (piece + 1) * group.step < group.rows:
            self._reading = (number, piece + 1, pieces)
        self._cache[number, piece] = batch
        self._cached += batch.get_total_buffer_size()
        while len(self._cache) > 1 and self._cached > CACHE:
            self._cached -= self._cache.popitem(last=False)[1].get_total_buffer_size()
        return batch


def images(row: files.Row, field: str) -> tuple[bytes, ...]:
    """The encoded files in a column of one image or of a list of them. Raises RowError where one has no bytes."""
    value = row.get(field)
    named = {f"{field}[{i}]": image for i, image in enumerate(value)} if isinstance(value, list) else {field: value}
    found = []
    for name, image in named.items():
        data = image.get("bytes") if isinstance(image, dict) else image
        if not data:
            row.refuse(name, image, "an image without bytes; embed the file's bytes or drop the row")
        found.append(data)
    return tuple(found)


def paths(folder: str | Path, split: str, config: str = "") -> list[Path]:
    """The files of a split, and of one of the set's configs, in order: `SPLIT.parquet`, `SPLIT-*.parquet` or
    `SPLIT/*.parquet` in `folder` or its `data/`, there in the folder `CONFIG` or named `CONFIG-SPLIT...`.

    Raises DataError where there are none, where a shard is missing, and where two places hold them.
    """
    root = _root(folder)
    found = [held for place in (root, root / "data") if (held := _held(place, split, config))]
    if not found:
        under = sorted(path for pattern in _ANYWHERE for path in root.glob(pattern))
        names = ", ".join(str(path.relative_to(root)) for path in under[:12]) or "no parquet file"
        names += f" and {len(under) - 12} more" if len(under) > 12 else ""
        of = f" of {config!r}" if config else ""
        raise DataError(
            f"{root}: no {split}-*.parquet for split {split!r}{of}, it holds {names}; correct data.path or the split"
        )
    if len(found) > 1:
        raise DataError(
            f"{root}: split {split!r} is there twice, as {found[0][0]} and {found[1][0]}; move one of them away"
        )
    names = [path.name for path in found[0]]
    shards = [re.search(r"-(\d+)-of-(\d+)\.parquet$", name) for name in names]
    totals = {int(shard[2]) for shard in shards if shard}
    if totals and (len(totals) > 1 or sorted(int(shard[1]) for shard in shards if shard) != list(range(max(totals)))):
        raise DataError(
            f"{found[0][0].parent}: split {split!r} is not complete, it holds {', '.join(names)}; "
            "download the missing files"
        )
    return found[0]


def configs(folder: str | Path, split: str) -> list[str]:
    """The names of the folders, in `folder` or its `data/`, that hold files of a split; sorted."""
    root = _root(folder)
    places = [place for place in (root, root / "data") if place.is_dir()]
    found = {inner.name for place in places for inner in place.iterdir() if inner.is_dir()}
    return sorted(name for name in found if any(_held(place, split, name) for place in places))


def is_in(folder: str | Path) -> bool:
    """Whether a folder holds parquet files where `paths` looks for them."""
    root = Path(folder).expanduser()
    return any(next(root.glob(pattern), None) for pattern in _ANYWHERE)


_ANYWHERE = ("*.parquet", "*/*.parquet", "*/*/*.parquet", "*/*/*/*.parquet")


def _root(folder: str | Path) -> Path:
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{root}: {'is a file' if root.is_file() else 'no such folder'}; set data.path to the folder with the set's parquet files"
        )
    return root


def _held(place: Path, split: str, config: str) -> list[Path]:
    """The files of a split in one place."""
    shape = rf"{re.escape(split)}(-.*)?\.parquet"
    held = [path for path in sorted((place / config).glob("*.parquet")) if re.fullmatch(shape, path.name)]
    if config:
        shape = f"{re.escape(config)}-{shape}"
        held += [path for path in sorted(place.glob("*.parquet")) if re.fullmatch(shape, path.name)]
    return held or sorted((place / config / split).glob("*.parquet"))
