"""SafeTag-VL-3K (SafeGRPO, arXiv 2511.12982) from its parquet files: three tags a row (host code)."""

import collections
import re
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from safer_jax.datasets import DataError, RowError
from safer_jax.shapes import SAFE, UNSAFE, Record

TAG_COLUMNS = ("text_tag", "image_tag", "combine_tag")
COLUMNS = ("prompt", "images", *TAG_COLUMNS)
LICENCE = "none stated"
_CACHE_BYTES = 1 << 30  # row groups kept, so that random access does not read a group again for every row


class Source:
    """The rows of one split, `SPLIT-*.parquet` in `folder` or its `data/`; a row group is read when a row of it is.

    Raises DataError for files that are missing, damaged or of another schema, and on access RowError for a row whose
    values are wrong. An index beyond the end raises IndexError. Threads may share it.
    """

    def __init__(self, folder: str | Path, split: str):
        self.name = f"safetag/{split}"
        self._split = split
        self._paths = _files(Path(folder).expanduser(), split)
        self._files = [_open(path) for path in self._paths]
        self._groups = [
            (number, group) for number, file in enumerate(self._files) for group in range(file.num_row_groups)
        ]
        self._starts = [0]
        for number, group in self._groups:
            self._starts.append(self._starts[-1] + self._files[number].metadata.row_group(group).num_rows)
        if not len(self):
            raise DataError(f"{self._paths[0]}: split {split!r} has no rows; download the set again")
        self._cache: collections.OrderedDict[int, pa.Table] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: row {index} of {len(self)}")
        group = next(i for i, end in enumerate(self._starts[1:]) if index < end)
        row = self._read(group).slice(index - self._starts[group], 1).to_pylist()[0]
        file, _ = self._groups[group]
        first = next(self._starts[i] for i, (number, _) in enumerate(self._groups) if number == file)
        where = f"{self._paths[file]}, row {index - first}"
        tags = {column: _tag(row[column], column, where) for column in TAG_COLUMNS}
        return Record(
            id=f"safetag/{self._split}/{index:06d}",
            source="safetag",
            images=tuple(_image(value, number, where) for number, value in enumerate(row["images"] or ())),
            prompt=_prompt(row["prompt"], where),
            expected="refuse" if tags["combine_tag"] == UNSAFE else "comply",
            licence=LICENCE,
            use="train" if self._split == "train" else "eval",
            **tags,
        )

    def _read(self, group: int) -> pa.Table:
        with self._lock:  # a ParquetFile reads for one thread at a time
            if group not in self._cache:
                number, inside = self._groups[group]
                try:
                    self._cache[group] = self._files[number].read_row_group(inside, columns=list(COLUMNS))
                except (pa.ArrowException, OSError) as error:
                    raise DataError(
                        f"{self._paths[number]}, row group {inside}: damaged ({error}); download the file again"
                    ) from error
                while len(self._cache) > 1 and sum(table.nbytes for table in self._cache.values()) > _CACHE_BYTES:
                    self._cache.popitem(last=False)
            self._cache.move_to_end(group)
            return self._cache[group]


def _files(folder: Path, split: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; set data.path to the folder with SafeTag-VL-3K's parquet files")
    found = [path for where in (folder, folder / "data") for path in sorted(where.glob("*.parquet"))]
    wanted = [path for path in found if re.fullmatch(rf"{re.escape(split)}(-.*)?\.parquet", path.name)]
    if not wanted:
        names = ", ".join(path.name for path in found) or "no parquet file"
        raise DataError(
            f"{folder}: no {split}-*.parquet for split {split!r}, it holds {names}; correct data.path or the split"
        )
    shards = [re.search(r"-(\d+)-of-(\d+)\.parquet$", path.name) for path in wanted]
    totals = {int(shard[2]) for shard in shards if shard}
    if totals and (len(totals) > 1 or sorted(int(shard[1]) for shard in shards if shard) != list(range(max(totals)))):
        names = ", ".join(path.name for path in wanted)
        raise DataError(f"{folder}: split {split!r} is not complete, it holds {names}; download the missing files")
    return wanted


def _open(path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole parquet file ({error}); download it again") from error
    schema = file.schema_arrow
    missing = [column for column in COLUMNS if column not in schema.names]
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; it has {', '.join(schema.names)}, and data.name 'safetag' "
            f"wants {', '.join(COLUMNS)}: correct data.path or data.name"
        )
    for column in COLUMNS:
        kind = schema.field(column).type
        if not (_is_images(kind) if column == "images" else pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            want = "list<struct<bytes: binary, ...>>" if column == "images" else "string"
            raise DataError(f"{path}: column {column} holds {kind}, want {want}; correct data.path or data.name")
    return file


def _is_images(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not pa.types.is_struct(kind.value_type):
        return False
    position = kind.value_type.get_field_index("bytes")
    if position < 0:
        return False
    inner = kind.value_type.field(position).type
    return pa.types.is_binary(inner) or pa.types.is_large_binary(inner)


def _tag(value: Any, column: str, where: str) -> str:
    if value not in (SAFE, UNSAFE):
        raise RowError(f"{where}, column {column}: {value!r} is not a tag; write {SAFE!r} or {UNSAFE!r}")
    return value


def _image(value: Any, number: int, where: str) -> bytes:
    if not value or not value["bytes"]:
        path = value.get("path") if value else None
        raise RowError(f"{where}, column images: image {number} has no bytes (path {path!r}); embed the file's bytes")
    return value["bytes"]


def _prompt(value: Any, where: str) -> str:
    if not value or not value.strip():
        raise RowError(f"{where}, column prompt: {value!r} asks nothing; write a question or drop the row")
    return value
