"""Tables (JSON, JSONL, CSV) and image files (a folder, a .zip, a .tar) as people keep them on disk (host code).

A table is read once and held: 100,000 rows of VLGuard's form, 78 MB on disk, hold 172 MB (233 while they are read). Of an
archive only the index is held, of 100,000 images 70 MB for a zip (78 while it is read) and 22 MB for a tar (72), and an
image's bytes are read when its row is. Names that stand in a data file never lead out of the folder or archive.
"""

import csv
import io
import json
import lzma
import os
import stat
import struct
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

from safer_jax.datasets import DataError, RowError
from safer_jax.shapes import Record

MAX_BYTES = 1 << 26  # of one image file; prompt.max_image_bytes limits it further when it is decoded
POINTER = b"version https://git-lfs"  # what lies in the place of a large file that was never fetched
_BLOCK = 512  # tarfile's unit
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    RuntimeError,
    ValueError,
    EOFError,
    OSError,
)
_TAR_ERRORS = (tarfile.TarError, ValueError, EOFError, OSError)


class Row(NamedTuple):
    """The named fields of one row and where they stand; every method raises RowError that says so."""

    where: str
    values: Any
    key: str = ""  # its name in an object of rows

    @property
    def fields(self) -> Mapping[str, Any]:
        """The named fields; none where the row is no object."""
        return self.values if isinstance(self.values, Mapping) else {}

    def get(self, field: str) -> Any:
        """The value of a field that must be there."""
        if not isinstance(self.values, Mapping):
            raise RowError(f"{self.where}: {_short(self.values)} has no named fields; mend or drop the row")
        if field not in self.values:
            raise RowError(
                f"{self.where}: no field {field!r}, it has {', '.join(map(str, self.values))}; mend or drop the row"
            )
        return self.values[field]

    def text(self, field: str) -> str:
        """A text that says something."""
        value = self.get(field)
        if not isinstance(value, str) or not value.strip():
            self.refuse(field, value, "want a text; write one or drop the row")
        try:
            value.encode()
        except UnicodeEncodeError:
            self.refuse(field, value, "half a surrogate pair is no character; write the text again")
        return value

    def text_if_any(self, field: str) -> str:
        """A text, "" where the field is absent, null or blank."""
        value = self.fields.get(field)
        return "" if value is None or isinstance(value, str) and not value.strip() else self.text(field)

    def own_id(self, field: str) -> str:
        """A name or number that the set gives its row."""
        value = self.get(field)
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else self.text(field)

    def of(self, field: str, known: Mapping[Any, Any]) -> Any:
        """What a field's value stands for in `known`."""
        value = self.get(field)
        if not isinstance(value, str | bool) or value not in known:
            self.refuse(field, value, f"want one of {', '.join(map(repr, known))}; correct it or drop the row")
        return known[value]

    def texts(self, field: str) -> list[str]:
        """A list of texts, at least one."""
        names = {f"{field}[{number}]": inner.values for number, inner in enumerate(self.rows(field))}
        return [Row(self.where, names).text(name) for name in names]

    def row(self, field: str) -> "Row":
        """The fields inside a field."""
        return Row(f"{self.where}, {field}", self.get(field))

    def rows(self, field: str) -> list["Row"]:
        """The rows inside a field, at least one."""
        value = self.get(field)
        if not isinstance(value, list) or not value:
            self.refuse(field, value, "want a list of at least one; mend or drop the row")
        return [Row(f"{self.where}, {field}[{number}]", inner) for number, inner in enumerate(value)]

    def refuse(self, field: str, value: Any, why: str) -> None:
        """Raise the RowError that shows a field's value."""
        raise RowError(f"{self.where}, field {field!r}: {_short(value)}: {why}")


class Rows:
    """A Source whose rows all are asked from `items`, whatever a subclass's `_record(item, index)` makes a record of."""

    def __init__(self, source: str, split: str, items: Sequence[Any], path: Path):
        self.name, self._items = f"{source}/{split}", items
        if not items:
            raise DataError(f"{path}: split {split!r} has no rows; get the file again")

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: row {index} of {len(self)}")
        return self._record(self._items[index], index)

    def _record(self, item: Any, index: int) -> Record:
        raise NotImplementedError


def check_split(source: str, split: str, splits: Sequence[str]) -> None:
    """Raise DataError for a split that the set does not have."""
    if split not in splits:
        raise DataError(f"{source} has no split {split!r}; write one of {', '.join(splits)}")


def find(folder: str | Path, *names: str) -> Path:
    """The first of `names`, paths below `folder`, that exists. Raises DataError that tells what lies there instead."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{folder}: {'is a file' if folder.is_file() else 'no such folder'}; name the folder that holds {names[0]}"
        )
    for name in names:
        if (folder / name).exists():
            return folder / name
    found = sorted(path.name for path in folder.iterdir())
    held = ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "")
    none = f"none of {', '.join(names)}" if len(names) > 1 else f"no {names[0]}"
    raise DataError(f"{folder}: holds {none}, but {held or 'nothing'}; correct the folder or get the files")


def table(path: Path, fields: Sequence[str] = ()) -> list[Row]:
    """The rows of a .json (a list, or objects by id), .jsonl or .csv file, UTF-8 with or without its mark.

    Raises DataError for a file that is damaged, in another encoding, or in which no row has one of `fields`. A line of
    JSONL or CSV that cannot be read, and an entry that is no object, is a row whose access raises RowError.
    """
    if path.suffix == ".csv":
        rows = _csv(path)
    elif path.suffix == ".jsonl":
        rows = _jsonl(path)
    else:
        rows = entries(path, read_json(path))
    known = {field: None for row in rows for field in row.fields}
    missing = [field for field in fields if field not in known]
    if rows and missing:
        raise DataError(
            f"{path}: no row has the field {', '.join(missing)}; they have {', '.join(map(str, known)) or 'none'}: "
            "this is another set's file, correct the folder"
        )
    return rows


def entries(path: Path, value: Any) -> list[Row]:
    """The rows of a JSON list, or of an object whose keys are the rows' ids."""
    if isinstance(value, list):
        return [Row(f"{path}, row {number}", inner) for number, inner in enumerate(value)]
    if isinstance(value, dict):
        return [Row(f"{path}, key {key!r}", inner, key) for key, inner in value.items()]
    raise DataError(f"{path}: holds {_short(value)}, want a list of rows or an object of rows by id; get it again")


def read_json(path: Path) -> Any:
    """The value of a .json file. Raises DataError that names line and column; a key that stands twice is refused."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: the key {twice!r} stands twice in one object; keep one")
        return value

    text = _text(path)
    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); get the file again"
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}: objects nested deeper than Python reads; get the file again") from error


def _jsonl(path: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                value = line  # no object: whoever asks for a field is told the line
            rows.append(Row(f"{path}, line {number}", value))
    return rows


def _csv(path: Path) -> list[Row]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(reader, [])
        for cells in reader:
            if cells:
                named = dict(zip(header, cells, strict=True)) if len(cells) == len(header) else cells
                rows.append(Row(f"{path}, line {reader.line_num}", named))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not CSV ({error}); get the file again") from error
    return rows


def _text(path: Path) -> str:
    data = path.read_bytes()
    if data.startswith(POINTER):
        raise DataError(f"{path}: a Git LFS pointer, not the file; get it with `git lfs pull`")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + data.startswith(b"\xef\xbb\xbf") * 3  # utf-8-sig counts from behind its mark
    else:
        if "\0" not in text:
            return text
        at = data.index(b"\0")
    kind = "UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[at] == 0 else "CP1252"
    line = data.count(b"\n", 0, at) + 1
    raise DataError(
        f"{path}, line {line}: byte 0x{data[at]:02x} at offset {at} is not UTF-8 text; "
        f"convert the file, perhaps by `iconv -f {kind} -t UTF-8`"
    )


class Images:
    """Image files by name below a folder, in a .zip or in a .tar; threads may share it.

    A name may leave out the one folder that all the files lie in (archives wrap their content in one or do not).
    Raises DataError for an archive that is damaged, empty or compressed as a whole.
    """

    def __init__(self, path: str | Path, max_bytes: int = MAX_BYTES):
        self.path, self._max_bytes = Path(path).expanduser(), max_bytes
        if self.path.is_dir():
            self._store: _Store = _Folder(self.path)
        elif self.path.suffix.lower() in (".zip", ".tar"):
            with self.path.open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    raise DataError(f"{self.path}: a Git LFS pointer, not the file; get it with `git lfs pull`")
            self._store = (_Zip if self.path.suffix.lower() == ".zip" else _Tar)(self.path)
        else:
            raise DataError(f"{self.path}: want a folder, a .zip or a .tar of images; unpack it into a folder")

    def read(self, name: str, where: str) -> bytes:
        """The bytes of one file. Raises RowError, beginning with `where`, for a name that leads outside, a file that is
        missing, damaged or larger than the limit (known before it is read)."""
        where = f"{where}, image {name!r}"
        member = _inside(name)
        if member is None:
            raise RowError(f"{where}: leads out of {self.path}; correct the name or drop the row")
        try:
            member, size = self._find(member)
            data = self._store.read(member) if member and size <= self._max_bytes else b""
        except _ZIP_ERRORS as error:
            raise RowError(
                f"{where}: damaged in {self.path} ({type(error).__name__}: {error}); get the images again or drop the row"
            ) from error
        if member is None:
            raise RowError(f"{where}: not in {self.path}; get the images again or drop the row")
        if size > self._max_bytes:
            raise RowError(
                f"{where}: {size} bytes in {self.path}, more than the limit of {self._max_bytes}; shrink it or drop the row"
            )
        if data.startswith(POINTER):
            raise RowError(f"{where}: a Git LFS pointer lies in {self.path}, not the file; get it with `git lfs pull`")
        return data

    def _find(self, member: str) -> tuple[str | None, int]:
        for name in (member, f"{self._store.top}/{member}"):
            size = self._store.size(name)
            if size is not None:
                return name, size
        return None, 0


class _Store(Protocol):
    top: str  # the one folder that all files lie in, "" where there is none

    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file."""

    def read(self, name: str) -> bytes: ...


class _Folder:
    def __init__(self, path: Path):
        self._path, self.top = path, ""
        with os.scandir(path) as found:
            shown = (entry for entry in found if not entry.name.startswith((".", "__MACOSX")))
            first, second = next(shown, None), next(shown, None)
        if first and not second and first.is_dir():
            self.top = first.name

    def size(self, name: str) -> int | None:
        try:
            found = os.stat(self._path / name)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def read(self, name: str) -> bytes:
        return (self._path / name).read_bytes()


class _Zip:
    def __init__(self, path: Path):
        self._lock = threading.Lock()  # one file handle, and zipfile counts its users without a lock
        try:
            self._zip = zipfile.ZipFile(path)
        except _ZIP_ERRORS as error:
            raise DataError(f"{path}: not a whole zip file ({error}); get it again") from error
        members = [member for member in self._zip.infolist() if not member.is_dir()]
        self._index, self.top = _index(path, [(member.filename, member) for member in members])

    def size(self, name: str) -> int | None:
        return self._index[name].file_size if name in self._index else None

    def read(self, name: str) -> bytes:
        with self._lock:
            return self._zip.read(self._index[name])


class _Tar:
    def __init__(self, path: Path):
        self._file = path.open("rb")
        try:
            with tarfile.open(fileobj=self._file, mode="r:") as tar:
                members = [
                    (member.name, (member.offset_data, member.size))
                    for member in tar
                    if member.isreg() and not member.issparse()
                ]
                end = os.pread(self._file.fileno(), _BLOCK, tar.offset)
        except _TAR_ERRORS as error:
            raise DataError(
                f"{path}: not a whole, uncompressed tar file ({error}); get it again, or unpack it into a folder"
            ) from error
        if end != bytes(_BLOCK):  # tarfile takes a broken header for the end
            raise DataError(f"{path}: ends or is broken behind {len(members)} files; get it again")
        self._index, self.top = _index(path, members)

    def size(self, name: str) -> int | None:
        return self._index[name][1] if name in self._index else None

    def read(self, name: str) -> bytes:
        offset, size = self._index[name]
        data = os.pread(self._file.fileno(), size, offset)  # no seek, so threads need no lock
        if len(data) < size:
            raise EOFError(f"{len(data)} of {size} bytes")
        return data


def _index(path: Path, members: Sequence[tuple[str, Any]]) -> tuple[dict[str, Any], str]:
    """Files by name, and the one folder they all lie in."""
    index = {name: member for raw, member in members if (name := _inside(raw)) and not name.startswith("__MACOSX/")}
    if not index:
        raise DataError(f"{path}: holds no file; get it again")
    tops = {name.partition("/")[0] if "/" in name else "" for name in index}
    return index, tops.pop() if len(tops) == 1 else ""


def _inside(name: str) -> str | None:
    """A name as a plain path below a folder, None where it leads elsewhere."""
    path = PurePosixPath(name.replace("\\", "/"))
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        return None
    return str(path)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
