"""Safetensors folders, read and written tensor by tensor at their offsets, never as a whole (host code).

Format: as the safetensors project describes it. Files are not mapped: what has been read or written is the
kernel's cache and not this process's memory.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

# Storage types by their name in a header.
DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
HEADER_BYTES = 1 << 27  # the format's own limit is 100 MB
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

Described = tuple[tuple[int, ...], str]  # a tensor's shape, its type as in a header


class ConvertError(ValueError):
    """Weights that cannot be read, converted or written; the message lists every problem found, not only the first."""

    def __init__(self, title: str, problems: list[str], fix: str):
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        super().__init__("\n".join([f"{title}: {count}", *(f"  - {problem}" for problem in problems), fix]))
        self.problems = problems


class Shards(Mapping):
    """The tensors of a folder of safetensors by name, each read from its file when asked for.

    Args:
      folder: model.safetensors, or shards with their index.
      rename: stored name -> the name to be known by.

    Raises:
      ConvertError: listing every missing, truncated or corrupt file and all in which index and shards disagree.
    """

    def __init__(self, folder: pathlib.Path, rename: Callable[[str], str] = str):
        files, problems = _shard_files(folder)
        headers = {}
        for file in files:
            try:
                headers[file] = _read_header(folder / file)
            except (OSError, ValueError) as error:
                problems.append(f"{file}: {error}")
        if not problems:
            problems = _index_problems(folder, headers)
        if problems:
            raise ConvertError(f"the shards of {folder} cannot be read", problems, "Fix: copy the named files again.")
        places = {name: (folder / file, *entry) for file, header in headers.items() for name, entry in header.items()}
        self._places = renamed(places, rename, str(folder))
        self.described = {name: (shape, dtype) for name, (_, shape, dtype, _) in self._places.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        path, shape, dtype, offset = self._places[name]
        tensor = np.empty(shape, DTYPES[dtype])
        rest = _raw(tensor)
        with open(path, "rb", buffering=0) as file:
            file.seek(offset)
            while len(rest):
                read = file.readinto(rest)
                if not read:
                    fix = "Fix: is another program writing there?"
                    raise ConvertError(f"{path} became shorter", [f"{name} is {tensor.nbytes} bytes at {offset}"], fix)
                rest = rest[read:]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def write(
    folder: pathlib.Path,
    shapes: Mapping[str, Described],
    tensors: Iterable[tuple[str, np.ndarray]],
    shard_bytes: int,
) -> None:
    """Writes safetensors shards (and their index, if more than one) as transformers names them.

    All headers are laid out first, so the tensors may come in any order: each is written at its place and forgotten.

    Args:
      folder: where to; made if needed.
      shapes: name -> (shape, dtype as in a header) of every tensor.
      tensors: (name, array of that shape and dtype), each name once.
      shard_bytes: a shard takes tensors up to this size, at least one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _plan_shards(shapes, shard_bytes)
    count = len(shards)
    files = [SINGLE] if count == 1 else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    with contextlib.ExitStack() as stack:
        places, opened = {}, []
        for name_of_file, names in zip(files, shards, strict=True):
            file = stack.enter_context(open(folder / name_of_file, "wb", buffering=0))
            opened.append(file)
            places.update({name: (file, offset) for name, offset in _lay_out(file, names, shapes).items()})
        for name, tensor in tensors:
            file, offset = places.pop(name)
            shape, dtype = shapes[name]
            if tensor.shape != tuple(shape) or tensor.dtype != DTYPES[dtype]:
                raise ValueError(f"{name}: {tensor.dtype}{list(tensor.shape)}, laid out as {dtype}{list(shape)}")
            _write_at(file, offset, _raw(tensor))
        if places:
            raise ValueError(f"tensors laid out but never written: {', '.join(places)}")
        for file in opened:  # on the disk before the folder takes its name
            os.fsync(file.fileno())
    if count > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        metadata = {"total_size": total(shapes)}
        index = {"metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def size_of(described: Described) -> int:
    """Bytes of a tensor."""
    shape, dtype = described
    return math.prod(shape) * DTYPES[dtype].itemsize


def total(described: Mapping[str, Described]) -> int:
    """Bytes of all."""
    return sum(map(size_of, described.values()))


def renamed(tensors: Mapping[str, Any], rename: Callable[[str], str], where: str) -> dict[str, Any]:
    """The same values under their new names. Raises ConvertError listing names that become the same."""
    named, twice = {}, []
    for name, tensor in tensors.items():
        if rename(name) in named:
            twice.append(f"{rename(name)}, once as {name}")
        named[rename(name)] = tensor
    if twice:
        raise ConvertError(f"{where} holds tensors twice, in two layouts", twice, "Fix: keep one layout.")
    return named


def _shard_files(folder: pathlib.Path) -> tuple[list[str], list[str]]:
    """The shards to read, and what is wrong with the list."""
    there = sorted(path.name for path in folder.glob("*.safetensors"))
    if not (folder / INDEX).is_file():
        if there == [SINGLE]:
            return there, []
        found = ", ".join(there) or "no *.safetensors (other weight formats are not read: they can run code)"
        return [], [f"neither {INDEX} nor {SINGLE} alone; there is {found}"]
    weight_map, problem = _read_index(folder)
    if problem:
        return [], [problem]
    wanted = sorted(set(weight_map.values()))
    problems = [
        f"{file}: named by {INDEX}, is no plain file name" for file in wanted if pathlib.Path(file).name != file
    ]
    problems += [f"{file}: named by {INDEX}, is missing" for file in wanted if file not in there]
    problems += [f"{file}: not named by {INDEX}; remove it if it is a leftover" for file in there if file not in wanted]
    return [file for file in wanted if file in there], problems


def _read_index(folder: pathlib.Path) -> tuple[dict[str, str], str]:
    """(tensor name -> file, "") or ({}, what is wrong)."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        if not weight_map or not all(isinstance(file, str) for file in weight_map.values()):
            raise TypeError("weight_map must map tensor names to file names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"{INDEX}: cannot be read ({error!r})"
    return weight_map, ""


def _index_problems(folder: pathlib.Path, headers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the shards and their index disagree."""
    if not (folder / INDEX).is_file():
        return []
    weight_map, _ = _read_index(folder)
    problems = [
        f"{name}: {INDEX} says {file}, which does not hold it"
        for name, file in weight_map.items()
        if name not in headers[file]
    ]
    for file, header in headers.items():
        problems += [f"{name}: in {file}, not in {INDEX}" for name in header if weight_map.get(name) != file]
    return problems


def _read_header(path: pathlib.Path) -> dict[str, tuple[tuple[int, ...], str, int]]:
    """Tensor name -> (shape, dtype, offset in the file). Raises ValueError when the file is not what its header says."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_BYTES):
            raise ValueError(f"truncated or no safetensors: a header of {length} bytes in a file of {size}")
        try:
            entries = json.loads(file.read(length))
            entries.pop("__metadata__", None)
            described = {
                name: (tuple(entry["shape"]), entry["dtype"], *map(int, entry["data_offsets"]))
                for name, entry in entries.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"corrupt header ({error!r})") from error
    end = 0
    for name, (shape, dtype, start, stop) in sorted(described.items(), key=lambda item: item[1][2]):
        if start != end or (dtype in DTYPES and stop - start != size_of((shape, dtype))):
            raise ValueError(f"corrupt header: {name} {dtype}{list(shape)} cannot lie at bytes {start} to {stop}")
        end = stop
    if 8 + length + end != size:
        raise ValueError(f"truncated or padded: its header describes {8 + length + end} bytes, it has {size}")
    return {name: (shape, dtype, 8 + length + start) for name, (shape, dtype, start, _) in described.items()}


def _plan_shards(shapes: Mapping[str, Described], shard_bytes: int) -> list[list[str]]:
    """Names by shard, layer after layer, each shard at most `shard_bytes` or one tensor."""
    shards, room = [], -1
    for name in sorted(shapes, key=lambda name: [int(part) if part.isdecimal() else part for part in name.split(".")]):
        room -= size_of(shapes[name])
        if room < 0:
            shards.append([])
            room = shard_bytes - size_of(shapes[name])
        shards[-1].append(name)
    return shards


def _lay_out(file: Any, names: list[str], shapes: Mapping[str, Described]) -> dict[str, int]:
    """Writes the header, makes the file its full size; returns each tensor's offset. Wide types first: aligned."""
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(names, key=lambda name: (-DTYPES[shapes[name][1]].itemsize, name)):
        shape, dtype = shapes[name]
        start, end = end, end + size_of((shape, dtype))
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    begin = 8 + len(header)
    file.truncate(begin + end)
    _write_at(file, 0, memoryview(len(header).to_bytes(8, "little") + header))
    return {name: begin + entry["data_offsets"][0] for name, entry in entries.items() if name != "__metadata__"}


def _write_at(file: Any, offset: int, data: memoryview) -> None:
    file.seek(offset)
    while len(data):
        data = data[file.write(data) :]


def _raw(tensor: np.ndarray) -> memoryview:
    """The bytes of a contiguous array, not a copy (numpy lends no buffer of bfloat16, hence the view)."""
    return memoryview(tensor.reshape(-1).view(np.uint8))
